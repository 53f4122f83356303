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
        _project_part(worker, workers, means, quats, scales, opacities, w2c, K, width, height, bounded, splats, boxes)


@numba.njit(**SERIAL)
def _project_part(  # type: ignore[no-untyped-def]
    worker, workers, means, quats, scales, opacities, w2c, K, width, height, bounded, splats, boxes
):
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    R = np.empty((3, 3))
    W = np.empty((3, 3))
    for n in range(worker * len(means) // workers, (worker + 1) * len(means) // workers):
        for k in range(4):
            boxes[n, k] = 0
        px, py, pz = _to_camera(means, n, w2c)
        opacity = 1.0 / (1.0 + math.exp(-opacities[n]))
        if not (NEAR <= pz <= FAR) or (bounded and not opacity >= MIN_ALPHA):
            continue
        _rotation(quats, n, R)
        _axes_in_camera(R, scales, n, w2c, W)
        j00, j02, j11, j12, _, _ = _jacobian(px, py, pz, fx, fy, cx, cy, width, height)
        xx, xy, yy = BLUR_PX2, 0.0, BLUR_PX2
        for k in range(3):
            ux = j00 * W[0, k] + j02 * W[2, k]
            uy = j11 * W[1, k] + j12 * W[2, k]
            xx += ux * ux
            xy += ux * uy
            yy += uy * uy
        det = xx * yy - xy * xy
        # Also false for a scale so large that the covariance overflows.
        if not (0.0 < det < math.inf):
            continue
        x = fx * px / pz + cx
        y = fy * py / pz + cy
        splats[n, X] = x
        splats[n, Y] = y
        splats[n, CONIC_XX] = yy / det
        splats[n, CONIC_XY] = -xy / det
        splats[n, CONIC_YY] = xx / det
        splats[n, OPACITY] = opacity
        splats[n, DEPTH] = pz
        if bounded:
            # alpha >= MIN_ALPHA inside the ellipse of this Mahalanobis radius; 0.01 px covers rounding.
            extent = math.sqrt(2.0 * max(math.log(opacity / MIN_ALPHA), 0.0))
            rx = extent * math.sqrt(xx) + 0.01
            ry = extent * math.sqrt(yy) + 0.01
            boxes[n, 0] = _pixel(math.ceil(x - rx - 0.5), width)
            boxes[n, 1] = _pixel(math.floor(x + rx - 0.5) + 1.0, width)
            boxes[n, 2] = _pixel(math.ceil(y - ry - 0.5), height)
            boxes[n, 3] = _pixel(math.floor(y + ry - 0.5) + 1.0, height)
            if boxes[n, 3] <= boxes[n, 2]:
                boxes[n, 1] = boxes[n, 0]
        else:
            boxes[n, 1] = width
            boxes[n, 3] = height


@numba.njit(**PARALLEL)
def project_vjp(  # type: ignore[no-untyped-def]
    workers, means, quats, scales, w2c, K, width, height, splats, boxes, v_splats,
    v_means, v_quats, v_scales, v_opacities,
):  # fmt: skip
    """Adds to `v_means`, `v_quats`, `v_scales`, `v_opacities` the gradient that `v_splats` (N, 10) holds."""
    for worker in numba.prange(workers):
        _project_vjp_part(
            worker, workers, means, quats, scales, w2c, K, width, height, splats, boxes, v_splats,
            v_means, v_quats, v_scales, v_opacities,
        )  # fmt: skip


@numba.njit(**SERIAL)
def _project_vjp_part(  # type: ignore[no-untyped-def]
    worker, workers, means, quats, scales, w2c, K, width, height, splats, boxes, v_splats,
    v_means, v_quats, v_scales, v_opacities,
):  # fmt: skip
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    R = np.empty((3, 3))
    W = np.empty((3, 3))
    v_W = np.empty((3, 3))
    v_R = np.empty((3, 3))
    for n in range(worker * len(means) // workers, (worker + 1) * len(means) // workers):
        if boxes[n, 1] <= boxes[n, 0]:
            continue
        px, py, pz = _to_camera(means, n, w2c)
        _rotation(quats, n, R)
        _axes_in_camera(R, scales, n, w2c, W)
        j00, j02, j11, j12, x_free, y_free = _jacobian(px, py, pz, fx, fy, cx, cy, width, height)

        # Conic P = S^-1: dL = tr(G dP) = -tr(P G P dS), with the off-diagonal gradient shared by two entries.
        a, b, c = splats[n, CONIC_XX], splats[n, CONIC_XY], splats[n, CONIC_YY]
        g_xx, g_xy, g_yy = v_splats[n, CONIC_XX], 0.5 * v_splats[n, CONIC_XY], v_splats[n, CONIC_YY]
        h_xx = -(a * (g_xx * a + g_xy * b) + b * (g_xy * a + g_yy * b))
        h_xy = -(a * (g_xx * b + g_xy * c) + b * (g_xy * b + g_yy * c))
        h_yy = -(b * (g_xx * b + g_xy * c) + c * (g_xy * b + g_yy * c))

        # S = U U^T + blur with U = J W, row by row.
        v_j00, v_j02, v_j11, v_j12 = 0.0, 0.0, 0.0, 0.0
        for k in range(3):
            ux = j00 * W[0, k] + j02 * W[2, k]
            uy = j11 * W[1, k] + j12 * W[2, k]
            v_ux = 2.0 * (h_xx * ux + h_xy * uy)
            v_uy = 2.0 * (h_xy * ux + h_yy * uy)
            v_j00 += v_ux * W[0, k]
            v_j02 += v_ux * W[2, k]
            v_j11 += v_uy * W[1, k]
            v_j12 += v_uy * W[2, k]
            v_W[0, k] = j00 * v_ux
            v_W[1, k] = j11 * v_uy
            v_W[2, k] = j02 * v_ux + j12 * v_uy

        # W = w2c[:3, :3] R diag(s).
        for k in range(3):
            scale = math.exp(scales[n, k])
            v_scale = 0.0
            for i in range(3):
                v_axis = w2c[0, i] * v_W[0, k] + w2c[1, i] * v_W[1, k] + w2c[2, i] * v_W[2, k]
                v_scale += v_axis * R[i, k]
                v_R[i, k] = v_axis * scale
            v_scales[n, k] += v_scale * scale
        _rotation_vjp(quats, n, v_R, v_quats)

        # The mean, through its projection, its depth and the Jacobian.
        v_x, v_y = v_splats[n, X], v_splats[n, Y]
        v_px = j00 * v_x
        v_py = j11 * v_y
        v_pz = v_splats[n, DEPTH] - (fx * px * v_x + fy * py * v_y) / (pz * pz) - (j00 * v_j00 + j11 * v_j11) / pz
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
        for i in range(3):
            v_means[n, i] += w2c[0, i] * v_px + w2c[1, i] * v_py + w2c[2, i] * v_pz

        opacity = splats[n, OPACITY]
        v_opacities[n] += v_splats[n, OPACITY] * opacity * (1.0 - opacity)


@numba.njit(**SERIAL)
def _pixel(value, size):  # type: ignore[no-untyped-def]
    """`value` held to 0 ... size before it becomes an integer, which a far-off-screen one would overflow."""
    return int(min(max(value, 0.0), float(size)))


@numba.njit(**SERIAL)
def _to_camera(means, n, w2c):  # type: ignore[no-untyped-def]
    x, y, z = float(means[n, 0]), float(means[n, 1]), float(means[n, 2])
    return (
        w2c[0, 0] * x + w2c[0, 1] * y + w2c[0, 2] * z + w2c[0, 3],
        w2c[1, 0] * x + w2c[1, 1] * y + w2c[1, 2] * z + w2c[1, 3],
        w2c[2, 0] * x + w2c[2, 1] * y + w2c[2, 2] * z + w2c[2, 3],
    )


@numba.njit(**SERIAL)
def _unit_quaternion(quats, n):  # type: ignore[no-untyped-def]
    w, x, y, z = float(quats[n, 0]), float(quats[n, 1]), float(quats[n, 2]), float(quats[n, 3])
    scale = 1.0 / max(math.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    return w * scale, x * scale, y * scale, z * scale, scale


@numba.njit(**SERIAL)
def _rotation(quats, n, R):  # type: ignore[no-untyped-def]
    w, x, y, z, _ = _unit_quaternion(quats, n)
    R[0, 0] = 1.0 - 2.0 * (y * y + z * z)
    R[0, 1] = 2.0 * (x * y - w * z)
    R[0, 2] = 2.0 * (x * z + w * y)
    R[1, 0] = 2.0 * (x * y + w * z)
    R[1, 1] = 1.0 - 2.0 * (x * x + z * z)
    R[1, 2] = 2.0 * (y * z - w * x)
    R[2, 0] = 2.0 * (x * z - w * y)
    R[2, 1] = 2.0 * (y * z + w * x)
    R[2, 2] = 1.0 - 2.0 * (x * x + y * y)


@numba.njit(**SERIAL)
def _rotation_vjp(quats, n, v, v_quats):  # type: ignore[no-untyped-def]
    w, x, y, z, scale = _unit_quaternion(quats, n)
    v_w = 2.0 * (x * (v[2, 1] - v[1, 2]) + y * (v[0, 2] - v[2, 0]) + z * (v[1, 0] - v[0, 1]))
    v_x = 2.0 * (
        y * (v[0, 1] + v[1, 0]) + z * (v[0, 2] + v[2, 0]) + w * (v[2, 1] - v[1, 2]) - 2.0 * x * (v[1, 1] + v[2, 2])
    )
    v_y = 2.0 * (
        x * (v[0, 1] + v[1, 0]) + z * (v[1, 2] + v[2, 1]) + w * (v[0, 2] - v[2, 0]) - 2.0 * y * (v[0, 0] + v[2, 2])
    )
    v_z = 2.0 * (
        x * (v[0, 2] + v[2, 0]) + y * (v[1, 2] + v[2, 1]) + w * (v[1, 0] - v[0, 1]) - 2.0 * z * (v[0, 0] + v[1, 1])
    )
    # Through the normalisation: only the part across the quaternion counts.
    along = v_w * w + v_x * x + v_y * y + v_z * z
    v_quats[n, 0] += (v_w - along * w) * scale
    v_quats[n, 1] += (v_x - along * x) * scale
    v_quats[n, 2] += (v_y - along * y) * scale
    v_quats[n, 3] += (v_z - along * z) * scale


@numba.njit(**SERIAL)
def _axes_in_camera(R, scales, n, w2c, W):  # type: ignore[no-untyped-def]
    """W = w2c[:3, :3] R diag(exp(scales)): the Gaussian's scaled axes as columns; W W^T is its covariance."""
    for k in range(3):
        scale = math.exp(scales[n, k])
        for i in range(3):
            W[i, k] = (w2c[i, 0] * R[0, k] + w2c[i, 1] * R[1, k] + w2c[i, 2] * R[2, k]) * scale


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
