"""Rays against the primitives of worlds: where they hit, how far anything is, which way surfaces face; in PyTorch.

All functions take G groups of R rays (or points), each group with its world's table of primitives (G, P, ROW) in the
order of `CAPACITY` (rows as `layout.Layout` says), in metres. An absent primitive lies far below the world.
The same formulas run as kernels, those of `trace_triton` on CUDA and of `trace_numba` on a CPU; `first_hit_plainly`
and `distance_plainly` are what both are tested against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .layout import CAPACITY

ROW = 31
"""Numbers of a primitive: center 3, axes 9, half 3, hole 4, material 12."""
MATERIAL = slice(19, 31)
NEAR = 1e-3
_ENDS: dict[str, tuple[int, int]] = {}
for _name, _count in CAPACITY.items():
    _start = sum(count for name, count in CAPACITY.items() if name in _ENDS)
    _ENDS[_name] = (_start, _start + _count)
ENDS = tuple(end for _, end in _ENDS.values())
"""Where the rows of each shape end."""
FIRST_ROUND = _ENDS["cylinder"][0]
FIRST_BALL = _ENDS["ellipsoid"][0]


class Local(NamedTuple):
    """Vectors in the axes of every primitive, (G, R, N) each."""

    x: Tensor
    y: Tensor
    z: Tensor


def first_hit(origin: Tensor, direction: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (in lengths of `direction`, (G, R), inf for none) to what rays meet first, and which primitive.

    Args:
        origin, direction: (G, R, 3).
        table: (G, P, ROW).
    """
    if direction.is_cuda:
        from . import trace_triton

        return trace_triton.first_hit(origin, direction, table)
    from . import trace_numba

    return trace_numba.first_hit(origin, direction, table, ENDS, NEAR)


def distance(points: Tensor, table: Tensor) -> Tensor:
    """(G, R) metres from (G, R, 3) points to the nearest primitive, negative inside; from balls at most the truth."""
    if points.is_cuda:
        from . import trace_triton

        return trace_triton.distance(points, table)
    from . import trace_numba

    return trace_numba.distance(points, table, ENDS)


