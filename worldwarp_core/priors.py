"""The cache seen from the cameras to come: forward-warped priors and what of them can be trusted (method section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .splats.cache import DEPTH_TOLERANCE, SOURCE_VIEWS, SplatCache, nearest_views
from .splats.look import look

VALID = 0.5
"""A prior pixel is valid from this validity on."""


@dataclass(frozen=True)
class Priors:
    """T warped views.

    Attributes:
        rgb: (T, H, W, 3) in [0, 1], straight colour where there is any, else black.
        alpha: (T, H, W) in [0, 1].
        depth: (T, H, W) expected planar z of the surfaces in cache units; inf where the sky or nothing is seen.
        validity: (T, H, W) in [0, 1]: alpha where a source view agrees with the depth, else 0.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    validity: Tensor


@torch.no_grad()
def render_priors(cache: SplatCache, w2c: Tensor, K: Tensor, width: int, height: int) -> Priors:
    """Renders the cache at (T, 4, 4) cameras, in cache units, as one batch."""
    view = look(cache.gaussians, cache.sky, w2c, K, width, height)
    somewhere = view.depth.clamp(max=cache.sky_depth)
    agreed = torch.stack([_seen_before(cache, somewhere[t], w2c[t], K[t]) for t in range(len(w2c))])
    return Priors(
        rgb=(view.rgb / view.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1),
        alpha=view.alpha,
        depth=view.depth,
        validity=view.alpha * agreed,
    )


def _seen_before(cache: SplatCache, depth: Tensor, w2c: Tensor, K: Tensor) -> Tensor:
    """(H, W) bool: what is at `depth` (the sky at its own) was seen there from one of the nearest key views.

    A view's own depth is the range over the pixel and its neighbours: on a silhouette the cache's expected depth and
    the view's mix what lies in front and behind, and a steep floor changes by more than 10% from row to row.
    """
    height, width = depth.shape
    chosen = nearest_views(cache.views, w2c, SOURCE_VIEWS)
    ys, xs = torch.meshgrid(
        torch.arange(height, device=depth.device), torch.arange(width, device=depth.device), indexing="ij"
    )
    pixels = torch.stack([xs + 0.5, ys + 0.5, torch.ones_like(xs)], -1).to(depth.dtype)
    camera = (pixels @ torch.linalg.inv(K).T) * depth[..., None]
    c2w = torch.linalg.inv(w2c)
    world = camera @ c2w[:3, :3].T + c2w[:3, 3]

    seen = torch.zeros_like(depth, dtype=torch.bool)
    for v in chosen.tolist():
        source = world @ cache.views.w2c[v, :3, :3].T + cache.views.w2c[v, :3, 3]
        z = source[..., 2]
        uv = (source @ cache.views.K[v].T)[..., :2] / z.clamp_min(1e-6)[..., None]
        inside = (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
        col = uv[..., 0].clamp(0, width - 1).long()
        row = uv[..., 1].clamp(0, height - 1).long()
        nearest = -F.max_pool2d(-cache.views.depth[v, None, None], 3, stride=1, padding=1)[0, 0]
        farthest = F.max_pool2d(cache.views.depth[v, None, None], 3, stride=1, padding=1)[0, 0]
        seen |= (
            inside & (z > (1 - DEPTH_TOLERANCE) * nearest[row, col]) & (z < (1 + DEPTH_TOLERANCE) * farthest[row, col])
        )
    return seen
