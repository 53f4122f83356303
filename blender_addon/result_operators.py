# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be done with a shot once it is there, and the panel for it: composite with it, catch shadows on it, keep its
world as an asset; and pictures of any other origin, shown as a shot's are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import bpy
from bpy.props import BoolProperty, FloatProperty, IntProperty, StringProperty
from bpy_extras.io_utils import ImportHelper

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.geometry.fusion import Surface

from .composite import add_nodes, composite_in_use, composite_to_use, composites, use_composite, use_render
from .operators import NeedsSplats, absolute, reported
from .panel import WorldWarpPanel
from .proxy_mesh import Fusing, add_proxy, read_surface
from .sequences import PICTURE_SUFFIXES, add_strip, sequence_with, show_behind_camera
from .splat_asset import mark_as_asset
from .splats import splat_object_to_export
from .stored_paths import resolved_path
from .takes import active_take, folder_of


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


def shot_folder(context: bpy.types.Context, directory: str = "") -> Path:
    """Returns `directory`, or the folder of the take that is shown, or of the one that is selected.

    Raises:
        WorldWarpError: `no_take` where there is none of these.
    """
    scene = context.scene
    if directory:
        return absolute(directory)
    if scene.worldwarp.shown_take:
        return resolved_path(scene.worldwarp.shown_take)
    take = active_take(scene)
    if take is None:
        raise WorldWarpError("no_take", "There is no take to make it from: generate a shot, or give a shot's folder.")
    return folder_of(take)


class WORLDWARP_OT_proxy_mesh(bpy.types.Operator):
    """Make a mesh of the world's surfaces from the shot's depth, to catch shadows in Cycles and to collide with"""

    bl_idname = "worldwarp.proxy_mesh"
    bl_label = "Make Proxy Mesh"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    directory: StringProperty(
        name="Folder",
        description="The folder of a generated shot; empty takes that of the take that is shown",
        subtype="DIR_PATH",
        options={"SKIP_SAVE"},
    )
    cells: IntProperty(
        name="Detail",
        description="Cells of the mesh along the world's longest side: more show smaller things and take longer",
        default=192,
        min=32,
        max=512,
    )
    reach: FloatProperty(
        name="Reach",
        description="How far from the camera surfaces are taken: a shorter reach gives the near ones more detail. 0 "
        "takes what most of the shot lies within",
        default=0.0,
        min=0.0,
        subtype="DISTANCE",
    )
    collide: BoolProperty(
        name="Collision",
        description="Make it a passive rigid body, and a collider of cloth and particles",
        default=True,
    )

    _work: Fusing | None = None
    _timer: bpy.types.Timer | None = None

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self)

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.use_property_split = True
        for name in ("cells", "reach", "collide"):
            self.layout.prop(self, name)

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        folder, reach = shot_folder(context, self.directory), self.reach or None
        if bpy.app.background:
            return self.finish(context, folder, read_surface(folder, cells=self.cells, reach=reach))
        # With a window the artist goes on working while a thread does this.
        self._folder = folder
        self._work = Fusing(folder, self.cells, reach)
        self._timer = context.window_manager.event_timer_add(0.1, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        assert self._work is not None
        if event.type == "ESC":
            self.cancel(context)
            return {"CANCELLED"}
        if event.type != "TIMER":
            return {"PASS_THROUGH"}
        if self._work.running:
            context.workspace.status_text_set(f"Proxy mesh: {self._work.share:.0%} (Esc to cancel)")
            return {"PASS_THROUGH"}
        return self.ended(context)

    @reported
    def ended(self, context: bpy.types.Context) -> set[str]:
        work = self._work
        self.cancel(context)
        assert work is not None
        if work.error is not None:
            raise work.error
        assert work.surface is not None
        return self.finish(context, self._folder, work.surface)

    def cancel(self, context: bpy.types.Context) -> None:
        """Ends the work; Blender calls this too, when another file is opened meanwhile."""
        if self._work is not None:
            self._work.stop()
        if self._timer is not None:
            context.window_manager.event_timer_remove(self._timer)
            context.workspace.status_text_set(None)
        self._work = self._timer = None

    def finish(self, context: bpy.types.Context, folder: Path, surface: Surface) -> set[str]:
        made = add_proxy(context, folder, surface, self.collide)
        self.report({"INFO"}, f'"{made.name}": {len(surface.triangles):,} triangles, cells of {surface.cell:.3g}')
        return {"FINISHED"}


class WORLDWARP_OT_mark_asset(NeedsSplats, bpy.types.Operator):
    """Mark the splat object as an asset, with the shot's start frame as its picture"""

    bl_idname = "worldwarp.mark_asset"
    bl_label = "Mark World as Asset"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    author: StringProperty(name="Author", description="Who made this world")
    description: StringProperty(
        name="Description",
        description="What the world is; empty takes its prompt and how many splats it has",
        options={"SKIP_SAVE"},
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self, width=420)

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        thing = splat_object_to_export(context)
        if mark_as_asset(thing, self.author, self.description):
            self.report({"INFO"}, f'"{thing.name}" is an asset: save the file in an asset library to find it there')
        else:
            self.report({"WARNING"}, f'"{thing.name}" is an asset without a picture: no shot of it was found')
        return {"FINISHED"}


class WORLDWARP_OT_import_sequence(bpy.types.Operator, ImportHelper):
    """Show numbered pictures of any origin as a shot's frames are: pick one of them"""

    bl_idname = "worldwarp.import_sequence"
    bl_label = "Import Image Sequence"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    filename_ext = ""
    filter_glob: StringProperty(default=";".join(f"*{suffix}" for suffix in PICTURE_SUFFIXES), options={"HIDDEN"})
    by_number: BoolProperty(
        name="Frames by Number",
        description="Show each picture at the scene frame that its name says; else the first at the scene's start",
        default=True,
    )
    behind_camera: BoolProperty(name="Behind the Camera", description="As the camera's background", default=True)
    strip: BoolProperty(name="Sequencer", description="As a strip in the sequencer", default=True)
    nodes: BoolProperty(name="Compositor", description="As an image node, ready to be linked", default=True)

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        scene = context.scene
        frames = sequence_with(absolute(self.filepath))
        if not self.by_number:
            frames = replace(frames, shift=scene.frame_start - min(frames.files))
        made = []
        if self.behind_camera and scene.camera is not None:
            show_behind_camera(scene.camera, frames)
            made.append(f'background of "{scene.camera.name}"')
        folder = frames.first_file.parent
        if self.strip:
            add_strip(scene, folder.name, frames)
            made.append("sequencer strip")
        if self.nodes:
            add_nodes(scene, folder, {"Frames": frames})
            made.append("compositor node")
        if not made:
            raise WorldWarpError(
                "bad_settings",
                "Nothing to show the pictures in: turn on the sequencer or the compositor, or give the scene a camera.",
            )
        self.report(
            {"INFO"}, f"{len(frames.files)} pictures, frames {frames.first} to {frames.last}: {', '.join(made)}"
        )
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
        column.operator("worldwarp.proxy_mesh", icon="MOD_REMESH")
        column.operator("worldwarp.mark_asset", icon="ASSET_MANAGER")
        self.layout.operator("worldwarp.import_sequence", icon="IMAGE_DATA")


CLASSES = (
    WORLDWARP_OT_composite,
    WORLDWARP_OT_proxy_mesh,
    WORLDWARP_OT_mark_asset,
    WORLDWARP_OT_import_sequence,
    WORLDWARP_PT_use_results,
)
