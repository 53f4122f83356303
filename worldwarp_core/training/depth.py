"""Trains the depth network on worlds whose depth is exact.

Loss: log depth up to a shift for each picture (mean absolute error about the median, which outliers do not move), the
same of its gradients at four sizes (edges stay where they are, planes flat), and the sky as a class of its own.
Pictures are flipped, recoloured and cropped at random: the network is for photographs, and worlds are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import WorldWarpError
from ..preview.depth import STRIDE, DepthNetwork, PreviewDepth
from .judge import contact_sheet
from .pool import ExamplePool, Examples, PoolSettings, Source, Views
from .trainer import Validation

FARTHEST = 500.0
"""Surfaces beyond this many times the picture's median depth are sky to the network."""
SIZES = 4
"""At which gradients are compared, each half the one before."""


class Batch(NamedTuple):
    """Pictures (B, 3, h, w) as a camera might have seen them, their log depth and where it holds, (B, h, w)."""

    pictures: Tensor
    log_depth: Tensor
    surface: Tensor


@dataclass(frozen=True)
class DepthTraining:
    """What is learned from.

    Attributes:
        pictures: in a batch.
        gradient, sky: weights beside the absolute error.
    """

    pictures: int = 48
    gradient: float = 0.5
    sky: float = 0.2

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise WorldWarpError("bad_settings", f"There is at least 1 picture in a batch; got {self.pictures}.")


