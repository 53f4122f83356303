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
    outputs = [_warp_one(rgb[i], depth[i], keep[i], source_K[i], source_c2w[i], K[i], c2w[i]) for i in range(len(rgb))]
    return torch.stack([prior for prior, _ in outputs]), torch.stack([there for _, there in outputs])


def _warp_one(
    rgb: Tensor, depth: Tensor, keep: Tensor, source_K: Tensor, source_c2w: Tensor, K: Tensor, c2w: Tensor
) -> tuple[Tensor, Tensor]:
    sources, _, height, width = rgb.shape
    frames = len(K)
    depth = torch.where(depth.isfinite(), depth, SKY_DISTANCE).clamp(max=SKY_DISTANCE)
    points = unproject(depth, source_K, source_c2w)  # (S, H, W, 3)
    w2c = _inverse(c2w)
    zbuffer = torch.full((frames, height, width), torch.inf, device=rgb.device)
    for s in range(sources):
        joined = _joined(depth[s])
        zbuffer = torch.minimum(zbuffer, _splat(points[s], keep[s], joined, w2c, K, depth[s], source_K[s]))
    covered = zbuffer.isfinite()
    z = torch.where(covered, zbuffer, 1.0)
    total = torch.zeros(frames, 3, height, width, device=rgb.device)
    weight = torch.zeros(frames, height, width, device=rgb.device)
    source_w2c = _inverse(source_c2w)
    for s in range(sources):
        where = z
        for _ in range(2):  # slide along the target's ray onto the source's surface
            grid, there, _ = _into(where, K, c2w, source_w2c[s], source_K[s], (height, width))
            found = _sample(depth[s][None], grid, "bilinear")
            along = _depth_of(found, grid, source_K[s], source_c2w[s], w2c, (height, width))
            close = (along / z - 1).abs() < SLIDE
            where = torch.where(close & (along > 0), along, where)
        grid, there, seen_z = _into(where, K, c2w, source_w2c[s], source_K[s], (height, width))
        near = _sample(depth[s][None], grid, "nearest")
        smooth = _sample(depth[s][None], grid, "bilinear")
        error = torch.minimum((near / seen_z - 1).abs(), (smooth / seen_z - 1).abs())
        kept = _sample(keep[s][None].float(), grid, "nearest") > 0.5
        agrees = there & kept & covered & (error < AGREES)
        share = agrees.float() * (1.0 if s == 0 else 0.5)
        colour = F.grid_sample(
            rgb[s][None].float().expand(frames, -1, -1, -1), grid, mode="bilinear", padding_mode="border",
            align_corners=False,
        )  # fmt: skip
        total += colour * share[:, None]
        weight += share
    there = weight > 0
    prior = total / weight.clamp_min(1e-6)[:, None]
    return (prior * there[:, None]).to(rgb.dtype), there


