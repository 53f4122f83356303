"""Warps by the cache that the engine itself uses: the very look of the priors that the model will meet.

Slower than `warp.forward_warp` by far (tens of milliseconds a clip on a GPU), so it is for a share of the clips.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from ..loop.priors import render_priors
from ..splats.cache import SEEN_ALPHA, SKY_DISTANCE, KeyViews, SplatCache
from ..splats.fit import fit
from ..splats.fit_settings import FitSettings
from ..splats.gaussians import Gaussians, concatenate
from ..splats.look import look
from ..splats.loss import FitViews
from ..splats.seed import SeedView, seed_gaussians
from ..splats.space import CacheSpace


def cache_warp(
    rgb: Tensor,  # (S, 3, H, W) in [0, 1]
    depth: Tensor,  # (S, H, W) planar z, inf for the sky
    keep: Tensor,  # (S, H, W) bool: pixels that take part
    source_K: Tensor,  # (S, 3, 3)
    source_c2w: Tensor,  # (S, 4, 4)
    K: Tensor,  # (T, 3, 3)
    c2w: Tensor,  # (T, 4, 4)
    points: int,
    steps: int,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """The sources at the target cameras: (T, 3, H, W) float32, black where validity is 0, and (T, H, W) validity.

    Args:
        points: Gaussians that a whole view gets.
        steps: of optimisation on the sources after seeding; 0 for none.
        generator: a CPU one, which orders the views of the fit.
    """
    height, width = depth.shape[-2:]
    finite = depth.isfinite()
    unit = float(depth[finite].median()) if finite.any() else 1.0
    space = CacheSpace(anchor=source_c2w[0, :3, 3].double().cpu().numpy(), unit=unit)
    depth = depth / unit
    sky_depth = SKY_DISTANCE * (float(depth[finite].max()) if finite.any() else 1.0)
    pictures = rgb.float().permute(0, 2, 3, 1)
    w2c = _into(space, source_c2w)

    parts: list[Gaussians] = []
    skies: list[Tensor] = []
    for s in range(len(rgb)):
        wanted = keep[s]
        if parts:
            so_far = look(concatenate(parts), torch.cat(skies), w2c[s, None], source_K[s, None], width, height)
            wanted = wanted & (so_far.alpha[0] < SEEN_ALPHA)
        if not wanted.any():
            continue
        budget = max(int(points * float(wanted.float().mean())), 16)
        seeds, sky = seed_gaussians(
            SeedView(pictures[s], depth[s], wanted, w2c[s], source_K[s]), budget, sky_depth, sh_degree=0
        )
        parts.append(seeds)
        skies.append(sky)
    if not parts:
        empty = torch.zeros(len(K), height, width, device=rgb.device)
        return empty[:, None].expand(-1, 3, -1, -1).clone(), empty
    gaussians, sky = concatenate(parts), torch.cat(skies)

    flat = torch.where(depth.isfinite(), depth, sky_depth)
    trust = keep.float()
    views = FitViews(pictures, 1 / flat, trust, trust, w2c, source_K)
    trainable = torch.ones(len(gaussians), dtype=torch.bool, device=rgb.device)
    fitting = fit(gaussians, trainable, views, steps, FitSettings(), generator)
    with torch.enable_grad():
        while True:
            try:
                next(fitting)
            except StopIteration as end:
                gaussians = end.value
                break
    cache = SplatCache(
        space=space,
        sky_depth=sky_depth,
        gaussians=gaussians,
        source_frames=torch.zeros(len(gaussians), dtype=torch.int32, device=rgb.device),
        sky=sky,
        views=KeyViews(
            numbers=list(range(len(rgb))),
            rgb=_to_bytes(pictures),
            depth=flat,
            trusted=_to_bytes(trust),
            w2c=w2c,
            K=source_K,
        ),
    )
    priors = render_priors(cache, _into(space, c2w), K, width, height)
    validity = priors.validity
    return priors.rgb.permute(0, 3, 1, 2) * (validity > 0)[:, None], validity


def _into(space: CacheSpace, c2w: Tensor) -> Tensor:
    return space.w2c(c2w.cpu().numpy().astype(np.float64)).to(c2w.device)


def _to_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)
