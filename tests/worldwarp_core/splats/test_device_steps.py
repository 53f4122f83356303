"""Steps that nobody watches against the plain loop, on the CPU: the same code that a CUDA graph holds."""

import pytest
import torch

from worldwarp_core.splats.device_steps import LOOK_EVERY, Adam, DeviceSteps, adam_update, run
from worldwarp_core.splats.fit import optimise
from worldwarp_core.splats.fit_settings import ADAM_EPS, FitSettings, cosine
from worldwarp_core.splats.loss import FitViews, view_loss
from worldwarp_core.splats.moving import let_move
from worldwarp_core.splats.rasterize import rasterize
from worldwarp_core.splats.seed import SeedView, seed_gaussians

HEIGHT, WIDTH, STEPS = 16, 24, 2 * LOOK_EVERY + 5
K = torch.tensor([[24.0, 0, 12], [0, 24.0, 8], [0, 0, 1]])


@pytest.fixture(scope="module")
def views():
    coarse = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    rgb = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").permute(0, 2, 3, 1).clamp(0, 1)
    ones = torch.ones(2, HEIGHT, WIDTH)
    w2c = torch.eye(4).repeat(2, 1, 1)
    w2c[1, 0, 3] = 0.05
    return FitViews(rgb, ones, ones, ones, w2c, K.expand(2, 3, 3))


@pytest.fixture(scope="module")
def seeds(views):
    everything = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    view = SeedView(views.rgb[0], torch.ones(HEIGHT, WIDTH), everything, views.w2c[0], K)
    return seed_gaussians(view, 150, 50.0, 1)[0]


class CpuScene:
    """Draws with the CPU rasteriser and pretends to need more room as the steps go by."""

    def __init__(self, moving, views, needed_at=lambda draws: 1, room=10):
        self.moving, self.views, self.room = moving, views, room
        self.needed_at, self.draws, self.grown = needed_at, 0, []

    def loss(self, view):
        v = int(view)
        render = rasterize(self.moving.now(), self.views.w2c[v, None], self.views.K[v, None], WIDTH, HEIGHT)
        seen = self.views.rgb[v], self.views.disparity[v], self.views.weight[v], self.views.depth_weight[v]
        self.draws += 1
        needed = self.needed_at(self.draws)
        loss = view_loss(render.rgb[0], render.alpha[0], render.depth[0], *seen, FitSettings())
        # What is drawn without room is nothing to learn from, nor to tell of.
        return loss if needed <= self.room else loss * torch.nan, torch.tensor(needed)

    def make_room(self, needed):
        self.grown.append(needed)
        self.room = 2 * needed


def order_of(steps):
    return [i % 2 for i in range(steps)]


def watched(seeds, views, steps=STEPS):
    moving = let_move(seeds, with_shN=True)
    rows = torch.arange(len(seeds))
    return moving, list(optimise(moving, seeds, rows, views, order_of(steps), FitSettings()))


def unwatched(seeds, views, steps=STEPS, capture=lambda step: step, **pretence):
    moving = let_move(seeds, with_shN=True)
    scene = CpuScene(moving, views, **pretence)
    losses = list(run(DeviceSteps(moving, scene, order_of(steps), FitSettings()), capture))
    return moving, losses, scene


def assert_same(one, other):
    for name, tensor in one.learned.items():
        assert torch.allclose(tensor, other.learned[name], atol=1e-4), name


def test_the_update_is_that_of_torch_s_adam_under_the_same_schedule():
    generator = torch.Generator().manual_seed(2)
    starts = [torch.randn(shape, generator=generator) for shape in ((5, 3), (7,))]
    rates, steps = [0.1, 0.003], 40
    leaves = [t.clone().requires_grad_() for t in starts]
    adam = torch.optim.Adam([{"params": [t], "lr": r} for t, r in zip(leaves, rates, strict=True)], eps=ADAM_EPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: cosine(step / steps))
    zeros = [[torch.zeros_like(t) for t in starts] for _ in range(2)]
    ours = Adam([t.clone() for t in starts], *zeros, rates)
    for pace in Adam.pace(steps):
        gradients = [torch.randn(t.shape, generator=generator) * 10 ** (-3 * i) for i, t in enumerate(starts)]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        adam.step()
        schedule.step()
        adam_update(ours, gradients, pace, torch.tensor(True))
        adam_update(ours, [g + 1 for g in gradients], pace, torch.tensor(False))
    for leaf, got in zip(leaves, ours.parameters, strict=True):
        assert torch.allclose(got, leaf, atol=1e-6)


def test_unwatched_steps_are_those_of_the_plain_loop(seeds, views):
    moving, losses = watched(seeds, views)
    got, got_losses, _ = unwatched(seeds, views)
    assert got_losses == pytest.approx(losses, abs=1e-5)
    assert len(got_losses) == STEPS
    assert_same(moving, got)


def test_steps_that_a_capture_does_count(seeds, views):
    def warm_up(step):
        for _ in range(3):
            step()
        return step

    moving, losses = watched(seeds, views)
    got, got_losses, _ = unwatched(seeds, views, capture=warm_up)
    assert got_losses == pytest.approx(losses, abs=1e-5)
    assert_same(moving, got)


def test_warming_up_for_longer_than_the_fit_does_no_more_than_the_fit(seeds, views):
    def warm_up(step):
        for _ in range(3):
            step()
        return step

    moving, losses = watched(seeds, views, steps=2)
    got, got_losses, _ = unwatched(seeds, views, steps=2, capture=warm_up)
    assert got_losses == pytest.approx(losses, abs=1e-5)
    assert_same(moving, got)


def test_a_step_without_room_waits_for_it_and_nothing_is_lost(seeds, views):
    captured = []

    def capture(step):
        captured.append(step)
        return step

    moving, losses = watched(seeds, views)
    got, got_losses, scene = unwatched(
        seeds, views, capture=capture, needed_at=lambda draws: 11 if draws > 7 else 9, room=10
    )
    assert scene.grown == [11]
    assert len(captured) == 2, "what was captured without room is captured again"
    assert scene.draws > STEPS, "the steps without room were left undone, and done later"
    assert got_losses == pytest.approx(losses, abs=1e-5)
    assert_same(moving, got)


def test_a_cancelled_fit_launches_no_more_steps(seeds, views):
    moving = let_move(seeds, with_shN=True)
    scene = CpuScene(moving, views)
    fitting = run(DeviceSteps(moving, scene, order_of(STEPS), FitSettings()), lambda step: step)
    next(fitting)
    fitting.close()
    assert scene.draws <= 2 * LOOK_EVERY
