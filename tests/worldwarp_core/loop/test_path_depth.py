"""A shot that keeps to the scene's own depth along its path: the world lands where the artist built it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.support import room
from worldwarp_core.api import load_engine, render_splats
from worldwarp_core.checkpoint import join
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import BACKGROUND_DEPTH, CacheUpdate, Finished, Frame, GenerateSpec, Notice, PathDepth

WIDTH, HEIGHT = 64, 48
FRAMES = 17


def truck(count: int = FRAMES):
    """A move to the right: the pillar, which the start camera does not see, comes before the wall that it does see."""
    return room.path([room.look((-2.5 + 3.5 * s, -s, 1.5), 0.2 * s) for s in np.linspace(0, 1, count)], WIDTH, HEIGHT)


def path_depth(cameras, every: int = 1, scale: float = 0.5) -> PathDepth:
    small = cameras.resized(round(cameras.width * scale), round(cameras.height * scale))
    given = range(0, len(cameras), every)
    return PathDepth.of([int(cameras.frames[i]) for i in given], [room.render(small, i)[1] for i in given])


def spec(cameras=None, **settings: Any) -> GenerateSpec:
    cameras = cameras or truck()
    rgb, depth = room.render(cameras, 0)
    return GenerateSpec(cameras, rgb, **{"depth": depth, "chunk": 13, "overlap": 5, "cache_steps": 10, **settings})


def of(kind: type, events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def engine():
    # The order of sums, and with it the last bit, depends on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_engine("cache", device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def free(engine):
    return list(engine.generate(spec()))


@pytest.fixture(scope="module")
def kept(engine):
    return list(engine.generate(spec(path_depth=path_depth(truck()))))


def on_pillar(index: int) -> np.ndarray:
    """(H, W) bool: the camera sees the pillar before the wall, and not one of its edges."""
    cameras = truck()
    depth = room.render(cameras, index)[1]
    v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.K[index]).T @ cameras.c2w[index, :3, :3].T
    points = cameras.c2w[index, :3, 3] + depth[..., None] * rays
    pillar = ((points > room.PILLAR[0] - 1e-3) & (points < room.PILLAR[1] + 1e-3)).all(-1)
    return cv2.erode(pillar.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def test_a_surface_that_the_cache_does_not_know_hides_what_lies_behind_it(free, kept):
    for index in (8, 12):
        pillar = on_pillar(index)
        wrong = pillar & (of(Frame, free)[index].validity > 0)
        assert wrong.sum() > 0.15 * pillar.sum() > 20
        assert not (pillar & (of(Frame, kept)[index].validity > 0)).any()


def test_what_is_known_and_not_hidden_stays_valid(free, kept):
    for index in (4, 8, 12):
        seen = room.visible_from(truck(), index, 0)
        before, now = (of(Frame, events)[index].validity > 0 for events in (free, kept))
        assert (now & seen).sum() > 0.95 * (before & seen).sum()


def test_the_world_ends_up_where_the_scene_is(free, kept):
    cameras = truck()
    worst = []
    for events in (free, kept):
        _, alpha, depth = render_splats(of(CacheUpdate, events)[-1].splats, cameras[8:])
        truth = np.stack([room.render(cameras, index)[1] for index in range(8, FRAMES)])
        there = alpha > 0.5
        assert there.mean() > 0.9
        worst.append(np.abs(depth[there] / truth[there] - 1).mean())
    assert worst[1] < 0.06
    assert worst[0] > 8 * worst[1]


def test_a_frames_depth_is_the_blockouts_where_the_cache_is_hidden(kept):
    frame, truth = of(Frame, kept)[-1], room.render(truck(), FRAMES - 1)[1]
    pillar = on_pillar(FRAMES - 1)
    assert np.median(np.abs(frame.depth[pillar] / truth[pillar] - 1)) < 0.02


def test_every_fourth_frame_is_nearly_as_good(engine, kept):
    events = list(engine.generate(spec(path_depth=path_depth(truck(), every=4))))
    for index in (8, 11):
        pillar = on_pillar(index)
        assert not (pillar & (of(Frame, events)[index].validity > 0)).any()
    assert events[-1].summary["settings"]["path_depth"] == 5


@pytest.mark.parametrize("at", [1, 2, 3])
def test_it_goes_on_bit_for_bit(engine, kept, at):
    shot = spec(path_depth=path_depth(truck()))
    row: list[Any] = []
    for event in kept:
        if type(event).__name__ == "Checkpoint" and (len(row) == 0 or at > 0):
            row = [event] if event.stage == "fitted" else [*row, event]
            at -= 1
    saved = join(row)
    again = list(engine.generate(shot, saved))
    for new, old in zip(of(Frame, again), of(Frame, kept)[saved.frames :], strict=True):
        for name in ("rgb", "depth", "validity"):
            assert np.array_equal(getattr(new, name), getattr(old, name)), (new.index, name)
    a, b = (of(CacheUpdate, events)[-1].splats for events in (again, kept))
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_a_start_frame_without_depth_takes_the_blockouts(engine):
    events = list(engine.generate(spec(depth=None, scene_scale=3.0, path_depth=path_depth(truck()))))
    assert of(Finished, events)[0].summary["depth"] == "exact (the path's depth)"
    assert of(Finished, events)[0].summary["scene_unit"] == pytest.approx(
        np.median(room.render(truck(), 0)[1]), rel=0.1
    )
    assert [n.message for n in of(Notice, events)] == [
        "The start frame's exact depth sets the scale: scene scale changes nothing."
    ]


def test_a_blockout_that_does_not_show_the_first_frame_is_no_start_depth(engine):
    later = path_depth(truck())
    later = PathDepth(later.frames[1:], later.depth[1:])
    with pytest.raises(WorldWarpError, match="has no depth"):
        list(engine.generate(spec(depth=None, path_depth=later)))


@pytest.mark.parametrize(("factor", "said"), [(1.3, "in 100% .* lies behind"), (0.7, "in 100% .* stands in front")])
def test_a_start_depth_that_contradicts_the_paths_is_told(engine, factor, said):
    cameras = truck(2)
    shot = spec(cameras, path_depth=path_depth(cameras))
    events = list(engine.generate(replace(shot, depth=shot.depth * np.float32(factor))))
    (notice,) = of(Notice, events)
    assert notice.code == "depth_contradicted"
    assert re.search(said, notice.message), notice.message
    # What the blockout hides is moved onto it; what stands before it stays.
    expected = room.render(cameras, 0)[1] * min(factor, 1.0)
    assert np.median(np.abs(of(Frame, events)[0].depth / expected - 1)) < 0.02


def test_depths_that_agree_are_not_told(kept):
    assert of(Notice, kept) == []


def maps(**change: Any) -> PathDepth:
    cameras = truck()
    given = {"frames": cameras.frames, "depth": np.full((FRAMES, 12, 16), 2.0, np.float16)}
    return PathDepth(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"depth": np.ones((FRAMES, 12, 16))}, "float16 or float32 maps of one size; got float64"),
        ({"depth": np.ones((12, 16), np.float32)}, "maps of one size; got float32 .12, 16."),
        ({"depth": np.ones((3, 12, 16), np.float32)}, "got 3 maps for 17 frames"),
        ({"frames": np.arange(FRAMES, 0, -1)}, "in rising order"),
        ({"depth": np.full((FRAMES, 12, 16), np.nan, np.float32)}, "at frame 1 that are NaN"),
        ({"depth": np.zeros((FRAMES, 12, 16), np.float32)}, "at or behind the camera"),
        ({"frames": np.arange(2, FRAMES + 2)}, "given for frame 18, which is no frame of the path .1 to 17."),
        ({"depth": np.full((FRAMES, 16, 16), 2.0, np.float16)}, "16x16 but the cameras are 64x48: the aspect"),
        ({"depth": np.full((FRAMES, 12, 16), np.inf, np.float16)}, "knows nothing in any frame"),
        ({"depth": np.full((FRAMES, 12, 16), BACKGROUND_DEPTH, np.float32)}, "knows nothing in any frame"),
    ],
)
def test_maps_that_cannot_be_used_are_refused_with_a_sentence(change, sentence):
    with pytest.raises(WorldWarpError, match=sentence) as caught:
        spec(path_depth=maps(**change))
    assert caught.value.code == "bad_path_depth"


def test_maps_are_kept_in_half_the_memory_unless_that_loses_something():
    near, far = np.full((12, 16), 3.3, np.float32), np.full((12, 16), 1e5, np.float32)
    near[0] = BACKGROUND_DEPTH
    half, whole = PathDepth.of([1, 2], [near, near]), PathDepth.of([1, 2], [near, far])
    assert (half.depth.dtype, whole.depth.dtype) == (np.float16, np.float32)
    assert np.isinf(half.depth[:, 0]).all()
    np.testing.assert_allclose(half.depth[:, 1:].astype(float), 3.3, rtol=5e-4)
    assert (whole.depth[1] == 1e5).all()
