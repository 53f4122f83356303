"""Splats in final renders are what the core's rasteriser draws, from the file alone, wherever they were moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Matrix

from blender_addon.camera_export import export_camera_path
from blender_addon.splat_nodes import MADE_BY, MODIFIER
from blender_addon.splats import add_splat_objects, sky_of, splat_cloud_of
from worldwarp_core.api import render_splats
from worldwarp_core.splat_files.axes import sh_basis
from worldwarp_core.splat_files.cloud import SplatCloud

WIDTH, HEIGHT = 96, 64
SKY_DISTANCE = 3000.0
"""Far behind the camera's clip end."""


def colourful_cloud(seed: int = 0) -> SplatCloud:
    """A wall of opaque colours that change with the direction, long splats before it, a sky far behind."""
    rng = np.random.default_rng(seed)
    across, up = (axis.ravel() for axis in np.meshgrid(np.linspace(-5, 1.5, 30), np.linspace(-3, 3, 30)))
    wall = np.stack([across, rng.uniform(5.9, 6.1, 900), up], 1)
    floating = rng.uniform((-3, 3, -2), (3, 5, 2), (60, 3))
    sky = np.stack([*rng.uniform(-0.8, 0.8, (2, 300)), np.ones(300)], 1)[:, [0, 2, 1]]
    sky *= rng.uniform(1, 1.5, (300, 1)) * SKY_DISTANCE
    count = len(wall) + len(floating) + len(sky)
    quats = rng.normal(size=(count, 4))
    scales = np.full((count, 3), np.log(0.13))
    scales[900:960] = np.log(rng.uniform(0.03, 0.6, (60, 3)))
    scales[960:] = np.log(0.08 * SKY_DISTANCE)
    return SplatCloud(
        means=np.concatenate([wall, floating, sky]).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=scales.astype(np.float32),
        opacities=rng.uniform(1, 5, count).astype(np.float32),
        sh0=rng.uniform(-1, 1, (count, 1, 3)).astype(np.float32),
        shN=rng.normal(scale=0.15, size=(count, 15, 3)).astype(np.float32),
        sky=np.arange(count) >= 960,
    )


@pytest.fixture
def film(camera: bpy.types.Object) -> bpy.types.Scene:
    """Returns the scene, filmed along y by a camera with a shifted lens, ready for a small render."""
    camera.matrix_world = Matrix.Translation((0.3, -0.5, 0.2)) @ Matrix.Rotation(np.pi / 2, 4, "X")
    camera.data.lens, camera.data.shift_x, camera.data.clip_end = 30.0, 0.05, 100.0
    scene = bpy.context.scene
    scene.frame_end = 1
    scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
    scene.view_settings.view_transform = "Standard"
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.use_adaptive_sampling = 8, False, False
    return scene


def rendered(scene: bpy.types.Scene, folder: Path) -> np.ndarray:
    """Returns (H, W, 3) of the scene as Blender renders it, in [0, 1], top row first."""
    scene.render.filepath = str(folder / "out.png")
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(scene.render.filepath)
    pixels = np.array(image.pixels[:]).reshape(HEIGHT, WIDTH, 4)[::-1, :, :3]
    bpy.data.images.remove(image)
    return pixels


def rasterised(cloud: SplatCloud) -> np.ndarray:
    """Returns (H, W, 3) of the same as the core draws it, but blended in linear light as renderers do."""
    path = export_camera_path(bpy.context)
    away = cloud.means.astype(np.float64) - path.c2w[0, :3, 3]
    basis = sh_basis(away / np.linalg.norm(away, axis=1, keepdims=True), cloud.sh_degree)
    encoded = 0.5 + np.einsum("nk,nkc->nc", basis, np.concatenate([cloud.sh0, cloud.shN], 1))
    sh0 = ((linear(encoded.clip(0)) - 0.5) / basis[0, 0])[:, None].astype(np.float32)
    flat = replace(cloud, sh0=sh0, shN=np.zeros((len(cloud), 0, 3), np.float32))
    return srgb(render_splats(flat, path)[0][0])


def linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def test_cycles_renders_what_the_core_draws(film: bpy.types.Scene, tmp_path: Path) -> None:
    cloud = colourful_cloud()
    add_splat_objects(bpy.context, "World", cloud)
    got, wanted = rendered(film, tmp_path), rasterised(cloud)
    assert psnr_db(got, wanted) > 40
    # Colours that ignore the direction, or a sky that is clipped, are another picture.
    assert psnr_db(got, rasterised(replace(cloud, shN=0 * cloud.shN))) < 30
    assert psnr_db(got, rasterised(replace(cloud, means=np.where(cloud.sky[:, None], -1, 1) * cloud.means))) < 25


def test_a_moved_turned_and_scaled_object_renders_where_it_stands(film: bpy.types.Scene, tmp_path: Path) -> None:
    made = add_splat_objects(bpy.context, "World", colourful_cloud())
    made.matrix_world = Matrix.LocRotScale((0.5, 1.0, 0.5), Matrix.Rotation(0.4, 3, (1, 2, 3)), (1.3,) * 3)
    bpy.context.view_layer.update()
    assert psnr_db(rendered(film, tmp_path), rasterised(splat_cloud_of(made))) > 40


