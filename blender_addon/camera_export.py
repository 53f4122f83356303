# SPDX-License-Identifier: GPL-3.0-or-later
"""The scene's animated camera, as it is rendered, for every frame of a range.

In: a Blender scene. Out: a `CameraPath` (OpenCV axes, Blender's world, pixels with the origin at the image corner).
What cannot be said by a pinhole camera a frame is refused, naming the camera and the frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import bpy
import numpy as np

from worldwarp_core.cameras.path import CameraPath, blender_to_opencv
from worldwarp_core.errors import WorldWarpError

SHEAR_TOLERANCE = 1e-5
"""Cosine between two axes of a camera above which it is sheared; rounding in deep hierarchies stays below 2e-6."""


PROJECTIONS = {"ORTHO": "orthographic", "PANO": "panoramic", "CUSTOM": "a custom one"}
"""What artists call the cameras that are refused."""


def export_camera_path(context: bpy.types.Context, frames: Iterable[int] | None = None) -> CameraPath:
    """Returns the scene camera of `context` for `frames`, evaluated with constraints, drivers and animation.

    Args:
        context: its scene and view layer are evaluated; the current frame is put back afterwards.
        frames: scene frame numbers in rising order; None takes the scene's range with its frame step. With time
            remapping a frame evaluates elsewhere on the timeline, exactly as Blender renders it.

    Raises:
        WorldWarpError: `no_camera`, `unsupported_camera` (panoramic, orthographic, custom, sheared, mirrored, stereo)
            or `camera_cut` (markers switch cameras within the range).
    """
    scene = context.scene
    numbers = scene_frames(scene) if frames is None else [int(frame) for frame in frames]
    if not numbers:
        raise WorldWarpError(
            "bad_camera_path",
            f"The frame range {scene.frame_start} to {scene.frame_end} is empty: set an end frame after the start "
            "frame.",
        )
    check_single_view(scene)
    width, height = render_size(scene)
    K, c2w, cuts = [], [], []
    with frame_kept(scene):
        filming = None
        for number in numbers:
            scene.frame_set(number)
            if scene.camera != filming:
                cuts.append((number, scene.camera.name if scene.camera else "none"))
                filming = scene.camera
            if len(cuts) > 1:
                continue  # Only the remaining cuts are still of interest.
            camera = filming_camera(scene, context.evaluated_depsgraph_get(), number)
            K.append(intrinsics(camera.data, scene.render))
            c2w.append(camera_to_world(camera, number))
    if len(cuts) > 1:
        named = ", ".join(f'{frame} (to "{name}")' for frame, name in cuts[1:6])
        named += f" and {len(cuts) - 6} more" if len(cuts) > 6 else ""
        raise WorldWarpError(
            "camera_cut",
            f"Timeline markers switch the camera at frame {named}. WorldWarp makes one continuous shot: set the "
            "frame range to one shot at a time, or unbind the markers' cameras.",
        )
    return CameraPath(
        frames=np.array(numbers, np.int64),
        fps=scene.render.fps / scene.render.fps_base,
        width=width,
        height=height,
        K=np.stack(K),
        c2w=np.stack(c2w),
    )


def scene_frames(scene: bpy.types.Scene) -> range:
    """Returns the frame numbers that Blender would render, frame step included."""
    return range(scene.frame_start, scene.frame_end + 1, scene.frame_step)


def check_single_view(scene: bpy.types.Scene) -> None:
    """Raises `unsupported_camera` when the scene renders stereoscopy."""
    if scene.render.use_multiview:
        name = scene.camera.name if scene.camera else "none"
        raise WorldWarpError(
            "unsupported_camera",
            f'Camera "{name}" renders stereoscopy (multi-view). WorldWarp makes one view: switch Stereoscopy off '
            "in the Output properties.",
        )


def filming_camera(scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph, frame: int) -> bpy.types.Object:
    """Returns the evaluated camera that films `scene` now.

    Raises:
        WorldWarpError: `no_camera`, or `unsupported_camera` unless it is a perspective one.
    """
    if scene.camera is None:
        raise WorldWarpError(
            "no_camera",
            f'Scene "{scene.name}" has no camera at frame {frame}. Add one, or pick one in the Scene properties.',
        )
    if scene.camera.type != "CAMERA":
        raise WorldWarpError(
            "unsupported_camera",
            f'"{scene.camera.name}" films the scene but is no camera (its type is {scene.camera.type}). Pick a '
            "camera in the Scene properties.",
        )
    camera = scene.camera.evaluated_get(depsgraph)
    if camera.data.type != "PERSP":
        kind = PROJECTIONS.get(camera.data.type, camera.data.type)
        raise WorldWarpError(
            "unsupported_camera",
            f'Camera "{camera.name}" is {kind} at frame {frame}. WorldWarp needs a perspective camera: change its '
            "Type in the camera properties.",
        )
    return camera


def render_size(scene: bpy.types.Scene) -> tuple[int, int]:
    """Returns (width, height) of the rendered image in pixels: percentage and cropped border included."""
    left, top, right, bottom = crop_box(scene.render)
    if right <= left or bottom <= top:
        raise WorldWarpError(
            "bad_camera_path",
            "The render border is empty. Draw it again, or switch Render Region off in the Output properties.",
        )
    return right - left, bottom - top


def crop_box(render: bpy.types.RenderSettings) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) in pixels of the full frame, y down: what a render keeps of it."""
    width, height = full_size(render)
    if not (render.use_border and render.use_crop_to_border):
        return 0, 0, width, height
    # Blender truncates the border to whole pixels, counting from the bottom left corner, and reckons in float32: in
    # more digits 0.7 of 10 pixels would be 6.
    left, right = (int(np.float32(edge) * np.float32(width)) for edge in (render.border_min_x, render.border_max_x))
    bottom, top = (int(np.float32(edge) * np.float32(height)) for edge in (render.border_min_y, render.border_max_y))
    return left, height - top, right, height - bottom


