"""Depth of the start frame: exact from the scene, or from a model with the scale that the user gives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import WorldWarpError
from ..spec import BACKGROUND_DEPTH
from .monocular import DepthModel

DEFAULT_SCENE_SCALE = 5.0
"""Median depth, in scene units, of a start frame whose depth comes from a model (method section 9)."""
SKY_RATIO = 50.0
"""A model's depth beyond this many times its median is sky."""
SURFACE_RATIO = 1.05
"""Depths that differ by less than this between neighbours are one surface, and may be interpolated."""


def start_depth(
    exact: np.ndarray | None, rgb: Tensor, monocular: DepthModel | None, scene_scale: float | None
) -> tuple[Tensor, str]:
    """(H, W) planar z of the start frame in scene units (inf is sky), and where it comes from, for the record.

    Args:
        exact: (h, w) planar z in scene units, at any size; it wins over a model.
        rgb: (H, W, 3) in [0, 1].
        scene_scale: median depth of the frame in scene units, where a model estimates it. None takes a metric model's
            metres for scene units, and `DEFAULT_SCENE_SCALE` with a relative one.

    Raises:
        WorldWarpError: `no_depth` with neither depth nor model; `bad_depth` where the model's estimate is unusable.
    """
    if exact is not None:
        return scene_geometry(exact, (rgb.shape[0], rgb.shape[1]), rgb.device), "exact (scene)"
    if monocular is None:
        raise WorldWarpError(
            "no_depth",
            "The start frame has no depth. Give --depth FILE (Blender's Z pass as EXR, NPY or 16-bit PNG), or "
            "--depth-model NAME, such as depth-anything-small (`worldwarp models` lists them).",
        )
    if scene_scale is None and monocular.kind == "depth":
        return start_depth_from_model(rgb, monocular, None), f"{monocular.name}, its metres taken for scene units"
    scale = DEFAULT_SCENE_SCALE if scene_scale is None else scene_scale
    return start_depth_from_model(rgb, monocular, scale), f"{monocular.name}, median depth set to {scale:g} scene units"


def scene_geometry(depth: np.ndarray, size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(height, width) float32 planar z at `size`; background becomes inf.

    Args:
        depth: (h, w) planar z, `BACKGROUND_DEPTH` or inf where there is nothing.
        size: (height, width).
        device: where it is wanted; the CPU unless given.
    """
    values = torch.from_numpy(np.array(depth, np.float32)).to(device or torch.device("cpu"))
    return resize_depth(torch.where(values >= 0.99 * BACKGROUND_DEPTH, torch.inf, values), size)


def resize_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """(height, width) planar z at `size`, from (h, w); inf is nothing.

    Disparity is interpolated on surfaces (a plane stays that plane); at a depth edge the nearest pixel is taken, so
    that no depth appears between two surfaces where there is none.
    """
    return depth if depth.shape == tuple(size) else 1 / _resize_disparity(1 / depth, *size)


def start_depth_from_model(rgb: Tensor, monocular: DepthModel, scene_scale: float | None) -> Tensor:
    """(H, W) planar z from a model's estimate, with median `scene_scale` (None: left as it is); inf is sky.

    A relative model's disparity has an unknown offset. These models give the sky 0 and are not negative, so the offset
    is taken as 0 (or as the smallest value, where one is negative).

    Raises:
        WorldWarpError: `bad_depth` where the model tells no surface from the sky.
    """
    disparity = monocular.disparity(rgb[None])[0]
    if monocular.kind == "disparity":
        disparity = disparity - disparity.min().clamp(max=0)
    positive = disparity[disparity > 0]
    if len(positive) < 0.01 * disparity.numel():
        raise WorldWarpError(
            "bad_depth",
            f"{monocular.name} found no surface in the start frame. Give its depth with --depth FILE, or another "
            "--depth-model.",
        )
    depth = torch.where(disparity > positive.median() / SKY_RATIO, 1 / disparity, torch.inf)
    return depth if scene_scale is None else depth * (scene_scale / depth[torch.isfinite(depth)].median())


def _resize_disparity(disparity: Tensor, height: int, width: int) -> Tensor:
    (top, bottom, down), (left, right, across) = (
        _taps(n, m, disparity.device) for n, m in zip(disparity.shape, (height, width), strict=True)
    )
    corners = [[disparity[r][:, c] for c in (left, right)] for r in (top, bottom)]
    blend = [a + across * (b - a) for a, b in corners]
    smooth = blend[0] + down[:, None] * (blend[1] - blend[0])
    near = disparity[torch.where(down < 0.5, top, bottom)][:, torch.where(across < 0.5, left, right)]
    every = torch.stack([c for pair in corners for c in pair])
    return torch.where(every.amax(0) <= SURFACE_RATIO * every.amin(0), smooth, near)


def _taps(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each target pixel's centre: the source pixels before and after it, and how far it is between them."""
    at = ((torch.arange(target, dtype=torch.float64, device=device) + 0.5) * source / target - 0.5).clamp(0, source - 1)
    before = at.floor().long()
    return before, (before + 1).clamp(max=source - 1), (at - before).float()
