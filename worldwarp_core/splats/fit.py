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

from ..triton_here import why_no_triton
from .gaussians import SH_C0, Gaussians
from .rasterize import rasterize

MAX_DRIFT = 2.0
"""How far a fit may move a Gaussian, in its own radii: it was put where something was seen and stays by it."""
MAX_GROWTH = 1.4
"""How far a fit may lengthen an axis of a Gaussian: longer ones become needles that stick out of the next view."""
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-15
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

    def rate(self, name: str) -> float:
        """The learning rate at the first step of the parameter called `name`."""
        return float(getattr(self, f"{name}_lr"))


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


@dataclass(frozen=True)
class Moving:
    """Gaussians on a leash: the parameters that a fit turns, and how far they may take each Gaussian.

    Attributes:
        start: where they begin, which they never leave by more than `MAX_DRIFT` and `MAX_GROWTH`.
        radius: (N, 1) of each disc, the shorter one along its surface.
        learned: leaf tensors by name: `offset` (N, 3) in radii, and fields of `Gaussians`.
    """

    start: Gaussians
    radius: Tensor
    learned: dict[str, Tensor]

    def now(self) -> Gaussians:
        """The Gaussians at the present parameters, differentiable in them."""
        means, scales, sh0 = within_bounds(
            self.start.means, self.radius, self.start.scales, *(self.learned[k] for k in ("offset", "scales", "sh0"))
        )
        free = {k: t for k, t in self.learned.items() if k != "offset"}
        return replace(self.start, **(free | {"means": means, "scales": scales, "sh0": sh0}))


def fit(
    gaussians: Gaussians,
    trainable: Tensor,
    views: FitViews,
    steps: int,
    settings: FitSettings,
    generator: torch.Generator,
) -> Generator[float, None, Gaussians]:
    """Yields the loss of each step; returns the Gaussians, in the same order, with the trainable rows optimised.

    On CUDA a step is one graph (`fit_cuda`) wherever that can be compiled, and its losses arrive a few at a time.

    Args:
        trainable: (N,) bool; the other rows take part in the picture but stay as they are.
        generator: CPU generator that orders the views.
    """
    rows = torch.nonzero(trainable).squeeze(1)
    if len(rows) == 0 or steps == 0:
        return gaussians
    # One view cannot tell a colour that depends on the direction from one that does not: only several teach shN.
    moving = let_move(gaussians[rows], with_shN=len(views) > 1)
    order = _order_of_views(len(views), steps, generator)
    if _is_captured(gaussians):
        from .fit_cuda import lay_out, optimise_on_cuda

        moving = lay_out(moving)
        yield from optimise_on_cuda(moving, gaussians[~trainable], views, order, settings)
    else:
        yield from optimise(moving, gaussians, rows, views, order, settings)
    with torch.no_grad():
        return _put_back(gaussians, rows, moving.now().map(lambda t: t.detach().contiguous()))


def _is_captured(gaussians: Gaussians) -> bool:
    return gaussians.means.is_cuda and why_not_captured() is None


def why_not_captured() -> str | None:
    """Why fits on CUDA run step by step on this machine; None where a step is captured as a graph."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "The GPU is older than Ampere and has no TF32, which the gradient is summed in"
    return why_no_triton()


def prepare_fit(device: torch.device | str) -> None:
    """Compiles what a fit on CUDA is made of, or loads it where that was done before.

    It fits two Gaussians of degree 3 beside one that stays, as later fits do.
    """
    gaussians = Gaussians(
        means=torch.tensor([[0.0, 0.0, 1.0], [0.1, 0.0, 1.1], [0.0, 0.1, 1.2]], device=device),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3, device=device),
        scales=torch.full((3, 3), -2.0, device=device),
        opacities=torch.zeros(3, device=device),
        sh0=torch.zeros(3, 1, 3, device=device),
        shN=torch.zeros(3, 15, 3, device=device),
    )
    ones = torch.ones(2, 16, 16, device=device)
    K = torch.tensor([[16.0, 0, 8], [0, 16.0, 8], [0, 0, 1]], device=device)
    views = FitViews(
        ones[..., None].expand(-1, -1, -1, 3),
        ones,
        ones,
        ones,
        torch.eye(4, device=device).repeat(2, 1, 1),
        K.repeat(2, 1, 1),
    )
    moves = torch.tensor([False, True, True], device=device)
    for _ in fit(gaussians, moves, views, 1, FitSettings(), torch.Generator()):
        pass


def let_move(gaussians: Gaussians, with_shN: bool) -> Moving:
    """Parameters that start at these Gaussians; the Gaussians themselves are left alone."""
    start = gaussians.map(lambda t: t.detach().clone())
    fixed = {"means"} if with_shN and start.shN.numel() else {"means", "shN"}
    learned = {"offset": torch.zeros_like(start.means)}
    learned |= {name: t.clone() for name, t in start.tensors().items() if name not in fixed}
    for t in learned.values():
        t.requires_grad_(True)
    return Moving(start, start.scales.exp().median(1, keepdim=True).values, learned)


def within_bounds(
    start_means: Tensor, radius: Tensor, start_scales: Tensor, offset: Tensor, scales: Tensor, sh0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Means, scales and sh0 of Gaussians whose parameters may have gone farther than is allowed."""
    drift = MAX_DRIFT * torch.tanh(offset / MAX_DRIFT)
    longest = start_scales + math.log(MAX_GROWTH)
    # A colour outside [0, 1] would sharpen an edge here and shine out of it from the next camera.
    return start_means + radius * drift, torch.minimum(scales, longest), sh0.clamp(-0.5 / SH_C0, 0.5 / SH_C0)


def optimise(
    moving: Moving, gaussians: Gaussians, rows: Tensor, views: FitViews, order: list[int], settings: FitSettings
) -> Generator[float, None, None]:
    """Turns the parameters of `moving`, which stand for the `rows` of `gaussians`, one view of `order` a step."""
    groups = [{"params": [t], "lr": settings.rate(name)} for name, t in moving.learned.items()]
    adam = torch.optim.Adam(groups, betas=(BETA1, BETA2), eps=ADAM_EPS, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: cosine(step / len(order)))
    for v in order:
        now = _put_back(gaussians, rows, moving.now())
        height, width = views.weight.shape[1:]
        render = rasterize(now, views.w2c[v, None], views.K[v, None], width, height)
        seen = render.rgb[0], render.alpha[0], render.depth[0]
        loss = view_loss(*seen, views.rgb[v], views.disparity[v], views.weight[v], views.depth_weight[v], settings)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        schedule.step()
        yield float(loss.detach())


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


def cosine(t: float) -> float:
    """The share of a learning rate that is left after the share t of the steps."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t))


def _order_of_views(count: int, steps: int, generator: torch.Generator) -> list[int]:
    """One view a step: each view once, in a new random order, over and over."""
    order: list[int] = []
    while len(order) < steps:
        order += reversed(torch.randperm(count, generator=generator).tolist())
    return order[:steps]


def _put_back(gaussians: Gaussians, rows: Tensor, moved: Gaussians) -> Gaussians:
    if len(rows) == len(gaussians):
        return moved
    return Gaussians(**{k: t.index_copy(0, rows, moved.tensors()[k]) for k, t in gaussians.tensors().items()})
