"""Turns a splat cloud from one world frame into another: centres, orientations and spherical harmonics together.

The frames that splat files come in, all right-handed with x to the right:

    blender   y forward, z up        Blender's world, and ours inside
    colmap    y down, z forward      OpenCV, COLMAP; what most 3DGS trainers write
    y-up      y up, z backward       OpenGL, glTF, Unity-like viewers; SPZ calls it RUB

A colour that depends on the direction of view turns with the world, so the SH bands 1 to 3 are rotated too. The SH
basis is that of the original 3DGS code and gsplat (`sh_basis`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ..errors import WorldWarpError
from .cloud import SplatCloud

Axes = Literal["blender", "colmap", "y-up"]

TO_BLENDER: dict[str, np.ndarray] = {
    "blender": np.eye(3),
    "colmap": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "y-up": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
}
"""Rotations from each frame to Blender's."""

ALIASES = {"opencv": "colmap", "opengl": "y-up", "gltf": "y-up", "rub": "y-up"}
AXES_NAMES = (*TO_BLENDER, *ALIASES)

_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
_C3_ENDS, _C3_SIDES = -0.5900435899266435, -0.4570457994644658
_C3 = (_C3_ENDS, 2.890611442640554, _C3_SIDES, 0.3731763325901154, _C3_SIDES, 1.445305721320277, _C3_ENDS)


def canonical_axes(name: str) -> str:
    """The name in `TO_BLENDER` that `name` stands for.

    Raises:
        WorldWarpError: `bad_splats` for a name that is not in `AXES_NAMES`.
    """
    found = ALIASES.get(name.lower(), name.lower())
    if found not in TO_BLENDER:
        raise WorldWarpError("bad_splats", f"Axes {name!r} are not known; use one of {', '.join(AXES_NAMES)}.")
    return found


def to_axes(cloud: SplatCloud, source: str, target: str) -> SplatCloud:
    """The same Gaussians with coordinates in `target` axes where they were in `source` axes."""
    source, target = canonical_axes(source), canonical_axes(target)
    if source == target:
        return cloud
    return _rotate_scale_shift(cloud, TO_BLENDER[target].T @ TO_BLENDER[source], 1.0, np.zeros(3))


def transform(cloud: SplatCloud, matrix: np.ndarray) -> SplatCloud:
    """The cloud moved by a similarity, as when its object was moved, turned or scaled uniformly in the scene.

    Args:
        matrix: (4, 4) rotation times uniform positive scale, and a translation.

    Raises:
        WorldWarpError: `bad_splats` for shear, mirroring, or scales that differ by axis by over 0.1%: a Gaussian's
            colour and shape cannot follow those exactly.
    """
    matrix = np.asarray(matrix, np.float64)
    assert matrix.shape == (4, 4), matrix.shape
    linear = matrix[:3, :3]
    determinant = np.linalg.det(linear)
    scale = np.cbrt(determinant)
    gram = linear.T @ linear
    similar = scale > 0 and np.allclose(gram, scale**2 * np.eye(3), rtol=0, atol=2e-3 * scale**2)
    if not np.isfinite(matrix).all() or not similar or not np.allclose(matrix[3], (0, 0, 0, 1)):
        sizes = ", ".join(f"{size:.4g}" for size in np.linalg.norm(linear, axis=0))
        raise WorldWarpError(
            "bad_splats",
            f"Splats can be moved, turned and scaled by one factor; this transform scales its axes by {sizes} "
            f"(determinant {determinant:.4g}). Use one positive scale for all three axes and no shear.",
        )
    u, _, vt = np.linalg.svd(linear)
    return _rotate_scale_shift(cloud, u @ vt, float(scale), matrix[:3, 3])


def sh_basis(directions: np.ndarray, degree: int = 3) -> np.ndarray:
    """(N, (degree + 1)^2) float64 values of the real spherical harmonics, signs as in 3DGS files.

    Args:
        directions: (N, 3) unit vectors from the camera to the Gaussian.
    """
    x, y, z = np.asarray(directions, np.float64).T
    xx, yy, zz = x * x, y * y, z * z
    bands = [np.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        bands += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree >= 2:
        bands += [_C2[0] * x * y, _C2[1] * y * z, _C2[2] * (2 * zz - xx - yy), _C2[3] * x * z, _C2[4] * (xx - yy)]
    if degree >= 3:
        bands += [_C3[0] * y * (3 * xx - yy), _C3[1] * x * y * z, _C3[2] * y * (4 * zz - xx - yy)]
        bands += [_C3[3] * z * (2 * zz - 3 * xx - 3 * yy), _C3[4] * x * (4 * zz - xx - yy)]
        bands += [_C3[5] * z * (xx - yy), _C3[6] * x * (xx - 3 * yy)]
    return np.stack(bands, axis=1)


def sh_rotation(rotation: np.ndarray, band: int) -> np.ndarray:
    """(2 band + 1, 2 band + 1) float64 D with `c_rotated = D @ c`, exact to rounding.

    A rotation maps each band onto itself, so the coefficients follow from the values at any directions that determine
    them: B(d) D = B(R^T d), solved by least squares over directions spread on the sphere.
    """
    row = np.arange(64)
    z = 1 - (2 * row + 1) / 64
    longitude = row * np.pi * (3 - np.sqrt(5))
    directions = np.stack([np.sqrt(1 - z * z) * np.cos(longitude), np.sqrt(1 - z * z) * np.sin(longitude), z], axis=1)
    columns = slice(band**2, (band + 1) ** 2)
    here, before = sh_basis(directions)[:, columns], sh_basis(directions @ rotation)[:, columns]
    return np.linalg.lstsq(here, before, rcond=None)[0]


def _rotate_scale_shift(cloud: SplatCloud, rotation: np.ndarray, scale: float, shift: np.ndarray) -> SplatCloud:
    shN = np.empty_like(cloud.shN)
    for band in range(1, cloud.sh_degree + 1):
        rows = slice(band**2 - 1, (band + 1) ** 2 - 1)
        shN[:, rows] = np.matmul(sh_rotation(rotation, band).astype(np.float32), cloud.shN[:, rows])
    return replace(
        cloud,
        means=(cloud.means.astype(np.float64) @ (scale * rotation).T + shift).astype(np.float32),
        quats=(cloud.quats.astype(np.float64) @ _left_multiplication(_quaternion(rotation)).T).astype(np.float32),
        scales=(cloud.scales + np.float32(np.log(scale))),
        shN=shN,
    )


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """(4,) wxyz of a rotation matrix: the eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    symmetric = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, d + b, g + c],
            [c - g, d + b, e - a - i, h + f],
            [d - b, g + c, h + f, i - a - e],
        ]
    )
    vector = np.linalg.eigh(symmetric)[1][:, -1]
    return vector if vector[0] >= 0 else -vector


def _left_multiplication(q: np.ndarray) -> np.ndarray:
    """(4, 4) L with `L @ p` the Hamilton product q p, wxyz."""
    w, x, y, z = q
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
