"""The small kernels of a fit's step on CUDA: activations and colours, tile lists, Adam.

Each does in one pass over memory what `fit`, `intersect` and `device_steps` say in torch, which tests hold it to.
Counts, sizes and what depends on them are not specialised, here and in `raster_triton` and `loss_triton`: no fit waits
for a compiler because it has another number of Gaussians, moving or not, or of pixels than the one before. What
`fit.prepare_fit` compiles is all there is.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .constants import MIN_ALPHA
from .device_steps import Adam
from .fit import ADAM_EPS, BETA1, BETA2, MAX_DRIFT, MAX_GROWTH
from .gaussians import SH_C0
from .intersect import ROUNDING, SLACK, TileLists

BLOCK = 64
"""Gaussians that one program takes."""
VJP_BLOCK, VJP_WARPS = 16, 4
"""The same of the gradient, which keeps so much of each Gaussian that large programs leave room for few: with 64 in one
a thread takes 252 registers, which is 8 warps on a processor of an H100; with 16 it takes 64, which is 32 warps, for a
quarter more instructions (counted in what is compiled; bench_cache_gpu.py --shapes times it)."""


def activate(
    start_means: Tensor,
    radius: Tensor,
    start_scales: Tensor,
    offset: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh0: Tensor,
    shN: Tensor,
    centre: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, standard deviations, opacities in [0, 1] and colours seen from the (1, 3) centre, within bounds.

    The arguments are those of `fit.within_bounds` and fields of `Gaussians`; differentiable in `offset` to `shN`.
    """
    constant = start_means, radius, start_scales
    return _Activate.apply(*constant, offset, scales, opacities, sh0, shN, centre)  # type: ignore[no-any-return]


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start_means, radius, start_scales, offset, scales, opacities, sh0, shN, centre):  # type: ignore[no-untyped-def]
        inputs = (start_means, radius, start_scales, offset, scales, opacities, sh0, shN, centre)
        assert all(t.is_contiguous() for t in inputs)
        outputs = tuple(torch.empty_like(t) for t in (start_means, scales, opacities, start_means))
        n, bases = shN.shape[:2]
        _activate[(triton.cdiv(n, BLOCK),)](
            *inputs, *outputs, n, MAX_DRIFT, math.log(MAX_GROWTH), 0.5 / SH_C0, bases, BLOCK
        )
        ctx.save_for_backward(*inputs, *outputs)
        return outputs

    @staticmethod
    def backward(ctx, v_means, v_deviations, v_opacities, v_colours):  # type: ignore[no-untyped-def]
        inputs, outputs = ctx.saved_tensors[:9], ctx.saved_tensors[9:]
        gradients = tuple(torch.empty_like(t) for t in inputs[3:8])
        n, bases = inputs[7].shape[:2]
        v_outputs = (t.contiguous() for t in (v_means, v_deviations, v_opacities, v_colours))
        _activate_vjp[(triton.cdiv(n, VJP_BLOCK),)](
            *inputs, *outputs, *v_outputs, *gradients, n, MAX_DRIFT, math.log(MAX_GROWTH), 0.5 / SH_C0,
            bases, VJP_BLOCK, num_warps=VJP_WARPS,
        )  # fmt: skip
        return None, None, None, *gradients, None


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _load3(pointer, i, live):  # type: ignore[no-untyped-def]
    return (
        tl.load(pointer + 3 * i, live, 0.0),
        tl.load(pointer + 3 * i + 1, live, 0.0),
        tl.load(pointer + 3 * i + 2, live, 0.0),
    )


@triton.jit
def _store3(pointer, i, a, b, c, live):  # type: ignore[no-untyped-def]
    tl.store(pointer + 3 * i, a, live)
    tl.store(pointer + 3 * i + 1, b, live)
    tl.store(pointer + 3 * i + 2, c, live)


@triton.jit
def _direction(x, y, z, centre):  # type: ignore[no-untyped-def]
    x, y, z = x - tl.load(centre), y - tl.load(centre + 1), z - tl.load(centre + 2)
    scale = 1 / tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)
    return x * scale, y * scale, z * scale, scale


