"""Which pixels of a target view the start view saw, from the two exact depths alone, in NumPy.

A target pixel's centre is unprojected with the target's own depth and projected into the start view. It was seen when
it lands inside the start frame, in front of the camera, and within 1% of the start view's depth there. That depth is
read twice: at the nearest pixel, and bilinearly in 1/z, which is exact on planes; either may agree. (The nearest pixel
alone fails on grazing ground, where z changes by several percent a pixel; bilinear alone fails beside silhouettes.)
Sky has a direction and no place: it was seen when the start view has sky at any of the four pixels around there.
"""

from __future__ import annotations

import numpy as np

SKY = 0.99e10
TOLERANCE = 0.01


def seen_from(
    start_depth: np.ndarray,  # (h, w) planar z, 1e10 or inf for sky
    start_K: np.ndarray,  # (3, 3)
    start_c2w: np.ndarray,  # (4, 4)
    depth: np.ndarray,  # (H, W) planar z of the target view
    K: np.ndarray,  # (3, 3)
    c2w: np.ndarray,  # (4, 4)
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """(H, W) bool, True where the start view saw what the target view sees."""
    sky = depth >= SKY
    rays = pixel_rays(K, *depth.shape) @ c2w[:3, :3].T
    points = rays * np.where(sky, 1.0, depth)[..., None] + c2w[:3, 3] - start_c2w[:3, 3]
    x, y, z = np.moveaxis(np.where(sky[..., None], rays, points) @ start_c2w[:3, :3], -1, 0)
    front = z > 1e-6
    z = np.where(front, z, 1.0)
    u = start_K[0, 0] * x / z + start_K[0, 2]
    v = start_K[1, 1] * y / z + start_K[1, 2]
    h, w = start_depth.shape
    inside = front & (u >= 0) & (u < w) & (v >= 0) & (v < h)
    u, v = np.where(inside, u, 0.5), np.where(inside, v, 0.5)

    near = start_depth[np.minimum(v.astype(int), h - 1), np.minimum(u.astype(int), w - 1)]
    left, top = np.clip(np.floor(u - 0.5).astype(int), 0, w - 2), np.clip(np.floor(v - 0.5).astype(int), 0, h - 2)
    fu, fv = np.clip(u - 0.5 - left, 0, 1), np.clip(v - 0.5 - top, 0, 1)
    corners = np.stack([start_depth[top + i, left + j] for i in (0, 1) for j in (0, 1)])
    weights = np.stack([(1 - fv) * (1 - fu), (1 - fv) * fu, fv * (1 - fu), fv * fu])
    with np.errstate(divide="ignore"):  # sky all around has no disparity
        smooth = 1.0 / (weights / corners).sum(0)

    agrees = (np.abs(z / near - 1) < tolerance) | (np.abs(z / smooth - 1) < tolerance)
    return inside & np.where(sky, (corners >= SKY).any(0), agrees)


def unproject(depth: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """(N, 3) world points of the pixels that see a surface."""
    solid = depth < SKY
    return (pixel_rays(K, *depth.shape)[solid] * depth[solid][:, None]) @ c2w[:3, :3].T + c2w[:3, 3]


def pixel_rays(K: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float64 directions through the pixel centres, OpenCV axes, z = 1."""
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
