"""Closes the holes of a disparity map: smoothly, and with the farther surface where near and far meet at a hole.

A hole that opens when the camera moves is nearly always background that a nearer object used to hide. So before the
holes are closed, the parts of their borders that stand in front of the border across the hole are set aside; what is
left is spread through the hole by solving Laplace's equation (in disparity, in which planes stay planes).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

FRONT_RATIO = 1.1
"""A border pixel is in front of another when its disparity is larger by this, where either surface is extended."""
FRONT_SHARE = 0.25
"""... and it is set aside when it is in front of this share of the border pixels that it faces."""
FACING_COSINE = 0.3
"""Two border pixels face each other across a hole when each lies this much in the direction of the other's normal."""
MIN_HOLE_PX = 12
"""Smaller holes are closed from their whole border."""
MAX_PAIRED = 256
"""Border pixels of one hole that the others are compared with, evenly drawn."""
ALONG_ROWS = 16.0
"""A power of 4. Depth changes less along an image's rows than along its columns (the ground recedes upwards)."""
RELAXATIONS = 12
"""At every level of the pyramid."""
GRADIENT_REACH_PX = 5


def inpaint_disparity(disparity: Tensor, known: Tensor) -> Tensor:
    """(H, W) disparity that equals `disparity` where known and continues it elsewhere.

    Args:
        disparity: (H, W) float, 0 is infinitely far; values outside `known` are not looked at.
        known: (H, W) bool, at least one True.
    """
    assert disparity.shape == known.shape, (disparity.shape, known.shape)
    if bool(known.all()):
        return disparity
    known_np = known.cpu().numpy()
    values = np.where(known_np, disparity.detach().cpu().numpy().astype(np.float32), 0)
    border = hole_border(known_np)
    front = _foreground_border(values, known_np, border)
    smooth = _spread_with_sky(values, border & ~front, ~known_np)
    return torch.where(known, disparity, torch.from_numpy(smooth).to(disparity))