@triton.jit
def _basis(k, x, y, z):  # type: ignore[no-untyped-def]
    """(BLOCK, 16) values of the harmonics `k` (1, 16) of degrees 1 to 3 at (BLOCK, 1) directions."""
    xx, yy, zz = x * x, y * y, z * z
    b = tl.where(k == 0, -0.4886025119029199 * y, 0.0)
    b = tl.where(k == 1, 0.4886025119029199 * z, b)
    b = tl.where(k == 2, -0.4886025119029199 * x, b)
    b = tl.where(k == 3, 1.0925484305920792 * x * y, b)
    b = tl.where(k == 4, -1.0925484305920792 * y * z, b)
    b = tl.where(k == 5, 0.31539156525252005 * (2 * zz - xx - yy), b)
    b = tl.where(k == 6, -1.0925484305920792 * x * z, b)
    b = tl.where(k == 7, 0.5462742152960396 * (xx - yy), b)
    b = tl.where(k == 8, -0.5900435899266435 * y * (3 * xx - yy), b)
    b = tl.where(k == 9, 2.890611442640554 * x * y * z, b)
    b = tl.where(k == 10, -0.4570457994644658 * y * (4 * zz - xx - yy), b)
    b = tl.where(k == 11, 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy), b)
    b = tl.where(k == 12, -0.4570457994644658 * x * (4 * zz - xx - yy), b)
    b = tl.where(k == 13, 1.445305721320277 * z * (xx - yy), b)
    return tl.where(k == 14, -0.5900435899266435 * x * (xx - 3 * yy), b)


@triton.jit
def _basis_vjp(k, x, y, z):  # type: ignore[no-untyped-def]
    """The derivatives of `_basis` along x, y and z."""
    xx, yy, zz = x * x, y * y, z * z
    zero = x * 0
    dx = tl.where(k == 2, -0.4886025119029199 + zero, 0.0)
    dy = tl.where(k == 0, -0.4886025119029199 + zero, 0.0)
    dz = tl.where(k == 1, 0.4886025119029199 + zero, 0.0)
    dx = tl.where(k == 3, 1.0925484305920792 * y, dx)
    dy = tl.where(k == 3, 1.0925484305920792 * x, dy)
    dy = tl.where(k == 4, -1.0925484305920792 * z, dy)
    dz = tl.where(k == 4, -1.0925484305920792 * y, dz)
    dx = tl.where(k == 5, -0.6307831305050401 * x, dx)
    dy = tl.where(k == 5, -0.6307831305050401 * y, dy)
    dz = tl.where(k == 5, 1.2615662610100802 * z, dz)
    dx = tl.where(k == 6, -1.0925484305920792 * z, dx)
    dz = tl.where(k == 6, -1.0925484305920792 * x, dz)
    dx = tl.where(k == 7, 1.0925484305920792 * x, dx)
    dy = tl.where(k == 7, -1.0925484305920792 * y, dy)
    dx = tl.where(k == 8, -3.540261539559861 * x * y, dx)
    dy = tl.where(k == 8, -1.7701307697799304 * (xx - yy), dy)
    dx = tl.where(k == 9, 2.890611442640554 * y * z, dx)
    dy = tl.where(k == 9, 2.890611442640554 * x * z, dy)
    dz = tl.where(k == 9, 2.890611442640554 * x * y, dz)
    dx = tl.where(k == 10, 0.9140915989289316 * x * y, dx)
    dy = tl.where(k == 10, -0.4570457994644658 * (4 * zz - xx - 3 * yy), dy)
    dz = tl.where(k == 10, -3.6563663957157264 * y * z, dz)
    dx = tl.where(k == 11, -2.2390579957406924 * x * z, dx)
    dy = tl.where(k == 11, -2.2390579957406924 * y * z, dy)
    dz = tl.where(k == 11, 0.3731763325901154 * (6 * zz - 3 * xx - 3 * yy), dz)
    dx = tl.where(k == 12, -0.4570457994644658 * (4 * zz - 3 * xx - yy), dx)
    dy = tl.where(k == 12, 0.9140915989289316 * x * y, dy)
    dz = tl.where(k == 12, -3.6563663957157264 * x * z, dz)
    dx = tl.where(k == 13, 2.890611442640554 * x * z, dx)
    dy = tl.where(k == 13, -2.890611442640554 * y * z, dy)
    dz = tl.where(k == 13, 1.445305721320277 * (xx - yy), dz)
    dx = tl.where(k == 14, -1.7701307697799304 * (xx - yy), dx)
    dy = tl.where(k == 14, 3.540261539559861 * x * y, dy)
    return dx, dy, dz


