# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes: every generated shot of a scene, kept beside the others, named, switched between and removed.

A take is a job and its folder; the list is saved with the file, and job.json in the folder has the last word on how far
it is. Showing a take hides what other takes brought into the scene; nothing of theirs is deleted.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import bpy
from bpy.props import IntProperty, StringProperty

from engine_bridge.job_folder import read_job
from worldwarp_core.errors import WorldWarpError

from .composite import follow, leave, nodes_of
from .image_editors import show_at_timeline
from .results import bring_in_steps
from .sequences import SRGB, find_sequence, settle
from .small_steps import Steps, run_through
from .splats import PreparedSplats, sky_of
from .stored_paths import resolved_path, source_of, stored_path, strips_of

UNFINISHED = ("queued", "running")
RESUMABLE = (*UNFINISHED, "failed", "cancelled")


def _renamed(take: WORLDWARP_PG_take, context: bpy.types.Context) -> None:
    """Has everything that the take brought into its scene follow its new name; a take without one gets its first."""
    if not take.name:
        take.name = name_of(folder_of(take))
    elif take.directory:
        rename_things(take.id_data, take)


class WORLDWARP_PG_take(bpy.types.PropertyGroup):
    """One generated shot"""

    name: StringProperty(name="Name", description="What the take is called", update=_renamed)
    named: StringProperty(
        name="Named", description="How the names of what the take brought in begin; empty: as its folder"
    )
    directory: StringProperty(name="Folder", description="Where this take's frames and its world lie")
    job_id: StringProperty(name="Job", description="What the server calls this take")
    state: StringProperty(name="State", description="How far the take is, as its folder says")
    message: StringProperty(name="Message", description="Why the take ended early")
    first_frame: IntProperty(name="From", description="The first frame that was made for this take")
    frames: IntProperty(name="Frames", description="How many frames were asked for")
    frames_done: IntProperty(name="Frames Done", description="How many frames are on disk")
    based_on: StringProperty(name="Based On", description="The take that the frames before are from")


CLASSES = (WORLDWARP_PG_take,)


def add_take(scene: bpy.types.Scene, out: Path, first_frame: int, based_on: str = "") -> WORLDWARP_PG_take:
    """Returns the scene's take of the folder `out`, made the active one; the existing one where it is listed."""
    group = scene.worldwarp
    take = find_take(scene, out)
    if take is None:
        take = group.takes.add()
        take.name = name_of(out)
        take.directory = stored_path(out)
        take.state, take.first_frame, take.based_on = "queued", first_frame, based_on
    group.active_take = list(group.takes).index(take)
    return take


def name_of(folder: Path) -> str:
    """Returns what a take is called until the artist calls it something else."""
    return folder.name.replace("_", " ").capitalize()


def find_take(scene: bpy.types.Scene, out: Path) -> WORLDWARP_PG_take | None:
    """Returns the scene's take of the folder `out`, or None."""
    return next((take for take in scene.worldwarp.takes if folder_of(take) == out), None)


def active_take(scene: bpy.types.Scene) -> WORLDWARP_PG_take | None:
    """Returns the take that is selected in the list, or None."""
    group = scene.worldwarp
    return group.takes[group.active_take] if 0 <= group.active_take < len(group.takes) else None


def folder_of(take: WORLDWARP_PG_take) -> Path:
    """Returns the take's folder."""
    return resolved_path(take.directory)


def refresh(take: WORLDWARP_PG_take) -> None:
    """Brings the take up to date with its folder; a folder without a job leaves it as it is."""
    try:
        job = read_job(folder_of(take))
        state, message = str(job["state"]), str(job["message"])
        job_id, asked, written = str(job["job_id"]), int(job["frames"]["asked"]), int(job["frames"]["written"])
        take.frames, take.frames_done = asked, written
    except (WorldWarpError, KeyError, TypeError, ValueError, OverflowError):
        return
    take.job_id, take.state, take.message = job_id, state, message


def was_left(take: WORLDWARP_PG_take) -> bool:
    """Returns whether the take was sent, and has not ended as far as is known: the server may have gone on with it."""
    return take.state in UNFINISHED and bool(take.job_id)


def drop_unsent(scene: bpy.types.Scene, out: Path) -> None:
    """Takes the take of the folder `out` off the list if nothing was ever sent: it has no job to go on with."""
    take = find_take(scene, out)
    if take is not None and not take.job_id and not (out / "job.json").is_file():
        _off_the_list(scene, take)


def find_more(scene: bpy.types.Scene, below: Path) -> int:
    """Lists the scene's shots in the folder `below` that are not listed yet, and refreshes all; returns how many."""
    found = 0
    for file in sorted(below.glob("*/job.json")):
        if find_take(scene, file.parent) is not None:
            continue
        try:
            job = read_job(file.parent)
            first, made_in = int(job["frames"]["first"]), job.get("scene", scene.name)
            if made_in == scene.name:
                add_take(scene, file.parent, first)
                found += 1
        except (WorldWarpError, KeyError, TypeError, ValueError, OverflowError):
            continue
    for take in scene.worldwarp.takes:
        refresh(take)
    return found


