"""The artist's blockout: what the scene's own surfaces say about depth along the path.

In: a `PathDepth`, maps of some or all frames. Out: for any frame a map at the working size. What it knows are surfaces,
so nothing is seen through them; whatever it does not know may stand in front of them.

A frame without a map of its own takes those of the nearest frames before and after it. Their points are moved into its
view, which says roughly how far each of its pixels is, and looked up again in the maps they came from, which says it
exactly; a pixel whose place the map does not show stays unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras.path import CameraPath
from ..spec import PathDepth
from .complete import complete_depth
from .monocular import DepthModel
from .start import SURFACE_RATIO, resize_depth, scene_geometry

FRONT_TOLERANCE = 0.1
"""A surface of the blockout hides what lies farther behind it than this share of its own depth."""
LOOKED_UP_TOLERANCE = 0.02
"""A place that was looked up in another frame's map is known where the map shows it within this share of its depth."""
LOOK_UPS = 2


@dataclass(frozen=True)
class Blockout:
    """The scene's surfaces, seen from any camera of a path.

    Attributes:
        given: maps of some or all of the path's frames.
        path: the cameras, at the size of the maps that are asked for.
        device: where those are wanted.
        unit: scene units in the unit that they are wanted in.
    """

    given: PathDepth
    path: CameraPath
    device: torch.device
    unit: float = 1.0

    def depth(self, number: int) -> Tensor:
        """(H, W) planar z of the path's frame of that number; inf where nothing is known."""
        frames = self.given.frames
        after = int(np.searchsorted(frames, number))
        if after < len(frames) and frames[after] == number:
            depth = self._given(after)
        else:
            near = [n for n in (after - 1, after) if 0 <= n < len(frames)]
            near.sort(key=lambda n: abs(int(frames[n]) - number))
            depth = self._moved(near[0], number)
            for n in near[1:]:
                depth = torch.where(torch.isfinite(depth), depth, self._moved(n, number))
        return resize_depth(depth, (self.path.height, self.path.width)) / self.unit

    def depths(self, numbers: list[int]) -> Tensor:
        """(T, H, W), `depth` of each."""
        return torch.stack([self.depth(number) for number in numbers])

    def _given(self, n: int) -> Tensor:
        """(h, w) the n-th map, scene units."""
        height, width = self.given.depth.shape[1:]
        return scene_geometry(self.given.depth[n], (height, width), self.device)

    def _moved(self, n: int, number: int) -> Tensor:
        """(h, w), scene units: what the n-th map knows of what the frame of that number sees."""
        height, width = self.given.depth.shape[1:]
        path = self.path.resized(width, height)
        source, target = (int(np.searchsorted(path.frames, f)) for f in (int(self.given.frames[n]), number))
        depth = self._given(n)
        guess = _nearest_points(depth, _Relative.between(path, source, target, self.device))
        return _looked_up(guess, depth, _Relative.between(path, target, source, self.device))


def hidden_by(scene: Tensor, depth: Tensor) -> Tensor:
    """(..., H, W) bool: what is at `depth` lies behind a surface of the blockout.

    Args:
        scene: (..., H, W) planar z of the blockout; inf where nothing is known.
        depth: (..., H, W) planar z of something else; inf is the sky, or nothing.
    """
    # On a silhouette the farther side of the pixel's neighbourhood counts: there either side may be meant.
    farthest = F.max_pool2d(scene.reshape(-1, 1, *scene.shape[-2:]), 3, stride=1, padding=1).view(scene.shape)
    return depth > (1 + FRONT_TOLERANCE) * farthest


def in_front_of(scene: Tensor, depth: Tensor) -> Tensor:
    """(..., H, W) bool: what is at `depth` stands in front of a surface of the blockout; the same arguments."""
    nearest = -F.max_pool2d(-scene.reshape(-1, 1, *scene.shape[-2:]), 3, stride=1, padding=1).view(scene.shape)
    return torch.isfinite(nearest) & ((1 + FRONT_TOLERANCE) * depth < nearest)


def start_of(scene: Tensor, rgb: Tensor, monocular: DepthModel | None) -> tuple[Tensor, str]:
    """(H, W) planar z of a start frame that has none but the blockout's, and where it comes from, for the record.

    What the blockout does not know is completed by the depth model; without one it is the sky (inf).

    Args:
        scene: (H, W) the blockout from the start camera, not empty. rgb: (H, W, 3) in [0, 1].
    """
    known = torch.isfinite(scene)
    if monocular is None or bool(known.all()):
        return scene, "exact (the path's depth)"
    depth = complete_depth(scene[None], known[None], rgb[None], monocular).depth[0]
    return depth, f"exact (the path's depth), else {monocular.name} aligned to it"


