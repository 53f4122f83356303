"""The cache's own frame of reference, in which every scene is about one unit deep.

A scene in millimetres and one in kilometres, at the origin or a planet away from it, become the same numbers: the
start camera's position is the origin and the start frame's median depth is one. Near planes, learning rates and
float32 then mean the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..splat_files.cloud import SplatCloud
from .gaussians import Gaussians


@dataclass(frozen=True)
class CacheSpace:
    """A translation and a scale; axes stay Blender's, so no rotation and no change of SH.

    Attributes:
        anchor: (3,) float64 world position of the cache's origin.
        unit: scene units in one cache unit.
    """

    anchor: np.ndarray
    unit: float

    def w2c(self, c2w: np.ndarray) -> Tensor:
        """(T, 4, 4) float64 camera-to-world in scene units -> (T, 4, 4) float32 cache-to-camera, in cache units."""
        c2w = np.array(c2w, np.float64)
        c2w[:, :3, 3] = (c2w[:, :3, 3] - self.anchor) / self.unit
        return torch.from_numpy(np.linalg.inv(c2w).astype(np.float32))

    def to_world(self, gaussians: Gaussians, source_frames: Tensor, sky: Tensor) -> SplatCloud:
        """The Gaussians in scene units and Blender's world, for files and other programs."""
        arrays = {name: t.detach().cpu().numpy() for name, t in gaussians.tensors().items()}
        quats = arrays["quats"]
        return SplatCloud(
            means=(arrays["means"].astype(np.float64) * self.unit + self.anchor).astype(np.float32),
            quats=quats / np.linalg.norm(quats, axis=1, keepdims=True),
            scales=arrays["scales"] + np.float32(np.log(self.unit)),
            opacities=arrays["opacities"],
            sh0=arrays["sh0"],
            shN=arrays["shN"],
            source_frames=source_frames.cpu().numpy().astype(np.int32),
            sky=sky.cpu().numpy(),
        )

    def from_world(self, cloud: SplatCloud) -> Gaussians:
        """The inverse of `to_world`, without what is known about each Gaussian's source."""
        return Gaussians(
            means=torch.from_numpy(((cloud.means.astype(np.float64) - self.anchor) / self.unit).astype(np.float32)),
            quats=torch.from_numpy(np.ascontiguousarray(cloud.quats, np.float32)),
            scales=torch.from_numpy((cloud.scales - np.log(self.unit)).astype(np.float32)),
            opacities=torch.from_numpy(np.ascontiguousarray(cloud.opacities, np.float32)),
            sh0=torch.from_numpy(np.ascontiguousarray(cloud.sh0, np.float32)),
            shN=torch.from_numpy(np.ascontiguousarray(cloud.shN, np.float32)),
        )
