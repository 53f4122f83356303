# SPDX-License-Identifier: GPL-3.0-or-later
"""The WorldWarp tab of the 3D viewport's sidebar, top to bottom in the order of the work: shot, start frame, look,
generate, results.

Drawing only reads: no file is touched, no camera evaluated, nothing sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import bpy

from engine_bridge.stages import stage_in_words
from worldwarp_core.errors import WorldWarpError

from . import first_frame, live_view, path_overlay, server_facts, session
from .camera_export import render_size, scene_frames
from .look import prompt_markers, prompt_of
from .preferences import server_address
from .preflight import Report
from .properties import WORLDWARP_PG_shot
from .shot_operators import PLAIN_VIEWS, why_not, why_not_here
from .takes import WORLDWARP_PG_take, active_take, earlier_take, folder_of, was_left
from .words import duration_in_words, shortened


class WorldWarpPanel:
    """What all panels of the tab share."""

    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "WorldWarp"


class WORLDWARP_PT_shot(WorldWarpPanel, bpy.types.Panel):
    """The camera and the frames that the shot is made of"""

    bl_idname = "WORLDWARP_PT_shot"
    bl_label = "Shot"

    def draw(self, context: bpy.types.Context) -> None:
        scene, layout = context.scene, split(self.layout)
        column = layout.column(align=True)
        column.prop(scene, "camera", text="Camera")
        column.prop(scene, "frame_start", text="Frames")
        column.prop(scene, "frame_end", text="To")
        column.label(text=shot_in_words(scene))
        layout.operator("worldwarp.preflight", icon="VIEWZOOM")
        draw_report(layout, scene, path_overlay.report())


def draw_report(layout: bpy.types.UILayout, scene: bpy.types.Scene, report: Report | None) -> None:
    """Draws what the check of the path has found, each with a way to its frame."""
    if report is None or report.scene != scene.name:
        return
    for finding in report.findings:
        box = layout.box()
        icon = "INFO" if finding.severity == "INFO" else "ERROR"
        draw_text(box.column(align=True), finding.message, icon)
        if finding.frame is not None:
            box.operator("worldwarp.go_to_frame", text=f"Frame {finding.frame}", icon="TIME").frame = finding.frame
    if not report.errors and not report.marked:
        layout.label(text="The path holds together.", icon="CHECKMARK")
    if report.path is not None:
        layout.prop(scene.worldwarp, "show_path")


class WORLDWARP_PT_start(WorldWarpPanel, bpy.types.Panel):
    """The picture that everything else is made to match"""

    bl_idname = "WORLDWARP_PT_start"
    bl_label = "Start Frame"

    def draw(self, context: bpy.types.Context) -> None:
        group, layout = context.scene.worldwarp, split(self.layout)
        layout.row().prop(group, "start_source", expand=True)
        if group.start_source == "RENDER":
            layout.prop(group, "samples")
        else:
            if group.start_source == "TEXT":
                draw_from_words(layout, context.scene)
            layout.template_ID(group, "start_image", open="image.open", text="Image")
        draw_layout(layout, group)
        if group.start_source == "RENDER" or group.keep_layout != "OFF":
            return
        layout.template_ID(group, "start_depth", open="image.open", text="Depth Map")
        if group.start_depth is not None:
            layout.prop(group, "depth_kind")
        layout.prop(group, "scene_scale", text="Distance" if group.start_depth is None else "Distance of Point")
        row = layout.row(align=True)
        row.operator("worldwarp.pick_point", icon="EYEDROPPER")
        row.operator("worldwarp.match_object", icon="OBJECT_DATA")
        row = layout.row(align=True)
        row.operator("worldwarp.show_cloud", icon="POINTCLOUD_DATA")
        row.prop(group, "show_cloud", text="", icon="HIDE_OFF" if group.show_cloud else "HIDE_ON")


def draw_from_words(layout: bpy.types.UILayout, scene: bpy.types.Scene) -> None:
    """Draws the words and the seed of a first frame, the button that has it drawn, and how that is going."""
    group, drawing = scene.worldwarp, first_frame.drawing()
    column = layout.column()
    column.use_property_split = False
    column.prop(group, "first_prompt", text="", icon="GREASEPENCIL", placeholder="As the shot's prompt")
    layout.prop(group, "first_seed")
    if drawing.running:
        left = f", {duration_in_words(drawing.eta_s)} left" if drawing.eta_s is not None else ""
        layout.progress(factor=drawing.fraction, text=f"{stage_in_words(drawing.stage, of_picture=True)}{left}")
        text = "Cancelling..." if drawing.cancelling else "Cancel"
        layout.operator("worldwarp.cancel_first_frame", text=text, icon="X")
        return
    row = layout.row(align=True)
    row.operator("worldwarp.draw_first_frame", icon="BRUSH_DATA")
    if group.start_image is not None and first_frame.SEED in group.start_image:
        row.operator("worldwarp.draw_first_frame", text="Another", icon="FILE_REFRESH").another = True
        layout.label(text=f"Drawn with seed {group.start_image[first_frame.SEED]}", icon="CHECKMARK")


def draw_layout(layout: bpy.types.UILayout, group: WORLDWARP_PG_shot) -> None:
    """Draws how much of the scene's shapes is kept, and what is left out of it."""
    layout.prop(group, "keep_layout")
    if group.keep_layout == "PATH" or (group.keep_layout == "START" and group.start_source != "RENDER"):
        layout.prop(group, "leave_out")


