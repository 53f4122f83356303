"""Draws one image of projected Gaussians and its gradient with Triton, for the steps of a fit.

The picture is gsplat's: the same cut-offs, the same order. What differs is the work per Gaussian. These Gaussians are a
few pixels wide, so tiles are small; each pixel is a thread's, which meets one Gaussian after another. Of a batch of
them it keeps its share of the gradient as a column of a matrix: the sums over pixels are then matrix products with the
pixels' coordinates (moments of v_sigma about the tile's centre), where gsplat adds up ten numbers across threads for
every Gaussian and every 32 pixels.

Instructions are what the time goes to, so they were counted in what is compiled for an H100: with what a Gaussian is
drawn by side by side in memory, and with pixels walking through a batch where a matrix of Gaussians by pixels was
worked on at once, a warp takes 42% fewer to draw it and 30% fewer for its gradient (bench_cache_gpu.py times them).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8
"""Pixels, the side of the square that one program draws."""
BATCH = 16
"""Gaussians between two looks at whether a tile is done; the least that a matrix product takes."""


def draw(
    means2d: Tensor,
    conics: Tensor,
    colours: Tensor,
    depths: Tensor,
    opacities: Tensor,
    ids: Tensor,
    offsets: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """RGB (H, W, 3), summed depth (H, W) and alpha (H, W), differentiable in the first five.

    Args:
        means2d: (N, 2) in pixels, conics: (N, 3), colours: (N, 3), depths: (N,), opacities: (N,) in [0, 1]; float32.
        ids, offsets: of `intersect.tile_lists` with tiles of `TILE` pixels.
    """
    n = len(depths)
    assert means2d.shape == (n, 2), means2d.shape
    assert conics.shape == colours.shape == (n, 3), (conics.shape, colours.shape)
    assert opacities.shape == (n,), opacities.shape
    rgb, depth, alpha = _Draw.apply(means2d, conics, colours, depths, opacities, ids, offsets, width, height)
    return rgb, depth, alpha


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, colours, depths, opacities, ids, offsets, width, height):  # type: ignore[no-untyped-def]
        device, n = means2d.device, len(means2d)
        each = means2d, conics, opacities, colours, depths
        splats = torch.empty(n, 10, device=device)
        _pack[(triton.cdiv(n, 128),)](*(t.contiguous() for t in each), splats, n, 128)
        splats = splats.view(torch.int64)
        rgb = torch.empty(height, width, 3, device=device)
        depth, alpha, through = (torch.empty(height, width, device=device) for _ in range(3))
        last = torch.empty(height, width, dtype=torch.int32, device=device)
        columns = -(-width // TILE)
        _draw_tile[(columns * -(-height // TILE),)](
            splats, ids, offsets, rgb, depth, alpha, through, last, width, height, columns, TILE, BATCH,
            num_warps=FORWARD_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(splats, ids, offsets, through, last)
        return rgb, depth, alpha

    @staticmethod
    def backward(ctx, v_rgb, v_depth, v_alpha):  # type: ignore[no-untyped-def]
        splats, ids, offsets, through, last = ctx.saved_tensors
        height, width = through.shape
        # One buffer, zeroed at once; every part begins at an address that the kernel was compiled for.
        n, padded = len(splats), triton.cdiv(len(splats), 16) * 16
        shapes = (n, 2), (n, 3), (n, 3), (n,), (n,)
        widths = (2, 3, 3, 1, 1)
        parts = torch.zeros(sum(widths) * padded, device=through.device).split([w * padded for w in widths])
        gradients = [part[: w * n].view(shape) for part, w, shape in zip(parts, widths, shapes, strict=True)]
        columns = -(-width // TILE)
        _draw_tile_vjp[(columns * -(-height // TILE),)](
            splats, ids, offsets, through, last, v_rgb.contiguous(), v_depth.contiguous(), v_alpha.contiguous(),
            *gradients, width, height, columns, TILE, BATCH, num_warps=BACKWARD_WARPS, maxnreg=BACKWARD_REGISTERS,
        )  # fmt: skip
        return *gradients, None, None, None, None


FORWARD_WARPS, BACKWARD_WARPS, BACKWARD_REGISTERS = 2, 2, 128


@triton.jit
def _pixels(tile, width, height, columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the tile's pixels: centre relative to the tile's, index in the image, whether they are in it."""
    p = tl.arange(0, TILE * TILE)
    column = (tile % columns) * TILE + p % TILE
    row = (tile // columns) * TILE + p // TILE
    u = (p % TILE).to(tl.float32) + (0.5 - TILE / 2)
    v = (p // TILE).to(tl.float32) + (0.5 - TILE / 2)
    return u, v, row * width + column, (column < width) & (row < height)


@triton.jit(do_not_specialize=["n"])
def _pack(means2d, conics, opacities, colours, depths, splats, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Lays what a Gaussian is drawn by side by side: see `_load`. The conic is times -log2(e) / 2, the mixed one twice.

    So that 2 to the power of a dx dx + b dx dy + c dy dy is what e to the power of -sigma was.
    """
    i = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    k = tl.arange(0, 16)[None, :]  # threads write side by side, as memory wants it
    live = (i < n) & (k < 10)
    scale = tl.where(k == 3, -1.4426950408889634, -0.7213475204444817)
    value = tl.load(means2d + 2 * i + k, live & (k < 2), 0.0)
    value += scale * tl.load(conics + 3 * i + (k - 2), live & (k >= 2) & (k < 5), 0.0)
    value += tl.load(opacities + i + 0 * k, live & (k == 5), 0.0)
    value += tl.load(colours + 3 * i + (k - 6), live & (k >= 6) & (k < 9), 0.0)
    value += tl.load(depths + i + 0 * k, live & (k == 9), 0.0)
    tl.store(splats + 10 * i + k, value, live)


@triton.jit
def _pair(splats, k):  # type: ignore[no-untyped-def]
    """Two numbers that lie side by side, in one load."""
    both = tl.load(splats + k)
    return both.to(tl.int32).to(tl.float32, bitcast=True), (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _load(splats, g, tile, columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of Gaussians g: centre relative to the tile's, what the exponent is made of, opacity."""
    x, y = _pair(splats, 5 * g)
    a, b = _pair(splats, 5 * g + 1)
    c, opacity = _pair(splats, 5 * g + 2)
    x -= ((tile % columns) * TILE + TILE / 2).to(tl.float32)
    y -= ((tile // columns) * TILE + TILE / 2).to(tl.float32)
    return x, y, a, b, c, opacity


@triton.jit
def _alpha(x, y, a, b, c, opacity, u, v):  # type: ignore[no-untyped-def]
    """A Gaussian's coverage of pixels before and after the cut-offs."""
    dx, dy = x - u, y - v
    exponent = dx * (a * dx + b * dy) + c * dy * dy
    full = opacity * tl.exp2(exponent)
    alpha = tl.minimum(full, 0.999)
    return full, tl.where((exponent <= 0) & (alpha >= 1.0 / 255.0), alpha, 0.0)


@triton.jit(do_not_specialize=["width", "height", "columns"])
def _draw_tile(  # type: ignore[no-untyped-def]
    splats, ids, offsets, rgb, depth, covered, through, last, width, height, columns,
    TILE: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    u, v, pixel, inside = _pixels(tile, width, height, columns, TILE)
    red, green, blue, far = u * 0, u * 0, u * 0, u * 0
    left = u * 0 + 1.0  # the light that gets through to what comes next
    open_ = inside  # more may be drawn here
    final = (u * 0).to(tl.int32)  # one past the last Gaussian drawn
    at = tl.load(offsets + tile)
    end = tl.load(offsets + tile + 1)
    while at < end:
        for k in tl.static_range(BATCH):
            # Beyond the end it is the last one again, which covers nothing then.
            g = tl.load(ids + tl.minimum(at + k, end - 1)).to(tl.int64)
            x, y, a, b, c, opacity = _load(splats, g, tile, columns, TILE)
            cr, cg = _pair(splats, 5 * g + 3)
            cb, z = _pair(splats, 5 * g + 4)
            _, alpha = _alpha(x, y, a, b, c, tl.where(at + k < end, opacity, 0.0), u, v)
            after = left * (1 - alpha)
            open_ = open_ & (after > 1e-4)  # the Gaussian that would leave less is not drawn, nor any behind it
            weight = tl.where(open_, alpha * left, 0.0)
            red += weight * cr
            green += weight * cg
            blue += weight * cb
            far += weight * z
            final = tl.where(weight > 0, at + k + 1, final)
            left = tl.where(open_, after, left)
        at += BATCH
        end = tl.where(tl.max(open_.to(tl.int32), 0) > 0, end, at)
    tl.store(rgb + 3 * pixel, red, inside)
    tl.store(rgb + 3 * pixel + 1, green, inside)
    tl.store(rgb + 3 * pixel + 2, blue, inside)
    tl.store(depth + pixel, far, inside)
    tl.store(covered + pixel, 1 - left, inside)
    tl.store(through + pixel, left, inside)
    tl.store(last + pixel, final, inside)


@triton.jit
def _coarse(x):  # type: ignore[no-untyped-def]
    """x with the mantissa that TF32 keeps."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _times(x, columns):  # type: ignore[no-untyped-def]
    """Matrix product in float32's precision, by columns that TF32 holds exactly."""
    coarse = _coarse(x)
    return tl.dot(x - coarse, columns, tl.dot(coarse, columns, input_precision="tf32"), input_precision="tf32")


@triton.jit
def _column(matrix, k, columns):  # type: ignore[no-untyped-def]
    return tl.sum(tl.where(columns == k, matrix, 0.0), 1)


@triton.jit(do_not_specialize=["width", "height", "columns"])
def _draw_tile_vjp(  # type: ignore[no-untyped-def]
    splats, ids, offsets, through, last, v_rgb, v_depth, v_alpha,
    v_means2d, v_conics, v_colours, v_depths, v_opacities, width, height, columns,
    TILE: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    u, v, pixel, inside = _pixels(tile, width, height, columns, TILE)
    final = tl.load(last + pixel, inside, 0)
    left = tl.load(through + pixel, inside, 1.0)
    v_red = tl.load(v_rgb + 3 * pixel, inside, 0.0)
    v_green = tl.load(v_rgb + 3 * pixel + 1, inside, 0.0)
    v_blue = tl.load(v_rgb + 3 * pixel + 2, inside, 0.0)
    v_far = tl.load(v_depth + pixel, inside, 0.0)
    behind = -left * tl.load(v_alpha + pixel, inside, 0.0)  # what lies behind, times its gradient

    # Of the pixels, as the columns of matrices: moments, which TF32 holds exactly, and gradients in two parts.
    k = tl.arange(0, 8)[None, :]
    moments = tl.where(k == 0, 1.0, tl.where(k == 1, u[:, None], v[:, None]))
    moments = tl.where(
        k >= 3, tl.where(k == 5, v[:, None], u[:, None]) * tl.where(k == 3, u[:, None], v[:, None]), moments
    )
    picture = tl.where(k % 4 == 0, v_red[:, None], tl.where(k % 4 == 1, v_green[:, None], v_blue[:, None]))
    picture = tl.where(k % 4 == 3, v_far[:, None], picture)
    picture = tl.where(k < 4, _coarse(picture), picture - _coarse(picture))

    row = tl.arange(0, BATCH)
    start = tl.load(offsets + tile)
    end = tl.max(final, 0)
    at = start + (end - start + BATCH - 1) // BATCH * BATCH - BATCH
    while at >= start:
        v_sigmas = tl.zeros((BATCH, TILE * TILE), tl.float32)
        weights = tl.zeros((BATCH, TILE * TILE), tl.float32)
        for back in tl.static_range(BATCH):
            j = BATCH - 1 - back
            g = tl.load(ids + tl.minimum(at + j, end - 1)).to(tl.int64)
            x, y, a, b, c, opacity = _load(splats, g, tile, columns, TILE)
            cr, cg = _pair(splats, 5 * g + 3)
            cb, z = _pair(splats, 5 * g + 4)
            full, alpha = _alpha(x, y, a, b, c, opacity, u, v)
            alpha = tl.where(at + j < final, alpha, 0.0)
            grow = 1 / (1 - alpha)
            left *= grow
            weight = alpha * left
            value = cr * v_red + cg * v_green + cb * v_blue + z * v_far
            v_coverage = left * value - behind * grow
            behind += weight * value
            v_sigma = tl.where((alpha > 0) & (full <= 0.999), -full * v_coverage, 0.0)
            # A row of a matrix whose rows are a thread's registers: no comparison is left of it.
            v_sigmas = tl.where(row[:, None] == j, v_sigma[None, :], v_sigmas)
            weights = tl.where(row[:, None] == j, weight[None, :], weights)

        live = at + row < end
        g = tl.load(ids + tl.minimum(at + row, end - 1)).to(tl.int64)
        x, y, a, b, c, opacity = _load(splats, g, tile, columns, TILE)
        # The inverse covariance again.
        a, b, c = a * -1.3862943611198906, b * -0.6931471805599453, c * -1.3862943611198906
        m = _times(v_sigmas, moments)
        m0, mu, mv = _column(m, 0, k), _column(m, 1, k), _column(m, 2, k)
        muu, muv, mvv = _column(m, 3, k), _column(m, 4, k), _column(m, 5, k)
        sum_dx, sum_dy = x * m0 - mu, y * m0 - mv
        tl.atomic_add(v_means2d + 2 * g, a * sum_dx + b * sum_dy, live, sem="relaxed")
        tl.atomic_add(v_means2d + 2 * g + 1, b * sum_dx + c * sum_dy, live, sem="relaxed")
        tl.atomic_add(v_conics + 3 * g, 0.5 * (x * (x * m0 - 2 * mu) + muu), live, sem="relaxed")
        tl.atomic_add(v_conics + 3 * g + 1, x * y * m0 - x * mv - y * mu + muv, live, sem="relaxed")
        tl.atomic_add(v_conics + 3 * g + 2, 0.5 * (y * (y * m0 - 2 * mv) + mvv), live, sem="relaxed")
        tl.atomic_add(v_opacities + g, -m0 / tl.maximum(opacity, 1e-12), live, sem="relaxed")
        v_c = _times(weights, picture)
        tl.atomic_add(v_colours + 3 * g, _column(v_c, 0, k % 4), live, sem="relaxed")
        tl.atomic_add(v_colours + 3 * g + 1, _column(v_c, 1, k % 4), live, sem="relaxed")
        tl.atomic_add(v_colours + 3 * g + 2, _column(v_c, 2, k % 4), live, sem="relaxed")
        tl.atomic_add(v_depths + g, _column(v_c, 3, k % 4), live, sem="relaxed")

        at -= BATCH
