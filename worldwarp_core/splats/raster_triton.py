"""Draws one image of projected Gaussians and its gradient with Triton, for the steps of a fit.

The picture is gsplat's: the same cut-offs, the same order. What differs is the work per Gaussian. These Gaussians are a
few pixels wide, so tiles are small, and a batch of Gaussians meets a tile of pixels at once, as a matrix: light that
gets through is a running product down the batch, and the sums over pixels that make the gradient are matrix products
with the pixels' coordinates (moments of v_sigma about the tile's centre), where gsplat adds up ten numbers across
threads for every Gaussian and every 32 pixels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8
"""Pixels, the side of the square that one program draws."""
BATCH = 16
"""Gaussians that a program meets at once; the least that a matrix product takes."""


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
        splats = tuple(t.contiguous() for t in (means2d, conics, colours, depths, opacities))
        image = torch.empty(height, width, 4, device=means2d.device)
        through = torch.empty(height, width, device=means2d.device)
        last = torch.empty(height, width, dtype=torch.int32, device=means2d.device)
        columns = -(-width // TILE)
        _draw_tile[(columns * -(-height // TILE),)](
            *splats, ids, offsets, image, through, last, width, height, columns, TILE, BATCH, num_warps=FORWARD_WARPS
        )
        ctx.save_for_backward(*splats, ids, offsets, through, last)
        return image[..., :3], image[..., 3], 1 - through

    @staticmethod
    def backward(ctx, v_rgb, v_depth, v_alpha):  # type: ignore[no-untyped-def]
        *splats, ids, offsets, through, last = ctx.saved_tensors
        height, width = through.shape
        # One buffer, zeroed at once; every part begins at an address that the kernel was compiled for.
        n, padded = len(splats[0]), triton.cdiv(len(splats[0]), 16) * 16
        widths = (2, 3, 3, 1, 1)
        parts = torch.zeros(sum(widths) * padded, device=through.device).split([w * padded for w in widths])
        gradients = [part[: w * n] for part, w in zip(parts, widths, strict=True)]
        columns = -(-width // TILE)
        _draw_tile_vjp[(columns * -(-height // TILE),)](
            *splats, ids, offsets, through, last, v_rgb.contiguous(), v_depth.contiguous(), v_alpha.contiguous(),
            *gradients, width, height, columns, TILE, BATCH, num_warps=BACKWARD_WARPS, maxnreg=BACKWARD_REGISTERS,
        )  # fmt: skip
        shaped = (g.view(s.shape) for g, s in zip(gradients, splats, strict=True))
        return *shaped, None, None, None, None


FORWARD_WARPS, BACKWARD_WARPS, BACKWARD_REGISTERS = 2, 2, 168


@triton.jit
def _pixels(tile, width, height, columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the tile's pixels: centre relative to the tile's, index in the image, whether they are in it."""
    p = tl.arange(0, TILE * TILE)
    column = (tile % columns) * TILE + p % TILE
    row = (tile // columns) * TILE + p // TILE
    u = (p % TILE).to(tl.float32) + (0.5 - TILE / 2)
    v = (p // TILE).to(tl.float32) + (0.5 - TILE / 2)
    return u, v, row * width + column, (column < width) & (row < height)


@triton.jit
def _load_batch(means2d, conics, opacities, ids, at, end, tile, columns, TILE: tl.constexpr, BATCH: tl.constexpr):  # type: ignore[no-untyped-def]
    """A batch of Gaussians from `at` on: place in the list, index, centre relative to the tile's, conic, opacity."""
    i = at + tl.arange(0, BATCH)
    live = i < end
    g = tl.load(ids + i, live, 0).to(tl.int64)
    x = tl.load(means2d + 2 * g) - ((tile % columns) * TILE + TILE / 2).to(tl.float32)
    y = tl.load(means2d + 2 * g + 1) - ((tile // columns) * TILE + TILE / 2).to(tl.float32)
    a, b, c = tl.load(conics + 3 * g), tl.load(conics + 3 * g + 1), tl.load(conics + 3 * g + 2)
    return i, live, g, x, y, a, b, c, tl.load(opacities + g, live, 0.0)


@triton.jit
def _alpha(x, y, a, b, c, opacity, u, v):  # type: ignore[no-untyped-def]
    """(BATCH, pixels) coverage before and after the cut-offs."""
    dx, dy = x[:, None] - u[None, :], y[:, None] - v[None, :]
    sigma = 0.5 * (a[:, None] * dx * dx + c[:, None] * dy * dy) + b[:, None] * dx * dy
    full = opacity[:, None] * tl.exp(-sigma)
    alpha = tl.minimum(full, 0.999)
    return full, tl.where((sigma >= 0) & (alpha >= 1.0 / 255.0), alpha, 0.0)


@triton.jit
def _multiply(a, b):  # type: ignore[no-untyped-def]
    return a * b


@triton.jit(do_not_specialize=["width", "height", "columns"])
def _draw_tile(  # type: ignore[no-untyped-def]
    means2d, conics, colours, depths, opacities, ids, offsets, image, through, last, width, height, columns,
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
        i, _live, g, x, y, a, b, c, opacity = _load_batch(
            means2d, conics, opacities, ids, at, end, tile, columns, TILE, BATCH
        )
        _, alpha = _alpha(x, y, a, b, c, opacity, u, v)
        after = left[None, :] * tl.associative_scan(1 - alpha, 0, _multiply)
        enough = after > 1e-4  # the Gaussian that would leave less is not drawn, nor any behind it
        drawn = enough & open_[None, :]
        weight = tl.where(drawn, alpha * after / (1 - alpha), 0.0)
        red += tl.sum(weight * tl.load(colours + 3 * g)[:, None], 0)
        green += tl.sum(weight * tl.load(colours + 3 * g + 1)[:, None], 0)
        blue += tl.sum(weight * tl.load(colours + 3 * g + 2)[:, None], 0)
        far += tl.sum(tl.where(weight > 0, weight * tl.load(depths + g)[:, None], 0.0), 0)
        final = tl.maximum(final, tl.max(tl.where(weight > 0, i[:, None] + 1, 0), 0))
        left = tl.min(tl.where(drawn, after, left[None, :]), 0)
        open_ = open_ & (tl.min(enough.to(tl.int32), 0) > 0)
        at += BATCH
        end = tl.where(tl.max(open_.to(tl.int32), 0) > 0, end, at)
    tl.store(image + 4 * pixel, red, inside)
    tl.store(image + 4 * pixel + 1, green, inside)
    tl.store(image + 4 * pixel + 2, blue, inside)
    tl.store(image + 4 * pixel + 3, far, inside)
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
    means2d, conics, colours, depths, opacities, ids, offsets, through, last, v_rgb, v_depth, v_alpha,
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
    v_left = left * tl.load(v_alpha + pixel, inside, 0.0)
    behind = u * 0  # what was drawn behind the batch, times its gradient

    # Of the pixels, as the columns of matrices: moments, which TF32 holds exactly, and gradients in two parts.
    k = tl.arange(0, 8)[None, :]
    moments = tl.where(k == 0, 1.0, tl.where(k == 1, u[:, None], v[:, None]))
    moments = tl.where(
        k >= 3, tl.where(k == 5, v[:, None], u[:, None]) * tl.where(k == 3, u[:, None], v[:, None]), moments
    )
    picture = tl.where(k % 4 == 0, v_red[:, None], tl.where(k % 4 == 1, v_green[:, None], v_blue[:, None]))
    picture = tl.where(k % 4 == 3, v_far[:, None], picture)
    picture = tl.where(k < 4, _coarse(picture), picture - _coarse(picture))

    start = tl.load(offsets + tile)
    end = tl.max(final, 0)
    at = start + (end - start + BATCH - 1) // BATCH * BATCH - BATCH
    while at >= start:
        i, live, g, x, y, a, b, c, opacity = _load_batch(
            means2d, conics, opacities, ids, at, end, tile, columns, TILE, BATCH
        )
        full, alpha = _alpha(x, y, a, b, c, opacity, u, v)
        alpha = tl.where(i[:, None] < final[None, :], alpha, 0.0)
        keep = 1 - alpha
        after = tl.associative_scan(keep, 0, _multiply)  # of the light that reaches the batch
        left = left / tl.min(after, 0)
        before = left[None, :] * after / keep
        weight = alpha * before
        far = tl.load(depths + g, live, 0.0)
        value = (
            tl.load(colours + 3 * g, live, 0.0)[:, None] * v_red[None, :]
            + tl.load(colours + 3 * g + 1, live, 0.0)[:, None] * v_green[None, :]
            + tl.load(colours + 3 * g + 2, live, 0.0)[:, None] * v_blue[None, :]
            + far[:, None] * v_far[None, :]
        )
        part = weight * value
        behind += tl.sum(part, 0)
        farther = behind[None, :] - tl.cumsum(part, 0)
        v_coverage = before * value - (farther - v_left[None, :]) / keep
        v_sigma = tl.where((alpha > 0) & (full <= 0.999), -full * v_coverage, 0.0)

        m = _times(v_sigma, moments)
        m0, mu, mv = _column(m, 0, k), _column(m, 1, k), _column(m, 2, k)
        muu, muv, mvv = _column(m, 3, k), _column(m, 4, k), _column(m, 5, k)
        sum_dx, sum_dy = x * m0 - mu, y * m0 - mv
        tl.atomic_add(v_means2d + 2 * g, a * sum_dx + b * sum_dy, live, sem="relaxed")
        tl.atomic_add(v_means2d + 2 * g + 1, b * sum_dx + c * sum_dy, live, sem="relaxed")
        tl.atomic_add(v_conics + 3 * g, 0.5 * (x * (x * m0 - 2 * mu) + muu), live, sem="relaxed")
        tl.atomic_add(v_conics + 3 * g + 1, x * y * m0 - x * mv - y * mu + muv, live, sem="relaxed")
        tl.atomic_add(v_conics + 3 * g + 2, 0.5 * (y * (y * m0 - 2 * mv) + mvv), live, sem="relaxed")
        tl.atomic_add(v_opacities + g, -m0 / tl.maximum(opacity, 1e-12), live, sem="relaxed")
        v_c = _times(weight, picture)
        tl.atomic_add(v_colours + 3 * g, _column(v_c, 0, k % 4), live, sem="relaxed")
        tl.atomic_add(v_colours + 3 * g + 1, _column(v_c, 1, k % 4), live, sem="relaxed")
        tl.atomic_add(v_colours + 3 * g + 2, _column(v_c, 2, k % 4), live, sem="relaxed")
        tl.atomic_add(v_depths + g, _column(v_c, 3, k % 4), live, sem="relaxed")

        at -= BATCH
