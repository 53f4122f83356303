"""Experiments as tables: the arms on the same paths, by kind of place, and the best strength of each."""

import math
from pathlib import Path

import pytest

from worldwarp_core.evaluation.experiments import EXPERIMENTS, arms_of, tabulate
from worldwarp_core.evaluation.results import Measured


def measured(name, kind, lpips, psnr=20.0):
    scene = {"name": name, "kind": kind, "stratum": "half", "in_sight": 0.3, "frames": 200, "size": [48, 32]}
    frames = {str(n): {"psnr": psnr, "psnr_valid": psnr, "lpips": lpips} for n in range(1, 201)}
    return Measured(Path("nowhere"), {"scene": scene, "frames": frames, "summary": {"seconds": {"cache": 3.0}}})


def test_strength_is_told_by_kind_and_the_best_is_named():
    experiment = EXPERIMENTS["strength"]
    arms, left = arms_of(experiment, learned=True)
    assert left == []
    best = {"rooms": 0.5, "streets": 0.9}
    some = [[measured(f"{kind}-1", kind, abs(arm.at - wanted)) for kind, wanted in best.items()] for arm in arms]
    table = tabulate(experiment, arms, some, learned=True)
    assert {kind: table["best"][kind] for kind in best} == best
    assert [row["at"] for row in table["rows"]] == [0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert [row["paths"] for row in table["kinds"]["rooms"]] == [1] * 7
    assert table["rows"][1]["lpips@200"] == pytest.approx((0.15 + 0.55) / 2)
    assert table["curves"]["psnr"]["0.8"]["200"] == 20.0


def test_arms_are_compared_on_the_paths_that_all_of_them_have():
    experiment = EXPERIMENTS["cache-steps"]
    some = [[measured("a", "rooms", 0.1), measured("b", "rooms", 0.9)], *[[measured("a", "rooms", 0.2)]] * 3]
    table = tabulate(experiment, experiment.arms, some, learned=False)
    assert table["paths"] == ["a"]
    assert table["rows"][0]["lpips@200"] == pytest.approx(0.1)
    assert table["rows"][0]["cache_s"] == 3.0
    assert math.isnan(table["rows"][0]["r_dist@200"])


def test_what_the_fill_cache_cannot_show_is_left_out_and_said():
    arms, left = arms_of(EXPERIMENTS["cache"], learned=False)
    assert [arm.label for arm in arms] == ["online 3DGS", "point cloud"]
    assert "learned fill" in left[0]


def test_the_experiments_are_those_of_the_paper_and_the_method_s_setting_is_among_their_arms():
    assert set(EXPERIMENTS) == {"strength", "cache", "noise", "cache-steps", "depth-errors", "persistence"}
    assert [arm.at for arm in EXPERIMENTS["cache-steps"].arms] == [50, 200, 500, 1000]
    for name in ("cache", "noise", "depth-errors", "persistence"):
        assert EXPERIMENTS[name].arms[0].change == {}
    for experiment in EXPERIMENTS.values():
        assert set(experiment.plotted) <= set(experiment.figures)
