# SPDX-License-Identifier: GPL-3.0-or-later
"""Another take from frame N on: what came before is kept, what follows is made anew from there.

    earlier take     frames 1 ... N ... end
    new take         frames 1 ... N-1 copied, N the start frame with the earlier world's depth, N+1 ... end made

The server begins at frame N as at any start frame: its world is built anew from what that frame shows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np

from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.cameras.path import CameraPath, vector_from_rotation
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import BACKGROUND_DEPTH

from .camera_export import export_camera_path, scene_frames
from .pictures import stored_pixels
from .sequences import DATA, find_sequence, set_colorspace
from .shot import PreparedShot, ShotSettings, shot_of
from .start_frame import StartFrame, read_picture

MAX_TURN_DEG = 0.2
MAX_SHIFT = 2e-3
"""Of the distance to what frame N shows: the picture and its depth must be of the camera that films now."""
MAX_ZOOM = 2e-3


def prepare_splice(context: bpy.types.Context, settings: ShotSettings, take: Path, number: int) -> PreparedShot:
    """Returns the shot that goes on from frame `number` of the one in `take`, as the scene is now.

    Raises:
        WorldWarpError: `missing_file`, `bad_splice`, or what cannot be exported or sent.
    """
    start = frame_of(take, number)
    assert start.depth is not None
    seen = start.depth[start.depth < 0.99 * BACKGROUND_DEPTH]
    cameras = cameras_from(context, take, number, float(np.median(seen)) if len(seen) else 1.0)
    # The depth is the world's own, in scene units: no distance need be told.
    shot = shot_of(context, cameras, start, replace(settings, scene_scale=None))
    records = {**shot.records, "take": {"based_on": take.name, "from_frame": number}}
    return replace(shot, records=records, goes_on_from=take)


def frame_of(take: Path, number: int) -> StartFrame:
    """Returns frame `number` of the shot in `take` as a start frame, with the depth of its world.

    Raises:
        WorldWarpError: `missing_file` when the take has no such frame.
    """
    picture, depth = (
        find_sequence(take / kind, suffix, DATA) for kind, suffix in (("frames", ".png"), ("depth", ".exr"))
    )
    files = [found.files[number] for found in (picture, depth) if found is not None and number in found.files]
    if len(files) < 2:
        first = f"{picture.first} to {picture.last}" if picture is not None else "none"
        raise WorldWarpError(
            "missing_file", f"The take in {take} has no frame {number} with its depth: it has frames {first}."
        )
    return StartFrame(number, read_picture(files[0]), read_world_depth(files[1]), {"from_take": take.name})


def read_world_depth(path: Path) -> np.ndarray:
    """Returns (H, W) float32 planar z as a shot's folder holds it, through Blender's own image loader."""
    image = bpy.data.images.load(str(path))
    try:
        set_colorspace(image, DATA)
        depth = np.ascontiguousarray(stored_pixels(image)[..., 0])
    finally:
        bpy.data.images.remove(image)
    # What is not a place in front of the camera is nothing.
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(BACKGROUND_DEPTH))


def cameras_from(context: bpy.types.Context, take: Path, number: int, distance: float) -> CameraPath:
    """Returns the scene's cameras from frame `number` on, which must film that frame as the take's did.

    Args:
        distance: to what that frame shows, in scene units.

    Raises:
        WorldWarpError: `bad_splice`, or what `export_camera_path` raises.
    """
    scene = context.scene
    later = [frame for frame in scene_frames(scene) if frame >= number]
    if not later or later[0] != number:
        raise WorldWarpError(
            "bad_splice", f"Frame {number} is no frame of the scene's range: go to one between its start and end."
        )
    cameras = export_camera_path(context, later)
    # Of the frames that were made for the take; those before it are an earlier one's.
    earlier = read_cameras(take / "cameras.json")
    if (earlier.width, earlier.height) != (cameras.width, cameras.height):
        raise WorldWarpError(
            "bad_splice",
            f"The take is {earlier.width} x {earlier.height} and the scene {cameras.width} x {cameras.height}: frames "
            "before and after would differ in size. Set the resolution back, or generate the whole shot.",
        )
    at = np.flatnonzero(earlier.frames == number)
    if len(at) == 0:
        raise WorldWarpError(
            "bad_splice",
            f"Frame {number} was not made for this take, which begins at frame {earlier.frames[0]}: begin there or "
            "later, or pick the take that it is based on.",
        )
    return check_same_view(earlier[int(at[0])], cameras, distance)


def check_same_view(earlier: CameraPath, cameras: CameraPath, distance: float) -> CameraPath:
    """Returns `cameras`, of which the first films as `earlier`'s only one does what is at `distance`.

    Raises:
        WorldWarpError: `bad_splice` where it was moved, turned or zoomed.
    """
    turn = vector_from_rotation(earlier.c2w[0, :3, :3].T @ cameras.c2w[0, :3, :3])
    shift = float(np.linalg.norm(earlier.c2w[0, :3, 3] - cameras.c2w[0, :3, 3]))
    before, now = (np.diagonal(path.K[0])[:2] for path in (earlier, cameras))
    zoom = float(np.abs(now / before - 1).max())
    changes = [
        words
        for words, changed in (
            ("turned", np.degrees(np.linalg.norm(turn)) > MAX_TURN_DEG),
            ("moved", shift > MAX_SHIFT * distance),
            ("zoomed", zoom > MAX_ZOOM),
        )
        if changed
    ]
    if changes:
        number = int(cameras.frames[0])
        raise WorldWarpError(
            "bad_splice",
            f"At frame {number} the camera was {' and '.join(changes)} since the take was made, so its picture does "
            "not fit. Change the camera after that frame only, or begin at an earlier one.",
        )
    return cameras
