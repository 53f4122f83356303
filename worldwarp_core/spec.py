"""What goes into a generation and what comes out of it, in NumPy: the types of the core's one door.

A `GenerateSpec` goes in; `Progress`, `Frame`, `CacheUpdate` and `Notice` come out as the loop runs, and one `Finished`
ends it. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .cameras import CameraPath
from .checkpoint import Checkpoint
from .errors import WorldWarpError
from .splat_files.cloud import SplatCloud

BACKGROUND_DEPTH = 1e10
"""Planar z of a pixel that sees nothing, as Cycles writes it (scene units)."""

Stage = Literal["load", "geometry", "cache", "priors", "fill", "encode", "denoise", "decode", "finish"]


@dataclass(frozen=True)
class PromptKey:
    """From this frame number on, this prompt."""

    frame: int
    prompt: str


@dataclass(frozen=True)
class GenerateSpec:
    """One shot to make.

    Raises:
        WorldWarpError: `bad_settings`, `bad_start_frame` or `bad_depth`, saying what was got and what was expected.
    """

    cameras: CameraPath
    start_frame: np.ndarray
    """(h, w, 3) uint8 sRGB, seen from the path's first camera; any size of about the path's aspect."""
    depth: np.ndarray | None = None
    """(h, w) float32 planar z of the start frame in scene units; `BACKGROUND_DEPTH` or inf where it sees nothing."""
    prompt: str = ""
    negative_prompt: str = ""
    strength: float = 0.8
    """tau of the method (section 2): the fraction of the schedule that warped regions go through."""
    chunk: int = 49
    overlap: int = 5
    steps: int | None = None
    """Denoising steps; None takes the engine's default."""
    cache_steps: int | None = None
    """Optimisation steps of the first cache fit; None takes the engine's default."""
    seed: int = 0
    scene_scale: float | None = None
    """Median depth of a start frame without exact depth, in scene units (method section 9)."""
    prompt_keys: tuple[PromptKey, ...] = ()
    """Other prompts from given frames on, in the order of their frames; `prompt` holds before the first."""
    auto_prompt: bool = False
    """Let the engine's captioner describe what each chunk begins with; the artist's words go before its own."""
    style_image: np.ndarray | None = None
    """(h, w, 3) uint8 sRGB whose look is described into every prompt."""
    preset: str = ""
    """How fast against how exact, by the engine's own names; "" takes its default."""
    guidance: float | None = None
    """Classifier-free guidance, at least 1; None takes the preset's."""
    strength_mask: np.ndarray | None = None
    """(n, h, w) float32 in [-1, 1] added to the strength by region: n is 1 or the path's length, h x w any size."""
    graded_validity: bool = False
    """Noise between valid and blank by confidence (noise_map.NoiseSettings.graded)."""

    def __post_init__(self) -> None:
        def settle(ok: bool, code: str, message: str) -> None:
            if not ok:
                raise WorldWarpError(code, message)

        frame = self.start_frame
        settle(
            isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3,
            "bad_start_frame",
            f"The start frame must be 8-bit RGB; got {getattr(frame, 'dtype', '?')} {getattr(frame, 'shape', '?')}.",
        )
        settle(
            min(frame.shape[:2]) >= 16,
            "bad_start_frame",
            f"The start frame is {frame.shape[1]}x{frame.shape[0]}; at least 16x16 is needed.",
        )
        got = frame.shape[1] / frame.shape[0]
        want = self.cameras.width / self.cameras.height
        settle(
            abs(got / want - 1) < 0.02,
            "bad_start_frame",
            f"The start frame is {frame.shape[1]}x{frame.shape[0]} but the cameras are "
            f"{self.cameras.width}x{self.cameras.height}: the aspect ratios differ. Render or crop the start "
            "frame to the cameras' aspect.",
        )
        if self.depth is not None:
            check_depth(self.depth, (frame.shape[0], frame.shape[1]))
        for name, length in (("chunk", self.chunk), ("overlap", self.overlap)):
            settle(
                length >= 1 and length % 4 == 1,
                "bad_settings",
                f"{name} must be 4k + 1 (1, 5, 9, ... 49); got {length}.",
            )
        settle(
            self.overlap < self.chunk,
            "bad_settings",
            f"overlap ({self.overlap}) must be smaller than chunk ({self.chunk}).",
        )
        settle(
            0.0 < self.strength <= 1.0, "bad_settings", f"strength must be above 0 and at most 1; got {self.strength}."
        )
        settle(
            self.cache_steps is None or 1 <= self.cache_steps <= 100_000,
            "bad_settings",
            f"cache steps must be at least 1; got {self.cache_steps}.",
        )
        settle(
            self.steps is None or 1 <= self.steps <= 1000,
            "bad_settings",
            f"steps must be between 1 and 1000; got {self.steps}.",
        )
        settle(
            self.scene_scale is None or (np.isfinite(self.scene_scale) and self.scene_scale > 0),
            "bad_settings",
            f"scene scale must be a positive distance in scene units; got {self.scene_scale}.",
        )
        keys = [key.frame for key in self.prompt_keys]
        settle(
            keys == sorted(set(keys)),
            "bad_settings",
            f"prompt keys must be in the order of their frames, one each; got frames {keys}.",
        )
        style = self.style_image
        settle(
            style is None or (style.dtype == np.uint8 and style.ndim == 3 and style.shape[2] == 3),
            "bad_settings",
            f"The style image must be 8-bit RGB; got {getattr(style, 'dtype', '?')} {getattr(style, 'shape', '?')}.",
        )
        settle(
            self.guidance is None or 1.0 <= self.guidance <= 100.0,
            "bad_settings",
            f"guidance must be between 1 and 100; got {self.guidance}.",
        )
        if self.strength_mask is not None:
            check_strength_mask(self.strength_mask, len(self.cameras))


