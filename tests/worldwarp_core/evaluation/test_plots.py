"""Plots: what an axis shows."""

import pytest

from worldwarp_core.evaluation.plots import LEAST_SPAN, plot_arms


def limits(figure, *values):
    """Of the vertical axis, of arms with these values."""
    rows = [{"arm": str(at), "at": at, figure: value} for at, value in enumerate(values)]
    (axis,) = plot_arms({"rows": rows, "axis": "steps"}, [figure]).axes
    return axis.get_ylim()


def test_differences_that_are_none_do_not_fill_the_axis():
    low, high = limits("psnr@50", 20.0, 20.1)
    assert low < 20.0 < 20.1 < high
    assert high - low == pytest.approx(LEAST_SPAN["psnr"])


@pytest.mark.parametrize("values", [(0.002, 0.006), (0.0, 0.3)])
def test_nothing_is_shown_below_nothing(values):
    low, high = limits("r_dist@200", *values)
    assert low == 0
    assert high > values[1]
    assert high >= LEAST_SPAN["r_dist"]


def test_what_can_be_negative_is_shown_where_it_is():
    low, high = limits("kid@200", -0.01, 0.02)
    assert low < -0.01 < 0.02 < high
