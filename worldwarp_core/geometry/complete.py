"""Complete depth for frames that the cache has seen in part."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from .align import SAME_SURFACE, align_disparity, align_scale
from .edges import sharpen_edges
from .inpaint import hole_border, inpaint_disparity, spread
from .monocular import DepthModel, Kind

MONOCULAR_CONFIDENCE = 0.5
INPAINTED_CONFIDENCE = 0.1
SKY_SHARE = 0.25
"""What a model sees with less than this share of the smallest known disparity of the view is sky, where the model does
not tell the sky itself."""
SMOOTH_SHARE = 1 / 80
"""Of the picture's width: the standard deviation over which the error at a border is averaged."""


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
            filled = _aligned(estimated[v], disparity[v], usable[v], monocular.kind)
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


def _aligned(model: Tensor, disparity: Tensor, known: Tensor, kind: Kind) -> Tensor | None:
    """The model's disparity fitted to the known one and joined to it without a seam; None where it does not fit."""
    # The sky's disparity says nothing about the scale, and a clipped model says nothing about the sky.
    surface = known & (disparity > 0)
    fit = align_disparity(model, disparity, surface) if kind == "disparity" else align_scale(model, disparity, known)
    if fit is None:
        return None
    guess = (fit.scale * model + fit.shift).clamp_min(0).to(disparity.dtype)
    if kind != "inverse_depth":
        guess = torch.where(guess < SKY_SHARE * disparity[surface].min(), 0, guess)
    guess = _without_seam(guess, disparity, surface, ~known)
    return sharpen_edges(torch.where(known, disparity, guess), ~known)


def _without_seam(guess: Tensor, disparity: Tensor, surface: Tensor, hole: Tensor) -> Tensor:
    """(H, W) the guess multiplied, in the hole, by what is missing at its border.

    What is left of the error there spreads through the hole, in ratios: an error of disparity at a near border would
    swallow what is far beyond it. Where model and cache see different surfaces there is no error to spread but an edge,
    and a single pixel of the cache is not asked: the error is the mean of those around it.
    """
    log_ratio = (disparity.clamp_min(1e-12) / guess.clamp_min(1e-12)).log()
    same = surface & (guess > 0) & (log_ratio.abs() < SAME_SURFACE)
    weight = same.cpu().numpy().astype(np.float32)
    agree = hole_border(~hole.cpu().numpy()) & (weight > 0)
    if not agree.any():
        return guess
    sigma = SMOOTH_SHARE * guess.shape[1]
    total = cv2.GaussianBlur(log_ratio.float().cpu().numpy() * weight, (0, 0), sigma)
    error = total / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-6)
    fade = spread(error, agree, hole.cpu().numpy())
    return guess * torch.from_numpy(fade).to(guess).exp()
