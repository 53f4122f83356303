"""The courtyard: what is in it, what it is made of, and what its camera does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon.camera_export import export_camera_path
from blender_addon.demo_scene import FPS, build_demo_scene
from worldwarp_core.cameras.path import jumps


@pytest.fixture
def flight() -> bpy.types.Object:
    """The camera of a courtyard built in the empty scene."""
    return build_demo_scene(bpy.context.scene, width=128, height=72, frames=93)


def test_the_scene_is_ready_to_render_as_it_was_asked_for(flight):
    scene = bpy.context.scene
    assert scene.camera == flight
    assert (scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage) == (128, 72, 100)
    assert (scene.frame_start, scene.frame_end, scene.frame_step) == (1, 93, 1)
    assert scene.render.fps / scene.render.fps_base == FPS
    assert (scene.render.engine, scene.view_settings.view_transform) == ("CYCLES", "Standard")


def test_every_surface_is_diffuse_and_no_texture_is_a_file(flight):
    kinds = {node.bl_idname for material in bpy.data.materials for node in material.node_tree.nodes}
    assert {kind for kind in kinds if "Bsdf" in kind or "Emission" in kind} == {"ShaderNodeBsdfDiffuse"}
    assert "ShaderNodeTexImage" not in kinds
    solids = [thing for thing in bpy.data.objects if thing.type == "MESH"]
    assert all(len(thing.data.materials) == 1 for thing in solids)
    assert len({thing.data.materials[0].name for thing in solids}) >= 12


def test_the_camera_moves_and_turns_without_jumps(flight):
    path = export_camera_path(bpy.context)
    assert len(path) == 93
    assert jumps(path) == []
    first, last = path.c2w[0], path.c2w[-1]
    assert np.linalg.norm(last[:3, 3] - first[:3, 3]) > 2.0
    assert np.degrees(np.arccos(first[:3, 2] @ last[:3, 2])) > 10


def test_the_camera_starts_and_ends_softly(flight):
    speeds = np.linalg.norm(np.diff(export_camera_path(bpy.context).c2w[:, :3, 3], axis=0), axis=1)
    assert max(speeds[0], speeds[-1]) < 0.35 * speeds.max()


def test_the_camera_comes_close_to_nothing(flight):
    depsgraph, scene = bpy.context.evaluated_depsgraph_get(), bpy.context.scene
    fan = [(x, y, -1.0) for x in np.linspace(-0.7, 0.7, 9) for y in np.linspace(-0.4, 0.4, 7)]
    for frame in range(1, 94, 8):
        scene.frame_set(frame)
        matrix = flight.evaluated_get(depsgraph).matrix_world
        for ray in fan:
            direction = (matrix.to_3x3() @ flight.location.__class__(ray)).normalized()
            hit, point, *_ = scene.ray_cast(depsgraph, matrix.translation, direction)
            assert not hit or (point - matrix.translation).length > 1.0, (frame, ray)


@pytest.mark.parametrize("frames", [1, 2, 10])
def test_short_flights_are_flights_too(frames):
    build_demo_scene(bpy.context.scene, 64, 36, frames)
    path = export_camera_path(bpy.context)
    assert path.frames.tolist() == list(range(1, frames + 1))


def test_the_same_courtyard_is_built_every_time():
    def corners() -> list[tuple[str, float]]:
        scene = bpy.context.scene
        build_demo_scene(scene, 64, 36, 5)
        meshes = [thing for thing in scene.objects if thing.type == "MESH"]
        return [(t.name, float(sum(v.co.length for v in t.data.vertices))) for t in meshes]

    first = corners()
    bpy.ops.wm.read_factory_settings(use_empty=True)
    assert corners() == first


def test_without_a_scene_a_new_one_is_made():
    before = bpy.context.scene
    camera = build_demo_scene(None, 64, 36, 5)
    made = next(scene for scene in bpy.data.scenes if scene.camera == camera)
    assert made != before
    assert not before.objects


def test_run_as_a_program_it_writes_a_blend(tmp_path):
    out = tmp_path / "sub" / "courtyard.blend"
    command = [sys.executable, "-m", "blender_addon.demo_scene", "--out", str(out), "--frames", "7"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    bpy.ops.wm.open_mainfile(filepath=str(out))
    assert bpy.context.scene.camera.name == "Flight"
    assert bpy.context.scene.frame_end == 7
