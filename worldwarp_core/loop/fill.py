"""What turns priors into frames.

`cache` is the baseline without any learned model: the prior itself, its holes closed by OpenCV's inpainting. It is
honest about that in the job's metadata, and it is what a learned fill (st_diff/fill.py) has to beat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from ..history import History
from ..spec import GenerateSpec, Notice, Stage
from .chunks import ChunkPlan
from .priors import VALID, Priors

INPAINT_RADIUS_PX = 3.0
"""How far Telea's method looks for colour; its time grows with the square of it."""


@dataclass(frozen=True)
class FillStep:
    """One step of `steps` that a fill has taken on the way to its frames."""

    stage: Stage
    step: int
    steps: int


class Fill(Protocol):
    """Turns the priors of a chunk into its frames."""

    name: str
    holes_agree: bool
    """Whether a hole is filled alike in every frame that shows it; if not, the cache learns it from one frame only."""
    frame_stage: Stage
    """What is going on while frames come out, one step each."""

    def describe(self, spec: GenerateSpec | None = None) -> dict[str, Any]:
        """What makes the pixels that the cache did not know, of a shot or of any, as plain values."""
        ...

    def prepare(self, spec: GenerateSpec, plans: Sequence[ChunkPlan]) -> Iterator[Notice]:
        """Yields what the user should know before a shot is begun: settings without effect, approximations.

        Raises:
            WorldWarpError: `bad_settings`, ... where the shot cannot be made as asked.
        """
        ...

    def count_steps(self, spec: GenerateSpec, plan: ChunkPlan) -> Mapping[Stage, int]:
        """How many `FillStep`s of each stage a chunk takes, its frames left out."""
        ...

    def fill(
        self, context: History, priors: Priors, plan: ChunkPlan, spec: GenerateSpec
    ) -> Iterator[FillStep | Notice | Tensor]:
        """Yields (H, W, 3) frames in [0, 1], one for each of the plan's new frames, each as soon as it exists.

        Between them it yields its steps, so that whoever stops asking stops the work within one of them.

        `context` holds the frames before them and `priors` is of the new frames alone; a model that wants the plan's
        whole padded length adds the padding itself.
        """
        ...

    def make_room(self) -> Notice | None:
        """Gives up memory of the device for good, and says how; None when there is no more to give."""
        ...


class CacheFill:
    """The prior with its holes inpainted, frame by frame; no model, nothing random."""

    name = "cache"
    holes_agree = False
    frame_stage: Stage = "fill"

    def describe(self, spec: GenerateSpec | None = None) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": "rendered cache; holes inpainted by OpenCV (Telea), no learned model",
        }

    def prepare(self, spec: GenerateSpec, plans: Sequence[ChunkPlan]) -> Iterator[Notice]:
        given = {
            "prompt": spec.prompt,
            "prompt keys": spec.prompt_keys,
            "negative prompt": spec.negative_prompt,
            "auto prompt": spec.auto_prompt,
            "style image": spec.style_image is not None,
            "strength": spec.strength is not None,
            "strength mask": spec.strength_mask is not None,
            "graded validity": spec.graded_validity,
            "steps": spec.steps,
            "guidance": spec.guidance is not None,
            "preset": spec.preset,
        }
        idle = [name for name, value in given.items() if value]
        if idle:
            change = "changes" if len(idle) == 1 else "change"
            yield Notice("no_effect", f"The engine 'cache' has no learned model: {', '.join(idle)} {change} nothing.")

    def count_steps(self, spec: GenerateSpec, plan: ChunkPlan) -> Mapping[Stage, int]:
        return {}

    def fill(self, context: History, priors: Priors, plan: ChunkPlan, spec: GenerateSpec) -> Iterator[Tensor]:
        for rgb, validity in zip(priors.rgb, priors.validity, strict=True):
            yield _inpaint(rgb, validity < VALID)

    def make_room(self) -> Notice | None:
        return None


def _inpaint(rgb: Tensor, holes: Tensor) -> Tensor:
    """(H, W, 3) in [0, 1] with (H, W) bool holes closed from their borders."""
    picture = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    mask = holes.cpu().numpy().astype(np.uint8)
    if mask.all() or not mask.any():
        closed = picture
    else:
        closed = cv2.inpaint(picture, mask, INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
    return torch.from_numpy(closed).to(rgb) / 255
