"""New Gaussians from an image with depth: flat discs that lie on the surface, many where there is detail.

The public implementation starts round Gaussians from nearest-neighbour distances and leaves the shapes to the
optimiser. One view cannot tell the optimiser how a surface runs in depth, but the depth map does: each disc takes its
tangents from the map's own gradient, so the first render is already right and stays closed when the camera moves.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .gaussians import SH_C0, Gaussians

OPACITY = 0.95
DISC_SIGMA = 0.55
"""Standard deviation of a disc in units of its pixel block: neighbours close to 93% alpha where four of them meet."""
DISC_THICKNESS = 0.1
"""Of the disc's shorter radius: thin enough not to show edge-on, thick enough to stay well conditioned."""
MAX_SLOPE = 0.1
"""A disc's depth may change by at most this share across its block. Steeper is a depth edge, sharp or smeared, and
a disc along it is a wire across the picture once it is seen from the side. Grazing ground loses nothing by it."""
EDGE_RATIO = 1.05
"""Neighbouring pixels whose depths differ by more than this do not share a disc."""
BLOCK = 4
"""Largest block of pixels that one disc stands for; blocks split in four down to single pixels."""


@dataclass(frozen=True)
class SeedView:
    """One image to seed from, in cache units.

    Attributes:
        rgb: (H, W, 3) in [0, 1].
        depth: (H, W) planar z; inf is sky.
        wanted: (H, W) bool, where Gaussians are missing.
        w2c: (4, 4), K: (3, 3) of the view.
    """

    rgb: Tensor
    depth: Tensor
    wanted: Tensor
    w2c: Tensor
    K: Tensor


def seed_gaussians(view: SeedView, budget: int, sky_depth: float, sh_degree: int) -> tuple[Gaussians, Tensor]:
    """Returns at most about `budget` Gaussians for the wanted pixels, and (N,) bool that tells the sky's.

    Sky pixels become discs at `sky_depth` that face the camera.
    """
    sky = ~torch.isfinite(view.depth)
    disparity = torch.where(sky, torch.full_like(view.depth, 1.0 / sky_depth), 1.0 / view.depth)
    rows, cols, size = _choose_blocks(view.rgb, disparity, view.wanted, budget)

    # The disc's centre is its block's; a block that lacks a wanted pixel there was split first.
    u, v = cols + size / 2, rows + size / 2
    row, col = (rows + (size - 1) // 2).long(), (cols + (size - 1) // 2).long()
    colour = _block_mean(view.rgb, view.wanted, rows, cols, size)
    slope_u, slope_v = _surface_slopes(disparity)
    at = disparity[row, col]
    q_u, q_v = slope_u[row, col], slope_v[row, col]
    limit = MAX_SLOPE * at / size
    q_u, q_v = q_u.clamp(-limit, limit), q_v.clamp(-limit, limit)
    q = at + q_u * (u - col - 0.5) + q_v * (v - row - 0.5)

    # P(u, v) = ray(u, v) / q(u, v): its derivatives are the surface's tangents for one pixel step.
    K_inv = torch.linalg.inv(view.K)
    ray = torch.stack([u, v, torch.ones_like(u)], -1) @ K_inv.T
    tangent_u = K_inv[:, 0] / q[:, None] - ray * (q_u / q**2)[:, None]
    tangent_v = K_inv[:, 1] / q[:, None] - ray * (q_v / q**2)[:, None]
    rotation, lengths = _disc_frame(tangent_u, tangent_v)
    radii = lengths * (DISC_SIGMA * size)[:, None]
    scales = torch.cat([radii, DISC_THICKNESS * radii[:, 1:]], 1)

    c2w = torch.linalg.inv(view.w2c)
    count = len(rows)
    gaussians = Gaussians(
        means=(ray / q[:, None]) @ c2w[:3, :3].T + c2w[:3, 3],
        quats=_quaternions(c2w[:3, :3] @ rotation),
        scales=scales.clamp_min(1e-9).log(),
        opacities=torch.full((count,), OPACITY, dtype=colour.dtype, device=colour.device).logit(),
        sh0=((colour - 0.5) / SH_C0)[:, None],
        shN=torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3, dtype=colour.dtype, device=colour.device),
    )
    return gaussians, sky[row, col]


