# SPDX-License-Identifier: GPL-3.0-or-later
"""The start picture as points in the viewport, as large as the artist's distance makes it; follows it as it is dragged.

Drawn by a handler of the 3D viewport among the scene's own surfaces; never in a render.
"""

from __future__ import annotations

import bpy
import gpu
from gpu_extras.batch import batch_for_shader
from mathutils import Matrix, Vector

from .scale import PictureCloud

POINT_SIZE_PX = 2.0

_cloud: PictureCloud | None = None
_batch: gpu.types.GPUBatch | None = None
_handle: object | None = None


def cloud() -> PictureCloud | None:
    """Returns what is drawn."""
    return _cloud


def show(made: PictureCloud | None) -> None:
    """Draws `made` from now on; None draws nothing."""
    global _cloud, _batch
    _cloud, _batch = made, None


def add() -> None:
    """Has the viewport call us; safe to call again."""
    global _handle
    if _handle is None:
        _handle = bpy.types.SpaceView3D.draw_handler_add(draw, (), "WINDOW", "POST_VIEW")


def remove() -> None:
    """Takes that back, and forgets the points."""
    global _handle
    if _handle is not None:
        bpy.types.SpaceView3D.draw_handler_remove(_handle, "WINDOW")
        _handle = None
    show(None)


def draw() -> None:
    """Draws the points of the scene in front, unless the shot begins with a render or overlays are off."""
    global _batch
    context = bpy.context
    group = context.scene.worldwarp
    if _cloud is None or _cloud.scene != context.scene.name or not context.space_data.overlay.show_overlays:
        return
    if group.start_source == "RENDER" or not group.show_cloud:
        return
    shader = gpu.shader.from_builtin("FLAT_COLOR")
    if _batch is None:
        _batch = batch_for_shader(shader, "POINTS", {"pos": _cloud.offsets, "color": _cloud.colours})
    gpu.state.depth_test_set("LESS_EQUAL")
    gpu.state.depth_mask_set(True)
    gpu.state.point_size_set(POINT_SIZE_PX)
    with gpu.matrix.push_pop():
        gpu.matrix.multiply_matrix(placement(_cloud, float(group.scene_scale)))
        _batch.draw(shader)
    gpu.state.depth_mask_set(False)
    gpu.state.depth_test_set("NONE")


def placement(made: PictureCloud, distance: float) -> Matrix:
    """Returns the matrix that puts the points where the artist's distance says."""
    return Matrix.Translation(Vector(made.origin.tolist())) @ Matrix.Scale(made.scale(distance), 4)
