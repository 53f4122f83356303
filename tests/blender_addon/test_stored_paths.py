"""A .blend finds what was brought into it wherever it and its folder are moved to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon.stored_paths import resolved_path, source_of, stored_path, strips_of
from blender_addon.takes import add_take, folder_of, set_visible, things_of
from engine_bridge.png_writer import encode_png
from worldwarp_core.pictures.exr import write_depth_exr
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import write_splats

pytestmark = pytest.mark.usefixtures("addon")


def write_shot(folder: Path) -> Path:
    for kind in ("frames", "depth", "mask"):
        (folder / kind).mkdir(parents=True)
    for number in (1, 2):
        (folder / f"frames/frame_{number:04d}.png").write_bytes(encode_png(np.zeros((4, 6, 3), np.uint8)))
        (folder / f"mask/frame_{number:04d}.png").write_bytes(encode_png(np.zeros((4, 6), np.uint8)))
        write_depth_exr(folder / f"depth/frame_{number:04d}.exr", np.ones((4, 6), np.float32))
    points = np.zeros((2, 3), np.float32)
    cloud = SplatCloud(
        points, np.eye(4, dtype=np.float32)[:2], points, points[:, 0], points[:, None], np.zeros((2, 0, 3), np.float32)
    )
    write_splats(folder / "splats.ply", cloud)
    return folder


def bring_in(folder: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(folder))
    take = add_take(bpy.context.scene, folder, 1)
    bpy.context.scene.worldwarp.shown_take = take.directory


def save(file: Path, **options: object) -> None:
    file.parent.mkdir(exist_ok=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(file), **options)


def check_all_found_in(folder: Path) -> None:
    """Everything that shows the shot shows the one in `folder`, and can be told by it."""
    scene = bpy.context.scene
    sources = [source_of(owner) for owner in (*bpy.data.images, *bpy.data.objects, *strips_of(scene))]
    assert {source for source in sources if source is not None} == {
        folder / "frames", folder / "depth", folder / "mask", folder / "splats.ply",
    }  # fmt: skip
    for image in (image for image in bpy.data.images if source_of(image) is not None):
        assert resolved_path(image.filepath).parent == source_of(image)
        assert resolved_path(image.filepath).is_file()
    (take,) = scene.worldwarp.takes
    assert folder_of(take) == folder
    assert scene.worldwarp.shown_take == take.directory
    # A background, a strip and the splats.
    assert len(things_of(scene, folder)) == 3
    set_visible(scene, folder, True)
    # It is known again: nothing comes twice.
    before = (len(bpy.data.images), len(scene.objects), len(strips_of(scene)))
    bpy.ops.worldwarp.import_results(directory=str(folder))
    assert (len(bpy.data.images), len(scene.objects), len(strips_of(scene))) == before


def first_saved(folder: Path) -> None:
    save(folder / "scene.blend")
    bring_in(write_shot(folder / "worldwarp/shot"))
    bpy.ops.wm.save_mainfile()


def first_brought_in(folder: Path) -> None:
    bring_in(write_shot(folder / "worldwarp/shot"))
    save(folder / "scene.blend")


def saved_elsewhere_before(folder: Path) -> None:
    bring_in(write_shot(folder / "worldwarp/shot"))
    save(folder.parent / "elsewhere/scene.blend")
    save(folder / "scene.blend")


@pytest.mark.parametrize("made", [first_saved, first_brought_in, saved_elsewhere_before])
def test_a_file_moved_with_its_folder_finds_all_that_it_shows(
    made: Callable[[Path], None], camera: bpy.types.Object, tmp_path: Path
) -> None:
    (tmp_path / "before").mkdir()
    made(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "after/scene.blend"))
    check_all_found_in(tmp_path / "after/worldwarp/shot")


def test_a_copy_saved_elsewhere_leaves_the_file_in_front_as_it_is(camera: bpy.types.Object, tmp_path: Path) -> None:
    first_saved(tmp_path)
    save(tmp_path / "copies/copy.blend", copy=True)
    check_all_found_in(tmp_path / "worldwarp/shot")
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "copies/copy.blend"))
    check_all_found_in(tmp_path / "worldwarp/shot")


def test_a_save_that_fails_leaves_the_file_in_front_as_it_is(camera: bpy.types.Object, tmp_path: Path) -> None:
    first_saved(tmp_path)
    with pytest.raises(RuntimeError, match="elsewhere"):
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "else/elsewhere/scene.blend"))
    check_all_found_in(tmp_path / "worldwarp/shot")


def test_a_file_that_was_saved_on_windows_finds_its_takes_elsewhere(tmp_path: Path) -> None:
    blend = str(tmp_path / "scene.blend")
    assert resolved_path("//worldwarp\\shot_001", blend) == tmp_path / "worldwarp/shot_001"
    assert resolved_path("//..\\shots\\shot_001", blend) == tmp_path.parent / "shots/shot_001"


def test_a_path_is_relative_only_to_a_file_that_has_one(tmp_path: Path) -> None:
    assert stored_path(tmp_path / "shot") == str(tmp_path / "shot")
    save(tmp_path / "scene.blend")
    assert stored_path(tmp_path / "shot") == "//shot"
    assert resolved_path("//shot") == tmp_path / "shot"
    assert resolved_path("//shot/../other", str(tmp_path / "x/y.blend")) == tmp_path / "x/other"
