"""Optimises Gaussians on views of what was seen, with known cameras (method section 4).

Loss per step, on one view: 0.8 L1 + 0.2 (1 - SSIM) + disparity + coverage, each weighted by how far the view's pixels
are to be trusted. Every Gaussian moves in units of its own size: near and far, millimetres and kilometres learn alike.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .gaussians import SH_C0, Gaussians
from .rasterize import rasterize

MAX_DRIFT = 2.0
"""How far a fit may move a Gaussian, in its own radii: it was put where something was seen and stays by it."""
MAX_GROWTH = 1.4
"""How far a fit may lengthen an axis of a Gaussian: longer ones become needles that stick out of the next view."""
SSIM_WINDOW = 7
"""Pixels; a box window, which costs a fifth of the Gaussian one on a CPU and ranks images alike."""


@dataclass(frozen=True)
class FitSettings:
    """Weights and Adam learning rates of a fit; rates fall to a tenth along a cosine."""

    ssim_weight: float = 0.2
    disparity_weight: float = 0.3
    coverage_weight: float = 0.2
    """Of 1 - alpha where something was seen: keeps surfaces closed between the pixels that made them."""
    offset_lr: float = 0.08
    """Of the means, in units of each Gaussian's own radius."""
    scales_lr: float = 0.01
    quats_lr: float = 0.004
    opacities_lr: float = 0.03
    sh0_lr: float = 0.01
    shN_lr: float = 0.0005


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


def fit(
    gaussians: Gaussians,
    trainable: Tensor,
    views: FitViews,
    steps: int,
    settings: FitSettings,
    generator: torch.Generator,
) -> Generator[float, None, Gaussians]:
    """Yields the loss of each step; returns the Gaussians, in the same order, with the trainable rows optimised.

    Args:
        trainable: (N,) bool; the other rows take part in the picture but stay as they are.
        generator: CPU generator that orders the views.
    """
    rows = torch.nonzero(trainable).squeeze(1)
    if len(rows) == 0 or steps == 0:
        return gaussians
    start = gaussians[rows].map(lambda t: t.detach().clone())
    radius = start.scales.exp().median(1, keepdim=True).values  # of a disc: the shorter one along the surface
    offset = torch.zeros_like(start.means)
    longest = start.scales.clone() + math.log(MAX_GROWTH)
    # One view cannot tell a colour that depends on the direction from one that does not: only several teach shN.
    fixed = {"means"} if len(views) > 1 and start.shN.numel() else {"means", "shN"}
    learned = {"offset": offset, **{k: t for k, t in start.tensors().items() if k not in fixed}}
    for t in learned.values():
        t.requires_grad_(True)
    rates = {name: getattr(settings, f"{name}_lr") for name in learned}
    adam = torch.optim.Adam([{"params": [t], "lr": rates[name]} for name, t in learned.items()], eps=1e-15, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _cosine(step / steps))
    everything = len(rows) == len(gaussians)

    def current() -> Gaussians:
        drift = MAX_DRIFT * torch.tanh(offset / MAX_DRIFT)
        # A colour outside [0, 1] would sharpen an edge here and shine out of it from the next camera.
        moved = replace(
            start,
            means=start.means + radius * drift,
            scales=torch.minimum(start.scales, longest),
            sh0=start.sh0.clamp(-0.5 / SH_C0, 0.5 / SH_C0),
        )
        if everything:
            return moved
        return Gaussians(**{k: t.index_copy(0, rows, moved.tensors()[k]) for k, t in gaussians.tensors().items()})

    order: list[int] = []
    for _ in range(steps):
        if not order:
            order = torch.randperm(len(views), generator=generator).tolist()
        loss = _loss(current(), views, order.pop(), settings)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        schedule.step()
        yield float(loss.detach())
    with torch.no_grad():
        return current().map(lambda t: t.detach())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """(C, H, W) images in [0, 1] -> (H - 6, W - 6) structural similarity, mean over channels, box window."""
    side = min(SSIM_WINDOW, *a.shape[-2:])
    stack = F.avg_pool2d(torch.cat([a, b, a * a, b * b, a * b])[None], side, stride=1)[0]
    mu_a, mu_b, aa, bb, ab = stack.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * mu_a * mu_b + c1) * (2 * (ab - mu_a * mu_b) + c2)
    scale = (mu_a * mu_a + mu_b * mu_b + c1) * ((aa - mu_a * mu_a) + (bb - mu_b * mu_b) + c2)
    return (similar / scale).mean(0)


def _loss(gaussians: Gaussians, views: FitViews, index: int, settings: FitSettings) -> Tensor:
    target, weight = views.rgb[index], views.weight[index]
    height, width = weight.shape
    render = rasterize(gaussians, views.w2c[index, None], views.K[index, None], width, height)
    alpha, depth = render.alpha[0], render.depth[0]
    # Laid over the target itself: a gap costs nothing in colour, so no Gaussian grows too bright to make up for one;
    # closing gaps is the coverage term's work.
    rgb = render.rgb[0] + (1 - alpha)[..., None] * target

    total = weight.sum().clamp_min(1e-6)
    l1 = ((rgb - target).abs().mean(-1) * weight).sum() / total
    similarity = ssim(rgb.permute(2, 0, 1), target.permute(2, 0, 1))
    margin = (height - similarity.shape[0]) // 2, (width - similarity.shape[1]) // 2
    inner = weight[margin[0] : margin[0] + similarity.shape[0], margin[1] : margin[1] + similarity.shape[1]]
    dissimilarity = ((1 - similarity) * inner).sum() / inner.sum().clamp_min(1e-6)
    coverage = ((1 - alpha) * weight).sum() / total

    depth_weight = views.depth_weight[index] * (alpha.detach() > 0.5)
    disparity = 1 / depth.clamp_min(1e-3)
    off = ((disparity - views.disparity[index]).abs() * depth_weight).sum() / depth_weight.sum().clamp_min(1e-6)
    return (
        (1 - settings.ssim_weight) * l1
        + settings.ssim_weight * dissimilarity
        + settings.disparity_weight * off
        + settings.coverage_weight * coverage
    )


def _cosine(t: float) -> float:
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t))
