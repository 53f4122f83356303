"""Camera paths as artists animate them, through the free space of procedural worlds.

A path starts where there is something to see, moves by one to three of dolly, truck, crane, orbit, pan, tilt, roll and
zoom with an ease, sometimes hand-held, sometimes out and back, and never comes nearer than `CLEARANCE` to anything.
Everything drawn comes from a path's own seed, so a path does not depend on what it is batched with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .layout import CAPACITY
from .render import Worlds, camera_rays, clearance, ground_height, ground_time
from .rigid import rotate
from .trace import first_hit

CLEARANCE = 0.15
"""Metres that a camera keeps from every surface."""
STARTS = 24
"""Start views tried for each path."""
MOVES = 10
"""Moves tried for each path, each at the full amount and at the parts of it in `AMOUNTS`."""
AMOUNTS = (1.0, 0.6, 0.3)
LOOK = (9, 16)
"""Rays of a glance that judges a view."""
MOVE_NAMES = ("dolly", "truck", "crane", "orbit", "pan", "tilt", "roll", "zoom")


@dataclass(frozen=True)
class PathSettings:
    """What paths to make.

    Attributes:
        frames: of each path.
        size: (height, width) of the frames, pixels.
        amount: (least, most) factor on how far moves go; 1 uncovers much of a view.
        out_and_back: the share of paths that return to where they began.
        handheld: the share of paths with an unsteady hand.
        field_of_view: (least, most) horizontal, degrees.
    """

    frames: int = 49
    size: tuple[int, int] = (144, 256)
    amount: tuple[float, float] = (0.5, 1.4)
    out_and_back: float = 0.08
    handheld: float = 0.35
    field_of_view: tuple[float, float] = (34.0, 88.0)

    def __post_init__(self) -> None:
        assert self.frames >= 1, self.frames
        assert 0 < self.amount[0] <= self.amount[1], self.amount


@dataclass(frozen=True)
class Paths:
    """n paths of T frames.

    Attributes:
        K: (n, T, 3, 3) pixels.
        c2w: (n, T, 4, 4) OpenCV, metres.
        free: (n,) metres to the nearest surface, the least along each path.
        moves: what each path does, by the names of `MOVE_NAMES`, 'handheld' and 'back'.
    """

    K: Tensor
    c2w: Tensor
    free: Tensor
    moves: tuple[str, ...]


@torch.no_grad()
def choose_paths(worlds: Worlds, seeds: Sequence[int], settings: PathSettings) -> Paths:
    """One path through each world."""
    n, device = len(worlds), worlds.table.device
    assert len(seeds) == n, (len(seeds), n)
    hands = [np.random.default_rng([seed, 1]) for seed in seeds]
    low, high = (math.log(math.tan(math.radians(angle) / 2)) for angle in settings.field_of_view)
    draws = torch.tensor(np.stack([hand.random((STARTS, 12)) for hand in hands]), dtype=torch.float32, device=device)
    lens = torch.tensor([math.exp(low + (high - low) * hand.random()) for hand in hands], device=device)
    position, rotation, focus = _starts(worlds, draws, lens, settings)

    drawn = [_draw_moves(hand, settings) for hand in hands]
    numbers = torch.tensor(np.stack([numbers for numbers, _ in drawn]), dtype=torch.float32, device=device)
    waves = torch.tensor(np.stack([hand.normal(size=(6, 5, 2)) for hand in hands]), dtype=torch.float32, device=device)
    c2w, zoom = _animate(position, rotation, focus, numbers, waves, settings.frames)
    picked, free = _first_free(worlds, c2w, lens, zoom, settings)
    every = torch.arange(n, device=device)
    c2w, zoom = c2w[every, picked], zoom[every, picked]
    height, width = settings.size
    K = torch.zeros(n, settings.frames, 3, 3, device=device)
    K[..., 0, 0] = K[..., 1, 1] = 0.5 * width / lens[:, None] * zoom
    K[..., 0, 2], K[..., 1, 2], K[..., 2, 2] = width / 2, height / 2, 1.0
    names = tuple(drawn[i][1][k % MOVES] for i, k in enumerate(picked.tolist()))
    return Paths(K, c2w, free, names)


@torch.no_grad()
def share_in_sight(
    worlds: Worlds, first: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor], size: tuple[int, int]
) -> Tensor:
    """(n,) share of the first view, in [0, 1], that the last view still sees.

    Args:
        worlds: n of them, one a pair of views.
        first, last: K (n, 3, 3) and c2w (n, 4, 4) of each view.
        size: (height, width) of both in pixels; every second pixel each way is asked.
    """
    coarse = (max(size[0] // 2, 1), max(size[1] // 2, 1))
    shrink = torch.tensor([coarse[1] / size[1], coarse[0] / size[0], 1.0], device=first[0].device)[:, None]
    origin, direction = camera_rays(first[0] * shrink, first[1], coarse)
    time = _see(worlds, origin, direction)[0]
    sky = ~time.isfinite()
    point = origin + torch.where(sky, 1e5, time)[..., None] * direction
    return visible(worlds, point, last[0], last[1], size).float().mean(1)


@torch.no_grad()
def visible(worlds: Worlds, points: Tensor, K: Tensor, c2w: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, R) whether each world's camera (n, 3, 3), (n, 4, 4) sees its (n, R, 3) points, exactly, by a ray to each."""
    toward = points - c2w[:, None, :3, 3]
    local = rotate(c2w[:, None, :3, :3].mT, toward)
    z = local[..., 2]
    u = K[:, None, 0, 0] * local[..., 0] / z.clamp_min(1e-6) + K[:, None, 0, 2]
    v = K[:, None, 1, 1] * local[..., 1] / z.clamp_min(1e-6) + K[:, None, 1, 2]
    inside = (z > 1e-6) & (u >= 0) & (v >= 0) & (u < size[1]) & (v < size[0])
    direction = toward / z.abs().clamp_min(1e-6)[..., None]
    origin = c2w[:, None, :3, 3].expand_as(points).contiguous()
    return inside & (_see(worlds, origin, direction)[0] > z * 0.998 - 1e-3)


