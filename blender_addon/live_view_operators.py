# SPDX-License-Identifier: GPL-3.0-or-later
"""The switch of the live view."""

from __future__ import annotations

from typing import ClassVar

import bpy

from . import live_view
from .operators import reported
from .takes import active_take


def why_not_watch(context: bpy.types.Context) -> str:
    """Returns why this viewport cannot show the live view, or nothing."""
    if context.space_data is None or context.space_data.type != "VIEW_3D":
        return "The live view is shown in a 3D viewport"
    if active_take(context.scene) is None:
        return "There is no take to look at: generate a shot, or select one under Results"
    return ""


class WORLDWARP_OT_live_view(bpy.types.Operator):
    """Look around in the selected take's world while it grows: the server shows it in this viewport"""

    bl_idname = "worldwarp.live_view"
    bl_label = "Live View"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        reason = "" if live_view.is_on(context.space_data) else why_not_watch(context)
        if reason:
            cls.poll_message_set(reason)
        return not reason

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        if live_view.is_on(context.space_data):
            live_view.close()
        else:
            live_view.start(context)
        if context.area is not None:
            context.area.tag_redraw()
        return {"FINISHED"}


CLASSES = (WORLDWARP_OT_live_view,)