def unproject(depth: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
    """(S, H, W, 3) world points of (S, H, W) planar z."""
    height, width = depth.shape[-2:]
    v, u = torch.meshgrid(
        torch.arange(height, device=depth.device) + 0.5, torch.arange(width, device=depth.device) + 0.5, indexing="ij"
    )
    x = (u - K[:, 0, 2, None, None]) / K[:, 0, 0, None, None] * depth
    y = (v - K[:, 1, 2, None, None]) / K[:, 1, 1, None, None] * depth
    local = torch.stack([x, y, depth], -1)
    return torch.einsum("sij,shwj->shwi", c2w[:, :3, :3], local) + c2w[:, None, None, :3, 3]


def _joined(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each pixel lies on one surface with its right neighbour (H, W-1) and its lower one (H-1, W).

    In 1/z a plane is linear: a step is on the surface when it is small or when the step before or after is like it.
    """
    inverse = 1.0 / depth

    def along(values: Tensor) -> Tensor:  # (A, N) -> (A, N-1)
        step = values.diff(dim=1)
        size = torch.minimum(values[:, 1:], values[:, :-1])
        before = F.pad(step, (1, 0), value=torch.inf)[:, :-1]
        after = F.pad(step, (0, 1), value=torch.inf)[:, 1:]
        bend = torch.minimum((step - before).abs(), (step - after).abs())
        return (step.abs() < SAME_SURFACE * size) | (bend < 0.2 * step.abs()) & (step.abs() < 0.5 * size)

    return along(inverse), along(inverse.T).T


def _splat(
    points: Tensor, keep: Tensor, joined: tuple[Tensor, Tensor], w2c: Tensor, K: Tensor, depth: Tensor, source_K: Tensor
) -> Tensor:
    """(T, H, W) z-buffers, inf where nothing lands."""
    frames, (height, width) = len(K), depth.shape
    local = torch.einsum("tij,hwj->thwi", w2c[:, :3, :3], points) + w2c[:, None, None, :3, 3]
    z = local[..., 2]
    front = z > 0.02
    safe = z.clamp_min(0.02)
    u = K[:, 0, 0, None, None] * local[..., 0] / safe + K[:, 0, 2, None, None]
    v = K[:, 1, 1, None, None] * local[..., 1] / safe + K[:, 1, 2, None, None]
    alone = (depth / source_K[0, 0]) * K[:, 0, 0, None, None] / safe
    wide, tall = _extent(u, joined, alone), _extent(v, joined, alone)
    lean_u, lean_v = _lean(1.0 / safe, u, v, joined)
    largest = torch.maximum(wide, tall)
    # a margin: what lies just outside the frame may still reach in
    near_frame = front & keep & (u > -4) & (u < width + 4) & (v > -4) & (v < height + 4)
    buffer = torch.full((frames, height, width), torch.inf, device=points.device)
    for level in range(LEVELS):
        step = 1 << level
        rows, cols = -(-height // step), -(-width // step)
        wanted = near_frame & (largest > (2 << (level - 1))) if level else near_frame
        cell = torch.full((frames * rows * cols,), torch.inf, device=points.device)
        if level:
            index = wanted.nonzero(as_tuple=True)
            frame = index[0]
            x, y, near = u[index] / step, v[index] / step, 1.0 / z[index]
            w, h = wide[index] / step, tall[index] / step
            a, b = lean_u[index] * step, lean_v[index] * step
        else:
            frame = torch.arange(frames, device=points.device)[:, None, None].expand_as(u).flatten()
            x, y, w, h = u.flatten(), v.flatten(), wide.flatten(), tall.flatten()
            a, b = lean_u.flatten(), lean_v.flatten()
            near = torch.where(wanted, 1.0 / safe, 0.0).flatten()
        half_w, half_h = 0.5 * w.clamp(1.0, 2.0) + 0.01, 0.5 * h.clamp(1.0, 2.0) + 0.01
        col0, row0 = x.floor(), y.floor()
        base = frame * (rows * cols)
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
        grown = cell.view(frames, rows, cols)
        if level:
            grown = grown.repeat_interleave(step, 1).repeat_interleave(step, 2)[:, :height, :width]
            # a coarse cell only closes what the finer ones left open
            grown = torch.where(buffer.isfinite(), torch.inf, grown)
        buffer = torch.minimum(buffer, grown)
    return buffer


def _lean(inverse: Tensor, u: Tensor, v: Tensor, joined: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """How 1/z of each patch's plane changes a target pixel along u and along v, (T, H, W) each; 0 where unknown."""

    def steps(dim: int, linked: Tensor) -> list[Tensor]:
        ahead, behind = ((0, 1), (1, 0)) if dim == 2 else ((0, 0, 0, 1), (0, 0, 1, 0))
        on, off = F.pad(linked, ahead), F.pad(linked, behind)
        return [
            torch.where(on, F.pad(one.diff(dim=dim), ahead), torch.where(off, F.pad(one.diff(dim=dim), behind), 0.0))
            for one in (u, v, inverse)
        ]

    across, down = steps(2, joined[0]), steps(1, joined[1])
    det = across[0] * down[1] - across[1] * down[0]
    flat = det.abs() < 1e-3
    det = torch.where(flat, 1.0, det)
    lean_u = (across[2] * down[1] - down[2] * across[1]) / det
    lean_v = (across[0] * down[2] - down[0] * across[2]) / det
    return torch.where(flat, 0.0, lean_u), torch.where(flat, 0.0, lean_v)


def _extent(value: Tensor, joined: tuple[Tensor, Tensor], alone: Tensor) -> Tensor:
    """(T, H, W) how far one source pixel reaches along a target axis: the distance to its neighbours on the surface."""
    size = torch.zeros_like(value)
    for dim, linked in ((2, joined[0]), (1, joined[1])):
        step = torch.where(linked, value.diff(dim=dim).abs(), -1.0)
        pad = (1, 0) if dim == 2 else (0, 0, 1, 0)
        other = (0, 1) if dim == 2 else (0, 0, 0, 1)
        farthest = torch.maximum(F.pad(step, pad, value=-1.0), F.pad(step, other, value=-1.0))
        size = torch.maximum(size, torch.where(farthest >= 0, farthest, alone))
    return size * 1.05


def _into(
    z: Tensor, K: Tensor, c2w: Tensor, source_w2c: Tensor, source_K: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where target pixels at depth z lie in a source: a grid (T, H, W, 2) to sample, whether inside, and their z."""
    height, width = size
    local = torch.einsum("ij,thwj->thwi", source_w2c[:3, :3], unproject(z, K, c2w)) + source_w2c[:3, 3]
    depth = local[..., 2]
    safe = depth.clamp_min(1e-3)
    u = source_K[0, 0] * local[..., 0] / safe + source_K[0, 2]
    v = source_K[1, 1] * local[..., 1] / safe + source_K[1, 2]
    inside = (depth > 1e-3) & (u >= 0) & (v >= 0) & (u <= width) & (v <= height)
    grid = torch.stack([2 * u / width - 1, 2 * v / height - 1], -1).clamp(-3, 3)
    return grid, inside, safe


def _depth_of(
    found: Tensor, grid: Tensor, source_K: Tensor, source_c2w: Tensor, w2c: Tensor, size: tuple[int, int]
) -> Tensor:
    """(T, H, W) z in the target of the source's surface at the grid's places."""
    height, width = size
    x = ((grid[..., 0] + 1) * width / 2 - source_K[0, 2]) / source_K[0, 0] * found
    y = ((grid[..., 1] + 1) * height / 2 - source_K[1, 2]) / source_K[1, 1] * found
    world = torch.einsum("ij,thwj->thwi", source_c2w[:3, :3], torch.stack([x, y, found], -1)) + source_c2w[:3, 3]
    return torch.einsum("tj,thwj->thw", w2c[:, 2, :3], world) + w2c[:, 2, 3, None, None]


def _sample(field: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(T, H, W) of a (1, H, W) field; depth is read as 1/z where bilinear, which is exact on planes."""
    frames = len(grid)
    values = 1.0 / field if mode == "bilinear" else field
    read = F.grid_sample(
        values[:, None].expand(frames, -1, -1, -1), grid, mode=mode, padding_mode="border", align_corners=False
    )[:, 0]
    return 1.0 / read if mode == "bilinear" else read


def _inverse(pose: Tensor) -> Tensor:
    """Inverse of rigid (..., 4, 4) poses."""
    turned = pose[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(pose)
    inverse[..., :3, :3] = turned
    inverse[..., :3, 3] = -(turned @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse
