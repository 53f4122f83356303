import pytest

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.wan.budget import CHOICES, ON_CPU, PLANS, choose_plan, next_smaller, what_takes_longer


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


@pytest.mark.parametrize(
    ("gib", "without", "with_captions"),
    [(80, [], []), (40, [], ["loaded anew"]), (24, [], ["captioner on the CPU"]), (8, ["text encoder", "leaves"], [])],
)
def test_what_takes_longer_adds_up_from_plan_to_plan(gib, without, with_captions):
    plan = choose_plan(str(gib), 0)
    assert all(words in what_takes_longer(plan, captions=False) for words in without)
    assert all(words in what_takes_longer(plan, captions=True) for words in without + with_captions)
    assert "captioner" not in what_takes_longer(plan, captions=False)
    assert bool(what_takes_longer(plan, captions=False)) == (gib < 24)
    assert bool(what_takes_longer(plan, captions=True)) == (gib < 80)


def test_without_a_gpu_nothing_is_longer_than_it_could_be():
    assert what_takes_longer(ON_CPU, captions=True) == ""