def check_strength_mask(mask: np.ndarray, frames: int) -> None:
    """Raises `bad_settings` unless `mask` can be laid over a path of that many frames."""
    if mask.dtype != np.float32 or mask.ndim != 3 or mask.shape[0] not in (1, frames) or min(mask.shape) < 1:
        raise WorldWarpError(
            "bad_settings",
            f"A strength mask is float32 of 1 or {frames} pictures; got {mask.dtype} of shape {mask.shape}.",
        )
    if not (np.abs(mask) <= 1).all():
        raise WorldWarpError("bad_settings", "A strength mask's values must be from -1 to 1, and none NaN.")


def check_depth(depth: np.ndarray, size: tuple[int, int]) -> None:
    """Raises `bad_depth` unless `depth` is a usable planar z pass of the (height, width) `size`."""
    if depth.ndim != 2 or depth.shape != tuple(size):
        raise WorldWarpError(
            "bad_depth",
            f"The depth is {'x'.join(str(s) for s in depth.shape[::-1])} but the start frame is {size[1]}x{size[0]}: "
            "render both at the same size.",
        )
    if np.isnan(depth).any():
        raise WorldWarpError(
            "bad_depth",
            f"The depth has {int(np.isnan(depth).sum())} NaN pixels. Render the Z pass again, or set them to "
            f"{BACKGROUND_DEPTH:g}, the background.",
        )
    if (depth <= 0).any():
        raise WorldWarpError(
            "bad_depth",
            f"The depth has {int((depth <= 0).sum())} pixels at or behind the camera. It must be planar z, positive, "
            "in scene units.",
        )
    if not (depth < 0.99 * BACKGROUND_DEPTH).any():
        raise WorldWarpError(
            "bad_depth", "The depth is background everywhere: the start camera sees no surface. Point it at the scene."
        )


DRAWN_GRID_PX = 16
"""A token is 2x2 latents of 8x8 pixels."""
DRAWN_SIDE_PX = 2048
DRAWN_PIXELS = 1280 * 720
"""Beyond what Wan 2.1 was trained on pictures repeat themselves."""

DrawPart = Literal["text", "load", "steps", "decode"]
OnDrawStep = Callable[[DrawPart, int, int], None]
"""Told of each part: which, and step of steps. What it raises stops the work there."""


@dataclass(frozen=True)
class FirstFrameSettings:
    """What to draw.

    Attributes:
        prompt: what is seen.
        negative_prompt: what is not wanted.
        width, height: pixels, multiples of 16.
        seed: of the noise; the same on every device.
        steps: denoising steps.
        guidance: how far beyond the negative prompt to go, at least 1.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 832
    height: int = 480
    seed: int = 0
    steps: int = 50
    guidance: float = 5.0

    def __post_init__(self) -> None:
        size = f"{self.width}x{self.height}"
        if not self.prompt.strip():
            raise WorldWarpError("bad_settings", "A first frame needs a prompt: say what it shows.")
        sides = (self.width, self.height)
        if any(side % DRAWN_GRID_PX or side < DRAWN_GRID_PX for side in sides):
            near = "x".join(str(max(round(side / DRAWN_GRID_PX), 1) * DRAWN_GRID_PX) for side in sides)
            raise WorldWarpError("bad_settings", f"The size must be in multiples of 16; got {size}, {near} would do.")
        if self.width * self.height > DRAWN_PIXELS or max(self.width, self.height) > DRAWN_SIDE_PX:
            raise WorldWarpError(
                "bad_settings",
                f"The size is {size}; the video model draws at most {DRAWN_PIXELS} pixels (1280x720, 960x960) and "
                f"{DRAWN_SIDE_PX} a side.",
            )
        if not 1 <= self.steps <= 1000:
            raise WorldWarpError("bad_settings", f"steps must be between 1 and 1000; got {self.steps}.")
        if not 1.0 <= self.guidance <= 100.0:
            raise WorldWarpError("bad_settings", f"guidance must be between 1 and 100; got {self.guidance}.")


@dataclass(frozen=True)
class Progress:
    """How far the whole job is; emitted between any two steps, so a consumer can stop there."""

    stage: Stage
    step: int
    steps: int
    """`step` of `steps` within the stage."""
    chunk: int
    chunks: int
    fraction: float
    """Of the whole job, in [0, 1]."""
    eta_s: float | None
    """Estimated seconds left; None until there is something to estimate from."""


@dataclass(frozen=True)
class Frame:
    """One delivered frame at the size asked for."""

    index: int
    """Position in the path, from 0."""
    number: int
    """The path's own frame number."""
    chunk: int
    rgb: np.ndarray  # (H, W, 3) uint8 sRGB
    depth: np.ndarray  # (H, W) float32 planar z of the cache, scene units, BACKGROUND_DEPTH where it has nothing
    validity: np.ndarray  # (H, W) uint8, 255 where the prior was valid


@dataclass(frozen=True)
class CacheUpdate:
    """The world as it stands after a fit."""

    chunk: int
    splats: SplatCloud


@dataclass(frozen=True)
class Notice:
    """Something the user should know: quality or speed dropped, a setting was changed, a path jumps."""

    code: str
    message: str


@dataclass(frozen=True)
class Finished:
    """The end of a whole job: what was done, for `job.json`."""

    summary: dict[str, Any] = field(default_factory=dict)


Event = Progress | Frame | CacheUpdate | Notice | Checkpoint | Finished
