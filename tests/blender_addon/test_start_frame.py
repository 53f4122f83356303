"""The rendered start frame: exact depth at pixel centres, baked colours, and a scene that is left as it was."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon.camera_export import export_camera_path
from blender_addon.render_layers import UnexpectedLayout, read_channel
from blender_addon.start_frame import OWN_SLOT, render, render_start_frame, save_render_result
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures.exr_writer import encode_exr
from worldwarp_core.spec import BACKGROUND_DEPTH


@pytest.fixture
def small_render(camera: bpy.types.Object) -> bpy.types.Scene:
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = 48, 32
    return scene


def add_plane(location: tuple[float, ...], rotation: tuple[float, ...], size: float = 500.0) -> bpy.types.Object:
    bpy.ops.mesh.primitive_plane_add(size=size, location=location, rotation=rotation)
    return bpy.context.object


def emit(thing: bpy.types.Object, colour: tuple[float, float, float]) -> None:
    material = bpy.data.materials.new("Light")
    material.use_nodes = True
    nodes = material.node_tree.nodes
    nodes.clear()
    emission, output = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeOutputMaterial")
    emission.inputs["Color"].default_value = (*colour, 1.0)
    material.node_tree.links.new(emission.outputs[0], output.inputs["Surface"])
    thing.data.materials.append(material)


def plane_depth(plane: bpy.types.Object, frame: int) -> np.ndarray:
    """Returns the exact planar z of an endless plane at every pixel centre, from the exported camera."""
    path = export_camera_path(bpy.context, [frame])
    K, c2w = path.K[0], path.c2w[0]
    normal, point = np.array(plane.matrix_world)[:3, 2], np.array(plane.matrix_world)[:3, 3]
    u, v = np.meshgrid(np.arange(path.width) + 0.5, np.arange(path.height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(K).T @ c2w[:3, :3].T
    return ((point - c2w[:3, 3]) @ normal) / (rays @ normal)


def test_depth_of_a_tilted_plane_is_exact_at_pixel_centres(small_render: bpy.types.Scene) -> None:
    small_render.camera.data.shift_x = 0.1
    small_render.camera.data.dof.use_dof = True
    small_render.render.use_motion_blur = True
    plane = add_plane((0.0, 0.0, -7.0), (0.6, 0.2, 0.0))
    bpy.context.view_layer.update()
    start = render_start_frame(bpy.context, frame=2, samples=1)
    expected = plane_depth(plane, frame=2)
    assert start.depth.shape == (32, 48)
    np.testing.assert_allclose(start.depth, expected, rtol=1e-4)


def test_pixels_that_are_not_square_are_rendered_as_they_are_exported(small_render: bpy.types.Scene) -> None:
    small_render.render.pixel_aspect_x, small_render.render.pixel_aspect_y = 1.0, 1.5
    plane = add_plane((0.0, 0.0, -7.0), (0.6, 0.2, 0.0))
    bpy.context.view_layer.update()
    start = render_start_frame(bpy.context, frame=1, samples=1)
    np.testing.assert_allclose(start.depth, plane_depth(plane, frame=1), rtol=1e-4)
    assert small_render.render.pixel_aspect_y == 1.5


def test_background_is_far_away_and_says_so(small_render: bpy.types.Scene) -> None:
    add_plane((0.0, 0.0, -5.0), (0.0, 0.0, 0.0), size=1.0)
    depth = render_start_frame(bpy.context, frame=1, samples=1).depth
    assert depth[16, 24] == pytest.approx(5.0, rel=1e-5)
    assert depth[0, 0] == np.float32(BACKGROUND_DEPTH)


def test_the_frame_asked_for_is_rendered_and_cropped_as_the_camera_is_exported(small_render: bpy.types.Scene) -> None:
    add_plane((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    camera = small_render.camera
    for frame, z in ((1, 3.0), (2, 4.0)):
        camera.location.z = z
        camera.keyframe_insert("location", frame=frame)
    render = small_render.render
    render.use_border = render.use_crop_to_border = True
    render.border_max_x, render.border_min_y = 0.4, 0.3
    start = render_start_frame(bpy.context, frame=2, samples=1)
    path = export_camera_path(bpy.context, [2])
    assert start.rgb.shape == (path.height, path.width, 3)
    np.testing.assert_allclose(start.depth, 4.0, rtol=1e-5)


def test_the_view_transform_is_baked_into_the_picture_and_recorded(small_render: bpy.types.Scene) -> None:
    emit(add_plane((0.0, 0.0, -5.0), (0.0, 0.0, 0.0)), (0.5, 0.25, 0.05))
    small_render.view_settings.view_transform = "Standard"
    standard = render_start_frame(bpy.context, frame=1, samples=1)
    # sRGB's curve of 0.5, 0.25 and 0.05.
    assert np.abs(standard.rgb[10, 10].astype(int) - (188, 137, 63)).max() <= 1
    assert standard.look["view_transform"] == "Standard"
    small_render.view_settings.view_transform = "AgX"
    agx = render_start_frame(bpy.context, frame=1, samples=1)
    assert agx.look["view_transform"] == "AgX"
    assert np.abs(agx.rgb[10, 10].astype(int) - standard.rgb[10, 10]).max() > 5


def test_a_blender_without_a_denoiser_renders_without_it(
    small_render: bpy.types.Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_plane((0.0, 0.0, -5.0), (0.0, 0.0, 0.0))
    asked: list[bool] = []
    monkeypatch.setattr("blender_addon.start_frame.can_denoise", lambda: False)
    monkeypatch.setattr(
        "blender_addon.start_frame.render",
        lambda scene: (asked.append(scene.cycles.use_denoising), render(scene)),
    )
    assert render_start_frame(bpy.context, frame=1, samples=1).look["denoised"] is False
    assert not any(asked)


def test_the_picture_is_the_right_way_up(small_render: bpy.types.Scene) -> None:
    emit(add_plane((0.0, 1.0, -5.0), (0.0, 0.0, 0.0), size=2.0), (1.0, 1.0, 1.0))
    rgb = render_start_frame(bpy.context, frame=1, samples=1).rgb
    assert rgb[:16].mean() > rgb[16:].mean() + 20


def snapshot(scene: bpy.types.Scene) -> dict[str, object]:
    """Returns every plain render setting of the scene."""
    layer, camera = bpy.context.view_layer, scene.camera.data
    owners = (scene.render, scene.render.image_settings, scene.cycles, scene.view_settings, camera.dof, layer)
    return {
        f"{type(owner).__name__}.{prop.identifier}": getattr(owner, prop.identifier)
        for owner in owners
        for prop in owner.bl_rna.properties
        if prop.type in ("BOOLEAN", "INT", "FLOAT", "STRING", "ENUM") and not getattr(prop, "is_array", False)
    } | {"frame": scene.frame_current}


@pytest.mark.parametrize(("media", "file_format", "depth"), [("IMAGE", "OPEN_EXR", "16"), ("VIDEO", "FFMPEG", "8")])
def test_every_setting_is_put_back_also_after_a_failure(
    small_render: bpy.types.Scene, monkeypatch: pytest.MonkeyPatch, media: str, file_format: str, depth: str
) -> None:
    image_settings = small_render.render.image_settings
    if hasattr(image_settings, "media_type"):
        image_settings.media_type = media
    image_settings.file_format, image_settings.color_depth = file_format, depth
    small_render.camera.data.dof.use_dof = True
    before = snapshot(small_render)
    render_start_frame(bpy.context, frame=3, samples=2)
    assert snapshot(small_render) == before

    def fails(*_: object) -> None:
        raise WorldWarpError("render_failed", "out of memory")

    monkeypatch.setattr("blender_addon.start_frame.read_depth", fails)
    with pytest.raises(WorldWarpError, match="out of memory"):
        render_start_frame(bpy.context, frame=3, samples=2)
    assert snapshot(small_render) == before


def rendered_pixels(scene: bpy.types.Scene, path: Path) -> bytes:
    """Returns the picture that Blender's Render Result shows, as a file."""
    return save_render_result(scene, path, "PNG").read_bytes()


