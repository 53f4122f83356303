"""Endless procedural worlds, rendered: exact colour and depth from any camera.

A world is a function of its seed and of a texture bank. Worlds have z up and metres; cameras are OpenCV (x right,
y down, z forward), `c2w` camera-to-world, `K` in pixels with pixel centres at +0.5. Surfaces are matt, so that a place
has one colour from everywhere (but for haze). Splits: seeds of `SEED_RANGES`, which never overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import CAPACITY, Layout, lay_out
from .rigid import rotate
from .textures import Split, TextureBank
from .trace import MATERIAL, ROW, distance, first_hit, surface

SEED_RANGES: dict[str, tuple[int, int]] = {
    "train": (0, 1 << 40),
    "val": (1 << 40, (1 << 40) + (1 << 32)),
    "test": (1 << 41, (1 << 41) + (1 << 32)),
}
"""World seeds of each split, from the first to before the second."""

EXTENT = 32.0
"""Half the side of the mapped terrain, metres; beyond, its edge goes on."""
HEIGHT_CELLS = 256
OPEN_RADII = (0.1, 0.45)
"""How far around a point things darken it, metres: creases and corners."""
MARCH_STEPS = 80
HALVINGS = 12
NEAREST, FARTHEST = 0.25, 150.0
"""The first step of a ray over terrain, and how far it is followed, metres."""


@dataclass(frozen=True)
class Worlds:
    """n worlds on a device.

    Attributes:
        seeds: of each.
        kinds: families of each.
        table: (n, P, ROW) primitives.
        light: (n, 4); light_colour, sky_light, ground_light, zenith, horizon: (n, 3) linear.
        fog, cloud, cloud_amount, reach: (n,).
        hilly: which worlds have terrain; rolling: (n,) the same on the device.
        heights: (n, 1, HEIGHT_CELLS, HEIGHT_CELLS) metres of the terrain, row y, column x.
        ground: (n, 2, 12) materials of the terrain.
        places: (n, Q, 6) center and half of the boxes where cameras may start, repeated to fill.
    """

    seeds: tuple[int, ...]
    kinds: tuple[str, ...]
    table: Tensor
    light: Tensor
    light_colour: Tensor
    sky_light: Tensor
    ground_light: Tensor
    zenith: Tensor
    horizon: Tensor
    fog: Tensor
    cloud: Tensor
    cloud_amount: Tensor
    reach: Tensor
    hilly: tuple[bool, ...]
    rolling: Tensor
    heights: Tensor
    ground: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.seeds)


def world_seed(split: Split, index: int) -> int:
    """The seed of the index-th world of a split."""
    low, high = SEED_RANGES[split]
    assert 0 <= index < high - low, (split, index)
    return low + index


def build_worlds(
    seeds: Sequence[int],
    bank: TextureBank,
    device: torch.device | str = "cpu",
    kinds: Sequence[str | None] | None = None,
) -> Worlds:
    """The worlds of the seeds; `kinds` forces families."""
    chosen = kinds or [None] * len(seeds)
    layouts = [lay_out(seed, bank.groups, kind) for seed, kind in zip(seeds, chosen, strict=True)]
    count = sum(CAPACITY.values())
    table = np.zeros((len(seeds), count, ROW), np.float32)
    table[:, :, 2], table[:, :, 3], table[:, :, 7], table[:, :, 11] = -1e5, 1.0, 1.0, 1.0
    table[:, :, 12:15] = 1e-2
    places = np.zeros((len(seeds), 16, 6), np.float32)
    heights = np.zeros((len(seeds), 1, HEIGHT_CELLS, HEIGHT_CELLS), np.float32)
    ground = np.zeros((len(seeds), 2, 12), np.float32)
    for i, layout in enumerate(layouts):
        at = 0
        for name, capacity in CAPACITY.items():
            rows = layout.shapes[name]
            if rows:
                table[i, at : at + len(rows)] = rows
            at += capacity
        spots = [[*center, *half] for center, half in layout.places]
        places[i] = [spots[k % len(spots)] for k in range(16)]
        if layout.waves:
            heights[i, 0] = _heights(layout)
            assert layout.ground is not None
            ground[i] = [made.row() for made in layout.ground]

    def put(values: Sequence[object]) -> Tensor:
        return torch.tensor(np.array(values, np.float32), device=device)

    return Worlds(
        seeds=tuple(seeds),
        kinds=tuple(layout.kind for layout in layouts),
        table=torch.from_numpy(table).to(device),
        light=put([w.light for w in layouts]),
        light_colour=put([w.light_colour for w in layouts]),
        sky_light=put([w.sky_light for w in layouts]),
        ground_light=put([w.ground_light for w in layouts]),
        zenith=put([w.zenith for w in layouts]),
        horizon=put([w.horizon for w in layouts]),
        fog=put([w.fog for w in layouts]),
        cloud=torch.tensor([w.cloud for w in layouts], device=device),
        cloud_amount=put([w.cloud_amount for w in layouts]),
        reach=put([w.reach for w in layouts]),
        hilly=tuple(bool(w.waves) for w in layouts),
        rolling=torch.tensor([bool(w.waves) for w in layouts], device=device),
        heights=torch.from_numpy(heights).to(device),
        ground=torch.from_numpy(ground).to(device),
        places=torch.from_numpy(places).to(device),
    )


def _heights(layout: Layout) -> np.ndarray:
    """(cells, cells) heights; each wave is two products of a function of x and one of y."""
    kx, ky, phase, size = np.array(layout.waves, np.float64).T
    at = (np.arange(HEIGHT_CELLS) + 0.5) / HEIGHT_CELLS * 2 * EXTENT - EXTENT
    along, across = at[:, None] * kx + phase, at[:, None] * ky
    return ((size * np.cos(across)) @ np.sin(along).T + (size * np.sin(across)) @ np.cos(along).T).astype(np.float32)


@dataclass(frozen=True)
class RenderSettings:
    """How to render.

    Attributes:
        supersample: samples along each side of a pixel.
        group: frames traced at once.
    """

    supersample: int = 2
    group: int = 16

    def __post_init__(self) -> None:
        assert 1 <= self.supersample <= 8, self.supersample
        assert self.group >= 1, self.group


@torch.no_grad()
def render(
    worlds: Worlds,
    bank: TextureBank,
    which: Tensor,  # (F,) int64, the world of each frame
    K: Tensor,  # (F, 3, 3) pixels
    c2w: Tensor,  # (F, 4, 4)
    size: tuple[int, int],  # (height, width)
    settings: RenderSettings = RenderSettings(),
) -> tuple[Tensor, Tensor]:
    """(F, 3, H, W) float16 sRGB in [0, 1] and (F, H, W) float32 planar z of pixel centres, inf for the sky."""
    colours, depths = [], []
    height, width = size
    fine = settings.supersample
    hilly = [worlds.hilly[world] for world in which.tolist()]
    for at in range(0, len(which), settings.group):
        part = slice(at, at + settings.group)
        w, pose, scaled = which[part], c2w[part], K[part].clone()
        depths.append(trace_depth(worlds, w, scaled, pose, size))
        scaled[:, :2] *= fine
        seen = _shade(worlds, bank, w, scaled, pose, (height * fine, width * fine), any(hilly[part]))
        seen = seen.unflatten(1, (height * fine, width * fine)).permute(0, 3, 1, 2)
        colours.append(F.avg_pool2d(seen, fine).half())
    return torch.cat(colours), torch.cat(depths)


@torch.no_grad()
def trace_depth(worlds: Worlds, which: Tensor, K: Tensor, c2w: Tensor, size: tuple[int, int]) -> Tensor:
    """(F, H, W) planar z at pixel centres, inf for the sky."""
    origin, direction = camera_rays(K, c2w, size)
    time = first_hit(origin, direction, worlds.table[which])[0]
    return torch.minimum(time, ground_time(worlds, which, origin, direction)).unflatten(1, size)


def clearance(worlds: Worlds, points: Tensor) -> Tensor:
    """(n, R) metres from (n, R, 3) points to the nearest thing in each world, negative inside one."""
    away = distance(points, worlds.table)
    if not any(worlds.hilly):
        return away
    # over a slope the nearest ground is nearer than what is straight below
    above = 0.75 * (points[..., 2] - ground_height(worlds.heights, points))
    return torch.where(worlds.rolling[:, None], torch.minimum(away, above), away)


def ground_height(heights: Tensor, points: Tensor) -> Tensor:
    """(G, R) terrain heights under (G, R, 2 or 3) points; heights (G, 1, N, N)."""
    where = points[:, :, None, :2] / EXTENT
    return F.grid_sample(heights, where, mode="bilinear", padding_mode="border", align_corners=False)[:, 0, :, 0]


def ground_time(worlds: Worlds, which: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """(G, R) times at which rays (G, R, 3) meet the terrain of their group's world, inf for none."""
    if not any(worlds.hilly):
        return torch.full(direction.shape[:2], torch.inf, device=direction.device)
    growth = (FARTHEST / NEAREST) ** (1 / (MARCH_STEPS - 1))
    if direction.is_cuda:
        from . import trace_triton

        return trace_triton.march(
            worlds.heights, which, worlds.rolling, origin, direction, EXTENT, NEAREST, growth, MARCH_STEPS, HALVINGS
        )
    time = torch.full(direction.shape[:2], torch.inf)
    for i, world in enumerate(which.tolist()):
        if worlds.hilly[world]:
            time[i] = march(worlds.heights[world], origin[i], direction[i])
    return time


