"""The held-out paths are what their list says."""

from collections import Counter

import pytest
import torch

from worldwarp_core.evaluation.held_out import FRAMES, HELD_OUT, REVISITS, STRATA, held_out_shots
from worldwarp_core.worlds.paths import share_in_sight
from worldwarp_core.worlds.render import RenderSettings, clearance
from worldwarp_core.worlds.textures import build_bank

SIZE = (144, 256)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bank():
    return build_bank("test", size=16, patterns_each=1)


def test_the_list_is_long_enough_and_even():
    assert len(HELD_OUT) >= 30
    assert len({path.index for path in HELD_OUT + REVISITS}) == len(HELD_OUT) + len(REVISITS)
    counts = Counter(path.stratum for path in HELD_OUT)
    assert set(counts) == set(STRATA)
    assert max(counts.values()) == min(counts.values())
    assert max(Counter(path.kind for path in HELD_OUT).values()) <= len(HELD_OUT) // 3


@pytest.mark.parametrize("place", [2, 20, 33])
def test_a_path_shows_as_much_of_its_start_at_the_end_as_its_list_says(bank, place):
    (shot,) = held_out_shots(bank, HELD_OUT[place : place + 1], SIZE)
    assert shot.worlds.kinds == (HELD_OUT[place].kind,)
    assert shot.K.shape == (1, FRAMES, 3, 3)
    share = share_in_sight(shot.worlds, (shot.K[:, 0], shot.c2w[:, 0]), (shot.K[:, -1], shot.c2w[:, -1]), SIZE)
    assert abs(float(share) - HELD_OUT[place].in_sight) < 0.01
    assert clearance(shot.worlds, shot.c2w[..., :3, 3]).min() > 0.1


def test_a_revisit_ends_where_it_began(bank):
    (shot,) = held_out_shots(bank, REVISITS[:1], (36, 64))
    torch.testing.assert_close(shot.c2w[0, -1], shot.c2w[0, 0], atol=2e-3, rtol=0)
    ends = torch.tensor([0, FRAMES // 2, FRAMES - 1])
    rgb, depth = shot.render(bank, ends, RenderSettings(supersample=1))
    assert rgb.shape == (3, 3, 36, 64)
    assert depth.shape == (3, 36, 64)
    assert (rgb[0] - rgb[2]).abs().float().mean() < 0.01
    assert (rgb[0] - rgb[1]).abs().float().mean() > 0.03
