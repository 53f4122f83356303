"""The core's one door. Importing it needs no torch; loading an engine does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from .cameras.path import CameraPath
from .checkpoint import Checkpoint
from .errors import WorldWarpError, install_command
from .preview.shipped import is_shipped
from .spec import Event, FirstFrameSettings, GenerateSpec, OnDrawStep
from .splat_files.cloud import SplatCloud


class Engine(Protocol):
    """Makes shots."""

    @property
    def name(self) -> str: ...

    def generate(self, spec: GenerateSpec, resume: Checkpoint | None = None) -> Iterator[Event]:
        """Yields events after every step, `Finished` last; stop asking for more to cancel.

        A frame's arrays are its taker's once it is yielded; `frame_memory.frame_arrays` has some to write it into.

        `resume` is the join of the newest "fitted" state that an earlier run of the same shot yielded and of what it
        yielded after that: its frames are not made again, and the rest is as it would have been.
        """
        ...

    def draw(self, settings: FirstFrameSettings, on_step: OnDrawStep) -> np.ndarray:
        """(height, width, 3) uint8 sRGB: a start frame from words; what `on_step` raises stops it.

        Raises:
            WorldWarpError: `cannot_draw` where the engine has no model for that, `no_weights`, `out_of_memory`.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Engine, device, rasteriser, versions and whether it `draws`, as plain values."""
        ...


def default_engine() -> str:
    """The engine that is taken where none is named: `preview`, or `cache` in an installation without its networks."""
    return "preview" if is_shipped() else "cache"


def load_engine(name: str = "cache", *, device: str = "auto", depth_model: str | None = None, **options: Any) -> Engine:
    """Returns an engine ready to make shots.

    Args:
        name: one of `spec.ENGINES`. `cache` renders the splat cache and inpaints its holes; it needs no weights.
            `preview` is WorldWarp's method with the small networks that ship; `wan` with Wan 2.1's models.
        device: `auto` takes CUDA where gsplat's kernels run, else the CPU, and says so in a notice.
        depth_model: name or folder of a `transformers` depth model, for start frames without exact depth.
        options: of the engine, as plain values; those of `wan` are `wan.source.WanOptions`, and `preview` takes
            `weights`, a folder with networks of one's own training.

    Raises:
        WorldWarpError: `engine_not_installed`, `unknown_engine`, `bad_settings`, `no_cuda`, `no_weights`,
            `bad_weights`, `wrong_architecture`.
    """
    try:
        from .engine import make_engine
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "engine_not_installed",
            f"The engine needs the Python package {error.name!r}, which is missing: {install_command('engine')}",
        ) from error
    return make_engine(name, device, depth_model, options)


class Viewer(Protocol):
    """A world that is looked at from one camera after another."""

    def look(self, K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 over black: K (3, 3) in pixels, c2w (4, 4) OpenCV's axes in Blender's world."""
        ...


def open_viewer(cloud: SplatCloud, *, device: str = "cpu") -> Viewer:
    """Keeps a splat cloud in Blender's world on a device, ready to be looked at; "auto" is CUDA where gsplat runs."""
    from .splats.prepare import prepare_rasterizer
    from .splats.viewer import CloudViewer

    if device == "auto":
        import torch

        device = "cpu"
        if torch.cuda.is_available():
            try:
                prepare_rasterizer("cuda")
                device = "cuda"
            except WorldWarpError:
                # The engine has told its user already why not.
                device = "cpu"
    return CloudViewer(cloud, device)


def render_splats(
    cloud: SplatCloud, cameras: CameraPath, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Renders a splat cloud in Blender's world at every camera of a path.

    Returns:
        rgb (T, H, W, 3) float32 in [0, 1] over black, alpha (T, H, W), depth (T, H, W) planar z in scene units
        (0 where alpha is 0).
    """
    from .splats.view import render_cloud

    return render_cloud(cloud, cameras, device)
