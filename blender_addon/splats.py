# SPDX-License-Identifier: GPL-3.0-or-later
"""Splat clouds as Blender objects, and back.

A splat object carries the point attributes of Blender 5.3's native Gaussian splats. Where Blender can size a point
cloud (from 5.1) it is one; below, it is a mesh of loose points with the same attributes. Its data are in Blender's
world axes, so a freshly imported object has no transform and coincides with the scene it was made from. Gaussians that
stand for the far background live in a second object, "... Sky", so that they do not blow up the bounds of the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import bpy
import numpy as np

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.axes import transform
from worldwarp_core.splat_files.cloud import SplatCloud

from .scenes import collection_for, select_alone
from .small_steps import Steps, run_through
from .splat_nodes import make_renderable, splat_group

MAX_LOGIT = 16.0
"""Opacities are stored after the sigmoid; of a float32 that is as far as a logit can be had back."""


@dataclass(frozen=True)
class Native:
    """One point attribute as Blender 5.3 names it, and what of a cloud it holds."""

    name: str
    data_types: tuple[str, ...]
    """The native type first, then what holds the same numbers in Blenders that lack it."""
    values: Callable[[SplatCloud], np.ndarray]
    """(N, components) of a cloud, or (N,)."""


def _base(cloud: SplatCloud) -> np.ndarray:
    """(N, 4): the degree-0 coefficients as they stand, and the opacity in [0, 1]."""
    return np.concatenate([cloud.sh0[:, 0], 1 / (1 + np.exp(-cloud.opacities[:, None]))], axis=1)


SCALE = Native("scale", ("FLOAT_VECTOR",), lambda cloud: np.exp(cloud.scales))
ROTATION = Native("rotation", ("QUATERNION",), lambda cloud: cloud.quats)
BASE = Native("radiance:base", ("FLOAT4", "FLOAT_COLOR"), _base)
ALWAYS = (
    Native("position", ("FLOAT_VECTOR",), lambda cloud: cloud.means),
    SCALE,
    ROTATION,
    BASE,
    # Ours: where a Gaussian came from, for selecting and cropping by frame.
    Native("source_frame", ("INT",), lambda cloud: cloud.source_frames),
    Native("sky", ("BOOLEAN",), lambda cloud: cloud.sky),
)


def _harmonic(index: int) -> str:
    """Returns the attribute of one coefficient of the view-dependent colour, for red, green and blue."""
    return f"radiance:sh_{index}"


STORAGE = {
    # data type: (property of a point, components, NumPy type)
    "FLOAT4": ("vector", 4, np.float32),
    "FLOAT_COLOR": ("color", 4, np.float32),
    "FLOAT_VECTOR": ("vector", 3, np.float32),
    "QUATERNION": ("value", 4, np.float32),
    "FLOAT": ("value", 1, np.float32),
    "INT": ("value", 1, np.int32),
    "BOOLEAN": ("value", 1, bool),
}

SKY_SUFFIX = " Sky"
NATIVE = "GAUSSIAN_SPLAT"
"""The type of point clouds that Blender itself draws as splats (from 5.3)."""


@dataclass(frozen=True)
class Columns:
    """The point attributes of one object: (name, data types, (N, ...) values) of each."""

    count: int
    values: tuple[tuple[str, tuple[str, ...], np.ndarray], ...]


@dataclass(frozen=True)
class PreparedSplats:
    """A splat cloud as Blender takes it: what is near, and what stands for the far background."""

    near: Columns
    sky: Columns | None
    sh_degree: int


def add_splat_objects(
    context: bpy.types.Context, name: str, cloud: SplatCloud, replacing: bpy.types.Object | None = None
) -> bpy.types.Object:
    """Returns the splat object `name`, selected and active; its sky, if any, is its child.

    Args:
        cloud: in Blender's world axes and scene units.
        replacing: an earlier splat object to fill anew, which keeps its name and its place; None adds one to the
            active collection.
    """
    made = run_through(bring_splats(context, name, prepare_splats(cloud), replacing))
    select_alone(context, made)
    return made


def prepare_splats(cloud: SplatCloud) -> PreparedSplats:
    """Returns the cloud as Blender takes it; on any thread, and most of the work."""
    # A cloud of nothing but sky is still a world: then it is the object itself.
    near = cloud if cloud.sky.all() else select(cloud, _rows(~cloud.sky))
    sky = select(cloud, _rows(cloud.sky)) if len(near) < len(cloud) else None
    return PreparedSplats(_columns(near), _columns(sky) if sky is not None else None, cloud.sh_degree)


def bring_splats(
    context: bpy.types.Context, name: str, prepared: PreparedSplats, replacing: bpy.types.Object | None = None
) -> Steps[bpy.types.Object]:
    """Makes what `add_splat_objects` returns, in small steps; nothing of it is seen before the last of them.

    What is selected stays so: this may happen while the artist is at something else.
    """
    skies = sky_of(replacing) if replacing is not None else []
    data = yield from _filled(name, prepared.near)
    sky_data = None
    if prepared.sky is not None:
        sky_data = yield from _filled(name + SKY_SUFFIX, prepared.sky)
    if getattr(data, "type", "") != NATIVE:
        # Made here, where nothing is evaluated with each of its nodes.
        yield from splat_group(prepared.sh_degree, points=isinstance(data, bpy.types.PointCloud))
    made, sky = _with_data(context, replacing, name, data), None
    if sky_data is not None:
        sky = _with_data(context, skies.pop() if skies else None, made.name + SKY_SUFFIX, sky_data)
        sky.parent = made
    for left in skies:
        _remove_data(left, then=functools.partial(bpy.data.objects.remove, left))
    if not is_native(made):
        make_renderable(context.scene, made, sky, prepared.sh_degree)
    context.view_layer.update()
    return made


def splat_cloud_of(thing: bpy.types.Object) -> SplatCloud:
    """Returns the Gaussians of a splat object and of the sky below it, in Blender's world axes.

    The objects' own transforms are applied: centres, sizes, orientations and view-dependent colour turn with them.

    Raises:
        WorldWarpError: `bad_splats` for an object without splat attributes, or with an uneven scale or shear.
    """
    return concatenate([_in_world(part) for part in (thing, *sky_of(thing))])


def local_cloud_of(thing: bpy.types.Object) -> SplatCloud:
    """Returns the Gaussians of a splat object and of its sky, each in its object's own space, the sky marked as such.

    `add_splat_objects(..., replacing=thing)` puts them back where they were.

    Raises:
        WorldWarpError: `bad_splats` for an object without splat attributes.
    """
    near, skies = _read(thing), [_read(sky) for sky in sky_of(thing)]
    if skies:
        near = replace(near, sky=np.zeros(len(near), bool))
    return concatenate([near, *(replace(sky, sky=np.ones(len(sky), bool)) for sky in skies)])


def is_splat_object(thing: bpy.types.Object | None) -> bool:
    """Returns whether `thing` has the attributes of Gaussian splats."""
    return (
        thing is not None
        and thing.type in ("MESH", "POINTCLOUD")
        and all(native.name in thing.data.attributes for native in (SCALE, ROTATION, BASE))
    )


def is_native(thing: bpy.types.Object) -> bool:
    """Returns whether Blender itself draws and renders this object's Gaussians (from 5.3)."""
    return getattr(thing.data, "type", "") == NATIVE


