# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a world is that begins with a picture: pictures say what is near and far, never how near.

In: what the artist measured, or the scene's own geometry. Out: a distance in scene units, or a depth map scaled by one.
"""

from __future__ import annotations

import bpy
import numpy as np

from .camera_export import export_camera_path, frame_kept
from .seen_depth import grid_pixels, seen_depth

FALLBACK_DISTANCE = 5.0
"""Scene units, where nothing says how far anything is."""


def start_distance(context: bpy.types.Context) -> float:
    """Returns how far from the start camera the picture's median depth lies, in scene units."""
    chosen = float(context.scene.worldwarp.scene_scale)
    return chosen if chosen > 0 else default_distance(context)[0]


def default_distance(context: bpy.types.Context) -> tuple[float, str]:
    """Returns a distance for who set none, and where it comes from.

    Raises:
        WorldWarpError: `no_camera` or `unsupported_camera`.
    """
    scene = context.scene
    path = export_camera_path(context, [scene.frame_start])
    with frame_kept(scene):
        scene.frame_set(scene.frame_start)
        focused = scene.camera.data.dof.focus_object if scene.camera is not None else None
        if focused is not None:
            distance = planar_distance(path.c2w[0], np.array(focused.matrix_world.translation))
            if distance > 0:
                return distance, f'the focus object "{focused.name}"'
        depsgraph = context.evaluated_depsgraph_get()
        pixels = grid_pixels(path.width, path.height)
        nearest = float(seen_depth(scene, depsgraph, pixels, path.K[0], path.c2w[0]).min())
    if np.isfinite(nearest):
        return nearest, "the nearest object in view"
    return FALLBACK_DISTANCE, "an assumption: the camera has no focus object and sees nothing"


def planar_distance(c2w: np.ndarray, point: np.ndarray) -> float:
    """Returns how far (3,) `point` lies in front of the camera, along its axis; below 0 behind it."""
    return float((point - c2w[:3, 3]) @ c2w[:3, 2])
