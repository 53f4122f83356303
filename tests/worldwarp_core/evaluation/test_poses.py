"""Pose errors: known turns and shifts give the known figures, and COLMAP places a real flight."""

import math

import numpy as np
import pytest

from tests.support import room
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation import poses
from worldwarp_core.evaluation.poses import compare_paths, pose_errors

FRAMES = np.arange(5)
ALL = np.ones(5, bool)


def path(turn=0.0):
    """A walk to the right that turns by `turn` a frame."""
    return np.stack([room.look((0.3 * i, 0.1 * i, 1.0), turn * i) for i in range(5)])


def moved(c2w, scale):
    """The same path in another world: turned, shifted and scaled, as structure from motion gives it."""
    world = room.look((3.0, -2.0, 5.0), 1.1, 0.4)
    other = world @ c2w
    other[:, :3, 3] = world[:3, 3] + scale * (other[:, :3, 3] - world[:3, 3])
    return other


def test_the_same_path_in_another_world_has_no_error():
    errors = compare_paths(FRAMES, ALL, moved(path(0.1), 7.0), path(0.1))
    assert errors.until(5)["r_dist"] < 1e-6
    assert errors.until(5)["t_dist"] < 1e-6
    assert errors.unregistered == 0


def test_a_turn_that_is_not_followed_is_its_angle_in_radians():
    errors = compare_paths(FRAMES, ALL, path(0.1), path(0.0))
    np.testing.assert_allclose(errors.rotation_rad, 0.1 * FRAMES, atol=1e-9)
    small = compare_paths(FRAMES, ALL, path(1e-5), path(0.0))
    np.testing.assert_allclose(small.rotation_rad, 1e-5 * FRAMES, atol=1e-10)


def test_translations_are_over_each_path_s_largest_distance():
    found, truth = path(), path()
    found[2, :3, 3] += 0.25 * np.linalg.norm(truth[4, :3, 3] - truth[0, :3, 3]) * truth[2, :3, 2]
    errors = compare_paths(FRAMES, ALL, moved(found, 3.0), truth)
    np.testing.assert_allclose(errors.translation, [0, 0, 0.25, 0, 0], atol=1e-9)


def test_frames_that_were_not_placed_count_in_no_mean_and_are_told():
    placed = np.array([False, True, True, False, True])
    found = path()
    found[3] = room.look((100.0, 0, 0), 2.0)
    errors = compare_paths(FRAMES, placed, found, path())
    assert errors.until(5)["r_dist"] < 1e-9
    assert errors.until(5)["unregistered"] == pytest.approx(0.4)
    assert errors.until(1) == {
        "r_dist": pytest.approx(math.nan, nan_ok=True),
        "t_dist": pytest.approx(math.nan, nan_ok=True),
        "unregistered": 1.0,
    }


def test_a_path_that_stays_on_the_spot_has_no_translation_to_compare():
    still = path()
    still[:, :3, 3] = 1e-4 * still[:, :3, 3]
    errors = compare_paths(FRAMES, ALL, path(), still, depth=4.0)
    assert np.isnan(errors.translation).all()
    assert errors.until(5)["r_dist"] == 0


def test_nothing_placed_is_no_figure_and_all_unregistered():
    errors = compare_paths(FRAMES, ~ALL, path(), path())
    assert errors.unregistered == 1.0
    assert math.isnan(errors.until(5)["r_dist"])


def test_colmap_finds_the_cameras_of_a_flight_again():
    pytest.importorskip("pycolmap")
    cameras = room.truck(5, travel=1.2, width=192, height=128)
    pictures = np.stack([tiled(cameras, frame) for frame in range(5)])
    errors = pose_errors(pictures, cameras.K, cameras.c2w, range(5), depth=5.0)
    assert errors.unregistered == 0
    assert errors.until(5)["r_dist"] < 0.01
    assert errors.until(5)["t_dist"] < 0.05


def tiled(cameras: CameraPath, frame: int) -> np.ndarray:
    """(H, W, 3) uint8: the room with tiles of many shades, whose corners are what COLMAP finds again."""
    colour, depth = room.render(cameras, frame)
    v, u = np.mgrid[: cameras.height, : cameras.width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.K[frame]).T
    points = rays * depth[..., None] @ cameras.c2w[frame, :3, :3].T + cameras.c2w[frame, :3, 3]
    tiles = np.floor((points + 0.07) / 0.3)
    shade = np.sin(tiles @ [12.9, 78.2, 37.7]) * 43758.5 % 1.0
    return (0.5 * colour + 127 * shade[..., None]).astype(np.uint8)


def test_pictures_of_nothing_are_unregistered():
    pytest.importorskip("pycolmap")
    cameras = room.truck(4, width=96, height=64)
    assert pose_errors(np.full((4, 64, 96, 3), 128, np.uint8), cameras.K, cameras.c2w, range(4)).unregistered == 1.0


def test_without_pycolmap_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(WorldWarpError, match=r"pip install .*\[evaluation\]") as caught:
        poses.place(np.zeros((2, 8, 8, 3), np.uint8), np.tile(np.eye(3), (2, 1, 1)))
    assert caught.value.code == "not_installed"
