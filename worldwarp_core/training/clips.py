"""Clips to train on: a path through a world, and the one-to-all warp of some of its frames to all of its cameras.

Part of the warps are exact; part are wrong on purpose, as caches and estimated depth are: scaled, bent or noisy depth,
edges smeared in depth, cameras that drift, regions that are missing, blurred or wrongly exposed colours. So the model
learns to fill what is missing and to revise what is wrong. Everything is made on one device and stays there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..worlds.paths import PathSettings
from ..worlds.render import RenderSettings
from ..worlds.rigid import chain, rotation
from ..worlds.textures import Split, TextureBank
from .views import ViewSource
from .warp import SKY_DISTANCE, forward_warp

WARPED_FRAMES = 416
"""Frames warped at once: 32 clips of 13."""


@dataclass(frozen=True)
class ClipBatch:
    """n clips of T frames of H x W pixels, on one device.

    Attributes:
        rgb: (n, T, 3, H, W) float16 sRGB in [0, 1], the truth.
        depth: (n, T, H, W) float32 planar z in metres, inf for the sky, the truth.
        prior: (n, T, 3, H, W) float16 warped pictures, black where validity is 0.
        validity: (n, T, H, W) float16 in [0, 1].
        K: (n, T, 3, 3) pixels, pixel centres at +0.5.
        c2w: (n, T, 4, 4) OpenCV, metres.
        kinds, moves: of each clip's world and path.
        sources: (n, S) int64 frames that were warped, repeated where fewer.
        exact: (n,) bool, whether the warp was made with true depth and cameras and nothing was taken from it.
        history: like `rgb`, what the frames of a clip's history are: the truth itself, but for `continued.py`.
    """

    rgb: Tensor
    depth: Tensor
    prior: Tensor
    validity: Tensor
    K: Tensor
    c2w: Tensor
    kinds: tuple[str, ...]
    moves: tuple[str, ...]
    sources: Tensor
    exact: Tensor
    history: Tensor


@dataclass(frozen=True)
class WarpSettings:
    """How warps are made.

    Attributes:
        exact: the share of clips warped without any fault.
        first_frame: the share of clips whose one source is the first frame; the others take one to three of any.
        sources: the most sources of a clip.
        cached: the share of clips warped by the engine's own cache of Gaussians, exact or wrong as the others; on
            CUDA this needs gsplat, and each costs as much time as three others.
        cache_points: Gaussians that such a cache gets a view, drawn between these.
        cache_steps: most steps of optimisation of such a cache; half of them get none.
    """

    exact: float = 0.35
    first_frame: float = 0.6
    sources: int = 3
    cached: float = 0.0
    cache_points: tuple[int, int] = (8_000, 37_000)
    cache_steps: int = 30

    def __post_init__(self) -> None:
        assert 0 <= self.exact <= 1, self.exact
        assert 0 <= self.first_frame <= 1, self.first_frame
        assert self.sources >= 1, self.sources
        assert 0 <= self.cached <= 1, self.cached


class ClipSource:
    """Makes clips of one split, at one size and length.

    Args:
        split: "train", "val" or "test".
        seed: which stretch of the split's worlds to take.
        size: (height, width), pixels.
        frames: of a clip.
        device: where to make them.
        textures: a texture file, or None for procedural patterns alone.
        warps, paths, rendering: settings; None takes the defaults (the amount of motion grows with the frames).
        bank: a texture bank of the same split to share; None builds one.
    """

    def __init__(
        self,
        split: Split,
        seed: int = 0,
        size: tuple[int, int] = (144, 256),
        frames: int = 13,
        device: torch.device | str = "cpu",
        textures: str | Path | None = None,
        *,
        warps: WarpSettings | None = None,
        paths: PathSettings | None = None,
        rendering: RenderSettings | None = None,
        bank: TextureBank | None = None,
    ) -> None:
        # a short clip is part of a longer move
        extent = (frames / 49) ** 0.6
        self.warps = warps or WarpSettings()
        paths = paths or PathSettings(frames=frames, size=size, amount=(0.4 * extent, 1.6 * extent))
        self._views = ViewSource(
            split, seed, size, frames, device, textures, paths=paths, rendering=rendering, bank=bank
        )

    @torch.no_grad()
    def batch(self, n: int, first_seed: int) -> ClipBatch:
        """n clips of the worlds first_seed, first_seed + 1, ...: the same ones whenever asked."""
        views = self._views.batch(n, first_seed)
        with torch.autocast(views.rgb.device.type, enabled=False):
            prior, validity, sources, exact = warp_clips(
                self._views.seeds(n, first_seed), views.rgb, views.depth, views.K, views.c2w, self.warps
            )
        return ClipBatch(
            views.rgb, views.depth, prior, validity, views.K, views.c2w, views.kinds, views.moves, sources, exact,
            history=views.rgb,
        )  # fmt: skip


def warp_clips(
    seeds: list[int], rgb: Tensor, depth: Tensor, K: Tensor, c2w: Tensor, settings: WarpSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Priors (n, T, 3, H, W), validity (n, T, H, W), sources (n, S) and exactness (n,) of clips."""
    hands = [np.random.default_rng([seed, 2]) for seed in seeds]
    picked = [_draw_sources(hand, K.shape[1], settings) for hand in hands]
    exact = [bool(hand.random() < settings.exact) for hand in hands]
    cached = [bool(hand.random() < settings.cached) for hand in hands]
    generators: list[torch.Generator | None] = [None] * len(seeds)
    prior = torch.empty_like(rgb)
    mask = torch.empty(depth.shape, dtype=rgb.dtype, device=rgb.device)
    # clips with as many sources are warped together, as many as fit in some gigabytes
    most = max(WARPED_FRAMES // K.shape[1], 1)
    for members in _alike([len(set(sources)) for sources in picked], most):
        clips = torch.tensor(members, device=rgb.device)
        frames = torch.tensor([sorted(set(picked[i])) for i in members], device=rgb.device)
        row = clips[:, None]
        geometry, targets = depth[row, frames], c2w[clips]
        keep = torch.ones_like(geometry, dtype=torch.bool)
        for k, i in enumerate(members):
            if not exact[i]:
                generator = torch.Generator(device=rgb.device).manual_seed(int(hands[i].integers(1 << 62)))
                generators[i] = generator
                geometry[k], keep[k], targets[k] = _wrong_geometry(
                    hands[i], generator, geometry[k], keep[k], targets[k], sorted(set(picked[i]))
                )
        made, there = forward_warp(
            rgb[row, frames], geometry, keep, K[row, frames], c2w[row, frames], K[clips], targets
        )
        prior[clips], mask[clips] = made, there.to(rgb.dtype)
        for k, i in enumerate(members):
            if cached[i]:
                seen = (rgb[i, frames[k]], geometry[k], keep[k], K[i, frames[k]], c2w[i, frames[k]])
                own, valid = _by_cache(hands[i], seeds[i], settings, seen, K[i], targets[k])
                prior[i], mask[i] = own.to(rgb.dtype), valid.to(rgb.dtype)
    for i, begun in enumerate(generators):
        if begun is not None:
            prior[i], mask[i] = _wrong_look(hands[i], begun, prior[i], mask[i])
    return prior, mask, torch.tensor(picked, device=rgb.device), torch.tensor(exact, device=rgb.device)


def _alike(counts: list[int], most: int) -> list[list[int]]:
    """Places in the list, together where their counts are equal, at most `most` together."""
    groups = []
    for count in sorted(set(counts)):
        same = [i for i, other in enumerate(counts) if other == count]
        groups += [same[k : k + most] for k in range(0, len(same), most)]
    return groups


def _by_cache(
    hand: np.random.Generator,
    seed: int,
    settings: WarpSettings,
    seen: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    K: Tensor,
    c2w: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `cache_warp` of what was seen (its first five arguments), with drawn settings."""
    from .cache_warp import cache_warp  # numba or gsplat, only where it is wanted

    points = int(hand.integers(settings.cache_points[0], settings.cache_points[1] + 1))
    steps = int(hand.integers(0, settings.cache_steps + 1)) if hand.random() < 0.5 else 0
    return cache_warp(*seen, K, c2w, points, steps, torch.Generator().manual_seed(seed))


def _draw_sources(hand: np.random.Generator, frames: int, settings: WarpSettings) -> list[int]:
    if hand.random() < settings.first_frame or frames == 1:
        return [0] * settings.sources
    count = int(hand.integers(1, settings.sources + 1))
    some = hand.integers(0, frames, size=count).tolist()
    if hand.random() < 0.4:
        some[0] = 0
    return some + [some[0]] * (settings.sources - count)


def _wrong_geometry(
    hand: np.random.Generator, generator: torch.Generator, depth: Tensor, keep: Tensor, c2w: Tensor, sources: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth (S, H, W), pixels kept and target poses (T, 4, 4) with faults of an estimated or badly fitted scene."""
    device, (count, height, width) = depth.device, depth.shape
    middle = depth[depth.isfinite()].median() if depth.isfinite().any() else torch.tensor(5.0, device=device)
    if hand.random() < 0.4:  # one scale for all, as of a depth model
        depth = depth * math.exp(hand.normal(0, 0.12))
    if hand.random() < 0.25:
        depth = (depth + float(middle) * hand.normal(0, 0.08)).clamp_min(0.1)
    if hand.random() < 0.45:  # bent slowly across the picture
        cells = int(hand.integers(2, 7))
        lattice = torch.randn(count, 1, cells, cells + 2, generator=generator, device=device)
        bend = F.interpolate(lattice, (height, width), mode="bicubic", align_corners=True)[:, 0]
        depth = depth * (hand.uniform(0.02, 0.12) * bend).exp()
    if hand.random() < 0.3:
        depth = depth * (hand.uniform(0.002, 0.02) * torch.randn(depth.shape, generator=generator, device=device)).exp()
    if hand.random() < 0.35:  # edges smeared in depth: sheets between near and far
        radius = int(hand.integers(1, 4))
        inverse = 1.0 / torch.where(depth.isfinite(), depth, SKY_DISTANCE)
        blurred = F.avg_pool2d(inverse[:, None], 2 * radius + 1, 1, radius, count_include_pad=False)[:, 0]
        depth = 1.0 / blurred
    if hand.random() < 0.35:  # regions that were never seen, or thrown out
        keep = keep.clone()
        for _ in range(int(hand.integers(1, 6))):
            s = int(hand.integers(count))
            h, w = (int(side * hand.uniform(0.08, 0.45)) for side in (height, width))
            top, left = int(hand.integers(0, height - h + 1)), int(hand.integers(0, width - w + 1))
            if hand.random() < 0.5:
                keep[s, top : top + h, left : left + w] = False
            else:
                ys = (torch.arange(height, device=device) + 0.5 - top - h / 2) / max(h / 2, 1)
                xs = (torch.arange(width, device=device) + 0.5 - left - w / 2) / max(w / 2, 1)
                keep[s] &= (ys[:, None] ** 2 + xs[None] ** 2) > 1
    if hand.random() < 0.4:  # cameras that drift away from the truth with the distance to the source
        frames = len(c2w)
        away = torch.tensor(
            [min(abs(t - s) for s in sources) / max(frames - 1, 1) for t in range(frames)], device=device
        )
        axis = torch.tensor(hand.normal(0, 1, 3), dtype=torch.float32, device=device)
        turn = rotation(axis / axis.norm() * away[:, None] * hand.uniform(0.002, 0.04))
        shift = torch.tensor(hand.normal(0, 1, 3), dtype=torch.float32, device=device) * float(middle)
        c2w = c2w.clone()
        c2w[:, :3, :3] = chain(c2w[:, :3, :3], turn)
        c2w[:, :3, 3] += away[:, None] * shift * hand.uniform(0.002, 0.03)
    return depth, keep, c2w


def _wrong_look(
    hand: np.random.Generator, generator: torch.Generator, prior: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Priors (T, 3, H, W) and masks (T, H, W) with faults of a rendering."""
    device, shape = prior.device, mask.shape
    if hand.random() < 0.35:  # as soft as too few Gaussians
        sigma = hand.uniform(0.4, 1.6)
        taps = torch.arange(-3, 4, device=device, dtype=torch.float32)
        kernel = (-0.5 * (taps / sigma) ** 2).exp()
        kernel = (kernel / kernel.sum()).to(torch.float32)
        weight = _blur(mask.float()[:, None], kernel)
        prior = (_blur(prior.float(), kernel) / weight.clamp_min(1e-3) * (mask > 0)[:, None]).to(prior.dtype)
    if hand.random() < 0.3:  # exposure and white balance
        gain = torch.tensor(np.exp(hand.normal(0, 0.1, 3) + hand.normal(0, 0.12)), device=device, dtype=prior.dtype)
        prior = (prior * gain[:, None, None]).clamp(0, 1)
    if hand.random() < 0.25:  # specks between Gaussians
        rate, cell = hand.uniform(0.02, 0.25), int(hand.integers(1, 4))
        coarse = (shape[0], 1, -(-shape[1] // cell), -(-shape[2] // cell))
        gone = torch.rand(coarse, generator=generator, device=device) < rate
        gone = F.interpolate(gone.float(), scale_factor=cell)[:, 0, : shape[1], : shape[2]] > 0.5
        mask = mask * ~gone
    if hand.random() < 0.3:  # alpha that fades at borders
        mask = mask * F.avg_pool2d(mask[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    return prior * (mask > 0)[:, None], mask


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    channels = x.shape[1]
    wide = kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    radius = len(kernel) // 2
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), wide, groups=channels)
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), wide.transpose(2, 3), groups=channels)
