"""One-to-all warps without a cache: source pictures with depth, seen from other cameras, and what of them is there.

Every source pixel is a small patch of surface. Patches go into a z-buffer at each target camera, each as large as the
distance to its neighbours on the same surface, so that magnified and slanted surfaces stay closed and true gaps stay
open. Colours are then read back from the source through the z-buffer, bilinearly: the look of a mesh, at the price of
a scatter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..worlds.rigid import chain, invert, rotate

SKY_DISTANCE = 1e4
"""Where pixels without depth are put, in scene units."""
SAME_SURFACE = 0.06
"""Relative step in depth up to which neighbours of the source lie on one surface, where no slope explains more."""
AGREES = 0.02
"""Relative difference in depth up to which a source pixel is what the z-buffer shows."""
SLIDE = 0.1
"""Relative depth by which the z-buffer may be off on a curved surface."""
LEVELS = 4
"""Resolutions of the z-buffer: patches of up to 2, 4, 8 and 16 pixels."""
TAPS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


@torch.no_grad()
def forward_warp(
    rgb: Tensor,  # (n, S, 3, H, W) in [0, 1]
    depth: Tensor,  # (n, S, H, W) planar z, inf for the sky
    keep: Tensor,  # (n, S, H, W) bool: pixels that take part
    source_K: Tensor,  # (n, S, 3, 3)
    source_c2w: Tensor,  # (n, S, 4, 4)
    K: Tensor,  # (n, T, 3, 3)
    c2w: Tensor,  # (n, T, 4, 4)
) -> tuple[Tensor, Tensor]:
    """The sources from the targets: (n, T, 3, H, W) of rgb's type, black where nothing is, and (n, T, H, W) bool."""
    height, width = depth.shape[-2:]
    clips, frames = K.shape[:2]
    depth = torch.where(depth.isfinite(), depth, SKY_DISTANCE).clamp(max=SKY_DISTANCE)
    w2c, source_w2c = invert(c2w), invert(source_c2w)
    zbuffer = torch.full((clips, frames, height, width), torch.inf, device=rgb.device)
    for s in range(rgb.shape[1]):
        found = _splat(depth[:, s], keep[:, s], source_K[:, s], source_c2w[:, s], K, w2c)
        zbuffer = torch.minimum(zbuffer, found)
    covered = zbuffer.isfinite()
    z = torch.where(covered, zbuffer, 1.0)
    rays = _rays(K, (height, width))
    total = torch.zeros(clips, frames, 3, height, width, device=rgb.device)
    weight = torch.zeros(clips, frames, height, width, device=rgb.device)
    for s in range(rgb.shape[1]):
        into = chain(source_w2c[:, s, None], c2w)  # target camera to source camera
        source = source_K[:, s]
        where = z
        for _ in range(2):  # slide along the target's ray onto the source's surface
            grid, _, _ = _project(rays, where, into, source)
            found = 1.0 / _read(1.0 / depth[:, s], grid, "bilinear")  # 1/z is linear on planes
            along = _depth_back(found, grid, into, source)
            where = torch.where((along / z - 1).abs() < SLIDE, along, where)
        grid, inside, seen = _project(rays, where, into, source)
        near = _read(depth[:, s], grid, "nearest")
        smooth = 1.0 / _read(1.0 / depth[:, s], grid, "bilinear")
        error = torch.minimum((near / seen - 1).abs(), (smooth / seen - 1).abs())
        kept = _read(keep[:, s].float(), grid, "nearest") > 0.5
        share = (inside & kept & covered & (error < AGREES)).float()
        pictures = rgb[:, s, None].float().expand(-1, frames, -1, -1, -1).flatten(0, 1)
        colour = F.grid_sample(pictures, grid.flatten(0, 1), padding_mode="border", align_corners=False)
        total += colour.unflatten(0, (clips, frames)) * share[:, :, None]
        weight += share
    there = weight > 0
    prior = total / weight.clamp_min(1e-6)[:, :, None]
    return (prior * there[:, :, None]).to(rgb.dtype), there