class DepthTask:
    """A `Task` of the trainer."""

    name = "depth"
    sampler_steps: int | None = None

    def __init__(
        self,
        network: DepthNetwork,
        source: Source[Views],
        judged: Views,
        judged_photos: Tensor | None,
        pool: PoolSettings,
        settings: DepthTraining,
        first_seed: int = 0,
        stride: int | None = None,
    ) -> None:
        """`judged` views are of worlds kept out of training; `judged_photos` (N, 3, S, S) uint8 are only shown."""
        self.network, self.settings = network, settings
        self._source, self._judged, self._judged_photos = source, judged, judged_photos
        self._batch = pool.batch
        self._pool = ExamplePool(self._make, pool, first_seed, stride or pool.batch)

    def config(self) -> dict[str, Any]:
        return {}

    def clips_seen(self) -> int:
        return self._pool.next_seed

    def top_up(self, elapsed_s: float) -> None:
        self._pool.top_up(elapsed_s)

    def loss(self, batch: Batch, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pictures, log_depth, surface = batch
        made, sky = self.network(pictures)
        error = _aligned(made, log_depth, surface) - log_depth
        parts = {
            "depth": _mean(error.abs(), surface),
            "edges": _gradient_error(error, surface),
            "sky": F.binary_cross_entropy_with_logits(sky, (~surface).float()),
        }
        return parts["depth"] + self.settings.gradient * parts["edges"] + self.settings.sky * parts["sky"], parts

    @torch.no_grad()
    def validate(self) -> Validation:
        pictures, depth = self._judged.rgb.float().flatten(0, 1), self._judged.depth.float().flatten(0, 1)
        made = PreviewDepth(self.network).estimate(pictures.permute(0, 2, 3, 1))
        surface = _surface(depth)
        both = surface & (made > 0)
        log_made = -made.clamp_min(1e-6).log()
        log_truth = torch.where(surface, depth, 1.0).log()
        ratio = (_aligned(log_made, log_truth, both) - log_truth).exp()
        figures = {
            "depth_absrel": float(_mean((ratio - 1).abs(), both)),
            "depth_within_25": float(_mean((torch.maximum(ratio, 1 / ratio) < 1.25).float(), both)),
            "sky_accuracy": float(((made == 0) == ~surface).float().mean()),
        }
        truth = torch.where(surface, 1 / depth.clamp_min(1e-6), 0.0)
        shown = _spread(len(pictures))
        columns = [pictures[shown], _shown(truth[shown]), _shown(made[shown])]
        if self._judged_photos is not None:
            height, width = pictures.shape[-2:]
            chosen = _spread(len(self._judged_photos))[: len(shown)]
            photos = self._judged_photos[chosen, :, :height, :width].float() / 255
            if len(photos) == len(shown):
                columns += [photos, _shown(PreviewDepth(self.network).estimate(photos.permute(0, 2, 3, 1)))]
        return Validation(figures, contact_sheet(columns))

    def _make(self, first_seed: int) -> Examples:
        views = self._source.batch(self._batch, first_seed)
        depth = views.depth.float().flatten(0, 1)
        surface = _surface(depth)
        log_depth = torch.where(surface, depth, 1.0).log()
        return {
            "rgb": (views.rgb.flatten(0, 1) * 255).round().to(torch.uint8),
            "log_depth": log_depth.half(),
            "surface": surface,
        }

    def draw(self, generator: Generator) -> Batch:
        found = self._pool.draw(self.settings.pictures, generator)
        pictures = found["rgb"].float() / 255
        count = len(pictures)
        device = pictures.device

        def draw(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator, device=device)

        zoom = draw(0.6, 1.0)[:, 0, 0]
        flip = torch.where(draw(0, 1)[:, 0, 0] < 0.5, -1.0, 1.0)
        x, y = (draw(-1, 1)[:, 0, 0] * (1 - zoom) for _ in range(2))
        zero = torch.zeros_like(zoom)
        affine = torch.stack([torch.cat([flip * zoom, zero, x], 1), torch.cat([zero, zoom, y], 1)], 1)
        size = [max(round(side / STRIDE), 1) * STRIDE for side in pictures.shape[-2:]]
        grid = F.affine_grid(affine, [count, 3, *size], align_corners=False)
        pictures = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        maps = torch.stack([found["log_depth"].float(), found["surface"].float()], 1)
        log_depth, surface = F.grid_sample(maps, grid, mode="nearest", align_corners=False).unbind(1)

        grey = pictures.mean(1, keepdim=True)
        pictures = torch.lerp(grey, pictures, draw(0.3, 1.3))
        tint = 1 + 0.15 * torch.randn((count, 3, 1, 1), generator=generator, device=device)
        pictures = (pictures * tint * draw(0.6, 1.3)).clamp(1e-4, 1) ** draw(0.7, 1.4)
        noise = torch.randn(pictures.shape, generator=generator, device=device)
        return Batch((pictures + draw(0.0, 0.03) * noise).clamp(0, 1), log_depth, surface > 0.5)


def _spread(count: int) -> list[int]:
    """Eight of so many, or all: neighbours are views of one world, or parts of one photograph."""
    return list(range(0, count, max(count // 8, 1)))[:8]


def _surface(depth: Tensor) -> Tensor:
    """(N, H, W) bool: not sky."""
    finite = torch.isfinite(depth) & (depth > 0)
    middle = torch.stack([d[f].median() if f.any() else d.new_ones(()) for d, f in zip(depth, finite, strict=True)])
    return finite & (depth < FARTHEST * middle[:, None, None])


def _aligned(made: Tensor, truth: Tensor, surface: Tensor) -> Tensor:
    """(N, H, W) log depths shifted so that the median error of each picture is 0."""
    error = torch.where(surface, (made - truth).detach(), torch.nan)
    shift = error.flatten(1).nanmedian(1).values.nan_to_num()
    return made - shift[:, None, None]


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean where it counts, 0 where nothing does."""
    return (values * where).sum() / where.sum().clamp_min(1)


def _gradient_error(error: Tensor, surface: Tensor) -> Tensor:
    total = error.new_zeros(())
    for _ in range(SIZES):
        across = (error[..., 1:] - error[..., :-1]).abs()
        down = (error[..., 1:, :] - error[..., :-1, :]).abs()
        total = total + _mean(across, surface[..., 1:] & surface[..., :-1])
        total = total + _mean(down, surface[..., 1:, :] & surface[..., :-1, :])
        error, surface = error[..., ::2, ::2], surface[..., ::2, ::2]
    return total / SIZES


def _shown(disparity: Tensor) -> Tensor:
    """(N, 3, H, W) grey: near is bright."""
    nearest = torch.stack([d.flatten().kthvalue(max(int(0.98 * d.numel()), 1)).values for d in disparity])
    bright = disparity / nearest.clamp_min(1e-6)[:, None, None]
    return bright.clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
