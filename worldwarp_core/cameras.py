"""Camera paths: OpenCV axes, Blender's world, pure NumPy math.

A `CameraPath` is what the artist animated: one pinhole camera a frame. `K` is in pixels with the origin at the image
corner and pixel centres at +0.5; `c2w` maps OpenCV camera axes (x right, y down, z forward) to Blender's world (z up).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CameraPath:
    """T pinhole cameras.

    Attributes:
        frames: (T,) int64 frame numbers, strictly increasing.
        fps: frames a second.
        width, height: of the delivered image in pixels.
        K: (T, 3, 3) float64 in pixels.
        c2w: (T, 4, 4) float64 rigid camera-to-world.
    """

    frames: np.ndarray
    fps: float
    width: int
    height: int
    K: np.ndarray
    c2w: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)