class WORLDWARP_PT_look(WorldWarpPanel, bpy.types.Panel):
    """What the world should look like"""

    bl_idname = "WORLDWARP_PT_look"
    bl_label = "Look"

    def draw(self, context: bpy.types.Context) -> None:
        group, layout = context.scene.worldwarp, split(self.layout)
        column = layout.column()
        column.use_property_split = False
        column.prop(group, "prompt", text="", icon="GREASEPENCIL", placeholder="What the world looks like")
        column.prop(group, "negative_prompt", text="", icon="CANCEL", placeholder="What should not appear")
        draw_timeline_prompts(layout, context.scene)
        draw_strength(layout, context)
        layout.template_ID(group, "strength_mask", new="image.new", open="image.open", text="Strength Mask")
        if group.strength_mask is not None:
            layout.prop(group, "strength_mask_amount")
        layout.template_ID(group, "style_image", open="image.open", text="Style")
        draw_preset(layout, context)
        layout.prop(group, "seed")


def draw_timeline_prompts(layout: bpy.types.UILayout, scene: bpy.types.Scene) -> None:
    """Draws the prompts of later frames, each with a way to its frame, and the button that makes one."""
    column = layout.column(align=True)
    for marker in prompt_markers(scene):
        row = column.row(align=True)
        row.operator("worldwarp.go_to_frame", text=str(marker.frame), icon="MARKER_HLT").frame = marker.frame
        row.label(text=shortened(prompt_of(marker)) or "(says nothing)")
    column.operator("worldwarp.add_prompt", icon="MARKER")


