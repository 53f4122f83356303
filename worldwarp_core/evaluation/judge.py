"""One scene made by one variant, measured against the truth: figures of single frames, of poses and of coming back."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..engine import Engine
from ..history import History, to_bytes
from ..loop.chunks import ChunkPlan, split_chunks
from ..loop.fill import Fill, FillStep
from ..loop.priors import Priors
from ..pictures.framing import resize_picture
from ..spec import BACKGROUND_DEPTH, Finished, Frame, GenerateSpec, Notice, Progress
from .inception import Inception, inception_features
from .lpips import Lpips
from .metrics import alexnet_features, crops, psnr, spectrum_distance, ssim
from .poses import pose_errors
from .scenes import Scene
from .variants import Variant
from .visibility import seen_from

WINDOWS = {50: (45, 55), 200: (190, 200)}
"""Frame numbers whose neighbours, from and to, stand for the figures at that frame."""
CURVE_EVERY = 20
"""Frames between two points of a figure's way along the path."""
SHOWN = (1, 50, 100, 160, 200)
"""Frame numbers that are shown side by side."""
CROPS = 192
"""Crops of each window that KID sees of one path."""
CROP_PX = 64
RETURN_GAP = 40
"""Frames that must lie between the way out and the way back for a place to count as seen again."""
RETURN_TURN_RAD, RETURN_TRAVEL = 0.004, 0.004
"""How nearly two cameras must be the same to see the same picture; travel over the scene's median depth."""
JUDGED_AT_ONCE = 8


@dataclass(frozen=True)
class Judges:
    """What is measured, and with what.

    Attributes:
        lpips: and AlexNet, whose features KID compares; None leaves both out.
        inception: None leaves FID out.
        poses_every: frames between two whose pose is estimated anew; 0 leaves poses out.
        window_every: of the frames of a window, one in so many is judged.
    """

    lpips: Lpips | None = None
    inception: Inception | None = None
    poses_every: int = 8
    window_every: int = 1


@dataclass(frozen=True)
class Judged:
    """What came of one scene.

    Attributes:
        figures: plain values, nan where something cannot be told.
        features: arrays by name, for figures over all scenes together.
        pictures: (H, W, 3) uint8 by name: `<frame number>-truth`, `-prior` and `-made`.
    """

    figures: dict[str, Any]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


def judge_scene(
    scene: Scene, variant: Variant, engine: Engine, judges: Judges, tell: Callable[[float], None] = lambda share: None
) -> Judged:
    """Makes the scene's shot and measures it.

    Args:
        tell: called with the share that is done, in [0, 1]; what it raises, ends the work.

    Raises:
        WorldWarpError: as the engine does, and `not_installed` where poses are wanted without pycolmap.
    """
    numbers = judged_numbers(len(scene.cameras), judges.window_every)
    rows = [number - 1 for number in numbers]
    truth, depth = scene.truth(rows)
    shot = variant.shot(scene)
    adapted = variant.adapt(engine)
    watched = _Watched(adapted.models.fill, rows)
    adapted = replace(adapted, models=replace(adapted.models, fill=cast("Fill", watched)))
    run = _run(adapted, shot, lambda share: tell(0.85 * share))
    made = np.stack([frame.rgb for frame in run.frames])
    valid = np.stack([frame.validity > 0 for frame in run.frames])
    # The start is known all over: it is the truth itself.
    prior = np.stack([watched.prior(row, made[row]) for row in rows])
    seen = None if depth is None else _seen_at_first(scene, rows, depth)
    by_frame = _frame_figures(numbers, made[rows], prior, truth, valid[rows], seen, judges)
    if depth is not None:
        found = np.stack([run.frames[row].depth for row in rows])
        for number, error in zip(numbers, _depth_errors(found, depth, valid[rows]), strict=True):
            by_frame[str(number)]["depth_absrel"] = error
    chunks = sum(1 for plan in split_chunks(len(made), shot.chunk, shot.overlap) if plan.new)
    figures: dict[str, Any] = {
        "scene": _facts(scene),
        "variant": variant.describe(),
        "frames": by_frame,
        "seconds": run.seconds,
        "chunk_s": run.seconds / max(chunks, 1),
        "busy": busy(),
        "summary": run.summary,
        "notices": run.notices,
    }
    middle = _median_depth(scene)
    if judges.poses_every:
        figures["poses"] = _pose_figures(scene, made, middle, judges.poses_every)
    if scene.out_and_back:
        figures["revisit"] = _revisit(scene, made, truth[numbers.index(1)], middle, judges)
    tell(0.98)
    features = _features(numbers, made[rows], truth, judges)
    return Judged(figures, features, _pictures(numbers, made[rows], prior, truth, valid[rows]))


