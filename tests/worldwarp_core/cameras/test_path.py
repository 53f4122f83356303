"""Camera paths by property: identity, inverse, direction, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldwarp_core.cameras.path import (
    BLENDER_FRONT,
    MAX_CAMERAS,
    PRESETS,
    CameraPath,
    blender_to_opencv,
    jump_warning,
    jumps,
    preset_path,
    rotation_from_vector,
    vector_from_rotation,
)
from worldwarp_core.errors import WorldWarpError

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 12)


def random_path(seed: int, count: int) -> CameraPath:
    """Any cameras at all, with gaps between the frame numbers and non-square pixels."""
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = rotation_from_vector(rng.normal(size=(count, 3)))
    c2w[:, :3, 3] = rng.normal(size=(count, 3)) * 10 ** rng.uniform(-3, 3)
    K = np.tile(np.eye(3), (count, 1, 1))
    K[:, [0, 1], [0, 1]] = rng.uniform(50, 5000, (count, 2))
    K[:, :2, 2] = rng.uniform(-100, 2000, (count, 2))
    return CameraPath(rng.integers(-50, 50) + np.cumsum(rng.integers(1, 4, count)), 24.0, 320, 180, K, c2w)


def refused(match: str, **change):
    path = random_path(0, 4)
    fields = {name: getattr(path, name) for name in ("frames", "fps", "width", "height", "K", "c2w")}
    with pytest.raises(WorldWarpError, match=match) as caught:
        CameraPath(**{**fields, **change})
    assert caught.value.code == "bad_camera_path"


@given(seeds, counts)
def test_w2c_is_the_inverse_of_c2w(seed, count):
    path = random_path(seed, count)
    scale = max(1.0, np.abs(path.c2w).max())
    np.testing.assert_allclose(path.w2c @ path.c2w, np.broadcast_to(np.eye(4), (count, 4, 4)), atol=1e-12 * scale)


@given(seeds, counts)
def test_the_axis_flip_undoes_itself_and_leaves_positions(seed, count):
    c2w = random_path(seed, count).c2w
    np.testing.assert_array_equal(blender_to_opencv(blender_to_opencv(c2w)), c2w)
    np.testing.assert_array_equal(blender_to_opencv(c2w)[:, :3, 3], c2w[:, :3, 3])


def test_a_blender_camera_with_no_rotation_looks_down_the_worlds_z():
    c2w = blender_to_opencv(np.eye(4))
    np.testing.assert_array_equal(c2w[:3, 2], [0, 0, -1])
    np.testing.assert_array_equal(c2w[:3, 1], [0, -1, 0])


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_rotation_vectors_round_trip(vector):
    vector = np.array(vector)
    vector = vector * min(1.0, 3.1415 / max(np.linalg.norm(vector), 1e-12))
    np.testing.assert_allclose(vector_from_rotation(rotation_from_vector(vector)), vector, atol=1e-9)


def test_a_half_turn_has_a_rotation_vector_about_any_axis():
    for axis in (*np.eye(3), *-np.eye(3), np.ones(3) / np.sqrt(3)):
        half_turn = 2 * np.outer(axis, axis) - np.eye(3)
        vector = vector_from_rotation(half_turn)
        assert np.linalg.norm(vector) == pytest.approx(np.pi)
        np.testing.assert_allclose(rotation_from_vector(vector), half_turn, atol=1e-12)


@given(seeds, counts, st.booleans())
def test_a_path_at_its_own_frames_is_itself(seed, count, smooth):
    path = random_path(seed, count)
    K, c2w = path.at(path.frames, smooth=smooth)
    np.testing.assert_array_equal(K, path.K)
    np.testing.assert_array_equal(c2w, path.c2w)


@given(seeds, counts, counts, st.booleans())
def test_resampling_keeps_the_ends_and_stays_rigid(seed, count, new_count, smooth):
    path = random_path(seed, count)
    other = path.resampled(new_count, smooth=smooth)
    assert len(other) == new_count
    np.testing.assert_array_equal(other.frames, path.frames[0] + np.arange(new_count))
    np.testing.assert_array_equal(other.c2w[0], path.c2w[0])
    if new_count > 1:
        np.testing.assert_array_equal(other.c2w[-1], path.c2w[-1])
    rotation = other.c2w[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (new_count, 1, 1)), atol=1e-12
    )


def test_resampling_to_half_the_fps_takes_every_second_camera():
    path = preset_path(["DOLLY_IN", "PAN_LEFT"], frames=49, fps=24)
    slow = path.resampled(fps=12)
    assert (len(slow), slow.fps) == (25, 12)
    np.testing.assert_allclose(slow.c2w, path.c2w[::2], atol=1e-12)


def test_between_two_cameras_the_rotation_takes_half_the_angle():
    path = preset_path("PAN_LEFT", frames=2)
    _, c2w = path.at(np.array([1.5]))
    expected = preset_path("PAN_LEFT", frames=3).c2w[1]
    np.testing.assert_allclose(c2w[0], expected, atol=1e-12)


def test_smooth_resampling_follows_a_circle_closer_than_straight_lines_do():
    path = preset_path("ORBIT_LEFT", frames=7, distance=2.0, amount=4.0)
    pivot = np.array([0.0, 2.0, 0.0])

    def worst(smooth: bool) -> float:
        centres = path.resampled(61, smooth=smooth).c2w[10:-10, :3, 3]
        return np.abs(np.linalg.norm(centres - pivot, axis=1) - 2.0).max()

    assert worst(smooth=True) < 0.2 * worst(smooth=False)


@given(seeds, counts, st.integers(1, 4000), st.integers(1, 4000))
def test_resizing_moves_a_pixel_with_its_image(seed, count, width, height):
    path = random_path(seed, count)
    other = path.resized(width, height)
    point = np.array([0.3, -0.2, 2.0])
    pixel, moved = path.K @ point / 2.0, other.K @ point / 2.0
    np.testing.assert_allclose(moved[:, 0] / width, pixel[:, 0] / path.width, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moved[:, 1] / height, pixel[:, 1] / path.height, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(other.resized(path.width, path.height).K, path.K, rtol=1e-12)


@given(seeds, counts, st.floats(0, 100))
def test_the_speed_multiplier_scales_moves_from_the_first_camera(seed, count, factor):
    path = random_path(seed, count)
    other = path.scaled(factor)
    np.testing.assert_array_equal(other.c2w[:, :3, :3], path.c2w[:, :3, :3])
    moved = path.c2w[:, :3, 3] - path.c2w[0, :3, 3]
    size = 1 + np.abs(path.c2w).max() * (1 + factor)
    np.testing.assert_allclose(other.c2w[:, :3, 3] - other.c2w[0, :3, 3], factor * moved, atol=1e-13 * size)
    np.testing.assert_array_equal(path.scaled(1.0)[:1].c2w, path.c2w[:1])


def test_a_negative_speed_multiplier_is_refused():
    with pytest.raises(WorldWarpError, match="speed multiplier"):
        random_path(0, 3).scaled(-1.0)


@given(seeds, st.integers(2, 12), st.data())
def test_a_slice_holds_the_same_cameras(seed, count, data):
    path = random_path(seed, count)
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    part = path[start:stop]
    np.testing.assert_array_equal(part.frames, path.frames[start:stop])
    np.testing.assert_array_equal(part.c2w, path.c2w[start:stop])
    np.testing.assert_array_equal(path[-1].K, path.K[-1:])


def test_an_empty_slice_is_an_empty_path_and_refused():
    with pytest.raises(WorldWarpError, match="empty"):
        random_path(0, 3)[2:2]
    with pytest.raises(IndexError):
        random_path(0, 3)[3]


# Presets. The start camera is upright: its x, y, z are the world's +x, -z, +y.


def moved(preset: str, **options) -> np.ndarray:
    """The last camera's c2w in the axes of the first one."""
    path = preset_path(preset, **options)
    return path.w2c[0] @ path.c2w[-1]