@dataclass(frozen=True)
class _Relative:
    """From one camera's pixels and depths to another's."""

    rays: Tensor  # (H, W, 3) through the pixel centres of the first, planar length 1, in the axes of the second
    offset: Tensor  # (3,) from the second camera to the first
    K: Tensor  # (3, 3) of the second

    @classmethod
    def between(cls, path: CameraPath, a: int, b: int, device: torch.device) -> _Relative:
        # In float64 until the offset is small: a scene may lie a planet away from its origin.
        to_b = np.linalg.inv(path.c2w[b]) @ path.c2w[a]
        small = (to_b[:3, :3] @ np.linalg.inv(path.K[a]), to_b[:3, 3], path.K[b])
        from_pixels, offset, K = (torch.from_numpy(x.astype(np.float32)).to(device) for x in small)
        v, u = (torch.arange(side, dtype=torch.float32, device=device) + 0.5 for side in (path.height, path.width))
        v, u = torch.meshgrid(v, u, indexing="ij")
        return cls(torch.stack([u, v, torch.ones_like(u)], -1) @ from_pixels.T, offset, K)

    def project(self, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(H, W) depths of the first camera -> (H, W, 2) pixel positions x, y and depth in the second, and (H, W) bool
        whether they are known and in its picture."""
        height, width = depth.shape
        known = torch.isfinite(depth)
        point = self.rays * torch.where(known, depth, 1.0)[..., None] + self.offset
        z = point[..., 2]
        at = (point @ self.K.T)[..., :2] / z.clamp_min(1e-12)[..., None]
        size = torch.tensor([width, height], device=depth.device)
        return at, z, known & (z > 0) & ((at >= 0) & (at < size)).all(-1)


def _nearest_points(depth: Tensor, there: _Relative) -> Tensor:
    """(H, W): a map's points in another view, the nearest in each pixel, each as large as 2 x 2 pixels; inf between."""
    height, width = depth.shape
    at, z, inside = there.project(depth)
    left, top = torch.where(inside[..., None], at - 0.5, 0).floor().long().unbind(-1)
    nowhere = height * width
    nearest = torch.full((nowhere + 1,), torch.inf, dtype=depth.dtype, device=depth.device)
    for row in (top, top + 1):
        for col in (left, left + 1):
            lands = inside & (col >= 0) & (col < width) & (row >= 0) & (row < height)
            nearest.scatter_reduce_(0, torch.where(lands, row * width + col, nowhere).flatten(), z.flatten(), "amin")
    return nearest[:nowhere].view(height, width)


def _looked_up(guess: Tensor, depth: Tensor, back: _Relative) -> Tensor:
    """(H, W): rough depths of a view made exact by the map of another; inf where the map shows something else."""
    disparity = 1 / depth
    # Between the four pixels around each corner: whether they are one surface.
    low, high = (F.max_pool2d(x[None, None], 2, stride=1)[0, 0] for x in (-disparity, disparity))
    one_surface = F.pad(high <= -SURFACE_RATIO * low, (0, 1, 0, 1))
    for _ in range(LOOK_UPS):
        at, z, inside = back.project(guess)
        # What the map has near there, on this view's ray: for small moves, nearly the place itself.
        ratio = _sample(disparity, one_surface, at) * z
        guess = torch.where(inside & (ratio > 0), guess / ratio, guess)
    at, z, inside = back.project(guess)
    shown = inside & ((_sample(disparity, one_surface, at) * z - 1).abs() < LOOKED_UP_TOLERANCE)
    return torch.where(shown, guess, torch.inf)


def _sample(disparity: Tensor, one_surface: Tensor, at: Tensor) -> Tensor:
    """(H, W) disparity at (H, W, 2) pixel positions: in between on a surface, of the nearest pixel at an edge."""
    height, width = disparity.shape
    size = torch.tensor([width, height], device=at.device)
    # Only what lies in the picture is looked at afterwards.
    at = at.clamp_min(0).minimum(size - 1e-3)
    smooth = F.grid_sample(
        disparity[None, None], (2 * at / size - 1)[None], padding_mode="border", align_corners=False
    )[0, 0]
    column, row = at.long().unbind(-1)
    left, top = (at - 0.5).clamp_min(0).long().unbind(-1)
    return torch.where(one_surface[top, left], smooth, disparity[row, column])
