# SPDX-License-Identifier: GPL-3.0-or-later
"""The start frame and its depth, rendered by Cycles through the scene's camera.

In: a Blender scene and a frame number. Out: 8-bit sRGB with the view transform baked in, and planar z in scene units at
the pixel centres. Every setting that the render needs is put back, whatever happens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from worldwarp_core.errors import WorldWarpError

from .camera_export import check_single_view, filming_camera, frame_kept, render_size
from .render_layers import UnexpectedLayout, read_channel

DEFAULT_SAMPLES = 64
"""Enough with the denoiser on; the render is a reference for one frame, not the film's final quality."""
OWN_SLOT = "WorldWarp"
"""Name of the slot of Blender's Render Result that our renders go into."""


@dataclass(frozen=True)
class StartFrame:
    """What the start camera sees.

    Attributes:
        frame: the scene frame it was rendered at.
        rgb: (H, W, 3) uint8 sRGB, top row first.
        depth: (H, W) float32 planar z in scene units, 1e10 where the camera sees nothing; None where the picture is no
            render and the server estimates it.
        look: what was baked into `rgb` (view transform, look, exposure, ...), and what was left out of the render.
    """

    frame: int
    rgb: np.ndarray
    depth: np.ndarray | None
    look: dict[str, Any] = field(default_factory=dict)


def render_start_frame(context: bpy.types.Context, frame: int, samples: int = DEFAULT_SAMPLES) -> StartFrame:
    """Returns the picture and the depth of `frame`, rendered sharp: without depth of field and motion blur.

    Compositing, sequencer and burnt-in stamps are left out, so that picture and depth show the same geometry.

    Raises:
        WorldWarpError: `no_camera`, `unsupported_camera`, `no_cycles`, `render_busy` or `render_failed`.
    """
    scene, view_layer = context.scene, context.view_layer
    check_single_view(scene)
    with ExitStack() as stack:
        stack.enter_context(frame_kept(scene))
        scene.frame_set(frame)
        camera = filming_camera(scene, context.evaluated_depsgraph_get(), frame).original
        select_cycles(scene, stack)
        look = look_of(scene, camera)
        folder = stack.enter_context(temporary_folder())
        stack.enter_context(sharp_render(scene, view_layer, camera))
        with picture_quality(scene, samples):
            render(scene)
            rgb = read_picture(save_render_result(scene, folder / "start.png", "PNG"))
        # A picture's pixel mixes what its filter covers; a depth must be of one point: a second render, of one ray
        # through each pixel's centre.
        with centre_rays(scene):
            render(scene)
            depth = read_depth(save_render_result(scene, folder / "depth.exr", "OPEN_EXR_MULTILAYER"))
    width, height = render_size(scene)
    assert rgb.shape == (height, width, 3), (rgb.shape, width, height)
    assert depth.shape == (height, width), (depth.shape, width, height)
    return StartFrame(frame, rgb, depth, look)


def look_of(scene: bpy.types.Scene, camera: bpy.types.Object) -> dict[str, Any]:
    """Returns how the scene turns light into the picture's colours, and what the render leaves out, for the records."""
    view = scene.view_settings
    return {
        "view_transform": view.view_transform,
        "look": view.look,
        "exposure": view.exposure,
        "gamma": view.gamma,
        "display_device": scene.display_settings.display_device,
        "denoised": can_denoise(),
        "film_transparent": bool(scene.render.film_transparent),
        "left_out": {
            "depth_of_field": bool(camera.data.dof.use_dof),
            "motion_blur": bool(scene.render.use_motion_blur),
            "compositing": bool(scene.render.use_compositing and has_compositor(scene)),
        },
    }


def has_compositor(scene: bpy.types.Scene) -> bool:
    """Returns whether the scene's renders go through a compositor tree."""
    # Blender 5.0 replaced the switch by the tree itself.
    return scene.compositing_node_group is not None if hasattr(scene, "compositing_node_group") else scene.use_nodes


def select_cycles(scene: bpy.types.Scene, stack: ExitStack) -> None:
    """Selects Cycles until `stack` closes.

    Raises:
        WorldWarpError: `no_cycles` when its add-on is switched off.
    """
    try:
        stack.enter_context(kept(scene.render, engine="CYCLES"))
    except TypeError as error:
        raise WorldWarpError(
            "no_cycles",
            "The start frame is rendered with Cycles, which is switched off. Enable the Cycles Render Engine add-on "
            "in the Preferences.",
        ) from error


@contextmanager
def sharp_render(scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer, camera: bpy.types.Object) -> Iterator[None]:
    """Renders geometry as it stands at the frame, all of the exported image, of `view_layer` alone, with a Z pass."""
    render_settings = scene.render
    with (
        own_slot(),
        without_other_layers(scene, view_layer),
        kept(
            render_settings,
            use_motion_blur=False,
            use_compositing=False,
            use_sequencer=False,
            use_stamp=False,
            use_single_layer=False,
            # A border without a crop would leave the rest of the picture black.
            use_border=render_settings.use_border and render_settings.use_crop_to_border,
        ),
        kept(camera.data.dof, use_dof=False),
        kept(view_layer, use=True, use_pass_z=True, samples=0),
        kept(getattr(scene, "cycles", None), time_limit=0.0),
    ):
        yield


