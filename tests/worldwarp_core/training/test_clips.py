"""Clips: what a trainer gets has the promised shapes, comes again by its seed, and is wrong only on purpose."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from worldwarp_core.training.clips import ClipSource, WarpSettings
from worldwarp_core.training.warp import forward_warp
from worldwarp_core.worlds.render import RenderSettings
from worldwarp_core.worlds.textures import build_bank

SIZE = (18, 32)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bank():
    return build_bank("train", size=32, patterns_each=1)


def source(bank, **settings):
    return ClipSource("train", 3, SIZE, 5, bank=bank, rendering=RenderSettings(supersample=1), **settings)


def test_a_batch_has_the_promised_shapes_and_comes_again(bank):
    clips = source(bank)
    batch, again = clips.batch(3, 10), clips.batch(3, 10)
    assert batch.rgb.shape == batch.prior.shape == (3, 5, 3, *SIZE)
    assert batch.rgb.dtype == batch.prior.dtype == torch.float16
    assert batch.depth.shape == batch.validity.shape == (3, 5, *SIZE)
    assert batch.depth.dtype == torch.float32
    assert batch.K.shape == (3, 5, 3, 3)
    assert batch.c2w.shape == (3, 5, 4, 4)
    for name in ("rgb", "depth", "prior", "validity", "K", "c2w", "sources", "exact"):
        assert torch.equal(getattr(batch, name), getattr(again, name)), name
    assert not torch.equal(batch.rgb, clips.batch(3, 11).rgb)
    shifted = clips.batch(2, 11)
    assert torch.equal(shifted.sources, batch.sources[1:])


def test_a_trainer_s_lower_precision_does_not_reach_the_data(bank):
    clips = source(bank, warps=WarpSettings(exact=0.5))
    expected = clips.batch(3, 10)
    products = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if any(word in str(func) for word in ("mm", "matmul", "linalg")):
                products.add(str(func))  # what TF32 or autocast would round
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Watch():
        got = clips.batch(3, 10)
    for name in ("rgb", "depth", "prior", "validity", "K", "c2w"):
        assert getattr(got, name).dtype == getattr(expected, name).dtype
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert products <= {"aten.linalg_cross.default", "aten.linalg_vector_norm.default"}


def test_an_exact_warp_from_the_first_frame_is_that_frame_there(bank):
    batch = source(bank, warps=WarpSettings(exact=1.0, first_frame=1.0)).batch(3, 20)
    assert batch.exact.all()
    assert (batch.validity[:, 0] == 1).float().mean() > 0.97
    valid = (batch.validity[:, 0] == 1)[:, None].expand_as(batch.rgb[:, 0])
    error = (batch.prior[:, 0] - batch.rgb[:, 0]).float().abs()[valid]
    assert error.mean() < 2e-3
    assert (batch.prior.amax(2)[batch.validity == 0] == 0).all()


def test_warps_made_wrong_differ_from_the_exact_ones_and_stay_in_range(bank):
    exact = source(bank, warps=WarpSettings(exact=1.0)).batch(6, 40)
    wrong = source(bank, warps=WarpSettings(exact=0.0)).batch(6, 40)
    assert torch.equal(exact.rgb, wrong.rgb)
    assert not wrong.exact.any()
    assert wrong.prior.isfinite().all()
    assert wrong.prior.min() >= 0
    assert wrong.prior.max() <= 1
    assert wrong.validity.min() >= 0
    assert wrong.validity.max() <= 1
    changed = (exact.prior != wrong.prior).flatten(1).any(1)
    assert changed.float().mean() > 0.8


def test_clips_warped_by_the_engine_s_cache_look_like_the_others(bank):
    pytest.importorskip("numba")
    plain = source(bank, warps=WarpSettings(exact=1.0, first_frame=1.0)).batch(2, 60)
    settings = WarpSettings(exact=1.0, first_frame=1.0, cached=1.0, cache_points=(2000, 2000), cache_steps=2)
    cached = source(bank, warps=settings).batch(2, 60)
    assert torch.equal(plain.rgb, cached.rgb)
    assert (cached.prior.amax(2)[cached.validity == 0] == 0).all()
    valid, other = cached.validity > 0.5, plain.validity > 0.5
    assert (valid == other).float().mean() > 0.9
    both = (valid & other)[:, :, None].expand_as(plain.rgb)
    # at 32 pixels across the discs blur much; still it is this clip and no other
    off = (cached.prior - plain.prior).abs().float()[both].mean()
    assert off < 0.1
    assert off < 0.5 * (cached.prior.flip(0) - plain.prior).abs().float()[both].mean()


def plane(depth, height=12, width=16):
    """A camera before a wall with a random picture on it."""
    K = torch.tensor([[20.0, 0, width / 2], [0, 20.0, height / 2], [0, 0, 1]])
    rgb = torch.rand(1, 1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return rgb, torch.full((1, 1, height, width), depth), K[None, None]


def test_a_sideways_step_moves_a_wall_by_whole_pixels_and_uncovers_the_border():
    rgb, depth, K = plane(2.0)
    here = torch.eye(4)[None, None]
    there = here.clone()
    there[..., 0, 3] = 3 * 2.0 / 20.0  # three pixels
    keep = torch.ones_like(depth, dtype=torch.bool)
    prior, mask = forward_warp(rgb, depth, keep, K, here, K, there)
    assert mask[0, 0, :, :-3].all()
    assert not mask[0, 0, :, -3:].any()
    torch.testing.assert_close(prior[..., :-3], rgb[..., 3:], atol=1e-3, rtol=0)


@pytest.mark.parametrize("nearer", [1.5, 3.0, 6.0])
def test_a_wall_seen_from_nearer_has_no_cracks(nearer):
    rgb, depth, K = plane(4.0)
    here = torch.eye(4)[None, None]
    there = here.clone()
    there[..., 2, 3] = 4.0 - 4.0 / nearer
    _, mask = forward_warp(rgb, depth, torch.ones_like(depth, dtype=torch.bool), K, here, K, there)
    assert mask.all()


@pytest.mark.parametrize("degrees", [10, 30, 45])
def test_a_wall_seen_by_a_camera_that_rolls_has_no_cracks(degrees):
    rgb, depth, K = plane(4.0)
    here = torch.eye(4)[None, None]
    there = here.clone()
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    there[..., :2, :2] = torch.tensor([[c, -s], [s, c]])
    _, mask = forward_warp(rgb, depth, torch.ones_like(depth, dtype=torch.bool), K, here, K, there)
    assert mask[0, 0, 3:-3, 4:-4].all()


def test_a_near_thing_hides_the_wall_and_leaves_a_hole_beside_it():
    rgb, depth, K = plane(8.0)
    depth[..., 4:8, 6:10] = 2.0
    here = torch.eye(4)[None, None]
    there = here.clone()
    there[..., 0, 3] = 0.4  # four pixels for the thing, one for the wall
    prior, mask = forward_warp(rgb, depth, torch.ones_like(depth, dtype=torch.bool), K, here, K, there)
    torch.testing.assert_close(prior[0, 0, :, 4:8, 2:6], rgb[0, 0, :, 4:8, 6:10], atol=1e-3, rtol=0)
    assert not mask[0, 0, 4:8, 6:9].any()  # three pixels that the thing hid
    assert mask[0, 0, :4, :15].all()


def test_the_sky_turns_with_the_camera_and_does_not_move_with_it():
    rgb, depth, K = plane(torch.inf)
    here = torch.eye(4)[None, None]
    there = here.clone()
    there[..., 0, 3] = 2.0
    prior, mask = forward_warp(rgb, depth, torch.ones_like(depth, dtype=torch.bool), K, here, K, there)
    assert mask.all()
    torch.testing.assert_close(prior, rgb, atol=1e-2, rtol=0)


def test_pixels_that_do_not_take_part_leave_holes():
    rgb, depth, K = plane(2.0)
    keep = torch.ones_like(depth, dtype=torch.bool)
    keep[..., 2:6, 3:9] = False
    here = torch.eye(4)[None, None]
    _, mask = forward_warp(rgb, depth, keep, K, here, K, here)
    assert torch.equal(mask, keep)
