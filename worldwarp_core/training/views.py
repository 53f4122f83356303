"""Pictures of worlds with their depth and cameras, rendered on one device and left there.

A clip is a walk through a world, warped from some of its frames (`clips.py`); the depth network learns from views that
lie far apart, as it is asked about single pictures and a world's neighbouring frames teach it nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..worlds.paths import PathSettings, choose_paths
from ..worlds.render import RenderSettings, build_worlds, render, world_seed
from ..worlds.textures import Split, TextureBank, build_bank

SOURCE_STRIDE = 1 << 20
"""World indices that one `seed` of a source has to itself."""

FAR_APART = (0.5, 2.5)
"""Amounts of motion (`PathSettings.amount`) between the first and the last view of a world."""


@dataclass(frozen=True)
class ViewBatch:
    """T views of H x W pixels of each of n worlds, on one device.

    Attributes:
        rgb: (n, T, 3, H, W) float16 sRGB in [0, 1].
        depth: (n, T, H, W) float32 planar z in metres, inf for the sky.
        K: (n, T, 3, 3) pixels, pixel centres at +0.5.
        c2w: (n, T, 4, 4) OpenCV, metres.
        kinds, moves: of each world and of the path that its views are on.
    """

    rgb: Tensor
    depth: Tensor
    K: Tensor
    c2w: Tensor
    kinds: tuple[str, ...]
    moves: tuple[str, ...]


class ViewSource:
    """Makes views of one split's worlds, at one size.

    Args:
        split: "train", "val" or "test".
        seed: which stretch of the split's worlds to take.
        size: (height, width), pixels.
        views: of each world, along one path.
        device: where to make them.
        textures: a texture file, or None for procedural patterns alone.
        paths, rendering: settings; None takes views that lie far apart.
        bank: a texture bank of the same split to share; None builds one.
    """

    def __init__(
        self,
        split: Split,
        seed: int = 0,
        size: tuple[int, int] = (144, 256),
        views: int = 5,
        device: torch.device | str = "cpu",
        textures: str | Path | None = None,
        *,
        paths: PathSettings | None = None,
        rendering: RenderSettings | None = None,
        bank: TextureBank | None = None,
    ) -> None:
        self.split: Split = split
        self.seed = seed
        self.size = size
        self.views = views
        self.device = torch.device(device)
        self.bank = bank or build_bank(split, textures, device=self.device)
        self.paths = paths or PathSettings(frames=views, size=size, amount=FAR_APART, out_and_back=0.0)
        self.rendering = rendering or RenderSettings()

    def seeds(self, n: int, first_seed: int) -> list[int]:
        """Of the n worlds from `first_seed` on."""
        assert 0 <= first_seed <= SOURCE_STRIDE - n, first_seed
        return [world_seed(self.split, self.seed * SOURCE_STRIDE + first_seed + i) for i in range(n)]

    @torch.no_grad()
    def batch(self, n: int, first_seed: int) -> ViewBatch:
        """Views of the worlds first_seed, first_seed + 1, ...: the same ones whenever asked."""
        seeds = self.seeds(n, first_seed)
        # what a trainer runs under must not coarsen geometry
        with torch.autocast(self.device.type, enabled=False):
            worlds = build_worlds(seeds, self.bank, self.device)
            paths = choose_paths(worlds, seeds, self.paths)
            which = torch.arange(n, device=self.device).repeat_interleave(self.views)
            rgb, depth = render(
                worlds, self.bank, which, paths.K.flatten(0, 1), paths.c2w.flatten(0, 1), self.size, self.rendering
            )
        return ViewBatch(
            rgb.unflatten(0, (n, -1)), depth.unflatten(0, (n, -1)), paths.K, paths.c2w, worlds.kinds, paths.moves
        )
