from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import room
from worldwarp_core.api import load_engine
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.frame_memory import lending
from worldwarp_core.spec import BACKGROUND_DEPTH, CacheUpdate, Finished, Frame, GenerateSpec, Notice, Progress

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def engine():
    return load_engine("cache", device="cpu")


def spec(frames, *, width=WIDTH, height=HEIGHT, **settings):
    cameras = room.truck(frames, width=width, height=height)
    rgb, depth = room.render(cameras, 0)
    return GenerateSpec(cameras, rgb, depth, **{"chunk": 9, "overlap": 5, "cache_steps": 6, **settings})


def run(engine, shot):
    return list(engine.generate(shot))


def of(kind, events):
    return [e for e in events if isinstance(e, kind)]


@pytest.mark.parametrize("frames", [1, 2, 9, 10, 14])
def test_every_frame_of_any_length_arrives_once_in_order(engine, frames):
    events = run(engine, spec(frames))
    made = of(Frame, events)
    assert [f.index for f in made] == list(range(frames))
    assert [f.number for f in made] == list(range(1, frames + 1))
    assert isinstance(events[-1], Finished)


@pytest.fixture(scope="module")
def events(engine):
    return run(engine, spec(13, cache_steps=30))


def test_the_start_frame_is_delivered_untouched(events):
    assert (of(Frame, events)[0].rgb == room.render(room.truck(13, width=WIDTH, height=HEIGHT), 0)[0]).all()


def test_frames_are_of_the_size_and_kind_promised(events):
    for frame in of(Frame, events):
        assert frame.rgb.shape == (HEIGHT, WIDTH, 3)
        assert frame.rgb.dtype == np.uint8
        assert frame.depth.shape == (HEIGHT, WIDTH)
        assert frame.depth.dtype == np.float32
        assert set(np.unique(frame.validity)) <= {0, 255}
        assert np.isfinite(frame.depth).all()


def test_later_frames_show_the_scene_where_the_mask_is_white(events):
    cameras = room.truck(13, width=WIDTH, height=HEIGHT)
    for frame in of(Frame, events)[4:9]:
        truth, depth = room.render(cameras, frame.index)
        valid = frame.validity > 0
        assert valid.mean() > 0.4
        error = (frame.rgb[valid].astype(float) - truth[valid]) / 255
        assert -10 * np.log10((error**2).mean()) > 22
        assert np.median(np.abs(frame.depth[valid] / depth[valid] - 1)) < 0.02


def test_depth_is_background_where_the_cache_has_nothing(events):
    last = of(Frame, events)[8]
    assert (last.depth[last.validity == 0] == BACKGROUND_DEPTH).any()
    assert (last.depth[last.validity > 0] < 100).all()


def test_the_world_is_given_after_every_fit_the_last_chunk_included(events):
    updates = of(CacheUpdate, events)
    assert [u.chunk for u in updates] == [0, 0, 1]
    assert len(updates[0].splats) < len(updates[1].splats)
    assert {1, 9, 13} <= set(updates[-1].splats.source_frames.tolist())


def test_progress_never_runs_backwards_and_frames_come_between(events):
    fractions = [e.fraction for e in of(Progress, events)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    kinds = [type(e) for e in events]
    assert kinds.index(Frame) < len(kinds) - 1 - kinds[::-1].index(Progress)


def test_the_summary_says_what_was_done(events):
    summary = events[-1].summary
    assert summary["frames"] == 13
    assert summary["chunks"] == 2
    assert summary["fill"]["name"] == "cache"
    assert summary["cache_settings"]["first_steps"] == 30
    assert summary["engine"]["rasterizer"]
    assert set(summary["seconds"]) >= {"cache", "priors", "fill"}
    assert summary["depth"]


def test_the_same_seed_gives_the_same_frames(engine, events):
    again = run(engine, spec(13, cache_steps=30))
    for a, b in zip(of(Frame, events), of(Frame, again), strict=True):
        assert (a.rgb == b.rgb).all()


def test_stopping_between_two_steps_is_a_cancel(engine):
    running = engine.generate(spec(14))
    seen = [next(running) for _ in range(12)]
    running.close()
    assert not of(Finished, seen)


def test_a_large_shot_is_made_smaller_delivered_whole_and_said(engine):
    small = replace(engine, settings=replace(engine.settings, max_pixels=64 * 48))
    events = run(small, spec(3, width=160, height=120))
    assert of(Frame, events)[-1].rgb.shape == (120, 160, 3)
    assert "working_size" in {n.code for n in of(Notice, events)}


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (101, 67)])
def test_frames_are_put_where_room_for_them_is_lent(engine, size):
    def lend(height, width):
        size = (height, width)
        lent.append((np.empty((*size, 3), np.uint8), np.empty(size, np.float32), np.empty(size, np.uint8)))
        return lent[-1]

    lent, shot = [], spec(2, width=size[0], height=size[1])
    own = of(Frame, run(engine, shot))
    with lending(lend):
        frames = of(Frame, run(engine, shot))
    for frame, other, (rgb, depth, validity) in zip(frames, own, lent, strict=True):
        assert frame.rgb is rgb
        assert frame.depth is depth
        assert frame.validity is validity
        assert np.array_equal(rgb, other.rgb)
        assert np.array_equal(depth, other.depth)
        assert np.array_equal(validity, other.validity)


def test_odd_sizes_come_back_at_their_own_size(engine):
    events = run(engine, spec(2, width=101, height=67))
    assert of(Frame, events)[-1].rgb.shape == (67, 101, 3)
    assert of(Frame, events)[-1].depth.shape == (67, 101)