@triton.jit(do_not_specialize=["n"])
def _activate(  # type: ignore[no-untyped-def]
    start_means, radius, start_scales, offset, scales, opacities, sh0, shN, centre,
    means, deviations, covers, colours, n, max_drift, log_growth, max_sh0, BASES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    r = tl.load(radius + i, live, 0.0) * max_drift
    x, y, z = _load3(start_means, i, live)
    ox, oy, oz = _load3(offset, i, live)
    x, y, z = x + r * _tanh(ox / max_drift), y + r * _tanh(oy / max_drift), z + r * _tanh(oz / max_drift)
    _store3(means, i, x, y, z, live)
    a, b, c = _load3(scales, i, live)
    la, lb, lc = _load3(start_scales, i, live)
    a, b, c = tl.minimum(a, la + log_growth), tl.minimum(b, lb + log_growth), tl.minimum(c, lc + log_growth)
    _store3(deviations, i, tl.exp(a), tl.exp(b), tl.exp(c), live)
    tl.store(covers + i, 1 / (1 + tl.exp(-tl.load(opacities + i, live, 0.0))), live)
    red, green, blue = _load3(sh0, i, live)
    red = 0.5 + 0.28209479177387814 * tl.minimum(tl.maximum(red, -max_sh0), max_sh0)
    green = 0.5 + 0.28209479177387814 * tl.minimum(tl.maximum(green, -max_sh0), max_sh0)
    blue = 0.5 + 0.28209479177387814 * tl.minimum(tl.maximum(blue, -max_sh0), max_sh0)
    if BASES > 0:
        dx, dy, dz, _ = _direction(x, y, z, centre)
        k = tl.arange(0, 16)[None, :]
        held = live[:, None] & (k < BASES)
        at = shN + i[:, None] * (3 * BASES) + 3 * k
        basis = _basis(k, dx[:, None], dy[:, None], dz[:, None])
        red += tl.sum(tl.load(at, held, 0.0) * basis, 1)
        green += tl.sum(tl.load(at + 1, held, 0.0) * basis, 1)
        blue += tl.sum(tl.load(at + 2, held, 0.0) * basis, 1)
    _store3(colours, i, tl.maximum(red, 0.0), tl.maximum(green, 0.0), tl.maximum(blue, 0.0), live)


# What comes back for the Gaussians that move lies behind that for those that stay, wherever that is in memory.
@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["v_covers", "v_colours"])
def _activate_vjp(  # type: ignore[no-untyped-def]
    start_means, radius, start_scales, offset, scales, opacities, sh0, shN, centre,
    means, deviations, covers, colours, v_means, v_deviations, v_covers, v_colours,
    v_offset, v_scales, v_opacities, v_sh0, v_shN,
    n, max_drift, log_growth, max_sh0, BASES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    red, green, blue = _load3(colours, i, live)
    v_red, v_green, v_blue = _load3(v_colours, i, live)
    v_red, v_green, v_blue = (
        tl.where(red > 0, v_red, 0.0),
        tl.where(green > 0, v_green, 0.0),
        tl.where(blue > 0, v_blue, 0.0),
    )
    vx, vy, vz = _load3(v_means, i, live)
    if BASES > 0:
        x, y, z = _load3(means, i, live)
        dx, dy, dz, scale = _direction(x, y, z, centre)
        k = tl.arange(0, 16)[None, :]
        held = live[:, None] & (k < BASES)
        at = i[:, None] * (3 * BASES) + 3 * k
        basis = _basis(k, dx[:, None], dy[:, None], dz[:, None])
        tl.store(v_shN + at, v_red[:, None] * basis, held)
        tl.store(v_shN + at + 1, v_green[:, None] * basis, held)
        tl.store(v_shN + at + 2, v_blue[:, None] * basis, held)
        v = tl.load(shN + at, held, 0.0) * v_red[:, None]
        v += tl.load(shN + at + 1, held, 0.0) * v_green[:, None]
        v += tl.load(shN + at + 2, held, 0.0) * v_blue[:, None]
        bx, by, bz = _basis_vjp(k, dx[:, None], dy[:, None], dz[:, None])
        gx, gy, gz = tl.sum(v * bx, 1), tl.sum(v * by, 1), tl.sum(v * bz, 1)
        along = gx * dx + gy * dy + gz * dz
        vx, vy, vz = vx + (gx - along * dx) * scale, vy + (gy - along * dy) * scale, vz + (gz - along * dz) * scale
    r = tl.load(radius + i, live, 0.0)
    ox, oy, oz = _load3(offset, i, live)
    tx, ty, tz = _tanh(ox / max_drift), _tanh(oy / max_drift), _tanh(oz / max_drift)
    _store3(v_offset, i, vx * r * (1 - tx * tx), vy * r * (1 - ty * ty), vz * r * (1 - tz * tz), live)
    a, b, c = _load3(scales, i, live)
    la, lb, lc = _load3(start_scales, i, live)
    ea, eb, ec = _load3(deviations, i, live)
    va, vb, vc = _load3(v_deviations, i, live)
    va = tl.where(a <= la + log_growth, va * ea, 0.0)
    vb = tl.where(b <= lb + log_growth, vb * eb, 0.0)
    vc = tl.where(c <= lc + log_growth, vc * ec, 0.0)
    _store3(v_scales, i, va, vb, vc, live)
    o = tl.load(covers + i, live, 0.0)
    tl.store(v_opacities + i, tl.load(v_covers + i, live, 0.0) * o * (1 - o), live)
    red, green, blue = _load3(sh0, i, live)
    v_red = tl.where(tl.abs(red) <= max_sh0, 0.28209479177387814 * v_red, 0.0)
    v_green = tl.where(tl.abs(green) <= max_sh0, 0.28209479177387814 * v_green, 0.0)
    v_blue = tl.where(tl.abs(blue) <= max_sh0, 0.28209479177387814 * v_blue, 0.0)
    _store3(v_sh0, i, v_red, v_green, v_blue, live)


def tile_lists(
    means2d: Tensor,
    conics: Tensor,
    radii: Tensor,
    depths: Tensor,
    opacities: Tensor,
    width: int,
    height: int,
    tile: int,
    capacity: int,
) -> TileLists:
    """See `intersect.tile_lists`; without waiting for the device.

    gsplat's own search sizes its buffers to what it finds, so the host waits for the count in the middle of every step
    and no CUDA graph can hold one. Here the caller gives the capacity, and what was needed stays on the device until
    somebody looks. Gaussians are sorted by depth first and then, stably, by tile, which orders equal keys as gsplat's
    one sort of (tile, depth) does, in fewer passes.
    """
    n, device = len(depths), depths.device
    rows, columns = -(-height // tile), -(-width // tile)
    tiles = rows * columns
    splats = means2d.contiguous(), conics.contiguous(), opacities.contiguous()
    boxes = torch.empty(n, 4, dtype=torch.int32, device=device)
    counts = torch.empty(n, dtype=torch.int32, device=device)
    grid = (triton.cdiv(n, 128),)
    _touch[grid](*splats, radii.contiguous(), boxes, counts, n, rows, columns, MIN_ALPHA, SLACK, ROUNDING, tile, 128)
    order = depths.argsort(stable=True)
    ends = counts[order].cumsum(0, dtype=torch.int32)
    keys = torch.full((capacity,), tiles, dtype=torch.int16 if tiles < 2**15 else torch.int32, device=device)
    owners = torch.zeros(capacity, dtype=torch.int32, device=device)
    _fill_slots[grid](
        *splats, order, boxes, ends, keys, owners, n, columns, capacity, MIN_ALPHA, SLACK, ROUNDING, tile, 128
    )
    keys, chosen = keys.sort(stable=True)
    starts = torch.arange(tiles + 1, device=device, dtype=keys.dtype)
    return TileLists(owners[chosen], torch.searchsorted(keys, starts, out_int32=True), ends[-1].long())


@triton.jit
def _load_reach(means2d, conics, opacities, g, live, min_alpha, slack):  # type: ignore[no-untyped-def]
    """Of Gaussians g: centre, conic, and the exponent at which they end."""
    x, y = tl.load(means2d + 2 * g, live, 0.0), tl.load(means2d + 2 * g + 1, live, 0.0)
    a, b, c = _load3(conics, g, live)
    ends = tl.log(tl.maximum(tl.load(opacities + g, live, 0.0), 1e-12) / min_alpha) + slack
    return x, y, tl.where(live, a, 1.0), b, tl.where(live, c, 1.0), ends


@triton.jit
def _reaches(x, y, a, b, c, ends, column, row, rounding, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """See `intersect._reaches`."""
    left, top = (column * TILE).to(tl.float32) + 0.5 - x, (row * TILE).to(tl.float32) + 0.5 - y
    right, bottom = left + (TILE - 1), top + (TILE - 1)
    side_x, side_y = tl.minimum(tl.maximum(left, 0.0), right), tl.minimum(tl.maximum(top, 0.0), bottom)
    along_y = tl.minimum(tl.maximum(-b * side_x / c, top), bottom)
    along_x = tl.minimum(tl.maximum(-b * side_y / a, left), right)
    return _below(a, b, c, side_x, along_y, ends, rounding) | _below(a, b, c, along_x, side_y, ends, rounding)


@triton.jit
def _below(a, b, c, x, y, ends, rounding):  # type: ignore[no-untyped-def]
    squares = a * x * x + c * y * y
    return 0.5 * squares + b * x * y <= ends + rounding * squares


@triton.jit(do_not_specialize=["n", "rows", "columns"])
def _touch(  # type: ignore[no-untyped-def]
    means2d, conics, opacities, radii, boxes, counts, n, rows, columns, min_alpha, slack, rounding,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The box of tiles that each Gaussian's own box touches, and how many of them it reaches."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    rx, ry = tl.load(radii + 2 * i, live, 0), tl.load(radii + 2 * i + 1, live, 0)
    seen = (rx > 0) & (ry > 0)
    x, y, a, b, c, ends = _load_reach(means2d, conics, opacities, i, live & seen, min_alpha, slack)
    x0, x1 = tl.floor((x - rx) / TILE), tl.ceil((x + rx) / TILE)
    y0, y1 = tl.floor((y - ry) / TILE), tl.ceil((y + ry) / TILE)
    x0, x1 = (
        tl.minimum(tl.maximum(x0, 0.0), columns).to(tl.int32),
        tl.minimum(tl.maximum(x1, 0.0), columns).to(tl.int32),
    )
    y0, y1 = tl.minimum(tl.maximum(y0, 0.0), rows).to(tl.int32), tl.minimum(tl.maximum(y1, 0.0), rows).to(tl.int32)
    boxed = tl.where(seen, (x1 - x0) * (y1 - y0), 0)
    wide = tl.maximum(x1 - x0, 1)
    count = boxed * 0
    for k in range(tl.max(boxed, 0)):
        found = (k < boxed) & _reaches(x, y, a, b, c, ends, x0 + k % wide, y0 + k // wide, rounding, TILE)
        count += found.to(tl.int32)
    tl.store(boxes + 4 * i, x0, live)
    tl.store(boxes + 4 * i + 1, x1, live)
    tl.store(boxes + 4 * i + 2, y0, live)
    tl.store(boxes + 4 * i + 3, y1, live)
    tl.store(counts + i, count, live)


@triton.jit(do_not_specialize=["n", "columns", "capacity"])
def _fill_slots(  # type: ignore[no-untyped-def]
    means2d, conics, opacities, order, boxes, ends, keys, owners, n, columns, capacity, min_alpha, slack, rounding,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes the tiles of each Gaussian, in the order of depth, behind those of the Gaussians before it."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    end = tl.load(ends + i, live, 0)
    slot = tl.load(ends + i - 1, live & (i > 0), 0)
    g = tl.load(order + i, live, 0)
    listed = slot < end
    x, y, a, b, c, reach = _load_reach(means2d, conics, opacities, g, listed, min_alpha, slack)
    x0, x1 = tl.load(boxes + 4 * g), tl.load(boxes + 4 * g + 1)
    y0, y1 = tl.load(boxes + 4 * g + 2), tl.load(boxes + 4 * g + 3)
    wide = tl.maximum(x1 - x0, 1)
    boxed = tl.where(listed, (x1 - x0) * (y1 - y0), 0)
    for k in range(tl.max(boxed, 0)):
        column, row = x0 + k % wide, y0 + k // wide
        # Within its own slots, also where a compiler rounds here and where it was counted in two ways.
        found = (k < boxed) & (slot < end) & _reaches(x, y, a, b, c, reach, column, row, rounding, TILE)
        held = found & (slot < capacity)
        tl.store(keys + slot, (row * columns + column).to(keys.dtype.element_ty), held)
        tl.store(owners + slot, g.to(tl.int32), held)
        slot += found.to(tl.int32)


def adam_update(adam: Adam, gradients: list[Tensor], pace: Tensor, go: Tensor) -> None:
    """See `device_steps.adam_update`."""
    for p, m, v, g, rate in zip(adam.parameters, adam.first, adam.second, gradients, adam.rates, strict=True):
        count = p.numel()
        assert p.is_contiguous()
        grid = (triton.cdiv(count, 1024),)
        _adam[grid](p, m, v, g.contiguous(), pace, go, count, rate, 1 - BETA1, BETA2, 1 - BETA2, ADAM_EPS, 1024)


@triton.jit(do_not_specialize=["count"])
def _adam(  # type: ignore[no-untyped-def]
    parameter, first, second, gradient, pace, go, count, rate, toward1, beta2, toward2, eps, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = (i < count) & (tl.load(go) != 0)
    g = tl.load(gradient + i, live, 0.0)
    m = tl.load(first + i, live, 0.0)
    m += toward1 * (g - m)
    v = beta2 * tl.load(second + i, live, 0.0) + toward2 * g * g
    change = rate * tl.load(pace) * m / (tl.sqrt(v) * tl.load(pace + 1) + eps)
    tl.store(parameter + i, tl.load(parameter + i, live, 0.0) - change, live)
    tl.store(first + i, m, live)
    tl.store(second + i, v, live)
