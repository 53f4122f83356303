"""The loss of a fit's step and its gradient in four passes over the picture, with Triton.

`loss.view_loss` says what it is; written in torch it makes some ninety passes. SSIM's windows are summed along rows,
then along columns. Where p is a window of n pixels and q one of them, d SSIM(p) / d a(q) is (g1(p) + 2 a(q) g2(p) +
b(q) g3(p)) / n, with the derivatives g by the window's means of a, aa and ab: three more sums over windows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fit_settings import FitSettings
from .loss import SSIM_WINDOW, FitViews

BLOCK = 256
"""Pixels that one program takes."""


class ViewLoss:
    """The loss of pictures of some views, whose number only the device knows."""

    def __init__(self, views: FitViews, settings: FitSettings) -> None:
        height, width = views.weight.shape[1:]
        self.side = min(SSIM_WINDOW, height, width)
        low, high = (self.side - 1) // 2, self.side // 2
        inner = views.weight[:, low : height - high, low : width - high]
        # (V, 2): what the pixels of a view weigh, and the centres of its windows.
        self.totals = torch.stack([t.sum((1, 2)).clamp_min(1e-6) for t in (views.weight, inner)], 1)
        self.seen = tuple(t.contiguous() for t in (views.rgb, views.disparity, views.weight, views.depth_weight))
        self.terms = (
            1 - settings.ssim_weight,
            settings.ssim_weight,
            settings.disparity_weight,
            settings.coverage_weight,
        )

    def __call__(self, rgb: Tensor, depth_sum: Tensor, alpha: Tensor, view: Tensor) -> Tensor:
        """() loss of premultiplied (H, W, 3), summed depth (H, W) and alpha (H, W) against the (1,) view."""
        return _Loss.apply(rgb, depth_sum, alpha, view, self)  # type: ignore[no-any-return]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rgb, depth_sum, alpha, view, of):  # type: ignore[no-untyped-def]
        rgb, depth_sum, alpha = (t.contiguous() for t in (rgb, depth_sum, alpha))
        height, width = alpha.shape
        across, down = width - of.side + 1, height - of.side + 1
        rows = torch.empty(15, height, across, device=rgb.device)
        windows = torch.empty(9, down, across, device=rgb.device)
        sums = torch.zeros(5, device=rgb.device)
        loss = torch.empty((), device=rgb.device)
        grid = (triton.cdiv(height * width, BLOCK),)
        picture = rgb, depth_sum, alpha, *of.seen
        _along_rows[grid](*picture, view, rows, sums, height, width, of.side, BLOCK)
        _windows[grid](rows, of.seen[2], of.totals, view, windows, sums, height, width, of.terms[1], of.side, BLOCK)
        _total[(1,)](sums, of.totals, view, loss, *of.terms)
        ctx.save_for_backward(rgb, depth_sum, alpha, view, windows, sums)
        ctx.of = of
        return loss

    @staticmethod
    def backward(ctx, v_loss):  # type: ignore[no-untyped-def]
        rgb, depth_sum, alpha, view, windows, sums = ctx.saved_tensors
        of, (height, width) = ctx.of, alpha.shape
        rows = torch.empty(9, height - of.side + 1, width, device=rgb.device)
        v_rgb, v_depth_sum, v_alpha = (torch.empty_like(t) for t in (rgb, depth_sum, alpha))
        grid = (triton.cdiv(height * width, BLOCK),)
        _back_along_rows[grid](windows, rows, height, width, of.side, BLOCK)
        picture = rgb, depth_sum, alpha, *of.seen
        share, _, disparity, coverage = of.terms
        _gradient[grid](
            *picture, view, of.totals, rows, sums, v_loss.contiguous(), v_rgb, v_depth_sum, v_alpha,
            height, width, share, disparity, coverage, of.side, BLOCK,
        )  # fmt: skip
        return v_rgb, v_depth_sum, v_alpha, None, None


@triton.jit
def _pixel(rgb, alpha, targets, first, i, live):  # type: ignore[no-untyped-def]
    """Of pixels i: the target, and the picture laid over it (gaps cost nothing in colour), by channel; and alpha."""
    through = 1 - tl.load(alpha + i, live, 1.0)
    t0 = tl.load(targets + 3 * (first + i), live, 0.0)
    t1 = tl.load(targets + 3 * (first + i) + 1, live, 0.0)
    t2 = tl.load(targets + 3 * (first + i) + 2, live, 0.0)
    a0 = tl.load(rgb + 3 * i, live, 0.0) + through * t0
    a1 = tl.load(rgb + 3 * i + 1, live, 0.0) + through * t1
    a2 = tl.load(rgb + 3 * i + 2, live, 0.0) + through * t2
    return a0, a1, a2, t0, t1, t2, 1 - through


@triton.jit
def _disparity(depth_sum, alpha):  # type: ignore[no-untyped-def]
    return 1 / tl.maximum(depth_sum / tl.maximum(alpha, 1e-10), 1e-3)


@triton.jit(do_not_specialize=["height", "width"])
def _along_rows(  # type: ignore[no-untyped-def]
    rgb, depth_sum, alpha, targets, disparities, weights, depth_weights, view, rows, sums, height, width,
    SIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over `SIDE` pixels to the right of a, b, aa, bb and ab by channel; and the sums of the plain terms."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < height * width
    first = tl.load(view) * height * width
    x, y = i % width, i // width

    a0, a1, a2, b0, b1, b2, cover = _pixel(rgb, alpha, targets, first, i, live)
    weight = tl.load(weights + first + i, live, 0.0)
    tl.atomic_add(sums, tl.sum(weight * (tl.abs(a0 - b0) + tl.abs(a1 - b1) + tl.abs(a2 - b2)) / 3))
    tl.atomic_add(sums + 1, tl.sum(weight * (1 - cover)))
    off = _disparity(tl.load(depth_sum + i, live, 0.0), cover) - tl.load(disparities + first + i, live, 0.0)
    trust = tl.where(live & (cover > 0.5), tl.load(depth_weights + first + i, live, 0.0), 0.0)
    tl.atomic_add(sums + 2, tl.sum(trust * tl.abs(off)))
    tl.atomic_add(sums + 3, tl.sum(trust))

    across = width - SIDE + 1
    held = live & (x < across)
    s0, s1, s2, t0, t1, t2 = a0, a1, a2, b0, b1, b2
    ss0, ss1, ss2, tt0, tt1, tt2 = a0 * a0, a1 * a1, a2 * a2, b0 * b0, b1 * b1, b2 * b2
    st0, st1, st2 = a0 * b0, a1 * b1, a2 * b2
    for k in tl.static_range(1, SIDE):
        a0, a1, a2, b0, b1, b2, _ = _pixel(rgb, alpha, targets, first, i + k, held)
        s0, s1, s2, t0, t1, t2 = s0 + a0, s1 + a1, s2 + a2, t0 + b0, t1 + b1, t2 + b2
        ss0, ss1, ss2 = ss0 + a0 * a0, ss1 + a1 * a1, ss2 + a2 * a2
        tt0, tt1, tt2 = tt0 + b0 * b0, tt1 + b1 * b1, tt2 + b2 * b2
        st0, st1, st2 = st0 + a0 * b0, st1 + a1 * b1, st2 + a2 * b2
    at, plane = rows + y * across + x, height * across
    _store5(at, plane, s0, t0, ss0, tt0, st0, held)
    _store5(at + 5 * plane, plane, s1, t1, ss1, tt1, st1, held)
    _store5(at + 10 * plane, plane, s2, t2, ss2, tt2, st2, held)


@triton.jit
def _store5(at, plane, a, b, c, d, e, live):  # type: ignore[no-untyped-def]
    tl.store(at, a, live)
    tl.store(at + plane, b, live)
    tl.store(at + 2 * plane, c, live)
    tl.store(at + 3 * plane, d, live)
    tl.store(at + 4 * plane, e, live)


@triton.jit(do_not_specialize=["height", "width"])
def _windows(  # type: ignore[no-untyped-def]
    rows, weights, totals, view, windows, sums, height, width, term, SIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """SSIM of each window: its weighted sum, and its share of the loss by the sums of a, aa and ab, by channel."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    across, down = width - SIDE + 1, height - SIDE + 1
    live = i < down * across
    x, y = i % across, i // across
    centre = tl.load(view) * height * width + (y + (SIDE - 1) // 2) * width + x + (SIDE - 1) // 2
    weight = tl.load(weights + centre, live, 0.0)
    share = -term * weight / (3 * SIDE * SIDE * tl.load(totals + 2 * tl.load(view) + 1))
    unlike = weight * 0
    for channel in range(3):
        at = rows + channel * 5 * height * across + i
        a, b, aa, bb, ab = _column_means(at, height * across, across, live, SIDE)
        n1, n2 = 2 * a * b + 0.0001, 2 * (ab - a * b) + 0.0009
        d1, d2 = a * a + b * b + 0.0001, (aa - a * a) + (bb - b * b) + 0.0009
        similar = n1 * n2 / (d1 * d2)
        unlike += (1 - similar) / 3
        to = windows + channel * 3 * down * across + i
        tl.store(to, share * (2 * b * (n2 - n1) / (d1 * d2) + 2 * a * similar * (1 / d2 - 1 / d1)), live)
        tl.store(to + down * across, -share * similar / d2, live)
        tl.store(to + 2 * down * across, share * 2 * n1 / (d1 * d2), live)
    tl.atomic_add(sums + 4, tl.sum(weight * unlike))


@triton.jit
def _column_means(at, plane, across, live, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    a = tl.load(at, live, 0.0)
    b, aa = tl.load(at + plane, live, 0.0), tl.load(at + 2 * plane, live, 0.0)
    bb, ab = tl.load(at + 3 * plane, live, 0.0), tl.load(at + 4 * plane, live, 0.0)
    for k in tl.static_range(1, SIDE):
        below = at + k * across
        a += tl.load(below, live, 0.0)
        b += tl.load(below + plane, live, 0.0)
        aa += tl.load(below + 2 * plane, live, 0.0)
        bb += tl.load(below + 3 * plane, live, 0.0)
        ab += tl.load(below + 4 * plane, live, 0.0)
    n = SIDE * SIDE
    return a / n, b / n, aa / n, bb / n, ab / n


@triton.jit
def _total(sums, totals, view, loss, share, dissimilarity, disparity, coverage):  # type: ignore[no-untyped-def]
    total, inner = tl.load(totals + 2 * tl.load(view)), tl.load(totals + 2 * tl.load(view) + 1)
    plain = share * tl.load(sums) / total + coverage * tl.load(sums + 1) / total
    off = disparity * tl.load(sums + 2) / tl.maximum(tl.load(sums + 3), 1e-6)
    tl.store(loss, plain + off + dissimilarity * tl.load(sums + 4) / inner)


@triton.jit(do_not_specialize=["height", "width"])
def _back_along_rows(windows, rows, height, width, SIDE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """For each pixel of a row of windows, the sum over the windows that begin there or up to `SIDE` - 1 to the left."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    across, down = width - SIDE + 1, height - SIDE + 1
    live = i < down * width
    x, y = i % width, i // width
    for plane in range(9):
        total = x * 0.0
        for k in tl.static_range(SIDE):
            held = live & (x >= k) & (x - k < across)
            total += tl.load(windows + plane * down * across + y * across + x - k, held, 0.0)
        tl.store(rows + plane * down * width + i, total, live)


@triton.jit
def _back_down_columns(rows, plane, i, y, width, down, live, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    total = y * 0.0
    for k in tl.static_range(SIDE):
        held = live & (y >= k) & (y - k < down)
        total += tl.load(rows + plane * down * width + i - k * width, held, 0.0)
    return total


@triton.jit(do_not_specialize=["height", "width"])
def _gradient(  # type: ignore[no-untyped-def]
    rgb, depth_sum, alpha, targets, disparities, weights, depth_weights, view, totals, rows, sums, v_loss,
    v_rgb, v_depth_sum, v_alpha, height, width, share, disparity_term, coverage,
    SIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < height * width
    first = tl.load(view) * height * width
    y, down = i // width, height - SIDE + 1
    scale, total = tl.load(v_loss), tl.load(totals + 2 * tl.load(view))
    a0, a1, a2, b0, b1, b2, cover = _pixel(rgb, alpha, targets, first, i, live)
    weight = tl.load(weights + first + i, live, 0.0) / total

    v0 = _colour_gradient(rows, 0, a0, b0, i, y, width, down, live, share * weight / 3, SIDE) * scale
    v1 = _colour_gradient(rows, 3, a1, b1, i, y, width, down, live, share * weight / 3, SIDE) * scale
    v2 = _colour_gradient(rows, 6, a2, b2, i, y, width, down, live, share * weight / 3, SIDE) * scale
    tl.store(v_rgb + 3 * i, v0, live)
    tl.store(v_rgb + 3 * i + 1, v1, live)
    tl.store(v_rgb + 3 * i + 2, v2, live)

    far = tl.load(depth_sum + i, live, 0.0)
    trust = tl.where(cover > 0.5, tl.load(depth_weights + first + i, live, 0.0), 0.0)
    trust = trust * disparity_term / tl.maximum(tl.load(sums + 3), 1e-6)
    seen = _disparity(far, cover)
    off = seen - tl.load(disparities + first + i, live, 0.0)
    # Where trust is not 0, alpha exceeds 0.5: only the nearest depth is a bound.
    v_depth = tl.where(far >= 1e-3 * cover, -trust * _sign(off) * seen * seen, 0.0) * scale
    cover = tl.maximum(cover, 1e-10)
    tl.store(v_depth_sum + i, v_depth / cover, live)
    v_cover = -(v0 * b0 + v1 * b1 + v2 * b2) - scale * coverage * weight - v_depth * far / (cover * cover)
    tl.store(v_alpha + i, v_cover, live)


@triton.jit
def _sign(x):  # type: ignore[no-untyped-def]
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _colour_gradient(rows, plane, a, b, i, y, width, down, live, share, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    by_a = _back_down_columns(rows, plane, i, y, width, down, live, SIDE)
    by_aa = _back_down_columns(rows, plane + 1, i, y, width, down, live, SIDE)
    by_ab = _back_down_columns(rows, plane + 2, i, y, width, down, live, SIDE)
    return by_a + 2 * a * by_aa + b * by_ab + share * _sign(a - b)
