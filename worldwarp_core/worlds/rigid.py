"""Rotations and poses by plain products: exact float32 under autocast and TF32, which a trainer may have on.

Matrix products there keep 8 or 10 bits of a coordinate, which is pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(rotation: Tensor, vectors: Tensor) -> Tensor:
    """(..., 3, 3) times (..., 3), broadcast; float32."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([row[..., 0] * x + row[..., 1] * y + row[..., 2] * z for row in rotation.unbind(-2)], -1)


def chain(second: Tensor, first: Tensor) -> Tensor:
    """(..., k, k) product of two matrices, broadcast: `first`, then `second`."""
    return (second[..., :, :, None] * first[..., None, :, :]).sum(-2)


def invert(pose: Tensor) -> Tensor:
    """Inverse of rigid (..., 4, 4) poses."""
    turned = pose[..., :3, :3].mT
    inverse = torch.zeros_like(pose)
    inverse[..., :3, :3] = turned
    inverse[..., :3, 3] = -rotate(turned, pose[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def rotation(vector: Tensor) -> Tensor:
    """(..., 3, 3) rotations by (..., 3) rotation vectors, radians (Rodrigues)."""
    angle = vector.norm(dim=-1).clamp_min(1e-12)[..., None, None]
    x, y, z = (vector / angle[..., 0]).unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    one = torch.eye(3, device=vector.device)
    return one + angle.sin() * skew + (1 - angle.cos()) * chain(skew, skew)
