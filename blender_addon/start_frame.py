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
        WorldWarpError: `no_camera`, `unsupported_camera`, `no_cycles` or `render_failed`.
    """
    scene, view_layer = context.scene, context.view_layer
    check_single_view(scene)
    with ExitStack() as stack:
        stack.enter_context(frame_kept(scene))
        scene.frame_set(frame)
        camera = filming_camera(scene, context.evaluated_depsgraph_get(), frame).original
        look = look_of(scene, camera)
        select_cycles(scene, stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="worldwarp_")))
        stack.enter_context(sharp_render(scene, view_layer, camera))
        with picture_quality(scene, samples):
            render(scene, view_layer)
            rgb = read_picture(save_render_result(scene, folder / "start.png", "PNG"))
        # A picture's pixel mixes what its filter covers; a depth must be of one point: a second render, of one ray
        # through each pixel's centre.
        with centre_rays(scene):
            render(scene, view_layer)
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
    """Renders geometry as it stands at the frame, all of the exported image, with a Z pass."""
    render_settings = scene.render
    with (
        kept(
            render_settings,
            use_motion_blur=False,
            use_compositing=False,
            use_sequencer=False,
            use_stamp=False,
            # A border without a crop would leave the rest of the picture black.
            use_border=render_settings.use_border and render_settings.use_crop_to_border,
        ),
        kept(camera.data.dof, use_dof=False),
        kept(view_layer, use=True, use_pass_z=True, samples=0),
        kept(getattr(scene, "cycles", None), time_limit=0.0),
    ):
        yield


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


def render(scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer) -> None:
    """Renders the current frame into Blender's Render Result."""
    try:
        bpy.ops.render.render(layer=view_layer.name, scene=scene.name)
    except RuntimeError as error:
        raise WorldWarpError(
            "render_failed", f"Blender could not render the start frame: {str(error).strip()}"
        ) from error


def save_render_result(scene: bpy.types.Scene, path: Path, file_format: str) -> Path:
    """Writes the Render Result, with the view transform for PNG and scene-linear for EXR; returns `path`."""
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
        bpy.data.images["Render Result"].save_render(str(path), scene=scene)
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
