"""Closing the holes of priors."""

import torch

from worldwarp_core.st_diff.close_holes import close_holes


def noise(height=22, width=37):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_what_is_valid_stays_to_the_bit_and_what_is_not_does_not_matter():
    rgb = noise()
    validity = torch.ones(2, 22, 37)
    validity[:, 5:15, 9:] = 0
    closed = close_holes(rgb, validity)
    valid = (validity == 1)[:, None].expand_as(rgb)
    assert torch.equal(closed[valid], rgb[valid])
    assert torch.equal(closed, close_holes(torch.where(valid, rgb, 0.9), validity))
    assert (closed >= 0).all()
    assert (closed <= 1).all()


def test_a_hole_takes_the_colours_around_it():
    rgb = torch.zeros(1, 3, 64, 64)
    rgb[:, 0, :, :32], rgb[:, 1, :, 32:] = 0.8, 0.6
    validity = torch.ones(1, 64, 64)
    validity[:, 24:40, 4:20] = validity[:, 24:40, 44:60] = 0
    closed = close_holes(torch.where(validity[:, None] > 0, rgb, 0.0), validity)
    torch.testing.assert_close(closed[..., 24:40, 4:20], rgb[..., 24:40, 4:20])
    torch.testing.assert_close(closed[..., 24:40, 44:60], rgb[..., 24:40, 44:60])


def test_pictures_do_not_see_each_other_and_nothing_known_is_black():
    rgb = noise()
    validity = torch.ones(2, 22, 37)
    validity[1] = 0
    closed = close_holes(rgb, validity)
    assert torch.equal(closed[0], rgb[0])
    assert not closed[1].any()
