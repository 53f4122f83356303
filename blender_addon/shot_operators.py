# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands around a shot: what it looks like, generate, cancel, and what is said of them.

With a window, Generate renders the start frame and returns; the rest runs beside the artist. In background it does
everything and returns when the shot is whole.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import bpy
from bpy.props import IntProperty, StringProperty

from engine_bridge.errors import disk_errors
from worldwarp_core.errors import WorldWarpError

from . import path_overlay, server_facts, session, splat_viewport
from .advice import in_words
from .look import add_prompt, prompt_markers, prompt_of
from .operators import absolute, reported
from .preferences import connection, server_address
from .preflight import Report, check_shot, with_cost
from .server_facts import ServerFacts, ask
from .shot import ShotSettings, generate_shot, layout_of, prepare_shot, printed
from .takes import add_take, refresh

PLAIN_VIEWS = ("Standard", "Un-tone-mapped")
"""View transforms that show sRGB pictures as they are: Blender's, and that of ACES."""
ANSWER_S = 2.0
"""How long a click on Generate waits for a server that does not answer."""


def told_in_panel(
    execute: Callable[[Any, bpy.types.Context], set[str]],
) -> Callable[[Any, bpy.types.Context], set[str]]:
    """Keeps a fault in the panel: a report is gone with the next one, there it can be read again, and copied."""

    @functools.wraps(execute)
    def wrapped(self: Any, context: bpy.types.Context) -> set[str]:
        session.dismiss_error()
        try:
            return execute(self, context)
        except WorldWarpError as error:
            session.tell_error(in_words(error))
            raise

    return wrapped


class WORLDWARP_OT_preflight(bpy.types.Operator):
    """Look for what will go wrong before anything is sent: cuts, jumps, moves too fast, views that share nothing"""

    bl_idname = "worldwarp.preflight"
    bl_label = "Check Path"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.scene.camera is None:
            cls.poll_message_set("The scene has no camera: add one, or pick one above")
            return False
        return True

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        folder = output_folder(context.scene)
        facts = facts_of_server(context)
        found = check_shot(context, folder, facts)
        path_overlay.show(found)
        session.redraw_viewports()
        if facts is None and not bpy.app.background and not server_facts.known().asking:
            preset = context.scene.worldwarp.preset
            # Whether there is a server to ask is no matter of the path's.
            with suppress(WorldWarpError):
                server_facts.begin(*connection(context), lambda: add_cost(found, preset, folder))
        for finding in found.findings:
            print(f"WorldWarp: {finding.severity.lower()}: {finding.message}", flush=True)
        worst = found.errors or [finding for finding in found.findings if finding.severity == "WARNING"]
        if worst:
            self.report({"WARNING"}, worst[0].message)
        else:
            self.report({"INFO"}, "The path holds together.")
        return {"FINISHED"}


