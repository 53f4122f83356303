"""A world marked as an asset carries its picture and its description, and is whole where it is appended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon.splats import add_splat_objects, splat_cloud_of
from blender_addon.stored_paths import source_of
from engine_bridge.png_writer import encode_png
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import write_splats

pytestmark = pytest.mark.usefixtures("addon")


def cloud(count: int = 40, sky: int = 8) -> SplatCloud:
    rng = np.random.default_rng(0)
    quats = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    return SplatCloud(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        quats=quats,
        scales=np.full((count, 3), -3, np.float32),
        opacities=np.zeros(count, np.float32),
        sh0=np.zeros((count, 1, 3), np.float32),
        shN=np.zeros((count, 0, 3), np.float32),
        sky=np.arange(count) >= count - sky,
    )


def start_picture() -> np.ndarray:
    """(90, 160, 3) uint8: red above, green below, and white at the sides that a square leaves out."""
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[:45, :, 0], picture[45:, :, 1] = 200, 100
    picture[:, :30] = picture[:, -30:] = 255
    return picture


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    folder = tmp_path / "harbour"
    folder.mkdir()
    write_splats(folder / "splats.ply", cloud())
    (folder / "start_frame.png").write_bytes(encode_png(start_picture()))
    job = {"job_id": "a", "settings": {"prompt": "a harbour in the fog"}, "frames": {"written": 93}}
    (folder / "job.json").write_text(json.dumps(job))
    return folder


def preview_of(thing: bpy.types.Object) -> np.ndarray:
    """(H, W, 3) uint8, top row first."""
    width, height = thing.preview.image_size
    pixels = np.empty(width * height * 4, np.float32)
    thing.preview.image_pixels_float.foreach_get(pixels)
    return np.rint(pixels.reshape(height, width, 4)[::-1, :, :3] * 255).astype(np.uint8)


def test_the_asset_carries_picture_author_and_description_to_another_file(shot: Path, tmp_path: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    assert bpy.ops.worldwarp.mark_asset(author="Mia") == {"FINISHED"}
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library.blend"))
    bpy.ops.wm.read_factory_settings(use_empty=True)
    with bpy.data.libraries.load(str(tmp_path / "library.blend"), assets_only=True) as (there, wanted):
        assert there.objects == ["harbour"]
        wanted.objects = there.objects
    (thing,) = wanted.objects
    assert thing.asset_data.author == "Mia"
    assert thing.asset_data.description == "A world of 40 Gaussian splats, seen on 93 frames: a harbour in the fog"
    assert thing.asset_data.catalog_id == "00000000-0000-0000-0000-000000000000"
    # The middle of the start frame, as it looks.
    preview = preview_of(thing)
    assert preview.shape == (90, 90, 3)
    np.testing.assert_array_equal(preview, start_picture()[:, 35:125])
    bpy.context.collection.objects.link(thing)
    bpy.context.view_layer.update()
    whole = splat_cloud_of(thing)
    assert (len(whole), int(whole.sky.sum())) == (40, 8)


def test_a_shot_of_another_file_does_not_take_the_asset_for_its_own(shot: Path, tmp_path: Path) -> None:
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library.blend"))
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.mark_asset()
    bpy.ops.wm.save_mainfile()
    # Another project, with a shot at the same place beside its file.
    other = tmp_path / "other"
    shutil.copytree(shot, other / "harbour")
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(other / "scene.blend"))
    with bpy.data.libraries.load(str(tmp_path / "library.blend"), assets_only=True) as (there, wanted):
        wanted.objects = there.objects
    (asset,) = wanted.objects
    bpy.context.collection.objects.link(asset)
    assert source_of(asset) == shot / "splats.ply"
    bpy.ops.worldwarp.import_results(directory=str(other / "harbour"))
    made = bpy.context.view_layer.objects.active
    assert made != asset
    assert source_of(made) == other / "harbour/splats.ply"


def test_large_pictures_become_small_previews(shot: Path) -> None:
    (shot / "start_frame.png").write_bytes(encode_png(start_picture().repeat(10, axis=0).repeat(10, axis=1)))
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.mark_asset()
    assert max(bpy.context.view_layer.objects.active.preview.image_size) <= 256


def test_words_of_ones_own_come_first(shot: Path) -> None:
    bpy.ops.worldwarp.import_results(directory=str(shot))
    bpy.ops.worldwarp.mark_asset(description="Hero set")
    assert bpy.context.view_layer.objects.active.asset_data.description == "Hero set"


def test_splats_of_no_shot_become_an_asset_without_a_picture_and_that_is_said(capfd: pytest.CaptureFixture) -> None:
    made = add_splat_objects(bpy.context, "World", cloud())
    assert bpy.ops.worldwarp.mark_asset() == {"FINISHED"}
    assert made.asset_data.description == "A world of 40 Gaussian splats"
    assert "without a picture" in capfd.readouterr().out


def test_without_splats_the_command_says_so() -> None:
    with pytest.raises(RuntimeError, match="no splat object"):
        bpy.ops.worldwarp.mark_asset()
