"""The formulas of `trace` as numba kernels: on a CPU they keep no table of rays times primitives in memory.

Absent primitives are skipped. A kernel runs on one core.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

# Rows of a table: center 3, axes 9, half 3, hole 4.
BOX, PIERCED, CYLINDER, ELLIPSOID = range(4)
ABSENT_BELOW = -5e4
"""Absent primitives stand lower than this."""
# This module's kernels call one another, so they are compiled and kept together.
COMPILED: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


def first_hit(
    origin: Tensor, direction: Tensor, table: Tensor, ends: tuple[int, ...], near: float
) -> tuple[Tensor, Tensor]:
    """As `trace.first_hit`; `ends` is where each shape's rows end, `near` the least distance that counts."""
    time = np.empty(direction.shape[:2], np.float32)
    index = np.empty(direction.shape[:2], np.int64)
    rows = table.float().contiguous().numpy()
    start, along = origin.float().contiguous().numpy(), direction.float().contiguous().numpy()
    _first_hits(start, along, rows, np.array(ends), np.float32(near), time, index)
    return torch.from_numpy(time), torch.from_numpy(index)


def distance(points: Tensor, table: Tensor, ends: tuple[int, ...]) -> Tensor:
    """As `trace.distance`."""
    away = np.empty(points.shape[:2], np.float32)
    _distances(points.float().contiguous().numpy(), table.float().contiguous().numpy(), np.array(ends), away)
    return torch.from_numpy(away)


@numba.njit(**COMPILED)
def _first_hits(origin, direction, table, ends, near, time, index):  # type: ignore[no-untyped-def]
    for g in range(direction.shape[0]):
        rows = table[g]
        for r in range(direction.shape[1]):
            best = np.float32(np.inf)
            which = 0
            for shape in range(4):
                for k in range(ends[shape - 1] if shape else 0, ends[shape]):
                    row = rows[k]
                    if row[2] < ABSENT_BELOW:
                        continue
                    o = _local(origin[g, r, 0] - row[0], origin[g, r, 1] - row[1], origin[g, r, 2] - row[2], row)
                    d = _local(direction[g, r, 0], direction[g, r, 1], direction[g, r, 2], row)
                    if shape == BOX:
                        t = _meet_box(o, d, row, near)
                    elif shape == PIERCED:
                        t = _meet_pierced(o, d, row, near)
                    elif shape == CYLINDER:
                        t = _meet_cylinder(o, d, row, near)
                    else:
                        t = _meet_ellipsoid(o, d, row, near)
                    if t < best:
                        best, which = t, k
            time[g, r] = best
            index[g, r] = which


@numba.njit(**COMPILED)
def _distances(points, table, ends, away):  # type: ignore[no-untyped-def]
    for g in range(points.shape[0]):
        rows = table[g]
        for r in range(points.shape[1]):
            best = np.float32(np.inf)
            for shape in range(4):
                for k in range(ends[shape - 1] if shape else 0, ends[shape]):
                    row = rows[k]
                    if row[2] < ABSENT_BELOW:
                        continue
                    p = _local(points[g, r, 0] - row[0], points[g, r, 1] - row[1], points[g, r, 2] - row[2], row)
                    if shape == BOX:
                        far = _box_distance(p, row)
                    elif shape == PIERCED:
                        far = _from_pierced(p, row)
                    elif shape == CYLINDER:
                        far = _from_cylinder(p, row)
                    else:
                        far = _from_ellipsoid(p, row)
                    best = min(best, far)
            away[g, r] = best


@numba.njit(**COMPILED)
def _local(a, b, c, row):  # type: ignore[no-untyped-def]
    return (
        a * row[3] + b * row[4] + c * row[5],
        a * row[6] + b * row[7] + c * row[8],
        a * row[9] + b * row[10] + c * row[11],
    )


@numba.njit(**COMPILED)
def _slab(p, q, h):  # type: ignore[no-untyped-def]
    inverse = np.float32(1.0) / (q if abs(q) >= np.float32(1e-9) else np.float32(1e-9))
    near, far = (-h - p) * inverse, (h - p) * inverse
    return min(near, far), max(near, far)


@numba.njit(**COMPILED)
def _interval(o, d, row):  # type: ignore[no-untyped-def]
    enter, leave = _slab(o[0], d[0], row[12])
    low, high = _slab(o[1], d[1], row[13])
    enter, leave = max(enter, low), min(leave, high)
    low, high = _slab(o[2], d[2], row[14])
    return max(enter, low), min(leave, high)


@numba.njit(**COMPILED)
def _meet_box(o, d, row, near):  # type: ignore[no-untyped-def]
    enter, leave = _interval(o, d, row)
    return enter if enter <= leave and enter > near else np.float32(np.inf)


