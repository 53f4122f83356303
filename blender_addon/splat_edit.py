# SPDX-License-Identifier: GPL-3.0-or-later
"""Crops and thins splat objects: the operators, what they reckon with, and their panel.

Both work on the data of the object and leave its place, its name and its sky alone; each is one step to undo.
"""

from __future__ import annotations

from typing import ClassVar

import bpy
import numpy as np
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty
from mathutils import Vector

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.cloud import SplatCloud

from .operators import reported
from .panel import WorldWarpPanel
from .splats import add_splat_objects, is_splat_object, local_cloud_of, select


def inside_box(cloud: SplatCloud, to_box: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: where the centre is in the box.

    Args:
        to_box: (4, 4) from the cloud's space into the box's own.
        low: (3,) corner of the box in its own space, with `high` (3,) the opposite one.
    """
    centres = cloud.means @ to_box[:3, :3].T + to_box[:3, 3]
    return ((centres >= low) & (centres <= high)).all(axis=1)


def weight(cloud: SplatCloud) -> np.ndarray:
    """Returns (N,) how much each Gaussian adds to pictures: opacity times the area of its broadest side."""
    scales = np.sort(cloud.scales, axis=1)
    # Of the logarithm, which cannot overflow.
    return scales[:, 1] + scales[:, 2] - np.log1p(np.exp(-np.clip(cloud.opacities, -80, 80)))


def heaviest(cloud: SplatCloud, count: int) -> np.ndarray:
    """Returns (N,) bool: True for the `count` Gaussians that matter most."""
    kept = np.zeros(len(cloud), bool)
    if count > 0:
        kept[np.argsort(weight(cloud), kind="stable")[-count:]] = True
    return kept


def box_of(thing: bpy.types.Object) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and the highest corner of an object's box in its own space; an empty is what it shows."""
    if thing.type == "EMPTY":
        size = thing.empty_display_size
        return np.full(3, -size), np.full(3, size)
    corners = np.array([tuple(Vector(corner)) for corner in thing.bound_box])
    return corners.min(axis=0), corners.max(axis=0)


def splats_and_box(context: bpy.types.Context) -> tuple[bpy.types.Object, bpy.types.Object]:
    """Returns the selected splat object and the other selected object.

    Raises:
        WorldWarpError: `bad_splats`, saying what to select.
    """
    selected = context.selected_objects
    splats = [thing for thing in selected if is_splat_object(thing)]
    boxes = [thing for thing in selected if not is_splat_object(thing)]
    if len(splats) != 1 or len(boxes) != 1:
        raise WorldWarpError(
            "bad_splats",
            f"{len(splats)} splat objects and {len(boxes)} others are selected: select the splats, and one cube or "
            "empty that says where to crop.",
        )
    return splats[0], boxes[0]


def keep(context: bpy.types.Context, thing: bpy.types.Object, cloud: SplatCloud, rows: np.ndarray) -> int:
    """Leaves only the Gaussians of `rows` (N,) in the object; returns how many went.

    Raises:
        WorldWarpError: `bad_splats` if none would be left.
    """
    if not rows.any():
        raise WorldWarpError("bad_splats", f'That leaves nothing of "{thing.name}", so it was left as it is.')
    if not rows.all():
        active, selected = context.view_layer.objects.active, context.selected_objects
        add_splat_objects(context, thing.name, select(cloud, rows), replacing=thing)
        for other in selected:
            other.select_set(True)
        context.view_layer.objects.active = active
    return int((~rows).sum())


class SplatOperator:
    """What works on the active splat object."""

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if is_splat_object(context.active_object) and context.mode == "OBJECT":
            return True
        cls.poll_message_set("Make a splat object the active one, in Object Mode")  # type: ignore[attr-defined]
        return False


class WORLDWARP_OT_crop_splats(bpy.types.Operator):
    """Keep only the splats inside of the other selected object's box, or only those outside of it"""

    bl_idname = "worldwarp.crop_splats"
    bl_label = "Crop Splats by Box"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    side: EnumProperty(
        name="Keep",
        items=(
            ("INSIDE", "Inside", "Keep what is inside of the box"),
            ("OUTSIDE", "Outside", "Keep what is outside of the box"),
        ),
        default="INSIDE",
    )
    crop_sky: BoolProperty(name="Crop the Sky Too", description="Else the far background stays whole", default=False)

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if context.mode == "OBJECT" and any(is_splat_object(thing) for thing in context.selected_objects):
            return True
        cls.poll_message_set("Select the splats, and a cube or empty that says where to crop")
        return False

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        context.view_layer.update()
        thing, box = splats_and_box(context)
        cloud = local_cloud_of(thing)
        to_box = np.array(box.matrix_world.inverted_safe() @ thing.matrix_world)
        rows = inside_box(cloud, to_box, *box_of(box)) == (self.side == "INSIDE")
        if not self.crop_sky:
            rows |= cloud.sky
        gone = keep(context, thing, cloud, rows)
        self.report({"INFO"}, f'{gone} of {len(cloud)} splats cropped from "{thing.name}"')
        return {"FINISHED"}


class WORLDWARP_OT_decimate_splats(SplatOperator, bpy.types.Operator):
    """Thin the active splats: fewer of them render faster and make smaller files"""

    bl_idname = "worldwarp.decimate_splats"
    bl_label = "Decimate Splats"
    bl_options: ClassVar = {"REGISTER", "UNDO"}

    by: EnumProperty(
        name="By",
        items=(
            ("RATIO", "Ratio", "Keep a share of the splats, those that matter most to pictures"),
            ("COUNT", "Count", "Keep a number of splats, those that matter most to pictures"),
            ("OPACITY", "Opacity", "Remove splats that are hardly seen"),
            ("SIZE", "Size", "Remove splats that are larger than a size, as strays often are"),
        ),
        default="RATIO",
    )
    ratio: FloatProperty(name="Ratio", description="Share that is kept", default=0.5, min=0.001, max=1.0)
    count: IntProperty(name="Count", description="Number that is kept", default=500_000, min=1, soft_max=5_000_000)
    opacity: FloatProperty(
        name="Opacity", description="Splats below it are removed", default=0.05, min=0.0, max=1.0, subtype="FACTOR"
    )
    size: FloatProperty(
        name="Size",
        description="Splats whose longest axis is longer are removed (one standard deviation); the sky stays",
        default=1.0,
        min=0.0,
        subtype="DISTANCE",
    )

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        return context.window_manager.invoke_props_dialog(self)

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.use_property_split = True
        self.layout.prop(self, "by")
        self.layout.prop(self, self.by.lower())

    @reported
    def execute(self, context: bpy.types.Context) -> set[str]:
        thing = context.active_object
        cloud = local_cloud_of(thing)
        gone = keep(context, thing, cloud, self.rows(cloud, abs(float(np.cbrt(thing.matrix_world.determinant())))))
        self.report({"INFO"}, f'{gone} of {len(cloud)} splats removed from "{thing.name}"')
        return {"FINISHED"}

    def rows(self, cloud: SplatCloud, object_scale: float) -> np.ndarray:
        """Returns (N,) bool: the Gaussians to keep; sizes are those in the scene."""
        if self.by == "OPACITY":
            return cloud.opacities >= np.log(max(self.opacity, 1e-9)) - np.log1p(-min(self.opacity, 1 - 1e-9))
        if self.by == "SIZE":
            return (np.exp(cloud.scales.max(axis=1)) * object_scale <= self.size) | cloud.sky
        return heaviest(cloud, self.count if self.by == "COUNT" else max(1, round(self.ratio * len(cloud))))


class WORLDWARP_PT_splats(WorldWarpPanel, bpy.types.Panel):
    """What can be done with the active splats"""

    bl_idname = "WORLDWARP_PT_splats"
    bl_parent_id = "WORLDWARP_PT_results"
    bl_label = "Splats"
    bl_options: ClassVar = {"DEFAULT_CLOSED"}
    bl_order = 50

    def draw(self, context: bpy.types.Context) -> None:
        thing = context.active_object
        if is_splat_object(thing):
            self.layout.label(text=f"{len(thing.data.attributes['position'].data):,} splats in {thing.name}")
        column = self.layout.column(align=True)
        column.operator("worldwarp.crop_splats", icon="MOD_BOOLEAN")
        column.operator("worldwarp.decimate_splats", icon="MOD_DECIM")
        column.operator("worldwarp.export_splats", icon="EXPORT")


CLASSES = (WORLDWARP_OT_crop_splats, WORLDWARP_OT_decimate_splats, WORLDWARP_PT_splats)
