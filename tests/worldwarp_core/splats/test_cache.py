from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import room
from worldwarp_core.history import History
from worldwarp_core.loop.priors import VALID, render_priors
from worldwarp_core.splats.cache import (
    DEPTH_TOLERANCE,
    CacheSettings,
    _move_out_of_sight,
    _Sight,
    camera_distance,
    open_cache,
    update_cache,
)
from worldwarp_core.splats.space import CacheSpace

WIDTH, HEIGHT = 96, 64
SETTINGS = CacheSettings(
    first_steps=60,
    update_steps=15,
    points_per_view=2500,
    max_gaussians=20_000,
    sh_degree=0,
    key_views=3,
    anchor_views=1,
    max_key_views=6,
)


def run(steps):
    """What a generator returns, and how many steps it took."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


def psnr(a, b):
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


class World:
    """The room filmed by a path, in cache units."""

    def __init__(self, path, scale=1.0):
        self.path, self.scale = path, scale
        depth = room.render(path, 0, scale)[1]
        self.space = CacheSpace(path.c2w[0, :3, 3].copy(), float(np.median(depth)))
        self.w2c = self.space.w2c(path.c2w)
        self.K = torch.from_numpy(path.K.astype(np.float32))

    def rgb(self, frame):
        return torch.from_numpy(room.render(self.path, frame, self.scale)[0].astype(np.float32) / 255)

    def depth(self, frame):
        return torch.from_numpy(room.render(self.path, frame, self.scale)[1] / self.space.unit)

    def history(self, frames, trusted=None):
        rgb = torch.stack([self.rgb(f) for f in frames])
        trusted = torch.ones(rgb.shape[:3]) if trusted is None else trusted
        return History([int(self.path.frames[f]) for f in frames], rgb, trusted, self.w2c[frames], self.K[frames])

    def open(self, settings=SETTINGS):
        generator = torch.Generator().manual_seed(0)
        return run(open_cache(self.space, self.history([0]), self.depth(0), settings, generator))[0]

    def update(self, cache, frames, settings=SETTINGS):
        exact = {tuple(self.rgb(f).reshape(-1)[:50].tolist()): self.depth(f) for f in frames}

        def estimate_depth(rgb, known, seen):
            return exact[tuple(rgb.reshape(-1)[:50].tolist())], torch.ones_like(known)

        return run(
            update_cache(cache, self.history(frames), estimate_depth, settings, torch.Generator().manual_seed(0))
        )[0]

    def priors(self, cache, frame):
        return render_priors(cache, self.w2c[frame, None], self.K[frame, None], self.path.width, self.path.height)


@pytest.fixture(scope="module")
def world():
    return World(room.truck(21, width=WIDTH, height=HEIGHT))


@pytest.fixture(scope="module")
def opened(world):
    return world.open()


def test_the_start_view_comes_back(world, opened):
    assert psnr(world.priors(opened, 0).rgb[0], world.rgb(0)) > 35


def test_a_later_view_is_right_where_it_is_marked_valid(world, opened):
    priors = world.priors(opened, 20)
    valid = priors.validity[0] >= VALID
    seen = torch.from_numpy(room.visible_from(world.path, 20, 0))
    assert 0.1 < float((~seen).float().mean()) < 0.5
    assert float((valid & seen).sum() / valid.sum()) > 0.95
    assert float((valid & seen).sum() / seen.sum()) > 0.9
    assert psnr(priors.rgb[0][valid], world.rgb(20)[valid]) > 26
    close = (priors.depth[0] - world.depth(20)).abs() < 0.02 * world.depth(20)
    assert float(close[valid & seen].float().mean()) > 0.9


def test_an_update_adds_what_was_missing_and_keeps_what_was_there(world, opened):
    updated = world.update(opened, [10, 20])
    assert len(updated.gaussians) > len(opened.gaussians)
    assert set(updated.source_frames.tolist()) >= {1, 21}
    assert (updated.source_frames[: len(opened.gaussians)] == 1).all()
    assert psnr(world.priors(updated, 20).rgb[0], world.rgb(20)) > 26
    assert (
        psnr(world.priors(updated, 0).rgb[0], world.rgb(0)) > psnr(world.priors(opened, 0).rgb[0], world.rgb(0)) - 2.0
    )
    assert float((world.priors(updated, 20).validity >= VALID).float().mean()) > 0.97


def test_coming_back_adds_next_to_nothing(world, opened):
    once = world.update(opened, [10, 20])
    again = world.update(once, [0, 10, 20])
    assert len(again.gaussians) - len(once.gaussians) < 0.03 * len(once.gaussians)


def test_a_scene_in_millimetres_and_one_in_kilometres_are_the_same(world, opened):
    scale = 1e6
    far = room.path([_scaled(c, scale, (3e8, -2e8, 5e7)) for c in world.path.c2w], WIDTH, HEIGHT)
    near_origin = room.path([_scaled(c, scale, (0, 0, 0)) for c in world.path.c2w], WIDTH, HEIGHT)
    giant = World(near_origin, scale)
    giant.space = CacheSpace(far.c2w[0, :3, 3].copy(), giant.space.unit)
    giant.w2c = giant.space.w2c(far.c2w)
    there = giant.open()
    assert len(there.gaussians) == len(opened.gaussians)
    assert (giant.priors(there, 20).rgb - world.priors(opened, 20).rgb).abs().mean() < 2e-3


def _scaled(c2w, scale, offset):
    c2w = c2w.copy()
    c2w[:3, 3] = c2w[:3, 3] * scale + offset
    return c2w


def test_the_remembered_views_stay_bounded_and_keep_the_start(world, opened):
    cache = opened
    for frames in ([3, 5, 8], [10, 12, 14], [16, 18, 20]):
        cache = world.update(cache, frames)
    assert len(cache.views) <= SETTINGS.max_key_views
    assert cache.views.numbers[0] == 1
    assert len(cache.views.depth) == len(cache.views)


def test_the_number_of_gaussians_is_bounded(world, opened):
    full = CacheSettings(**{**vars(SETTINGS), "max_gaussians": len(opened.gaussians) + 20})
    assert len(world.update(opened, [20], full).gaussians) <= len(opened.gaussians) + 20


def test_the_same_seed_gives_the_same_world(world, opened):
    again = world.open()
    for name, tensor in again.gaussians.tensors().items():
        assert torch.equal(tensor, opened.gaussians.tensors()[name]), name


def test_the_world_in_scene_units_and_back(world, opened):
    cloud = world.space.to_world(opened.gaussians, opened.source_frames, opened.sky)
    back = world.space.from_world(cloud)
    assert torch.allclose(back.means, opened.gaussians.means, atol=1e-5)
    assert torch.allclose(back.scales, opened.gaussians.scales, atol=1e-5)
    inside = (cloud.means > room.ROOM[0] - 0.2) & (cloud.means < room.ROOM[1] + 0.2)
    assert inside.all()


def test_camera_distance_counts_travel_and_turn():
    a, b = torch.eye(4)[None], torch.eye(4)[None].clone()
    b[0, :3, 3] = torch.tensor([3.0, 0, 4.0])
    assert float(camera_distance(a, b)) == pytest.approx(5.0, abs=1e-3)
    assert float(camera_distance(b, b)) == pytest.approx(0.0, abs=1e-3)


def test_a_guessed_depth_never_hides_what_was_seen(world, opened):
    def too_near(rgb, known, seen):
        return torch.full_like(known, 0.3), torch.ones_like(known)

    updated, _ = run(update_cache(opened, world.history([20]), too_near, SETTINGS, torch.Generator().manual_seed(0)))
    assert psnr(world.priors(updated, 0).rgb[0], world.rgb(0)) > psnr(world.priors(opened, 0).rgb[0], world.rgb(0)) - 5


def test_a_guess_before_what_was_seen_is_moved_back_to_where_nobody_looked(world, opened):
    frame = 20
    exact = world.depth(frame)
    unseen = world.priors(opened, frame).alpha[0] < 0.5
    guess = torch.where(unseen, 0.4 * exact, exact)
    sight = _Sight.around(opened.views, world.w2c[frame])
    moved = _move_out_of_sight(guess, unseen, world.w2c[frame], world.K[frame], sight, opened.sky_depth)
    assert torch.equal(moved[~unseen], exact[~unseen])
    assert (moved[unseen] >= guess[unseen]).all()
    assert not _hidden(moved, unseen, opened, world, frame).any()
    # Where the start view looked past the guess, it is now near the truth or out of sight of that view.
    contradicted = _hidden(guess, unseen, opened, world, frame)
    assert contradicted.float().mean() > 0.3
    off = (moved / exact - 1).abs()[unseen][contradicted]
    assert off.median() < (guess / exact - 1).abs()[unseen][contradicted].median() / 2


def _hidden(depth, where, cache, world, frame):
    """Of the pixels of `where`: whether they stand before what the key views saw."""
    rows, cols = torch.nonzero(where, as_tuple=True)
    pixels = torch.stack([cols + 0.5, rows + 0.5, torch.ones_like(rows)], -1).float()
    c2w = torch.linalg.inv(world.w2c[frame])
    points = (pixels @ torch.linalg.inv(world.K[frame]).T) * depth[where][:, None]
    sight = _Sight.around(cache.views, world.w2c[frame])
    return sight.before(points @ c2w[:3, :3].T + c2w[:3, 3], 1 - DEPTH_TOLERANCE)


def test_a_fit_keeps_every_gaussian_near_where_it_was_seeded(world):
    seeded = world.open(CacheSettings(**{**vars(SETTINGS), "first_steps": 1}))
    fitted = world.open(CacheSettings(**{**vars(SETTINGS), "first_steps": 120}))
    radius = seeded.gaussians.scales.exp().median(1).values
    assert ((fitted.gaussians.means - seeded.gaussians.means).norm(dim=1) < 4 * radius).all()


def test_points_are_seeded_and_never_fitted(world, opened):
    settings = replace(SETTINGS, representation="points")
    points = world.open(settings)
    assert settings.planned_steps() == (0, 0)
    assert 0.5 * SETTINGS.points_per_view < len(points.gaussians) <= SETTINGS.points_per_view
    assert (points.gaussians.scales == points.gaussians.scales[:, :1]).all()
    more = world.update(points, [10, 20], settings)
    torch.testing.assert_close(more.gaussians.means[: len(points.gaussians)], points.gaussians.means)
    assert len(more.gaussians) > len(points.gaussians)
    # what is not fitted is worse, and the whole picture is there all the same
    made = world.priors(points, 0)
    assert 20 < psnr(made.rgb[0], world.rgb(0)) < psnr(world.priors(opened, 0).rgb[0], world.rgb(0))
    assert (made.validity >= VALID).float().mean() > 0.95


def test_without_a_cache_nothing_is_known(world):
    settings = replace(SETTINGS, representation="none")
    empty = world.update(world.open(settings), [10], settings)
    assert len(empty.gaussians) == 0
    priors = world.priors(empty, 3)
    assert priors.validity.max() == 0
    assert torch.isinf(priors.depth).all()


def test_a_world_that_is_rebuilt_has_forgotten_where_it_began(world, opened):
    settings = replace(SETTINGS, persistent=False)
    assert settings.planned_steps() == (60, 75)
    rebuilt, kept = world.update(opened, [16, 20], settings), world.update(opened, [16, 20])
    assert rebuilt.views.numbers[0] == 21
    assert set(rebuilt.source_frames.tolist()) <= {17, 21}
    lost, there = (float((world.priors(cache, 0).validity >= VALID).float().mean()) for cache in (rebuilt, kept))
    assert there > 0.95
    assert lost < there - 0.1
