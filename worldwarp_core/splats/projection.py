"""Projection of 3D Gaussians to one image (EWA splatting), and its gradient.

In: N Gaussians as they are optimised (log scales, logit opacities, quaternions of any length) and a camera: `w2c`
(4, 4), OpenCV axes, and `K` (3, 3) in pixels. Out: the splat table (N, 10), whose columns are named below, and
the pixel boxes (N, 4). The rules are gsplat's: the covariance is projected with the Jacobian at the mean, which is
held within 1.3 times the field of view; 0.3 px² are added to its diagonal; Gaussians nearer than `NEAR` or farther
than `FAR` are culled. Arithmetic is in float64 whatever the tables hold.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from .constants import BLUR_PX2, FAR, MIN_ALPHA, NEAR
from .numba_threads import PARALLEL, SERIAL

# Columns of the splat table.
X, Y = 0, 1  # projected mean, pixels
CONIC_XX, CONIC_XY, CONIC_YY = 2, 3, 4  # inverse of the projected covariance, 1 / pixels²
OPACITY = 5  # in (0, 1)
DEPTH = 6  # planar z of the mean
COLOUR = 7  # and 8, 9: written by `sh`
COLUMNS = 10


@numba.njit(**PARALLEL)
def project(  # type: ignore[no-untyped-def]
    workers, means, quats, scales, opacities, w2c, K, width, height, bounded, splats, boxes
):
    """Fills all but the colour columns of `splats`, and `boxes` with x0, x1, y0, y1 (half open, empty when culled).

    A box holds every pixel centre where the Gaussian's alpha reaches `MIN_ALPHA`, so what is outside contributes
    nothing. With `bounded` false every Gaussian in front of the camera gets the whole image.
    """
    for worker in numba.prange(workers):
        _project_part(
            np.int64(worker), workers, means, quats, scales, opacities, w2c, K, width, height, bounded, splats, boxes
        )


@numba.njit(**SERIAL)
def _project_part(  # type: ignore[no-untyped-def]
    worker, workers, means, quats, scales, opacities, w2c, K, width, height, bounded, splats, boxes
):
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    R0, R1, R2, t = _rows(w2c)
    for n in range(worker * len(means) // workers, (worker + 1) * len(means) // workers):
        box, splat = boxes[n], splats[n]
        box[0], box[1], box[2], box[3] = 0, 0, 0, 0
        mean = _vector(means[n])
        px, py, pz = _dot(R0, mean) + t[0], _dot(R1, mean) + t[1], _dot(R2, mean) + t[2]
        opacity = 1.0 / (1.0 + math.exp(-opacities[n]))
        if not (NEAR <= pz <= FAR) or (bounded and not opacity >= MIN_ALPHA):
            continue
        j00, j02, j11, j12, _, _ = _jacobian(px, py, pz, fx, fy, cx, cy, width, height)
        J0, J1 = _combine(j00, R0, j02, R2), _combine(j11, R1, j12, R2)
        w, x, y, z, _ = _unit_quaternion(quats[n])
        xx, xy, yy = BLUR_PX2, 0.0, BLUR_PX2
        for k, axis in enumerate(_axes(w, x, y, z)):
            scale = math.exp(scales[n, k])
            ux, uy = _dot(J0, axis) * scale, _dot(J1, axis) * scale
            xx += ux * ux
            xy += ux * uy
            yy += uy * uy
        det = xx * yy - xy * xy
        # Also false for a scale so large that the covariance overflows.
        if not (0.0 < det < math.inf):
            continue
        mean_x, mean_y = fx * px / pz + cx, fy * py / pz + cy
        splat[X], splat[Y] = mean_x, mean_y
        splat[CONIC_XX], splat[CONIC_XY], splat[CONIC_YY] = yy / det, -xy / det, xx / det
        splat[OPACITY] = opacity
        splat[DEPTH] = pz
        if not bounded:
            box[1], box[3] = width, height
            continue
        # alpha >= MIN_ALPHA inside the ellipse of this Mahalanobis radius; 0.01 px covers rounding.
        extent = math.sqrt(2.0 * max(math.log(opacity / MIN_ALPHA), 0.0))
        x0, x1 = _pixels(mean_x, extent * math.sqrt(xx) + 0.01, width)
        y0, y1 = _pixels(mean_y, extent * math.sqrt(yy) + 0.01, height)
        if x0 < x1 and y0 < y1:
            box[0], box[1], box[2], box[3] = x0, x1, y0, y1


@numba.njit(**PARALLEL)
def project_vjp(  # type: ignore[no-untyped-def]
    workers, means, quats, scales, w2c, K, width, height, splats, boxes, v_splats,
    v_means, v_quats, v_scales, v_opacities,
):  # fmt: skip
    """Adds to `v_means`, `v_quats`, `v_scales`, `v_opacities` the gradient that `v_splats` (N, 10) holds."""
    for worker in numba.prange(workers):
        _project_vjp_part(
            np.int64(worker), workers, means, quats, scales, w2c, K, width, height, splats, boxes, v_splats,
            v_means, v_quats, v_scales, v_opacities,
        )  # fmt: skip


@numba.njit(**SERIAL)
def _project_vjp_part(  # type: ignore[no-untyped-def]
    worker, workers, means, quats, scales, w2c, K, width, height, splats, boxes, v_splats,
    v_means, v_quats, v_scales, v_opacities,
):  # fmt: skip
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    R0, R1, R2, t = _rows(w2c)
    v_axes = np.empty((3, 3))  # by column
    for n in range(worker * len(means) // workers, (worker + 1) * len(means) // workers):
        if boxes[n, 1] <= boxes[n, 0]:
            continue
        splat, v_splat = splats[n], v_splats[n]
        mean = _vector(means[n])
        px, py, pz = _dot(R0, mean) + t[0], _dot(R1, mean) + t[1], _dot(R2, mean) + t[2]
        j00, j02, j11, j12, x_free, y_free = _jacobian(px, py, pz, fx, fy, cx, cy, width, height)
        J0, J1 = _combine(j00, R0, j02, R2), _combine(j11, R1, j12, R2)
        w, x, y, z, quat_scale = _unit_quaternion(quats[n])

        # Conic P = S^-1: dL = tr(G dP) = -tr(P G P dS) = tr(H dS); the off-diagonal gradient is shared by two entries.
        a, b, c = splat[CONIC_XX], splat[CONIC_XY], splat[CONIC_YY]
        g_xx, g_xy, g_yy = v_splat[CONIC_XX], 0.5 * v_splat[CONIC_XY], v_splat[CONIC_YY]
        ga, gb, gc, gd = g_xx * a + g_xy * b, g_xy * a + g_yy * b, g_xx * b + g_xy * c, g_xy * b + g_yy * c
        h_xx, h_xy, h_yy = -(a * ga + b * gb), -(a * gc + b * gd), -(b * gc + c * gd)

        # S = sum over the axes of u u^T with u = scale * J axis.
        v_J0, v_J1 = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        for k, axis in enumerate(_axes(w, x, y, z)):
            scale = math.exp(scales[n, k])
            along0, along1 = _dot(J0, axis), _dot(J1, axis)
            v_u0 = 2.0 * scale * (h_xx * along0 + h_xy * along1) * scale
            v_u1 = 2.0 * scale * (h_xy * along0 + h_yy * along1) * scale
            v_scales[n, k] += v_u0 * along0 + v_u1 * along1
            v_J0 = _combine(1.0, v_J0, v_u0, axis)
            v_J1 = _combine(1.0, v_J1, v_u1, axis)
            v_axes[k, 0], v_axes[k, 1], v_axes[k, 2] = _combine(v_u0, J0, v_u1, J1)
        v_w, v_x, v_y, v_z = _axes_vjp(w, x, y, z, _vector(v_axes[0]), _vector(v_axes[1]), _vector(v_axes[2]))
        # Through the normalisation: only the part across the quaternion counts.
        along = v_w * w + v_x * x + v_y * y + v_z * z
        v_quats[n, 0] += (v_w - along * w) * quat_scale
        v_quats[n, 1] += (v_x - along * x) * quat_scale
        v_quats[n, 2] += (v_y - along * y) * quat_scale
        v_quats[n, 3] += (v_z - along * z) * quat_scale

        # The mean, through its projection, its depth and the Jacobian.
        v_j00, v_j02, v_j11, v_j12 = _dot(v_J0, R0), _dot(v_J0, R2), _dot(v_J1, R1), _dot(v_J1, R2)
        v_mx, v_my = v_splat[X], v_splat[Y]
        v_px = j00 * v_mx
        v_py = j11 * v_my
        v_pz = v_splat[DEPTH] - (j00 * (px * v_mx + v_j00) + j11 * (py * v_my + v_j11)) / pz
        if x_free:
            v_px -= j00 / pz * v_j02
            v_pz -= 2.0 * j02 / pz * v_j02
        else:
            v_pz -= j02 / pz * v_j02
        if y_free:
            v_py -= j11 / pz * v_j12
            v_pz -= 2.0 * j12 / pz * v_j12
        else:
            v_pz -= j12 / pz * v_j12
        v_mean = _combine(1.0, _combine(v_px, R0, v_py, R1), v_pz, R2)
        v_means[n, 0] += v_mean[0]
        v_means[n, 1] += v_mean[1]
        v_means[n, 2] += v_mean[2]

        opacity = splat[OPACITY]
        v_opacities[n] += v_splat[OPACITY] * opacity * (1.0 - opacity)


@numba.njit(**SERIAL)
def _vector(row):  # type: ignore[no-untyped-def]
    return float(row[0]), float(row[1]), float(row[2])


@numba.njit(**SERIAL)
def _rows(w2c):  # type: ignore[no-untyped-def]
    """The three rows of the rotation, and the translation."""
    return _vector(w2c[0]), _vector(w2c[1]), _vector(w2c[2]), _vector(w2c[:3, 3])


@numba.njit(**SERIAL)
def _dot(a, b):  # type: ignore[no-untyped-def]
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@numba.njit(**SERIAL)
def _combine(s, a, t, b):  # type: ignore[no-untyped-def]
    """s a + t b."""
    return s * a[0] + t * b[0], s * a[1] + t * b[1], s * a[2] + t * b[2]


@numba.njit(**SERIAL)
def _pixels(centre, radius, size):  # type: ignore[no-untyped-def]
    """The range of pixels with centres within `radius`, held to the image before it becomes integers."""
    first = math.ceil(centre - radius - 0.5)
    last = math.floor(centre + radius - 0.5)
    return int(min(max(first, 0.0), size)), int(min(max(last + 1.0, 0.0), size))


@numba.njit(**SERIAL)
def _unit_quaternion(quat):  # type: ignore[no-untyped-def]
    """w, x, y, z of length 1, and the factor that made them so."""
    w, x, y, z = float(quat[0]), float(quat[1]), float(quat[2]), float(quat[3])
    scale = 1.0 / max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    return w * scale, x * scale, y * scale, z * scale, scale


@numba.njit(**SERIAL)
def _axes(w, x, y, z):  # type: ignore[no-untyped-def]
    """The columns of the rotation matrix of a unit quaternion."""
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)),
        (2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)),
        (2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)),
    )


@numba.njit(**SERIAL)
def _axes_vjp(w, x, y, z, v0, v1, v2):  # type: ignore[no-untyped-def]
    """The gradient with respect to w, x, y, z, taken as free, from those of the three columns."""
    v10, v20, v21 = v0[1] + v1[0], v0[2] + v2[0], v1[2] + v2[1]
    r10, r20, r21 = v0[1] - v1[0], v0[2] - v2[0], v1[2] - v2[1]
    return (
        2.0 * (x * r21 - y * r20 + z * r10),
        2.0 * (y * v10 + z * v20 + w * r21 - 2.0 * x * (v1[1] + v2[2])),
        2.0 * (x * v10 + z * v21 - w * r20 - 2.0 * y * (v0[0] + v2[2])),
        2.0 * (x * v20 + y * v21 + w * r10 - 2.0 * z * (v0[0] + v1[1])),
    )


@numba.njit(**SERIAL)
def _jacobian(px, py, pz, fx, fy, cx, cy, width, height):  # type: ignore[no-untyped-def]
    """The entries 00, 02, 11, 12 of the projection's Jacobian, and whether x / z and y / z were within bounds."""
    x_margin = 0.15 * width / fx
    y_margin = 0.15 * height / fy
    x = px / pz
    y = py / pz
    x_held = min(max(x, -cx / fx - x_margin), (width - cx) / fx + x_margin)
    y_held = min(max(y, -cy / fy - y_margin), (height - cy) / fy + y_margin)
    return fx / pz, -fx * x_held / pz, fy / pz, -fy * y_held / pz, x == x_held, y == y_held
