"""Footage in the layouts of RealEstate10K and DL3DV, written in miniature as the data sets come."""

import json
import struct

import numpy as np
import pytest
from PIL import Image

from tests.support import room
from tests.support.re10k import write_re10k
from worldwarp_core.cameras.path import blender_to_opencv
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation.folders import Dl3dv, RealEstate10k

FRAMES = 52
WIDTH, HEIGHT = 128, 72
SIZE = (32, 48)


@pytest.fixture(scope="module")
def flight():
    return room.truck(FRAMES, travel=1.5, width=WIDTH, height=HEIGHT)


@pytest.fixture(scope="module")
def pictures(flight):
    return [room.render(flight, frame)[0] for frame in range(FRAMES)]


def write_dl3dv(folder, flight, pictures, distortion=0.0):
    """<hash>/nerfstudio/transforms.json with the full size's lens, and images_4."""
    place = folder / "0123abcd" / "nerfstudio"
    (place / "images_4").mkdir(parents=True)
    K = flight.K[0]
    document = {
        "w": 4 * WIDTH, "h": 4 * HEIGHT, "camera_model": "OPENCV",
        "fl_x": 4 * K[0, 0], "fl_y": 4 * K[1, 1], "cx": 4 * K[0, 2], "cy": 4 * K[1, 2],
        "k1": distortion, "k2": 0.0, "p1": 0.0, "p2": 0.0,
        "frames": [
            {"file_path": f"images/frame_{n + 1:05d}.png", "transform_matrix": blender_to_opencv(c2w).tolist()}
            for n, c2w in enumerate(flight.c2w)
        ][::-1],
    }  # fmt: skip
    (place / "transforms.json").write_text(json.dumps(document))
    for frame, picture in enumerate(pictures):
        Image.fromarray(picture).save(place / "images_4" / f"frame_{frame + 1:05d}.png")


