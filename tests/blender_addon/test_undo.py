"""Undo takes back exactly what a command brought in, and redo brings it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon.stored_paths import strips_of
from engine_bridge.png_writer import encode_png
from tests.support.room import look, path, render
from worldwarp_core.cameras.files import write_cameras
from worldwarp_core.pictures.exr import write_depth_exr
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import write_splats

pytestmark = pytest.mark.usefixtures("addon")


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    folder = tmp_path / "room"
    cameras = path([look((x, -3.0, 1.5), 0.0, -0.35) for x in (-1.0, 0.0, 1.0)], 48, 32)
    for kind in ("frames", "depth"):
        (folder / kind).mkdir(parents=True)
    for i, number in enumerate(cameras.frames):
        rgb, depth = render(cameras, i)
        (folder / f"frames/frame_{number:04d}.png").write_bytes(encode_png(rgb))
        write_depth_exr(folder / f"depth/frame_{number:04d}.exr", depth)
    write_cameras(folder / "cameras.json", cameras)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 3)).astype(np.float32)
    quats, none = np.tile(np.eye(4, dtype=np.float32)[:1], (20, 1)), np.zeros((20, 0, 3), np.float32)
    sky = np.arange(20) > 15
    write_splats(folder / "splats.ply", SplatCloud(points, quats, points, points[:, 0], points[:, None], none, sky=sky))
    return folder


@pytest.fixture
def scene(camera: bpy.types.Object) -> bpy.types.Scene:
    """Returns a scene with things of the artist's own in every place where ours go."""
    scene = bpy.context.scene
    bpy.ops.mesh.primitive_cube_add(location=(3, 0, 0))
    camera.data.background_images.new().alpha = 0.3
    scene.sequence_editor_create()
    strips_of(scene).new_effect(name="Titles", type="COLOR", channel=1, frame_start=1, **length(20))
    return scene


def length(frames: int) -> dict[str, int]:
    """Returns how long a new strip is, in this Blender's words."""
    names = bpy.types.StripsTopLevel if hasattr(bpy.types, "StripsTopLevel") else bpy.types.SequencesTopLevel
    takes = names.bl_rna.functions["new_effect"].parameters
    return {"length": frames} if "length" in takes else {"frame_end": 1 + frames}


def snapshot() -> dict[str, object]:
    """What the file holds, by name, and what our commands may set."""
    # Animated things are where the current frame has them.
    bpy.context.scene.frame_set(1)
    found: dict[str, object] = {
        # Without the compositor's own image, which comes and goes by itself.
        kind.identifier: sorted({thing.name_full for thing in getattr(bpy.data, kind.identifier)} - {"Viewer Node"})
        for kind in bpy.types.BlendData.bl_rna.properties
        if kind.type == "COLLECTION" and kind.identifier not in ("window_managers", "workspaces", "screens")
    }
    for scene in bpy.data.scenes:
        tree = scene.compositing_node_group if hasattr(scene, "compositing_node_group") else scene.node_tree
        found[f"{scene.name} nodes"] = sorted(node.name for node in tree.nodes) if tree is not None else None
        found[f"{scene.name} strips"] = sorted(strip.name for strip in strips_of(scene))
        found[f"{scene.name} settings"] = (
            scene.camera and scene.camera.name, scene.frame_start, scene.frame_end, scene.render.resolution_x,
            scene.render.use_sequencer, scene.render.film_transparent, scene.view_layers[0].use_pass_z,
            scene.rigidbody_world is None, sorted(scene.keys()),
        )  # fmt: skip
    for thing in bpy.data.objects:
        modifiers = [modifier.name for modifier in thing.modifiers]
        state = (tuple(thing.location), thing.hide_render, thing.asset_data is None, modifiers, sorted(thing.keys()))
        found[f"object {thing.name}"] = state
    for data in bpy.data.cameras:
        found[f"camera {data.name}"] = [
            (shown.alpha, shown.image and shown.image.name) for shown in data.background_images
        ]
    return found


def import_results(shot: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))


COMMANDS: dict[str, Callable[[Path], object]] = {
    "results": import_results,
    "splats": lambda shot: bpy.ops.worldwarp.import_splats(filepath=str(shot / "splats.ply")),
    "cameras": lambda shot: bpy.ops.worldwarp.import_cameras(filepath=str(shot / "cameras.json")),
    "sequence": lambda shot: bpy.ops.worldwarp.import_sequence(filepath=str(shot / "frames/frame_0001.png")),
    "proxy": lambda shot: bpy.ops.worldwarp.proxy_mesh(directory=str(shot), cells=48),
    "composite": lambda shot: bpy.ops.worldwarp.composite(),
    "asset": lambda shot: bpy.ops.worldwarp.mark_asset(author="Mia"),
    "results again": import_results,
}
NEEDS_RESULTS = ("composite", "asset", "results again")


@pytest.mark.parametrize("command", COMMANDS)
def test_undo_takes_back_what_came_in_and_nothing_else(scene: bpy.types.Scene, shot: Path, command: str) -> None:
    if command in NEEDS_RESULTS:
        import_results(shot)
    bpy.ops.ed.undo_push(message="Before")
    before = snapshot()
    COMMANDS[command](shot)
    # What Blender does by itself after a command that a user gave.
    bpy.ops.ed.undo_push(message="After")
    after = snapshot()
    assert command == "results again" or after != before
    assert bpy.ops.ed.undo() == {"FINISHED"}
    assert snapshot() == before
    assert bpy.ops.ed.redo() == {"FINISHED"}
    assert snapshot() == after
