"""Depth that slides from one surface to another is put on one of them; slopes stay what they are."""

import torch
import torch.nn.functional as F

from worldwarp_core.geometry.edges import sharpen_edges

HEIGHT, WIDTH = 72, 256


def everywhere(disparity):
    return torch.ones(disparity.shape, dtype=torch.bool)


def blurred(disparity, radius=2):
    size = 2 * radius + 1
    return F.avg_pool2d(F.pad(disparity[None, None], (radius,) * 4, mode="replicate"), size, 1)[0, 0]


def test_a_blurred_outline_becomes_a_step_between_its_two_surfaces():
    truth = torch.full((HEIGHT, WIDTH), 0.2)
    truth[:, 100:160] = 1.0
    soft = blurred(truth)
    assert ((soft > 0.25) & (soft < 0.95)).sum() > 4 * HEIGHT
    sharp = sharpen_edges(soft, everywhere(soft))
    torch.testing.assert_close(torch.minimum((sharp - 0.2).abs(), (sharp - 1.0).abs()), torch.zeros_like(sharp))
    wide = (sharp[HEIGHT // 2] > 0.5).sum()
    assert 56 <= wide <= 60, "the near surface does not grow"


def test_an_outline_before_a_floor_and_the_sky_is_put_on_one_of_the_two():
    row = torch.arange(HEIGHT)[:, None] + 0.5
    behind = ((row - 20) * 0.02).clamp_min(0).expand(HEIGHT, WIDTH).contiguous()
    truth = behind.clone()
    truth[:, 100:120] = 1.8
    soft = blurred(truth)
    sharp = sharpen_edges(soft, everywhere(soft))
    rows = [*range(3, 17), *range(23, 69)]  # beside the horizon there are two edges

    def floating(disparity):
        return (torch.minimum((disparity - 1.8).abs(), (disparity - behind).abs()) > 0.06)[rows].float().mean()

    assert floating(soft) > 0.02
    assert floating(sharp) < 0.1 * floating(soft), "but for some where a diagonal crosses the horizon"
    assert (sharp[rows][:, 103:117] > 1.7).all()


def test_slopes_however_steep_and_soft_relief_stay_as_they_are():
    row = torch.arange(HEIGHT)[:, None] + 0.5
    floor = (row * 0.05).expand(HEIGHT, WIDTH).contiguous()
    assert torch.equal(sharpen_edges(floor, everywhere(floor)), floor)
    x = torch.linspace(0, 12, WIDTH)
    hills = 1 + 0.04 * torch.sin(x)[None] * torch.cos(row / 9)
    assert torch.equal(sharpen_edges(hills, everywhere(hills)), hills)


def test_only_what_is_asked_for_changes():
    soft = torch.full((HEIGHT, WIDTH), 0.2)
    soft[:, 100:] = 1.0
    soft = blurred(soft)
    where = everywhere(soft)
    where[: HEIGHT // 2] = False
    sharp = sharpen_edges(soft, where)
    assert torch.equal(sharp[: HEIGHT // 2], soft[: HEIGHT // 2])
    assert not torch.equal(sharp[HEIGHT // 2 :], soft[HEIGHT // 2 :])
