"""A splat cloud that stays on its device and is looked at from one camera after another.

In: a cloud in scene units (Blender's world), then cameras. Out: (H, W, 3) uint8 over black.
"""

from __future__ import annotations

import numpy as np
import torch

from ..splat_files.cloud import SplatCloud
from .rasterize import rasterize
from .space import CacheSpace


class CloudViewer:
    """See `worldwarp_core.api.open_viewer`."""

    def __init__(self, cloud: SplatCloud, device: str) -> None:
        # Units in which near planes make sense: half of the world lies within one unit of its own middle.
        seen = cloud.means if cloud.sky is None or cloud.sky.all() else cloud.means[~cloud.sky]
        middle = np.median(seen.astype(np.float64), axis=0) if len(seen) else np.zeros(3)
        reach = float(np.median(np.linalg.norm(seen - middle, axis=1))) if len(seen) else 1.0
        self._space = CacheSpace(middle, reach or 1.0)
        self._gaussians = self._space.from_world(cloud).map(lambda t: t.to(device))
        self._device = torch.device(device)

    @torch.no_grad()
    def look(self, K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 seen by a camera: (3, 3) pixels and (4, 4), OpenCV's axes in Blender's world."""
        w2c = self._space.w2c(c2w[None]).to(self._device)
        intrinsics = torch.from_numpy(K.astype(np.float32))[None].to(self._device)
        view = rasterize(self._gaussians, w2c, intrinsics, width, height)
        return (view.rgb[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
