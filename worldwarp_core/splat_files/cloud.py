"""A set of 3D Gaussians in NumPy, as files and other programs hold it (gsplat's names and encodings)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SplatCloud:
    """N Gaussians in Blender's world axes (z up) unless an axis option says otherwise.

    Attributes:
        means: (N, 3) float32 centres in scene units.
        quats: (N, 4) float32 wxyz, unit length.
        scales: (N, 3) float32 natural log of the standard deviations in scene units.
        opacities: (N,) float32 logits.
        sh0: (N, 1, 3) float32 degree-0 coefficients, RGB (colour = 0.5 + 0.28209479 * sh0).
        shN: (N, K, 3) float32 with K = 0, 3, 8 or 15 for degrees 0 to 3.
        source_frames: (N,) int32, the frame number each Gaussian was first seen in; -1 where unknown.
        sky: (N,) bool, True for Gaussians that stand for the background far away.
    """

    means: np.ndarray
    quats: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray
    sh0: np.ndarray
    shN: np.ndarray
    source_frames: np.ndarray = field(default=None)  # type: ignore[arg-type]
    sky: np.ndarray = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        n = len(self.means)
        if self.source_frames is None:
            object.__setattr__(self, "source_frames", np.full(n, -1, np.int32))
        if self.sky is None:
            object.__setattr__(self, "sky", np.zeros(n, bool))
        assert self.means.shape == (n, 3), self.means.shape
        assert self.quats.shape == (n, 4), self.quats.shape
        assert self.scales.shape == (n, 3), self.scales.shape
        assert self.opacities.shape == (n,), self.opacities.shape
        assert self.sh0.shape == (n, 1, 3), self.sh0.shape
        assert self.shN.shape in ((n, 0, 3), (n, 3, 3), (n, 8, 3), (n, 15, 3)), self.shN.shape
        assert self.source_frames.shape == (n,), self.source_frames.shape
        assert self.sky.shape == (n,), self.sky.shape

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.shN.shape[1]]
