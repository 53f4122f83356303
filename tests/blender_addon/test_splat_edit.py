"""Cropping and thinning leave what they should, where it was."""

from __future__ import annotations

import bpy
import numpy as np
import pytest
from mathutils import Matrix

from blender_addon.splat_edit import heaviest
from blender_addon.splats import add_splat_objects, local_cloud_of, sky_of, splat_cloud_of
from worldwarp_core.splat_files.cloud import SplatCloud

pytestmark = pytest.mark.usefixtures("addon")


def a_cloud(count: int = 500, sky: int = 50, seed: int = 0) -> SplatCloud:
    rng = np.random.default_rng(seed)
    means = rng.uniform(-2, 2, (count, 3))
    means[:sky] *= 1000
    return SplatCloud(
        means=means.astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        scales=np.log(rng.uniform(0.01, 0.5, (count, 3))).astype(np.float32),
        opacities=rng.uniform(-5, 5, count).astype(np.float32),
        sh0=rng.normal(size=(count, 1, 3)).astype(np.float32),
        shN=rng.normal(size=(count, 3, 3)).astype(np.float32),
        sky=np.arange(count) < sky,
    )


@pytest.fixture
def world() -> bpy.types.Object:
    """Returns a splat object that was moved, turned and scaled."""
    made = add_splat_objects(bpy.context, "World", a_cloud())
    made.matrix_world = Matrix.LocRotScale((3.0, 0.0, 1.0), Matrix.Rotation(0.7, 3, "Z"), (2.0,) * 3)
    bpy.context.view_layer.update()
    return made


def select(*things: bpy.types.Object) -> None:
    for thing in bpy.context.view_layer.objects:
        thing.select_set(thing in things)
    bpy.context.view_layer.objects.active = things[0]


@pytest.mark.parametrize("side", ["INSIDE", "OUTSIDE"])
@pytest.mark.parametrize("kind", ["cube", "empty"])
def test_a_turned_box_crops_what_is_seen_in_it(world: bpy.types.Object, side: str, kind: str) -> None:
    if kind == "cube":
        bpy.ops.mesh.primitive_cube_add(size=2.0)
    else:
        bpy.ops.object.empty_add(type="CUBE", radius=1.0)
    box = bpy.context.object
    box.matrix_world = Matrix.LocRotScale((2.0, 1.0, 1.0), Matrix.Rotation(0.4, 3, (1, 2, 3)), (3.0, 2.0, 1.5))
    bpy.context.view_layer.update()
    before = splat_cloud_of(world)
    local = before.means @ np.linalg.inv(np.array(box.matrix_world))[:3, :3].T
    local += np.linalg.inv(np.array(box.matrix_world))[:3, 3]
    kept = ((np.abs(local) <= 1).all(axis=1) == (side == "INSIDE")) | before.sky
    assert 60 < kept.sum() < 500
    select(world, box)
    assert bpy.ops.worldwarp.crop_splats(side=side) == {"FINISHED"}
    after = splat_cloud_of(world)
    np.testing.assert_array_equal(after.means, before.means[kept])
    np.testing.assert_array_equal(after.sh0, before.sh0[kept])
    assert len(sky_of(world)) == 1
    assert world.location.x == 3.0
    assert bpy.ops.worldwarp.crop_splats(side=side, crop_sky=True) == {"FINISHED"}
    assert (len(sky_of(world)) == 0) == (side == "INSIDE")


def test_cropping_all_away_is_refused_and_changes_nothing(world: bpy.types.Object) -> None:
    bpy.ops.mesh.primitive_cube_add(location=(100, 100, 100))
    select(world, bpy.context.object)
    with pytest.raises(RuntimeError, match="leaves nothing"):
        bpy.ops.worldwarp.crop_splats(crop_sky=True)
    assert len(local_cloud_of(world)) == 500


def test_without_a_box_the_crop_says_what_to_select(world: bpy.types.Object) -> None:
    select(world)
    with pytest.raises(RuntimeError, match="select the splats, and one cube"):
        bpy.ops.worldwarp.crop_splats()


def test_by_ratio_and_count_the_most_visible_stay(world: bpy.types.Object) -> None:
    cloud = a_cloud()
    area = np.exp(np.sort(cloud.scales, axis=1)[:, 1:].sum(axis=1)) / (1 + np.exp(-cloud.opacities))
    assert set(np.flatnonzero(heaviest(cloud, 40))) == set(np.argsort(area)[-40:])
    select(world)
    assert bpy.ops.worldwarp.decimate_splats(by="RATIO", ratio=0.5) == {"FINISHED"}
    assert len(local_cloud_of(world)) == 250
    assert bpy.ops.worldwarp.decimate_splats(by="COUNT", count=40) == {"FINISHED"}
    np.testing.assert_allclose(
        np.sort(local_cloud_of(world).sh0[:, 0, 0]), np.sort(cloud.sh0[np.argsort(area)[-40:], 0, 0])
    )


def test_by_opacity_and_size(world: bpy.types.Object) -> None:
    cloud = a_cloud()
    select(world)
    bpy.ops.worldwarp.decimate_splats(by="OPACITY", opacity=0.2)
    seen = 1 / (1 + np.exp(-cloud.opacities)) >= 0.2
    assert len(local_cloud_of(world)) == seen.sum()
    # The object is scaled by two, and the size is that in the scene.
    bpy.ops.worldwarp.decimate_splats(by="SIZE", size=0.8)
    small = (np.exp(cloud.scales.max(axis=1)) * 2 <= 0.8) | cloud.sky
    assert len(local_cloud_of(world)) == (seen & small).sum()


def test_only_a_splat_object_can_be_thinned() -> None:
    bpy.ops.mesh.primitive_cube_add()
    assert not bpy.ops.worldwarp.decimate_splats.poll()
    assert not bpy.ops.worldwarp.crop_splats.poll()