@pytest.mark.parametrize(
    ("preset", "direction"),
    [
        ("DOLLY_IN", [0, 0, 1]), ("DOLLY_OUT", [0, 0, -1]),
        ("TRUCK_RIGHT", [1, 0, 0]), ("TRUCK_LEFT", [-1, 0, 0]),
        ("PEDESTAL_UP", [0, -1, 0]), ("PEDESTAL_DOWN", [0, 1, 0]),
    ],
)  # fmt: skip
def test_a_move_goes_its_way_and_does_not_turn(preset, direction):
    relative = moved(preset, distance=10.0)
    np.testing.assert_allclose(relative[:3, :3], np.eye(3), atol=1e-12)
    step = relative[:3, 3]
    np.testing.assert_allclose(step / np.linalg.norm(step), direction, atol=1e-12)
    np.testing.assert_allclose(moved(preset, distance=20.0)[:3, 3], 2 * step, atol=1e-12)
    np.testing.assert_allclose(moved(preset, distance=10.0, amount=0.5)[:3, 3], 0.5 * step, atol=1e-12)


@pytest.mark.parametrize(
    ("preset", "axis", "sign"),
    [("PAN_LEFT", 0, -1), ("PAN_RIGHT", 0, 1), ("TILT_UP", 1, -1), ("TILT_DOWN", 1, 1)],
)
def test_a_turn_looks_its_way_and_stays_on_the_spot(preset, axis, sign):
    relative = moved(preset)
    np.testing.assert_allclose(relative[:3, 3], 0, atol=1e-12)
    assert sign * relative[axis, 2] > 0.3
    assert relative[1 - axis, 2] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("preset", "sign"), [("ORBIT_LEFT", -1), ("ORBIT_RIGHT", 1)])