def test_the_artists_last_render_stays_where_it_is(small_render: bpy.types.Scene, tmp_path: Path) -> None:
    small_render.render.engine = "CYCLES"
    small_render.cycles.samples = 1
    plane = add_plane((0.0, 0.0, -5.0), (0.0, 0.0, 0.0))
    emit(plane, (0.5, 0.25, 0.05))
    bpy.ops.render.render()
    before = rendered_pixels(small_render, tmp_path / "before.png")
    plane.hide_render = True
    for _ in range(2):
        assert render_start_frame(bpy.context, frame=1, samples=1).rgb.max() < 100
    assert rendered_pixels(small_render, tmp_path / "after.png") == before
    slots = next(image for image in bpy.data.images if image.type == "RENDER_RESULT").render_slots
    assert [slot.name for slot in slots].count(OWN_SLOT) == 1


@pytest.mark.parametrize("layer", ["ViewLayer", "Props"])
def test_of_several_view_layers_the_one_in_front_is_rendered(small_render: bpy.types.Scene, layer: str) -> None:
    wall, prop = (add_plane((0.0, 0.0, z), (0.0, 0.0, 0.0)) for z in (-9.0, -3.0))
    emit(wall, (1.0, 0.0, 0.0))
    emit(prop, (0.0, 1.0, 0.0))
    props = bpy.data.collections.new("Props")
    small_render.collection.children.link(props)
    small_render.collection.objects.unlink(prop)
    props.objects.link(prop)
    small_render.view_layers.new("Props")
    small_render.view_layers["ViewLayer"].layer_collection.children["Props"].exclude = True
    small_render.render.engine = "CYCLES"
    small_render.cycles.samples = 1
    # What an earlier render left of both layers must not be taken for this one's.
    bpy.ops.render.render()
    with bpy.context.temp_override(scene=small_render, view_layer=small_render.view_layers[layer]):
        start = render_start_frame(bpy.context, frame=1, samples=1)
    near = layer == "Props"
    np.testing.assert_allclose(start.depth, 3.0 if near else 9.0, rtol=1e-4)
    assert start.rgb.mean(axis=(0, 1)).argmax() == (1 if near else 0)
    assert all(view_layer.use for view_layer in small_render.view_layers)


