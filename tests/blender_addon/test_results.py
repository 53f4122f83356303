"""A shot's folder comes in behind the camera, in the sequencer, in the compositor and as splats, and stays in place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bpy
import numpy as np
import OpenEXR
import pytest

from blender_addon.sequences import find_sequence
from blender_addon.stored_paths import SOURCE
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import write_splats

pytestmark = pytest.mark.usefixtures("addon")
WIDTH, HEIGHT = 32, 18


def write_png(path: Path, level: float) -> None:
    """Writes a grey PNG with Blender itself."""
    image = bpy.data.images.new("tmp", WIDTH, HEIGHT)
    image.pixels.foreach_set(np.tile(np.array([level, level, level, 1], np.float32), WIDTH * HEIGHT))
    image.file_format, image.filepath_raw = "PNG", str(path)
    image.save()
    bpy.data.images.remove(image)


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    """Returns the folder of a shot of frames 10 to 14."""
    folder = tmp_path / "harbour"
    for kind in ("frames", "depth", "mask"):
        (folder / kind).mkdir(parents=True)
    for i, frame in enumerate(range(10, 15)):
        write_png(folder / f"frames/frame_{frame:04d}.png", 0.1 * (i + 1))
        write_png(folder / f"mask/mask_{frame:04d}.png", 1.0)
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        depth = np.full((HEIGHT, WIDTH), 4.0, np.float32)
        OpenEXR.File(header, {"Z": depth}).write(str(folder / f"depth/depth_{frame:04d}.exr"))
    rng = np.random.default_rng(0)
    cloud = SplatCloud(
        means=rng.normal(size=(30, 3)).astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (30, 1)),
        scales=np.full((30, 3), -3, np.float32),
        opacities=np.zeros(30, np.float32),
        sh0=np.zeros((30, 1, 3), np.float32),
        shN=np.zeros((30, 0, 3), np.float32),
    )
    write_splats(folder / "splats.ply", cloud)
    return folder


def strips_of(scene: bpy.types.Scene) -> list:
    editor = scene.sequence_editor
    return list(editor.strips if hasattr(editor, "strips") else editor.sequences)


def nodes_of(scene: bpy.types.Scene) -> list:
    tree = scene.compositing_node_group if hasattr(scene, "compositing_node_group") else scene.node_tree
    return [node for node in tree.nodes if node.get(SOURCE)]


def test_each_scene_frame_shows_its_own_file_behind_the_camera(camera: bpy.types.Object, shot: Path) -> None:
    assert bpy.ops.worldwarp.import_results(directory=str(shot)) == {"FINISHED"}
    (background,) = camera.data.background_images
    assert camera.data.show_background_images
    assert background.image.colorspace_settings.name == "sRGB"
    for frame in range(10, 15):
        bpy.context.scene.frame_set(frame)
        shown = background.image.filepath_from_user(image_user=background.image_user)
        assert Path(bpy.path.abspath(shown)).name == f"frame_{frame:04d}.png"


def test_the_strip_plays_every_frame_at_its_time(camera: bpy.types.Object, shot: Path) -> None:
    (shot / "frames/frame_0012.png").unlink()
    bpy.ops.worldwarp.import_results(directory=str(shot))
    (strip,) = strips_of(bpy.context.scene)
    # A missing frame is held, so that those after it keep their time.
    names = [element.filename for element in strip.elements]
    assert names == [f"frame_{frame:04d}.png" for frame in (10, 11, 11, 13, 14)]
    assert strip.frame_final_start == 10
    assert strip.frame_final_end == 15


def test_rendering_the_scene_still_renders_the_scene(camera: bpy.types.Object, shot: Path, tmp_path: Path) -> None:
    scene = bpy.context.scene
    scene.render.engine, scene.cycles.samples = "CYCLES", 1
    scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
    scene.view_settings.view_transform = "Standard"
    scene.world = bpy.data.worlds.new("Red")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (1, 0, 0, 1)
    bpy.ops.worldwarp.import_results(directory=str(shot))
    scene.frame_set(12)
    scene.render.filepath = str(tmp_path / "out.png")
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(tmp_path / "out.png"))
    # The denoiser darkens the corners of a picture this small.
    middle = np.array(image.pixels[:]).reshape(HEIGHT, WIDTH, 4)[HEIGHT // 2, WIDTH // 2, :3]
    np.testing.assert_allclose(middle, (1, 0, 0), atol=0.02)


def test_the_sequence_renders_the_files_own_colours(camera: bpy.types.Object, shot: Path, tmp_path: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    scene = bpy.context.scene
    scene.render.use_sequencer = True
    scene.view_settings.view_transform = "Standard"
    scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
    scene.frame_set(13)
    scene.render.filepath = str(tmp_path / "out.png")
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(str(tmp_path / "out.png"))
    np.testing.assert_allclose(image.pixels[:3], (0.4,) * 3, atol=1.5 / 255)


def test_the_compositor_gets_frames_depth_and_mask(camera: bpy.types.Object, shot: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    images = {node.label: node for node in nodes_of(bpy.context.scene) if node.bl_idname == "CompositorNodeImage"}
    assert set(images) == {"Frames", "Depth", "Mask"}
    assert images["Depth"].image.colorspace_settings.name == "Non-Color"
    assert images["Mask"].image.colorspace_settings.name == "Non-Color"
    assert all((node.frame_start, node.frame_offset, node.frame_duration) == (10, 9, 5) for node in images.values())


def test_a_shot_is_shown_behind_the_camera_that_it_was_filmed_with(camera: bpy.types.Object, shot: Path) -> None:
    other = bpy.data.objects.new("Other", bpy.data.cameras.new("Other"))
    bpy.context.scene.collection.objects.link(other)
    bpy.context.scene.camera = other
    (shot / "job.json").write_text(json.dumps({"job_id": "0" * 32, "camera": camera.name}))
    bpy.ops.worldwarp.import_results(directory=str(shot))
    assert [len(filming.data.background_images) for filming in (camera, other)] == [1, 0]
    # A scene that has not got that camera shows it behind its own.
    (shot / "job.json").write_text(json.dumps({"job_id": "0" * 32, "camera": "Long gone"}))
    bpy.ops.worldwarp.import_results(directory=str(shot))
    assert [len(filming.data.background_images) for filming in (camera, other)] == [1, 1]


def test_splats_come_in_place_with_the_shots_name(camera: bpy.types.Object, shot: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    made = bpy.context.view_layer.objects.active
    assert made.name == "harbour"
    np.testing.assert_array_equal(made.matrix_world, np.eye(4))


def test_bringing_a_growing_shot_in_again_replaces_what_was_there(camera: bpy.types.Object, shot: Path) -> None:
    for _ in range(2):
        bpy.ops.worldwarp.import_results(directory=str(shot))
        write_png(shot / "frames/frame_0015.png", 0.5)
    made = bpy.context.view_layer.objects.active
    made.location.x = 3.0
    bpy.ops.worldwarp.import_results(directory=str(shot))
    scene = bpy.context.scene
    assert made.location.x == 3.0
    assert len(bpy.data.meshes) + len(bpy.data.pointclouds) == 1
    assert len(camera.data.background_images) == 1
    assert camera.data.background_images[0].image_user.frame_duration == 6
    assert len(strips_of(scene)) == 1
    assert len(nodes_of(scene)) == 5
    assert len([thing for thing in scene.objects if thing.type in ("MESH", "POINTCLOUD")]) == 1
    assert len([image for image in bpy.data.images if image.get(SOURCE)]) == 3


def test_a_saved_and_moved_file_finds_its_sequence(camera: bpy.types.Object, shot: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shot.rename(before / "harbour")
    bpy.ops.wm.save_as_mainfile(filepath=str(before / "scene.blend"))
    bpy.ops.worldwarp.import_results(directory=str(before / "harbour"))
    bpy.ops.wm.save_mainfile()
    before.rename(after)
    bpy.ops.wm.open_mainfile(filepath=str(after / "scene.blend"))
    (background,) = bpy.context.scene.camera.data.background_images
    assert Path(bpy.path.abspath(background.image.filepath)).is_file()
    (strip,) = strips_of(bpy.context.scene)
    assert Path(bpy.path.abspath(strip.directory), strip.elements[0].filename).is_file()


def test_files_are_numbered_by_the_digits_at_the_end_of_their_names(tmp_path: Path) -> None:
    for name in ("frame_0003.png", "frame_-002.png", "take2_0012.png", "7.png", "contact_sheet.png"):
        (tmp_path / name).touch()
    found = find_sequence(tmp_path, ".png", "sRGB")
    # Frames below 0 are on disk, but no image sequence of Blender's can play them.
    assert found is not None
    assert list(found.files) == [3, 7, 12]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_results_is_a_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match=name):
        bpy.ops.worldwarp.import_results(directory=str(tmp_path / name))


def test_takes_that_are_shown_in_turns_keep_their_places(camera: bpy.types.Object, shot: Path) -> None:
    other = shot.with_name("forest")
    shutil.copytree(shot, other)
    for folder in (shot, other, shot, other, shot):
        bpy.ops.worldwarp.import_results(directory=str(folder))
    scene = bpy.context.scene
    assert sorted(strip.channel for strip in strips_of(scene)) == [1, 2]
    tops = [node.location.y for node in nodes_of(scene) if node.bl_idname == "NodeFrame"]
    assert len(tops) == 2
    assert abs(tops[0] - tops[1]) > 1000