@contextmanager
def own_slot() -> Iterator[None]:
    """Renders into a slot of our own: the artist's last render, which may be nowhere else, stays in its place."""
    result = render_result()
    if result is None:
        # Nothing was rendered yet, so there is nothing to keep.
        yield
        return
    slots = result.render_slots
    own = next((slot for slot in slots if slot.name == OWN_SLOT), None) or slots.new(name=OWN_SLOT)
    before = slots.active_index
    slots.active = own
    try:
        yield
    finally:
        slots.active_index = before


@contextmanager
def without_other_layers(scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer) -> Iterator[None]:
    """Renders nothing but `view_layer`: files of several layers do not say which one the exported camera sees."""
    with ExitStack() as stack:
        for other in scene.view_layers:
            if other != view_layer:
                stack.enter_context(kept(other, use=False))
        yield


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a folder that is gone afterwards, unless another program still holds a file there, as on Windows."""
    with tempfile.TemporaryDirectory(prefix="worldwarp_", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def picture_quality(scene: bpy.types.Scene, samples: int) -> Iterator[None]:
    """Sets Cycles' samples, and switches its denoiser on where it was built in."""
    with kept(scene.cycles, samples=samples, use_denoising=can_denoise()):
        yield


def can_denoise() -> bool:
    """Returns whether this Blender has a denoiser; a render that asks in vain for one fails (Linux distributions')."""
    import _cycles

    return bool(_cycles.with_openimagedenoise)


@contextmanager
def centre_rays(scene: bpy.types.Scene) -> Iterator[None]:
    """Makes Cycles send one ray through the centre of every pixel, and stop where it lands."""
    with kept(
        scene.cycles,
        samples=1,
        use_denoising=False,
        use_adaptive_sampling=False,
        pixel_filter_type="BOX",
        filter_width=0.01,
        max_bounces=0,
    ):
        yield


@contextmanager
def kept(owner: Any, **values: Any) -> Iterator[None]:
    """Sets attributes of a Blender struct and puts the old values back; names that this Blender lacks are left out."""
    values = {name: value for name, value in values.items() if hasattr(owner, name)}
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def render(scene: bpy.types.Scene) -> None:
    """Renders the current frame into Blender's Render Result.

    Raises:
        WorldWarpError: `render_busy` while Blender renders something else, `render_failed`.
    """
    if is_rendering():
        raise WorldWarpError("render_busy", "Blender is rendering. Wait until that is done, or cancel it (Esc).")
    try:
        # Not by their names: a layer would be rendered beside those of earlier renders, not alone, and another scene
        # of that name, which is linked, may be meant.
        with bpy.context.temp_override(scene=scene):
            ended = bpy.ops.render.render()
    except RuntimeError as error:
        raise WorldWarpError(
            "render_failed", f"Blender could not render frame {scene.frame_current}: {str(error).strip()}"
        ) from error
    if ended != {"FINISHED"}:
        raise WorldWarpError("render_failed", f"The render of frame {scene.frame_current} was cancelled.")


def is_rendering() -> bool:
    """Returns whether Blender renders in the background of its window: nothing may be rendered beside it."""
    return bpy.app.is_job_running("RENDER")


def render_result() -> bpy.types.Image | None:
    """Returns the image that renders go into, or None before the first."""
    return next((image for image in bpy.data.images if image.type == "RENDER_RESULT"), None)


def save_render_result(scene: bpy.types.Scene, path: Path, file_format: str) -> Path:
    """Writes the Render Result, with the view transform for PNG and scene-linear for EXR; returns `path`.

    Raises:
        WorldWarpError: `render_failed`.
    """
    picture = file_format == "PNG"
    with (
        # Blender 5.0 cannot write a multi-layer EXR of pixels that are not square.
        kept(scene.render, pixel_aspect_x=1.0, pixel_aspect_y=1.0),
        kept(
            scene.render.image_settings,
            # From Blender 5.0 on the kind of file comes before its format.
            media_type="IMAGE" if picture else "MULTI_LAYER_IMAGE",
            file_format=file_format,
            color_mode="RGB" if picture else "RGBA",
            color_depth="8" if picture else "32",
            exr_codec="NONE",
            color_management="FOLLOW_SCENE",
        ),
    ):
        result = render_result()
        assert result is not None
        try:
            result.save_render(str(path), scene=scene)
        except RuntimeError as error:
            raise WorldWarpError(
                "render_failed",
                f"What was rendered could not be kept in {path.parent}, which may be full: {str(error).strip()}",
            ) from error
    return path


def read_picture(path: Path) -> np.ndarray:
    """Returns (H, W, 3) uint8 as stored in an 8-bit file, top row first."""
    image = bpy.data.images.load(str(path))
    try:
        width, height = image.size
        # Pixels of 8-bit images come as stored values / 255, without a colour conversion, bottom row first.
        pixels = np.empty(width * height * image.channels, np.float32)
        image.pixels.foreach_get(pixels)
        rgba = pixels.reshape(height, width, image.channels)[::-1]
    finally:
        bpy.data.images.remove(image)
    return np.rint(rgba[..., :3] * 255).astype(np.uint8)


def read_depth(path: Path) -> np.ndarray:
    """Returns (H, W) float32: the Depth pass of the multi-layer EXR at `path`."""
    try:
        return read_channel(path, ".Depth.Z")
    except UnexpectedLayout as error:
        raise WorldWarpError("render_failed", f"The rendered depth cannot be read: {error}.") from error
