"""A shot's depth becomes an object that catches shadows, is collided with, and is not seen itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import bpy
import numpy as np
import pytest

from blender_addon import proxy_mesh
from blender_addon.proxy_mesh import Fusing, add_proxy, read_surface, read_views
from blender_addon.stored_paths import source_of
from tests.support.room import look, path, render
from worldwarp_core.cameras.files import write_cameras
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.geometry.fusion import DepthView
from worldwarp_core.pictures.exr import write_depth_exr

pytestmark = pytest.mark.usefixtures("addon")
FLOOR_AHEAD = (0.0, -0.5, 0.0)


def cameras_of_room(width: int = 96, height: int = 64) -> CameraPath:
    return path([look((x, -3.0, 1.5), -0.2 * x, -0.35) for x in (-1.0, 0.0, 1.0)], width, height, first=5)


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    """Returns the folder of a shot of a room, frames 5 to 7, whose floor is at z = 0."""
    folder, cameras = tmp_path / "room", cameras_of_room()
    (folder / "depth").mkdir(parents=True)
    for i, number in enumerate(cameras.frames):
        write_depth_exr(folder / f"depth/frame_{number:04d}.exr", render(cameras, i)[1])
    write_cameras(folder / "cameras.json", cameras)
    return folder


def test_the_operator_makes_a_shadow_catcher_on_the_worlds_surfaces(shot: Path) -> None:
    assert bpy.ops.worldwarp.proxy_mesh(directory=str(shot), cells=64) == {"FINISHED"}
    made = bpy.context.view_layer.objects.active
    assert made.name == "room Proxy"
    assert made.is_shadow_catcher
    hit, place, normal, _ = made.ray_cast((*FLOOR_AHEAD[:2], 1.0), (0, 0, -1))
    assert hit
    assert abs(place[2]) < 0.02
    assert normal[2] > 0.99
    assert not made.data.validate()


def test_it_is_a_passive_rigid_body_where_that_is_wanted(shot: Path) -> None:
    bpy.ops.worldwarp.proxy_mesh(directory=str(shot), cells=64)
    made = bpy.context.view_layer.objects.active
    assert made.rigid_body.type == "PASSIVE"
    assert made.rigid_body.collision_shape == "MESH"
    assert [modifier.type for modifier in made.modifiers] == ["COLLISION"]
    bpy.ops.mesh.primitive_uv_sphere_add(radius=0.2, location=(*FLOOR_AHEAD[:2], 1.0))
    ball = bpy.context.active_object
    bpy.ops.rigidbody.object_add(type="ACTIVE")
    ball.rigid_body.collision_shape = "SPHERE"
    for frame in range(1, 40):
        bpy.context.scene.frame_set(frame)
    height = ball.evaluated_get(bpy.context.evaluated_depsgraph_get()).matrix_world.translation.z
    assert 0.1 < height < 0.4


def test_without_collision_the_scene_gets_no_physics(shot: Path) -> None:
    bpy.ops.worldwarp.proxy_mesh(directory=str(shot), cells=64, collide=False)
    assert bpy.context.view_layer.objects.active.rigid_body is None
    assert bpy.context.scene.rigidbody_world is None


def test_made_again_it_replaces_the_earlier_one_where_that_was_moved_to(shot: Path) -> None:
    bpy.ops.worldwarp.proxy_mesh(directory=str(shot), cells=64)
    made = bpy.context.view_layer.objects.active
    made.location.x, before = 2.0, len(made.data.vertices)
    bpy.ops.worldwarp.proxy_mesh(directory=str(shot), cells=32)
    assert bpy.context.view_layer.objects.active == made
    assert made.location.x == 2.0
    assert len(made.data.vertices) < before
    assert len(bpy.data.meshes) == 1
    assert source_of(made).parent == shot


def test_a_shadow_falls_on_it_and_it_is_not_seen_itself(shot: Path, tmp_path: Path) -> None:
    scene = bpy.context.scene
    bpy.ops.worldwarp.proxy_mesh(directory=str(shot), cells=64)
    bpy.ops.mesh.primitive_plane_add(size=0.8, location=(*FLOOR_AHEAD[:2], 1.0))
    bpy.context.active_object.visible_camera = False
    sun = bpy.data.objects.new("Sun", bpy.data.lights.new("Sun", "SUN"))
    sun.data.energy = 5.0
    scene.collection.objects.link(sun)
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    camera.location = (*FLOOR_AHEAD[:2], 4.0)
    scene.collection.objects.link(camera)
    scene.camera = camera
    scene.world = bpy.data.worlds.new("Black")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0, 0, 0, 1)
    scene.render.engine, scene.cycles.samples = "CYCLES", 16
    scene.cycles.use_denoising = False
    scene.render.film_transparent = True
    scene.render.resolution_x = scene.render.resolution_y = 48
    scene.render.filepath = str(tmp_path / "out.png")
    scene.render.image_settings.color_mode = "RGBA"
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(tmp_path / "out.png"))
    alpha = np.array(image.pixels[:]).reshape(48, 48, 4)[..., 3]
    # The shadow is opaque black in the middle, and around it there is nothing, where the mesh is as well.
    assert alpha[20:28, 20:28].mean() > 0.9
    assert np.median(alpha[:6]) < 0.05


def test_large_depth_maps_are_read_coarser_and_stay_in_place(shot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_views(shot)
    monkeypatch.setattr("blender_addon.proxy_mesh.LONGEST_SIDE_PX", 40)
    coarse = read_views(shot)
    assert coarse[0].depth.shape == (21, 32)
    # Both cameras see the same place at the same depth: K was scaled with the pixels.
    at = np.linalg.inv(coarse[1].K) @ (10.5, 7.5, 1.0)
    u, v = (whole[1].K @ at)[:2]
    assert coarse[1].depth[7, 10] == whole[1].depth[int(v), int(u)]
    assert (u % 1, v % 1) == pytest.approx((0.5, 0.5))


def test_only_frames_with_cameras_are_used(shot: Path) -> None:
    write_depth_exr(shot / "depth/frame_0001.exr", np.full((64, 96), 0.5, np.float32))
    assert len(read_views(shot)) == 3


@pytest.mark.parametrize(
    ("gone", "code", "says"),
    [("depth/*", "missing_file", "no depth maps"), ("cameras.json", "missing_file", "no cameras.json")],
)
def test_what_a_folder_lacks_is_said(shot: Path, gone: str, code: str, says: str) -> None:
    for file in shot.glob(gone):
        file.unlink()
    with pytest.raises(WorldWarpError, match=says) as caught:
        read_surface(shot)
    assert caught.value.code == code
    with pytest.raises(RuntimeError, match=says):
        bpy.ops.worldwarp.proxy_mesh(directory=str(shot))


def test_without_any_take_the_command_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="generate a shot"):
        bpy.ops.worldwarp.proxy_mesh()


def test_a_damaged_depth_map_is_named(shot: Path) -> None:
    (shot / "depth/frame_0006.exr").write_bytes(b"v/1\x01" + bytes(20))
    with pytest.raises(WorldWarpError, match=r"frame_0006\.exr"):
        read_surface(shot)


def wait(work: Fusing) -> None:
    deadline = time.monotonic() + 120
    while work.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_thread_does_it_beside_the_window_and_can_be_stopped(shot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Fusing(shot, 64, None)
    wait(work)
    assert work.error is None
    assert add_proxy(bpy.context, shot, work.surface, collide=False).data.polygons
    assert work.share == 1.0
    asked_to_end = threading.Event()

    def read_afterwards(*arguments: Any) -> list[DepthView]:
        assert asked_to_end.wait(60)
        return read_views(*arguments)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(proxy_mesh, "read_views", read_afterwards)
        stopped = Fusing(shot, 64, None)
        stopped.stop()
        asked_to_end.set()
        wait(stopped)
    assert (stopped.surface, stopped.error) == (None, None)
    broken = Fusing(shot / "nowhere", 64, None)
    wait(broken)
    assert broken.error.code == "missing_file"