def seed_points(view: SeedView, budget: int, sky_depth: float, sh_degree: int) -> tuple[Gaussians, Tensor]:
    """As `seed_gaussians`, but a plain point cloud: round points as large as the pixels that they stand for.

    At most about `budget` of them, evenly spread over the wanted pixels; they know nothing of surfaces.
    """
    rows, cols = torch.nonzero(view.wanted, as_tuple=True)
    every = max(-(-len(rows) // max(budget, 1)), 1)
    rows, cols = rows[::every], cols[::every]
    sky = ~torch.isfinite(view.depth)
    depth = torch.where(sky, torch.full_like(view.depth, sky_depth), view.depth)[rows, cols]
    pixels = torch.stack([cols + 0.5, rows + 0.5, torch.ones_like(rows)], -1).to(depth.dtype)
    c2w = torch.linalg.inv(view.w2c)
    camera = (pixels @ torch.linalg.inv(view.K).T) * depth[:, None]
    radius = DISC_SIGMA * every**0.5 * depth / (view.K[0, 0] * view.K[1, 1]).sqrt()
    upright = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=depth.dtype, device=depth.device)
    colour = view.rgb[rows, cols]
    gaussians = Gaussians(
        means=camera @ c2w[:3, :3].T + c2w[:3, 3],
        quats=upright.repeat(len(rows), 1),
        scales=radius.clamp_min(1e-9).log()[:, None].repeat(1, 3),
        opacities=torch.full_like(depth, OPACITY).logit(),
        sh0=((colour - 0.5) / SH_C0)[:, None],
        shN=colour.new_zeros(len(rows), (sh_degree + 1) ** 2 - 1, 3),
    )
    return gaussians, sky[rows, cols]


@dataclass(frozen=True)
class _Level:
    """The image in square blocks of `size` pixels."""

    size: int
    mean: Tensor  # (3, h, w) colour
    wanted: Tensor  # (h, w) bool, some of the block is wanted
    mixed: Tensor  # (h, w) bool, the block straddles a depth edge or the border of what is wanted


def _choose_blocks(rgb: Tensor, disparity: Tensor, wanted: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """A quadtree cut: (N,) rows, columns (of the corner) and sizes of square blocks that tile the wanted pixels.

    Every block starts at `BLOCK` pixels. Splits are ranked by the squared colour error that they remove (mixed blocks
    come first) and made until the budget is spent.
    """
    height, width = wanted.shape
    levels = _levels(rgb, disparity, wanted)
    gains = []
    ceiling = torch.full_like(levels[0].mean[0], torch.inf)
    for level, child in itertools.pairwise(levels):
        spread = child.mean - _double(level.mean)
        gain = F.avg_pool2d(spread.square().sum(0)[None], 2)[0] * level.size**2
        gain = torch.minimum(torch.where(level.mixed, 1e6 + gain, gain), ceiling)  # never before its parent splits
        gains.append(gain)
        ceiling = _double(gain)

    candidates = torch.cat([gain[level.wanted] for gain, level in zip(gains, levels[:-1], strict=True)])
    splits = max((budget - int(levels[0].wanted.sum())) // 3, 0)  # each adds three blocks
    threshold = torch.inf
    if splits:
        threshold = float(candidates.topk(splits).values[-1]) if splits < len(candidates) else 0.0

    blocks = []
    alive = levels[0].wanted
    for level, gain in zip(levels[:-1], gains, strict=True):
        split = alive & (gain > threshold)
        blocks.append((torch.nonzero(alive & ~split), level.size))
        alive = _double(split)
        alive &= levels[len(blocks)].wanted
    blocks.append((torch.nonzero(alive), levels[-1].size))
    corners = torch.cat([corner * size for corner, size in blocks])
    sizes = torch.cat([torch.full_like(corner[:, 0], size) for corner, size in blocks])
    inside = ((corners + (sizes[:, None] - 1) // 2) < torch.tensor([height, width], device=corners.device)).all(1)
    rows, cols = corners[inside].to(rgb.dtype).unbind(1)
    return rows, cols, sizes[inside].to(rgb.dtype)


def _levels(rgb: Tensor, disparity: Tensor, wanted: Tensor) -> list[_Level]:
    """From blocks of `BLOCK` pixels down to single ones."""
    height, width = wanted.shape
    pad = (0, -width % BLOCK, 0, -height % BLOCK)
    share = F.pad(wanted, pad).to(rgb.dtype)[None]
    mean = F.pad(rgb.permute(2, 0, 1)[None], pad, mode="replicate")[0]
    low = high = F.pad(disparity[None, None], pad, mode="replicate")[0]
    levels: list[_Level] = []
    size = 1
    while True:
        edge = high > EDGE_RATIO ** max(size // 2, 1) * low
        levels.insert(0, _Level(size, mean, share[0] > 0, ((share < 1) | edge)[0]))
        if size == BLOCK:
            return levels
        mean, share = F.avg_pool2d(mean[None], 2)[0], F.avg_pool2d(share, 2)
        low, high, size = -F.max_pool2d(-low, 2), F.max_pool2d(high, 2), size * 2


def _double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -2).repeat_interleave(2, -1)


def _block_mean(rgb: Tensor, wanted: Tensor, rows: Tensor, cols: Tensor, size: Tensor) -> Tensor:
    """(N, 3) mean colour of each block's wanted pixels."""
    height, width = wanted.shape
    weight = wanted.to(rgb.dtype)[..., None]
    summed = F.pad(torch.cat([rgb * weight, weight], -1).double().cumsum(0).cumsum(1).permute(2, 0, 1), (1, 0, 1, 0))
    top, left = rows.long(), cols.long()
    bottom, right = (rows + size).long().clamp(max=height), (cols + size).long().clamp(max=width)
    total = summed[:, bottom, right] - summed[:, top, right] - summed[:, bottom, left] + summed[:, top, left]
    return (total[:3] / total[3].clamp_min(1e-6)).T.to(rgb.dtype)


def _surface_slopes(disparity: Tensor) -> tuple[Tensor, Tensor]:
    """(H, W) disparity change per pixel along u and v: the smaller of the two one-sided differences, so that a slope
    never crosses a depth edge that the pixel only touches."""

    def smaller(x: Tensor) -> Tensor:  # along the last axis
        step = x[..., 1:] - x[..., :-1]
        before, after = F.pad(step, (1, 0)), F.pad(step, (0, 1))
        before[..., 0], after[..., -1] = step[..., 0], step[..., -1]
        return torch.where(before.abs() < after.abs(), before, after)

    if min(disparity.shape) < 2:
        return torch.zeros_like(disparity), torch.zeros_like(disparity)
    return smaller(disparity), smaller(disparity.T).T


def _disc_frame(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Axes of ellipses a cos t + b sin t: (N, 3, 3) rotations (axes as columns) and (N, 2) lengths, longer first."""
    aa, bb, ab = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
    t = 0.5 * torch.atan2(2 * ab, aa - bb)
    major = a * t.cos()[:, None] + b * t.sin()[:, None]
    minor = b * t.cos()[:, None] - a * t.sin()[:, None]
    lengths = torch.stack([major.norm(dim=-1), minor.norm(dim=-1)], -1)
    x, y = F.normalize(major, dim=-1), F.normalize(minor, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1), lengths


def _quaternions(rotation: Tensor) -> Tensor:
    """(N, 3, 3) -> (N, 4) wxyz, by the largest of the four components (Shepperd)."""
    m = rotation
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    squares = torch.stack([1 + trace, *(1 + 2 * m[:, i, i] - trace for i in range(3))], -1).clamp_min(0)
    skew = torch.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], -1)
    sym = m + m.mT
    candidates = torch.stack(
        [
            torch.stack([squares[:, 0], skew[:, 0], skew[:, 1], skew[:, 2]], -1),
            torch.stack([skew[:, 0], squares[:, 1], sym[:, 0, 1], sym[:, 0, 2]], -1),
            torch.stack([skew[:, 1], sym[:, 0, 1], squares[:, 2], sym[:, 1, 2]], -1),
            torch.stack([skew[:, 2], sym[:, 0, 2], sym[:, 1, 2], squares[:, 3]], -1),
        ],
        1,
    )
    best = squares.argmax(-1)
    return F.normalize(candidates[torch.arange(len(m), device=m.device), best], dim=-1)
