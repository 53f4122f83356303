"""Closes a prior's holes with the colours around them, so that latents which a hole cuts are worth starting from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def close_holes(rgb: Tensor, validity: Tensor) -> Tensor:
    """Returns pictures without holes: what is valid stays, the rest comes from ever wider around, ever smoother.

    Colours are averaged where they are valid, at half the size, a quarter, ...; each size then fills what is missing
    in the one before it (pull-push, Gortler et al. 1996). A picture without anything valid is black.

    Args:
        rgb: (N, 3, H, W) in [0, 1].
        validity: (N, H, W) in [0, 1]; between its ends, so much of the pixel is kept.
    """
    weight = validity.unsqueeze(1).to(rgb.dtype)
    return _fill(rgb * weight, weight)


def _fill(premultiplied: Tensor, weight: Tensor) -> Tensor:
    """(N, 3, h, w) and weights (N, 1, h, w) in [0, 1] -> (N, 3, h, w)."""
    height, width = weight.shape[-2:]
    if max(height, width) == 1:
        return premultiplied / weight.clamp_min(1e-6)
    smaller = F.avg_pool2d(torch.cat([premultiplied, weight], 1), 2, ceil_mode=True, count_include_pad=False)
    colour, share = smaller.split([3, 1], 1)
    certain = (2 * share).clamp_max(1)  # half of the pixels below suffice
    around = _fill(colour / share.clamp_min(1e-6) * certain, certain)
    return premultiplied + (1 - weight) * F.interpolate(around, (height, width), mode="bilinear", align_corners=False)
