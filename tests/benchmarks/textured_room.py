"""A room with a pillar and fine texture, seen from a truck shot: what a cache is seeded from and fitted to on a GPU.

Ray cast exactly (tests/support/room.py); the texture is value noise over the surfaces, down to a few pixels across, so
that Gaussians are as small and as many as a real picture makes them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.room import look, path, render
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.splats.gaussians import Gaussians, concatenate
from worldwarp_core.splats.loss import FitViews
from worldwarp_core.splats.seed import SeedView, seed_gaussians

SKY_DEPTH = 50.0


def flight(frames: int, width: int, height: int) -> CameraPath:
    """A move of 0.8 to the right with a turn of 0.2 rad, whatever the number of frames."""
    shares = np.linspace(0, 1, frames)
    return path([look((0.8 * (s - 0.5), -3.0, 1.5), 0.2 * s) for s in shares], width, height)


def steady_flight(frames: int, width: int, height: int) -> CameraPath:
    """0.4 to the right and a turn of 0.1 rad in every 48 frames: a longer flight begins as a shorter one does."""
    shares = np.arange(frames) / 48
    return path([look((0.4 * (s - 1), -3.0, 1.5), 0.1 * s) for s in shares], width, height)


def see(cameras: CameraPath, frame: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """(H, W, 3) colour in [0, 1] and (H, W) planar z in room units."""
    colour, depth = render(cameras, frame)
    v, u = np.meshgrid(np.arange(cameras.height) + 0.5, np.arange(cameras.width) + 0.5, indexing="ij")
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.K[frame]).T
    c2w = cameras.c2w[frame]
    points = (rays * depth[..., None]) @ c2w[:3, :3].T + c2w[:3, 3]
    texture = _value_noise(torch.from_numpy(points.reshape(-1, 3)).float().to(device)).cpu().view(*depth.shape, 3)
    return (torch.from_numpy(colour).float() / 255 + texture).clamp(0, 1), torch.from_numpy(depth)


def fit_views(count: int, width: int, height: int, device: str) -> FitViews:
    """Views along the flight in units in which the first one's median depth is one."""
    cameras = flight(count, width, height)
    rgb, depth = (torch.stack(x) for x in zip(*(see(cameras, f, device) for f in range(count)), strict=True))
    unit = depth[0].median()
    w2c = torch.from_numpy(np.linalg.inv(cameras.c2w)).float()
    w2c[:, :3, 3] /= unit
    ones = torch.ones_like(depth)
    tensors = (rgb, unit / depth, ones, ones, w2c, torch.from_numpy(cameras.K).float())
    return FitViews(*(t.to(device).contiguous() for t in tensors))


def seeded(views: FitViews, count: int, sh_degree: int) -> Gaussians:
    """About `count` Gaussians, the same number from each view, as the cache seeds an uncovered view."""
    parts = []
    for v in range(len(views)):
        everything = torch.ones_like(views.disparity[v], dtype=torch.bool)
        view = SeedView(views.rgb[v], 1 / views.disparity[v], everything, views.w2c[v], views.K[v])
        parts.append(seed_gaussians(view, count // len(views), SKY_DEPTH, sh_degree)[0])
    return concatenate(parts)


def _value_noise(points: Tensor) -> Tensor:
    """(N, 3) positions in room units -> (N, 3) offsets of colour."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros_like(points)
    for cells_per_unit, amplitude in ((4, 0.1), (12, 0.08), (36, 0.06), (108, 0.05)):
        lattice = (torch.rand(1, 3, 32, 32, 32, generator=generator) - 0.5).to(points.device)
        where = ((points * cells_per_unit / 32) % 1) * 2 - 1
        total += 2 * amplitude * F.grid_sample(lattice, where[None, :, None, None], align_corners=True)[0, :, :, 0, 0].T
    return total
