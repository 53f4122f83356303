"""What turns priors into frames.

`cache` is the baseline without any learned model: the prior itself, its holes closed by OpenCV's inpainting. It is
honest about that in the job's metadata, and it is what a learned fill has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from .chunks import ChunkPlan
from .history import History
from .priors import VALID, Priors

INPAINT_RADIUS_PX = 3.0
"""How far Telea's method looks for colour; its time grows with the square of it."""


class Fill(Protocol):
    """Turns the priors of a chunk into its frames."""

    name: str
    description: str
    """For the job's metadata: what made the pixels that the cache did not know."""
    ignores: tuple[str, ...]
    """Settings of `GenerateSpec` that change nothing here."""
    holes_agree: bool
    """Whether a hole is filled alike in every frame that shows it; if not, the cache learns it from one frame only."""

    def fill(self, context: History, priors: Priors, plan: ChunkPlan, seed: int) -> Iterator[Tensor]:
        """Yields (H, W, 3) frames in [0, 1], one for each of the plan's new frames, each as soon as it exists.

        `context` holds the frames before them and `priors` is of the new frames alone; a model that wants the plan's
        whole padded length adds the padding itself.
        """
        ...


class CacheFill:
    """The prior with its holes inpainted, frame by frame; no model, nothing random."""

    name = "cache"
    description = "rendered cache; holes inpainted by OpenCV (Telea), no learned model"
    ignores: tuple[str, ...] = ("prompt", "negative_prompt", "strength", "steps")
    holes_agree = False

    def fill(self, context: History, priors: Priors, plan: ChunkPlan, seed: int) -> Iterator[Tensor]:
        for rgb, validity in zip(priors.rgb, priors.validity, strict=True):
            yield _inpaint(rgb, validity < VALID)


def _inpaint(rgb: Tensor, holes: Tensor) -> Tensor:
    """(H, W, 3) in [0, 1] with (H, W) bool holes closed from their borders."""
    picture = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    mask = holes.cpu().numpy().astype(np.uint8)
    if mask.all() or not mask.any():
        closed = picture
    else:
        closed = cv2.inpaint(picture, mask, INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
    return torch.from_numpy(closed).to(rgb) / 255
