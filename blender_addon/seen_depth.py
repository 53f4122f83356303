# SPDX-License-Identifier: GPL-3.0-or-later
"""How far the scene's own geometry is, on a coarse grid over a camera's view: a few hundred rays, no render.

In: a scene and exported cameras. Out: planar z in scene units at the centres of the grid's cells, infinity where a ray
meets nothing. Answers in milliseconds what does not need a render: how far things are, and what stays in view.
"""

from __future__ import annotations

import bpy
import numpy as np
from mathutils import Vector

GRID = (24, 14)
"""Rays across and down."""


def grid_pixels(width: int, height: int) -> np.ndarray:
    """Returns (N, 2) float64 pixel positions (x, y) of the grid over a picture of that size, row by row."""
    across, down = GRID
    x = (np.arange(across) + 0.5) * width / across
    y = (np.arange(down) + 0.5) * height / down
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def view_rays(pixels: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Returns (N, 3) rays in the world through (N, 2) pixels, of planar length 1: z times a ray is a point's offset."""
    rays = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ np.linalg.inv(K).T
    return rays @ c2w[:3, :3].T


def seen_depth(
    scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph, pixels: np.ndarray, K: np.ndarray, c2w: np.ndarray
) -> np.ndarray:
    """Returns (N,) planar z of the scene, as it is evaluated now, at (N, 2) pixels of a camera."""
    origin = Vector(c2w[:3, 3].tolist())
    rays = view_rays(pixels, K, c2w)
    lengths = np.linalg.norm(rays, axis=1)
    depth = np.full(len(pixels), np.inf)
    for number, (ray, length) in enumerate(zip(rays, lengths, strict=True)):
        hit, where, *_ = scene.ray_cast(depsgraph, origin, Vector((ray / length).tolist()))
        if hit:
            depth[number] = (where - origin).length / length
    return depth
