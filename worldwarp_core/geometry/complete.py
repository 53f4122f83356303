"""Complete depth for frames that the cache has seen in part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .align import TOLERANCE, align_disparity
from .edges import sharpen_edges
from .inpaint import hole_border, inpaint_disparity, spread
from .monocular import DepthModel

MONOCULAR_CONFIDENCE = 0.5
INPAINTED_CONFIDENCE = 0.1
SKY_SHARE = 0.25
"""What a model sees with less than this share of the smallest known disparity of the view is sky."""


@dataclass(frozen=True)
class Geometry:
    """Depth of V views and how far it can be trusted.

    Attributes:
        depth: (V, H, W) float32 planar z, in the units of the caller; inf is sky.
        confidence: (V, H, W) in [0, 1]: 1 where exact or seen, `MONOCULAR_CONFIDENCE`, `INPAINTED_CONFIDENCE`.
    """

    depth: Tensor
    confidence: Tensor

    def __post_init__(self) -> None:
        assert self.depth.ndim == 3, self.depth.shape
        assert self.depth.shape == self.confidence.shape, (self.depth.shape, self.confidence.shape)


def complete_depth(cache_depth: Tensor, seen: Tensor, rgb: Tensor, monocular: DepthModel | None) -> Geometry:
    """Depth from the cache where it has seen the place, and else from the model aligned to it, or inpainted.

    A view is inpainted where there is no model, or where no scale makes the model agree with what was seen. A view of
    which nothing was seen takes depth 1, the cache's unit, all over.

    Args:
        cache_depth: (V, H, W) planar z; inf is sky; not looked at outside `seen`.
        seen: (V, H, W) bool.
        rgb: (V, H, W, 3) in [0, 1].
    """
    assert cache_depth.shape == seen.shape == rgb.shape[:3], (cache_depth.shape, seen.shape, rgb.shape)
    usable = seen & (cache_depth > 0) & ~torch.isnan(cache_depth)
    disparity = torch.where(usable, 1 / cache_depth, 0)
    estimated = monocular.disparity(rgb) if monocular is not None and not bool(usable.all()) else None
    views = []
    for v in range(len(seen)):
        if bool(usable[v].all()):
            views.append((disparity[v], torch.ones_like(disparity[v])))
            continue
        filled, confidence = None, INPAINTED_CONFIDENCE
        if monocular is not None and estimated is not None:
            filled = _aligned(estimated[v], disparity[v], usable[v], with_shift=monocular.kind == "disparity")
            confidence = INPAINTED_CONFIDENCE if filled is None else MONOCULAR_CONFIDENCE
        if filled is None:
            filled = _inpainted(disparity[v], usable[v])
        views.append((filled, torch.where(usable[v], 1.0, confidence).to(disparity.dtype)))
    depth = torch.stack([1 / filled for filled, _ in views])
    return Geometry(depth.float(), torch.stack([confidence for _, confidence in views]).float())


def _inpainted(disparity: Tensor, known: Tensor) -> Tensor:
    if not bool(known.any()):
        return torch.ones_like(disparity)
    return inpaint_disparity(disparity, known)


def _aligned(model: Tensor, disparity: Tensor, known: Tensor, *, with_shift: bool) -> Tensor | None:
    """The model's disparity fitted to the known one and joined to it without a seam; None where it does not fit."""
    # The sky's disparity says nothing about the scale, and a clipped model says nothing about the sky.
    surface = known & (disparity > 0)
    fit = align_disparity(model, disparity, surface, with_shift=with_shift)
    if fit is None:
        return None
    guess = (fit.scale * model + fit.shift).clamp_min(0).to(disparity.dtype)
    # What is left of the error at the border of what is known fades into the hole; where model and cache see different
    # surfaces there is no error to spread but an edge.
    error = (disparity - guess).cpu().numpy()
    allowed = 2 * TOLERANCE * float(disparity[surface].median())
    agree = hole_border(known.cpu().numpy()) & (np.abs(error) < allowed)
    if agree.any():
        fade = spread(error, agree, (~known).cpu().numpy())
        guess = (guess + torch.from_numpy(fade).to(guess)).clamp_min(0)
    guess = torch.where(guess < SKY_SHARE * disparity[surface].min(), 0, guess)
    return sharpen_edges(torch.where(known, disparity, guess), ~known)
