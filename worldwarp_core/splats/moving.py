"""Gaussians that a fit moves, in units of their own size, and how far it may take them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .gaussians import SH_C0, Gaussians

MAX_DRIFT = 2.0
"""How far a fit may move a Gaussian, in its own radii: it was put where something was seen and stays by it."""
MAX_GROWTH = 1.4
"""How far a fit may lengthen an axis of a Gaussian: longer ones become needles that stick out of the next view."""


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
