"""Ties the output of a monocular depth model to depth that is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_KNOWN_PX = 64
MIN_INLIERS = 0.3
"""Share of the known pixels that an alignment has to explain."""
TOLERANCE = 0.05
"""An inlier's disparity is explained to this share of the known pixels' median disparity."""
TRIALS = 128
SAMPLE = 4096
"""Pixels that the trials are scored on, evenly drawn."""
REFINEMENTS = 10


@dataclass(frozen=True)
class Alignment:
    """known disparity = scale * model disparity + shift."""

    scale: float
    shift: float
    inliers: float
    """Share of the known pixels that it explains."""


def align_disparity(model: Tensor, target: Tensor, known: Tensor, *, with_shift: bool) -> Alignment | None:
    """The robust scale (and shift) from a model's disparity to known disparity, or None where there is none to trust.

    RANSAC on pairs of pixels, then iteratively re-weighted least squares (Tukey's weights) on the inliers.

    Args:
        model, target: (H, W) disparities; target 0 is infinitely far.
        known: (H, W) bool, where `target` holds.
        with_shift: for models whose disparity has an unknown offset; metric ones need a scale alone.
    """
    x, y = model[known].double(), target[known].double()
    finite = torch.isfinite(x) & torch.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < MIN_KNOWN_PX or float(y.median()) <= 0:
        return None
    tolerance = TOLERANCE * float(y.median())
    fit = _best_trial(x, y, tolerance, with_shift)
    if fit is None:
        return None
    for _ in range(REFINEMENTS):
        residual = (fit[0] * x + fit[1] - y) / (2 * tolerance)
        weight = (1 - residual.square()).clamp_min(0).square()
        refined = _weighted_fit(x, y, weight, with_shift)
        if refined is None:
            break
        fit = refined
    scale, shift = fit
    inliers = float(((scale * x + shift - y).abs() < tolerance).double().mean())
    if scale <= 0 or inliers < MIN_INLIERS:
        return None
    return Alignment(scale, shift, inliers)


def _best_trial(x: Tensor, y: Tensor, tolerance: float, with_shift: bool) -> tuple[float, float] | None:
    """The line through two pixels (one, without shift) that explains the most others. The same every time."""
    sample = torch.linspace(0, len(x) - 1, min(len(x), SAMPLE), device=x.device).long()
    x, y = x[sample], y[sample]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(len(x), (2, TRIALS), generator=generator).to(x.device)
    if with_shift:
        run = x[second] - x[first]
        scale = (y[second] - y[first]) / run
        shift = y[first] - scale * x[first]
    else:
        scale, shift = y[first] / x[first], torch.zeros_like(y[first])
    usable = torch.isfinite(scale) & (scale > 0)
    if not bool(usable.any()):
        return None
    scale, shift = scale[usable], shift[usable]
    votes = ((scale[:, None] * x + shift[:, None] - y).abs() < tolerance).sum(1)
    best = int(votes.argmax())
    return float(scale[best]), float(shift[best])


def _weighted_fit(x: Tensor, y: Tensor, weight: Tensor, with_shift: bool) -> tuple[float, float] | None:
    total = weight.sum()
    if with_shift:
        mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    else:
        mean_x = mean_y = torch.zeros_like(total)
    spread = (weight * (x - mean_x).square()).sum()
    if not float(total) > 0 or not float(spread) > 0:
        return None
    scale = float((weight * (x - mean_x) * (y - mean_y)).sum() / spread)
    return scale, float(mean_y) - scale * float(mean_x)