def _spread_with_sky(values: np.ndarray, source: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """`spread`, with a line between sky (0) and surfaces: between a roof and the sky there is no far-away ramp."""
    sky = source & (values == 0)
    surface = source & ~sky
    if not sky.any() or not surface.any():
        return spread(values, source, hole)
    return np.where(spread(sky, source, hole) > 0.5, np.float32(0), spread(values, surface, hole))


def hole_border(known: np.ndarray) -> np.ndarray:
    """(H, W) bool: the known pixels that touch an unknown one."""
    return known & (cv2.dilate((~known).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)


def spread(values: np.ndarray, source: np.ndarray, hole: np.ndarray, relaxations: int = RELAXATIONS) -> np.ndarray:
    """(H, W) float32 solution of Laplace's equation in `hole`, fixed at `source`, with no flux through all else.

    Along rows it conducts `ALONG_ROWS` times as well as along columns. Coarse to fine: each level of a pyramid starts
    from the one above and is relaxed; the first levels halve the rows' length alone, until both directions are alike.
    """
    assert source.any(), "nothing to spread from"
    fixed = source.astype(np.float32)
    levels = [_Level(np.where(source, values, 0).astype(np.float32), fixed, hole.astype(np.float32), ALONG_ROWS)]
    while max(levels[-1].value.shape) > 1:
        levels.append(_coarser(levels[-1]))
    solution = levels[-1].value
    for level in levels[-2::-1]:
        height, width = level.value.shape
        # Shapes are halved rounding up, so the doubled picture is cut rather than squeezed.
        doubled = (solution.shape[1] * 2, solution.shape[0] * (1 if solution.shape[0] == height else 2))
        guess = cv2.resize(solution, doubled, interpolation=cv2.INTER_LINEAR).reshape(doubled[::-1])[:height, :width]
        solution = _relax(np.where(level.source > 0, level.value, guess), level)
    return solution


@dataclass(frozen=True)
class _Level:
    """One level of the pyramid, (h, w) float32 each."""

    value: np.ndarray  # where source
    source: np.ndarray  # 1 or 0
    hole: np.ndarray  # 1 or 0
    along_rows: float


def _coarser(fine: _Level) -> _Level:
    rows_only = fine.along_rows > 1 and fine.value.shape[1] > 1
    weight = _halve(fine.source, rows_only)
    source = (weight > 0).astype(np.float32)
    value = _halve(fine.value * fine.source, rows_only) / np.maximum(weight, 1e-12)
    hole = (_halve(fine.hole, rows_only) > 0) * (1 - source)
    return _Level(value, source, hole, fine.along_rows / 4 if rows_only else fine.along_rows)


def _halve(x: np.ndarray, rows_only: bool) -> np.ndarray:
    """Sums of pairs along each row, or of 2x2 blocks; what is missing at the far ends counts as 0."""
    height, width = x.shape
    odd_rows, odd_columns = 0 if rows_only else height % 2, width % 2
    if odd_rows or odd_columns:
        x = cv2.copyMakeBorder(x, 0, odd_rows, 0, odd_columns, cv2.BORDER_CONSTANT)
    x = x[:, 0::2] + x[:, 1::2]
    return x if rows_only else x[0::2] + x[1::2]


def _relax(solution: np.ndarray, level: _Level) -> np.ndarray:
    """Jacobi's iteration; outside source and hole the solution is 0, so that nothing flows in from there."""
    r = level.along_rows
    kernel = np.array([[1, 4, 1], [4 * r, 0, 4 * r], [1, 4, 1]], np.float32) / (12 + 8 * r)
    domain = np.maximum(level.source, level.hole)
    neighbours = cv2.filter2D(domain, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    update = level.hole * (neighbours > 0)
    share = update / np.maximum(neighbours, 1e-12)
    solution = solution * domain
    fixed = solution * (1 - update)
    for _ in range(RELAXATIONS):
        around = cv2.filter2D(solution, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        solution = cv2.add(cv2.multiply(around, share), fixed)
    return solution


def _foreground_border(disparity: np.ndarray, known: np.ndarray, border: np.ndarray) -> np.ndarray:
    """(H, W) bool: the border pixels that stand in front of what faces them across their hole.

    Each of a pair is extended as a plane to where the other is. A pixel is in front only if both planes say so: the
    ground before a wall is nearer than the wall, and still neither hides the other.
    """
    slope = np.stack([_slope(disparity.T, known.T).T, _slope(disparity, known)])
    hole = (~known).astype(np.uint8)
    opening = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 2.0)
    normal = np.stack([cv2.Sobel(opening, -1, 0, 1), cv2.Sobel(opening, -1, 1, 0)])

    front = np.zeros(known.shape, bool)
    _, label, stats, _ = cv2.connectedComponentsWithStats(hole, connectivity=8)
    sized = stats[:, cv2.CC_STAT_AREA] >= MIN_HOLE_PX
    for component in np.flatnonzero(sized[1:]) + 1:  # 0 is what is no hole
        x, y, w, h = stats[component, :4]
        top, left = max(y - 1, 0), max(x - 1, 0)
        part = np.s_[top : y + h + 1, left : x + w + 1]
        around = cv2.dilate((label[part] == component).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        v, u = np.nonzero(around & border[part])
        v, u = v + top, u + left
        is_front = _in_front(np.stack([v, u]).astype(np.float32), normal[:, v, u], disparity[v, u], slope[:, v, u])
        if not is_front.all():
            front[v[is_front], u[is_front]] = True
    return front


def _in_front(at: np.ndarray, normal: np.ndarray, d: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """(B,) bool for the border pixels of one hole; `at`, `slope` and `normal` (into the hole) are (2, B), `d` (B,)."""
    others = np.linspace(0, len(d) - 1, min(len(d), MAX_PAIRED)).astype(int)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=0), 1e-6)
    step = at[:, None, others] - at[:, :, None]  # (2, B, O), from each pixel to each other
    distance = np.maximum(np.linalg.norm(step, axis=0), 1e-6)
    faces = (np.einsum("cb,cbo->bo", normal, step) > FACING_COSINE * distance) & (
        -np.einsum("co,cbo->bo", normal[:, others], step) > FACING_COSINE * distance
    )
    mine_there = np.maximum(d[:, None] + np.einsum("cb,cbo->bo", slope, step), 0)
    theirs_here = np.maximum(d[None, others] - np.einsum("co,cbo->bo", slope[:, others], step), 0)
    slack = 0.02 * float(np.median(d))
    nearer = (d[:, None] > FRONT_RATIO * theirs_here + slack) & (mine_there > FRONT_RATIO * d[None, others] + slack)
    facing = faces.sum(axis=1)
    return (facing > 0) & ((nearer & faces).sum(axis=1) >= FRONT_SHARE * np.maximum(facing, 1))


def _slope(d: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(H, W) change of disparity per pixel along the columns, from the side on which the surface goes on.

    The smaller of the two one-sided differences that stay on known pixels; 0 where there is neither.
    """
    reach = GRADIENT_REACH_PX
    if d.shape[1] <= reach:
        return np.zeros_like(d)
    ahead, behind = np.full_like(d, np.inf), np.full_like(d, np.inf)
    step = np.where(known[:, reach:] & known[:, :-reach], (d[:, reach:] - d[:, :-reach]) / reach, np.inf)
    ahead[:, :-reach], behind[:, reach:] = step, step
    slope = np.where(np.abs(ahead) < np.abs(behind), ahead, behind)
    return np.where(np.isfinite(slope), slope, 0.0).astype(np.float32)