def busy() -> float | None:
    """Processes that want to run, over the cores there are, in the last minutes; None where the system does not say."""
    try:
        return os.getloadavg()[1] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return None


def judged_numbers(frames: int, window_every: int = 1) -> list[int]:
    """The numbers, from 1, of the frames of a path that are compared with the truth."""
    curve = [1, *range(CURVE_EVERY, frames + 1, CURVE_EVERY)]
    every = [number for window in WINDOWS for number in window_numbers(window, window_every)]
    return sorted({n for n in (*curve, *every, *SHOWN) if n <= frames})


def window_numbers(window: int, every: int = 1) -> list[int]:
    """The frame numbers that stand for the figures at `window`, itself among them."""
    first, last = WINDOWS[window]
    return [number for number in range(first, last + 1) if (number - window) % every == 0]


class _Watched:
    """A fill; of the priors that it is given, the pictures at these positions in the path are kept."""

    def __init__(self, fill: Fill, rows: Sequence[int]) -> None:
        self._fill, self._rows = fill, set(rows)
        self._pictures: dict[int, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fill, name)

    def fill(
        self, context: History, priors: Priors, plan: ChunkPlan, spec: GenerateSpec
    ) -> Iterator[FillStep | Notice | Tensor]:
        for row in self._rows & set(plan.new):
            self._pictures[row] = to_bytes(priors.rgb[plan.new.index(row)]).cpu().numpy()
        return self._fill.fill(context, priors, plan, spec)

    def prior(self, row: int, start: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 at the size of `start`, which stands for a frame that was given and not filled."""
        return resize_picture(self._pictures[row], start.shape[1], start.shape[0]) if row in self._pictures else start


@dataclass(frozen=True)
class _Run:
    """What an engine made of a shot."""

    frames: list[Frame]
    summary: dict[str, Any]
    notices: list[str]
    seconds: float


def _run(engine: Engine, shot: GenerateSpec, tell: Callable[[float], None]) -> _Run:
    began = time.perf_counter()
    frames: list[Frame] = []
    summary: dict[str, Any] = {}
    notices: list[str] = []
    for event in engine.generate(shot):
        if isinstance(event, Frame):
            frames.append(event)
        elif isinstance(event, Progress):
            tell(event.fraction)
        elif isinstance(event, Notice):
            notices.append(f"{event.code}: {event.message}")
        elif isinstance(event, Finished):
            summary = event.summary
    return _Run(frames, summary, notices, time.perf_counter() - began)


def _facts(scene: Scene) -> dict[str, Any]:
    return {
        "name": scene.name,
        "kind": scene.kind,
        "stratum": scene.stratum,
        "in_sight": scene.in_sight,
        "frames": len(scene.cameras),
        "size": [scene.cameras.width, scene.cameras.height],
    }


def _frame_figures(
    numbers: list[int],
    made: np.ndarray,
    prior: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray,
    seen: np.ndarray | None,
    judges: Judges,
) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for first in range(0, len(numbers), JUDGED_AT_ONCE):
        part = slice(first, first + JUDGED_AT_ONCE)
        one, other = _tensor(made[part]), _tensor(truth[part])
        known = torch.from_numpy(valid[part])
        columns = {
            "psnr": psnr(one, other),
            "psnr_valid": psnr(one, other, known),
            "psnr_prior": psnr(_tensor(prior[part]), other, known),
            "psnr_holes": psnr(one, other, ~known),
            "ssim": ssim(one, other),
            "spectrum_distance": spectrum_distance(one, other, ~known),
            "spectrum_distance_all": spectrum_distance(one, other),
            "valid_share": known.float().mean((1, 2)),
        }
        if seen is not None:
            columns["psnr_seen"] = psnr(one, other, torch.from_numpy(seen[part]))
        if judges.lpips is not None:
            columns["lpips"] = judges.lpips(one, other)
        for row, number in enumerate(numbers[part]):
            figures[str(number)] = {name: float(values[row]) for name, values in columns.items()}
    return figures


def _seen_at_first(scene: Scene, rows: list[int], depth: np.ndarray) -> np.ndarray:
    """(N, H, W) bool: the pixels of these frames, the first of which is the path's, that its first frame shows too."""
    K, c2w = scene.cameras.K[rows], scene.cameras.c2w[rows]
    return np.stack([seen_from(depth[0], K[0], c2w[0], *view) for view in zip(depth, K, c2w, strict=True)])


def _depth_errors(found: np.ndarray, depth: np.ndarray, valid: np.ndarray) -> list[float]:
    """Mean relative error of each frame's delivered depth where its prior was valid and both see a surface."""
    errors = []
    for one, other, known in zip(found, depth, valid, strict=True):
        both = known & np.isfinite(other) & (one < 0.99 * BACKGROUND_DEPTH)
        errors.append(float(np.abs(one[both] / other[both] - 1).mean()) if both.any() else math.nan)
    return errors


def _pose_figures(scene: Scene, made: np.ndarray, depth: float | None, every: int) -> dict[str, dict[str, float]]:
    asked = sorted({*range(0, len(made), every), len(made) - 1})
    errors = pose_errors(made[asked], scene.cameras.K[asked], scene.cameras.c2w[asked], asked, depth)
    ends = [number for number in WINDOWS if number <= len(made)] or [len(made)]
    return {str(number): errors.until(number) for number in ends}


def _revisit(
    scene: Scene, made: np.ndarray, start: np.ndarray, depth: float | None, judges: Judges
) -> dict[str, float]:
    """How alike the same place looks on the way out and on the way back, and how like the start the end is."""
    pairs = returns(scene, depth)
    figures = {"pairs": float(len(pairs)), "return_psnr": float(psnr(_tensor(made[-1:]), _tensor(start[None])))}
    if not pairs:
        return figures | {"revisit_psnr": math.nan}
    out, back = (_tensor(made[list(rows)]) for rows in zip(*pairs, strict=True))
    figures["revisit_psnr"] = float(psnr(out, back).mean())
    if judges.lpips is not None:
        pairwise = zip(out.split(JUDGED_AT_ONCE), back.split(JUDGED_AT_ONCE), strict=True)
        figures["revisit_lpips"] = float(torch.cat([judges.lpips(one, other) for one, other in pairwise]).mean())
    return figures


def returns(scene: Scene, depth: float | None) -> list[tuple[int, int]]:
    """Positions on the way out and on the way back from which a path sees the same picture, at most about 20 pairs."""
    c2w, K = scene.cameras.c2w, scene.cameras.K
    pairs = []
    for i in range(1, len(c2w) - RETURN_GAP, max(len(c2w) // 40, 1)):
        later = np.arange(i + RETURN_GAP, len(c2w))
        travel = np.linalg.norm(c2w[later, :3, 3] - c2w[i, :3, 3], axis=1) / (depth or 1.0)
        turn = np.linalg.norm(c2w[later, :3, :3] - c2w[i, :3, :3], axis=(1, 2)) / math.sqrt(2)
        zoom = np.abs(K[later, 0, 0] / K[i, 0, 0] - 1)
        off = np.maximum(np.maximum(travel / RETURN_TRAVEL, turn / RETURN_TURN_RAD), zoom / RETURN_TURN_RAD)
        if off.min() < 1:
            pairs.append((i, int(later[off.argmin()])))
    return pairs


def _features(numbers: list[int], made: np.ndarray, truth: np.ndarray, judges: Judges) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for window in WINDOWS:
        rows = [numbers.index(n) for n in window_numbers(window, judges.window_every) if n in numbers]
        if not rows or (judges.lpips is None and judges.inception is None):
            continue
        for name, pictures in (("made", made[rows]), ("truth", truth[rows])):
            size = min(CROP_PX, *pictures.shape[1:3])
            some = crops(_tensor(pictures), CROPS, size, torch.Generator().manual_seed(window))
            if judges.lpips is not None:
                found[f"alexnet-{window}-{name}"] = alexnet_features(some, judges.lpips).half().numpy()
            if judges.inception is not None:
                found[f"inception-{window}-{name}"] = inception_features(some, judges.inception).half().numpy()
    return found


def _pictures(
    numbers: list[int], made: np.ndarray, prior: np.ndarray, truth: np.ndarray, valid: np.ndarray
) -> dict[str, np.ndarray]:
    pictures: dict[str, np.ndarray] = {}
    for number in [n for n in SHOWN if n in numbers]:
        row = numbers.index(number)
        known = np.where(valid[row, ..., None], prior[row], 0).astype(np.uint8)
        pictures |= {f"{number}-truth": truth[row], f"{number}-prior": known, f"{number}-made": made[row]}
    return pictures


def _median_depth(scene: Scene) -> float | None:
    _, depth = scene.truth([0])
    return scene.scale if depth is None else float(np.median(depth[0][np.isfinite(depth[0])]))


def _tensor(pictures: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
