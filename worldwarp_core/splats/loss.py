"""What a fit's step is judged by: a rendered view against what was seen (method section 4).

0.8 L1 + 0.2 (1 - SSIM) + disparity + coverage, each weighted by how far the view's pixels are to be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .fit_settings import FitSettings

SSIM_WINDOW = 7
"""Pixels; a box window, which costs a fifth of the Gaussian one on a CPU and ranks images alike."""


@dataclass(frozen=True)
class FitViews:
    """V views to fit, in cache units.

    Attributes:
        rgb: (V, H, W, 3) in [0, 1].
        disparity: (V, H, W) 1 / planar z; the sky's is that of the sky's Gaussians.
        weight: (V, H, W) in [0, 1], trust in the pixel's colour.
        depth_weight: (V, H, W) in [0, 1], trust in its disparity.
        w2c: (V, 4, 4), K: (V, 3, 3).
    """

    rgb: Tensor
    disparity: Tensor
    weight: Tensor
    depth_weight: Tensor
    w2c: Tensor
    K: Tensor

    def __len__(self) -> int:
        return len(self.rgb)


def view_loss(
    rgb: Tensor,
    alpha: Tensor,
    depth: Tensor,
    target: Tensor,
    disparity: Tensor,
    weight: Tensor,
    depth_weight: Tensor,
    settings: FitSettings,
) -> Tensor:
    """() loss of a rendered view (premultiplied (H, W, 3), (H, W), (H, W)) against what was seen (see `FitViews`)."""
    height, width = weight.shape
    # Laid over the target itself: a gap costs nothing in colour, so no Gaussian grows too bright to make up for one;
    # closing gaps is the coverage term's work.
    rgb = rgb + (1 - alpha)[..., None] * target

    total = weight.sum().clamp_min(1e-6)
    l1 = ((rgb - target).abs().mean(-1) * weight).sum() / total
    similarity = ssim(rgb.permute(2, 0, 1), target.permute(2, 0, 1))
    margin = (height - similarity.shape[0]) // 2, (width - similarity.shape[1]) // 2
    inner = weight[margin[0] : margin[0] + similarity.shape[0], margin[1] : margin[1] + similarity.shape[1]]
    dissimilarity = ((1 - similarity) * inner).sum() / inner.sum().clamp_min(1e-6)
    coverage = ((1 - alpha) * weight).sum() / total

    depth_weight = depth_weight * (alpha.detach() > 0.5)
    off = ((1 / depth.clamp_min(1e-3) - disparity).abs() * depth_weight).sum() / depth_weight.sum().clamp_min(1e-6)
    return (
        (1 - settings.ssim_weight) * l1
        + settings.ssim_weight * dissimilarity
        + settings.disparity_weight * off
        + settings.coverage_weight * coverage
    )


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(C, H, W) images in [0, 1] -> (H - 6, W - 6) structural similarity, mean over channels, box window."""
    side = min(SSIM_WINDOW, *a.shape[-2:])
    stack = torch.cat([a, b, a * a, b * b, a * b])[None]
    stack = F.avg_pool2d(F.avg_pool2d(stack, (side, 1), stride=1), (1, side), stride=1)[0]
    mu_a, mu_b, aa, bb, ab = stack.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
    scale = (mu_a * mu_a + mu_b * mu_b + c1) * ((aa - mu_a * mu_a) + (bb - mu_b * mu_b) + c2)
    return (similar / scale).mean(0)
