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

from ..cameras import CameraPath
from ..spec import PathDepth
from .complete import complete_depth
from .monocular import DepthModel
from .start import SURFACE_RATIO, scene_geometry

FRONT_TOLERANCE = 0.1
"""A surface of the blockout hides what lies farther behind it than this share of its own depth."""
LOOKED_UP_TOLERANCE = 0.02
"""A place that was looked up in another frame's map is known where the map shows it within this share of its depth."""
LOOK_UPS = 3


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
        after = int(np.searchsorted(self.given.frames, number))
        if after < len(self.given.frames) and self.given.frames[after] == number:
            return self._map(after) / self.unit
        near = [n for n in (after - 1, after) if 0 <= n < len(self.given.frames)]
        near.sort(key=lambda n: abs(int(self.given.frames[n]) - number))
        seen = [self._moved(n, number) for n in near]
        depth = seen[0]
        for other in seen[1:]:
            depth = torch.where(torch.isfinite(depth), depth, other)
        return depth / self.unit

    def depths(self, numbers: list[int]) -> Tensor:
        """(T, H, W), `depth` of each."""
        return torch.stack([self.depth(number) for number in numbers])

    def _map(self, n: int) -> Tensor:
        """(H, W) of the n-th map, scene units."""
        return scene_geometry(self.given.depth[n], (self.path.height, self.path.width), self.device)

    def _moved(self, n: int, number: int) -> Tensor:
        """(H, W), scene units: what the n-th map knows of what the frame of that number sees."""
        source, target = (int(np.searchsorted(self.path.frames, f)) for f in (int(self.given.frames[n]), number))
        depth = self._map(n)
        there = _Relative.between(self.path, source, target, self.device)
        back = _Relative.between(self.path, target, source, self.device)
        guess = _nearest_points(depth, there)
        return _looked_up(guess, depth, back)


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
        u, v = np.meshgrid(np.arange(path.width) + 0.5, np.arange(path.height) + 0.5)
        rays = np.stack([u, v, np.ones_like(u)], -1) @ (to_b[:3, :3] @ np.linalg.inv(path.K[a])).T
        return cls(*(torch.from_numpy(x.astype(np.float32)).to(device) for x in (rays, to_b[:3, 3], path.K[b])))

    def project(self, depth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(H, W) depths of the first camera -> column, row, depth in the second, and whether it is in its picture."""
        height, width = depth.shape
        known = torch.isfinite(depth)
        point = self.rays * torch.where(known, depth, 1.0)[..., None] + self.offset
        z = point[..., 2]
        uv = (point @ self.K.T)[..., :2] / z.clamp_min(1e-12)[..., None]
        inside = known & (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
        return uv[..., 0], uv[..., 1], z, inside


def _nearest_points(depth: Tensor, there: _Relative) -> Tensor:
    """(H, W): a map's points in another view, the nearest in each pixel, each as large as 2 x 2 pixels; inf between."""
    height, width = depth.shape
    x, y, z, inside = there.project(depth)
    left, top = (x - 0.5).floor().long(), (y - 0.5).floor().long()
    nearest = torch.full((height * width,), torch.inf, dtype=depth.dtype, device=depth.device)
    for row in (top, top + 1):
        for col in (left, left + 1):
            lands = inside & (col >= 0) & (col < width) & (row >= 0) & (row < height)
            nearest.scatter_reduce_(0, (row * width + col)[lands], z[lands], "amin")
    return nearest.view(height, width)


def _looked_up(guess: Tensor, depth: Tensor, back: _Relative) -> Tensor:
    """(H, W): rough depths of a view made exact by the map of another; inf where the map shows something else."""
    z, seen, inside = guess, guess, torch.isfinite(guess)
    for _ in range(LOOK_UPS):
        x, y, z, inside = back.project(guess)
        seen = _sample(depth, x, y)
        # What lies on the ray at the depth that the map has near there: for small moves, nearly the place itself.
        guess = torch.where(inside & torch.isfinite(seen), guess * (seen / z), guess)
    x, y, z, inside = back.project(guess)
    seen = _sample(depth, x, y)
    shown = inside & ((seen / z - 1).abs() < LOOKED_UP_TOLERANCE)
    return torch.where(shown, guess, torch.inf)


def _sample(depth: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(...) planar z at pixel positions: in between on a surface, of the nearest pixel at an edge."""
    height, width = depth.shape
    x, y = (x - 0.5).clamp(0, width - 1), (y - 0.5).clamp(0, height - 1)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    across, down = x - left, y - top
    corners = torch.stack([1 / depth[r, c] for r in (top, bottom) for c in (left, right)])
    upper, lower = corners[0] + across * (corners[1] - corners[0]), corners[2] + across * (corners[3] - corners[2])
    smooth = upper + down * (lower - upper)
    near = 1 / depth[torch.where(down < 0.5, top, bottom), torch.where(across < 0.5, left, right)]
    return 1 / torch.where(corners.amax(0) <= SURFACE_RATIO * corners.amin(0), smooth, near)
