"""A room with a pillar, ray cast in NumPy: exact colour, depth and visibility from any camera, in Blender's world."""

from __future__ import annotations

import numpy as np

from worldwarp_core.cameras.path import CameraPath

ROOM = np.array([[-4.0, -4.0, 0.0], [4.0, 6.0, 3.0]])
PILLAR = np.array([[-0.4, 1.5, 0.0], [0.4, 2.3, 3.0]])


def look(position: tuple[float, float, float], yaw_rad: float = 0.0, pitch_rad: float = 0.0) -> np.ndarray:
    """(4, 4) c2w of a camera that looks along +y, turned left by `yaw_rad` and up by `pitch_rad`."""
    forward = np.array([-np.sin(yaw_rad) * np.cos(pitch_rad), np.cos(yaw_rad) * np.cos(pitch_rad), np.sin(pitch_rad)])
    right = np.array([np.cos(yaw_rad), np.sin(yaw_rad), 0.0])
    c2w = np.eye(4)
    c2w[:3, 0], c2w[:3, 1], c2w[:3, 2], c2w[:3, 3] = right, -np.cross(right, forward), forward, position
    return c2w


def path(
    c2w: list[np.ndarray], width: int = 96, height: int = 64, focal_px: float | None = None, first: int = 1
) -> CameraPath:
    f = focal_px or 0.9 * width
    K = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])
    return CameraPath(
        np.arange(first, first + len(c2w)), 24.0, width, height, np.tile(K, (len(c2w), 1, 1)), np.stack(c2w)
    )


def truck(count: int, travel: float = 1.2, turn_rad: float = 0.25, width: int = 96, height: int = 64) -> CameraPath:
    """A move to the right with a turn to the left: the pillar uncovers the wall behind it."""
    steps = np.linspace(0, 1, count) if count > 1 else [0.0]
    return path([look((travel * (s - 0.5), -3.0, 1.5), turn_rad * s) for s in steps], width, height)


def render(cameras: CameraPath, frame: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 colour and (H, W) float32 planar z, in a room `scale` times as large (as the path must be)."""
    v, u = np.meshgrid(np.arange(cameras.height) + 0.5, np.arange(cameras.width) + 0.5, indexing="ij")
    camera_rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.K[frame]).T
    c2w = cameras.c2w[frame]
    rays, origin = camera_rays @ c2w[:3, :3].T, c2w[:3, 3] / scale
    with np.errstate(divide="ignore", invalid="ignore"):
        _, leave, leave_axis = _slabs(origin, rays, ROOM)
        enter, exit_, enter_axis = _slabs(origin, rays, PILLAR)
    hit = (enter > 0) & (enter < exit_)
    depth = np.where(hit, enter, leave)
    axis = np.where(hit, enter_axis, leave_axis)
    return _paint(origin + rays * depth[..., None], axis, hit), (depth * scale).astype(np.float32)


def _slabs(origin: np.ndarray, rays: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    near, far = (box[0] - origin) / rays, (box[1] - origin) / rays
    low, high = np.minimum(near, far), np.maximum(near, far)
    enter, leave = low.max(-1), high.min(-1)
    inside = ((origin > box[0]) & (origin < box[1])).all()
    return enter, leave, (high.argmin(-1) if inside else low.argmax(-1))


def _paint(points: np.ndarray, axis: np.ndarray, pillar: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    phase = np.stack([2.0 * x + 1.1 * z, 1.7 * y - 0.9 * x, 2.3 * z + 1.3 * y], -1)
    colour = 0.5 + 0.22 * np.sin(phase) + 0.12 * np.sin(2.1 * phase[..., ::-1] + axis[..., None])
    colour += 0.1 * (axis[..., None] - 1) + np.where(pillar[..., None], [0.2, -0.1, -0.15], 0.0)
    return (colour.clip(0, 1) * 255).round().astype(np.uint8)


def visible_from(cameras: CameraPath, target: int, source: int) -> np.ndarray:
    """(H, W) bool: what `target` sees is in `source`'s picture, and within 1% of its depth there."""
    depth = render(cameras, target)[1].astype(np.float64)
    v, u = np.meshgrid(np.arange(cameras.height) + 0.5, np.arange(cameras.width) + 0.5, indexing="ij")
    points = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cameras.K[target]).T * depth[..., None]
    to_source = np.linalg.inv(cameras.c2w[source]) @ cameras.c2w[target]
    points = points @ to_source[:3, :3].T + to_source[:3, 3]
    uv = points @ cameras.K[source].T
    uv = uv[..., :2] / uv[..., 2:]
    inside = (points[..., 2] > 0) & (uv >= 0).all(-1) & (uv[..., 0] < cameras.width) & (uv[..., 1] < cameras.height)
    # Ray casting the source at the exact place instead of sampling its depth map: no rounding at silhouettes.
    c2w = cameras.c2w[source]
    rays = np.concatenate([uv, np.ones_like(uv[..., :1])], -1) @ np.linalg.inv(cameras.K[source]).T @ c2w[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        _, leave, _ = _slabs(c2w[:3, 3], rays, ROOM)
        enter, exit_, _ = _slabs(c2w[:3, 3], rays, PILLAR)
    seen = np.where((enter > 0) & (enter < exit_), enter, leave)
    return inside & (np.abs(points[..., 2] - seen) < 0.01 * seen)
