# SPDX-License-Identifier: GPL-3.0-or-later
"""The checked camera path in the viewport: green where the start frame has seen what comes, red where all is new.

In: the last `Report` of the preflight. Drawn by a handler of the 3D viewport, over the scene; never in a render.
"""

from __future__ import annotations

import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader

from worldwarp_core.cameras.path import CameraPath

from .preflight import LOST, Report

KNOWN_COLOUR = np.array((0.25, 0.85, 0.35))
NEW_COLOUR = np.array((0.95, 0.25, 0.2))
MARK_COLOUR = (1.0, 0.75, 0.1, 1.0)
START_COLOUR = (0.9, 0.9, 0.9, 0.8)
PATH_WIDTH_PX = 3.0
MARK_SIZE_PX = 10.0

_report: Report | None = None
_handle: object | None = None


def report() -> Report | None:
    """Returns what was found last."""
    return _report


def show(found: Report | None) -> None:
    """Draws the path of `found` from now on; None draws nothing."""
    global _report
    _report = found


def add() -> None:
    """Has the viewport call us; safe to call again."""
    global _handle
    if _handle is None:
        _handle = bpy.types.SpaceView3D.draw_handler_add(draw, (), "WINDOW", "POST_VIEW")


def remove() -> None:
    """Takes that back, and forgets the path."""
    global _handle
    if _handle is not None:
        bpy.types.SpaceView3D.draw_handler_remove(_handle, "WINDOW")
        _handle = None
    show(None)


def draw() -> None:
    """Draws the path of the scene in front, unless the overlays are switched off."""
    context = bpy.context
    space, scene = context.space_data, context.scene
    if _report is None or _report.path is None or _report.scene != scene.name or not scene.worldwarp.show_path:
        return
    # Behind the camera's own picture frame the path is only in the way.
    if not space.overlay.show_overlays or space.region_3d.view_perspective == "CAMERA":
        return
    path, places = _report.path, _report.path.c2w[:, :3, 3].astype(np.float32)
    gpu.state.blend_set("ALPHA")
    draw_lines(frustum_lines(path), np.tile(np.array(START_COLOUR, np.float32), (16, 1)), 1.0)
    if len(path) > 1:
        pairs = np.repeat(np.arange(len(path)), 2)[1:-1]
        draw_lines(places[pairs], path_colours(_report.known)[pairs], PATH_WIDTH_PX)
    marks = np.isin(path.frames, sorted(_report.marked))
    if marks.any():
        gpu.state.point_size_set(MARK_SIZE_PX)
        shader = gpu.shader.from_builtin("UNIFORM_COLOR")
        shader.uniform_float("color", MARK_COLOUR)
        batch_for_shader(shader, "POINTS", {"pos": places[marks]}).draw(shader)
    gpu.state.blend_set("NONE")


def draw_lines(points: np.ndarray, colours: np.ndarray, width_px: float) -> None:
    """Draws (2 N, 3) points as N lines, each end in its (2 N, 4) colour."""
    shader = gpu.shader.from_builtin("POLYLINE_SMOOTH_COLOR")
    shader.uniform_float("viewportSize", gpu.state.viewport_get()[2:])
    shader.uniform_float("lineWidth", width_px)
    batch_for_shader(shader, "LINES", {"pos": points, "color": colours}).draw(shader)


def path_colours(known: np.ndarray) -> np.ndarray:
    """Returns (T, 4) float32: green where the start frame has seen half of the view or more, red where nothing."""
    share = np.clip((known - LOST) / (0.5 - LOST), 0.0, 1.0)[:, None]
    colours = np.ones((len(known), 4), np.float32)
    colours[:, :3] = share * KNOWN_COLOUR + (1 - share) * NEW_COLOUR
    return colours


def frustum_lines(path: CameraPath) -> np.ndarray:
    """Returns (16, 3) float32: the start camera's picture frame and the edges to it, as 8 lines."""
    extent = float(np.linalg.norm(np.ptp(path.c2w[:, :3, 3], axis=0)))
    depth = max(extent / 4, 0.5)
    corners = np.array([[0, 0], [path.width, 0], [path.width, path.height], [0, path.height]], np.float64)
    rays = np.concatenate([corners, np.ones((4, 1))], axis=1) @ np.linalg.inv(path.K[0]).T
    origin = path.c2w[0, :3, 3]
    frame = origin + depth * rays @ path.c2w[0, :3, :3].T
    around = [point for side in range(4) for point in (frame[side], frame[(side + 1) % 4])]
    edges = [point for corner in frame for point in (origin, corner)]
    return np.array(around + edges, np.float32)
