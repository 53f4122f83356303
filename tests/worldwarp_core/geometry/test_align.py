"""Tying a model's disparity to known disparity, with outliers."""

from __future__ import annotations

import pytest
import torch

from worldwarp_core.geometry.align import align_disparity


def truth(seed: int = 0) -> torch.Tensor:
    return 0.2 + torch.rand(60, 80, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("outliers", [0.0, 0.3, 0.5])
def test_scale_and_shift_are_found_among_outliers(outliers: float) -> None:
    target = truth()
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(target.shape, generator=generator) < outliers
    noise = 1 + 0.005 * torch.randn(target.shape, generator=generator)
    model = torch.where(wrong, 3 * truth(2), (target * noise - 0.1) / 0.05)
    fit = align_disparity(model, target, torch.ones_like(wrong), with_shift=True)
    assert fit is not None
    assert fit.scale == pytest.approx(0.05, rel=0.01)
    assert fit.shift == pytest.approx(0.1, abs=0.005)
    assert fit.inliers == pytest.approx(1 - outliers, abs=0.1)


def test_a_metric_model_gets_a_scale_alone() -> None:
    target = truth()
    fit = align_disparity(target / 7, target, torch.ones_like(target, dtype=torch.bool), with_shift=False)
    assert fit is not None
    assert fit.scale == pytest.approx(7, rel=1e-4)
    assert fit.shift == 0


def test_only_what_is_known_counts() -> None:
    target = truth()
    known = torch.zeros_like(target, dtype=torch.bool)
    known[:20] = True
    model = torch.where(known, 2 * target, -5.0)
    fit = align_disparity(model, torch.where(known, target, torch.nan), known, with_shift=True)
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
    assert align_disparity(model, target, known, with_shift=True) is None
