"""The questions of `trace`, the march over terrain and the reading of textures, as Triton kernels.

One thread a ray. It walks through its world's primitives, which lie together at the front of their shape's stretch of
the table, so that a world costs what it holds. The formulas are those of `trace`, `render` and `textures`, which
tests compare with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import CAPACITY

BLOCK = 256
ROW = tl.constexpr(31)
NEAR = tl.constexpr(1e-3)
BOX = tl.constexpr(0)
PIERCED = tl.constexpr(CAPACITY["box"])
DRUM = tl.constexpr(CAPACITY["box"] + CAPACITY["pierced"])
BALL = tl.constexpr(CAPACITY["box"] + CAPACITY["pierced"] + CAPACITY["cylinder"])


def first_hit(origin: Tensor, direction: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """As `trace.first_hit`."""
    _check(origin, direction)
    groups, rays, _ = direction.shape
    time = torch.empty(groups, rays, device=direction.device)
    which = torch.empty(groups, rays, dtype=torch.int64, device=direction.device)
    grid = (triton.cdiv(rays, BLOCK), groups)
    _trace[grid](
        origin.contiguous(), direction.contiguous(), table.contiguous(), _counts(table), time, which, rays,
        table.shape[1], BLOCK,
    )  # fmt: skip
    return time, which


def distance(points: Tensor, table: Tensor) -> Tensor:
    """As `trace.distance`."""
    _check(points, table)
    groups, count, _ = points.shape
    away = torch.empty(groups, count, device=points.device)
    grid = (triton.cdiv(count, BLOCK), groups)
    _distance[grid](points.contiguous(), table.contiguous(), _counts(table), away, count, table.shape[1], BLOCK)
    return away


def march(
    heights: Tensor, which: Tensor, hilly: Tensor, origin: Tensor, direction: Tensor, extent: float, first: float,
    growth: float, steps: int, halvings: int,
) -> Tensor:  # fmt: skip
    """(G, R) times at which rays meet the terrain (n, 1, N, N) of their group's world, inf for none."""
    _check(origin, direction)
    groups, rays, _ = direction.shape
    time = torch.empty(groups, rays, device=direction.device)
    grid = (triton.cdiv(rays, BLOCK), groups)
    _march[grid](
        heights, which, hilly.to(torch.int32), origin.contiguous(), direction.contiguous(), time, rays,
        heights.shape[-1], extent, first, growth, steps, halvings, BLOCK,
    )  # fmt: skip
    return time


def sample(texels: Tensor, size: int, picture: Tensor, uv: Tensor, level: Tensor) -> Tensor:
    """As `TextureBank.sample`, of a bank's (N, 4) uint8 texels."""
    _check(uv, level)
    count = level.numel()
    colours = torch.empty(*level.shape, 3, device=uv.device)
    _sample[(triton.cdiv(count, BLOCK),)](
        texels.view(torch.int32), picture.contiguous(), uv.contiguous(), level.contiguous(), colours, count, size,
        size.bit_length() - 1, BLOCK,
    )  # fmt: skip
    return colours


def _check(*values: Tensor) -> None:
    for value in values:
        assert value.dtype == torch.float32, value.dtype


def _counts(table: Tensor) -> Tensor:
    """(G, 4) int32: how many primitives of each shape are there."""
    there = (table[..., 2] > -9e4).split(list(CAPACITY.values()), dim=1)
    return torch.stack([one.sum(1, dtype=torch.int32) for one in there], 1).contiguous()


@triton.jit
def _turned(row, x, y, z):  # type: ignore[no-untyped-def]
    return (
        x * tl.load(row + 3) + y * tl.load(row + 4) + z * tl.load(row + 5),
        x * tl.load(row + 6) + y * tl.load(row + 7) + z * tl.load(row + 8),
        x * tl.load(row + 9) + y * tl.load(row + 10) + z * tl.load(row + 11),
    )


@triton.jit
def _local(row, x, y, z):  # type: ignore[no-untyped-def]
    return _turned(row, x - tl.load(row), y - tl.load(row + 1), z - tl.load(row + 2))


@triton.jit
def _slab(p, q, h):  # type: ignore[no-untyped-def]
    inverse = 1.0 / tl.where(tl.abs(q) < 1e-9, 1e-9, q)
    near = (-h - p) * inverse
    far = (h - p) * inverse
    return tl.minimum(near, far), tl.maximum(near, far)


@triton.jit
def _interval(px, py, pz, qx, qy, qz, hx, hy, hz):  # type: ignore[no-untyped-def]
    ax, bx = _slab(px, qx, hx)
    ay, by = _slab(py, qy, hy)
    az, bz = _slab(pz, qz, hz)
    return tl.maximum(tl.maximum(ax, ay), az), tl.minimum(tl.minimum(bx, by), bz)


