"""The CPU rasteriser: Gaussians to RGB, alpha and expected depth, forward and backward, in numba.

One camera is drawn in four steps: project every Gaussian (`projection`), evaluate its colour (`sh`), sort the visible
ones by depth into the lists of the 8 x 8 tiles that their boxes touch, and composite each tile front to back. The
compositing follows gsplat's CUDA kernels: pixel centres at +0.5; alpha = min(0.999, opacity exp(-sigma)); what is
below 1/255 is skipped; a pixel stops before the Gaussian that would bring its transmittance to 1e-4.

The backward pass walks the same lists in the same order. Each entry of a tile list has its own row for the gradient of
its Gaussian, and a Gaussian's rows are summed afterwards, so nothing is added atomically and the result does not
depend on the number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from . import projection, sh
from .constants import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE
from .gaussians import Gaussians
from .numba_threads import NUMBA_LOCK, PARALLEL, SERIAL
from .projection import COLOUR, COLUMNS, CONIC_XX, CONIC_XY, CONIC_YY, DEPTH, OPACITY, X, Y

TILE = 8  # pixels: a row of a tile is one AVX register of float32
PIXEL = 5  # values of a pixel: RGB, expected depth, remaining transmittance

# The state of a tile is one array of planes, so that the compiler sees that they do not overlap and vectorises over
# pixels: transmittance, 1 while the pixel is not finished, pixel centre; then four sums (forward), or the gradients of
# the four sums and what remains of the pixel's total behind the current Gaussian (backward).
PLANE = TILE * TILE
T_, LIVE_, PX_, PY_, A_, B_, C_, D_, REST_ = (PLANE * i for i in range(9))


@dataclass(frozen=True)
class View:
    """What the backward pass needs from the forward pass of one camera."""

    w2c: np.ndarray  # (4, 4) float64
    K: np.ndarray  # (3, 3) float64
    centre: np.ndarray  # (3,) the camera in the world, float64
    splats: np.ndarray  # (N, COLUMNS)
    boxes: np.ndarray  # (N, 4) int32
    lists: tuple[np.ndarray, ...]  # see _tile_lists
    pixels: np.ndarray  # (H, W, PIXEL)


def rasterize_cpu(
    gaussians: Gaussians, w2c: Tensor, K: Tensor, width: int, height: int, *, _cutoffs: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """RGB (C, H, W, 3), alpha (C, H, W) and expected depth (C, H, W), in the dtype of the Gaussians.

    `_cutoffs=False` drops the alpha and transmittance limits and the boxes (for finite differences, which they spoil),
    in float64 only: the exponential of float32 is cut off too.
    """
    tensors = tuple(gaussians.tensors().values())
    assert _cutoffs or gaussians.means.dtype == torch.float64, gaussians.means.dtype
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Rasterize.apply(w2c, K, width, height, _cutoffs, *tensors)  # type: ignore[no-any-return]
    # One camera at a time, keeping only its pixels.
    arrays = _arrays(tensors)
    images = np.empty((len(w2c), height, width, PIXEL), arrays[0].dtype)
    for camera, pixels in zip(_cameras(w2c, K), images, strict=True):
        _draw(arrays, *camera, pixels, _cutoffs)
    return _split(images)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, w2c: Tensor, K: Tensor, width: int, height: int, cutoffs: bool, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(*tensors)
        ctx.cutoffs = cutoffs
        arrays = _arrays(tensors)
        images = np.empty((len(w2c), height, width, PIXEL), arrays[0].dtype)
        views = zip(_cameras(w2c, K), images, strict=True)
        ctx.views = [_draw(arrays, *camera, pixels, cutoffs) for camera, pixels in views]
        return _split(images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v_rgb: Tensor, v_alpha: Tensor, v_depth: Tensor) -> tuple[Tensor | None, ...]:
        arrays = _arrays(ctx.saved_tensors)
        gradients = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in ctx.saved_tensors]
        v_images = torch.cat([v_rgb, v_depth[..., None], v_alpha[..., None]], dim=-1).numpy()
        for view, v_image in zip(ctx.views, v_images, strict=True):
            _draw_vjp(arrays, view, v_image, ctx.cutoffs, [g.numpy() for g in gradients])
        return (None, None, None, None, None, *gradients)


def _arrays(tensors: tuple[Tensor, ...]) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


def _cameras(w2c: Tensor, K: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(w2c.detach().cpu().double().numpy().copy(), K.detach().cpu().double().numpy().copy(), strict=True))


def _split(images: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """RGB, alpha and depth, as copies: what a caller does to them must not reach what the backward pass reads."""
    pixels = torch.from_numpy(images)
    return pixels[..., :3].clone(memory_format=torch.contiguous_format), 1 - pixels[..., 4], pixels[..., 3].clone()


def _draw(arrays: list[np.ndarray], w2c: np.ndarray, K: np.ndarray, pixels: np.ndarray, cutoffs: bool) -> View:
    """Fills `pixels` (H, W, PIXEL) with what one camera sees."""
    means, quats, scales, opacities, sh0, shN = arrays
    centre = np.linalg.inv(w2c)[:3, 3].copy()
    splats = np.empty((len(means), COLUMNS), means.dtype)
    boxes = np.empty((len(means), 4), np.int32)
    height, width, _ = pixels.shape
    workers = numba.get_num_threads()
    with NUMBA_LOCK:
        projection.project(workers, means, quats, scales, opacities, w2c, K, width, height, cutoffs, splats, boxes)
        sh.evaluate(workers, means, centre, sh0, shN, boxes, splats, COLOUR)
        lists = _tile_lists(_front_to_back(splats, boxes), boxes, width, height)
        _composite(workers, splats, boxes, *lists[:2], *_limits(cutoffs), pixels)
    return View(w2c, K, centre, splats, boxes, lists, pixels)


def _draw_vjp(
    arrays: list[np.ndarray], view: View, v_image: np.ndarray, cutoffs: bool, gradients: list[np.ndarray]
) -> None:
    """Adds the gradient of one camera's image (H, W, 5: RGB, depth, alpha) to those of the six Gaussian tensors."""
    means, quats, scales, _, _, shN = arrays
    v_means, v_quats, v_scales, v_opacities, v_sh0, v_shN = gradients
    height, width, _ = view.pixels.shape
    starts, members, entries, first_entry = view.lists
    v_entries = np.zeros((len(members), COLUMNS), means.dtype)
    v_splats = np.empty_like(view.splats)
    workers, limits = numba.get_num_threads(), _limits(cutoffs)
    with NUMBA_LOCK:
        _composite_vjp(
            workers, view.splats, view.boxes, starts, members, entries, *limits, view.pixels, v_image, v_entries
        )
        _sum_entries(first_entry, v_entries, v_splats)
        sh.evaluate_vjp(
            workers, means, view.centre, shN, view.boxes, view.splats, v_splats, COLOUR, v_means, v_sh0, v_shN
        )
        projection.project_vjp(
            workers, means, quats, scales, view.w2c, view.K, width, height, view.splats, view.boxes, v_splats,
            v_means, v_quats, v_scales, v_opacities,
        )  # fmt: skip