def test_a_jump_in_the_path_is_named(engine):
    cameras = room.truck(9, width=WIDTH, height=HEIGHT)
    cameras.c2w[6:, 0, 3] += 1.5
    rgb, depth = room.render(cameras, 0)
    events = run(engine, GenerateSpec(cameras, rgb, depth, chunk=9, overlap=5, cache_steps=3))
    (notice,) = [n for n in of(Notice, events) if n.code == "camera_jump"]
    assert "7" in notice.message


def test_a_full_world_is_told_of_once(engine):
    opened, *_ = of(CacheUpdate, run(engine, spec(1)))
    cache = replace(engine.settings.cache, max_gaussians=len(opened.splats) + 20)
    small = replace(engine, settings=replace(engine.settings, cache=cache))
    events = run(small, spec(14))
    assert len(of(CacheUpdate, events)) > 2
    assert [n.code for n in of(Notice, events)].count("world_full") == 1


def test_a_camera_that_looks_away_from_everything_makes_frames_and_is_named(engine):
    away = room.path([room.look((0, -3, 1.5)), room.look((0, -3, 1.5), yaw_rad=np.pi)], WIDTH, HEIGHT)
    rgb, depth = room.render(away, 0)
    events = run(engine, GenerateSpec(away, rgb, depth, cache_steps=3))
    assert len(of(Frame, events)) == 2
    assert of(Frame, events)[1].validity.mean() < 3
    (notice,) = [n for n in of(Notice, events) if n.code == "nothing_in_view"]
    assert "looks away from everything known in frame 2" in notice.message


def test_settings_that_change_nothing_are_named(engine):
    events = run(engine, spec(2, prompt="a courtyard", strength=0.5, scene_scale=3.0))
    told = " ".join(n.message for n in of(Notice, events) if n.code == "no_effect")
    assert "prompt, strength change nothing" in told
    assert "scene scale changes nothing" in told


def test_plain_settings_give_no_notice(engine):
    assert of(Notice, run(engine, spec(2))) == []


def test_a_start_frame_without_depth_or_model_is_refused_with_what_to_give(engine):
    shot = replace(spec(2), depth=None)
    with pytest.raises(WorldWarpError, match="--depth") as caught:
        run(engine, shot)
    assert caught.value.code == "no_depth"


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"chunk": 48}, "bad_settings", "chunk must be 4k . 1 .*; got 48"),
        ({"overlap": 49, "chunk": 49}, "bad_settings", "smaller than chunk"),
        ({"strength": 0.0}, "bad_settings", "above 0 and at most 1"),
        ({"steps": 0}, "bad_settings", "between 1 and 1000"),
        ({"cache_steps": 0}, "bad_settings", "at least 1"),
        ({"scene_scale": -1.0}, "bad_settings", "positive distance"),
        ({"start_frame": np.zeros((HEIGHT, WIDTH), np.uint8)}, "bad_start_frame", "must be 8-bit RGB"),
        ({"start_frame": np.zeros((8, 12, 3), np.uint8)}, "bad_start_frame", "at least 16x16"),
        ({"start_frame": np.zeros((HEIGHT * 2, WIDTH, 3), np.uint8)}, "bad_start_frame", "aspect ratios differ"),
        ({"depth": np.full((HEIGHT, WIDTH), np.nan, np.float32)}, "bad_depth", "3072 NaN pixels. Render the Z pass"),
        ({"depth": np.full((HEIGHT, WIDTH), 1e10, np.float32)}, "bad_depth", "background everywhere.*Point it at"),
        ({"depth": np.full((HEIGHT, WIDTH), -1.0, np.float32)}, "bad_depth", "at or behind the camera"),
        ({"depth": np.ones((HEIGHT, WIDTH - 1), np.float32)}, "bad_depth", "63x48 but .* 64x48: render both"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(change, code, sentence):
    with pytest.raises(WorldWarpError, match=sentence) as caught:
        replace(spec(2), **change)
    assert caught.value.code == code


def test_no_engine_of_that_name():
    with pytest.raises(WorldWarpError, match="Choose: preview, cache, wan"):
        load_engine("dream")


def test_background_in_the_start_view_is_sky(engine):
    cameras = room.truck(3, width=WIDTH, height=HEIGHT)
    rgb, depth = room.render(cameras, 0)
    depth[:16] = BACKGROUND_DEPTH
    events = run(engine, GenerateSpec(cameras, rgb, depth, cache_steps=20))
    last = of(Frame, events)[-1]
    assert (last.depth[:10] == BACKGROUND_DEPTH).mean() > 0.9
    assert (last.validity[:10, WIDTH // 3 :] == 255).mean() > 0.85  # the turn uncovers the left
    cloud = of(CacheUpdate, events)[-1].splats
    assert 0 < cloud.sky.sum() < len(cloud)
    assert torch.isfinite(torch.from_numpy(cloud.means)).all()


@pytest.mark.parametrize("change", [{"representation": "points"}, {"representation": "none"}, {"persistent": False}])
def test_the_ablations_of_the_cache_make_a_whole_shot_and_count_their_steps(engine, change):
    settings = replace(engine.settings, cache=replace(engine.settings.cache, **change))
    events = run(replace(engine, settings=settings), spec(18))
    assert len(of(Frame, events)) == 18
    first, later = settings.cache.planned_steps()
    steps = [e for e in of(Progress, events) if e.stage == "cache"]
    assert bool(steps) == bool(first or later)
    assert of(Progress, events)[-1].fraction == 1.0
    assert events[-1].summary["cache_settings"] | change == events[-1].summary["cache_settings"]
    assert (len(of(CacheUpdate, events)[-1].splats.means) == 0) == (change == {"representation": "none"})
