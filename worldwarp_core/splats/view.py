"""A splat cloud as another program would look at it: in scene units, at any camera."""

from __future__ import annotations

import numpy as np
import torch

from ..cameras.path import CameraPath
from ..splat_files.cloud import SplatCloud
from .rasterize import rasterize
from .space import CacheSpace


@torch.no_grad()
def render_cloud(cloud: SplatCloud, cameras: CameraPath, device: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `worldwarp_core.api.render_splats`. One view at a time: a path may be long."""
    space = _space_of(cloud, cameras)
    gaussians = space.from_world(cloud).map(lambda t: t.to(device))
    w2c = space.w2c(cameras.c2w).to(device)
    K = torch.from_numpy(cameras.K.astype(np.float32)).to(device)
    views = [rasterize(gaussians, w2c[t, None], K[t, None], cameras.width, cameras.height) for t in range(len(cameras))]
    rgb = torch.cat([v.rgb for v in views]).clamp(0, 1).cpu().numpy()
    alpha = torch.cat([v.alpha for v in views]).cpu().numpy()
    depth = torch.cat([v.depth for v in views]).cpu().numpy() * np.float32(space.unit)
    return rgb, alpha, depth


def _space_of(cloud: SplatCloud, cameras: CameraPath) -> CacheSpace:
    """Units in which the near plane makes sense: the cloud's median distance from the first camera is one."""
    anchor = cameras.c2w[0, :3, 3].copy()
    distance = np.linalg.norm(cloud.means[~cloud.sky].astype(np.float64) - anchor, axis=1)
    return CacheSpace(anchor, float(np.median(distance)) if len(distance) else 1.0)
