import torch

from tests.support import room
from worldwarp_core.history import History
from worldwarp_core.loop.chunks import ChunkPlan
from worldwarp_core.loop.fill import CacheFill
from worldwarp_core.loop.priors import Priors
from worldwarp_core.spec import GenerateSpec


def fill(rgb, validity):
    priors = Priors(rgb, validity, torch.ones_like(validity), validity)
    context = History([1], rgb[:1], validity[:1], torch.eye(4)[None], torch.eye(3)[None])
    cameras = room.truck(1 + len(rgb), width=48, height=32)
    spec = GenerateSpec(cameras, *room.render(cameras))
    return list(CacheFill().fill(context, priors, ChunkPlan(0, range(1), range(1, 1 + len(rgb)), 5), spec))


def test_valid_pixels_stay_and_holes_take_their_neighbours_colour():
    rgb = torch.full((1, 32, 48, 3), 0.6)
    validity = torch.ones(1, 32, 48)
    validity[0, 8:20, 10:30] = 0.2
    rgb[0, 8:20, 10:30] = 0.0
    (frame,) = fill(rgb, validity)
    assert (frame - 0.6).abs().max() < 0.02


def test_a_prior_without_holes_comes_through():
    rgb = torch.rand(2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    frames = fill(rgb, torch.ones(2, 32, 48))
    assert len(frames) == 2
    assert (torch.stack(frames) - rgb).abs().max() <= 0.5 / 255 + 1e-6


def test_a_prior_that_knows_nothing_is_still_a_frame():
    (frame,) = fill(torch.zeros(1, 32, 48, 3), torch.zeros(1, 32, 48))
    assert frame.shape == (32, 48, 3)
    assert torch.isfinite(frame).all()