@triton.jit
def _trace(origin, direction, table, counts, time, which, rays, primitives, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(1)
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = ray < rays
    at = (group.to(tl.int64) * rays + ray) * 3
    ox = tl.load(origin + at, mask=real, other=0.0)
    oy = tl.load(origin + at + 1, mask=real, other=0.0)
    oz = tl.load(origin + at + 2, mask=real, other=0.0)
    dx = tl.load(direction + at, mask=real, other=1.0)
    dy = tl.load(direction + at + 1, mask=real, other=1.0)
    dz = tl.load(direction + at + 2, mask=real, other=1.0)
    rows = table + group * primitives * ROW
    best = tl.full((BLOCK,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK,), tl.int32)
    for k in range(tl.load(counts + group * 4)):
        row = rows + (BOX + k) * ROW
        px, py, pz = _local(row, ox, oy, oz)
        qx, qy, qz = _turned(row, dx, dy, dz)
        enter, leave = _interval(px, py, pz, qx, qy, qz, tl.load(row + 12), tl.load(row + 13), tl.load(row + 14))
        closer = (enter <= leave) & (enter > NEAR) & (enter < best)
        best = tl.where(closer, enter, best)
        index = tl.where(closer, BOX + k, index)
    for k in range(tl.load(counts + group * 4 + 1)):
        row = rows + (PIERCED + k) * ROW
        px, py, pz = _local(row, ox, oy, oz)
        qx, qy, qz = _turned(row, dx, dy, dz)
        enter, leave = _interval(px, py, pz, qx, qy, qz, tl.load(row + 12), tl.load(row + 13), tl.load(row + 14))
        radius = tl.load(row + 15)
        bottom = tl.load(row + 16)
        top = tl.load(row + 17)
        arched = tl.load(row + 18)  # 1 or 0
        lx, hx = _slab(px, qx, radius)
        lz, hz = _slab(pz - (top + bottom) / 2, qz, (top - bottom) / 2)
        low = tl.maximum(lx, lz)
        high = tl.minimum(hx, hz)
        a = tl.maximum(qx * qx + qz * qz, 1e-12)
        rz = pz - top
        h = px * qx + rz * qz
        room = h * h - a * (px * px + rz * rz - radius * radius)
        root = tl.sqrt(tl.maximum(room, 0.0))
        disc = room * arched > 0
        rect = low <= high
        first = (-h - root) / a
        last = (-h + root) / a
        begin = tl.where(disc & rect, tl.minimum(low, first), tl.where(disc, first, low))
        end = tl.where(disc & rect, tl.maximum(high, last), tl.where(disc, last, high))
        start = tl.maximum(enter, NEAR)
        through = (disc | rect) & (begin <= start) & (end > start)
        found = tl.where(through, end, enter)
        hit = (enter <= leave) & (found > NEAR) & (found < leave) & ((enter > NEAR) | through)
        closer = hit & (found < best)
        best = tl.where(closer, found, best)
        index = tl.where(closer, PIERCED + k, index)
    for k in range(tl.load(counts + group * 4 + 2)):
        row = rows + (DRUM + k) * ROW
        px, py, pz = _local(row, ox, oy, oz)
        qx, qy, qz = _turned(row, dx, dy, dz)
        radius = tl.load(row + 12)
        a = tl.maximum(qx * qx + qy * qy, 1e-12)
        h = px * qx + py * qy
        room = h * h - a * (px * px + py * py - radius * radius)
        root = tl.sqrt(tl.maximum(room, 0.0))
        near, far = _slab(pz, qz, tl.load(row + 14))
        enter = tl.maximum((-h - root) / a, near)
        leave = tl.minimum((-h + root) / a, far)
        closer = (room > 0) & (enter <= leave) & (enter > NEAR) & (enter < best)
        best = tl.where(closer, enter, best)
        index = tl.where(closer, DRUM + k, index)
    for k in range(tl.load(counts + group * 4 + 3)):
        row = rows + (BALL + k) * ROW
        px, py, pz = _local(row, ox, oy, oz)
        qx, qy, qz = _turned(row, dx, dy, dz)
        hx = 1.0 / tl.load(row + 12)
        hy = 1.0 / tl.load(row + 13)
        hz = 1.0 / tl.load(row + 14)
        px, py, pz, qx, qy, qz = px * hx, py * hy, pz * hz, qx * hx, qy * hy, qz * hz
        a = qx * qx + qy * qy + qz * qz
        along = (px * qx + py * qy + pz * qz) / a
        cx, cy, cz = px - along * qx, py - along * qy, pz - along * qz
        room = 1 - (cx * cx + cy * cy + cz * cz)
        enter = -along - tl.sqrt(tl.maximum(room, 0.0) / a)
        closer = (room > 0) & (enter > NEAR) & (enter < best)
        best = tl.where(closer, enter, best)
        index = tl.where(closer, BALL + k, index)
    out = group.to(tl.int64) * rays + ray
    tl.store(time + out, best, mask=real)
    tl.store(which + out, index.to(tl.int64), mask=real)


@triton.jit
def _outside(x, y, z):  # type: ignore[no-untyped-def]
    """Distance to a box from how far a point is beyond each of its faces."""
    u, v, w = tl.maximum(x, 0.0), tl.maximum(y, 0.0), tl.maximum(z, 0.0)
    return tl.sqrt(u * u + v * v + w * w) + tl.minimum(tl.maximum(x, tl.maximum(y, z)), 0.0)


@triton.jit
def _distance(points, table, counts, away, count, primitives, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(1)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = point < count
    at = (group.to(tl.int64) * count + point) * 3
    x = tl.load(points + at, mask=real, other=0.0)
    y = tl.load(points + at + 1, mask=real, other=0.0)
    z = tl.load(points + at + 2, mask=real, other=0.0)
    rows = table + group * primitives * ROW
    best = tl.full((BLOCK,), 1e5, tl.float32)
    for k in range(tl.load(counts + group * 4)):
        row = rows + (BOX + k) * ROW
        px, py, pz = _local(row, x, y, z)
        far = _outside(tl.abs(px) - tl.load(row + 12), tl.abs(py) - tl.load(row + 13), tl.abs(pz) - tl.load(row + 14))
        best = tl.minimum(best, far)
    for k in range(tl.load(counts + group * 4 + 1)):
        row = rows + (PIERCED + k) * ROW
        px, py, pz = _local(row, x, y, z)
        solid = _outside(tl.abs(px) - tl.load(row + 12), tl.abs(py) - tl.load(row + 13), tl.abs(pz) - tl.load(row + 14))
        radius = tl.load(row + 15)
        top = tl.load(row + 17)
        hole = tl.maximum(tl.abs(px) - radius, tl.maximum(tl.load(row + 16) - pz, pz - top))
        disc = tl.sqrt(px * px + (pz - top) * (pz - top)) - radius
        arched = tl.load(row + 18)  # 1 or 0
        hole = arched * tl.minimum(hole, disc) + (1 - arched) * hole
        best = tl.minimum(best, tl.maximum(solid, -hole))
    for k in range(tl.load(counts + group * 4 + 2)):
        row = rows + (DRUM + k) * ROW
        px, py, pz = _local(row, x, y, z)
        out = tl.sqrt(px * px + py * py) - tl.load(row + 12)
        up = tl.abs(pz) - tl.load(row + 14)
        u, v = tl.maximum(out, 0.0), tl.maximum(up, 0.0)
        best = tl.minimum(best, tl.sqrt(u * u + v * v) + tl.minimum(tl.maximum(out, up), 0.0))
    for k in range(tl.load(counts + group * 4 + 3)):
        row = rows + (BALL + k) * ROW
        px, py, pz = _local(row, x, y, z)
        hx, hy, hz = tl.load(row + 12), tl.load(row + 13), tl.load(row + 14)
        px, py, pz = px / hx, py / hy, pz / hz
        best = tl.minimum(best, (tl.sqrt(px * px + py * py + pz * pz) - 1) * tl.minimum(hx, tl.minimum(hy, hz)))
    tl.store(away + group.to(tl.int64) * count + point, best, mask=real)


@triton.jit
def _height(field, x, y, cells, extent, real):  # type: ignore[no-untyped-def]
    """Bilinear, the edge going on outside."""
    u = tl.minimum(tl.maximum((x / extent + 1) * 0.5 * cells - 0.5, 0.0), cells - 1.0)
    v = tl.minimum(tl.maximum((y / extent + 1) * 0.5 * cells - 0.5, 0.0), cells - 1.0)
    col = tl.minimum(u.to(tl.int32), cells - 2)
    row = tl.minimum(v.to(tl.int32), cells - 2)
    fu = u - col
    fv = v - row
    at = field + row * cells + col
    top = tl.load(at, mask=real, other=0.0) * (1 - fu) + tl.load(at + 1, mask=real, other=0.0) * fu
    low = tl.load(at + cells, mask=real, other=0.0) * (1 - fu) + tl.load(at + cells + 1, mask=real, other=0.0) * fu
    return top * (1 - fv) + low * fv


@triton.jit
def _march(  # type: ignore[no-untyped-def]
    heights, which, hilly, origin, direction, time, rays, cells, extent, first, growth, steps, halvings,
    BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = ray < rays
    out = group.to(tl.int64) * rays + ray
    world = tl.load(which + group)
    high = tl.full((BLOCK,), float("inf"), tl.float32)
    if tl.load(hilly + world) != 0:
        field = heights + world * cells * cells
        at = out * 3
        ox = tl.load(origin + at, mask=real, other=0.0)
        oy = tl.load(origin + at + 1, mask=real, other=0.0)
        oz = tl.load(origin + at + 2, mask=real, other=0.0)
        dx = tl.load(direction + at, mask=real, other=1.0)
        dy = tl.load(direction + at + 1, mask=real, other=1.0)
        dz = tl.load(direction + at + 2, mask=real, other=1.0)
        length = tl.sqrt(dx * dx + dy * dy + dz * dz)
        low = tl.zeros((BLOCK,), tl.float32)
        previous = tl.zeros((BLOCK,), tl.float32)
        found = tl.zeros((BLOCK,), tl.int1)
        reach = first
        for _ in range(steps):
            now = reach / length
            under = (oz + now * dz < _height(field, ox + now * dx, oy + now * dy, cells, extent, real)) & (found == 0)
            low = tl.where(under, previous, low)
            high = tl.where(under, now, high)
            found = found | under
            previous = now
            reach = reach * growth
        end = tl.where(found, high, previous)
        for _ in range(halvings):
            middle = (low + end) * 0.5
            under = oz + middle * dz < _height(field, ox + middle * dx, oy + middle * dy, cells, extent, real)
            low = tl.where(under, low, middle)
            end = tl.where(under, middle, end)
        high = tl.where(found, end, high)
    tl.store(time + out, high, mask=real)


@triton.jit
def _texel(texels, at, real):  # type: ignore[no-untyped-def]
    packed = tl.load(texels + at, mask=real, other=0)
    return (packed & 255).to(tl.float32), ((packed >> 8) & 255).to(tl.float32), ((packed >> 16) & 255).to(tl.float32)


@triton.jit
def _bilinear(texels, start, u, v, level, size, real):  # type: ignore[no-untyped-def]
    """Levels lie one after the other: before one of side s come (size^2 - s^2) 4 / 3 texels."""
    side = size >> level
    start = start + (size * size - side * side) // 3 * 4
    x = u * side - 0.5
    y = v * side - 0.5
    left = tl.floor(x)
    top = tl.floor(y)
    fx = x - left
    fy = y - top
    x0 = left.to(tl.int32) & (side - 1)
    y0 = top.to(tl.int32) & (side - 1)
    x1 = (x0 + 1) & (side - 1)
    y1 = (y0 + 1) & (side - 1)
    r0, g0, b0 = _texel(texels, start + y0 * side + x0, real)
    r1, g1, b1 = _texel(texels, start + y0 * side + x1, real)
    r2, g2, b2 = _texel(texels, start + y1 * side + x0, real)
    r3, g3, b3 = _texel(texels, start + y1 * side + x1, real)
    w0 = (1 - fx) * (1 - fy)
    w1 = fx * (1 - fy)
    w2 = (1 - fx) * fy
    w3 = fx * fy
    return (
        r0 * w0 + r1 * w1 + r2 * w2 + r3 * w3,
        g0 * w0 + g1 * w1 + g2 * w2 + g3 * w3,
        b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3,
    )


@triton.jit
def _sample(texels, picture, uv, level, colours, count, size, last, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    stride = (4 * size * size - 1) // 3
    start = tl.load(picture + at, mask=real, other=0) * stride
    u = tl.load(uv + at * 2, mask=real, other=0.0)
    v = tl.load(uv + at * 2 + 1, mask=real, other=0.0)
    depth = tl.minimum(tl.maximum(tl.load(level + at, mask=real, other=0.0), 0.0), last * 1.0)
    fine = tl.floor(depth)
    mix = depth - fine
    low = fine.to(tl.int32)
    r0, g0, b0 = _bilinear(texels, start, u, v, low, size, real)
    r1, g1, b1 = _bilinear(texels, start, u, v, tl.minimum(low + 1, last), size, real)
    tl.store(colours + at * 3, (r0 + (r1 - r0) * mix) / 255, mask=real)
    tl.store(colours + at * 3 + 1, (g0 + (g1 - g0) * mix) / 255, mask=real)
    tl.store(colours + at * 3 + 2, (b0 + (b1 - b0) * mix) / 255, mask=real)