def full_size(render: bpy.types.RenderSettings) -> tuple[int, int]:
    """Returns (width, height) of the full frame in pixels, before any crop."""
    percentage = render.resolution_percentage
    return render.resolution_x * percentage // 100, render.resolution_y * percentage // 100


def intrinsics(camera: bpy.types.Camera, render: bpy.types.RenderSettings) -> np.ndarray:
    """Returns K (3, 3) float64 in pixels of the rendered image; fx differs from fy where pixels are not square."""
    width, height = full_size(render)
    aspect_x, aspect_y = render.pixel_aspect_x, render.pixel_aspect_y
    fit = camera.sensor_fit
    # AUTO measures the sensor's WIDTH in portrait too; only an explicit vertical fit uses its height.
    sensor = camera.sensor_height if fit == "VERTICAL" else camera.sensor_width
    if fit == "AUTO":
        fit = "HORIZONTAL" if width * aspect_x >= height * aspect_y else "VERTICAL"
    view = width if fit == "HORIZONTAL" else height * aspect_y / aspect_x
    left, top, _, _ = crop_box(render)
    fx = camera.lens * view / sensor
    fy = fx * aspect_x / aspect_y
    cx = width / 2 - camera.shift_x * view - left
    cy = height / 2 + camera.shift_y * view * aspect_x / aspect_y - top
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def camera_to_world(camera: bpy.types.Object, frame: int) -> np.ndarray:
    """Returns c2w (4, 4) float64, rigid, from an evaluated camera; scale is dropped as Blender drops it.

    Raises:
        WorldWarpError: `unsupported_camera` when the camera is sheared, mirrored or scaled to nothing.
    """
    matrix = np.array(camera.matrix_world, np.float64)
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or (lengths < 1e-12).any():
        raise WorldWarpError(
            "unsupported_camera",
            f'Camera "{camera.name}" has no orientation at frame {frame}: its scale, or a parent\'s, is zero or '
            "not a number. Clear the scale (Alt S).",
        )
    axes = matrix[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE:
        raise WorldWarpError(
            "unsupported_camera",
            f'Camera "{camera.name}" is sheared at frame {frame}: a rotated camera under an unevenly scaled '
            "parent. Apply the parent's scale (Ctrl A), or parent the camera to an unscaled empty.",
        )
    if np.linalg.det(axes) < 0:
        raise WorldWarpError(
            "unsupported_camera",
            f'Camera "{camera.name}" is mirrored at frame {frame}: its scale, or a parent\'s, is negative. Make '
            "the scale positive, or apply it (Ctrl A).",
        )
    # The nearest rotation takes out float32's rounding, which is all that is left.
    u, _, vt = np.linalg.svd(axes)
    c2w = np.eye(4)
    c2w[:3, :3] = u @ vt
    c2w[:3, 3] = matrix[:3, 3]
    return blender_to_opencv(c2w)


@contextmanager
def frame_kept(scene: bpy.types.Scene) -> Iterator[None]:
    """Puts the current frame and the scene's camera back on leaving; `frame_set` and markers change both."""
    frame, subframe, camera = scene.frame_current, scene.frame_subframe, scene.camera
    try:
        yield
    finally:
        scene.frame_set(frame, subframe=subframe)
        scene.camera = camera
