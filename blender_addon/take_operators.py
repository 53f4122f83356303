# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands around takes: go on with one, make another from frame N, show, find, remove."""

from __future__ import annotations

from typing import ClassVar

import bpy
from bpy.props import BoolProperty, IntProperty, StringProperty

from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.errors import WorldWarpError

from . import session
from .operators import absolute, reported
from .preferences import connection
from .shot import ShotSettings, Stop, layout_of, measured, printed, resume_shot, run_shot, with_layout
from .shot_operators import check_writable, new_folder, output_folder, told_in_panel, why_not
from .splice import prepare_splice
from .takes import (
    RESUMABLE,
    WORLDWARP_PG_take,
    active_take,
    add_take,
    earlier_take,
    find_more,
    flip_takes,
    folder_of,
    refresh,
    remove_take,
    show_take,
)


def why_not_take(context: bpy.types.Context) -> str:
    """Returns why nothing can be done with a take now, or nothing."""
    if session.status().running:
        return "A shot is being made already: cancel it, or wait until it is done"
    return "" if active_take(context.scene) is not None else "No take is selected in the list below"


def take_in_front(context: bpy.types.Context) -> WORLDWARP_PG_take:
    """Returns the selected take.

    Raises:
        WorldWarpError: `no_take`.
    """
    take = active_take(context.scene)
    if take is None:
        raise WorldWarpError("no_take", "No take is selected: pick one in the list, or find those on disk.")
    return take


def go_on(operator: bpy.types.Operator, context: bpy.types.Context, take: WORLDWARP_PG_take, address: str) -> set[str]:
    """Takes the shot of `take` up again, beside the artist; in background it returns when the shot has ended.

    Raises:
        WorldWarpError: `missing_file` without the take's folder, and what stands in the way of going on.
    """
    address, key = connection(context, address)
    out, show = folder_of(take), context.scene.worldwarp.show_results
    if not out.is_dir():
        raise WorldWarpError(
            "missing_file",
            f'The folder of "{take.name}", {out}, was moved or deleted. Put it back; or set Output to the folder that '
            "it lies in now, and find takes there.",
        )
    if not bpy.app.background:
        session.resume(out, address, show, read_cameras(out / "cameras.json").frames.tolist(), key)
        return {"FINISHED"}
    try:
        resume_shot(out, address, printed, Stop(), key)
    finally:
        refresh(take)
        if show and take.frames_done:
            show_take(context, take)
    operator.report({"INFO"}, f"{take.frames_done} of {take.frames} frames in {out}")
    return {"FINISHED"}


