# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that need no server: cameras, splats and results, in and out of files.

Every one of them works in background too. A fault of a file or of the scene is reported as a sentence, never as a
traceback.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import bpy
from bpy.props import BoolProperty, EnumProperty, StringProperty
from bpy_extras.io_utils import ExportHelper, ImportHelper

from worldwarp_core.cameras.files import read_cameras, write_cameras, write_transforms
from worldwarp_core.cameras.path import jump_warning
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.files import read_splats, write_splats

from .advice import in_words
from .camera_export import export_camera_path
from .camera_import import add_camera
from .results import bring_in
from .splats import add_splat_objects, is_splat_object, splat_cloud_of, splat_object_to_export
from .stored_paths import resolved_path

AXES = (
    ("blender", "Blender", "z up, as WorldWarp writes its files"),
    ("colmap", "COLMAP", "y down, as most trainers of splats write them"),
    ("y-up", "Y Up", "y up, as glTF, web viewers and game engines have it"),
)


def reported(execute: Callable[[Any, bpy.types.Context], set[str]]) -> Callable[[Any, bpy.types.Context], set[str]]:
    """Turns a `WorldWarpError` or a fault of the file system into an error report and a cancelled operator."""

    @functools.wraps(execute)
    def wrapped(self: Any, context: bpy.types.Context) -> set[str]:
        try:
            return execute(self, context)
        except WorldWarpError as error:
            self.report({"ERROR"}, in_words(error))
        except OSError as error:
            self.report({"ERROR"}, f"{error.filename or 'The file'}: {error.strerror or error}.")
        return {"CANCELLED"}

    return wrapped


def absolute(filepath: str) -> Path:
    """Returns the path that `filepath` means, with // for the folder of the .blend file."""
    if not filepath:
        raise WorldWarpError("missing_file", "No file was given: set the file path.")
    return resolved_path(filepath)


def chosen_axes(axes: str) -> str | None:
    """Returns what `read_splats` and `write_splats` take: None leaves the choice to the file or its format."""
    return None if axes == "auto" else axes


class NeedsSplats:
    """What works on a splat object of the scene."""

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if any(is_splat_object(thing) for thing in context.scene.objects):
            return True
        cls.poll_message_set("The scene has no splat object: import or generate one first")  # type: ignore[attr-defined]
        return False


class WORLDWARP_OT_export_camera(bpy.types.Operator, ExportHelper):
    """Write the scene's camera, evaluated on every frame of the range, to a cameras.json or transforms.json file"""

    bl_idname = "worldwarp.export_camera"
    bl_label = "Export Camera Path"
    bl_options: ClassVar = {"REGISTER"}

    filename_ext = ".json"
    filter_glob: StringProperty(default="*.json", options={"HIDDEN"})
    layout_of: EnumProperty(
        name="Layout",
        items=(
            ("CAMERAS", "cameras.json", "WorldWarp's own: reading it back gives the same numbers to the last bit"),
            ("TRANSFORMS", "transforms.json", "What Nerfstudio and most trainers of splats and NeRFs read"),
        ),
        default="CAMERAS",
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if not self.filepath:
            self.filepath: str = "cameras.json"
        return super().invoke(context, event)

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        target = absolute(self.filepath)
        path = export_camera_path(context)
        (write_transforms if self.layout_of == "TRANSFORMS" else write_cameras)(target, path)
        if (warning := jump_warning(path)) is not None:
            self.report({"WARNING"}, warning)
        self.report({"INFO"}, f"{len(path)} cameras written to {target}")
        return {"FINISHED"}


class WORLDWARP_OT_import_cameras(bpy.types.Operator, ImportHelper):
    """Bring a camera path in as an animated camera: cameras.json, transforms.json or NPZ"""

    bl_idname = "worldwarp.import_cameras"
    bl_label = "Import Camera Path"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    filename_ext = ".json"
    filter_glob: StringProperty(default="*.json;*.npz", options={"HIDDEN"})
    match_scene: BoolProperty(
        name="Film With It",
        description="Make it the scene's camera, and take resolution, frame range and frame rate from the file",
        default=True,
    )

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        source, render = absolute(self.filepath), context.scene.render
        # What a file leaves unsaid is taken from the scene.
        path = read_cameras(
            source, width=render.resolution_x, height=render.resolution_y, fps=render.fps / render.fps_base
        )
        camera = add_camera(context, source.stem, path, self.match_scene)
        self.report({"INFO"}, f'{len(path)} cameras read into "{camera.name}"')
        return {"FINISHED"}


class WORLDWARP_OT_import_splats(bpy.types.Operator, ImportHelper):
    """Bring Gaussian splats in as an object: 3DGS PLY or SPZ"""

    bl_idname = "worldwarp.import_splats"
    bl_label = "Import Splats"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    filename_ext = ".ply"
    filter_glob: StringProperty(default="*.ply;*.spz", options={"HIDDEN"})
    axes: EnumProperty(
        name="Axes",
        description="The world axes that the file is in",
        items=(("auto", "From the File", "What the file says, else what most trainers of splats write"), *AXES),
        default="auto",
    )

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        source = absolute(self.filepath)
        cloud = read_splats(source, axes=chosen_axes(self.axes))
        made = add_splat_objects(context, source.stem, cloud)
        self.report({"INFO"}, f'{len(cloud)} splats read into "{made.name}"')
        return {"FINISHED"}


class WORLDWARP_OT_export_splats(NeedsSplats, bpy.types.Operator, ExportHelper):
    """Write the selected splat object, where it stands in the scene, as 3DGS PLY or SPZ"""

    bl_idname = "worldwarp.export_splats"
    bl_label = "Export Splats"
    bl_options: ClassVar = {"REGISTER"}

    filename_ext = ".ply"
    check_extension = None
    filter_glob: StringProperty(default="*.ply;*.spz", options={"HIDDEN"})
    axes: EnumProperty(
        name="Axes",
        description="The world axes to write",
        items=(("auto", "Of the Format", "Blender's for PLY, y up for SPZ, which knows no other"), *AXES),
        default="auto",
    )

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        target = absolute(self.filepath)
        context.view_layer.update()
        thing = splat_object_to_export(context)
        cloud = splat_cloud_of(thing)
        write_splats(target, cloud, axes=chosen_axes(self.axes))
        self.report({"INFO"}, f'{len(cloud)} splats of "{thing.name}" written to {target}')
        return {"FINISHED"}


class WORLDWARP_OT_import_results(bpy.types.Operator):
    """Bring a shot's folder in: behind the camera, in the sequencer, in the compositor, and its splats"""

    bl_idname = "worldwarp.import_results"
    bl_label = "Import Results"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    directory: StringProperty(name="Folder", description="The folder of a generated shot", subtype="DIR_PATH")

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        made = bring_in(context, absolute(self.directory))
        self.report({"INFO"}, f"Brought in: {', '.join(made)}")
        return {"FINISHED"}


CLASSES = (
    WORLDWARP_OT_export_camera,
    WORLDWARP_OT_import_cameras,
    WORLDWARP_OT_import_splats,
    WORLDWARP_OT_export_splats,
    WORLDWARP_OT_import_results,
)