def test_an_orbit_keeps_its_distance_and_its_eyes_on_the_pivot(preset, sign):
    path = preset_path(preset, distance=3.0)
    pivot = path.c2w[0, :3, 3] + 3.0 * path.c2w[0, :3, 2]
    np.testing.assert_allclose(path.c2w[:, :3, 3] + 3.0 * path.c2w[:, :3, 2], np.tile(pivot, (49, 1)), atol=1e-12)
    assert sign * moved(preset)[0, 3] > 1.0


@pytest.mark.parametrize(("preset", "sign"), [("ROLL_CW", 1), ("ROLL_CCW", -1)])
def test_a_roll_turns_about_the_viewing_axis(preset, sign):
    relative = moved(preset)
    np.testing.assert_allclose(relative[:3, 2], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(relative[:3, 3], 0, atol=1e-12)
    assert sign * relative[1, 0] > 0.3, "clockwise takes the camera's right side down"


@pytest.mark.parametrize("preset", ["ORBIT_LEFT", "PAN_RIGHT"])
def test_a_camera_that_looks_down_keeps_its_horizon_level(preset):
    start = BLENDER_FRONT.copy()
    start[:3, :3] = BLENDER_FRONT[:3, :3] @ rotation_from_vector(np.array([-0.6, 0, 0]))
    path = preset_path(preset, start=start)
    assert path.c2w[0, 2, 2] < -0.5, "it looks down"
    np.testing.assert_allclose(path.c2w[:, 2, 0], 0, atol=1e-12)
    if preset == "ORBIT_LEFT":
        np.testing.assert_allclose(path.c2w[:, 2, 3], path.c2w[0, 2, 3], atol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("frames", [1, 2, 49])
def test_every_preset_starts_at_the_start_camera_at_any_length(preset, frames):
    path = preset_path(preset, frames=frames, first_frame=-3)
    assert len(path) == frames
    np.testing.assert_array_equal(path.c2w[0], BLENDER_FRONT)
    assert path.frames[0] == -3


@settings(max_examples=30)
@given(st.lists(st.sampled_from(PRESETS), min_size=1, max_size=5), st.booleans())
def test_presets_combine_in_any_order(names, ease):
    path = preset_path(names, ease=ease)
    np.testing.assert_allclose(path.c2w, preset_path(names[::-1], ease=ease).c2w, atol=1e-12)


def test_opposite_presets_cancel_and_twins_add():
    np.testing.assert_allclose(
        preset_path(["DOLLY_IN", "dolly_out"]).c2w, np.tile(BLENDER_FRONT, (49, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(preset_path(["PAN_LEFT"] * 2).c2w, preset_path("PAN_LEFT", amount=2.0).c2w, atol=1e-12)


def test_easing_starts_and_stops_softly_and_ends_in_the_same_place():
    eased, plain = preset_path("DOLLY_IN", ease=True), preset_path("DOLLY_IN")
    np.testing.assert_allclose(eased.c2w[-1], plain.c2w[-1], atol=1e-12)
    steps = np.linalg.norm(np.diff(eased.c2w[:, :3, 3], axis=0), axis=1)
    assert max(steps[0], steps[-1]) < 0.1 * steps.max()


def test_the_field_of_view_is_horizontal():
    path = preset_path("PAN_LEFT", width=640, height=360, fov_deg=90.0)
    np.testing.assert_allclose(path.K[0], [[320, 0, 320], [0, 320, 180], [0, 0, 1]])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"presets": ["DOLLY_IN", "SPIN"]}, "SPIN.*Known: DOLLY_IN"),
        ({"presets": []}, "No camera preset"),
        ({"presets": "DOLLY_IN", "frames": 0}, "empty"),
        ({"presets": "DOLLY_IN", "distance": 0.0}, "distance above 0"),
        ({"presets": "DOLLY_IN", "fov_deg": 180.0}, "field of view"),
    ],
)
def test_bad_presets_are_refused(options, match):
    with pytest.raises(WorldWarpError, match=match):
        preset_path(**options)


# Jumps.


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("ease", [False, True])
def test_a_preset_has_no_jump(preset, ease):
    path = preset_path(preset, frames=49, ease=ease)
    assert jumps(path) == []
    assert jump_warning(path) is None


def test_a_camera_that_holds_moves_and_holds_again_has_no_jump():
    move = preset_path(["TRUCK_LEFT", "PAN_RIGHT"], frames=30).c2w
    c2w = np.concatenate([move[:1].repeat(20, 0), move, move[-1:].repeat(20, 0)])
    path = CameraPath(np.arange(70), 24, 640, 360, preset_path("DOLLY_IN").K[:1].repeat(70, 0), c2w)
    assert jumps(path) == []


def test_a_cut_is_a_jump_that_names_its_frames():
    move = preset_path("DOLLY_IN", frames=20, first_frame=101)
    c2w = move.c2w.copy()
    c2w[10:, 0, 3] += 5.0
    path = CameraPath(move.frames, 24, move.width, move.height, move.K, c2w)
    (jump,) = jumps(path)
    assert (jump.before, jump.after) == (110, 111)
    assert jump.distance == pytest.approx(5.0, rel=0.01)
    assert "110 to 111" in jump_warning(path)


def test_one_stray_camera_is_two_jumps():
    c2w = preset_path("PAN_LEFT", frames=30).c2w.copy()
    c2w[12, :3, :3] = c2w[12, :3, :3] @ rotation_from_vector(np.array([0, 0.4, 0]))
    path = CameraPath(np.arange(30), 24, 640, 360, preset_path("PAN_LEFT", frames=30).K, c2w)
    assert [(jump.before, jump.after) for jump in jumps(path)] == [(11, 12), (12, 13)]


def test_a_frame_step_is_no_jump_but_two_views_that_share_nothing_are():
    path = preset_path("ORBIT_LEFT", frames=49)
    assert jumps(path[::4]) == []
    assert jumps(path[:1]) == []
    turned = preset_path("PAN_LEFT", frames=2, fov_deg=50.0, amount=3.0)
    assert [jump.rotation_deg for jump in jumps(turned)] == [pytest.approx(90.0)]


# What is refused.


def test_bad_paths_are_refused_with_the_frames_at_fault():
    path = random_path(0, 4)
    K, c2w = path.K.copy(), path.c2w.copy()
    K[2, 0, 2] = np.nan
    refused(f"frame {path.frames[2]}: K holds NaN", K=K)
    c2w[[1, 3], 0, 3] = np.inf
    refused(f"frames {path.frames[1]}, {path.frames[3]}: c2w holds NaN or infinity", c2w=c2w)


def test_scale_shear_and_mirrors_are_refused():
    path = random_path(0, 4)
    for row, column, value, match in ((0, 0, 1.1, "not rigid"), (0, 1, 0.2, "not rigid"), (0, 0, -1.0, "mirrors")):
        change = np.eye(4)
        change[row, column] = value
        refused(match, c2w=path.c2w @ change)
    refused("last row of c2w .*transposed", c2w=path.c2w.transpose(0, 2, 1))


def test_bad_intrinsics_are_refused():
    path = random_path(0, 4)
    for row, column, value, match in (
        (0, 0, 0.0, "focal"),
        (1, 1, -3.0, "focal"),
        (0, 1, 2.0, "skew"),
        (2, 0, 1.0, "last row"),
    ):
        K = path.K.copy()
        K[1, row, column] = value
        refused(f"frame {path.frames[1]}: .*{match}", K=K)


def test_bad_headers_are_refused():
    refused("empty", frames=[])
    refused("must increase; frame 5 comes right after frame 5", frames=[1, 5, 5, 6])
    refused("whole numbers", frames=[1, 2.5, 3, 4])
    refused("whole numbers", frames=[1, 2, 3, np.nan])
    refused("must be numbers", frames=["1", "2", "3", "4"])
    refused("shape", K=np.eye(3))
    refused("not a regular array", c2w=[[1, 2], [3]])
    refused(f"at most {MAX_CAMERAS:,}", frames=np.arange(MAX_CAMERAS + 1))
    for value in (0, -24.0, np.nan, np.inf, 1e6, "24", True):
        refused("frame rate", fps=value)
    for value in (0, -1, 16385, 1.5, True, "640"):
        refused("width", width=value)
        refused("height", height=value)


@given(seeds, counts)
def test_drift_of_float32_files_is_taken_and_removed(seed, count):
    path = random_path(seed, count)
    rounded = CameraPath(path.frames, path.fps, path.width, path.height, path.K, path.c2w.astype(np.float32))
    rotation = rounded.c2w[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (count, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(rotation, path.c2w[:, :3, :3], atol=1e-6)


def test_a_path_does_not_follow_the_arrays_it_was_made_of():
    c2w = np.eye(4)[None].copy()
    path = CameraPath([1], 24, 64, 64, np.eye(3)[None] * [[[50], [50], [1]]], c2w)
    c2w[0, 0, 3] = 7.0
    assert path.c2w[0, 0, 3] == 0.0
