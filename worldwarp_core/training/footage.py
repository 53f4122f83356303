"""Clips to train on from a user's own footage: real frames, and the warp of one of them to the others by its depth.

The footage has cameras (a layout of `evaluation/folders.py`); depth is a model's, scaled by what neighbouring frames
share. Its errors are the errors that a start frame's depth has when the loop runs, so none are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import WorldWarpError
from ..evaluation.folders import scale_of
from ..evaluation.scenes import SceneSet
from ..geometry.monocular import DepthModel
from ..geometry.start import start_depth_from_model
from .warp import forward_warp

FIRST_FRAME = 0.6
"""The share of clips that are warped from their first frame; the others from any."""
STRIDES = (1, 2, 3)
"""Frames of the footage from one frame of a clip to the next."""
NEIGHBOURS = (5, 10, 20)
"""Frames of the footage away from the warped one, on either side, that tell its scale."""
TRIES = 8
"""Clips that are tried until one tells its scale."""


@dataclass(frozen=True)
class FootageBatch:
    """n clips; see `pool.Clips`. The depth of their frames is not known: it is nan."""

    rgb: Tensor
    depth: Tensor
    prior: Tensor
    validity: Tensor

    @property
    def history(self) -> Tensor:
        return self.rgb


class FootageSource:
    """A `pool.Source` of footage.

    Args:
        scenes: clips with cameras.
        depth: of single pictures.
        frames: of a clip that is made.
        device: where clips go.
    """

    def __init__(self, scenes: SceneSet, depth: DepthModel, frames: int, device: torch.device) -> None:
        self._scenes, self._depth, self._frames, self._device = scenes, depth, frames, device

    def batch(self, n: int, first_seed: int) -> FootageBatch:
        """The clips of the seeds first_seed, first_seed + 1, ...: the same ones whenever asked.

        Raises:
            WorldWarpError: `bad_footage` where no clip tells how large what it shows is.
        """
        made = [self._clip(first_seed + i) for i in range(n)]
        rgb, prior, validity = (torch.stack(parts) for parts in zip(*made, strict=True))
        return FootageBatch(rgb, torch.full(validity.shape, torch.nan, device=self._device), prior, validity)

    @torch.no_grad()
    def _clip(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        random = np.random.default_rng([seed, 3])
        for _ in range(TRIES):
            scene = self._scenes.scene(int(random.integers(len(self._scenes))))
            total = len(scene.cameras)
            fitting = [stride for stride in STRIDES if stride * (self._frames - 1) < total]
            if not fitting:
                continue
            stride = int(random.choice(fitting))
            start = int(random.integers(total - stride * (self._frames - 1)))
            rows = list(range(start, start + stride * self._frames, stride))
            if random.random() < 0.5:
                rows.reverse()
            source = 0 if random.random() < FIRST_FRAME else int(random.integers(self._frames))
            at = rows[source]
            beside = [
                at,
                *(at + step * sign for step in NEIGHBOURS for sign in (-1, 1) if 0 <= at + step * sign < total),
            ]
            scale = scale_of(scene.truth(beside)[0], scene.cameras.K[beside], scene.cameras.c2w[beside])
            if scale is not None:
                break
        else:
            raise WorldWarpError(
                "bad_footage",
                f"None of {TRIES} clips of the footage tells how large what it shows is: the camera must move past "
                f"something with texture, for at least {self._frames} frames.",
            )
        rgb = torch.from_numpy(scene.truth(rows)[0]).to(self._device).permute(0, 3, 1, 2) / 255
        depth = start_depth_from_model(rgb[source].permute(1, 2, 0), self._depth, scale)
        K, c2w = (torch.from_numpy(x[rows]).float().to(self._device) for x in (scene.cameras.K, scene.cameras.c2w))
        one = slice(source, source + 1)
        prior, there = forward_warp(
            rgb[None, one], depth[None, None], torch.ones_like(depth, dtype=torch.bool)[None, None],
            K[None, one], c2w[None, one], K[None], c2w[None],
        )  # fmt: skip
        return rgb.half(), prior[0].half(), there[0].half()