def camera_rays(K: Tensor, c2w: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(F, H*W, 3) origins and directions with unit planar z, through the pixel centres."""
    height, width = size
    v, u = torch.meshgrid(
        torch.arange(height, device=K.device) + 0.5, torch.arange(width, device=K.device) + 0.5, indexing="ij"
    )
    x = (u.flatten() - K[:, 0, 2, None]) / K[:, 0, 0, None]
    y = (v.flatten() - K[:, 1, 2, None]) / K[:, 1, 1, None]
    local = torch.stack([x, y, torch.ones_like(x)], -1)
    direction = rotate(c2w[:, None, :3, :3], local)
    return c2w[:, None, :3, 3].expand_as(direction).contiguous(), direction


def march(heights: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """(R,) times at which rays (R, 3) meet the terrain (1, N, N), inf for none: steps that grow, then bisection."""
    length = direction.norm(dim=-1)
    low = torch.zeros_like(length)
    high = torch.full_like(length, torch.inf)
    found = torch.zeros_like(length, dtype=torch.bool)
    previous = torch.zeros_like(length)
    field = heights[None]
    growth = (FARTHEST / NEAREST) ** (1 / (MARCH_STEPS - 1))
    for k in range(MARCH_STEPS):
        now = NEAREST * growth**k / length
        point = origin + now[:, None] * direction
        under = (point[:, 2] < ground_height(field, point[None])[0]) & ~found
        low, high = torch.where(under, previous, low), torch.where(under, now, high)
        found |= under
        previous = now
    high = torch.where(found, high, previous)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        point = origin + middle[:, None] * direction
        under = point[:, 2] < ground_height(field, point[None])[0]
        low, high = torch.where(under, low, middle), torch.where(under, middle, high)
    return torch.where(found, high, torch.inf)


def _shade(
    worlds: Worlds, bank: TextureBank, which: Tensor, K: Tensor, c2w: Tensor, size: tuple[int, int], hilly: bool
) -> Tensor:
    """(F, H*W, 3) sRGB in [0, 1]; `hilly` when any of the frames' worlds has terrain."""
    origin, direction = camera_rays(K, c2w, size)
    table = worlds.table[which]
    reach = 1.0 / K[:, 0, 0, None]
    time, index = first_hit(origin, direction, table)
    point, normal, uv, span, made = _meet_surface(origin, direction, time, index, table)
    if hilly:
        over = ground_time(worlds, which, origin, direction)
        nearer = (over < time)[..., None]
        there = origin + over.nan_to_num(posinf=1.0)[..., None] * direction
        time = torch.minimum(over, time)
        point = torch.where(nearer, there, point)
        normal = torch.where(nearer, _terrain_normal(worlds.heights[which], there), normal)
        uv, span = torch.where(nearer, there[..., :2], uv), torch.where(nearer, 1.0, span)
        made = torch.where(nearer, worlds.ground[which, :1], made)
    normal, far, footprint = _face(direction, time, normal, reach)
    albedo = _albedo(bank, made, uv, span, footprint)
    if hilly:
        steep, share = _steep(worlds, bank, which, point, normal, footprint)
        albedo = torch.where(nearer, torch.lerp(albedo, steep, share), albedo)

    light = worlds.light[which][:, None]
    above, towards, range_ = _aim(point, normal, far, light)
    blocked = first_hit(above, towards, table)[0]
    if hilly:
        blocked = torch.minimum(blocked, ground_time(worlds, which, above + 0.05 * normal, towards))
    near, wide = (distance(above + normal * radius, table) / radius for radius in OPEN_RADII)
    sun, up, down, zenith, horizon, fog, cloud, cover = (
        values[which][:, None]
        for values in (
            worlds.light_colour, worlds.sky_light, worlds.ground_light, worlds.zenith, worlds.horizon, worlds.fog,
            worlds.cloud, worlds.cloud_amount,
        )
    )  # fmt: skip
    sky = _sky(bank, direction, reach, light, sun, zenith, horizon, cloud, cover)
    return _develop(
        albedo, normal, towards, range_, blocked, near, wide, time, far, light, sky, sun, up, down, horizon, fog
    )  # fmt: skip


def _meet_surface(
    origin: Tensor, direction: Tensor, time: Tensor, index: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Points, normals, places on the surface, metres a turn there, and materials, of what rays hit (F, R)."""
    groups = torch.arange(len(table), device=table.device)[:, None]
    row = table[groups, index]
    point = origin + torch.where(time.isfinite(), time, 1.0)[..., None] * direction
    normal, uv, span = surface(point, row, index)
    return point, normal, uv, span, row[..., MATERIAL]


def _face(direction: Tensor, time: Tensor, normal: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normals towards the camera, metres to the point, and metres of the surface that a sample covers."""
    length = direction.norm(dim=-1)
    far = torch.where(time.isfinite(), time, 1.0) * length
    facing = -(normal * direction).sum(-1) / length
    normal = torch.where((facing < 0)[..., None], -normal, normal)
    # between the short and the long side of the footprint: the samples of a pixel take care of the rest
    return normal, far, far * reach / facing.abs().clamp_min(0.04) ** 0.7


def _aim(point: Tensor, normal: Tensor, far: Tensor, light: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points off the surface, unit directions to the light, metres to it."""
    above = point + normal * (2e-3 + 1e-3 * far[..., None])
    towards = light[..., :3] - light[..., 3:] * above
    range_ = towards.norm(dim=-1)
    return above, towards / range_[..., None], range_


def _develop(
    albedo: Tensor, normal: Tensor, towards: Tensor, range_: Tensor, blocked: Tensor, near: Tensor, wide: Tensor,
    time: Tensor, far: Tensor, light: Tensor, sky: Tensor, light_colour: Tensor, sky_light: Tensor,
    ground_light: Tensor, horizon: Tensor, fog: Tensor,
) -> Tensor:  # fmt: skip
    """(F, R, 3) sRGB from reflectance, light, shadow, openness, haze and sky."""
    lamp = light[..., 3] > 0.5
    lit = blocked > torch.where(lamp, range_ * 0.999, 1e9)
    strength = torch.where(lamp, 1.0 / range_.clamp_min(0.4) ** 2, 1.0)
    direct = (normal * towards).sum(-1).clamp_min(0) * lit * strength
    open_ = 0.3 + 0.35 * near.clamp(0, 1) + 0.35 * wide.clamp(0, 1)
    ambient = torch.lerp(ground_light, sky_light, 0.5 + 0.5 * normal[..., 2:]) * open_[..., None]
    seen = albedo * (ambient + direct[..., None] * light_colour)
    seen = torch.lerp(horizon.expand_as(seen), seen, (-fog * far).exp()[..., None])
    seen = torch.where(time.isfinite()[..., None], seen, sky)
    return (1 - (-1.6 * seen).exp()).clamp(1e-5, 1) ** (1 / 2.2)


def _albedo(bank: TextureBank, made: Tensor, uv: Tensor, span: Tensor, footprint: Tensor) -> Tensor:
    """(..., 3) linear reflectance of (..., 12) materials at (..., 2) places, seen with (...) metres a sample."""
    repeats, stretched = made[..., 1], made[..., 10] > 0.5
    turns = torch.where(stretched[..., None], uv, uv * repeats[..., None] + made[..., 2:4])
    metres = torch.where(stretched, span.amin(-1), 1.0 / repeats)
    level = (footprint * bank.size / metres).clamp_min(1e-6).log2()
    base = bank.sample(made[..., 0].long(), turns, level)
    coarse = made[..., 8]
    stain_level = (footprint * bank.size * coarse).clamp_min(1e-6).log2()
    stain = bank.sample(made[..., 7].long(), uv * coarse[..., None], stain_level)
    shade = 1 + made[..., 9:10] * 1.3 * (stain.mean(-1, keepdim=True) - 0.5)
    return base.clamp_min(1e-4) ** 2.2 * made[..., 4:7] * shade


def _steep(
    worlds: Worlds, bank: TextureBank, which: Tensor, point: Tensor, up: Tensor, footprint: Tensor
) -> tuple[Tensor, Tensor]:
    """The terrain's second reflectance (F, R, 3), and how much of it shows (F, R, 1): on slopes and in patches."""
    made = worlds.ground[which, 1:].expand(-1, point.shape[1], -1)
    where = point[..., :2]
    steep = _albedo(bank, made, where, torch.ones_like(where), footprint)
    level = (footprint * bank.size * 0.02).clamp_min(1e-6).log2()
    patch = bank.sample(made[..., 7].long(), where * 0.02, level)
    return steep, torch.sigmoid(14 * (0.86 - up[..., 2:]) + 6 * (patch.mean(-1, keepdim=True) - 0.5))


def _terrain_normal(heights: Tensor, point: Tensor) -> Tensor:
    """(F, R, 3) upward unit normals of (F, 1, N, N) terrain by central differences over one cell."""
    cell = 2 * EXTENT / HEIGHT_CELLS
    near = [
        ground_height(heights, point[..., :2] + torch.tensor(step, device=point.device))
        for step in ((cell, 0.0), (-cell, 0.0), (0.0, cell), (0.0, -cell))
    ]
    slope = torch.stack([near[1] - near[0], near[3] - near[2], torch.full_like(near[0], 2 * cell)], -1)
    return F.normalize(slope, dim=-1)


def _sky(
    bank: TextureBank, direction: Tensor, reach: Tensor, light: Tensor, light_colour: Tensor, zenith: Tensor,
    horizon: Tensor, cloud: Tensor, cloud_amount: Tensor,
) -> Tensor:  # fmt: skip
    """(F, R, 3) linear: a gradient, a glow around the sun, clouds on a plane high above."""
    view = direction / direction.norm(dim=-1, keepdim=True)
    up = view[..., 2]
    height = 1 - (-3.2 * up.clamp_min(0)).exp()
    seen = torch.lerp(horizon.expand_as(view), zenith.expand_as(view), height[..., None])
    seen = seen * (1 - 0.55 * (-up).clamp(0, 1))[..., None]
    sun = (view * light[..., :3]).sum(-1).clamp_min(0) * (light[..., 3] < 0.5) * (up > -0.05)
    seen = seen + (0.5 * sun**48 + 0.15 * sun**6)[..., None] * light_colour
    tilt = up.clamp_min(0) + 0.08
    where = view[..., :2] / tilt[..., None] * 0.11
    level = (reach / tilt**1.5 * 0.11 * bank.size).clamp_min(1e-6).log2()
    cover = bank.sample(cloud.expand_as(up), where, level)[..., :1]
    amount = (cloud_amount * (up * 8).clamp(0, 1))[..., None]
    return torch.lerp(seen, (0.85 * horizon + 0.25).expand_as(seen), cover * amount)
