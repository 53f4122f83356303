# SPDX-License-Identifier: GPL-3.0-or-later
"""Which scene and which of its cameras work is of that goes on while the artist does, and where in it things go.

A reference would not outlive an undo, and a name not being changed; the number that Blender gives each data-block lasts
as long as the file is open.
"""

from __future__ import annotations

import bpy


def scene_with(uid: int) -> bpy.types.Scene | None:
    """Returns the scene of that `session_uid`, or None where it was removed."""
    return next((scene for scene in bpy.data.scenes if scene.session_uid == uid), None)


def camera_at(scene: bpy.types.Scene, frame: int) -> bpy.types.Object | None:
    """Returns the camera that films `frame`: what markers say by Blender's rules, else the scene's; evaluates nothing.

    `scene.camera` is that of the frame where the timeline is now.
    """
    bound = [marker for marker in scene.timeline_markers if marker.camera and not marker.camera.hide_render]
    if not bound:
        return scene.camera
    before = [marker for marker in bound if marker.frame <= frame]
    marker = max(before, key=_frame_of) if before else min(bound, key=_frame_of)
    return marker.camera


def collection_for(context: bpy.types.Context) -> bpy.types.Collection:
    """Returns where new objects go: the active collection, or the scene's own where that one is another file's."""
    return context.collection if context.collection.is_editable else context.scene.collection


def select_alone(context: bpy.types.Context, thing: bpy.types.Object) -> None:
    """Makes `thing` the selected and active object, unless the artist is in the middle of editing another."""
    if context.mode != "OBJECT":
        return
    for other in list(context.view_layer.objects):
        other.select_set(other == thing)
        if other == thing:
            context.view_layer.objects.active = thing


def _frame_of(marker: bpy.types.TimelineMarker) -> int:
    return marker.frame
