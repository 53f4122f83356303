"""Objects of the scene are rendered into generated frames, before and behind what the world's depth says is there."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import composite
from engine_bridge.png_writer import encode_png
from worldwarp_core.pictures.exr import write_depth_exr, write_picture_exr
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import write_splats

WIDTH, HEIGHT = 64, 36
NEAR, FAR = 4.0, 10.0
"""Of the world's left and right half."""
RED = (1.0, 0.0, 0.0)


needs_switch = pytest.mark.skipif(
    "compositing_node_group" in bpy.types.Scene.bl_rna.properties,
    reason="from Blender 5.0 on the compositor has no switch",
)


def frame_of(number: int) -> np.ndarray:
    """(H, W, 3) uint8: every value that a picture can have, in some order that changes with the frame."""
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    """Returns the folder of a shot of frames 1 to 3."""
    folder = tmp_path / "harbour"
    depth = np.full((HEIGHT, WIDTH), FAR, np.float32)
    depth[:, : WIDTH // 2] = NEAR
    for number in (1, 2, 3):
        for kind in ("frames", "depth"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / f"frames/frame_{number:04d}.png").write_bytes(encode_png(frame_of(number)))
        write_depth_exr(folder / f"depth/frame_{number:04d}.exr", depth)
    return folder


@pytest.fixture
def scene(addon: None, camera: bpy.types.Object) -> bpy.types.Scene:
    """Returns a scene whose camera looks down from the origin, with a black sky."""
    scene = bpy.context.scene
    scene.render.engine, scene.cycles.samples, scene.cycles.use_denoising = "CYCLES", 4, False
    scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
    scene.view_settings.view_transform = "Standard"
    scene.world = bpy.data.worlds.new("Black")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0, 0, 0, 1)
    return scene


def add_board(distance: float, top: float, bottom: float) -> bpy.types.Object:
    """Adds a glowing red board at a distance, over the picture's whole width, between two heights in [0, 1]."""
    data = bpy.context.scene.camera.data
    wide = distance * data.sensor_width / data.lens
    tall = wide * HEIGHT / WIDTH
    bpy.ops.mesh.primitive_plane_add(size=1, location=(0, tall * (0.5 - (top + bottom) / 2), -distance))
    board = bpy.context.active_object
    board.scale = (2 * wide, tall * (bottom - top), 1)
    material = bpy.data.materials.new("Glow")
    material.use_nodes = True
    tree = material.node_tree
    glow = tree.nodes.new("ShaderNodeEmission")
    glow.inputs["Color"].default_value = (*RED, 1)
    output = next(node for node in tree.nodes if node.bl_idname == "ShaderNodeOutputMaterial")
    tree.links.new(glow.outputs[0], output.inputs["Surface"])
    board.data.materials.append(material)
    return board


def rendered(path: Path, frame: int = 1) -> np.ndarray:
    """Renders a frame; returns (H, W, 3) uint8 of the file, top row first."""
    scene = bpy.context.scene
    scene.frame_set(frame)
    scene.render.filepath = str(path)
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGB"
    scene.render.dither_intensity = 0.0
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(path), check_existing=False)
    pixels = np.array(image.pixels[:]).reshape(HEIGHT, WIDTH, -1)[::-1, :, :3]
    bpy.data.images.remove(image)
    return np.rint(pixels * 255).astype(np.uint8)


def is_red(pixels: np.ndarray) -> np.ndarray:
    return (pixels == np.array([255, 0, 0])).all(axis=-1)


def tree_of(scene: bpy.types.Scene) -> bpy.types.NodeTree:
    return scene.compositing_node_group if hasattr(scene, "compositing_node_group") else scene.node_tree


