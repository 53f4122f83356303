"""The first chunk of a held-out shot, for benchmarks of what the preview's parts make of it: its priors, the making of
it, and the options and settings that these benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldwarp_core.engine import Engine
from worldwarp_core.evaluation.lpips import PACKAGE, Lpips, find_lpips
from worldwarp_core.evaluation.provenance import hardware_name
from worldwarp_core.history import History
from worldwarp_core.loop.chunks import ChunkPlan
from worldwarp_core.loop.fill import CacheFill
from worldwarp_core.loop.priors import Priors
from worldwarp_core.preview.shipped import WEIGHTS
from worldwarp_core.spec import GenerateSpec
from worldwarp_core.st_diff.fill import StDiffFill

RESULTS = Path(__file__).parent / "results"
CHUNK = 49
JUDGED_EVERY = 4


@dataclass(frozen=True)
class Given:
    """What a fill is given for the first chunk of a shot; the priors are of the new frames."""

    context: History
    priors: Priors
    plan: ChunkPlan
    spec: GenerateSpec

    @property
    def judged(self) -> range:
        """The frames that are compared with the truth, as positions in the path."""
        return self.plan.new[JUDGED_EVERY - 1 :: JUDGED_EVERY]

    @property
    def judged_rows(self) -> list[int]:
        """The same, among the new frames."""
        return [frame - self.plan.new.start for frame in self.judged]


def given_first(engine: Engine, shot: GenerateSpec) -> Given:
    """Fits the cache to the start frame and stops where its fill would begin."""
    watched = _Watched()
    for _ in replace(engine, models=replace(engine.models, fill=watched)).generate(shot):
        if watched.given is not None:
            return watched.given
    raise AssertionError("a shot of one frame has nothing to fill")


def make(fill: StDiffFill, given: Given, spec: GenerateSpec) -> np.ndarray:
    """(F, H, W, 3) uint8: the chunk's new frames."""
    made = fill.fill(given.context, given.priors, given.plan, spec)
    return to_bytes([frame for frame in made if isinstance(frame, Tensor)])


def to_bytes(frames: list[Tensor]) -> np.ndarray:
    """(H, W, 3) frames in [0, 1] -> (F, H, W, 3) uint8."""
    return (torch.stack(frames) * 255).round().to(torch.uint8).cpu().numpy()


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def shared_options(description: str | None) -> argparse.ArgumentParser:
    """The options that every such benchmark takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS; without, those of the package lpips")
    parser.add_argument("--textures", type=Path, help="pictures for the worlds; without, procedural patterns alone")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the preview's networks")
    parser.add_argument("--paths", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder")
    return parser


def shared_settings(options: argparse.Namespace, models: str) -> dict[str, Any]:
    """What the options say, as the file of results has it."""
    return {
        "models": models,
        "textures": None if options.textures is None else options.textures.name,
        "lpips": PACKAGE if options.lpips is None else options.lpips.name,
        "device": options.device,
    }


def open_lpips(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Lpips:
    """LPIPS as the options say; ends the program in a sentence where its weights are not there."""
    lpips, why = find_lpips(options.lpips)
    if lpips is None:
        parser.error(why)
    return lpips


def result_file(options: argparse.Namespace, name: str, where: Mapping[str, Any]) -> Path:
    """The JSON file to write, `<name>_<hardware>.json`, in a folder that is there."""
    options.out.mkdir(parents=True, exist_ok=True)
    gpu = where["gpu"] if options.device != "cpu" else None
    return Path(options.out / f"{name}_{hardware_name(gpu, where['cores'])}.json")


class _Watched(CacheFill):
    """Keeps what it is given."""

    given: Given | None = None

    def fill(self, context: History, priors: Priors, plan: ChunkPlan, spec: GenerateSpec) -> Iterator[Tensor]:
        self.given = Given(context, priors, plan, spec)
        yield from super().fill(context, priors, plan, spec)
