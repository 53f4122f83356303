"""View-dependent colour of Gaussians from spherical harmonics of degree 0 to 3, and its gradient.

Real harmonics in the order, signs and scaling of 3D Gaussian Splatting (Sloan, "Efficient Spherical Harmonic
Evaluation", JCGT 2013): colour = max(0, 0.5 + sum of basis(direction) * coefficient), where the direction goes from
the camera's centre to the Gaussian's. The kernels read and write the colour columns of the splat table of
`projection`, and skip Gaussians that the camera does not see. Arithmetic is in float64 whatever the tables hold.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from .numba_threads import PARALLEL, SERIAL

C0 = 0.28209479177387814
C1 = 0.4886025119029199
C2_XY, C2_ZZ, C2_0 = 1.0925484305920792, 0.9461746957575601, 0.31539156525252005
C3_XXX, C3_XYZ, C3_XZZ, C3_X = 0.5900435899266435, 2.890611442640554, 2.285228997322329, 0.4570457994644658
C3_ZZZ, C3_Z, C3_ZXX = 1.865881662950577, 1.119528997770346, 1.445305721320277


@numba.njit(**PARALLEL)
def evaluate(workers, means, camera_centre, sh0, shN, boxes, splats, colour):  # type: ignore[no-untyped-def]
    """Fills columns `colour` to `colour + 2` of `splats` (N, columns) for Gaussians whose box (N, 4) is not empty.

    `means` (N, 3) and `camera_centre` (3,) share a frame; `sh0` (N, 1, 3); `shN` (N, 0 | 3 | 8 | 15, 3).
    """
    for worker in numba.prange(workers):
        _evaluate_part(np.int64(worker), workers, means, camera_centre, sh0, shN, boxes, splats, colour)


@numba.njit(**SERIAL)
def _evaluate_part(worker, workers, means, camera_centre, sh0, shN, boxes, splats, colour):  # type: ignore[no-untyped-def]
    bases = shN.shape[1]
    basis = np.empty(15)
    for n in range(worker * len(means) // workers, (worker + 1) * len(means) // workers):
        if boxes[n, 1] <= boxes[n, 0]:
            continue
        if bases > 0:
            x = means[n, 0] - camera_centre[0]
            y = means[n, 1] - camera_centre[1]
            z = means[n, 2] - camera_centre[2]
            scale = 1.0 / max(math.sqrt(x * x + y * y + z * z), 1e-12)
            _basis(bases, x * scale, y * scale, z * scale, basis)
        for c in range(3):
            value = 0.5 + C0 * sh0[n, 0, c]
            for k in range(bases):
                value += basis[k] * shN[n, k, c]
            splats[n, colour + c] = max(value, 0.0)


@numba.njit(**PARALLEL)
def evaluate_vjp(  # type: ignore[no-untyped-def]
    workers, means, camera_centre, shN, boxes, splats, v_splats, colour, v_means, v_sh0, v_shN
):
    """Adds to `v_means`, `v_sh0` and `v_shN` the gradient that `v_splats` holds for the colour columns."""
    for worker in numba.prange(workers):
        _evaluate_vjp_part(
            np.int64(worker), workers, means, camera_centre, shN, boxes, splats, v_splats, colour, v_means, v_sh0, v_shN
        )


@numba.njit(**SERIAL)
def _evaluate_vjp_part(  # type: ignore[no-untyped-def]
    worker, workers, means, camera_centre, shN, boxes, splats, v_splats, colour, v_means, v_sh0, v_shN
):
    bases = shN.shape[1]
    basis = np.empty(15)
    v_basis = np.empty(15)
    v_colour = np.empty(3)
    for n in range(worker * len(means) // workers, (worker + 1) * len(means) // workers):
        if boxes[n, 1] <= boxes[n, 0]:
            continue
        for c in range(3):
            # A colour clamped to 0 has no gradient.
            v_colour[c] = v_splats[n, colour + c] if splats[n, colour + c] > 0 else 0.0
            v_sh0[n, 0, c] += C0 * v_colour[c]
        if bases == 0:
            continue
        x = means[n, 0] - camera_centre[0]
        y = means[n, 1] - camera_centre[1]
        z = means[n, 2] - camera_centre[2]
        scale = 1.0 / max(math.sqrt(x * x + y * y + z * z), 1e-12)
        x, y, z = x * scale, y * scale, z * scale
        _basis(bases, x, y, z, basis)
        for k in range(bases):
            v_basis[k] = 0.0
            for c in range(3):
                v_shN[n, k, c] += basis[k] * v_colour[c]
                v_basis[k] += shN[n, k, c] * v_colour[c]
        v_x, v_y, v_z = _basis_vjp(bases, x, y, z, v_basis)
        # Through the normalisation of the direction: only the part across it counts.
        along = v_x * x + v_y * y + v_z * z
        v_means[n, 0] += (v_x - along * x) * scale
        v_means[n, 1] += (v_y - along * y) * scale
        v_means[n, 2] += (v_z - along * z) * scale


@numba.njit(**SERIAL)
def _basis(bases, x, y, z, out):  # type: ignore[no-untyped-def]
    """Values of the harmonics of degree 1 to 3 in the unit direction (x, y, z)."""
    out[0] = -C1 * y
    out[1] = C1 * z
    out[2] = -C1 * x
    if bases >= 8:
        out[3] = C2_XY * x * y
        out[4] = -C2_XY * y * z
        out[5] = C2_ZZ * z * z - C2_0
        out[6] = -C2_XY * x * z
        out[7] = 0.5 * C2_XY * (x * x - y * y)
    if bases >= 15:
        out[8] = -C3_XXX * y * (3.0 * x * x - y * y)
        out[9] = C3_XYZ * x * y * z
        out[10] = y * (C3_X - C3_XZZ * z * z)
        out[11] = z * (C3_ZZZ * z * z - C3_Z)
        out[12] = x * (C3_X - C3_XZZ * z * z)
        out[13] = C3_ZXX * z * (x * x - y * y)
        out[14] = -C3_XXX * x * (x * x - 3.0 * y * y)


@numba.njit(**SERIAL)
def _basis_vjp(bases, x, y, z, v):  # type: ignore[no-untyped-def]
    """The gradient with respect to (x, y, z), taken as free, of the sum of v[k] * basis[k]."""
    v_x = -C1 * v[2]
    v_y = -C1 * v[0]
    v_z = C1 * v[1]
    if bases >= 8:
        v_x += C2_XY * (y * v[3] - z * v[6] + x * v[7])
        v_y += C2_XY * (x * v[3] - z * v[4] - y * v[7])
        v_z += C2_XY * (-y * v[4] - x * v[6]) + 2.0 * C2_ZZ * z * v[5]
    if bases >= 15:
        planar = C3_X - C3_XZZ * z * z
        v_x += -6.0 * C3_XXX * x * y * v[8] + C3_XYZ * y * z * v[9] + planar * v[12]
        v_x += 2.0 * C3_ZXX * x * z * v[13] - 3.0 * C3_XXX * (x * x - y * y) * v[14]
        v_y += -3.0 * C3_XXX * (x * x - y * y) * v[8] + C3_XYZ * x * z * v[9] + planar * v[10]
        v_y += -2.0 * C3_ZXX * y * z * v[13] + 6.0 * C3_XXX * x * y * v[14]
        v_z += C3_XYZ * x * y * v[9] - 2.0 * C3_XZZ * z * (y * v[10] + x * v[12])
        v_z += (3.0 * C3_ZZZ * z * z - C3_Z) * v[11] + C3_ZXX * (x * x - y * y) * v[13]
    return v_x, v_y, v_z