def test_frames_come_out_of_the_render_as_they_are_in_their_files(scene: bpy.types.Scene, shot: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.composite()
    for number in (1, 3):
        got = rendered(shot / "out.png", number)
        assert np.abs(got.astype(int) - frame_of(number)).max() == 0


def test_linear_copies_are_composited_where_they_are_and_give_the_same_picture(
    scene: bpy.types.Scene, shot: Path
) -> None:
    (shot / "frames_exr").mkdir()
    for number in (1, 2, 3):
        write_picture_exr(shot / f"frames_exr/frame_{number:04d}.exr", frame_of(number))
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.composite()
    image = next(node.image for node in tree_of(scene).nodes if node.label == "Frames")
    assert Path(bpy.path.abspath(image.filepath)).suffix == ".exr"
    assert np.abs(rendered(shot / "out.png", 2).astype(int) - frame_of(2)).max() == 0
    # Where some are missing, the PNGs are the whole shot.
    (shot / "frames_exr/frame_0002.exr").unlink()
    bpy.ops.worldwarp.import_results(directory=str(shot))
    image = next(node.image for node in tree_of(scene).nodes if node.label == "Frames")
    assert Path(bpy.path.abspath(image.filepath)).suffix == ".png"


def test_objects_are_seen_cut_and_hidden_by_their_distance(scene: bpy.types.Scene, shot: Path) -> None:
    add_board(NEAR / 2, -0.1, 0.25)
    add_board((NEAR + FAR) / 2, 0.25, 0.5)
    add_board(2 * FAR, 0.5, 1.0)
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.composite()
    got, frame = rendered(shot / "out.png"), frame_of(1)
    quarter, middle = HEIGHT // 4, WIDTH // 2
    assert is_red(got[: quarter - 1]).all()
    # Between the two halves' depths: cut along the edge of the near one, to the pixel, softened over one.
    between = got[quarter + 1 : 2 * quarter - 1]
    assert is_red(between[:, middle + 1 :]).all()
    assert (between[:, : middle - 1] == frame[quarter + 1 : 2 * quarter - 1, : middle - 1]).all()
    assert (got[2 * quarter + 1 :] == frame[2 * quarter + 1 :]).all()


def test_edges_of_objects_stay_smooth_in_front_of_the_world(scene: bpy.types.Scene, shot: Path) -> None:
    board = add_board(NEAR / 2, 0.2, 0.8)
    board.rotation_euler.z = 0.1
    bpy.ops.worldwarp.import_results(directory=str(shot))
    for number in (1, 2, 3):
        (shot / f"frames/frame_{number:04d}.png").write_bytes(encode_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    scene.cycles.samples = 32
    alone = rendered(shot / "alone.png").astype(int)
    bpy.ops.worldwarp.composite()
    laid_in = rendered(shot / "out.png").astype(int)
    # Over a black world an object looks as over a black sky: no pixel of its edge is cut.
    assert len(np.unique(alone[..., 0])) > 20
    assert np.abs(laid_in - alone).max() <= 2


def test_off_renders_the_scene_alone_again(scene: bpy.types.Scene, shot: Path) -> None:
    add_board(2 * FAR, -0.1, 1.1)
    bpy.ops.worldwarp.import_results(directory=str(shot))
    assert is_red(rendered(shot / "before.png")).all()
    bpy.ops.worldwarp.composite()
    assert scene.render.film_transparent
    bpy.ops.worldwarp.composite(enable=False)
    assert not scene.render.film_transparent
    assert is_red(rendered(shot / "after.png")).all()
    assert composite.composite_in_use(scene) is None


def test_splats_of_the_shot_are_not_rendered_over_its_frames(scene: bpy.types.Scene, shot: Path) -> None:
    points = np.zeros((2, 3), np.float32)
    quats, none = np.eye(4, dtype=np.float32)[:2], np.zeros((2, 0, 3), np.float32)
    write_splats(shot / "splats.ply", SplatCloud(points, quats, points, points[:, 0], points[:, None], none))
    bpy.ops.worldwarp.import_results(directory=str(shot))
    splats = bpy.context.view_layer.objects.active
    bpy.ops.worldwarp.composite()
    assert splats.hide_render
    assert not splats.hide_viewport
    bpy.ops.worldwarp.composite(enable=False)
    assert not splats.hide_render


def test_what_follows_the_render_in_the_compositor_follows_the_composite(scene: bpy.types.Scene, shot: Path) -> None:
    tree = composite.compositor_tree(scene)
    layers = next(node for node in tree.nodes if node.bl_idname == "CompositorNodeRLayers")
    output = next(link.to_socket for link in layers.outputs["Image"].links)
    invert = tree.nodes.new("CompositorNodeInvert")
    tree.links.new(layers.outputs["Image"], invert.inputs["Color"])
    tree.links.new(invert.outputs[0], output)
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.composite()
    (link,) = invert.inputs["Color"].links
    assert link.from_node == composite.composite_in_use(scene)
    assert output.links[0].from_node == invert
    bpy.ops.worldwarp.composite(enable=False)
    assert invert.inputs["Color"].links[0].from_node == layers


def test_a_shot_that_grows_stays_composited(scene: bpy.types.Scene, shot: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.composite()
    (shot / "frames/frame_0004.png").write_bytes(encode_png(frame_of(4)))
    (shot / "depth/frame_0004.exr").write_bytes((shot / "depth/frame_0001.exr").read_bytes())
    bpy.ops.worldwarp.import_results(directory=str(shot))
    assert (rendered(shot / "out.png", 4) == frame_of(4)).all()


def test_only_one_shot_is_composited_at_a_time(scene: bpy.types.Scene, shot: Path, tmp_path: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.composite()
    first = composite.composite_in_use(scene)
    shot.rename(tmp_path / "copy")
    bpy.ops.worldwarp.import_results(directory=str(tmp_path / "copy"))
    tree_of(scene).nodes.active = next(node for node in composite.composites(scene) if node != first)
    bpy.ops.worldwarp.composite()
    assert composite.composite_in_use(scene).label == "copy Composite"
    composite.follow(scene, bpy.context.view_layer, shot)
    assert composite.composite_in_use(scene) == first
    composite.leave(scene, shot)
    assert composite.composite_in_use(scene) is None


def test_without_depth_there_is_no_composite_and_it_is_said_why(scene: bpy.types.Scene, shot: Path) -> None:
    for file in (shot / "depth").iterdir():
        file.unlink()
    bpy.ops.worldwarp.import_results(directory=str(shot))
    assert composite.composites(scene) == []
    with pytest.raises(RuntimeError, match="no shot with depth"):
        bpy.ops.worldwarp.composite()


def test_which_of_several_shots_is_meant_is_asked(scene: bpy.types.Scene, shot: Path, tmp_path: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    shot.rename(tmp_path / "copy")
    bpy.ops.worldwarp.import_results(directory=str(tmp_path / "copy"))
    tree_of(scene).nodes.active = None
    with pytest.raises(RuntimeError, match=r'2 shots .*"harbour Composite"'):
        bpy.ops.worldwarp.composite()


@needs_switch
def test_a_compositor_that_the_artist_switched_off_stays_off_until_it_is_asked_for(
    scene: bpy.types.Scene, shot: Path
) -> None:
    scene.use_nodes = True
    scene.node_tree.nodes.new("CompositorNodeGlare")
    scene.use_nodes = False
    bpy.ops.worldwarp.import_results(directory=str(shot))
    assert not scene.use_nodes
    assert composite.composites(scene)
    bpy.ops.worldwarp.composite()
    assert scene.use_nodes
    bpy.ops.worldwarp.composite(enable=False)
    assert not scene.use_nodes
