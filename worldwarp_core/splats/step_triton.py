"""The small kernels of a fit's step on CUDA: activations and colours, tile lists, Adam.

Each does in one pass over memory what `moving`, `intersect` and `device_steps` say in torch, which tests hold it to.
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
from .fit_settings import ADAM_EPS, BETA1, BETA2
from .gaussians import SH_C0
from .intersect import ROUNDING, SLACK, TileLists
from .moving import MAX_DRIFT, MAX_GROWTH

BLOCK = 128
"""Gaussians that one program takes, one a thread."""


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

    The arguments are those of `moving.within_bounds` and fields of `Gaussians`, `shN` laid out `in_planes`;
    differentiable in `offset` to `shN`.
    """
    constant = start_means, radius, start_scales
    return _Activate.apply(*constant, offset, scales, opacities, sh0, shN, centre)  # type: ignore[no-any-return]


def in_planes(shN: Tensor) -> Tensor:
    """The same (N, K, 3), each coefficient of all Gaussians in one piece of memory.

    A thread then takes a whole Gaussian, and neighbours read neighbours. A tile of Gaussians by harmonics, which reads
    the usual order well, computes every harmonic for each of them: six times the instructions in the gradient.
    """
    return shN.permute(1, 2, 0).contiguous().permute(2, 0, 1)


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start_means, radius, start_scales, offset, scales, opacities, sh0, shN, centre):  # type: ignore[no-untyped-def]
        inputs = (start_means, radius, start_scales, offset, scales, opacities, sh0, shN, centre)
        assert shN.permute(1, 2, 0).is_contiguous()
        assert all(t.is_contiguous() for t in inputs if t is not shN)
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
        _activate_vjp[(triton.cdiv(n, BLOCK),)](
            *inputs, *outputs, *v_outputs, *gradients, n, MAX_DRIFT, math.log(MAX_GROWTH), 0.5 / SH_C0, bases, BLOCK
        )
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
def _harmonic(K: tl.constexpr, x, y, z):  # type: ignore[no-untyped-def]
    """The value of harmonic K of degrees 1 to 3 in directions, and its derivatives along x, y and z."""
    xx, yy, zz = x * x, y * y, z * z
    dx, dy, dz = x * 0, x * 0, x * 0
    if K == 0:
        value = -0.4886025119029199 * y
        dy -= 0.4886025119029199
    elif K == 1:
        value = 0.4886025119029199 * z
        dz += 0.4886025119029199
    elif K == 2:
        value = -0.4886025119029199 * x
        dx -= 0.4886025119029199
    elif K == 3:
        value = 1.0925484305920792 * x * y
        dx, dy = 1.0925484305920792 * y, 1.0925484305920792 * x
    elif K == 4:
        value = -1.0925484305920792 * y * z
        dy, dz = -1.0925484305920792 * z, -1.0925484305920792 * y
    elif K == 5:
        value = 0.31539156525252005 * (2 * zz - xx - yy)
        dx, dy, dz = -0.6307831305050401 * x, -0.6307831305050401 * y, 1.2615662610100802 * z
    elif K == 6:
        value = -1.0925484305920792 * x * z
        dx, dz = -1.0925484305920792 * z, -1.0925484305920792 * x
    elif K == 7:
        value = 0.5462742152960396 * (xx - yy)
        dx, dy = 1.0925484305920792 * x, -1.0925484305920792 * y
    elif K == 8:
        value = -0.5900435899266435 * y * (3 * xx - yy)
        dx, dy = -3.540261539559861 * x * y, -1.7701307697799304 * (xx - yy)
    elif K == 9:
        value = 2.890611442640554 * x * y * z
        dx, dy, dz = 2.890611442640554 * y * z, 2.890611442640554 * x * z, 2.890611442640554 * x * y
    elif K == 10:
        value = -0.4570457994644658 * y * (4 * zz - xx - yy)
        dx, dz = 0.9140915989289316 * x * y, -3.6563663957157264 * y * z
        dy = -0.4570457994644658 * (4 * zz - xx - 3 * yy)
    elif K == 11:
        value = 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)
        dx, dy = -2.2390579957406924 * x * z, -2.2390579957406924 * y * z
        dz = 0.3731763325901154 * (6 * zz - 3 * xx - 3 * yy)
    elif K == 12:
        value = -0.4570457994644658 * x * (4 * zz - xx - yy)
        dx = -0.4570457994644658 * (4 * zz - 3 * xx - yy)
        dy, dz = 0.9140915989289316 * x * y, -3.6563663957157264 * x * z
    elif K == 13:
        value = 1.445305721320277 * z * (xx - yy)
        dx, dy, dz = 2.890611442640554 * x * z, -2.890611442640554 * y * z, 1.445305721320277 * (xx - yy)
    else:
        value = -0.5900435899266435 * x * (xx - 3 * yy)
        dx, dy = -1.7701307697799304 * (xx - yy), 3.540261539559861 * x * y
    return value, dx, dy, dz


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
        plane = shN + i
        for k in tl.static_range(BASES):
            value, _, _, _ = _harmonic(k, dx, dy, dz)
            red += value * tl.load(plane, live, 0.0)
            green += value * tl.load(plane + n, live, 0.0)
            blue += value * tl.load(plane + 2 * n, live, 0.0)
            plane += 3 * n
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
        gx, gy, gz = x * 0, x * 0, x * 0
        at = i
        for k in tl.static_range(BASES):
            value, along_x, along_y, along_z = _harmonic(k, dx, dy, dz)
            tl.store(v_shN + at, v_red * value, live)
            tl.store(v_shN + at + n, v_green * value, live)
            tl.store(v_shN + at + 2 * n, v_blue * value, live)
            v = tl.load(shN + at, live, 0.0) * v_red
            v += tl.load(shN + at + n, live, 0.0) * v_green
            v += tl.load(shN + at + 2 * n, live, 0.0) * v_blue
            gx, gy, gz = gx + v * along_x, gy + v * along_y, gz + v * along_z
            at += 3 * n
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
        # One by one through memory, in whatever order of axes it is laid out.
        assert p.stride() == m.stride() == v.stride(), (p.stride(), m.stride(), v.stride())
        g = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        grid = (triton.cdiv(count, 1024),)
        _adam[grid](p, m, v, g, pace, go, count, rate, 1 - BETA1, BETA2, 1 - BETA2, ADAM_EPS, 1024)


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