class WORLDWARP_OT_generate(bpy.types.Operator):
    """Render the start frame, send the camera path to the server, and write the shot it makes"""

    bl_idname = "worldwarp.generate"
    bl_label = "Generate"
    # Not to be adjusted afterwards: that would take the shot off the list, and make another.
    bl_options: ClassVar = {"UNDO"}

    directory: StringProperty(
        name="Folder",
        description="Where the shot goes; empty makes a new folder below the scene's output folder",
        subtype="DIR_PATH",
        options={"SKIP_SAVE"},
    )
    address: StringProperty(
        name="Server", description="Empty takes the address of the preferences", options={"SKIP_SAVE"}
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        reason = why_not(context)
        if reason:
            cls.poll_message_set(reason)
        return not reason

    @reported
    @told_in_panel
    def execute(self, context: bpy.types.Context) -> set[str]:
        address, key = connection(context, self.address)
        out = absolute(self.directory) if self.directory else new_folder(context.scene)
        settings = ShotSettings.of(context)
        found = check_shot(context, out.parent, facts_of_server(context))
        path_overlay.show(found)
        if found.errors:
            raise WorldWarpError("preflight", found.errors[0].message)
        check_writable(out)
        if bpy.app.background:
            try:
                outcome = generate_shot(context, out, address, settings, on_event=printed, key=key)
            finally:
                if (out / "job.json").is_file():
                    refresh(add_take(context.scene, out, context.scene.frame_start))
            self.report({"INFO"}, f"{outcome.frames} frames in {out}")
        else:
            # The window waits for this one, as it does for the render after it.
            server_facts.note(ask(address, key, ANSWER_S))
            shot = prepare_shot(context, settings, on_event=lambda _: None)
            splat_viewport.warm_up()
            session.start(shot, address, out, settings.show_results, key, layout_of(context, shot, settings))
        return {"FINISHED"}


class WORLDWARP_OT_cancel(bpy.types.Operator):
    """Stop making the shot; the frames that have arrived stay"""

    bl_idname = "worldwarp.cancel"
    bl_label = "Cancel"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        status = session.status()
        if not status.running:
            cls.poll_message_set("No shot is being made")
        elif status.cancelling:
            cls.poll_message_set("The shot is being cancelled already")
        return status.running and not status.cancelling

    def execute(self, context: bpy.types.Context) -> set[str]:
        session.cancel()
        return {"FINISHED"}


class WORLDWARP_OT_copy_error(bpy.types.Operator):
    """Copy the message to the clipboard"""

    bl_idname = "worldwarp.copy_error"
    bl_label = "Copy"

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.window_manager.clipboard = session.status().error
        return {"FINISHED"}


class WORLDWARP_OT_dismiss_error(bpy.types.Operator):
    """Take the message away"""

    bl_idname = "worldwarp.dismiss_error"
    bl_label = "Dismiss"

    def execute(self, context: bpy.types.Context) -> set[str]:
        session.dismiss_error()
        return {"FINISHED"}


class WORLDWARP_OT_match_view(bpy.types.Operator):
    """Show pictures as they are: the view transform Standard (ACES: Un-tone-mapped), no look, exposure or gamma"""

    bl_idname = "worldwarp.match_view"
    bl_label = "Match View"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        view = context.scene.view_settings
        for name in PLAIN_VIEWS:
            with suppress(TypeError):
                view.view_transform = name
                break
        else:
            raise WorldWarpError(
                "bad_settings",
                "This colour management has no view that shows pictures as they are (Standard, or Un-tone-mapped): "
                "pick the one that comes nearest, under Color Management in the Render properties.",
            )
        view.look, view.exposure, view.gamma = "None", 0.0, 1.0
        return {"FINISHED"}


class WORLDWARP_OT_add_prompt(bpy.types.Operator):
    """Say what is seen from the current frame on: a marker on the timeline, which can be moved and renamed"""

    bl_idname = "worldwarp.add_prompt"
    bl_label = "Add Prompt at This Frame"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    prompt: StringProperty(
        name="Prompt", description="What is seen from this frame on, until the next prompt", options={"SKIP_SAVE"}
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        scene = context.scene
        before = [marker for marker in prompt_markers(scene) if marker.frame <= scene.frame_current]
        self.prompt: str = prompt_of(before[-1]) if before else scene.worldwarp.prompt
        return context.window_manager.invoke_props_dialog(self, width=500)

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        if not self.prompt.strip():
            raise WorldWarpError("bad_settings", "The prompt is empty: say what is seen from this frame on.")
        add_prompt(context.scene, context.scene.frame_current, self.prompt.strip())
        return {"FINISHED"}


class WORLDWARP_OT_go_to_frame(bpy.types.Operator):
    """Go to this frame"""

    bl_idname = "worldwarp.go_to_frame"
    bl_label = "Go to Frame"
    bl_options: ClassVar = {"INTERNAL"}

    frame: IntProperty(name="Frame")

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.frame_set(self.frame)
        return {"FINISHED"}


class WORLDWARP_OT_set_preset(bpy.types.Operator):
    """Make the next shot with this preset"""

    bl_idname = "worldwarp.set_preset"
    bl_label = "Preset"
    bl_options: ClassVar = {"INTERNAL", "UNDO"}

    name: StringProperty(name="Name")

    def execute(self, context: bpy.types.Context) -> set[str]:
        context.scene.worldwarp.preset = self.name
        return {"FINISHED"}


CLASSES = (
    WORLDWARP_OT_preflight,
    WORLDWARP_OT_add_prompt,
    WORLDWARP_OT_go_to_frame,
    WORLDWARP_OT_set_preset,
    WORLDWARP_OT_generate,
    WORLDWARP_OT_cancel,
    WORLDWARP_OT_copy_error,
    WORLDWARP_OT_dismiss_error,
    WORLDWARP_OT_match_view,
)


def why_not(context: bpy.types.Context, first_frame: bool = True) -> str:
    """Returns why no shot can be generated now, or nothing; only what can be told without evaluating the scene.

    Args:
        first_frame: whether the shot begins as Start Frame says, not with an earlier take's frame.
    """
    scene = context.scene
    if session.status().running:
        return "A shot is being made already: cancel it, or wait until it is done"
    if scene.camera is None:
        return "The scene has no camera: add one, or pick one above"
    if scene.camera.type != "CAMERA" or scene.camera.data.type != "PERSP":
        return f'"{scene.camera.name}" is no perspective camera: change its type in the camera properties'
    if scene.frame_end < scene.frame_start:
        return "The frame range is empty: set an end frame after the start frame"
    if first_frame and scene.worldwarp.start_image is None:
        if scene.worldwarp.start_source == "IMAGE":
            return "The shot should begin with an image: pick one under Start Frame"
        if scene.worldwarp.start_source == "TEXT":
            return "The shot should begin with a picture from words: draw one under Start Frame"
    return ""


def why_not_here(scene: bpy.types.Scene) -> str:
    """Returns why shots cannot go where the scene says, or nothing; a script may name another folder."""
    if not scene.worldwarp.directory.strip():
        return "Set an Output folder: every shot gets a folder of its own in there"
    if scene.worldwarp.directory.startswith("//") and not bpy.data.filepath:
        return "Save the file first: shots go into a folder beside it. Or set another Output"
    return ""


def add_cost(found: Report, preset: str, folder: Path | None) -> None:
    """Adds to what was found what the server, which was asked meanwhile, says of the cost."""
    facts = server_facts.known().facts
    if facts is not None and path_overlay.report() is found:
        path_overlay.show(with_cost(found, preset, facts, folder))
    session.redraw()


def facts_of_server(context: bpy.types.Context) -> ServerFacts | None:
    """Returns what the connected server says of itself; None where it was not asked yet."""
    return server_facts.facts_at(server_address(context))


def output_folder(scene: bpy.types.Scene) -> Path | None:
    """Returns the folder that the scene's shots go into, or None where it is not known yet."""
    return None if why_not_here(scene) else absolute(scene.worldwarp.directory)


def new_folder(scene: bpy.types.Scene) -> Path:
    """Returns a folder that does not exist yet, below the scene's output folder: shot_001, shot_002, ...

    Raises:
        WorldWarpError: `no_output` without such a folder, or beside a file that was never saved.
    """
    if reason := why_not_here(scene):
        raise WorldWarpError("no_output", f"{reason}.")
    below = absolute(scene.worldwarp.directory)
    return next(folder for number in range(1, 1_000_000) if not (folder := below / f"shot_{number:03d}").exists())


def check_writable(out: Path) -> None:
    """Raises `cannot_write` or `disk_full` where no folder `out` can be made: before anything is rendered for it."""
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
