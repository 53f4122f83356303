"""Splat files come in as objects with native attribute names, in place, and go out again as they stand."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Matrix

from blender_addon.splats import add_splat_objects, is_splat_object, select, sky_of, splat_cloud_of
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.axes import to_axes, transform
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import read_splats, write_splats


def random_cloud(count: int = 200, bands: int = 15, sky: int = 0, seed: int = 0) -> SplatCloud:
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(count, 4))
    means = rng.normal(size=(count, 3)) * (1.0, 2.0, 3.0)
    means[:sky] *= 1000
    return SplatCloud(
        means=means.astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=rng.uniform(-5, -1, (count, 3)).astype(np.float32),
        opacities=rng.uniform(-4, 4, count).astype(np.float32),
        sh0=rng.normal(size=(count, 1, 3)).astype(np.float32),
        shN=rng.normal(size=(count, bands, 3)).astype(np.float32),
        source_frames=rng.integers(1, 90, count).astype(np.int32),
        sky=np.arange(count) < sky,
    )


def assert_same(got: SplatCloud, wanted: SplatCloud, atol: float = 1e-5) -> None:
    """Compares two clouds in whatever order files put them; q and -q are the same orientation."""
    # The degree-0 colour is random and no transform touches it.
    got, wanted = (select(cloud, np.argsort(cloud.sh0[:, 0, 0])) for cloud in (got, wanted))
    sign = np.sign((got.quats * wanted.quats).sum(1, keepdims=True))
    np.testing.assert_allclose(got.quats * sign, wanted.quats, atol=atol)
    for name in ("means", "scales", "opacities", "sh0", "shN"):
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-5, atol=atol, err_msg=name)
    np.testing.assert_array_equal(got.sky, wanted.sky)
    np.testing.assert_array_equal(got.source_frames, wanted.source_frames)


@pytest.mark.parametrize("bands", [0, 3, 8, 15])
def test_a_cloud_becomes_an_object_and_is_read_back(bands: int) -> None:
    cloud = random_cloud(bands=bands)
    made = add_splat_objects(bpy.context, "World", cloud)
    assert is_splat_object(made)
    assert_same(splat_cloud_of(made), cloud)


def test_attributes_have_the_names_and_values_of_native_splats() -> None:
    cloud = random_cloud(count=5)
    data = add_splat_objects(bpy.context, "World", cloud).data
    names = {"position", "scale", "rotation", "radiance:base", *(f"radiance:sh_{i}" for i in range(15))}
    assert names <= set(data.attributes.keys())
    assert data.attributes["rotation"].data_type == "QUATERNION"
    base = data.attributes["radiance:base"]
    assert base.data_type in ("FLOAT4", "FLOAT_COLOR")
    point = base.data[3]
    value = point.vector if base.data_type == "FLOAT4" else point.color
    np.testing.assert_allclose(value, [*cloud.sh0[3, 0], 1 / (1 + np.exp(-cloud.opacities[3]))], rtol=1e-5)
    np.testing.assert_allclose(data.attributes["scale"].data[3].vector, np.exp(cloud.scales[3]), rtol=1e-5)


def test_the_sky_is_its_own_object_and_leaves_the_bounds_alone() -> None:
    cloud = random_cloud(sky=20)
    made = add_splat_objects(bpy.context, "World", cloud)
    (sky,) = sky_of(made)
    assert sky.name == "World Sky"
    positions = np.empty(len(made.data.attributes["position"].data) * 3, np.float32)
    made.data.attributes["position"].data.foreach_get("vector", positions)
    np.testing.assert_allclose(positions.reshape(-1, 3), cloud.means[20:])
    back = splat_cloud_of(made)
    assert back.sky.sum() == 20
    assert len(back) == len(cloud)


def test_filling_an_object_anew_keeps_it_and_follows_its_sky() -> None:
    made = add_splat_objects(bpy.context, "World", random_cloud(sky=20))
    assert add_splat_objects(bpy.context, "Other", random_cloud(count=90, sky=5), replacing=made) == made
    assert (made.name, len(splat_cloud_of(made)), splat_cloud_of(made).sky.sum()) == ("World", 90, 5)
    add_splat_objects(bpy.context, "Other", random_cloud(count=50), replacing=made)
    assert (len(bpy.data.objects), len(splat_cloud_of(made))) == (1, 50)
    assert len(bpy.data.meshes) + len(bpy.data.pointclouds) == 1


def test_a_moved_turned_and_scaled_object_is_exported_where_it_stands() -> None:
    cloud = random_cloud()
    made = add_splat_objects(bpy.context, "World", cloud)
    matrix = Matrix.LocRotScale(
        (1.0, -2.0, 3.0), Matrix.Rotation(0.8, 3, "X") @ Matrix.Rotation(1.9, 3, "Z"), (2.5,) * 3
    )
    made.matrix_world = matrix
    bpy.context.view_layer.update()
    back = splat_cloud_of(made)
    assert_same(back, transform(cloud, np.array(matrix)), atol=2e-5)
    assert np.abs(back.shN - cloud.shN).max() > 0.1


def test_an_unevenly_scaled_object_is_refused() -> None:
    made = add_splat_objects(bpy.context, "World", random_cloud())
    made.scale = (1.0, 2.0, 1.0)
    bpy.context.view_layer.update()
    with pytest.raises(WorldWarpError) as caught:
        splat_cloud_of(made)
    assert caught.value.code == "bad_splats"


@pytest.mark.usefixtures("addon")
@pytest.mark.parametrize("axes", ["blender", "colmap", "y-up"])
def test_operators_read_and_write_files_in_any_axes(tmp_path: Path, axes: str) -> None:
    cloud = random_cloud(count=50)
    write_splats(tmp_path / "in.ply", cloud, axes=axes)
    assert bpy.ops.worldwarp.import_splats(filepath=str(tmp_path / "in.ply"), axes=axes) == {"FINISHED"}
    made = bpy.context.view_layer.objects.active
    assert made.name == "in"
    np.testing.assert_array_equal(made.matrix_world, np.eye(4))
    assert_same(splat_cloud_of(made), cloud)
    made.location.x = 5.0
    assert bpy.ops.worldwarp.export_splats(filepath=str(tmp_path / "out.ply"), axes=axes) == {"FINISHED"}
    moved = np.eye(4)
    moved[0, 3] = 5.0
    assert_same(read_splats(tmp_path / "out.ply", axes=axes), transform(cloud, moved))


@pytest.mark.usefixtures("addon")
def test_axes_turn_the_cloud(tmp_path: Path) -> None:
    cloud = random_cloud(count=50)
    write_splats(tmp_path / "in.ply", cloud, axes="blender")
    bpy.ops.worldwarp.import_splats(filepath=str(tmp_path / "in.ply"), axes="colmap")
    assert_same(splat_cloud_of(bpy.context.view_layer.objects.active), to_axes(cloud, "colmap", "blender"))
    bpy.ops.worldwarp.import_splats(filepath=str(tmp_path / "in.ply"))
    # Without a word from the user the file's own comment decides.
    assert_same(splat_cloud_of(bpy.context.view_layer.objects.active), cloud)


@pytest.mark.usefixtures("addon")
def test_spz_goes_out_and_comes_back_within_its_rounding(tmp_path: Path) -> None:
    cloud = random_cloud(count=50)
    add_splat_objects(bpy.context, "World", cloud)
    assert bpy.ops.worldwarp.export_splats(filepath=str(tmp_path / "out.spz")) == {"FINISHED"}
    assert bpy.ops.worldwarp.import_splats(filepath=str(tmp_path / "out.spz")) == {"FINISHED"}
    back = splat_cloud_of(bpy.context.view_layer.objects.active)
    assert len(back) == 50
    # The sky's splats are apart in the scene, and so last in the file.
    order = np.argsort(cloud.sky, kind="stable")
    assert np.abs(back.means - cloud.means[order]).max() < 1e-4 * max(1.0, np.abs(cloud.means).max())
    assert np.abs(back.scales - cloud.scales[order]).max() < 0.0315


@pytest.mark.usefixtures("addon")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.ply", None),
        ("text.ply", b"this is no splat"),
        ("mesh.ply", b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n"),
    ],
)
def test_a_bad_file_is_a_sentence_and_adds_nothing(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RuntimeError) as caught:
        bpy.ops.worldwarp.import_splats(filepath=str(tmp_path / name))
    assert str(caught.value).startswith("Error: ")
    assert "Traceback" not in str(caught.value)
    assert name in str(caught.value)
    assert len(bpy.data.objects) == 0


@pytest.mark.usefixtures("addon")
@pytest.mark.parametrize(("fault", "told"), [("cut", "cut off"), ("nan", "1 of 50 Gaussians have NaN")])
def test_a_damaged_file_is_a_sentence_and_adds_nothing(tmp_path: Path, fault: str, told: str) -> None:
    cloud = random_cloud(count=50)
    if fault == "nan":
        cloud.means[7, 1] = np.nan
    file = tmp_path / "damaged.ply"
    write_splats(file, cloud)
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=told) as caught:
        bpy.ops.worldwarp.import_splats(filepath=str(file))
    assert "Traceback" not in str(caught.value)
    assert len(bpy.data.objects) + len(bpy.data.meshes) + len(bpy.data.node_groups) == 0


@pytest.mark.usefixtures("addon")
def test_export_without_splats_says_what_to_do(tmp_path: Path) -> None:
    bpy.ops.mesh.primitive_cube_add()
    with pytest.raises(RuntimeError, match="no splat object"):
        bpy.ops.worldwarp.export_splats(filepath=str(tmp_path / "out.ply"))


@pytest.mark.usefixtures("addon")
def test_the_scenes_only_splats_are_exported_whatever_is_active(tmp_path: Path) -> None:
    add_splat_objects(bpy.context, "World", random_cloud(sky=10))
    bpy.ops.mesh.primitive_cube_add()
    bpy.ops.worldwarp.export_splats(filepath=str(tmp_path / "out.ply"))
    assert len(read_splats(tmp_path / "out.ply", axes="blender")) == 200
    add_splat_objects(bpy.context, "Other", random_cloud())
    bpy.context.view_layer.objects.active = None
    with pytest.raises(RuntimeError, match="2 splat objects"):
        bpy.ops.worldwarp.export_splats(filepath=str(tmp_path / "out.ply"))