def unproject(depth: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
    """(n, H, W, 3) world points of (n, H, W) planar z."""
    local = _rays(K, (depth.shape[-2], depth.shape[-1])) * depth[..., None]
    return rotate(c2w[:, None, None, :3, :3], local) + c2w[:, None, None, :3, 3]


def _rays(K: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W, 3) rays of unit z through the pixel centres of (..., 3, 3) cameras."""
    height, width = size
    v, u = torch.meshgrid(
        torch.arange(height, device=K.device) + 0.5, torch.arange(width, device=K.device) + 0.5, indexing="ij"
    )
    x = (u - K[..., 0, 2, None, None]) / K[..., 0, 0, None, None]
    y = (v - K[..., 1, 2, None, None]) / K[..., 1, 1, None, None]
    return torch.stack([x, y, torch.ones_like(x)], -1)


def _joined(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each pixel lies on one surface with its right neighbour (n, H, W-1) and its lower one (n, H-1, W).

    In 1/z a plane is linear: a step is on the surface when it is small or when the step before or after is like it.
    """
    inverse = 1.0 / depth

    def along(values: Tensor) -> Tensor:  # (..., N) -> (..., N-1)
        step = values.diff(dim=-1)
        size = torch.minimum(values[..., 1:], values[..., :-1])
        before = F.pad(step, (1, 0), value=torch.inf)[..., :-1]
        after = F.pad(step, (0, 1), value=torch.inf)[..., 1:]
        bend = torch.minimum((step - before).abs(), (step - after).abs())
        return (step.abs() < SAME_SURFACE * size) | (bend < 0.2 * step.abs()) & (step.abs() < 0.5 * size)

    return along(inverse), along(inverse.mT).mT


def _splat(depth: Tensor, keep: Tensor, source_K: Tensor, source_c2w: Tensor, K: Tensor, w2c: Tensor) -> Tensor:
    """(n, T, H, W) z-buffers of one source (n, H, W) at all targets, inf where nothing lands."""
    (clips, frames), (height, width) = K.shape[:2], depth.shape[-2:]
    joined = _joined(depth)
    joined = (joined[0][:, None], joined[1][:, None])
    points = unproject(depth, source_K, source_c2w)
    local = rotate(w2c[:, :, None, None, :3, :3], points[:, None]) + w2c[:, :, None, None, :3, 3]
    z = local[..., 2]
    front = z > 0.02
    safe = z.clamp_min(0.02)
    focal = K[:, :, 0, 0, None, None]
    u = focal * local[..., 0] / safe + K[:, :, 0, 2, None, None]
    v = K[:, :, 1, 1, None, None] * local[..., 1] / safe + K[:, :, 1, 2, None, None]
    alone = (depth / source_K[:, 0, 0, None, None])[:, None] * focal / safe
    wide, tall = _extent(u, -1, joined, alone), _extent(v, -2, joined, alone)
    lean_u, lean_v = _lean(1.0 / safe, u, v, joined)
    largest = torch.maximum(wide, tall)
    # a margin: what lies just outside the frame may still reach in
    wanted = front & keep[:, None] & (u > -4) & (u < width + 4) & (v > -4) & (v < height + 4)
    image = torch.arange(clips * frames, device=depth.device).view(clips, frames, 1, 1).expand_as(u)
    buffer = torch.full((clips, frames, height, width), torch.inf, device=depth.device)
    for level in range(LEVELS):
        step = 1 << level
        rows, cols = -(-height // step), -(-width // step)
        chosen = (wanted & (largest > step)) if level else wanted
        index = chosen.nonzero(as_tuple=True)
        x, y, near, w, h, a, b = (
            value[index] * factor
            for value, factor in (
                (u, 1 / step), (v, 1 / step), (1.0 / safe, 1.0), (wide, 1 / step), (tall, 1 / step),
                (lean_u, step), (lean_v, step),
            )
        )  # fmt: skip
        half_w, half_h = 0.5 * w.clamp(1.0, 2.0) + 0.01, 0.5 * h.clamp(1.0, 2.0) + 0.01
        col0, row0 = x.floor(), y.floor()
        base = image[index] * (rows * cols)
        cell = torch.full((clips * frames * rows * cols,), torch.inf, device=depth.device)
        for i, j in TAPS:
            col, row = col0 + j, row0 + i
            hit = (
                ((col + 0.5 - x).abs() <= half_w) & ((row + 0.5 - y).abs() <= half_h)
                & (col >= 0) & (col < cols) & (row >= 0) & (row < rows)
            )  # fmt: skip
            # along the patch's own plane, on which 1/z is linear
            there = near + (a * (col + 0.5 - x) + b * (row + 0.5 - y)).clamp(-0.4 * near, 0.4 * near)
            at = base + row.clamp(0, rows - 1).long() * cols + col.clamp(0, cols - 1).long()
            cell.scatter_reduce_(0, at, torch.where(hit, 1.0 / there, torch.inf), "amin")
        grown = cell.view(clips, frames, rows, cols)
        if level:
            grown = grown.repeat_interleave(step, 2).repeat_interleave(step, 3)[..., :height, :width]
            # a coarse cell only closes what the finer ones left open
            grown = torch.where(buffer.isfinite(), torch.inf, grown)
        buffer = torch.minimum(buffer, grown)
    return buffer


def _neighbours(value: Tensor, dim: int, fill: float) -> tuple[Tensor, Tensor]:
    """Values between pixels along a dimension (-1 or -2), as each pixel's ahead and behind."""
    ahead, behind = ((0, 1), (1, 0)) if dim == -1 else ((0, 0, 0, 1), (0, 0, 1, 0))
    return F.pad(value, ahead, value=fill), F.pad(value, behind, value=fill)


def _extent(value: Tensor, own: int, joined: tuple[Tensor, Tensor], alone: Tensor) -> Tensor:
    """(n, T, H, W) how far one source pixel reaches along a target axis: the ways to its neighbours on the surface.

    The ways along rows and columns add up, as in the box around a tilted square. `own` is the source's dimension that
    the axis mostly follows (-1 for u, -2 for v): without a neighbour there, a pixel reaches as far as if it were
    `alone` and faced the source.
    """
    size = torch.zeros_like(value)
    for dim, linked in ((-1, joined[0]), (-2, joined[1])):
        farthest = torch.maximum(*_neighbours(torch.where(linked, value.diff(dim=dim).abs(), -1.0), dim, -1.0))
        size += torch.where(farthest >= 0, farthest, alone if dim == own else 0.0)
    return 1.02 * size


def _lean(inverse: Tensor, u: Tensor, v: Tensor, joined: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """How 1/z of each patch's plane changes a target pixel along u and along v, (n, T, H, W) each; 0 where unknown."""

    def steps(dim: int, linked: Tensor) -> list[Tensor]:
        on, off = _neighbours(linked.float(), dim, 0.0)
        return [
            torch.where(on > 0, ahead, torch.where(off > 0, behind, 0.0))
            for ahead, behind in (_neighbours(one.diff(dim=dim), dim, 0.0) for one in (u, v, inverse))
        ]

    across, down = steps(-1, joined[0]), steps(-2, joined[1])
    det = across[0] * down[1] - across[1] * down[0]
    flat = det.abs() < 1e-3
    det = torch.where(flat, 1.0, det)
    lean_u = (across[2] * down[1] - down[2] * across[1]) / det
    lean_v = (across[0] * down[2] - down[0] * across[2]) / det
    return torch.where(flat, 0.0, lean_u), torch.where(flat, 0.0, lean_v)


def _project(rays: Tensor, z: Tensor, into: Tensor, source_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where target pixels at depth z lie in a source: a grid (n, T, H, W, 2) to sample, whether inside, and their z."""
    height, width = z.shape[-2:]
    local = rotate(into[:, :, None, None, :3, :3], rays * z[..., None]) + into[:, :, None, None, :3, 3]
    depth = local[..., 2]
    safe = depth.clamp_min(1e-3)
    focal, center = source_K[:, (0, 1), (0, 1)], source_K[:, :2, 2]
    uv = local[..., :2] / safe[..., None] * focal[:, None, None, None] + center[:, None, None, None]
    size = torch.tensor([width, height], device=z.device)
    inside = (depth > 1e-3) & (uv >= 0).all(-1) & (uv <= size).all(-1)
    return (2 * uv / size - 1).clamp(-3, 3), inside, safe


def _depth_back(found: Tensor, grid: Tensor, into: Tensor, source_K: Tensor) -> Tensor:
    """(n, T, H, W) z in the target of the source's surface at the grid's places."""
    size = torch.tensor([grid.shape[-2], grid.shape[-3]], device=grid.device)
    focal, center = source_K[:, (0, 1), (0, 1)], source_K[:, :2, 2]
    flat = ((grid + 1) * size / 2 - center[:, None, None, None]) / focal[:, None, None, None]
    local = torch.cat([flat * found[..., None], found[..., None]], -1)
    back = invert(into)
    return (back[:, :, None, None, 2, :3] * local).sum(-1) + back[..., 2, 3, None, None]


def _read(field: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(n, T, H, W) of a source's (n, H, W) field at (n, T, H, W, 2)."""
    clips, frames = grid.shape[:2]
    fields = field[:, None, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    read = F.grid_sample(fields, grid.flatten(0, 1), mode=mode, padding_mode="border", align_corners=False)
    return read[:, 0].unflatten(0, (clips, frames))
