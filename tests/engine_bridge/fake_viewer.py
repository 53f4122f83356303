"""A viewer that needs no torch: every pixel says how large the world is.

It has no room for a world of 1,999 splats. A look with a focal length of 1 makes the file `looking` in the folder
$FAKE_VIEWER, and waits there for the file `go`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from worldwarp_core.splat_files.cloud import SplatCloud


def open_viewer(cloud: SplatCloud, device: str = "cpu") -> FakeViewer:
    if len(cloud) == 1999:
        raise MemoryError
    return FakeViewer(len(cloud))


class FakeViewer:
    def __init__(self, splats: int) -> None:
        self._splats = splats

    def look(self, K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> np.ndarray:
        if K[0, 0] == 1:
            folder = Path(os.environ["FAKE_VIEWER"])
            (folder / "looking").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)
        if c2w[0, 3] == 13:
            raise RuntimeError("a camera that cannot be rendered")
        return np.full((height, width, 3), (self._splats, K[0, 2], c2w[0, 3]), np.uint8)