def sky_of(thing: bpy.types.Object) -> list[bpy.types.Object]:
    """Returns the children of a splat object that hold its far background."""
    return [child for child in thing.children if is_splat_object(child) and SKY_SUFFIX in child.name]


def splat_object_to_export(context: bpy.types.Context) -> bpy.types.Object:
    """Returns the active splat object, or the scene's only one.

    Raises:
        WorldWarpError: `bad_splats`, saying what to select.
    """
    active = context.view_layer.objects.active
    if is_splat_object(active):
        return active
    found = [thing for thing in context.scene.objects if is_splat_object(thing) and thing not in _skies(context.scene)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f'"{thing.name}"' for thing in found[:5])
        raise WorldWarpError(
            "bad_splats", f"The scene has {len(found)} splat objects ({names}): select the one to export."
        )
    told = f'"{active.name}" is no splat object' if active else "Nothing is selected"
    raise WorldWarpError("bad_splats", f"{told}, and the scene has none. Import or generate one first.")


def select(cloud: SplatCloud, rows: np.ndarray | slice) -> SplatCloud:
    """Returns the Gaussians where `rows` (N,) is True, or those of a slice."""
    return SplatCloud(**{name: getattr(cloud, name)[rows] for name in SplatCloud.__dataclass_fields__})