class WORLDWARP_OT_resume(bpy.types.Operator):
    """Go on with the selected take: fetch what the server made meanwhile, and have it make the rest"""

    bl_idname = "worldwarp.resume"
    bl_label = "Resume"
    bl_options: ClassVar = {"REGISTER"}

    address: StringProperty(
        name="Server", description="Empty takes the address of the preferences", options={"SKIP_SAVE"}
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        reason = why_not_take(context)
        take = active_take(context.scene)
        if not reason and take is not None:
            if not take.job_id:
                reason = f'Of "{take.name}" no shot is known: look for it again with Find Takes, beside the list'
            elif take.state not in RESUMABLE:
                reason = f'"{take.name}" is whole: there is nothing to go on with'
        if reason:
            cls.poll_message_set(reason)
        return not reason

    @reported
    @told_in_panel
    def execute(self, context: bpy.types.Context) -> set[str]:
        return go_on(self, context, take_in_front(context), self.address)


class WORLDWARP_OT_fetch_take(bpy.types.Operator):
    """Fetch what the server made of this take while Blender was elsewhere, and have it make the rest"""

    bl_idname = "worldwarp.fetch_take"
    bl_label = "Fetch"
    bl_options: ClassVar = {"INTERNAL"}

    index: IntProperty(name="Take", default=-1, options={"SKIP_SAVE"})
    address: StringProperty(name="Server", options={"SKIP_SAVE"})

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if session.status().running:
            cls.poll_message_set("A shot is being made already: cancel it, or wait until it is done")
        return not session.status().running

    @reported
    @told_in_panel
    def execute(self, context: bpy.types.Context) -> set[str]:
        group = context.scene.worldwarp
        if not 0 <= self.index < len(group.takes):
            raise WorldWarpError("no_take", "There is no such take: pick one in the list, or find those on disk.")
        group.active_take = self.index
        return go_on(self, context, take_in_front(context), self.address)


class WORLDWARP_OT_regenerate(bpy.types.Operator):
    """Make another take that keeps the selected one up to a frame, and goes on from there as the scene is now"""

    bl_idname = "worldwarp.regenerate"
    bl_label = "Regenerate From Frame"
    bl_description = (
        "Make another take: keep the selected one up to this frame, and go on from there with the prompt, seed and "
        "camera as they are now. It starts from that frame's picture and depth, so its splat world begins there"
    )
    # As with Generate.
    bl_options: ClassVar = {"UNDO"}

    frame: IntProperty(name="From Frame", description="The last frame to keep as it is", options={"SKIP_SAVE"})
    directory: StringProperty(
        name="Folder",
        description="Where the new take goes; empty makes a new folder below the scene's output folder",
        subtype="DIR_PATH",
        options={"SKIP_SAVE"},
    )
    address: StringProperty(
        name="Server", description="Empty takes the address of the preferences", options={"SKIP_SAVE"}
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        reason = why_not(context, first_frame=False) or why_not_take(context)
        if reason:
            cls.poll_message_set(reason)
        return not reason

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        self.frame: int = context.scene.frame_current
        return context.window_manager.invoke_props_dialog(self, width=420)

    def draw(self, context: bpy.types.Context) -> None:
        group, layout = context.scene.worldwarp, self.layout
        layout.use_property_split = True
        layout.prop(self, "frame")
        layout.prop(group, "prompt")
        layout.prop(group, "seed")
        layout.label(text="Earlier frames are kept. The new take's splat world begins at this frame.", icon="INFO")

    @reported
    @told_in_panel
    def execute(self, context: bpy.types.Context) -> set[str]:
        scene, earlier = context.scene, folder_of(take_in_front(context))
        address, key = connection(context, self.address)
        settings = ShotSettings.of(context, first_frame=False)
        shot = prepare_splice(context, settings, earlier, self.frame)
        out = absolute(self.directory) if self.directory else new_folder(scene)
        check_writable(out)
        layout = layout_of(context, shot, settings)
        if not bpy.app.background:
            session.start(shot, address, out, settings.show_results, key, layout)
            return {"FINISHED"}
        if layout is not None:
            shot = with_layout(shot, measured(layout, printed))
        try:
            run_shot(shot, out, address, printed, Stop(), key)
        finally:
            take = add_take(scene, out, self.frame, earlier.name)
            refresh(take)
            if settings.show_results and take.frames_done:
                show_take(context, take)
        self.report({"INFO"}, f"{take.frames_done} new frames in {out}")
        return {"FINISHED"}


class WORLDWARP_OT_show_take(bpy.types.Operator):
    """Show this take in the camera, the sequencer and the scene, in place of the one shown now"""

    bl_idname = "worldwarp.show_take"
    bl_label = "Show Take"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    index: IntProperty(name="Take", default=-1, options={"SKIP_SAVE"})

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        group = context.scene.worldwarp
        if 0 <= self.index < len(group.takes):
            group.active_take = self.index
        take = take_in_front(context)
        refresh(take)
        made = show_take(context, take)
        self.report({"INFO"}, f"{take.name}: {', '.join(made)}")
        return {"FINISHED"}


class WORLDWARP_OT_flip_takes(bpy.types.Operator):
    """Flip between the two takes that were shown last, to compare them: press it again to come back"""

    bl_idname = "worldwarp.flip_takes"
    bl_label = "Flip Takes"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if earlier_take(context.scene) is None:
            cls.poll_message_set(
                "Only one take was shown yet: show another, by the eye beside its name, to flip between"
            )
            return False
        return True

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        take = flip_takes(context)
        assert take is not None
        self.report({"INFO"}, f"Shown: {take.name}")
        return {"FINISHED"}


class WORLDWARP_OT_find_takes(bpy.types.Operator):
    """List the scene's takes that lie in the output folder, and look again how far each is"""

    bl_idname = "worldwarp.find_takes"
    bl_label = "Find Takes"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        below = output_folder(context.scene)
        if below is None or not below.is_dir():
            raise WorldWarpError("missing_file", "There is no output folder yet: set one under Generate.")
        self.report({"INFO"}, f"{find_more(context.scene, below)} more takes found")
        return {"FINISHED"}


class WORLDWARP_OT_remove_take(bpy.types.Operator):
    """Take the selected take off the list and out of the scene; its files stay unless you say otherwise"""

    bl_idname = "worldwarp.remove_take"
    bl_label = "Remove Take"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    delete_files: BoolProperty(
        name="Delete Its Files Too",
        description="Delete the folder with its frames, depth and world from the disk. This cannot be undone",
        default=False,
        options={"SKIP_SAVE"},
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        take = active_take(context.scene)
        if take is None:
            cls.poll_message_set("No take is selected in the list below")
        elif folder_of(take) == session.running_folder():
            cls.poll_message_set("This take is being made: cancel it first")
            return False
        return take is not None

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self)

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        remove_take(context.scene, take_in_front(context), self.delete_files)
        return {"FINISHED"}


CLASSES = (
    WORLDWARP_OT_resume,
    WORLDWARP_OT_fetch_take,
    WORLDWARP_OT_regenerate,
    WORLDWARP_OT_show_take,
    WORLDWARP_OT_flip_takes,
    WORLDWARP_OT_find_takes,
    WORLDWARP_OT_remove_take,
)


@bpy.app.handlers.persistent
def look_at_takes(*_: object) -> None:
    """Brings every take of a file that was just opened up to date with its folder: no server is asked."""
    for scene in bpy.data.scenes:
        for take in scene.worldwarp.takes:
            refresh(take)