def write_colmap(folder, flight, pictures):
    """<hash>/sparse/0 with COLMAP's binary cameras, images and points, and images."""
    sparse = folder / "fedc9876" / "sparse" / "0"
    sparse.mkdir(parents=True)
    (folder / "fedc9876" / "images").mkdir()
    K = flight.K[0]
    with (sparse / "cameras.bin").open("wb") as file:
        file.write(struct.pack("<QiiQQ4d", 1, 1, 1, WIDTH, HEIGHT, K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    with (sparse / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", len(pictures)))
        for frame, w2c in enumerate(flight.w2c):
            name = f"frame_{frame + 1:05d}.png"
            file.write(struct.pack("<i7di", frame + 1, *quaternion(w2c[:3, :3]), *w2c[:3, 3], 1))
            file.write(name.encode() + b"\0" + struct.pack("<Q", 0))
            Image.fromarray(pictures[frame]).save(folder / "fedc9876" / "images" / name)
    (sparse / "points3D.bin").write_bytes(struct.pack("<Q", 0))


def quaternion(rotation):
    w = np.sqrt(max(1 + np.trace(rotation), 1e-12)) / 2
    skew = rotation - rotation.T
    return w, skew[2, 1] / (4 * w), skew[0, 2] / (4 * w), skew[1, 0] / (4 * w)


def check_scene(scene, flight, pictures):
    """The scene is the flight at the smaller size, cropped in the middle, in its own scale."""
    path = scene.cameras
    assert (len(path), path.width, path.height) == (FRAMES, SIZE[1], SIZE[0])
    np.testing.assert_allclose(path.c2w, flight.c2w, atol=1e-6)
    # 128x72 cut to 108x72, made 48x32
    np.testing.assert_allclose(path.K[0, 0, 0], flight.K[0, 0, 0] * 48 / 108, rtol=1e-6)
    np.testing.assert_allclose(path.K[0, :2, 2], [24, 16], atol=1e-6)
    rgb, depth = scene.truth([0, 51])
    assert depth is None
    assert rgb.shape == (2, *SIZE, 3)
    wanted = np.asarray(Image.fromarray(pictures[51]).crop((10, 0, 118, 72)).resize((48, 32), Image.Resampling.LANCZOS))
    assert np.abs(rgb[1].astype(int) - wanted).mean() < 1.5


def test_realestate10k_s_cameras_and_frames_are_read(tmp_path, flight, pictures):
    write_re10k(tmp_path, flight, pictures)
    clips = RealEstate10k(tmp_path, SIZE)
    assert len(clips) == 1
    scene = clips.scene(0)
    assert scene.name == "0a1b2c3d4e5f6789"
    check_scene(scene, flight, pictures)


def test_frames_that_are_not_there_are_left_out_and_too_few_are_refused(tmp_path, flight, pictures):
    write_re10k(tmp_path / "whole", flight, pictures, skip=(3,))
    np.testing.assert_allclose(
        RealEstate10k(tmp_path / "whole", SIZE).scene(0).cameras.c2w, np.delete(flight.c2w, 3, 0), atol=1e-6
    )
    write_re10k(tmp_path / "part", flight, pictures, skip=(3, 4, 5))
    with pytest.raises(WorldWarpError, match="fewer than 50") as caught:
        RealEstate10k(tmp_path / "part", SIZE)
    assert caught.value.code == "bad_footage"


def test_dl3dv_s_transforms_and_smaller_pictures_are_read_in_the_order_of_their_names(tmp_path, flight, pictures):
    write_dl3dv(tmp_path, flight, pictures)
    scene = Dl3dv(tmp_path, SIZE).scene(0)
    assert scene.name == "0123abcd"
    check_scene(scene, flight, pictures)


def test_distorted_pictures_are_straightened(tmp_path, flight, pictures):
    import cv2

    K = flight.K[0].copy()
    K[:2, 2] -= 0.5
    v, u = np.meshgrid(np.arange(HEIGHT), np.arange(WIDTH), indexing="ij")
    points = np.stack([u, v], -1).reshape(-1, 1, 2).astype(np.float64)
    straight = cv2.undistortPoints(points, K, np.array([0.1, 0, 0, 0.0]), P=K).reshape(HEIGHT, WIDTH, 2)
    bent = [cv2.remap(p, straight.astype(np.float32), None, cv2.INTER_LINEAR) for p in pictures]
    write_dl3dv(tmp_path, flight, bent, distortion=0.1)
    made = Dl3dv(tmp_path, SIZE).scene(0).truth([51])[0][0].astype(int)
    wanted = np.asarray(Image.fromarray(pictures[51]).crop((10, 0, 118, 72)).resize((48, 32), Image.Resampling.LANCZOS))
    inside = (slice(4, -4), slice(4, -4))
    write_dl3dv(tmp_path / "untold", flight, bent)
    untold = Dl3dv(tmp_path / "untold", SIZE).scene(0).truth([51])[0][0].astype(int)
    assert np.abs(made - wanted)[inside].mean() < 0.5 * np.abs(untold - wanted)[inside].mean()


def test_colmap_s_model_is_read(tmp_path, flight, pictures):
    pytest.importorskip("pycolmap")
    write_colmap(tmp_path, flight, pictures)
    scene = Dl3dv(tmp_path, SIZE).scene(0)
    assert scene.name == "fedc9876"
    check_scene(scene, flight, pictures)


def test_the_scale_is_triangulated_from_what_frames_share(tmp_path):
    flight = room.truck(FRAMES, travel=3.0, width=480, height=320)
    frames = [0, 5, 10, 20, 40]
    from worldwarp_core.evaluation.folders import scale_of

    seen = [room.render(flight, frame) for frame in frames]
    found = scale_of(np.stack([rgb for rgb, _ in seen]), flight.K[frames], flight.c2w[frames])
    assert found == pytest.approx(float(np.median(seen[0][1])), rel=0.15)
    assert scale_of(np.full((3, 64, 96, 3), 99, np.uint8), flight.K[:3], flight.c2w[:3]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://x\n1 2 3\n", "19 numbers"),
        ("https://x\n" + " ".join(["1"] * 18) + " up\n", "something else than numbers"),
        ("https://x\n" + " ".join(["1"] * 18) + " nan\n", "NaN"),
        ("https://x\n1 " + " ".join(["0.5"] * 4) + " 0 0 2 0 0 0 0 2 0 0 0 0 2 0\n", "rotations"),
    ],
)
def test_damaged_camera_files_are_named(tmp_path, text, said):
    (tmp_path / "abc").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "abc" / "1.png")
    (tmp_path / "abc.txt").write_text(text)
    with pytest.raises(WorldWarpError, match=said):
        RealEstate10k(tmp_path, SIZE)


def test_a_transforms_file_reaches_no_picture_outside_its_folder(tmp_path, flight, pictures):
    write_dl3dv(tmp_path, flight, pictures)
    file = tmp_path / "0123abcd" / "nerfstudio" / "transforms.json"
    document = json.loads(file.read_text())
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "secret.png")
    for row in document["frames"]:
        row["file_path"] = "../../secret.png"
    file.write_text(json.dumps(document))
    with pytest.raises(WorldWarpError, match="fewer than 50"):
        Dl3dv(tmp_path, SIZE)
    file.write_text('{"frames": 3}')
    with pytest.raises(WorldWarpError, match="no transforms"):
        Dl3dv(tmp_path, SIZE)


def test_no_folder_and_an_empty_one_are_told_apart(tmp_path):
    with pytest.raises(WorldWarpError, match="no such folder"):
        RealEstate10k(tmp_path / "nowhere", SIZE)
    with pytest.raises(WorldWarpError, match="no cameras were found"):
        Dl3dv(tmp_path, SIZE)


def test_a_picture_that_is_a_program_in_disguise_is_not_run(tmp_path, flight, pictures, monkeypatch):
    from PIL import EpsImagePlugin

    def run(*args, **more):
        raise AssertionError("PostScript was run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    write_re10k(tmp_path, flight, pictures)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\n%%EOF\n")
    with pytest.raises(WorldWarpError, match="cannot be read"):
        RealEstate10k(tmp_path, SIZE).scene(0).truth([0])