@numba.njit(**COMPILED)
def _meet_pierced(o, d, row, near):  # type: ignore[no-untyped-def]
    enter, leave = _interval(o, d, row)
    if enter > leave:
        return np.float32(np.inf)
    radius, bottom, top, arched = row[15], row[16], row[17], row[18]
    middle, half = (top + bottom) / np.float32(2), (top - bottom) / np.float32(2)
    # the hole has no ends along y
    low_x, high_x = _slab(o[0], d[0], radius)
    low_z, high_z = _slab(o[2] - middle, d[2], half)
    low, high = max(low_x, low_z), min(high_x, high_z)
    a = max(d[0] * d[0] + d[2] * d[2], np.float32(1e-12))
    oz = o[2] - top
    h = o[0] * d[0] + oz * d[2]
    room = h * h - a * (o[0] * o[0] + oz * oz - radius * radius)
    root = np.float32(math.sqrt(max(room, np.float32(0))))
    disc, rect = room > 0 and arched > 0, low <= high
    first, last = (-h - root) / a, (-h + root) / a
    # disc and rectangle together are convex: a ray's stay in them is one interval
    begin = min(low, first) if disc and rect else (first if disc else low)
    end = max(high, last) if disc and rect else (last if disc else high)
    start = max(enter, near)
    through = (disc or rect) and begin <= start and end > start
    time = end if through else enter
    if time > near and time < leave and (enter > near or through):
        return time
    return np.float32(np.inf)


@numba.njit(**COMPILED)
def _meet_cylinder(o, d, row, near):  # type: ignore[no-untyped-def]
    radius = row[12]
    a = max(d[0] * d[0] + d[1] * d[1], np.float32(1e-12))
    h = o[0] * d[0] + o[1] * d[1]
    room = h * h - a * (o[0] * o[0] + o[1] * o[1] - radius * radius)
    if room <= 0:
        return np.float32(np.inf)
    root = np.float32(math.sqrt(room))
    low, high = _slab(o[2], d[2], row[14])
    enter, leave = max((-h - root) / a, low), min((-h + root) / a, high)
    return enter if enter <= leave and enter > near else np.float32(np.inf)


@numba.njit(**COMPILED)
def _meet_ellipsoid(o, d, row, near):  # type: ignore[no-untyped-def]
    px, py, pz = o[0] / row[12], o[1] / row[13], o[2] / row[14]
    qx, qy, qz = d[0] / row[12], d[1] / row[13], d[2] / row[14]
    a = qx * qx + qy * qy + qz * qz
    along = (px * qx + py * qy + pz * qz) / a
    # the nearest point's distance, rather than the difference of two large squares
    cx, cy, cz = px - along * qx, py - along * qy, pz - along * qz
    room = np.float32(1) - (cx * cx + cy * cy + cz * cz)
    if room <= 0:
        return np.float32(np.inf)
    time = -along - np.float32(math.sqrt(room / a))
    return time if time > near else np.float32(np.inf)


@numba.njit(**COMPILED)
def _box_distance(p, row):  # type: ignore[no-untyped-def]
    zero = np.float32(0)
    x, y, z = abs(p[0]) - row[12], abs(p[1]) - row[13], abs(p[2]) - row[14]
    outside = np.float32(math.sqrt(max(x, zero) ** 2 + max(y, zero) ** 2 + max(z, zero) ** 2))
    return outside + min(max(x, max(y, z)), zero)


@numba.njit(**COMPILED)
def _from_pierced(p, row):  # type: ignore[no-untyped-def]
    radius, bottom, top, arched = row[15], row[16], row[17], row[18]
    hole = max(abs(p[0]) - radius, max(bottom - p[2], p[2] - top))
    if arched > 0:
        hole = min(hole, np.float32(math.sqrt(p[0] * p[0] + (p[2] - top) ** 2)) - radius)
    return max(_box_distance(p, row), -hole)


@numba.njit(**COMPILED)
def _from_cylinder(p, row):  # type: ignore[no-untyped-def]
    zero = np.float32(0)
    out = np.float32(math.sqrt(p[0] * p[0] + p[1] * p[1])) - row[12]
    up = abs(p[2]) - row[14]
    return np.float32(math.sqrt(max(out, zero) ** 2 + max(up, zero) ** 2)) + min(max(out, up), zero)


@numba.njit(**COMPILED)
def _from_ellipsoid(p, row):  # type: ignore[no-untyped-def]
    scaled = np.float32(math.sqrt((p[0] / row[12]) ** 2 + (p[1] / row[13]) ** 2 + (p[2] / row[14]) ** 2))
    # never more than the true distance: along a ray from the centre the surface is at least the smallest radius away
    return (scaled - np.float32(1)) * min(row[12], min(row[13], row[14]))
