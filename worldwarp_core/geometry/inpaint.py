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
import torch.nn.functional as F
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
GRADIENT_REACH_PX = 3


def inpaint_disparity(disparity: Tensor, known: Tensor) -> Tensor:
    """(H, W) disparity that equals `disparity` where known and continues it elsewhere.

    Args:
        disparity: (H, W) float, 0 is infinitely far; values outside `known` are not looked at.
        known: (H, W) bool, at least one True.
    """
    assert disparity.shape == known.shape, (disparity.shape, known.shape)
    assert bool(known.any()), "nothing is known"
    hole = ~known
    if not bool(hole.any()):
        return disparity
    border = known & (F.max_pool2d(hole.to(disparity.dtype)[None, None], 3, stride=1, padding=1)[0, 0] > 0)
    smooth = spread(disparity, border, hole)
    front = _foreground_border(torch.where(known, disparity, smooth), known, border)
    if bool(front.any()):
        smooth = spread(disparity, border & ~front, hole)
    return torch.where(known, disparity, smooth)


def spread(values: Tensor, source: Tensor, hole: Tensor) -> Tensor:
    """(H, W) solution of Laplace's equation in `hole`, fixed at `source`, with no flux through everything else.

    Along rows it conducts `ALONG_ROWS` times as well as along columns. Coarse to fine: each level of a pyramid starts
    from the one above and is relaxed; the first levels halve the rows' length alone, until both directions are alike.
    """
    assert bool(source.any()), "nothing to spread from"
    value = torch.where(source, values, torch.zeros_like(values))[None, None]
    levels = [_Level(value, source.to(values.dtype)[None, None], hole.to(values.dtype)[None, None], ALONG_ROWS, (1, 1))]
    while max(levels[-1].value.shape[2:]) > 1:
        levels.append(_coarser(levels[-1]))
    solution = levels[-1].value
    for coarse, fine in zip(levels[:0:-1], levels[-2::-1], strict=True):
        height, width = fine.value.shape[2:]
        up = [float(f) for f in coarse.factor]
        guess = F.interpolate(solution, scale_factor=up, mode="bilinear", align_corners=False)[:, :, :height, :width]
        solution = _relax(torch.where(fine.source > 0, fine.value, guess), fine)
    return solution[0, 0]


@dataclass(frozen=True)
class _Level:
    value: Tensor  # (1, 1, h, w), where source
    source: Tensor  # 1 or 0
    hole: Tensor  # 1 or 0
    along_rows: float
    factor: tuple[int, int]  # what the finer level was shrunk by


def _coarser(fine: _Level) -> _Level:
    factor = (1, 2) if fine.along_rows > 1 and fine.value.shape[3] > 1 else (2, 2)

    def halve(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, -x.shape[3] % factor[1], 0, -x.shape[2] % factor[0])), factor)

    weight = halve(fine.source)
    source = (weight > 0).to(weight.dtype)
    along_rows = fine.along_rows / 4 if factor == (1, 2) else fine.along_rows
    value = halve(fine.value * fine.source) / weight.clamp_min(1e-12)
    return _Level(value, source, (halve(fine.hole) > 0).to(weight.dtype) * (1 - source), along_rows, factor)


def _relax(solution: Tensor, level: _Level) -> Tensor:
    r = level.along_rows
    kernel = solution.new_tensor([[1, 4, 1], [4 * r, 0, 4 * r], [1, 4, 1]])[None, None] / (12 + 8 * r)
    domain = torch.clamp(level.source + level.hole, max=1)
    neighbours = F.conv2d(domain, kernel, padding=1)
    update = (level.hole > 0) & (neighbours > 0)
    for _ in range(RELAXATIONS):
        relaxed = F.conv2d(solution * domain, kernel, padding=1) / neighbours.clamp_min(1e-12)
        solution = torch.where(update, relaxed, solution)
    return solution


def _foreground_border(disparity: Tensor, known: Tensor, border: Tensor) -> Tensor:
    """(H, W) bool: the border pixels that stand in front of what faces them across their hole.

    Each of a pair is extended as a plane to where the other is. A pixel is in front only if both planes say so: the
    ground before a wall is nearer than the wall, and still neither hides the other.
    """
    d = cv2.medianBlur(np.ascontiguousarray(disparity.cpu().numpy(), np.float32), 5)
    known_np = known.cpu().numpy()
    hole = (~known_np).astype(np.uint8)
    slope_v, slope_u = _slope(d.T, known_np.T).T, _slope(d, known_np)
    opening = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 2.0)
    normal_v, normal_u = np.gradient(opening) if min(d.shape) > 1 else (opening, opening)

    count, label, stats, _ = cv2.connectedComponentsWithStats(hole, connectivity=8)
    front = np.zeros(d.shape, bool)
    border_np = border.cpu().numpy()
    for component in range(1, count):
        x, y, w, h, area = stats[component]
        if area < MIN_HOLE_PX:
            continue
        rows, cols = slice(max(y - 1, 0), y + h + 1), slice(max(x - 1, 0), x + w + 1)
        around = cv2.dilate((label[rows, cols] == component).astype(np.uint8), np.ones((3, 3), np.uint8))
        v, u = np.nonzero((around > 0) & border_np[rows, cols])
        v, u = v + rows.start, u + cols.start
        if len(v) == 0:
            continue
        normal = np.stack([normal_v[v, u], normal_u[v, u]])
        normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-6)
        is_front = _in_front(
            np.stack([v, u]).astype(np.float32), normal, d[v, u], np.stack([slope_v[v, u], slope_u[v, u]])
        )
        if not is_front.all():
            front[v[is_front], u[is_front]] = True
    return torch.from_numpy(front).to(known.device)


def _in_front(at: np.ndarray, normal: np.ndarray, d: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """(B,) bool for the border pixels of one hole; `at`, `normal` and `slope` are (2, B), `d` (B,)."""
    others = np.linspace(0, len(d) - 1, min(len(d), MAX_PAIRED)).astype(int)
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