def concatenate(clouds: list[SplatCloud]) -> SplatCloud:
    """Returns all Gaussians of `clouds`, the higher SH degree taken where they differ."""
    bands = max(cloud.shN.shape[1] for cloud in clouds)

    def joined(name: str) -> np.ndarray:
        arrays = [getattr(cloud, name) for cloud in clouds]
        if name == "shN":
            arrays = [np.pad(array, ((0, 0), (0, bands - array.shape[1]), (0, 0))) for array in arrays]
        return np.concatenate(arrays)

    return SplatCloud(**{name: joined(name) for name in SplatCloud.__dataclass_fields__})


def _rows(where: np.ndarray) -> np.ndarray | slice:
    """Returns `where` (N,) as a slice if what is True stands together, as it does in our files: that copies nothing."""
    true = np.flatnonzero(where)
    if len(true) and true[-1] - true[0] + 1 == len(true):
        return slice(int(true[0]), int(true[-1]) + 1)
    return where


def _skies(scene: bpy.types.Scene) -> set[bpy.types.Object]:
    return {sky for thing in scene.objects if is_splat_object(thing) for sky in sky_of(thing)}


def _in_world(thing: bpy.types.Object) -> SplatCloud:
    """Returns the Gaussians of one object where it stands; those that stand where they came in, bit for bit."""
    cloud, matrix = _read(thing), np.array(thing.matrix_world)
    return cloud if np.array_equal(matrix, np.eye(4)) else transform(cloud, matrix)


def _columns(cloud: SplatCloud) -> Columns:
    """Returns the attributes of one object; never touches Blender."""
    values = [(native.name, native.data_types, np.ascontiguousarray(native.values(cloud))) for native in ALWAYS]
    harmonics = enumerate(_by_coefficient(cloud.shN))
    values += [(_harmonic(i), ("FLOAT_VECTOR",), coefficients) for i, coefficients in harmonics]
    return Columns(len(cloud), tuple(values))


def _filled(name: str, columns: Columns) -> Steps[bpy.types.PointCloud | bpy.types.Mesh]:
    """Makes the data of one object, an attribute at a time."""
    data = _sized_data(name, columns.count)
    for attribute, data_types, values in columns.values:
        yield
        _write(data, attribute, data_types, values)
    data.update_tag()
    if hasattr(data, "update"):
        data.update()
    return data


def _with_data(
    context: bpy.types.Context,
    thing: bpy.types.Object | None,
    name: str,
    data: bpy.types.PointCloud | bpy.types.Mesh,
) -> bpy.types.Object:
    """Returns `thing` with other data, or a new object `name`."""
    if thing is not None:
        _remove_data(thing, then=lambda: setattr(thing, "data", data))
        return thing
    made = bpy.data.objects.new(name, data)
    collection_for(context).objects.link(made)
    return made


def _remove_data(thing: bpy.types.Object, then: Callable[[], None]) -> None:
    """Runs `then`, which takes the data off `thing`, and removes the data unless others use them."""
    data = thing.data
    then()
    if data.users == 0:
        (bpy.data.meshes if isinstance(data, bpy.types.Mesh) else bpy.data.pointclouds).remove(data)