def test_the_picture_follows_the_scenes_camera_and_its_lens(film: bpy.types.Scene, tmp_path: Path) -> None:
    cloud = colourful_cloud()
    add_splat_objects(bpy.context, "World", cloud)
    other = bpy.data.objects.new("Other", bpy.data.cameras.new("Other"))
    film.collection.objects.link(other)
    other.matrix_world = Matrix.Translation((-1.5, 0.5, -0.3)) @ Matrix.Rotation(1.4, 4, "X")
    other.data.lens, other.data.sensor_fit, other.data.sensor_height = 22.0, "VERTICAL", 20.0
    film.camera = other
    assert psnr_db(rendered(film, tmp_path), rasterised(cloud)) > 40


def test_splats_that_came_before_the_camera_follow_it_too(film: bpy.types.Scene, tmp_path: Path) -> None:
    camera, film.camera = film.camera, None
    cloud = colourful_cloud()
    add_splat_objects(bpy.context, "World", cloud)
    bpy.context.view_layer.update()
    film.camera = camera
    assert psnr_db(rendered(film, tmp_path), rasterised(cloud)) > 40


def test_a_surface_before_the_splats_hides_them_and_one_behind_does_not(film: bpy.types.Scene, tmp_path: Path) -> None:
    add_splat_objects(bpy.context, "World", replace(colourful_cloud(), shN=np.zeros((1260, 15, 3), np.float32)))
    bare = rendered(film, tmp_path)
    green = bpy.data.materials.new("Green")
    green.use_nodes = True
    green.node_tree.nodes.clear()
    light = green.node_tree.nodes.new("ShaderNodeEmission")
    light.inputs[0].default_value = (0, 1, 0, 1)
    output = green.node_tree.nodes.new("ShaderNodeOutputMaterial")
    green.node_tree.links.new(light.outputs[0], output.inputs[0])
    # Before the wall at the upper left, behind it at the lower left.
    for x, y, z in ((-1.5, 2.0, 1.0), (-4.0, 9.0, -2.0)):
        bpy.ops.mesh.primitive_cube_add(size=1.0, location=(x, y, z))
        bpy.context.object.data.materials.append(green)
    with_cubes = rendered(film, tmp_path)
    is_green = (with_cubes[..., 1] > 0.98) & (with_cubes[..., [0, 2]] < 0.05).all(-1)
    assert is_green[: HEIGHT // 2].sum() > 50
    assert not is_green[HEIGHT // 2 :].any()
    assert np.abs(with_cubes - bare)[HEIGHT // 2 :].mean() < 0.01


def test_lights_change_nothing(film: bpy.types.Scene, tmp_path: Path) -> None:
    add_splat_objects(bpy.context, "World", colourful_cloud())
    dark = rendered(film, tmp_path)
    bpy.ops.object.light_add(type="SUN", rotation=(0.5, 0.5, 0))
    bpy.context.object.data.energy = 100.0
    np.testing.assert_allclose(rendered(film, tmp_path), dark, atol=2 / 255)


def test_a_saved_file_renders_without_the_addon(film: bpy.types.Scene, tmp_path: Path) -> None:
    cloud = colourful_cloud()
    add_splat_objects(bpy.context, "World", cloud)
    wanted = rasterised(cloud)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "scene.blend"), use_scripts=False)
    assert not hasattr(bpy.types.Scene, "worldwarp")
    assert psnr_db(rendered(bpy.context.scene, tmp_path), wanted) > 40


def test_two_worlds_share_one_group_and_one_material(film: bpy.types.Scene) -> None:
    for _ in range(2):
        made = add_splat_objects(bpy.context, "World", colourful_cloud())
        (sky,) = sky_of(made)
        # The parent renders both, in one order.
        assert sky.hide_render
    add_splat_objects(bpy.context, "Flat", replace(colourful_cloud(), shN=np.zeros((1260, 0, 3), np.float32)))
    assert len([group for group in bpy.data.node_groups if group.get(MADE_BY)]) == 3
    assert len([material for material in bpy.data.materials if material.get(MADE_BY)]) == 1


def test_the_viewport_gets_a_box_that_can_be_clicked_and_none_for_the_sky(film: bpy.types.Scene) -> None:
    made = add_splat_objects(bpy.context, "World", colourful_cloud())
    depsgraph = bpy.context.evaluated_depsgraph_get()
    box = made.evaluated_get(depsgraph)
    assert (len(box.data.vertices), len(box.data.edges), len(box.data.polygons)) == (8, 12, 0)
    np.testing.assert_allclose(
        np.ptp([corner.co for corner in box.data.vertices], axis=0),
        np.ptp(colourful_cloud().means[:960], axis=0),
        atol=1e-4,
    )
    (sky,) = sky_of(made)
    assert len(sky.evaluated_get(depsgraph).data.vertices) == 0


def test_filling_an_object_anew_keeps_one_modifier(film: bpy.types.Scene) -> None:
    cloud = colourful_cloud()
    made = add_splat_objects(bpy.context, "World", cloud)
    near = replace(cloud, shN=np.zeros((1260, 0, 3), np.float32), sky=np.zeros(1260, bool))
    add_splat_objects(bpy.context, "World", near, replacing=made)
    (modifier,) = made.modifiers
    assert (modifier.name, modifier.node_group.name) == (MODIFIER, "WorldWarp Splats SH0")
    assert len(made.animation_data.drivers) == 4
