"""What goes into a generation and what comes out of it, in NumPy: the types and names of the core's one door.

A `GenerateSpec` goes in; `Progress`, `Frame`, `CacheUpdate` and `Notice` come out as the loop runs, and one `Finished`
ends it. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .cameras.path import CameraPath
from .checkpoint import Checkpoint
from .errors import WorldWarpError
from .splat_files.cloud import SplatCloud

ENGINES = ("preview", "cache", "wan")
"""Names that `load_engine` knows, the default first."""

BACKGROUND_DEPTH = 1e10
"""Planar z of a pixel that sees nothing, as Cycles writes it (scene units)."""

PATH_DEPTH_PIXELS = 480 * 270
"""About how many a map of the path's depth needs: 200 of them take 52 MB in half precision."""
HALF_RANGE = (1e-4, 6.5e4)
"""Depths between these keep their precision as float16."""

Stage = Literal["load", "geometry", "cache", "priors", "fill", "encode", "denoise", "decode", "finish"]


@dataclass(frozen=True)
class PromptKey:
    """From this frame number on, this prompt."""

    frame: int
    prompt: str


@dataclass(frozen=True, eq=False)
class PathDepth:
    """How far the scene's own surfaces are along the path: the blockout that the generated world keeps to.

    What it knows are surfaces: nothing is seen through them, and what is generated where they are lands on them. Where
    it says nothing, the world is free. Objects that should not be in the world are left out of it.

    Raises:
        WorldWarpError: `bad_path_depth`, saying what was got and what was expected.
    """

    frames: np.ndarray
    """(F,) int64, rising: the numbers of the path's frames that there is a map for. Others follow from the nearest."""
    depth: np.ndarray
    """(F, h, w) float16 or float32 planar z in scene units; `BACKGROUND_DEPTH` or inf where nothing is known."""

    def __post_init__(self) -> None:
        def settle(ok: bool, message: str) -> None:
            if not ok:
                raise WorldWarpError("bad_path_depth", message)

        frames, depth = self.frames, self.depth
        settle(
            depth.ndim == 3 and depth.dtype in (np.float16, np.float32) and min(depth.shape) >= 1,
            f"The path's depth must be float16 or float32 maps of one size; got {depth.dtype} {depth.shape}.",
        )
        settle(
            frames.shape == depth.shape[:1] and frames.dtype == np.int64 and bool((np.diff(frames) > 0).all()),
            f"The path's depth must have one map for each of its frames, in rising order; got {len(depth)} maps for "
            f"{len(frames)} frames.",
        )
        # Whole NaN or negative maps come from broken renders: the first is named, one at a time in little memory.
        for number, values in zip(frames.tolist(), depth, strict=True):
            settle(
                bool((values > 0).all()),  # false for NaN too
                f"The path's depth has values at frame {number} that are NaN, or at or behind the camera. It must be "
                f"planar z, positive, in scene units; {BACKGROUND_DEPTH:g} where nothing is known.",
            )

    @classmethod
    def of(cls, frames: list[int], maps: list[np.ndarray]) -> PathDepth:
        """(h, w) float32 maps of one size as they are kept and sent: in half the memory where that loses nothing.

        Half precision is within 0.05% of any depth from 0.0001 to 65,000 scene units.
        """
        depth = np.stack(maps)
        depth[depth >= 0.99 * BACKGROUND_DEPTH] = np.inf
        known = depth[np.isfinite(depth)]
        fits = known.size == 0 or (known.min() > HALF_RANGE[0] and known.max() < HALF_RANGE[1])
        return cls(np.array(frames, np.int64), depth.astype(np.float16 if fits else np.float32))


def check_path_depth(given: PathDepth, cameras: CameraPath) -> None:
    """Raises `bad_path_depth` unless the maps are of frames of the path and of about its aspect."""
    strange = given.frames[~np.isin(given.frames, cameras.frames)]
    if len(strange):
        raise WorldWarpError(
            "bad_path_depth",
            f"The path's depth is given for frame {strange[0]}, which is no frame of the path "
            f"({cameras.frames[0]} to {cameras.frames[-1]}).",
        )
    height, width = given.depth.shape[1:]
    # Small maps cannot have just any aspect: half a pixel is forgiven.
    if abs(width * cameras.height - height * cameras.width) > 0.02 * width * cameras.height + cameras.height / 2:
        raise WorldWarpError(
            "bad_path_depth",
            f"The path's depth is {width}x{height} but the cameras are {cameras.width}x{cameras.height}: the aspect "
            "ratios differ. Render it through the same cameras.",
        )
    if not any((values < 0.99 * BACKGROUND_DEPTH).any() for values in given.depth):
        raise WorldWarpError(
            "bad_path_depth",
            "The path's depth knows nothing in any frame: no camera sees a surface. Check what is excluded from it, or "
            "leave it out.",
        )


@dataclass(frozen=True)
class GenerateSpec:
    """One shot to make.

    Raises:
        WorldWarpError: `bad_settings`, `bad_start_frame`, `bad_depth` or `bad_path_depth`, saying what was got and
            what was expected.
    """

    cameras: CameraPath
    start_frame: np.ndarray
    """(h, w, 3) uint8 sRGB, seen from the path's first camera; any size of about the path's aspect."""
    depth: np.ndarray | None = None
    """(h, w) float32 planar z of the start frame in scene units; `BACKGROUND_DEPTH` or inf where it sees nothing."""
    prompt: str = ""
    negative_prompt: str = ""
    strength: float | None = None
    """tau of the method (section 2): the fraction of the schedule that warped regions go through. None takes the
    engine's own."""
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
    path_depth: PathDepth | None = None
    """The scene's own surfaces along the path, which the world keeps to; with the first frame, its depth too."""

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
            self.strength is None or 0.0 < self.strength <= 1.0,
            "bad_settings",
            f"strength must be above 0 and at most 1; got {self.strength}.",
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
        if self.path_depth is not None:
            check_path_depth(self.path_depth, self.cameras)


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
    depth: np.ndarray
    """(H, W) float32 planar z in scene units of the cache, or of the path's depth where that hides what the cache has
    there; `BACKGROUND_DEPTH` where neither has anything."""
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
