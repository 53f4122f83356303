"""How large a world is that begins with a picture: a point and its distance, an object, and what the viewport shows."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import bpy
import numpy as np
import pytest
from mathutils import Vector

from blender_addon import cloud_overlay
from blender_addon.camera_export import export_camera_path
from blender_addon.pictures import values_of
from blender_addon.scale import depth_at, depth_of_values, picture_cloud, scaled_depth
from blender_addon.scale_operators import place_in_frame
from blender_addon.shot import ShotSettings, prepare_shot
from tests.blender_addon.test_look import image_of, ramp
from worldwarp_core.spec import BACKGROUND_DEPTH

pytestmark = pytest.mark.usefixtures("addon")


@pytest.fixture
def photo(camera: bpy.types.Object) -> bpy.types.Scene:
    """A shot that begins with a picture of 64 x 32 whose left half is twice as far as its right one."""
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = 64, 32
    group = scene.worldwarp
    group.start_source = "IMAGE"
    group.start_image = image_of(ramp(32, 64))
    values = np.full((16, 32, 3), 0.4)
    values[:, :16] = 0.8
    group.start_depth, group.depth_kind = image_of(values, "Depth", float_buffer=True, is_data=True), "DISTANCE"
    return scene


def sent_depth() -> np.ndarray:
    return prepare_shot(bpy.context, ShotSettings.of(bpy.context), lambda _: None).spec.depth


def test_a_picked_point_and_its_distance_scale_the_whole_map(photo: bpy.types.Scene) -> None:
    bpy.ops.worldwarp.set_distance(point=(0.75, 0.5), distance=3.0)
    depth = sent_depth()
    assert depth.shape == (32, 64)
    np.testing.assert_allclose(depth[:, 32:], 3.0, rtol=1e-6)
    np.testing.assert_allclose(depth[:, :32], 6.0, rtol=1e-6)
    assert ShotSettings.of(bpy.context).scene_scale is None


def test_an_object_scales_the_map_where_the_picture_shows_it(photo: bpy.types.Scene) -> None:
    thing = bpy.data.objects.new("Lamp Post", None)
    photo.collection.objects.link(thing)
    bpy.context.view_layer.objects.active = thing
    thing.location = (-2.0, 0.0, -10.0)
    assert bpy.ops.worldwarp.match_object() == {"FINISHED"}
    assert photo.worldwarp.scene_scale == pytest.approx(10.0)
    assert photo.worldwarp.scale_point[0] < 0.5
    assert sent_depth()[16, 10] == pytest.approx(10.0, rel=1e-5)
    thing.location = (0.0, 0.0, 10.0)
    with pytest.raises(RuntimeError, match='does not see the origin of "Lamp Post"'):
        bpy.ops.worldwarp.match_object()


def test_without_a_distance_the_median_is_as_far_as_what_is_in_view(photo: bpy.types.Scene) -> None:
    bpy.ops.mesh.primitive_plane_add(size=100, location=(0, 0, -8))
    depth = scaled_depth(bpy.context, export_camera_path(bpy.context, [1]))
    assert np.median(depth) == pytest.approx(8.0, rel=1e-3)


def test_nearness_is_turned_into_distance() -> None:
    depth = depth_of_values(np.float32([[1.0, 0.5, 0.0]]), "NEARNESS")
    np.testing.assert_allclose(depth, [[1.0, 2.0, 100.0]])
    nothing = depth_of_values(np.float32([[0.5, 0.0, np.nan, np.inf]]), "DISTANCE")
    np.testing.assert_allclose(nothing, [[0.5, *[BACKGROUND_DEPTH] * 3]])


def write_16_bit(path: Path, values: np.ndarray) -> Path:
    """Writes (H, W) uint16 as a grey PNG, as depth estimators do."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("colorspace", ["sRGB", "Non-Color"])
def test_a_map_of_16_bits_means_its_own_numbers_in_whatever_space_it_is_opened(tmp_path: Path, colorspace: str) -> None:
    stored = np.linspace(0, 65535, 6 * 4).astype(np.uint16).reshape(4, 6)
    image = bpy.data.images.load(str(write_16_bit(tmp_path / "depth.png", stored)))
    image.colorspace_settings.name = colorspace
    np.testing.assert_allclose(values_of(image), stored / 65535, atol=2e-4)