def draw_strength(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Draws whose choice the strength is: the artist's with a slider, or the server's, greyed, with what it takes."""
    group = context.scene.worldwarp
    row = layout.row(heading="Strength")
    row.prop(group, "own_strength", text="")
    value = row.row()
    value.enabled = group.own_strength
    value.prop(group, "strength" if group.own_strength else "server_strength", text="")


def draw_preset(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Draws the choice among the server's presets; before it was asked, the button that asks."""
    group = context.scene.worldwarp
    row = layout.row(align=True)
    row.prop(group, "preset", placeholder="Server's choice")
    if server_facts.presets_at(server_address(context)):
        row.menu("WORLDWARP_MT_preset", text="", icon="DOWNARROW_HLT")
    else:
        row.operator("worldwarp.test_connection", text="", icon="FILE_REFRESH")


class WORLDWARP_MT_preset(bpy.types.Menu):
    """The presets of the connected server"""

    bl_idname = "WORLDWARP_MT_preset"
    bl_label = "Preset"

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.operator("worldwarp.set_preset", text="The Server's Choice").name = ""
        for name in server_facts.presets_at(server_address(context)):
            self.layout.operator("worldwarp.set_preset", text=name).name = name


class WORLDWARP_PT_advanced(WorldWarpPanel, bpy.types.Panel):
    """What the server chooses well by itself"""

    bl_idname = "WORLDWARP_PT_advanced"
    bl_parent_id = "WORLDWARP_PT_look"
    bl_label = "Advanced"
    bl_options: ClassVar = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        names = ("guidance", "steps", "cache_steps", "chunk", "overlap", "auto_prompt", "graded_validity")
        draw_properties(self.layout, context, *names)


class WORLDWARP_PT_generate(WorldWarpPanel, bpy.types.Panel):
    """The Generate button, and how it is going"""

    bl_idname = "WORLDWARP_PT_generate"
    bl_label = "Generate"

    def draw(self, context: bpy.types.Context) -> None:
        draw_properties(self.layout, context, "directory", "frame_format")
        status = session.status()
        draw_status(self.layout, status, why_not(context) or why_not_here(context.scene))
        if not status.running:
            draw_going_on(self.layout, context.scene)
        draw_live_view(self.layout, context)


def draw_going_on(layout: bpy.types.UILayout, scene: bpy.types.Scene) -> None:
    """Draws the takes that were left to the server, and the ways to go on with the selected one."""
    for index, left in enumerate(scene.worldwarp.takes):
        if was_left(left):
            box = layout.box()
            draw_text(box.column(align=True), f"{left.name} was left to the server, which went on with it.", "INFO")
            box.operator("worldwarp.fetch_take", text=f"Fetch {left.name}", icon="IMPORT").index = index
    if active_take(scene) is None:
        return
    row = layout.row(align=True)
    row.operator("worldwarp.resume", icon="PLAY")
    row.operator("worldwarp.regenerate", text=f"From Frame {scene.frame_current}", icon="FILE_REFRESH")


def draw_live_view(layout: bpy.types.UILayout, context: bpy.types.Context) -> None:
    """Draws the switch of the live view in this viewport, and what there is to set while it is on."""
    on = live_view.is_on(context.space_data)
    layout.operator("worldwarp.live_view", icon="HIDE_OFF" if on else "HIDE_ON", depress=on)
    if on:
        layout.prop(context.scene.worldwarp, "live_opacity")


def draw_live_view_button(header: bpy.types.Header, context: bpy.types.Context) -> None:
    """Adds the switch of the live view to a viewport's header, once the scene has a take."""
    if len(context.scene.worldwarp.takes):
        on = live_view.is_on(context.space_data)
        header.layout.operator("worldwarp.live_view", text="", icon="WORLD", depress=on)


def draw_status(layout: bpy.types.UILayout, status: session.Status, reason: str = "") -> None:
    """Draws the Generate or the Cancel button, the progress, and what went wrong until it is dismissed.

    Args:
        reason: why nothing can be generated; "" where it can.
    """
    if status.running:
        layout.progress(factor=status.fraction, text=progress_in_words(status))
        doing = stage_and_step_in_words(status)
        layout.label(text=doing[:1].upper() + doing[1:])
        if status.lost:
            draw_text(layout.column(align=True), status.lost, "ERROR")
        layout.operator("worldwarp.cancel", text="Cancelling..." if status.cancelling else "Cancel", icon="X")
    else:
        row = layout.row()
        row.scale_y = 1.6
        row.enabled = not reason
        row.operator("worldwarp.generate", icon="RENDER_ANIMATION")
        if reason:
            draw_text(layout.column(align=True), reason, "INFO")
        if status.outcome:
            draw_text(layout.column(align=True), status.outcome, "INFO")
    for notice in status.notices[-3:]:
        draw_text(layout.column(align=True), notice, "INFO")
    if status.error:
        box = layout.box()
        draw_text(box.column(align=True), status.error, "ERROR")
        row = box.row(align=True)
        row.operator("worldwarp.copy_error", icon="COPYDOWN")
        row.operator("worldwarp.dismiss_error", icon="X")


class WORLDWARP_PT_results(WorldWarpPanel, bpy.types.Panel):
    """Shots and splats that exist already"""

    bl_idname = "WORLDWARP_PT_results"
    bl_label = "Results"

    def draw(self, context: bpy.types.Context) -> None:
        draw_properties(self.layout, context, "show_results")
        draw_takes(self.layout, context.scene)
        self.layout.operator("worldwarp.import_results", icon="FILE_FOLDER")
        view = context.scene.view_settings.view_transform
        if view not in PLAIN_VIEWS:
            draw_text(self.layout.column(align=True), f"{view} changes the colours of generated frames.", "INFO")
            self.layout.operator("worldwarp.match_view", icon="COLOR")


class WORLDWARP_UL_takes(bpy.types.UIList):
    """The scene's takes: what each is called, how far it is, and which is shown"""

    bl_idname = "WORLDWARP_UL_takes"

    def draw_item(
        self,
        context: bpy.types.Context,
        layout: bpy.types.UILayout,
        data: bpy.types.bpy_struct,
        item: WORLDWARP_PG_take,
        icon: int,
        active_data: bpy.types.bpy_struct,
        active_property: str,
        index: int,
    ) -> None:
        row, status = layout.row(align=True), session.status()
        is_running = folder_of(item) == session.running_folder()
        # The take itself is brought up to date at the shot's end.
        state = "running" if is_running and status.frames_done else item.state
        row.prop(item, "name", text="", emboss=False, icon=STATE_ICONS.get(state, "QUESTION"))
        row.label(text=done_in_words(status) if is_running else take_in_words(item))
        shown = item.directory == context.scene.worldwarp.shown_take
        eye = "HIDE_OFF" if shown else "HIDE_ON"
        row.operator("worldwarp.show_take", text="", icon=eye, emboss=False).index = index


STATE_ICONS = {"done": "CHECKMARK", "running": "PLAY", "queued": "TIME", "failed": "ERROR", "cancelled": "X"}


def take_in_words(take: WORLDWARP_PG_take) -> str:
    """Returns which frames the take has of its own."""
    from_there = f"from {take.first_frame}" if take.based_on else ""
    if take.state == "done":
        return from_there or f"{take.frames} frames"
    if from_there:
        from_there += ", "
    return f"{from_there}{take.frames_done} of {take.frames}"


def done_in_words(status: session.Status) -> str:
    """Returns how many frames of the running shot have come."""
    return f"{status.frames_done} of {status.frames}"


def draw_takes(layout: bpy.types.UILayout, scene: bpy.types.Scene) -> None:
    """Draws the list of takes and what can be done with them."""
    group = scene.worldwarp
    row = layout.row()
    row.template_list("WORLDWARP_UL_takes", "", group, "takes", group, "active_take", rows=3)
    column = row.column(align=True)
    column.operator("worldwarp.find_takes", text="", icon="FILE_REFRESH")
    column.operator("worldwarp.remove_take", text="", icon="REMOVE")
    earlier = earlier_take(scene)
    layout.operator(
        "worldwarp.flip_takes",
        text=f"Flip to {earlier.name}" if earlier is not None else "Flip Takes",
        icon="ARROW_LEFTRIGHT",
    )
    take = active_take(scene)
    if take is not None and take.message and take.state == "failed":
        draw_text(layout.column(align=True), take.message, "ERROR")


class WORLDWARP_PT_files(WorldWarpPanel, bpy.types.Panel):
    """Cameras and splats, in and out, without a server"""

    bl_idname = "WORLDWARP_PT_files"
    bl_label = "Files"
    bl_options: ClassVar = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        column = self.layout.column(align=True)
        column.operator("worldwarp.export_camera", icon="EXPORT")
        column.operator("worldwarp.import_cameras", icon="IMPORT")
        column = self.layout.column(align=True)
        column.operator("worldwarp.export_splats", icon="EXPORT")
        column.operator("worldwarp.import_splats", icon="IMPORT")


CLASSES = (
    WORLDWARP_PT_shot,
    WORLDWARP_PT_start,
    WORLDWARP_MT_preset,
    WORLDWARP_PT_look,
    WORLDWARP_PT_advanced,
    WORLDWARP_PT_generate,
    WORLDWARP_UL_takes,
    WORLDWARP_PT_results,
    WORLDWARP_PT_files,
)


def draw_import_menu(menu: bpy.types.Menu, context: bpy.types.Context) -> None:
    """Adds to File > Import."""
    menu.layout.operator("worldwarp.import_splats", text="Gaussian Splats (.ply/.spz)")
    menu.layout.operator("worldwarp.import_cameras", text="Camera Path (.json/.npz)")
    menu.layout.operator("worldwarp.import_sequence", text="Image Sequence to Camera")


def draw_export_menu(menu: bpy.types.Menu, context: bpy.types.Context) -> None:
    """Adds to File > Export."""
    menu.layout.operator("worldwarp.export_splats", text="Gaussian Splats (.ply/.spz)")
    menu.layout.operator("worldwarp.export_camera", text="Camera Path (.json)")


def menus() -> list[tuple[Any, Callable[[Any, bpy.types.Context], None]]]:
    """Returns Blender's menus and headers, and what is added to each."""
    return [
        (bpy.types.TOPBAR_MT_file_import, draw_import_menu),
        (bpy.types.TOPBAR_MT_file_export, draw_export_menu),
        (bpy.types.VIEW3D_HT_header, draw_live_view_button),
        (bpy.types.STATUSBAR_HT_header, draw_status_bar),
    ]


def draw_properties(layout: bpy.types.UILayout, context: bpy.types.Context, *names: str) -> None:
    """Draws settings of the shot, one below the other."""
    split(layout)
    for name in names:
        layout.prop(context.scene.worldwarp, name)


def split(layout: bpy.types.UILayout) -> bpy.types.UILayout:
    """Returns `layout`, set to draw names on the left and values on the right."""
    layout.use_property_split = True
    layout.use_property_decorate = False
    return layout


def shot_in_words(scene: bpy.types.Scene) -> str:
    """Returns how long and how large the shot will be."""
    frames = len(scene_frames(scene))
    try:
        width, height = render_size(scene)
    except WorldWarpError as error:
        return error.message
    seconds = frames * scene.render.fps_base / scene.render.fps
    return f"{frames} frames ({seconds:.1f} s) at {width} x {height}"


def progress_in_words(status: session.Status) -> str:
    """Returns the frames done and the time left."""
    parts = [f"{status.frames_done} of {status.frames} frames"] if status.frames else []
    if status.eta_s is not None:
        parts.append(f"{duration_in_words(status.eta_s)} left")
    return ", ".join(parts)


def stage_and_step_in_words(status: session.Status) -> str:
    """Returns what is being done, for which chunk of how many, and which step of how many."""
    parts = [stage_in_words(status.stage)]
    if status.chunks > 1:
        parts.append(f"chunk {status.chunk + 1}/{status.chunks}")
    if status.steps > 1:
        parts.append(f"step {status.step}/{status.steps}")
    return ", ".join(part for part in parts if part)


def draw_status_bar(header: bpy.types.Header, context: bpy.types.Context) -> None:
    """Adds to the status bar how the running shot is going."""
    status = session.status()
    if status.running:
        words = [part for part in (progress_in_words(status), stage_and_step_in_words(status)) if part]
        header.layout.label(text=f"WorldWarp {status.fraction:.0%}: {', '.join(words)}", icon="RENDER_ANIMATION")


def draw_text(layout: bpy.types.UILayout, text: str, icon: str, width: int = 32) -> None:
    """Draws a sentence over as many lines as it takes; Blender's labels do not wrap."""
    line = ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            layout.label(text=line, icon=icon)
            line, icon = "", "BLANK1"
        line = f"{line} {word}".strip()
    layout.label(text=line, icon=icon)
