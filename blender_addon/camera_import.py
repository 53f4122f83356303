# SPDX-License-Identifier: GPL-3.0-or-later
"""A camera path as an animated Blender camera: pose, lens and shift keyed on every frame.

In: a `CameraPath`. Out: a camera object whose export is that path again, and a scene set to film with it.
"""

from __future__ import annotations

import bpy
import numpy as np
from mathutils import Matrix

from worldwarp_core.cameras.path import CameraPath, blender_to_opencv
from worldwarp_core.errors import WorldWarpError

from .scenes import collection_for

SENSOR_WIDTH_MM = 36.0
MAX_ASPECT_DRIFT = 1e-4
"""How far the pixel aspect of a path may move: Blender has one for the whole scene."""


def add_camera(context: bpy.types.Context, name: str, path: CameraPath, match_scene: bool = True) -> bpy.types.Object:
    """Returns the new camera `name`, keyed on the path's frames.

    Args:
        match_scene: film with it: set the scene's camera, resolution, pixel aspect, frame range and frame rate.

    Raises:
        WorldWarpError: `bad_camera_path` for skewed pixels, or a pixel aspect that changes by frame.
    """
    aspect = pixel_aspect(path)
    camera = bpy.data.objects.new(name, bpy.data.cameras.new(name))
    collection_for(context).objects.link(camera)
    data = camera.data
    data.sensor_fit, data.sensor_width = "HORIZONTAL", SENSOR_WIDTH_MM
    camera.rotation_mode = "QUATERNION"
    before = None
    for frame, K, c2w in zip(path.frames.tolist(), path.K, blender_to_opencv(path.c2w), strict=True):
        location, rotation, _ = Matrix(c2w.tolist()).decompose()
        if before is not None:
            # q and -q are one rotation; the nearer keeps what lies between two keys from spinning.
            rotation.make_compatible(before)
        before = rotation.copy()
        camera.location, camera.rotation_quaternion = location, rotation
        data.lens = K[0, 0] * SENSOR_WIDTH_MM / path.width
        data.shift_x = (path.width / 2 - K[0, 2]) / path.width
        data.shift_y = (K[1, 2] - path.height / 2) / (path.width * aspect)
        for owner, keyed in ((camera, ("location", "rotation_quaternion")), (data, ("lens", "shift_x", "shift_y"))):
            for channel in keyed:
                owner.keyframe_insert(channel, frame=frame)
    if match_scene:
        film_with(context.scene, camera, path, aspect)
    return camera


def pixel_aspect(path: CameraPath) -> float:
    """Returns pixel_aspect_x / pixel_aspect_y, which is fy / fx.

    Raises:
        WorldWarpError: `bad_camera_path` when it changes by frame or the pixels are skewed.
    """
    aspects = path.K[:, 1, 1] / path.K[:, 0, 0]
    if np.abs(aspects / aspects[0] - 1).max() > MAX_ASPECT_DRIFT:
        raise WorldWarpError(
            "bad_camera_path",
            f"The pixel aspect of this path moves between {aspects.min():.5f} and {aspects.max():.5f}; Blender has "
            "one for the whole scene. Make fy / fx the same on every frame.",
        )
    skew = np.abs(path.K[:, 0, 1] / path.K[:, 0, 0])
    if skew.max() > MAX_ASPECT_DRIFT:
        frame = int(path.frames[skew.argmax()])
        raise WorldWarpError("bad_camera_path", f"The pixels are skewed at frame {frame}; no Blender camera has that.")
    # Equal to rounding means square.
    return 1.0 if abs(aspects[0] - 1) < MAX_ASPECT_DRIFT else float(aspects[0])


def film_with(scene: bpy.types.Scene, camera: bpy.types.Object, path: CameraPath, aspect: float) -> None:
    """Sets `scene` to render `path` through `camera`."""
    scene.camera = camera
    render = scene.render
    render.resolution_x, render.resolution_y, render.resolution_percentage = path.width, path.height, 100
    # Blender keeps both aspects at 1 or above.
    render.pixel_aspect_x, render.pixel_aspect_y = max(aspect, 1.0), max(1 / aspect, 1.0)
    render.use_border = False
    steps = np.unique(np.diff(path.frames))
    scene.frame_start, scene.frame_end = int(path.frames[0]), int(path.frames[-1])
    scene.frame_step = int(steps[0]) if len(steps) == 1 else 1
    whole = round(path.fps) if abs(path.fps - round(path.fps)) < 1e-6 else int(np.ceil(path.fps))
    render.fps, render.fps_base = whole, whole / path.fps