def show_take(context: bpy.types.Context, take: WORLDWARP_PG_take) -> list[str]:
    """Brings the take into the scene, in place of the others; returns what was brought in, in words.

    Raises:
        WorldWarpError: `missing_file` when its folder holds no results.
    """
    return run_through(show_take_in_steps(context, folder_of(take)))


def show_take_in_steps(
    context: bpy.types.Context, folder: Path, splats: PreparedSplats | None = None
) -> Steps[list[str]]:
    """Does what `show_take` does with the take in `folder`, in small steps.

    Args:
        splats: the take's, where they were read already.
    """
    made = yield from bring_in_steps(context, folder, splats)
    yield
    _put_in_front(context, folder)
    # Between two steps the list may have changed, and Blender moved what is in it.
    take = find_take(context.scene, folder)
    if take is not None and take.named:
        rename_things(context.scene, take)
    return made


def rename_things(scene: bpy.types.Scene, take: WORLDWARP_PG_take) -> None:
    """Gives all that the take brought into the scene its name; what the artist renamed by hand is left alone."""
    folder = folder_of(take)
    before = sorted({take.named, folder.name} - {""}, key=len, reverse=True)

    def renamed(name: str) -> str:
        old = next((old for old in before if name.startswith(old)), None)
        return name if old is None else take.name + name.removeprefix(old)

    for thing in things_of(scene, folder):
        owner = thing.image if isinstance(thing, bpy.types.CameraBackgroundImage) else thing
        settle(owner, name=renamed(owner.name))
        for sky in sky_of(owner) if isinstance(owner, bpy.types.Object) else ():
            settle(sky, name=renamed(sky.name))
    for node in nodes_of(scene, folder):
        settle(node, label=renamed(node.label))
    take.named = take.name


def earlier_take(scene: bpy.types.Scene) -> WORLDWARP_PG_take | None:
    """Returns the take that was shown before the one that is shown, or None."""
    stored = scene.worldwarp.earlier_take
    return find_take(scene, resolved_path(stored)) if stored else None


def flip_takes(context: bpy.types.Context) -> WORLDWARP_PG_take | None:
    """Shows the take that was shown before, in place of the one shown now; returns it, None where there is none.

    Both were brought in, so it takes no longer than a glance: call it again and again to compare them.
    """
    scene = context.scene
    other = earlier_take(scene)
    if other is None:
        return None
    folder = folder_of(other)
    if not things_of(scene, folder):
        show_take(context, other)
        return other
    _put_in_front(context, folder)
    return other


def _put_in_front(context: bpy.types.Context, folder: Path) -> None:
    """Shows what the take in `folder` has brought in, and hides what others have."""
    scene, group = context.scene, context.scene.worldwarp
    for other in group.takes:
        set_visible(scene, folder_of(other), folder_of(other) == folder)
    follow(scene, context.view_layer, folder)
    take = find_take(scene, folder)
    shown = take.directory if take is not None else ""
    if shown != group.shown_take:
        group.earlier_take, group.shown_take = group.shown_take, shown
    if (frames := find_sequence(folder / "frames", ".png", SRGB)) is not None:
        show_at_timeline(frames)


def set_visible(scene: bpy.types.Scene, folder: Path, visible: bool) -> None:
    """Shows or hides what the shot in `folder` brought into the scene."""
    for thing in things_of(scene, folder):
        if isinstance(thing, bpy.types.CameraBackgroundImage):
            thing.show_background_image = visible
        elif isinstance(thing, bpy.types.Object):
            thing.hide_viewport = thing.hide_render = not visible
        else:
            thing.mute = not visible


def things_of(scene: bpy.types.Scene, folder: Path) -> list[Any]:
    """Returns the camera backgrounds, sequencer strips and objects that show the shot in `folder`."""

    def is_of(owner: Any) -> bool:
        source = source_of(owner)
        return source is not None and (source == folder or folder in source.parents)

    cameras = {thing.data for thing in scene.objects if thing.type == "CAMERA"}
    found: list[Any] = [shown for camera in cameras for shown in camera.background_images if is_of(shown.image)]
    found += [strip for strip in strips_of(scene) if is_of(strip)]
    return found + [thing for thing in scene.objects if is_of(thing)]


def remove_take(scene: bpy.types.Scene, take: WORLDWARP_PG_take, delete_files: bool) -> None:
    """Takes the take off the list and hides what it brought in.

    Args:
        delete_files: its folder too, but only one that holds this very job.

    Raises:
        WorldWarpError: `no_job` when files should go and the folder holds another job, or none.
    """
    folder = folder_of(take)
    if delete_files:
        if read_job(folder)["job_id"] != take.job_id:
            raise WorldWarpError("no_job", f"{folder} holds another shot than this take: nothing was deleted.")
        shutil.rmtree(folder)
    set_visible(scene, folder, False)
    leave(scene, folder)
    _off_the_list(scene, take)


def _off_the_list(scene: bpy.types.Scene, take: WORLDWARP_PG_take) -> None:
    group = scene.worldwarp
    index = list(group.takes).index(take)
    group.takes.remove(index)
    # The selection stays on the take that it was on.
    group.active_take = min(group.active_take - (index < group.active_take), len(group.takes) - 1)
