"""A viewer that needs no torch: every pixel says how large the world is; a focal length of 1 takes 50 ms.

It has room for worlds of fewer than 2,000 splats.
"""

from __future__ import annotations

import time

import numpy as np

from worldwarp_core.splat_files.cloud import SplatCloud


def open_viewer(cloud: SplatCloud, device: str = "cpu") -> FakeViewer:
    if len(cloud) >= 2000:
        raise MemoryError
    return FakeViewer(len(cloud))


class FakeViewer:
    def __init__(self, splats: int) -> None:
        self._splats = splats

    def look(self, K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> np.ndarray:
        if K[0, 0] == 1:
            time.sleep(0.05)
        if c2w[0, 3] == 13:
            raise RuntimeError("a camera that cannot be rendered")
        return np.full((height, width, 3), (self._splats, K[0, 2], c2w[0, 3]), np.uint8)
