"""The size the models work at, and the way back to the size that was asked for."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

GRID = 16
"""Pixels: the video autoencoder's 8 times the transformer's patch of 2."""


def working_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """Returns the (width, height) nearest to what was asked for, on the model's grid, of at most about `max_pixels`."""
    shrink = min(1.0, math.sqrt(max_pixels / (width * height)))
    fit = [max(round(side * shrink / GRID), 1) * GRID for side in (width, height)]
    return fit[0], fit[1]


def resize_picture(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8, Lanczos; the very same array where the size is right already."""
    if rgb.shape[:2] == (height, width):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS))


def resize_map(values: np.ndarray, width: int, height: int, out: np.ndarray | None = None) -> np.ndarray:
    """(h, w) depth or mask -> (height, width), nearest: values are never mixed across an edge.

    Args:
        out: filled and returned, where it is given; else a map of the right size is returned as it is.
    """
    if values.shape != (height, width):
        rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
        cols = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
        # Where every index is known to be in range, nothing is buffered on its way to `out`.
        return np.take(values[rows], cols, axis=1, out=out, mode="clip")
    if out is None:
        return values
    out[...] = values
    return out
