"""Ties the output of a monocular depth model to depth that is known."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
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
NEARBY_SHARE = 0.1
"""Of the picture's width: over this distance from what is unknown a known pixel's say in the scale falls to 1/e. A
model errs in parts of a picture, and what goes on into the unknown is the part beside it."""
SAME_SURFACE = 0.3
"""Model and known depth whose logarithms differ by less than this see one surface."""


@dataclass(frozen=True)
class Alignment:
    """known disparity = scale * model disparity + shift."""

    scale: float
    shift: float
    inliers: float
    """Share of the known pixels that it explains."""


def align_disparity(model: Tensor, target: Tensor, known: Tensor) -> Alignment | None:
    """The robust scale and shift from a model's disparity to known disparity, or None where there is none to trust.

    RANSAC on pairs of pixels, then iteratively re-weighted least squares (Tukey's weights) on the inliers.

    Args:
        model, target: (H, W) disparities; target 0 is infinitely far.
        known: (H, W) bool, where `target` holds.
    """
    x, y = model[known].double(), target[known].double()
    finite = torch.isfinite(x) & torch.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < MIN_KNOWN_PX or float(y.median()) <= 0:
        return None
    tolerance = TOLERANCE * float(y.median())
    fit = _best_trial(x, y, tolerance)
    if fit is None:
        return None
    for _ in range(REFINEMENTS):
        residual = (fit[0] * x + fit[1] - y) / (2 * tolerance)
        weight = (1 - residual.square()).clamp_min(0).square()
        refined = _weighted_fit(x, y, weight)
        if refined is None:
            break
        fit = refined
    scale, shift = fit
    inliers = float(((scale * x + shift - y).abs() < tolerance).double().mean())
    if scale <= 0 or inliers < MIN_INLIERS:
        return None
    return Alignment(scale, shift, inliers)


def align_scale(model: Tensor, target: Tensor, known: Tensor) -> Alignment | None:
    """The scale alone, for a model whose offset is right, or None where there is none to trust.

    The median of the known surfaces' log ratios, with more say for those beside what is unknown: a median needs no
    trials to stand half of them being wrong, and a ratio counts the far surfaces as much as the near ones.

    Args:
        model, target, known: as `align_disparity` has them; what either takes for sky does not count.
    """
    usable = known & torch.isfinite(model) & torch.isfinite(target) & (model > 0) & (target > 0)
    if int(usable.sum()) < MIN_KNOWN_PX:
        return None
    log_ratio = (target[usable].double() / model[usable].double()).log()
    far = cv2.distanceTransform(known.cpu().numpy().astype(np.uint8), cv2.DIST_L2, 5)
    # Subtracting the nearest keeps the weights above 0 where all that is known lies far off.
    distance = torch.from_numpy(far).to(log_ratio)[usable]
    weight = torch.exp((distance.min() - distance) / (NEARBY_SHARE * known.shape[1]))
    ordered, order = log_ratio.sort()
    summed = weight[order].cumsum(0)
    middle = ordered[int((summed < summed[-1] / 2).sum())]
    inliers = float(((log_ratio - middle).abs() < SAME_SURFACE).double().mean())
    return Alignment(float(middle.exp()), 0.0, inliers) if inliers >= MIN_INLIERS else None


def _best_trial(x: Tensor, y: Tensor, tolerance: float) -> tuple[float, float] | None:
    """The line through two pixels that explains the most others. The same every time."""
    sample = torch.linspace(0, len(x) - 1, min(len(x), SAMPLE), device=x.device).long()
    x, y = x[sample], y[sample]
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(len(x), (2, TRIALS), generator=generator).to(x.device)
    scale = (y[second] - y[first]) / (x[second] - x[first])
    shift = y[first] - scale * x[first]
    usable = torch.isfinite(scale) & (scale > 0)
    if not bool(usable.any()):
        return None
    scale, shift = scale[usable], shift[usable]
    votes = ((scale[:, None] * x + shift[:, None] - y).abs() < tolerance).sum(1)
    best = int(votes.argmax())
    return float(scale[best]), float(shift[best])


def _weighted_fit(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float] | None:
    total = weight.sum()
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    spread = (weight * (x - mean_x).square()).sum()
    if not float(total) > 0 or not float(spread) > 0:
        return None
    scale = float((weight * (x - mean_x) * (y - mean_y)).sum() / spread)
    return scale, float(mean_y) - scale * float(mean_x)
