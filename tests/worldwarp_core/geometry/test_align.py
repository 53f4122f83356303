"""Tying a model's disparity to known disparity, with outliers."""

from __future__ import annotations

import pytest
import torch

from worldwarp_core.geometry.align import align_disparity, align_scale


def truth(seed: int = 0) -> torch.Tensor:
    return 0.2 + torch.rand(60, 80, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("outliers", [0.0, 0.3, 0.5])
def test_scale_and_shift_are_found_among_outliers(outliers: float) -> None:
    target = truth()
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(target.shape, generator=generator) < outliers
    noise = 1 + 0.005 * torch.randn(target.shape, generator=generator)
    model = torch.where(wrong, 3 * truth(2), (target * noise - 0.1) / 0.05)
    fit = align_disparity(model, target, torch.ones_like(wrong))
    assert fit is not None
    assert fit.scale == pytest.approx(0.05, rel=0.01)
    assert fit.shift == pytest.approx(0.1, abs=0.005)
    assert fit.inliers == pytest.approx(1 - outliers, abs=0.1)


@pytest.mark.parametrize("outliers", [0.0, 0.3, 0.45])
def test_a_scale_alone_is_found_among_outliers(outliers: float) -> None:
    target = truth()
    wrong = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < outliers
    model = torch.where(wrong, 3 * truth(2), target / 7)
    fit = align_scale(model, target, torch.ones_like(wrong))
    assert fit is not None
    assert fit.scale == pytest.approx(7, rel=0.02)
    assert fit.shift == 0
    assert fit.inliers == pytest.approx(1 - outliers, abs=0.1)


def test_the_scale_is_that_beside_what_is_unknown() -> None:
    target = torch.ones(60, 200)
    known = torch.ones_like(target, dtype=torch.bool)
    known[:, 150:] = False
    model = target * torch.linspace(0.8, 1.2, 200)  # a model that bends
    fit = align_scale(model, target, known)
    assert fit is not None
    assert 1 / float(model[0, 149]) < fit.scale < 1 / float(model[0, 130])


@pytest.mark.parametrize("case", ["unrelated", "too few", "nan", "all sky"])
def test_what_does_not_fit_gives_no_scale(case: str) -> None:
    target = truth()
    known = torch.ones_like(target, dtype=torch.bool)
    model = {
        "unrelated": truth(9) ** 8,
        "too few": target,
        "nan": torch.full_like(target, torch.nan),
        "all sky": torch.zeros_like(target),
    }[case]
    if case == "too few":
        known[1:] = False
        known[0, 60:] = False
    assert align_scale(model, target, known) is None


def test_only_what_is_known_counts() -> None:
    target = truth()
    known = torch.zeros_like(target, dtype=torch.bool)
    known[:20] = True
    model = torch.where(known, 2 * target, -5.0)
    fit = align_disparity(model, torch.where(known, target, torch.nan), known)
    assert fit is not None
    assert fit.scale == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("case", ["unrelated", "upside down", "constant", "too few", "nan"])
def test_what_does_not_fit_gives_no_alignment(case: str) -> None:
    target = truth()
    known = torch.ones_like(target, dtype=torch.bool)
    model = {
        "unrelated": 5 * truth(9) ** 4,
        "upside down": 1 - target,
        "constant": torch.ones_like(target),
        "too few": target,
        "nan": torch.full_like(target, torch.nan),
    }[case]
    if case == "too few":
        known[1:] = False
        known[0, 60:] = False
    assert align_disparity(model, target, known) is None