def _front_to_back(splats: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The visible Gaussians by depth in float32, then by number, as gsplat sorts them."""
    visible = np.flatnonzero(boxes[:, 1] > boxes[:, 0])
    # The bits of positive floats sort as integers do, and numpy sorts 16 bits by radix: 5 times faster than floats.
    bits = splats[visible, DEPTH].astype(np.float32).view(np.uint32)
    by_low = np.argsort(bits.astype(np.uint16), kind="stable")
    return visible[by_low[np.argsort((bits >> 16).astype(np.uint16)[by_low], kind="stable")]]


def _limits(cutoffs: bool) -> tuple[float, float]:
    """The least alpha that counts, and the transmittance at which a pixel stops."""
    return (MIN_ALPHA, MIN_TRANSMITTANCE) if cutoffs else (0.0, -1.0)


@numba.njit(**SERIAL)
def _tile_lists(order, boxes, width, height):  # type: ignore[no-untyped-def]
    """Distributes Gaussians, in `order` (front to back), over the tiles that their boxes touch.

    Returns:
        starts: (tiles + 1,) where each tile's list starts in the next two.
        members: (E,) Gaussian of each entry, by tile, front to back.
        entries: (E,) number of each entry when counted Gaussian by Gaussian.
        first_entry: (N, 2) first and one past the last number of each visible Gaussian.
    """
    tiles_x = (width + TILE - 1) // TILE
    tiles_y = (height + TILE - 1) // TILE
    starts = np.zeros(tiles_x * tiles_y + 1, np.int64)
    for n in order:
        for ty in range(boxes[n, 2] // TILE, (boxes[n, 3] - 1) // TILE + 1):
            for tx in range(boxes[n, 0] // TILE, (boxes[n, 1] - 1) // TILE + 1):
                starts[ty * tiles_x + tx + 1] += 1
    for tile in range(tiles_x * tiles_y):
        starts[tile + 1] += starts[tile]
    members = np.empty(starts[-1], np.int32)
    entries = np.empty(starts[-1], np.int32)
    first_entry = np.zeros((len(boxes), 2), np.int32)
    cursor = starts[:-1].copy()
    entry = 0
    for n in order:
        first_entry[n, 0] = entry
        for ty in range(boxes[n, 2] // TILE, (boxes[n, 3] - 1) // TILE + 1):
            for tx in range(boxes[n, 0] // TILE, (boxes[n, 1] - 1) // TILE + 1):
                tile = ty * tiles_x + tx
                members[cursor[tile]] = n
                entries[cursor[tile]] = entry
                cursor[tile] += 1
                entry += 1
        first_entry[n, 1] = entry
    return starts, members, entries, first_entry


def _exp_of_minus(sigma):  # type: ignore[no-untyped-def]
    """exp(-sigma) for sigma >= 0, as kernels see it; see the overload."""
    return math.exp(-sigma)


@overload(_exp_of_minus, inline="always")
def _exp_of_minus_overload(sigma):  # type: ignore[no-untyped-def]
    """In float32 a polynomial that vectorises: 3e-6 relative up to 5.75, held at exp(-5.75) < 1/255 beyond."""
    if sigma != numba.float32:
        return lambda sigma: math.exp(-sigma)

    def polynomial(sigma):  # type: ignore[no-untyped-def]
        # Minimax for exp(x) on [-5.75 / 8, 0], to the eighth power.
        x = np.float32(-0.125) * min(sigma, np.float32(5.75))
        p = np.float32(0.005830044922838382)
        p = p * x + np.float32(0.03975932876795482)
        p = p * x + np.float32(0.16597913973589826)
        p = p * x + np.float32(0.4998890594494175)
        p = p * x + np.float32(0.9999940381791211)
        p = p * x + np.float32(1.0)
        p = p * p
        p = p * p
        return p * p

    return polynomial


@numba.njit(**PARALLEL)
def _composite(workers, splats, boxes, starts, members, min_alpha, min_transmittance, pixels):  # type: ignore[no-untyped-def]
    """Fills `pixels` (H, W, PIXEL) from the lists of `_tile_lists`."""
    for worker in numba.prange(workers):
        _composite_part(np.int64(worker), workers, splats, boxes, starts, members, min_alpha, min_transmittance, pixels)


@numba.njit(**SERIAL, fastmath=True)
def _composite_part(  # type: ignore[no-untyped-def]
    worker, workers, splats, boxes, starts, members, min_alpha, min_transmittance, pixels
):
    height, width, _ = pixels.shape
    tiles_x = (width + TILE - 1) // TILE
    F = splats.dtype.type
    zero, half, one = F(0), F(0.5), F(1)
    max_alpha, cut, stop = F(MAX_ALPHA), F(min_alpha), F(min_transmittance)
    p = np.empty(PLANE * 8, splats.dtype)
    for tile in range(worker, len(starts) - 1, workers):
        ox, oy = tile % tiles_x * TILE, tile // tiles_x * TILE
        rows_here, columns_here = min(TILE, height - oy), min(TILE, width - ox)
        for k in range(PLANE * 8):
            p[k] = zero
        for r in range(TILE):
            for l in range(TILE):
                k = r * TILE + l
                p[T_ + k] = one
                p[LIVE_ + k] = one if r < rows_here and l < columns_here else zero
                p[PX_ + k] = F(ox + l) + half
                p[PY_ + k] = F(oy + r) + half
        live_pixels = F(rows_here * columns_here)
        for i in range(starts[tile], starts[tile + 1]):
            if live_pixels == zero:
                break
            n = members[i]
            x, y = splats[n, X], splats[n, Y]
            xx, xy, yy = half * splats[n, CONIC_XX], splats[n, CONIC_XY], half * splats[n, CONIC_YY]
            opacity, z = splats[n, OPACITY], splats[n, DEPTH]
            red, green, blue = splats[n, COLOUR], splats[n, COLOUR + 1], splats[n, COLOUR + 2]
            first, last = max(boxes[n, 2] - oy, 0), min(boxes[n, 3] - oy, rows_here)
            q = p[first * TILE :]
            for k in range((last - first) * TILE):
                dx = x - q[PX_ + k]
                dy = y - q[PY_ + k]
                sigma = (xx * dx + xy * dy) * dx + yy * dy * dy
                alpha = min(opacity * _exp_of_minus(sigma), max_alpha)
                alpha = alpha if (alpha >= cut) and (sigma >= zero) else zero
                T = q[T_ + k]
                T_next = T * (one - alpha)
                live = q[LIVE_ + k] if T_next > stop else zero
                weight = T * alpha * live
                q[T_ + k] = T_next if live > zero else T
                live_pixels += live - q[LIVE_ + k]
                q[LIVE_ + k] = live
                q[A_ + k] += weight * red
                q[B_ + k] += weight * green
                q[C_ + k] += weight * blue
                q[D_ + k] += weight * z
        for r in range(rows_here):
            for l in range(columns_here):
                k = r * TILE + l
                pixel = pixels[oy + r, ox + l]
                pixel[0] = p[A_ + k]
                pixel[1] = p[B_ + k]
                pixel[2] = p[C_ + k]
                pixel[3] = p[D_ + k] / max(one - p[T_ + k], F(1e-10))
                pixel[4] = p[T_ + k]


@numba.njit(**PARALLEL)
def _composite_vjp(  # type: ignore[no-untyped-def]
    workers, splats, boxes, starts, members, entries, min_alpha, min_transmittance, pixels, v_image, v_entries
):
    """Fills `v_entries` (E, COLUMNS), row by entry number, from `v_image` (H, W, 5: RGB, expected depth, alpha).

    With weight w_i = T_i alpha_i and q_i the dot product of a Gaussian's colour and depth with the pixel's gradient,
    d/d alpha_i = T_i q_i - (sum of w_j q_j behind i - T_end v_alpha) / (1 - alpha_i). The sum behind is the pixel's
    total, known from its colour, less what has been passed.
    """
    for worker in numba.prange(workers):
        _composite_vjp_part(
            np.int64(worker), workers, splats, boxes, starts, members, entries, min_alpha, min_transmittance, pixels,
            v_image, v_entries,
        )  # fmt: skip


@numba.njit(**SERIAL, fastmath=True)
def _composite_vjp_part(  # type: ignore[no-untyped-def]
    worker, workers, splats, boxes, starts, members, entries, min_alpha, min_transmittance, pixels, v_image, v_entries
):
    height, width, _ = pixels.shape
    tiles_x = (width + TILE - 1) // TILE
    F = splats.dtype.type
    zero, half, one = F(0), F(0.5), F(1)
    max_alpha, cut, stop = F(MAX_ALPHA), F(min_alpha), F(min_transmittance)
    p = np.empty(PLANE * 9, splats.dtype)
    for tile in range(worker, len(starts) - 1, workers):
        ox, oy = tile % tiles_x * TILE, tile // tiles_x * TILE
        rows_here, columns_here = min(TILE, height - oy), min(TILE, width - ox)
        for k in range(PLANE * 9):
            p[k] = zero
        for r in range(TILE):
            for l in range(TILE):
                k = r * TILE + l
                p[T_ + k] = one
                p[PX_ + k] = F(ox + l) + half
                p[PY_ + k] = F(oy + r) + half
                if r >= rows_here or l >= columns_here:
                    continue
                pixel, v = pixels[oy + r, ox + l], v_image[oy + r, ox + l]
                T_end = pixel[4]
                # Expected depth = D / alpha.
                v_D = v[3] / max(one - T_end, F(1e-10))
                v_alpha = v[4] - v_D * pixel[3]
                total = v[0] * pixel[0] + v[1] * pixel[1] + v[2] * pixel[2] + v[3] * pixel[3]
                p[LIVE_ + k] = one
                p[A_ + k] = v[0]
                p[B_ + k] = v[1]
                p[C_ + k] = v[2]
                p[D_ + k] = v_D
                p[REST_ + k] = total - T_end * v_alpha
        live_pixels = F(rows_here * columns_here)
        for i in range(starts[tile], starts[tile + 1]):
            if live_pixels == zero:
                break
            n = members[i]
            x, y = splats[n, X], splats[n, Y]
            xx, xy, yy = half * splats[n, CONIC_XX], splats[n, CONIC_XY], half * splats[n, CONIC_YY]
            opacity, z = splats[n, OPACITY], splats[n, DEPTH]
            red, green, blue = splats[n, COLOUR], splats[n, COLOUR + 1], splats[n, COLOUR + 2]
            v_red, v_green, v_blue, v_z = zero, zero, zero, zero
            s, s_x, s_y, s_xx, s_xy, s_yy = zero, zero, zero, zero, zero, zero
            first, last = max(boxes[n, 2] - oy, 0), min(boxes[n, 3] - oy, rows_here)
            q = p[first * TILE :]
            for k in range((last - first) * TILE):
                dx = x - q[PX_ + k]
                dy = y - q[PY_ + k]
                sigma = (xx * dx + xy * dy) * dx + yy * dy * dy
                full_alpha = opacity * _exp_of_minus(sigma)
                alpha = min(full_alpha, max_alpha)
                alpha = alpha if (alpha >= cut) and (sigma >= zero) else zero
                T = q[T_ + k]
                T_next = T * (one - alpha)
                live = q[LIVE_ + k] if T_next > stop else zero
                weight = T * alpha * live
                q[T_ + k] = T_next if live > zero else T
                live_pixels += live - q[LIVE_ + k]
                q[LIVE_ + k] = live
                v_A, v_B, v_C, v_D = q[A_ + k], q[B_ + k], q[C_ + k], q[D_ + k]
                u = v_A * red + v_B * green + v_C * blue + v_D * z
                rest = q[REST_ + k] - weight * u
                q[REST_ + k] = rest
                v_alpha = T * u - rest / (one - alpha)
                # An alpha held at its maximum passes no gradient on to the Gaussian's shape and opacity.
                v_sigma = -alpha * live * v_alpha if full_alpha <= max_alpha else zero
                v_red += weight * v_A
                v_green += weight * v_B
                v_blue += weight * v_C
                v_z += weight * v_D
                s += v_sigma
                s_x += v_sigma * dx
                s_y += v_sigma * dy
                s_xx += v_sigma * dx * dx
                s_xy += v_sigma * dx * dy
                s_yy += v_sigma * dy * dy
            v_entry = v_entries[entries[i]]
            v_entry[X] = (xx + xx) * s_x + xy * s_y
            v_entry[Y] = xy * s_x + (yy + yy) * s_y
            v_entry[CONIC_XX] = half * s_xx
            v_entry[CONIC_XY] = s_xy
            v_entry[CONIC_YY] = half * s_yy
            v_entry[OPACITY] = -s / opacity
            v_entry[DEPTH] = v_z
            v_entry[COLOUR] = v_red
            v_entry[COLOUR + 1] = v_green
            v_entry[COLOUR + 2] = v_blue


@numba.njit(**SERIAL)
def _sum_entries(first_entry, v_entries, v_splats):  # type: ignore[no-untyped-def]
    """Sums each visible Gaussian's rows of `v_entries` into its row of `v_splats`."""
    for n in range(len(v_splats)):
        for k in range(v_splats.shape[1]):
            total = 0.0
            for entry in range(first_entry[n, 0], first_entry[n, 1]):
                total += v_entries[entry, k]
            v_splats[n, k] = total
