import pytest

from worldwarp_core.budget import CHOICES, PLANS, choose_plan, next_smaller
from worldwarp_core.errors import WorldWarpError


@pytest.mark.parametrize(
    ("free_gib", "gib"),
    [(79.2, 80), (78.0, 80), (44.3, 40), (31.4, 24), (23.5, 24), (15.6, 16), (11.7, 12), (7.7, 8), (7.0, 6), (2.0, 6)],
)
def test_auto_takes_the_largest_plan_that_fits_what_is_free(free_gib, gib):
    assert choose_plan("auto", free_gib).gib == gib


@pytest.mark.parametrize("vram", ["6", "8", "12", "16", "24", "40", "80"])
def test_a_size_that_is_named_is_kept_to_whatever_is_free(vram):
    assert choose_plan(vram, 1.0).gib == int(vram)


@pytest.mark.parametrize("vram", ["", "10", "-8", "8.5", "all"])
def test_another_size_is_refused_with_those_there_are(vram):
    with pytest.raises(WorldWarpError, match="must be one of auto, 6, 8, 12, 16, 24, 40, 80"):
        choose_plan(vram, 80)


def test_falling_back_goes_through_every_smaller_plan_and_ends():
    plan, seen = PLANS[0], []
    while (smaller := next_smaller(plan)) is not None:
        assert smaller.changes, "the notice says what is different"
        seen.append(smaller.gib)
        plan = smaller
    assert seen == [40, 24, 16, 12, 8, 6]
    assert len(CHOICES) == len(PLANS) + 1
