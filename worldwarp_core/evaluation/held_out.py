"""The held-out test: 200-frame paths through worlds that training never saw, by how much stays in sight.

The lists below are fixed: indices of the test split's worlds, chosen once from a scan so that every stratum has as many
paths and no kind of world rules. What a world looks like depends on the test split's texture bank; where things stand
and how the camera moves depends on the index alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..worlds.paths import PathSettings, choose_paths
from ..worlds.render import RenderSettings, Worlds, build_worlds, render, world_seed
from ..worlds.textures import Split, TextureBank

FRAMES = 200
MOTION = (0.7, 2.4)
"""Least and most amount of motion, as `PathSettings.amount`."""

Stratum = Literal["lost", "little", "half", "most"]

STRATA: dict[Stratum, tuple[float, float]] = {
    "lost": (0.0, 0.05),
    "little": (0.05, 0.25),
    "half": (0.25, 0.5),
    "most": (0.5, 0.85),
}
"""The share of the start view that the last frame still sees, from, to below."""


@dataclass(frozen=True)
class HeldOut:
    """One test path.

    Attributes:
        index: of the test split's worlds.
        kind: the world's family.
        in_sight: the share of the start view that is seen at the end; of a revisit, at the turning point.
    """

    index: int
    kind: str
    in_sight: float

    @property
    def stratum(self) -> Stratum:
        return next(name for name, (low, high) in STRATA.items() if low <= self.in_sight < high)


HELD_OUT: tuple[HeldOut, ...] = (
    HeldOut(12, "colonnade", 0.0),
    HeldOut(16, "corridor", 0.0),
    HeldOut(22, "street", 0.0),
    HeldOut(39, "street", 0.0),
    HeldOut(41, "rooms", 0.0),
    HeldOut(49, "blocks", 0.0),
    HeldOut(75, "rooms", 0.0),
    HeldOut(80, "table", 0.0),
    HeldOut(141, "terrain", 0.014),
    HeldOut(2, "terrain", 0.19),
    HeldOut(10, "rooms", 0.142),
    HeldOut(21, "rooms", 0.134),
    HeldOut(26, "table", 0.193),
    HeldOut(38, "terrain", 0.189),
    HeldOut(47, "colonnade", 0.233),
    HeldOut(52, "blocks", 0.096),
    HeldOut(56, "corridor", 0.064),
    HeldOut(72, "street", 0.078),
    HeldOut(1, "colonnade", 0.388),
    HeldOut(8, "blocks", 0.467),
    HeldOut(17, "rooms", 0.297),
    HeldOut(23, "table", 0.3),
    HeldOut(24, "colonnade", 0.348),
    HeldOut(25, "street", 0.376),
    HeldOut(28, "terrain", 0.409),
    HeldOut(40, "rooms", 0.338),
    HeldOut(124, "corridor", 0.479),
    HeldOut(6, "colonnade", 0.54),
    HeldOut(11, "blocks", 0.651),
    HeldOut(14, "corridor", 0.661),
    HeldOut(29, "street", 0.597),
    HeldOut(30, "table", 0.699),
    HeldOut(31, "table", 0.818),
    HeldOut(42, "rooms", 0.641),
    HeldOut(53, "rooms", 0.531),
    HeldOut(90, "terrain", 0.532),
)
"""Nine paths of each stratum."""

REVISITS: tuple[HeldOut, ...] = (
    HeldOut(1002, "rooms", 0.0),
    HeldOut(1003, "rooms", 0.322),
    HeldOut(1006, "street", 0.361),
    HeldOut(1007, "rooms", 0.218),
    HeldOut(1012, "colonnade", 0.299),
    HeldOut(1013, "terrain", 0.0),
    HeldOut(1014, "street", 0.353),
    HeldOut(1015, "colonnade", 0.425),
    HeldOut(1016, "street", 0.32),
    HeldOut(1017, "colonnade", 0.348),
    HeldOut(1019, "rooms", 0.436),
    HeldOut(1020, "colonnade", 0.532),
)
"""Paths that go out and come back to where they began, with a steady hand."""


@dataclass(frozen=True)
class Shot:
    """A test path, ready to be rendered; float32 on one device.

    Attributes:
        path: which.
        worlds: its one world.
        K: (1, T, 3, 3) pixels.
        c2w: (1, T, 4, 4) OpenCV, metres.
        size: (height, width).
    """

    path: HeldOut
    worlds: Worlds
    K: Tensor
    c2w: Tensor
    size: tuple[int, int]

    def render(
        self, bank: TextureBank, frames: Tensor, settings: RenderSettings | None = None
    ) -> tuple[Tensor, Tensor]:
        """The truth at some frames: (F, 3, H, W) float16 sRGB in [0, 1] and (F, H, W) planar z, inf for the sky."""
        which = torch.zeros(len(frames), dtype=torch.int64, device=self.K.device)
        return render(
            self.worlds, bank, which, self.K[0, frames], self.c2w[0, frames], self.size, settings or RenderSettings()
        )


def held_out_shots(
    bank: TextureBank,
    paths: tuple[HeldOut, ...],
    size: tuple[int, int] = (144, 256),
    device: torch.device | str = "cpu",
    split: Split = "test",
) -> Iterator[Shot]:
    """The shots of `HELD_OUT` or `REVISITS`, one after the other; `bank` is one of the same split.

    Through the worlds of another split the same numbers are other paths, whose strata nobody has looked up.
    """
    for path in paths:
        seed = world_seed(split, path.index)
        worlds = build_worlds([seed], bank, device)
        settings = PathSettings(
            frames=FRAMES, size=size, amount=MOTION, out_and_back=float(path in REVISITS), handheld=0.3
        )
        made = choose_paths(worlds, [seed], settings)
        yield Shot(path, worlds, made.K, made.c2w, size)
