"""A room with a ball in it, seen exactly: colour and planar z of any pinhole camera, in NumPy.

The ball of radius 1 stands at the origin; the walls are 4 away from it in x and y, the floor 1 below, the ceiling 2
above. Colours are broad waves over the surfaces, so that small images do not alias.
"""

from __future__ import annotations

import numpy as np

from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.evaluation.visibility import pixel_rays

LOW, HIGH = np.array([-4.0, -4.0, -1.0]), np.array([4.0, 4.0, 2.0])


def see(K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and (H, W) float32 planar z."""
    origin = c2w[:3, 3]
    rays = pixel_rays(K, height, width) @ c2w[:3, :3].T  # z = 1 along the camera's axis, so distances along them are z
    with np.errstate(divide="ignore"):
        walls = np.where(rays > 0, (HIGH - origin) / rays, (LOW - origin) / rays).min(-1)
    a, b, c = (rays * rays).sum(-1), rays @ origin, origin @ origin - 1
    inside = b * b - a * c
    ball = np.where((inside > 0) & (b < 0), (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    depth = np.minimum(walls, ball)
    points = origin + rays * depth[..., None]
    waves = np.stack(
        [np.sin(points @ direction) for direction in ((1.3, 0.4, 0.9), (0.3, 1.7, -0.6), (0.9, -0.8, 1.4))], -1
    )
    rgb = 0.5 + 0.25 * waves + np.where((ball < walls)[..., None], (0.2, 0.0, -0.2), 0.0)
    return np.rint(255 * rgb.clip(0, 1)).astype(np.uint8), depth.astype(np.float32)


def orbit(frames: int, width: int, height: int, period: int = 90, radius: float = 3.0) -> CameraPath:
    """A path that circles the ball at eye level, once every `period` frames, and keeps looking at it."""
    angle = 2 * np.pi * np.arange(frames) / period
    position = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(frames, 0.4)], -1)
    z = -position / np.linalg.norm(position, axis=-1, keepdims=True)
    x = np.cross(z, (0.0, 0.0, 1.0))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    c2w[:, :3] = np.stack([x, np.cross(z, x), z, position], -1)
    K = np.array([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]])
    return CameraPath(np.arange(1, frames + 1), 24.0, width, height, np.tile(K, (frames, 1, 1)), c2w)
