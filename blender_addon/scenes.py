# SPDX-License-Identifier: GPL-3.0-or-later
"""Which scene, and which of its cameras, work is of that goes on while the artist does.

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


def _frame_of(marker: bpy.types.TimelineMarker) -> int:
    return marker.frame
