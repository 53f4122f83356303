"""Scenes of the test room for evaluations: a truck and one that comes back, in no time."""

from __future__ import annotations

import numpy as np

from tests.support import room
from worldwarp_core.evaluation.scenes import Scene

SIZE = (32, 48)


class ToyScenes:
    """A SceneSet of `count` moves to the side, the last of which goes out and back."""

    name = "rooms"

    def __init__(self, count=2, frames=54, size=SIZE, with_depth=True):
        self._count, self._frames, self._size, self._with_depth = count, frames, size, with_depth

    def __len__(self):
        return self._count

    def scene(self, index):
        height, width = self._size
        back = index == self._count - 1
        travel = 0.5 + 0.3 * index
        steps = np.linspace(0, 1, self._frames)
        steps = 1 - np.abs(2 * steps - 1) if back else steps
        cameras = room.path([room.look((travel * s, -3.0, 1.5), 0.2 * s) for s in steps], width, height)

        def truth(frames):
            seen = [room.render(cameras, frame) for frame in frames]
            depth = np.stack([z for _, z in seen]) if self._with_depth else None
            return np.stack([rgb for rgb, _ in seen]), depth

        return Scene(
            name=f"room-{index}",
            kind="rooms" if index else "halls",
            stratum="revisit" if back else "half",
            in_sight=0.4,
            cameras=cameras,
            truth=truth,
            out_and_back=back,
            scale=None if self._with_depth else 4.0,
        )