def test_nothing_is_rendered_beside_a_render_that_runs(
    small_render: bpy.types.Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blender_addon.start_frame.is_rendering", lambda: True)
    with pytest.raises(WorldWarpError, match="Wait until that is done"):
        render_start_frame(bpy.context, frame=1, samples=1)


def test_a_render_that_cannot_be_kept_is_a_sentence(small_render: bpy.types.Scene, tmp_path: Path) -> None:
    small_render.render.engine = "CYCLES"
    small_render.cycles.samples = 1
    render(small_render)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WorldWarpError, match="may be full"):
        save_render_result(small_render, tmp_path / "file/start.png", "PNG")


def test_an_orthographic_camera_is_refused_before_anything_renders(small_render: bpy.types.Scene) -> None:
    small_render.camera.data.type = "ORTHO"
    with pytest.raises(WorldWarpError, match="orthographic"):
        render_start_frame(bpy.context, frame=1)


def test_a_broken_file_is_refused_not_misread(small_render: bpy.types.Scene, tmp_path: Path) -> None:
    path = tmp_path / "depth.exr"
    path.write_bytes(encode_exr({"Depth.Z": np.ones((20, 10), np.float32)}))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnexpectedLayout, match="damaged"):
        read_channel(path, ".Depth.Z")
    path.write_bytes(b"no picture at all")
    with pytest.raises(UnexpectedLayout):
        read_channel(path, ".Depth.Z")
