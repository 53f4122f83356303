# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be done with a shot once it is there, and the panel for it: composite with it."""

from __future__ import annotations

from typing import ClassVar

import bpy
from bpy.props import BoolProperty

from .composite import composite_in_use, composite_to_use, composites, use_composite, use_render
from .operators import reported
from .panel import WorldWarpPanel


class WORLDWARP_OT_composite(bpy.types.Operator):
    """Render the scene's objects into the generated frames: in front of the world, and hidden by what it has nearer"""

    bl_idname = "worldwarp.composite"
    bl_label = "Composite into Frames"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    enable: BoolProperty(
        name="Composite",
        description="Off renders the scene alone again, as it was before",
        default=True,
        options={"SKIP_SAVE"},
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if composites(context.scene):
            return True
        cls.poll_message_set(
            "The compositor has no shot with depth: generate one, or import the results of one that has a depth folder"
        )
        return False

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        scene = context.scene
        if not self.enable:
            use_render(scene)
            return {"FINISHED"}
        composite = composite_to_use(scene)
        use_composite(scene, context.view_layer, composite)
        self.report({"INFO"}, f'Renders are laid into "{composite.label}"')
        return {"FINISHED"}


class WORLDWARP_PT_use_results(WorldWarpPanel, bpy.types.Panel):
    """What the shot that is shown can be used for"""

    bl_idname = "WORLDWARP_PT_use_results"
    bl_parent_id = "WORLDWARP_PT_results"
    bl_label = "Use in the Scene"

    def draw(self, context: bpy.types.Context) -> None:
        column = self.layout.column(align=True)
        if composite_in_use(context.scene) is None:
            column.operator("worldwarp.composite", icon="NODE_COMPOSITING")
        else:
            column.operator("worldwarp.composite", text="Render Scene Alone", icon="X").enable = False


CLASSES = (WORLDWARP_OT_composite, WORLDWARP_PT_use_results)
