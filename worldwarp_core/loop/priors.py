"""The cache seen from the cameras to come: forward-warped priors and what of them can be trusted (method section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.blockout import hidden_by
from ..splats.cache import DEPTH_TOLERANCE, SOURCE_VIEWS, KeyViews, SplatCache, nearest_views
from ..splats.look import look

VALID = 0.5
"""A prior pixel is valid from this validity on."""


@dataclass(frozen=True)
class Priors:
    """T warped views.

    Attributes:
        rgb: (T, H, W, 3) in [0, 1], straight colour where there is any, else black.
        alpha: (T, H, W) in [0, 1].
        depth: (T, H, W) expected planar z of the surfaces in cache units; inf where the sky or nothing is seen. Where
            the blockout hides that, its own.
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
    nearest, farthest = _depth_ranges(cache.views.depth)
    agreed = torch.stack(
        [_seen_before(cache.views, nearest, farthest, somewhere[t], w2c[t], K[t]) for t in range(len(w2c))]
    )
    return Priors(
        rgb=(view.rgb / view.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1),
        alpha=view.alpha,
        depth=view.depth,
        validity=view.alpha * agreed,
    )


def keep_to_blockout(priors: Priors, scene: Tensor) -> Priors:
    """Blank, as if the cache had nothing there, where a surface of the blockout hides what the cache shows.

    Args:
        scene: (T, H, W) planar z of the blockout in cache units; inf where nothing is known.
    """
    hidden = hidden_by(scene, priors.depth)
    seen = ~hidden
    return Priors(
        rgb=priors.rgb * seen[..., None],
        alpha=priors.alpha * seen,
        depth=torch.where(hidden, scene, priors.depth),
        validity=priors.validity * seen,
    )


def _depth_ranges(depth: Tensor) -> tuple[Tensor, Tensor]:
    """(V, H, W) -> the nearest and the farthest depth of each pixel and its neighbours, (V, H, W) each."""
    stack = torch.cat([-depth[:, None], depth[:, None]], 1)
    nearest, farthest = F.max_pool2d(stack, 3, stride=1, padding=1).unbind(1)
    return -nearest, farthest


def _seen_before(views: KeyViews, nearest: Tensor, farthest: Tensor, depth: Tensor, w2c: Tensor, K: Tensor) -> Tensor:
    """(H, W) bool: what is at `depth` (the sky at its own) was seen there from one of the nearest key views.

    A view's own depth is the range over the pixel and its neighbours: on a silhouette the cache's expected depth and
    the view's mix what lies in front and behind, and a steep floor changes by more than 10% from row to row.
    """
    height, width = depth.shape
    ys, xs = torch.meshgrid(
        torch.arange(height, device=depth.device), torch.arange(width, device=depth.device), indexing="ij"
    )
    pixels = torch.stack([xs + 0.5, ys + 0.5, torch.ones_like(xs)], -1).to(depth.dtype).flatten(0, 1)
    camera = (pixels @ torch.linalg.inv(K).T) * depth.flatten()[:, None]
    c2w = torch.linalg.inv(w2c)
    world = camera @ c2w[:3, :3].T + c2w[:3, 3]

    chosen = nearest_views(views, w2c, SOURCE_VIEWS)
    source = world @ views.w2c[chosen, :3, :3].mT + views.w2c[chosen, None, :3, 3]  # (n, H W, 3)
    z = source[..., 2]
    uv = (source @ views.K[chosen].mT)[..., :2] / z.clamp_min(1e-6)[..., None]
    inside = (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] < width) & (uv[..., 1] < height)
    at = chosen[:, None], uv[..., 1].clamp(0, height - 1).long(), uv[..., 0].clamp(0, width - 1).long()
    agrees = (z > (1 - DEPTH_TOLERANCE) * nearest[at]) & (z < (1 + DEPTH_TOLERANCE) * farthest[at])
    return (inside & agrees).any(0).view(height, width)
