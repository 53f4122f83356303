"""What is judged: clips with cameras and true pictures, from our own held-out worlds or from folders of footage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..atomic_write import atomic_write
from ..cameras.path import CameraPath
from ..worlds.textures import Split
from .held_out import HELD_OUT, REVISITS, HeldOut, held_out_shots

FPS = 24.0

Truth = tuple[np.ndarray, np.ndarray | None]
"""(F, H, W, 3) uint8 pictures and, where it is known, (F, H, W) float32 planar z in scene units, inf for the sky."""


@dataclass(frozen=True)
class Scene:
    """One clip.

    Attributes:
        name: unique within its set, and good for a file's name.
        kind: of place, where that is known; the strength experiment is told by it.
        stratum: how much of the start view is still in sight at the end, in words; "all" where that is not known.
        in_sight: the same as a share, or None.
        cameras: of all frames, at the size that is judged at.
        truth: the true pictures at some positions of the path.
        out_and_back: the path ends where it began.
        scale: median depth of the first frame in scene units where its depth map is not known, or None.
    """

    name: str
    kind: str
    stratum: str
    in_sight: float | None
    cameras: CameraPath
    truth: Callable[[Sequence[int]], Truth]
    out_and_back: bool = False
    scale: float | None = None

    def remembered(self, folder: Path) -> Scene:
        """The same scene, whose truth is worked out once and then read from `folder`."""
        return replace(self, truth=_Remembered(self.truth, folder / f"{self.name}.npz"))


class SceneSet(Protocol):
    """Scenes in a fixed order, the same on every machine."""

    name: str

    def __len__(self) -> int: ...

    def scene(self, index: int) -> Scene: ...


class HeldOutWorlds:
    """The held-out paths through procedural worlds that training never saw, and those that go out and come back.

    Args:
        paths: how many of `HELD_OUT`, as many of each stratum as of any other; None takes all.
        revisits: how many of `REVISITS`; None takes all.
        size: (height, width), pixels.
        textures: the texture file that training was given, or None for procedural patterns alone.
        device: where they are rendered.
        split: `val` to settle what must not be settled by what is judged; its paths are others, of any stratum.
    """

    name = "held-out worlds"

    def __init__(
        self,
        paths: int | None = None,
        revisits: int | None = None,
        size: tuple[int, int] = (144, 256),
        textures: Path | None = None,
        device: str = "cpu",
        split: Split = "test",
    ) -> None:
        from ..worlds.textures import build_bank

        self._paths = choose_held_out(paths) + choose_held_out(revisits, REVISITS)
        self._size, self._device, self._split = size, device, split
        self._bank = build_bank(split, textures, device=device)

    def __len__(self) -> int:
        return len(self._paths)

    def scene(self, index: int) -> Scene:
        path = self._paths[index]
        (shot,) = held_out_shots(self._bank, (path,), self._size, self._device, self._split)
        K, c2w = (x[0].double().cpu().numpy() for x in (shot.K, shot.c2w))
        height, width = self._size

        def truth(frames: Sequence[int]) -> Truth:
            rgb, depth = shot.render(self._bank, torch.tensor(frames, device=self._device))
            pictures = (rgb.float().permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
            return pictures.cpu().numpy(), depth.float().cpu().numpy()

        return Scene(
            name=f"{path.kind}-{path.index}",
            kind=path.kind,
            stratum="revisit" if path in REVISITS else path.stratum,
            in_sight=path.in_sight,
            cameras=CameraPath(np.arange(1, len(K) + 1), FPS, width, height, K, c2w),
            truth=truth,
            out_and_back=path in REVISITS,
        )


def choose_held_out(count: int | None, among: Sequence[HeldOut] = HELD_OUT) -> tuple[HeldOut, ...]:
    """So many paths, of every stratum in turn and of the kinds that have come least so far; all of them for None."""
    if count is None:
        return tuple(among)
    left, chosen = list(among), list[HeldOut]()
    while left and len(chosen) < count:
        for stratum in dict.fromkeys(path.stratum for path in among):
            kinds = Counter(path.kind for path in chosen)
            some = [path for path in left if path.stratum == stratum]
            if some and len(chosen) < count:
                chosen.append(min(some, key=lambda path: kinds[path.kind]))
                left.remove(chosen[-1])
    return tuple(chosen)


@dataclass(frozen=True)
class _Remembered:
    """A truth that is kept in a file: rendering worlds takes longer on a CPU than judging them."""

    source: Callable[[Sequence[int]], Truth]
    file: Path

    def __call__(self, frames: Sequence[int]) -> Truth:
        known = self._read()
        missing = sorted(set(frames) - set(known))
        if missing:
            rgb, depth = self.source(missing)
            for row, frame in enumerate(missing):
                known[frame] = rgb[row], None if depth is None else depth[row]
            self._write(known)
        pictures = np.stack([known[frame][0] for frame in frames])
        depths = [known[frame][1] for frame in frames]
        return pictures, None if depths[0] is None else np.stack(depths)  # type: ignore[arg-type]

    def _read(self) -> dict[int, tuple[np.ndarray, np.ndarray | None]]:
        if not self.file.is_file():
            return {}
        with np.load(self.file, allow_pickle=False) as kept:
            depth = kept["depth"] if "depth" in kept.files else [None] * len(kept["frames"])
            return dict(zip(kept["frames"].tolist(), zip(kept["rgb"], depth, strict=True), strict=True))

    def _write(self, known: dict[int, tuple[np.ndarray, np.ndarray | None]]) -> None:
        frames = sorted(known)
        arrays = {"frames": np.array(frames), "rgb": np.stack([known[frame][0] for frame in frames])}
        if known[frames[0]][1] is not None:
            arrays["depth"] = np.stack([known[frame][1] for frame in frames])  # type: ignore[misc]
        with atomic_write(self.file) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
