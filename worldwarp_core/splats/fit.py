"""Optimises Gaussians on views of what was seen, with known cameras (method section 4).

A step takes one view, and its loss is that of loss.py. Every Gaussian moves in units of its own size (moving.py): near
and far, millimetres and kilometres learn alike.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from ..triton_here import why_no_triton
from .fit_settings import ADAM_EPS, BETA1, BETA2, FitSettings, cosine
from .gaussians import Gaussians
from .loss import FitViews, view_loss
from .moving import Moving, let_move
from .rasterize import rasterize


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
