"""Camera files: exact round trips, other programs' files, and every way in which a file can be wrong."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldwarp_core.cameras import files as camera_files
from worldwarp_core.cameras.files import read_cameras, write_cameras, write_transforms
from worldwarp_core.cameras.path import CameraPath, blender_to_opencv, preset_path
from worldwarp_core.errors import WorldWarpError

ANIMATED = preset_path(["DOLLY_IN", "PAN_LEFT", "ROLL_CW"], frames=5, fps=23.976, width=640, height=360, first_frame=-1)
DOCUMENT = {
    "version": 1,
    "width": 64,
    "height": 32,
    "fps": 24,
    "frames": [{"frame": n, "K": [50, 50, 32, 16], "c2w": np.eye(4).tolist()} for n in (1, 3)],
}
# As BlenderNeRF writes it: OpenGL axes, the frames not in order.
TRANSFORMS = {
    "camera_angle_x": 1.0,
    "camera_angle_y": 0.6,
    "fl_x": 100.0,
    "fl_y": 110.0,
    "k1": 0.0,
    "k2": 0.0,
    "p1": 0.0,
    "p2": 0.0,
    "cx": 32.5,
    "cy": 15.5,
    "w": 64.0,
    "h": 32.0,
    "aabb_scale": 4,
    "frames": [
        {
            "file_path": f"train/take2_{n:04d}.png",
            "transform_matrix": [[1, 0, 0, n], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        }
        for n in (10, 9, 11)
    ],
}


def same(a: CameraPath, b: CameraPath) -> bool:
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("frames", "K", "c2w"))
    return arrays and (a.fps, a.width, a.height) == (b.fps, b.width, b.height)


def saved(folder, document, name="cameras.json"):
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def refused(path, match, **options):
    with pytest.raises(WorldWarpError, match=match) as caught:
        read_cameras(path, **options)
    assert caught.value.code == "bad_camera_path"
    assert str(path) in caught.value.message, "the message names the file"


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_writing_and_reading_gives_back_the_same_bits(tmp_path_factory, seed, count):
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    c2w[:, :3, :3] *= np.linalg.det(c2w[:, :3, :3])[:, None, None]
    c2w[:, :3, 3] = rng.normal(size=(count, 3)) * 1e6
    K = np.tile(np.eye(3), (count, 1, 1))
    K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = rng.uniform(1, 5000, (count, 4))
    path = CameraPath(np.cumsum(rng.integers(1, 9, count)), float(rng.uniform(1, 120)), 1921, 1079, K, c2w)
    file = tmp_path_factory.mktemp("cameras") / "cameras.json"
    write_cameras(file, path)
    assert same(read_cameras(file), path)


def test_the_written_file_is_the_documented_form(tmp_path):
    write_cameras(tmp_path / "new" / "cameras.json", ANIMATED)
    document = json.loads((tmp_path / "new" / "cameras.json").read_text())
    assert set(document) == {"version", "width", "height", "fps", "frames"}
    assert document["version"] == 1
    first = document["frames"][0]
    assert first["frame"] == -1
    fx, fy, cx, cy = first["K"]
    assert (cx, cy) == (320, 180)
    assert fx == fy == ANIMATED.K[0, 0, 0]
    np.testing.assert_array_equal(first["c2w"], ANIMATED.c2w[0])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["cameras.json"], "no partial file is left"


def test_a_file_of_another_tool_may_say_more(tmp_path):
    document = {**DOCUMENT, "scene": "Courtyard", "frames": [{**row, "note": "key"} for row in DOCUMENT["frames"]]}
    path = read_cameras(saved(tmp_path, document, "no_suffix"))
    assert path.frames.tolist() == [1, 3]
    np.testing.assert_array_equal(path.K[0], [[50, 0, 32], [0, 50, 16], [0, 0, 1]])


def test_transforms_json_is_flipped_and_sorted_by_frame_number(tmp_path):
    path = read_cameras(saved(tmp_path, TRANSFORMS))
    assert path.frames.tolist() == [9, 10, 11]
    assert (path.width, path.height, path.fps) == (64, 32, 24.0)
    np.testing.assert_array_equal(path.K[0], [[100, 0, 32.5], [0, 110, 15.5], [0, 0, 1]])
    np.testing.assert_array_equal(path.c2w[:, 0, 3], [9, 10, 11])
    np.testing.assert_array_equal(path.c2w[0, :3, :3], np.diag([1, -1, -1]))


def test_transforms_json_is_written_as_nerfstudio_reads_it_and_comes_back(tmp_path):
    cameras = preset_path(["DOLLY_IN", "PAN_LEFT"], frames=5, fps=23.976, width=640, height=360, first_frame=8)
    write_transforms(tmp_path / "transforms.json", cameras)
    document = json.loads((tmp_path / "transforms.json").read_text())
    assert (document["w"], document["h"], document["camera_model"]) == (640, 360, "PINHOLE")
    assert [row["file_path"] for row in document["frames"]] == [f"frames/frame_{n:04d}.png" for n in range(8, 13)]
    # OpenGL axes: the third column points backwards.
    first = np.array(document["frames"][0]["transform_matrix"])
    np.testing.assert_array_equal(first[:3, 2], -cameras.c2w[0, :3, 2])
    assert same(read_cameras(tmp_path / "transforms.json"), cameras)


def test_transforms_json_with_angles_only_is_centred(tmp_path):
    document = {"camera_angle_x": np.pi / 2, "frames": copy.deepcopy(TRANSFORMS["frames"])}
    file = saved(tmp_path, document)
    refused(file, "does not say the size")
    path = read_cameras(file, width=200, height=100, fps=30)
    np.testing.assert_allclose(path.K[2], [[100, 0, 100], [0, 100, 50], [0, 0, 1]])
    assert path.fps == 30


def test_transforms_json_with_intrinsics_of_each_frame(tmp_path):
    document = copy.deepcopy(TRANSFORMS)
    for i, row in enumerate(document["frames"]):
        row.update(fl_x=200.0 + i, fl_y=300.0 + i)
    path = read_cameras(saved(tmp_path, document))
    assert path.K[:, 0, 0].tolist() == [201, 200, 202], "each follows its own frame when they are sorted"
    document["frames"][1].update(w=128)
    refused(saved(tmp_path, document), "differ in size")


def test_transforms_json_without_numbers_keeps_its_order(tmp_path):
    document = copy.deepcopy(TRANSFORMS)
    for row, name in zip(document["frames"], ("a.png", "b.png", "c.png"), strict=True):
        row["file_path"] = name
    path = read_cameras(saved(tmp_path, document))
    assert path.frames.tolist() == [1, 2, 3]
    assert path.c2w[:, 0, 3].tolist() == [10, 9, 11]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k1": 0.02, "p2": 1e-4}, r"lens distortion \(k1, p2\).*Undistort"),
        ({"camera_model": "OPENCV_FISHEYE"}, "camera model is OPENCV_FISHEYE"),
        ({"fl_x": "long"}, "fl_x must be a number; got long"),
        ({"fl_x": -1.0}, "focal length in K must be above 0"),
        ({"w": 64.5}, "whole pixels"),
        ({"cx": None}, "cx must be a number"),
    ],
)
def test_transforms_json_that_cannot_be_followed_is_refused(tmp_path, change, match):
    refused(saved(tmp_path, {**TRANSFORMS, **change}), match)


def test_transforms_json_without_a_focal_length_is_refused(tmp_path):
    document = {key: value for key, value in TRANSFORMS.items() if "fl_" not in key and "angle" not in key}
    refused(saved(tmp_path, document), "lacks the focal length")
    refused(saved(tmp_path, {**document, "camera_angle_x": 0.0}), "camera_angle_x must be between 0 and pi")


def test_an_npz_is_read_whatever_it_is_called(tmp_path):
    file = tmp_path / "cameras.json"
    with file.open("wb") as stream:
        np.savez(stream, c2w=ANIMATED.c2w, K=ANIMATED.K, frames=ANIMATED.frames, fps=23.976, width=640, height=360)
    assert same(read_cameras(file), ANIMATED)


def test_an_npz_with_one_K_and_nothing_else_asks_for_the_size(tmp_path):
    file = tmp_path / "path.npz"
    np.savez_compressed(file, c2w=ANIMATED.c2w, K=ANIMATED.K[0])
    refused(file, "does not say the size of the image")
    path = read_cameras(file, width=640, height=360)
    assert path.frames.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(path.K, ANIMATED.K)


def test_bad_npz_files_are_refused(tmp_path):
    file = tmp_path / "path.npz"
    np.savez(file, c2w=ANIMATED.c2w)
    refused(file, "lacks K")
    np.savez(file, c2w=np.array([{"not": "numbers"}], dtype=object), K=ANIMATED.K)
    refused(file, "plain arrays")
    np.savez(file, c2w=ANIMATED.c2w[:, :3], K=ANIMATED.K, width=640, height=360)
    refused(file, r"c2w must have shape \(5, 4, 4\)")
    np.savez(file, c2w=1.0, K=ANIMATED.K[0], width=640, height=360)
    refused(file, "empty")
    np.savez(file, c2w=ANIMATED.c2w, K=ANIMATED.K, width=640, height=360)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, "not a whole .npz")


def test_an_npz_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    file = tmp_path / "bomb.npz"
    np.savez_compressed(file, c2w=np.zeros((4000, 4, 4)), K=np.eye(3))
    monkeypatch.setattr(camera_files, "MAX_FILE_BYTES", 2**18)
    refused(file, "unpacks to")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(WorldWarpError, match=r"no camera file .*gone\.json") as caught:
        read_cameras(tmp_path / "gone.json")
    assert caught.value.code == "bad_camera_path"


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(camera_files, "MAX_FILE_BYTES", 100)
    refused(saved(tmp_path, DOCUMENT), "at most")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "neither JSON nor .npz"),
        ('{"version": 1,\n oops', "neither JSON nor .npz.*line 2"),
        ("\x00\x01", "neither JSON nor .npz"),
        ("[" * 100_000, "neither JSON nor .npz"),
        ("[1, 2]", "is a list, not an object"),
        ("{}", "lacks version, width, height, fps, frames"),
    ],
)
def test_what_is_no_camera_file_is_refused(tmp_path, text, match):
    refused(saved(tmp_path, text), match)


def rows(**change):
    return [DOCUMENT["frames"][0], {**DOCUMENT["frames"][1], **change}]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"frames": []}, "empty"),
        ({"frames": {}}, "list of objects"),
        ({"frames": [1]}, "list of objects"),
        ({"frames": [{"frame": 1}]}, r"frames\[0\] lacks K, c2w"),
        ({"frames": rows(K=[1, 2, 3])}, r"frames\[1\]: K must be \[fx, fy, cx, cy\]"),
        ({"frames": rows(K=[1, 2, 3, "4"])}, r"frames\[1\]: K must be 4 numbers"),
        ({"frames": rows(c2w=[[1, 2], [3]])}, r"frames\[1\]: c2w must be 4x4 numbers"),
        ({"frames": rows(c2w=np.ones((3, 4)).tolist())}, r"frames\[1\]: c2w must be 4x4 numbers"),
        ({"frames": rows(frame="3")}, r"frames\[1\]: frame must be a number"),
        ({"frames": rows(frame=10**400)}, "frame must be a number"),
        ({"frames": rows(frame=1)}, "must increase"),
        ({"frames": rows(c2w=np.diag([2.0, 2, 2, 1]).tolist())}, "frame 3: c2w is not rigid"),
        ({"frames": rows(c2w=np.diag([1, 1, float("nan"), 1]).tolist())}, "frame 3: c2w holds NaN"),
        ({"width": 0}, "width must be"),
        ({"height": "32"}, "height must be"),
        ({"fps": None}, "frame rate must be"),
    ],
)
def test_bad_documents_are_refused_by_name(tmp_path, change, match):
    refused(saved(tmp_path, {**DOCUMENT, **change}), match)


@pytest.mark.parametrize("document", [DOCUMENT, TRANSFORMS], ids=["cameras", "transforms"])
def test_no_truncation_crashes_the_reader(tmp_path, document):
    text = json.dumps(document)
    for end in range(0, len(text) - 1, 7):
        refused(saved(tmp_path, text[:end]), "neither JSON")


def test_an_unwritable_place_is_named_and_the_old_file_kept(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(WorldWarpError, match="Cannot write") as caught:
        write_cameras(blocked / "cameras.json", ANIMATED)
    assert caught.value.code == "cannot_write"


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "cameras.json"
    write_cameras(file, ANIMATED)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WorldWarpError, match="No space left"):
        write_cameras(file, ANIMATED.scaled(2.0))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_blender_path_survives_the_detour_through_transforms_json(tmp_path):
    frames = [
        {"file_path": f"{n:04d}.png", "transform_matrix": blender_to_opencv(c2w).tolist()}
        for n, c2w in zip((1, 2, 3, 4, 5), ANIMATED.c2w, strict=True)
    ]
    document = {"fl_x": ANIMATED.K[0, 0, 0], "fl_y": ANIMATED.K[0, 1, 1], "w": 640, "h": 360, "frames": frames}
    path = read_cameras(saved(tmp_path, document))
    np.testing.assert_array_equal(path.c2w, ANIMATED.c2w)
    np.testing.assert_array_equal(path.K, ANIMATED.K)


def test_the_camera_modules_need_only_numpy():
    code = "import worldwarp_core.cameras.files, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "PIL", "OpenEXR", "cv2", "av", "numba", "zmq", "bpy"} & set(loaded)
