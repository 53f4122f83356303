# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that say how large a world is that begins with a picture: pick a point, match an object, look at it."""

from __future__ import annotations

from typing import ClassVar

import bpy
from bpy.props import FloatProperty, FloatVectorProperty
from bpy_extras.view3d_utils import location_3d_to_region_2d
from mathutils import Vector

from worldwarp_core.errors import WorldWarpError

from . import cloud_overlay, session
from .operators import reported
from .scale import picture_cloud, place_of


def begins_with_image(cls: type[bpy.types.Operator], context: bpy.types.Context) -> bool:
    """Polls operators of a start picture: says what is missing."""
    group = context.scene.worldwarp
    if group.start_source == "RENDER" or group.start_image is None:
        cls.poll_message_set("The shot does not begin with an image: pick one above")
    elif context.scene.camera is None:
        cls.poll_message_set("The scene has no camera: add one, or pick one under Shot")
    else:
        return True
    return False


class WORLDWARP_OT_show_cloud(bpy.types.Operator):
    """Draw the start picture in the scene as points, where its depth puts them"""

    bl_idname = "worldwarp.show_cloud"
    bl_label = "Show Points"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return begins_with_image(cls, context)

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        made = picture_cloud(context)
        cloud_overlay.show(made)
        context.scene.worldwarp.show_cloud = True
        session.redraw_viewports()
        if context.scene.worldwarp.scene_scale == 0:
            self.report({"INFO"}, f"{made.assumed:.3g} units away, from {made.reason}")
        return {"FINISHED"}


class WORLDWARP_OT_set_distance(bpy.types.Operator):
    """Say how far a point of the picture is from the camera, in scene units"""

    bl_idname = "worldwarp.set_distance"
    bl_label = "Distance of This Point"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    point: FloatVectorProperty(name="Point", size=2, min=0.0, max=1.0, default=(0.5, 0.5), options={"SKIP_SAVE"})
    distance: FloatProperty(
        name="Distance", description="From the camera to this point", min=1e-4, default=5.0, subtype="DISTANCE"
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return begins_with_image(cls, context)

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self)

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.prop(self, "distance")
        if context.scene.worldwarp.start_depth is None:
            self.layout.label(text="Without a depth map this is the distance of the picture as a whole.", icon="INFO")

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        set_scale(context, tuple(self.point), self.distance)
        return {"FINISHED"}


class WORLDWARP_OT_pick_point(bpy.types.Operator):
    """Click a place in the camera's view and type how far it is"""

    bl_idname = "worldwarp.pick_point"
    bl_label = "Pick Point"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return begins_with_image(cls, context)

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if context.region_data is None:
            self.report({"ERROR"}, "Pick points in a 3D viewport")
            return {"CANCELLED"}
        # The picture is seen through the start camera alone.
        context.scene.frame_set(context.scene.frame_start)
        context.region_data.view_perspective = "CAMERA"
        context.window.cursor_modal_set("EYEDROPPER")
        context.workspace.status_text_set("Click a place whose distance you know.  Esc: cancel")
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if event.type in ("ESC", "RIGHTMOUSE"):
            return self.end(context, {"CANCELLED"})
        if event.type != "LEFTMOUSE" or event.value != "PRESS":
            # Zooming and panning stay possible.
            return {"PASS_THROUGH"}
        point = point_under(context, event.mouse_x, event.mouse_y)
        if point is None:
            self.report({"WARNING"}, "That is outside of the camera's picture")
            return {"RUNNING_MODAL"}
        ended = self.end(context, {"FINISHED"})
        bpy.ops.worldwarp.set_distance("INVOKE_DEFAULT", point=point)
        return ended

    def end(self, context: bpy.types.Context, result: set[str]) -> set[str]:
        context.window.cursor_modal_restore()
        context.workspace.status_text_set(None)
        return result


class WORLDWARP_OT_match_object(bpy.types.Operator):
    """Put what the picture shows at the active object as far away as that object is"""

    bl_idname = "worldwarp.match_object"
    bl_label = "Match Object"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if not begins_with_image(cls, context):
            return False
        if context.object is None or context.object == context.scene.camera:
            cls.poll_message_set("Select the object that stands where something in the picture is")
            return False
        return True

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        thing = context.object
        point, distance = place_of(context, thing)
        set_scale(context, point, distance)
        self.report({"INFO"}, f'"{thing.name}" is {distance:.3g} units away')
        return {"FINISHED"}


CLASSES = (
    WORLDWARP_OT_show_cloud,
    WORLDWARP_OT_set_distance,
    WORLDWARP_OT_pick_point,
    WORLDWARP_OT_match_object,
)


def set_scale(context: bpy.types.Context, point: tuple[float, ...], distance: float) -> None:
    """Remembers that `point` of the picture is so far away, and shows what comes of it.

    Raises:
        WorldWarpError: `bad_point` where the depth map has nothing there; the old point stays then.
    """
    group = context.scene.worldwarp
    before = tuple(group.scale_point)
    group.scale_point = point
    try:
        made = picture_cloud(context)
    except WorldWarpError:
        group.scale_point = before
        raise
    group.scene_scale = distance
    cloud_overlay.show(made)
    session.redraw_viewports()


def point_under(context: bpy.types.Context, mouse_x: int, mouse_y: int) -> tuple[float, float] | None:
    """Returns the place in the camera's picture under the mouse, (0, 0) to (1, 1) from the top left; None outside."""
    camera, region = context.scene.camera, next(part for part in context.area.regions if part.type == "WINDOW")
    corners = [camera.matrix_world @ corner for corner in camera.data.view_frame(scene=context.scene)]
    seen = [location_3d_to_region_2d(region, context.region_data, corner) for corner in corners]
    if any(corner is None for corner in seen):
        return None
    return place_in_frame(seen, Vector((mouse_x - region.x, mouse_y - region.y)))


def place_in_frame(corners: list[Vector], mouse: Vector) -> tuple[float, float] | None:
    """Returns where `mouse` is between the picture frame's corners, in pixels with y up; None outside of them."""
    left, right = min(corner.x for corner in corners), max(corner.x for corner in corners)
    bottom, top = min(corner.y for corner in corners), max(corner.y for corner in corners)
    if right <= left or top <= bottom:
        return None
    u, v = (mouse.x - left) / (right - left), (top - mouse.y) / (top - bottom)
    return (u, v) if 0 <= u <= 1 and 0 <= v <= 1 else None