def _by_coefficient(shN: np.ndarray) -> np.ndarray:
    """Returns (K, N, 3) of (N, K, 3), in bites that the processor's cache holds: a tenth of the time."""
    turned = np.empty((shN.shape[1], len(shN), 3), np.float32)
    for start in range(0, len(shN), 4096):
        turned[:, start : start + 4096] = shN[start : start + 4096].transpose(1, 0, 2)
    return turned


def _sized_data(name: str, count: int) -> bpy.types.PointCloud | bpy.types.Mesh:
    """Returns a point cloud of `count` points where this Blender can size one, else a mesh of loose points."""
    if "resize" in bpy.types.PointCloud.bl_rna.functions:
        cloud = bpy.data.pointclouds.new(name)
        cloud.resize(count)
        kinds = cloud.bl_rna.properties.get("type")
        if kinds is not None and NATIVE in kinds.enum_items:
            cloud.type = NATIVE
        return cloud
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(count)
    return mesh


def _write(
    data: bpy.types.PointCloud | bpy.types.Mesh, name: str, data_types: tuple[str, ...], values: np.ndarray
) -> None:
    known = bpy.types.Attribute.bl_rna.properties["data_type"].enum_items
    data_type = next(kind for kind in data_types if kind in known)
    attribute = data.attributes.get(name) or data.attributes.new(name, data_type, "POINT")
    key, _, dtype = STORAGE[attribute.data_type]
    # A flat buffer of the very type is copied whole; anything else goes point by point.
    attribute.data.foreach_set(key, np.ascontiguousarray(values, dtype).reshape(-1))


def _read(thing: bpy.types.Object) -> SplatCloud:
    """Returns the Gaussians of one object in its own space."""
    if not is_splat_object(thing):
        raise WorldWarpError(
            "bad_splats",
            f'"{thing.name}" is no splat object: it lacks the point attributes {SCALE.name}, {ROTATION.name} and '
            f"{BASE.name}.",
        )
    attributes = thing.data.attributes
    means, base = values_of(attributes["position"]), values_of(attributes[BASE.name])
    opacity = base[:, 3].clip(0, 1)
    with np.errstate(divide="ignore"):
        opacities = np.log(opacity) - np.log1p(-opacity)
        scales = np.log(values_of(attributes[SCALE.name]))
    quats = values_of(attributes[ROTATION.name])
    harmonics = [values_of(attributes[name]) for name in harmonics_in(thing.data)]
    lengths = np.linalg.norm(quats, axis=1, keepdims=True)
    return SplatCloud(
        means=means,
        quats=np.where(lengths > 0, quats / np.where(lengths > 0, lengths, 1), (1, 0, 0, 0)).astype(np.float32),
        scales=np.maximum(scales, np.log(np.finfo(np.float32).tiny)).astype(np.float32),
        opacities=opacities.clip(-MAX_LOGIT, MAX_LOGIT).astype(np.float32),
        sh0=base[:, None, :3].copy(),
        shN=np.stack(harmonics, axis=1) if harmonics else np.zeros((len(means), 0, 3), np.float32),
        # What an object lacks of ours is as it is by default.
        **{
            field: values_of(attributes[name])
            for field, name in (("source_frames", "source_frame"), ("sky", "sky"))
            if name in attributes
        },
    )


def harmonics_in(data: bpy.types.PointCloud | bpy.types.Mesh) -> list[str]:
    """Returns the attributes of the view-dependent colour, (N, 3) each: 0, 3, 8 or 15, as files know whole degrees."""
    found = 0
    while _harmonic(found) in data.attributes:
        found += 1
    return [_harmonic(i) for i in range(max(count for count in (0, 3, 8, 15) if count <= found))]


def values_of(attribute: bpy.types.Attribute) -> np.ndarray:
    """Returns (N, components) or (N,) of a point attribute, copied in one go."""
    key, components, dtype = STORAGE[attribute.data_type]
    values = np.empty(len(attribute.data) * components, dtype)
    attribute.data.foreach_get(key, values)
    return values.reshape(-1, components) if components > 1 else values