def _starts(worlds: Worlds, draws: Tensor, lens: Tensor, settings: PathSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The best of STARTS views in each world: (n, 3) places, (n, 3, 3) rotations, (n,) metres to what they look at."""
    n, device = len(worlds), draws.device
    every = torch.arange(n, device=device)[:, None]
    spot = worlds.places[every, (draws[..., 0] * worlds.places.shape[1]).long()]
    position = spot[..., :3] + spot[..., 3:] * (2 * draws[..., 1:4] - 1)
    position[..., 2] += ground_height(worlds.heights, position)  # 0 where there is no terrain

    # half of them look at some thing, half anywhere
    size = worlds.table[..., 12:15].amax(-1)
    things = ((size < 3.0) & (worlds.table[..., 2] > -100)).float()
    things = things + 1e-6
    order = torch.searchsorted(things.cumsum(1).contiguous(), (draws[..., 4] * things.sum(1)[:, None]).contiguous())
    thing = worlds.table[every, order.clamp(max=things.shape[1] - 1), :3]
    at = thing - position + 0.3 * (draws[..., 5:8] - 0.5)
    yaw = torch.where(draws[..., 8] < 0.65, torch.atan2(at[..., 1], at[..., 0]), draws[..., 9] * 2 * math.pi)
    pitch = torch.where(
        draws[..., 8] < 0.65, torch.atan2(at[..., 2], at[..., :2].norm(dim=-1)), (draws[..., 10] - 0.6) * 0.5
    ).clamp(-0.7, 0.4)
    roll = torch.where(draws[..., 11] < 0.12, (draws[..., 11] / 0.12 - 0.5) * 0.3, torch.zeros_like(yaw))
    rotation = _facing(yaw, pitch, roll)

    time, which = _glance(worlds, position, rotation, lens)
    near, middle = time.quantile(0.06, -1), time.median(-1).values
    sky = (time >= 99).float().mean(-1)
    spread = time.clamp(max=60).log().std(-1)
    kinds = which.sort(-1).values.diff(dim=-1).ne(0).float().sum(-1)
    free = clearance(worlds, position)
    score = (
        0.8 * spread.clamp(max=0.9) + 0.09 * kinds.clamp(max=14) - 0.5 * (middle / worlds.reach[:, None]).log().abs()
        - 2.5 * (near < 0.35) - 4 * (sky - 0.4).clamp_min(0) - 50 * (free < 1.6 * CLEARANCE)
    )  # fmt: skip
    best = score.argmax(1)
    every = every[:, 0]
    center = time.unflatten(-1, LOOK)[:, :, LOOK[0] // 3 : -(LOOK[0] // 3), LOOK[1] // 3 : -(LOOK[1] // 3)].flatten(2)
    focus = center.median(-1).values.clamp(0.4, 9.0)
    return position[every, best], rotation[every, best], focus[every, best]


def _draw_moves(hand: np.random.Generator, settings: PathSettings) -> tuple[np.ndarray, list[str]]:
    """(MOVES, 14) numbers of moves: 8 amounts in `MOVE_NAMES`' order, look-at, hand, back, ease in, ease out, delay."""
    numbers = np.zeros((MOVES, 14))
    names = []
    weights = np.array([0.24, 0.2, 0.1, 0.19, 0.15, 0.05, 0.03, 0.04])
    for row in numbers:
        count = hand.choice([1, 2, 3], p=[0.4, 0.42, 0.18])
        kinds = np.sort(hand.choice(8, size=count, replace=False, p=weights))
        amount = math.exp(hand.uniform(math.log(settings.amount[0]), math.log(settings.amount[1])))
        for kind in kinds:
            least, most = ((0.2, 0.75), (0.2, 0.9), (0.1, 0.5), (0.2, 1.3), (0.25, 1.9), (0.1, 0.4), (0.1, 0.4),
                           (0.1, 0.5))[kind]  # fmt: skip
            sign = 1 if hand.random() < (0.7 if kind == 0 else 0.5) else -1
            row[kind] = sign * hand.uniform(least, most) * amount / count**0.5
        row[8] = float(hand.random() < 0.4)
        row[9] = hand.uniform(0.3, 1.0) if hand.random() < settings.handheld else 0.0
        row[10] = float(hand.random() < settings.out_and_back)
        row[11:13] = hand.choice([0.0, 0.0, 0.5, 1.0], size=2)
        row[13] = hand.uniform(0, 0.15) if hand.random() < 0.2 else 0.0
        extra = ["handheld"] * bool(row[9]) + ["back"] * bool(row[10])
        names.append("+".join([MOVE_NAMES[k] for k in kinds] + extra))
    return numbers, names


def _animate(
    position: Tensor, rotation: Tensor, focus: Tensor, numbers: Tensor, waves: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """Poses (n, C, T, 4, 4) and zooms (n, C, T) of all candidates: the moves at the first of `AMOUNTS`, then the next.

    The last candidate is the first move's rotations alone, which are free wherever the start is.
    """
    n, device = len(position), position.device
    scaled = [torch.cat([numbers[..., :8] * amount, numbers[..., 8:]], -1) for amount in AMOUNTS]
    still = torch.zeros_like(numbers[:, :1])
    still[..., 4] = 0.6 * numbers[:, :1, 4].sign() + 0.6 * (numbers[:, :1, 4] == 0)
    still[..., 5] = numbers[:, :1, 5]
    m = torch.cat([*scaled, still], 1)[:, :, None]  # (n, C, 1, 14)
    t = torch.linspace(0, 1, frames, device=device) if frames > 1 else torch.zeros(1, device=device)
    t = ((t - m[..., 13]) / (1 - m[..., 13])).clamp(0, 1)
    t = torch.where(m[..., 10] > 0.5, 1 - (2 * t - 1).abs(), t)
    s = _ease(t, m[..., 11], m[..., 12])

    # an unsteady hand: a few slow waves for each of five freedoms, zero at the start
    clock = torch.linspace(0, 1, frames, device=device) * frames / 49.0
    rate = torch.tensor([1.3, 2.1, 3.4, 5.5, 8.0], device=device)
    phase = rate[:, None] * 6.2832 * clock
    swing = waves[..., :1] * phase.sin() + waves[..., 1:] * (phase.cos() - 1)
    shake = (swing / rate[:, None]).sum(2)  # (n, 6, T)
    shake = shake[:, None] * m[:, :, :, 9][..., None].squeeze(2)[:, :, None]  # (n, C, 6, T)

    right = rotation[:, :, 0].clone()
    right[:, 2] = 0
    right = right / right.norm(dim=-1, keepdim=True)
    ahead = rotation[:, :, 2]
    up = torch.tensor([0.0, 0.0, 1.0], device=device).expand(n, 3)
    f = focus[:, None, None]
    offset = (
        (s * m[..., 0] * f + 0.012 * f * shake[:, :, 0])[..., None] * ahead[:, None, None]
        + (s * m[..., 1] * f + 0.02 * f * shake[:, :, 1])[..., None] * right[:, None, None]
        + (s * m[..., 2] * f + 0.02 * f * shake[:, :, 2])[..., None] * up[:, None, None]
    )
    target = position + focus[:, None] * ahead
    angle = s * m[..., 3]
    turned = _about_z(angle)  # (n, C, T, 3, 3)
    arm = (position - target)[:, None, None] + offset
    place = target[:, None, None] + rotate(turned, arm)

    # the look-at keeps the focus where it was; turning by the difference keeps a framing that was off-centre
    yaw0 = torch.atan2(ahead[:, 1], ahead[:, 0])[:, None, None]
    pitch0 = torch.asin(ahead[:, 2].clamp(-1, 1))[:, None, None]
    roll0 = torch.asin((-rotation[:, 2, 0] / pitch0[:, 0, 0].cos().clamp_min(1e-3)).clamp(-1, 1))[:, None, None]
    view = target[:, None, None] - place
    look = (m[..., 8] > 0.5) & ((view * ahead[:, None, None]).sum(-1) > 0.25 * f)
    followed = torch.atan2(view[..., 1], view[..., 0])
    yaw = torch.where(look, followed, yaw0 + angle)
    pitch = torch.where(look, torch.atan2(view[..., 2], view[..., :2].norm(dim=-1)), pitch0.expand_as(yaw))
    # where the follow stops (too near), it must not jump: whole paths follow or none do
    steady = look.all(-1, keepdim=True)
    yaw = torch.where(steady, yaw, yaw0 + angle)
    pitch = torch.where(steady, pitch, pitch0.expand_as(yaw))
    yaw = yaw + s * m[..., 4] + 0.02 * shake[:, :, 3]
    pitch = (pitch + s * m[..., 5] + 0.02 * shake[:, :, 4]).clamp(-1.4, 1.4)
    roll = roll0 + s * m[..., 6] + 0.008 * shake[:, :, 5]
    c2w = torch.zeros(*yaw.shape, 4, 4, device=device)
    c2w[..., :3, :3] = _facing(yaw, pitch, roll)
    c2w[..., :3, 3] = place
    c2w[..., 3, 3] = 1.0
    return c2w, (s * m[..., 7]).exp()


def _first_free(
    worlds: Worlds, c2w: Tensor, lens: Tensor, zoom: Tensor, settings: PathSettings
) -> tuple[Tensor, Tensor]:
    """Each world's first candidate that stays free and ends with something in view, and its clearance: (n,) each."""
    n, candidates = c2w.shape[:2]
    along = c2w[..., :3, 3]
    # between frames too: a wall may be thinner than a step
    between = (along[:, :, 1:] + along[:, :, :-1]) / 2
    points = torch.cat([along, between], 2)
    free = clearance(worlds, points.flatten(1, 2)).unflatten(1, (candidates, -1)).amin(-1)
    ends = c2w[:, :, -1]
    time, _ = _glance(worlds, ends[..., :3, 3], ends[..., :3, :3], lens)
    middle = time.median(-1).values
    fine = (free > CLEARANCE) & (middle > 0.2 * worlds.reach[:, None]) & ((time < 99).float().mean(-1) > 0.2)
    rank = torch.arange(candidates, device=c2w.device).expand(n, -1)
    last = candidates - 1
    picked = torch.where(fine, rank, last).amin(1)
    return picked, free.gather(1, picked[:, None])[:, 0]


def _glance(worlds: Worlds, position: Tensor, rotation: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
    """What (n, C) views see along a few rays: planar z (n, C, rays) up to 100 m, and which primitives."""
    count = position.shape[1]
    rows, cols = LOOK
    v, u = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    x = ((u.flatten() - cols / 2) / (cols / 2)).to(position.device) * lens[:, None]
    y = ((v.flatten() - rows / 2) / (cols / 2)).to(position.device) * lens[:, None]
    local = torch.stack([x, y, torch.ones_like(x)], -1)
    direction = rotate(rotation[:, :, None], local[:, None]).flatten(1, 2)
    origin = position[:, :, None].expand(-1, -1, rows * cols, -1).flatten(1, 2)
    time, which = _see(worlds, origin, direction)
    return time.clamp(max=100.0).unflatten(1, (count, -1)), which.unflatten(1, (count, -1))


def _see(worlds: Worlds, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """`first_hit` with the terrain, for (n, R, 3) rays of every world; terrain counts as one primitive more."""
    time, which = first_hit(origin, direction, worlds.table)
    ground = ground_time(worlds, torch.arange(len(worlds), device=origin.device), origin, direction)
    return torch.minimum(time, ground), torch.where(ground < time, sum(CAPACITY.values()), which)


def _ease(t: Tensor, ease_in: Tensor, ease_out: Tensor) -> Tensor:
    """Time in [0, 1] to progress in [0, 1], slow at the ends by as much as asked."""
    slow_in = torch.lerp(t, t * t * (1.5 - 0.5 * t), ease_in)
    u = 1 - t
    slow_out = 1 - u * u * (1.5 - 0.5 * u)
    smooth = t * t * (3 - 2 * t)
    both = torch.minimum(ease_in, ease_out)
    one = torch.where(ease_in > ease_out, slow_in, torch.lerp(t, slow_out, ease_out))
    return torch.lerp(one, smooth, both)


def _facing(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """(..., 3, 3) rotations, columns right, down, forward, of cameras that look along yaw and pitch (z up)."""
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    zero = torch.zeros_like(yaw)
    ahead = torch.stack([cy * cp, sy * cp, sp], -1)
    right = torch.stack([sy, -cy, zero], -1)
    down = torch.linalg.cross(ahead, right)
    c, s = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([c * right + s * down, c * down - s * right, ahead], -1)


def _about_z(angle: Tensor) -> Tensor:
    c, s, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    one = torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
