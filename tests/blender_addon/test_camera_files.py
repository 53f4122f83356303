"""The camera operators: out to cameras.json, in from it, and the same path after both."""

from __future__ import annotations

import json
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon.camera_export import export_camera_path
from worldwarp_core.cameras.files import read_cameras, write_cameras
from worldwarp_core.cameras.path import CameraPath

pytestmark = pytest.mark.usefixtures("addon")


def test_the_scene_camera_is_written_as_cameras_json(camera: bpy.types.Object, tmp_path: Path) -> None:
    camera.location = (1.0, 2.0, 3.0)
    assert bpy.ops.worldwarp.export_camera(filepath=str(tmp_path / "cameras.json")) == {"FINISHED"}
    document = json.loads((tmp_path / "cameras.json").read_text())
    assert document["version"] == 1
    assert (document["width"], document["height"], document["fps"]) == (1920, 1080, 24)
    assert [row["frame"] for row in document["frames"]] == [1, 2, 3]
    f = 50 * 1920 / 36
    np.testing.assert_allclose(document["frames"][0]["K"], [f, f, 960, 540])
    # Looking down: right is right, the picture's down is the world's -y, and forward is -z.
    expected = [[1, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(document["frames"][0]["c2w"], expected, atol=1e-6)


def test_the_scene_camera_is_written_as_transforms_json(camera: bpy.types.Object, tmp_path: Path) -> None:
    camera.location = (1.0, 2.0, 3.0)
    bpy.ops.worldwarp.export_camera(filepath=str(tmp_path / "transforms.json"), layout_of="TRANSFORMS")
    first = json.loads((tmp_path / "transforms.json").read_text())["frames"][0]
    # Blender's own axes of cameras are those of the file.
    np.testing.assert_allclose(first["transform_matrix"], np.array(camera.matrix_world), atol=1e-6)
    bpy.ops.worldwarp.import_cameras(filepath=str(tmp_path / "transforms.json"))
    np.testing.assert_allclose(np.array(bpy.context.scene.camera.location), (1, 2, 3), atol=1e-6)


def test_a_refused_camera_is_a_sentence_and_writes_nothing(camera: bpy.types.Object, tmp_path: Path) -> None:
    camera.data.type = "ORTHO"
    with pytest.raises(RuntimeError, match='Camera "Hero Camera" is orthographic at frame 1'):
        bpy.ops.worldwarp.export_camera(filepath=str(tmp_path / "cameras.json"))
    assert not (tmp_path / "cameras.json").exists()


def test_an_unwritable_place_is_a_sentence(camera: bpy.types.Object, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"Error: .*file"):
        bpy.ops.worldwarp.export_camera(filepath=str(tmp_path / "file" / "cameras.json"))


@pytest.mark.parametrize("aspect", [1.0, 1.4, 0.8])
def test_an_imported_path_is_exported_as_it_was(tmp_path: Path, aspect: float) -> None:
    rng = np.random.default_rng(1)
    count = 12
    c2w = np.tile(np.eye(4), (count, 1, 1))
    for i in range(count):
        c2w[i, :3, :3], _ = np.linalg.qr(rng.normal(size=(3, 3)))
        c2w[i, :3, :3] *= np.sign(np.linalg.det(c2w[i, :3, :3]))
        c2w[i, :3, 3] = rng.normal(size=3)
    K = np.zeros((count, 3, 3))
    K[:, 0, 0] = rng.uniform(300, 900, count)
    K[:, 1, 1] = K[:, 0, 0] * aspect
    K[:, 0, 2], K[:, 1, 2] = rng.uniform(250, 400, count), rng.uniform(100, 300, count)
    K[:, 2, 2] = 1
    path = CameraPath(np.arange(10, 10 + 2 * count, 2), 29.97, 640, 360, K, c2w)
    write_cameras(tmp_path / "flight.json", path)
    assert bpy.ops.worldwarp.import_cameras(filepath=str(tmp_path / "flight.json")) == {"FINISHED"}
    assert bpy.context.scene.camera.name == "flight"
    back = export_camera_path(bpy.context)
    assert (back.width, back.height) == (640, 360)
    assert back.frames.tolist() == path.frames.tolist()
    assert back.fps == pytest.approx(29.97, rel=1e-6)
    np.testing.assert_allclose(back.K, path.K, rtol=2e-6, atol=2e-4)
    np.testing.assert_allclose(back.c2w, path.c2w, atol=2e-6)


def test_the_scene_is_left_alone_when_asked(camera: bpy.types.Object, tmp_path: Path) -> None:
    write_cameras(tmp_path / "flight.json", read_after_export(tmp_path))
    bpy.context.scene.frame_end = 99
    bpy.ops.worldwarp.import_cameras(filepath=str(tmp_path / "flight.json"), match_scene=False)
    assert bpy.context.scene.camera == camera
    assert bpy.context.scene.frame_end == 99


def read_after_export(folder: Path) -> CameraPath:
    bpy.ops.worldwarp.export_camera(filepath=str(folder / "cameras.json"))
    return read_cameras(folder / "cameras.json")


def test_a_broken_camera_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RuntimeError, match=r"Error: .*broken\.json"):
        bpy.ops.worldwarp.import_cameras(filepath=str(tmp_path / "broken.json"))
    assert len(bpy.data.objects) == 0
