# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings a shot into the scene: behind the camera, in the sequencer, in the compositor, and as splats.

In: a shot's folder (frames/, depth/, mask/ with the frame number at the end of each name, splats.ply), finished or not.
Bringing the same folder in again replaces what it brought in before, so that a shot can be shown while it grows. What
the scene renders stays as it was: pictures are shown, not mixed in.
"""

from __future__ import annotations

from pathlib import Path

import bpy

from engine_bridge.job_folder import read_job
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.files import read_splats

from .composite import add_nodes
from .scenes import camera_at, select_alone
from .sequences import (
    DATA,
    LINEAR,
    LINEAR_SUFFIXES,
    PICTURE_SUFFIXES,
    SRGB,
    Sequence,
    add_strip,
    find_sequence,
    show_behind_camera,
)
from .small_steps import Steps, run_through
from .splats import PreparedSplats, bring_splats, prepare_splats
from .stored_paths import mark_source, source_of


def bring_in(context: bpy.types.Context, directory: Path) -> list[str]:
    """Brings in all that the shot's folder holds, with its splats selected; returns what was made, in words.

    Raises:
        WorldWarpError: `missing_file` when the folder holds no results; what is wrong with its splats.
    """
    made = run_through(bring_in_steps(context, directory))
    if (splats := splats_of(context.scene, directory / "splats.ply")) is not None:
        select_alone(context, splats)
    return made


def bring_in_steps(
    context: bpy.types.Context, directory: Path, splats: PreparedSplats | None = None
) -> Steps[list[str]]:
    """Does what `bring_in` does, in small steps, and leaves selected what is.

    Args:
        splats: those of the folder, where they were read already.
    """
    if not directory.is_dir():
        raise WorldWarpError(
            "missing_file",
            f"There is no folder {directory}: it was moved or deleted. Put it back, or bring it in from where it is "
            "now (Import Results).",
        )
    made = []
    if (directory / "frames").is_dir():
        made += yield from bring_in_frames(context, directory)
    if splats is not None or (directory / "splats.ply").is_file():
        thing = yield from bring_in_splats(context, directory / "splats.ply", splats)
        made.append(f'splats "{thing.name}"')
    if not made:
        raise WorldWarpError(
            "missing_file", f"{directory} holds no results: it needs frames/ with numbered pictures, or splats.ply."
        )
    return made


def bring_in_frames(context: bpy.types.Context, directory: Path) -> Steps[list[str]]:
    """Shows the frames delivered so far behind the shot's camera, in the sequencer and in the compositor."""
    frames = find_frames(directory / "frames")
    if frames is None:
        return []
    made = []
    if (camera := camera_of(context.scene, directory, frames.first)) is not None:
        show_behind_camera(camera, frames)
        made.append(f'background of "{camera.name}"')
    yield
    add_strip(context.scene, directory.name, frames)
    made.append("sequencer strip")
    yield
    add_nodes(context.scene, directory, sequences_of(directory, frames))
    made.append("compositor nodes")
    return made


def camera_of(scene: bpy.types.Scene, directory: Path, frame: int) -> bpy.types.Object | None:
    """Returns the camera that the shot in `directory` was filmed with; where the scene has it no more, or the shot does
    not say, the camera that films `frame`, its first.
    """
    try:
        name = read_job(directory).get("camera")
    except WorldWarpError:
        # Pictures of another origin.
        name = None
    camera = scene.objects.get(name) if isinstance(name, str) else None
    return camera if camera is not None and camera.type == "CAMERA" else camera_at(scene, frame)


def find_frames(folder: Path) -> Sequence | None:
    """Returns the pictures of a shot, PNG before other kinds; None where the folder has none."""
    kinds = ((suffix, LINEAR if suffix in LINEAR_SUFFIXES else SRGB) for suffix in PICTURE_SUFFIXES)
    return next((found for kind in kinds if (found := find_sequence(folder, *kind)) is not None), None)


def sequences_of(directory: Path, frames: Sequence) -> dict[str, Sequence]:
    """Returns what a shot's folder has for the compositor: its frames, and its depth and mask where they are there."""
    linear = find_sequence(directory / "frames_exr", ".exr", LINEAR)
    # A take that goes on from one without EXR has none of the earlier frames.
    whole = linear is not None and linear.files.keys() >= frames.files.keys()
    kinds = {
        "Frames": linear if whole else frames,
        "Depth": find_sequence(directory / "depth", ".exr", DATA),
        "Mask": find_sequence(directory / "mask", ".png", DATA),
    }
    return {kind: found for kind, found in kinds.items() if found is not None}


def bring_in_splats(
    context: bpy.types.Context, file: Path, splats: PreparedSplats | None = None
) -> Steps[bpy.types.Object]:
    """Makes an object of the splats of `file`; the object of an earlier state of the file is filled anew."""
    prepared = splats or prepare_splats(read_splats(file))
    earlier = splats_of(context.scene, file)
    made = yield from bring_splats(context, file.parent.name, prepared, earlier)
    mark_source(made, file)
    return made


def splats_of(scene: bpy.types.Scene, file: Path) -> bpy.types.Object | None:
    """Returns the scene's object of the splats in `file`, or None."""
    return next((thing for thing in scene.objects if source_of(thing) == file), None)