def test_a_point_on_nothing_is_refused_and_the_old_one_stays(photo: bpy.types.Scene) -> None:
    values = np.zeros((32, 64, 3))
    values[:, 40:] = 1.0
    photo.worldwarp.start_depth = image_of(values, "Half", float_buffer=True, is_data=True)
    bpy.ops.worldwarp.set_distance(point=(0.9, 0.5), distance=2.0)
    with pytest.raises(RuntimeError, match="nothing at the picked point"):
        bpy.ops.worldwarp.set_distance(point=(0.1, 0.5), distance=7.0)
    assert photo.worldwarp.scale_point[0] == pytest.approx(0.9)
    assert photo.worldwarp.scene_scale == 2.0
    # Where the map has nothing, the shot has background.
    assert (sent_depth()[:, :40] == np.float32(BACKGROUND_DEPTH)).all()
    photo.worldwarp.start_depth = image_of(np.zeros((4, 4, 3)), "Black")
    with pytest.raises(RuntimeError, match='"Black" is black all over'):
        bpy.ops.worldwarp.show_cloud()


def test_the_points_lie_where_what_is_sent_says(photo: bpy.types.Scene) -> None:
    photo.camera.location, photo.camera.rotation_euler = (4.0, -2.0, 1.0), (1.2, 0.1, 0.4)
    bpy.ops.worldwarp.set_distance(point=(0.75, 0.5), distance=3.0)
    made = cloud_overlay.cloud()
    placed = np.array(cloud_overlay.placement(made, photo.worldwarp.scene_scale))
    points = made.offsets @ placed[:3, :3].T + placed[:3, 3]
    path = export_camera_path(bpy.context, [1])
    seen = (points - path.c2w[0, :3, 3]) @ path.c2w[0, :3, :3]
    np.testing.assert_allclose(seen[:, 2], sent_depth().ravel(), rtol=1e-5)
    pixels = (seen / seen[:, 2:]) @ path.K[0].T
    np.testing.assert_allclose(pixels[0, :2], [0.5, 0.5], atol=1e-3)
    # The picture's own colours, and the distance that is dragged moves them without a new cloud.
    np.testing.assert_allclose(made.colours[:, :3], ramp(32, 64).reshape(-1, 3), atol=1 / 255)
    assert made.scale(6.0) == pytest.approx(2 * made.scale(3.0))


def test_a_picture_without_a_map_is_a_card_at_its_distance(photo: bpy.types.Scene) -> None:
    photo.worldwarp.start_depth = None
    photo.worldwarp.scene_scale = 4.0
    made = picture_cloud(bpy.context)
    np.testing.assert_allclose(made.scale(4.0) * made.offsets[:, 2], -4.0, rtol=1e-6)
    assert sent_depth() is None
    assert ShotSettings.of(bpy.context).scene_scale == 4.0


def test_a_large_picture_is_drawn_with_few_enough_points(photo: bpy.types.Scene) -> None:
    photo.worldwarp.start_image = image_of(np.zeros((600, 1200, 3)))
    assert 50_000 < len(picture_cloud(bpy.context).offsets) <= 150_000


def test_the_median_around_a_point_ignores_specks() -> None:
    depth = np.full((20, 20), 2.0, np.float32)
    depth[10, 10] = 90.0
    assert depth_at(depth, (0.5, 0.5)) == 2.0
    assert depth_at(depth, (1.0, 1.0)) == 2.0


def test_a_click_is_a_place_in_the_picture() -> None:
    corners = [Vector(corner) for corner in ((300, 200), (300, 100), (100, 100), (100, 200))]
    assert place_in_frame(corners, Vector((150, 175))) == (0.25, 0.25)
    assert place_in_frame(corners, Vector((99, 150))) is None


def test_the_buttons_are_grey_for_a_render(camera: bpy.types.Object) -> None:
    with pytest.raises(RuntimeError, match="does not begin with an image"):
        bpy.ops.worldwarp.show_cloud()