def first_hit_plainly(origin: Tensor, direction: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """As `first_hit`, every ray against every primitive."""
    times, which = [], []
    for name, meet in (("box", _meet_box), ("pierced", _meet_pierced), ("cylinder", _meet_cylinder),
                       ("ellipsoid", _meet_ellipsoid)):  # fmt: skip
        low, high = _ENDS[name]
        rows = table[:, None, low:high]
        o = _to_local(origin[:, :, None] - rows[..., :3], rows)
        d = _to_local(direction[:, :, None], rows)
        time, index = meet(o, d, rows).min(-1)
        times.append(time)
        which.append(index + low)
    time, best = torch.stack(times, -1).min(-1)
    return time, torch.stack(which, -1).gather(-1, best[..., None])[..., 0]


def distance_plainly(points: Tensor, table: Tensor) -> Tensor:
    """As `distance`, every point against every primitive."""
    nearest = []
    for name, away in (("box", _from_box), ("pierced", _from_pierced), ("cylinder", _from_cylinder),
                       ("ellipsoid", _from_ellipsoid)):  # fmt: skip
        low, high = _ENDS[name]
        rows = table[:, None, low:high]
        nearest.append(away(_to_local(points[:, :, None] - rows[..., :3], rows), rows).amin(-1))
    return torch.stack(nearest, -1).amin(-1)


def surface(point: Tensor, row: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a hit looks like from its primitive: normal, place on the surface, and metres a turn of it.

    Args:
        point: (..., 3) hit points.
        row: (..., ROW) of their primitives.
        which: (...) their places in the table, which tell the shape.

    Returns:
        (..., 3) world normals; (..., 2) u and v in metres, or in turns over the face for a stretched material;
        (..., 2) metres that a turn of u and v spans (1 where they are metres).
    """
    x, y, z = (point - row[..., :3])[..., None, :].mul(row[..., 3:12].unflatten(-1, (3, 3))).sum(-1).unbind(-1)
    hx, hy, hz = row[..., 12:15].unbind(-1)
    radius, bottom, top, arched = row[..., 15:19].unbind(-1)
    zero = torch.zeros_like(x)

    # flat faces: the axis along which the point is farthest out
    out = torch.stack([x.abs() / hx, y.abs() / hy, z.abs() / hz], -1)
    face = torch.nn.functional.one_hot(out.argmax(-1), 3).to(x.dtype)
    normal = face * torch.stack([x.sign(), y.sign(), z.sign()], -1)

    # the inside of a hole
    pierced = (which >= _ENDS["pierced"][0]) & (which < _ENDS["pierced"][1])
    inner = pierced & (out.amax(-1) < 0.9995)
    in_arch = (arched > 0) & (z > top)
    round_normal = torch.stack([-x, zero, top - z], -1)
    round_normal = round_normal / round_normal.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    beside, below, above = radius - x.abs(), (z - bottom).abs(), (top - z).abs()
    above = torch.where(arched > 0, torch.full_like(above, 1e3), above)
    on_side = (beside < below) & (beside < above)
    flat_normal = torch.where(
        on_side[..., None],
        torch.stack([-x.sign(), zero, zero], -1),
        torch.stack([zero, zero, torch.where(below < above, 1.0, -1.0)], -1),
    )
    normal = torch.where(inner[..., None], torch.where(in_arch[..., None], round_normal, flat_normal), normal)

    # round things
    drum = (which >= FIRST_ROUND) & (which < FIRST_BALL)
    ball = which >= FIRST_BALL
    cap = z.abs() > hz * 0.9995
    around = torch.stack([x, y, zero], -1) / (x * x + y * y).clamp_min(1e-12).sqrt()[..., None]
    drum_normal = torch.where(cap[..., None], torch.stack([zero, zero, z.sign()], -1), around)
    ball_normal = torch.stack([x / hx**2, y / hy**2, z / hz**2], -1)
    ball_normal = ball_normal / ball_normal.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    normal = torch.where(drum[..., None], drum_normal, torch.where(ball[..., None], ball_normal, normal))

    # u and v
    stretched = row[..., 29] > 0.5
    ax, ay = normal[..., 0].abs(), normal[..., 1].abs()
    az = normal[..., 2].abs()
    flat = (az >= ax) & (az >= ay)
    u = torch.where(flat | (ay >= ax), x, y)
    v = torch.where(flat, y, -z)
    wide = 2 * torch.where(flat | (ay >= ax), hx, hy)
    tall = 2 * torch.where(flat, hy, hz)
    ones = torch.ones_like(wide)
    span = torch.where(stretched[..., None], torch.stack([wide, tall], -1), torch.stack([ones, ones], -1))
    uv = torch.where(stretched[..., None], torch.stack([u / wide + 0.5, v / tall + 0.5], -1), torch.stack([u, v], -1))
    # whole turns of the picture around a drum or ball, so that no seam shows
    repeats = row[..., 20]
    length = 6.283185307 * hx
    turns = (length * repeats).round().clamp_min(1.0)
    angle = torch.atan2(y, x) / 6.283185307
    curved = torch.stack([angle * turns / repeats, -z], -1)
    polar = (0.5 * length * repeats).round().clamp_min(1.0)
    globe = torch.stack(
        [angle * turns / repeats, -torch.asin((z / hz).clamp(-1, 1)) / 3.14159265 * polar / repeats], -1
    )
    uv = torch.where((drum & ~cap)[..., None], curved, torch.where(ball[..., None], globe, uv))
    span = torch.where((drum | ball)[..., None], torch.ones_like(span), span)

    axes = row[..., 3:12].unflatten(-1, (3, 3))
    return (normal[..., :, None] * axes).sum(-2), uv, span


def _to_local(vector: Tensor, rows: Tensor) -> Local:
    a, b, c = vector.unbind(-1)
    return Local(
        a * rows[..., 3] + b * rows[..., 4] + c * rows[..., 5],
        a * rows[..., 6] + b * rows[..., 7] + c * rows[..., 8],
        a * rows[..., 9] + b * rows[..., 10] + c * rows[..., 11],
    )


def _interval(o: Local, d: Local, hx: Tensor, hy: Tensor, hz: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box."""
    enter, leave = None, None
    for p, q, h in zip(o, d, (hx, hy, hz), strict=True):
        inverse = 1.0 / torch.where(q.abs() < 1e-9, 1e-9, q)
        near, far = (-h - p) * inverse, (h - p) * inverse
        low, high = torch.minimum(near, far), torch.maximum(near, far)
        enter = low if enter is None else torch.maximum(enter, low)
        leave = high if leave is None else torch.minimum(leave, high)
    assert enter is not None
    assert leave is not None
    return enter, leave


def _meet_box(o: Local, d: Local, rows: Tensor) -> Tensor:
    enter, leave = _interval(o, d, rows[..., 12], rows[..., 13], rows[..., 14])
    return torch.where((enter <= leave) & (enter > NEAR), enter, torch.inf)


def _meet_pierced(o: Local, d: Local, rows: Tensor) -> Tensor:
    enter, leave = _interval(o, d, rows[..., 12], rows[..., 13], rows[..., 14])
    radius, bottom, top, arched = rows[..., 15], rows[..., 16], rows[..., 17], rows[..., 18]
    middle, half = (top + bottom) / 2, (top - bottom) / 2
    # the hole has no ends along y
    low, high = _interval(Local(o.x, torch.zeros_like(o.y), o.z - middle), Local(d.x, torch.zeros_like(d.y), d.z),
                          radius, torch.ones_like(radius), half)  # fmt: skip
    a = (d.x * d.x + d.z * d.z).clamp_min(1e-12)
    oz = o.z - top
    h = o.x * d.x + oz * d.z
    room = h * h - a * (o.x * o.x + oz * oz - radius * radius)
    root = room.clamp_min(0).sqrt()
    disc = (room > 0) & (arched > 0)
    rect = low <= high
    first, last = (-h - root) / a, (-h + root) / a
    # disc and rectangle together are convex: a ray's stay in them is one interval
    begin = torch.where(disc & rect, torch.minimum(low, first), torch.where(disc, first, low))
    end = torch.where(disc & rect, torch.maximum(high, last), torch.where(disc, last, high))
    crosses = disc | rect
    start = torch.clamp(enter, min=NEAR)
    through = crosses & (begin <= start) & (end > start)
    time = torch.where(through, end, enter)
    return torch.where((enter <= leave) & (time > NEAR) & (time < leave) & ((enter > NEAR) | through), time, torch.inf)


def _meet_cylinder(o: Local, d: Local, rows: Tensor) -> Tensor:
    radius, hz = rows[..., 12], rows[..., 14]
    a = (d.x * d.x + d.y * d.y).clamp_min(1e-12)
    h = o.x * d.x + o.y * d.y
    room = h * h - a * (o.x * o.x + o.y * o.y - radius * radius)
    root = room.clamp_min(0).sqrt()
    inverse = 1.0 / torch.where(d.z.abs() < 1e-9, 1e-9, d.z)
    near, far = (-hz - o.z) * inverse, (hz - o.z) * inverse
    enter = torch.maximum((-h - root) / a, torch.minimum(near, far))
    leave = torch.minimum((-h + root) / a, torch.maximum(near, far))
    return torch.where((room > 0) & (enter <= leave) & (enter > NEAR), enter, torch.inf)


def _meet_ellipsoid(o: Local, d: Local, rows: Tensor) -> Tensor:
    hx, hy, hz = rows[..., 12], rows[..., 13], rows[..., 14]
    px, py, pz, qx, qy, qz = o.x / hx, o.y / hy, o.z / hz, d.x / hx, d.y / hy, d.z / hz
    a = qx * qx + qy * qy + qz * qz
    h = px * qx + py * qy + pz * qz
    # the nearest point's distance, rather than the difference of two large squares
    along = h / a
    cx, cy, cz = px - along * qx, py - along * qy, pz - along * qz
    room = 1 - (cx * cx + cy * cy + cz * cz)
    time = -along - (room.clamp_min(0) / a).sqrt()
    return torch.where((room > 0) & (time > NEAR), time, torch.inf)


def _from_box(p: Local, rows: Tensor) -> Tensor:
    return _box_distance(p, rows[..., 12], rows[..., 13], rows[..., 14])


def _box_distance(p: Local, hx: Tensor, hy: Tensor, hz: Tensor) -> Tensor:
    x, y, z = p.x.abs() - hx, p.y.abs() - hy, p.z.abs() - hz
    outside = (x.clamp_min(0) ** 2 + y.clamp_min(0) ** 2 + z.clamp_min(0) ** 2).sqrt()
    return outside + torch.maximum(x, torch.maximum(y, z)).clamp_max(0)


def _from_pierced(p: Local, rows: Tensor) -> Tensor:
    solid = _box_distance(p, rows[..., 12], rows[..., 13], rows[..., 14])
    radius, bottom, top, arched = rows[..., 15], rows[..., 16], rows[..., 17], rows[..., 18]
    hole = torch.maximum(p.x.abs() - radius, torch.maximum(bottom - p.z, p.z - top))
    disc = (p.x * p.x + (p.z - top) ** 2).sqrt() - radius
    return torch.maximum(solid, -torch.where(arched > 0, torch.minimum(hole, disc), hole))


def _from_cylinder(p: Local, rows: Tensor) -> Tensor:
    out = (p.x * p.x + p.y * p.y).sqrt() - rows[..., 12]
    up = p.z.abs() - rows[..., 14]
    return (out.clamp_min(0) ** 2 + up.clamp_min(0) ** 2).sqrt() + torch.maximum(out, up).clamp_max(0)


def _from_ellipsoid(p: Local, rows: Tensor) -> Tensor:
    hx, hy, hz = rows[..., 12], rows[..., 13], rows[..., 14]
    scaled = ((p.x / hx) ** 2 + (p.y / hy) ** 2 + (p.z / hz) ** 2).sqrt()
    # never more than the true distance: along a ray from the centre the surface is at least the smallest radius away
    return (scaled - 1) * torch.minimum(hx, torch.minimum(hy, hz))
