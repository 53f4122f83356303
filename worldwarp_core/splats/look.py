"""The world from a camera, with the sky as a layer of its own.

The sky's Gaussians stand far behind everything else, so drawing them apart and putting them behind is the same picture.
It is not the same depth: a wall that lets 3% of the sky through would seem far behind where it is. Apart, the expected
depth is that of the surfaces alone, also along a roof against the sky.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussians import Gaussians
from .rasterize import rasterize

SURFACE_ALPHA = 0.5
"""From this alpha of the surfaces on, a pixel shows a surface; below, it shows the sky or nothing."""


@dataclass(frozen=True)
class Look:
    """C views of H x W pixels, in cache units.

    Attributes:
        rgb: (C, H, W, 3) premultiplied by alpha.
        alpha: (C, H, W) in [0, 1], surfaces and sky together.
        depth: (C, H, W) expected planar z of the surfaces; inf where there is none.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor


@torch.no_grad()
def look(gaussians: Gaussians, sky: Tensor, w2c: Tensor, K: Tensor, width: int, height: int) -> Look:
    """Renders surfaces and sky ((N,) bool) at (C, 4, 4) cameras."""
    near = rasterize(gaussians[~sky] if sky.any() else gaussians, w2c, K, width, height)
    depth = torch.where(near.alpha >= SURFACE_ALPHA, near.depth, torch.inf)
    if not sky.any():
        return Look(near.rgb, near.alpha, depth)
    far = rasterize(gaussians[sky], w2c, K, width, height)
    through = 1 - near.alpha
    return Look(near.rgb + through[..., None] * far.rgb, near.alpha + through * far.alpha, depth)
