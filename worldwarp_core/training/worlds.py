"""Endless procedural worlds, rendered: exact colour and depth from any camera.

A world is a function of its seed and of a texture bank. Worlds have z up and metres; cameras are OpenCV (x right,
y down, z forward), `c2w` camera-to-world, `K` in pixels with pixel centres at +0.5. Surfaces are matt, so that a place
has one colour from everywhere (but for haze). Splits: seeds of `SEED_RANGES`, which never overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as remember
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .textures import Split, TextureBank, sample_texels
from .worlds_layout import CAPACITY, Layout, lay_out
from .worlds_trace import MATERIAL, ROW, distance, first_hit, hit_time, surface

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
FARTHEST = 150.0
"""How far a ray is followed over terrain, metres."""


@dataclass(frozen=True)
class Worlds:
    """n worlds on a device.

    Attributes:
        seeds: of each.
        kinds: families of each.
        table: (n, P, ROW) primitives.
        light: (n, 4); light_colour, sky_light, ground_light, zenith, horizon: (n, 3) linear.
        fog, cloud, cloud_amount, reach: (n,).
        hilly: which worlds have terrain; heights: (n, 1, HEIGHT_CELLS, HEIGHT_CELLS) metres, row y, column x.
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
        compiled: make single kernels of the tracing by torch.compile (on CUDA; some seconds at the first call).
    """

    supersample: int = 2
    group: int = 16
    compiled: bool = False

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
    for at in range(0, len(which), settings.group):
        part = slice(at, at + settings.group)
        w, k, pose = _padded(which[part], K[part], c2w[part], settings.group if settings.compiled else 0)
        depth = trace_depth(worlds, w, k, pose, size, compiled=settings.compiled)
        scaled = k.clone()
        scaled[:, :2] *= fine
        seen = _shade(worlds, bank, w, scaled, pose, (height * fine, width * fine), settings.compiled)
        seen = seen.unflatten(1, (height * fine, width * fine)).permute(0, 3, 1, 2)
        real = len(which[part])
        colours.append(F.avg_pool2d(seen, fine)[:real].half())
        depths.append(depth[:real])
    return torch.cat(colours), torch.cat(depths)


@torch.no_grad()
def trace_depth(
    worlds: Worlds, which: Tensor, K: Tensor, c2w: Tensor, size: tuple[int, int], *, compiled: bool = False
) -> Tensor:
    """(F, H, W) planar z at pixel centres, inf for the sky."""
    origin, direction = camera_rays(K, c2w, size)
    time = _kernels(compiled).hit_time(origin, direction, worlds.table[which])
    for i, hill in _hills(worlds, which):
        time[i] = torch.minimum(time[i], march(worlds.heights[hill], origin[i], direction[i]))
    return time.unflatten(1, size)


def clearance(worlds: Worlds, points: Tensor) -> Tensor:
    """(n, R) metres from (n, R, 3) points to the nearest thing in each world, negative inside one."""
    away = distance(points, worlds.table)
    for i, hilly in enumerate(worlds.hilly):
        if hilly:
            # over a slope the nearest ground is nearer than what is straight below
            above = points[i, :, 2] - ground_height(worlds.heights[i : i + 1], points[i : i + 1])[0]
            away[i] = torch.minimum(away[i], 0.75 * above)
    return away


def ground_height(heights: Tensor, points: Tensor) -> Tensor:
    """(G, R) terrain heights under (G, R, 2 or 3) points; heights (G, 1, N, N)."""
    where = points[:, :, None, :2] / EXTENT
    return F.grid_sample(heights, where, mode="bilinear", padding_mode="border", align_corners=False)[:, 0, :, 0]


def camera_rays(K: Tensor, c2w: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(F, H*W, 3) origins and directions with unit planar z, through the pixel centres."""
    height, width = size
    v, u = torch.meshgrid(
        torch.arange(height, device=K.device) + 0.5, torch.arange(width, device=K.device) + 0.5, indexing="ij"
    )
    x = (u.flatten() - K[:, 0, 2, None]) / K[:, 0, 0, None]
    y = (v.flatten() - K[:, 1, 2, None]) / K[:, 1, 1, None]
    local = torch.stack([x, y, torch.ones_like(x)], -1)
    direction = local @ c2w[:, :3, :3].transpose(1, 2)
    return c2w[:, None, :3, 3].expand_as(direction).contiguous(), direction


def march(heights: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """(R,) times at which rays (R, 3) meet the terrain (1, N, N), inf for none: steps that grow, then bisection."""
    length = direction.norm(dim=-1)
    low = torch.zeros_like(length)
    high = torch.full_like(length, torch.inf)
    found = torch.zeros_like(length, dtype=torch.bool)
    previous = torch.zeros_like(length)
    field = heights[None]
    growth = (FARTHEST / 0.25) ** (1 / (MARCH_STEPS - 1))
    for k in range(MARCH_STEPS):
        now = 0.25 * growth**k / length
        point = origin + now[:, None] * direction
        under = (point[:, 2] < ground_height(field, point[None])[0]) & ~found
        low, high = torch.where(under, previous, low), torch.where(under, now, high)
        found |= under
        previous = now
    high = torch.where(found, high, previous)
    for _ in range(12):
        middle = (low + high) / 2
        point = origin + middle[:, None] * direction
        under = point[:, 2] < ground_height(field, point[None])[0]
        low, high = torch.where(under, low, middle), torch.where(under, middle, high)
    return torch.where(found, high, torch.inf)


def _shade(
    worlds: Worlds, bank: TextureBank, which: Tensor, K: Tensor, c2w: Tensor, size: tuple[int, int], compiled: bool
) -> Tensor:
    """(F, H*W, 3) sRGB in [0, 1]."""
    kernels = _kernels(compiled)
    origin, direction = camera_rays(K, c2w, size)
    table = worlds.table[which]
    reach = 1.0 / K[:, 0, 0, None]
    time, index = kernels.first_hit(origin, direction, table)
    point, normal, uv, span, made = kernels.meet_surface(origin, direction, time, index, table)
    hills = _hills(worlds, which)
    grounds = {}
    for i, hill in hills:
        over = march(worlds.heights[hill], origin[i], direction[i])
        nearer = (over < time[i])[:, None]
        there = origin[i] + over.nan_to_num(posinf=1.0)[:, None] * direction[i]
        time[i] = torch.minimum(over, time[i])
        point[i] = torch.where(nearer, there, point[i])
        normal[i] = torch.where(nearer, _terrain_normal(worlds.heights[hill], there), normal[i])
        uv[i], span[i] = torch.where(nearer, there[:, :2], uv[i]), torch.where(nearer, 1.0, span[i])
        made[i] = torch.where(nearer, worlds.ground[hill, 0], made[i])
        grounds[i] = nearer
    normal, far, footprint = kernels.face(direction, time, normal, reach)
    albedo = kernels.albedo(bank.texels, bank.offsets, bank.size, made, uv, span, footprint)
    for i, hill in hills:
        steep = _steep(worlds, bank, hill, point[i], normal[i], footprint[i])
        albedo[i] = torch.where(grounds[i], torch.lerp(albedo[i], steep[0], steep[1]), albedo[i])

    light = worlds.light[which][:, None]
    above, towards, range_ = kernels.aim(point, normal, far, light)
    blocked = kernels.hit_time(above, towards, table)
    for i, hill in hills:
        blocked[i] = torch.minimum(blocked[i], march(worlds.heights[hill], above[i] + 0.05 * normal[i], towards[i]))
    near, wide = (kernels.distance(above + normal * radius, table) / radius for radius in OPEN_RADII)
    sun, up, down, zenith, horizon, fog, cloud, cover = (
        values[which][:, None]
        for values in (
            worlds.light_colour, worlds.sky_light, worlds.ground_light, worlds.zenith, worlds.horizon, worlds.fog,
            worlds.cloud, worlds.cloud_amount,
        )
    )  # fmt: skip
    sky = kernels.sky(
        direction, reach, light, sun, zenith, horizon, cloud, cover, bank.texels, bank.offsets, bank.size
    )  # fmt: skip
    return kernels.develop(
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


def _albedo(
    texels: Tensor, offsets: Tensor, size: int, made: Tensor, uv: Tensor, span: Tensor, footprint: Tensor
) -> Tensor:
    """(..., 3) linear reflectance of (..., 12) materials at (..., 2) places, seen with (...) metres a sample."""
    repeats, stretched = made[..., 1], made[..., 10] > 0.5
    turns = torch.where(stretched[..., None], uv, uv * repeats[..., None] + made[..., 2:4])
    metres = torch.where(stretched, span.amin(-1), 1.0 / repeats)
    level = (footprint * size / metres).clamp_min(1e-6).log2()
    base = sample_texels(texels, offsets, size, made[..., 0].long(), turns, level)
    coarse = made[..., 8]
    stain_level = (footprint * size * coarse).clamp_min(1e-6).log2()
    stain = sample_texels(texels, offsets, size, made[..., 7].long(), uv * coarse[..., None], stain_level)
    shade = 1 + made[..., 9:10] * 1.3 * (stain.mean(-1, keepdim=True) - 0.5)
    return base.clamp_min(1e-4) ** 2.2 * made[..., 4:7] * shade


def _steep(
    worlds: Worlds, bank: TextureBank, world: int, point: Tensor, up: Tensor, footprint: Tensor
) -> tuple[Tensor, Tensor]:
    """The terrain's second reflectance (R, 3), and how much of it shows (R, 1): on slopes and in patches."""
    made = worlds.ground[world, 1].expand(len(point), -1)
    where = point[:, :2]
    steep = _albedo(bank.texels, bank.offsets, bank.size, made, where, torch.ones_like(where), footprint)
    level = (footprint * bank.size * 0.02).clamp_min(1e-6).log2()
    patch = bank.sample(made[:, 7].long(), where * 0.02, level)
    return steep, torch.sigmoid(14 * (0.86 - up[:, 2:]) + 6 * (patch.mean(-1, keepdim=True) - 0.5))


def _terrain_normal(heights: Tensor, point: Tensor) -> Tensor:
    """(R, 3) upward unit normals by central differences over one cell."""
    cell = 2 * EXTENT / HEIGHT_CELLS
    near = [
        ground_height(heights[None], (point + torch.tensor(step, device=point.device))[None])[0]
        for step in ((cell, 0.0, 0.0), (-cell, 0.0, 0.0), (0.0, cell, 0.0), (0.0, -cell, 0.0))
    ]
    slope = torch.stack([near[1] - near[0], near[3] - near[2], torch.full_like(near[0], 2 * cell)], -1)
    return F.normalize(slope, dim=-1)


def _sky(
    direction: Tensor, reach: Tensor, light: Tensor, light_colour: Tensor, zenith: Tensor, horizon: Tensor,
    cloud: Tensor, cloud_amount: Tensor, texels: Tensor, offsets: Tensor, size: int,
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
    level = (reach / tilt**1.5 * 0.11 * size).clamp_min(1e-6).log2()
    cover = sample_texels(texels, offsets, size, cloud.expand_as(up), where, level)[..., :1]
    amount = (cloud_amount * (up * 8).clamp(0, 1))[..., None]
    return torch.lerp(seen, (0.85 * horizon + 0.25).expand_as(seen), cover * amount)


def _hills(worlds: Worlds, which: Tensor) -> list[tuple[int, int]]:
    """(frame, world) of the frames whose world has terrain."""
    if not any(worlds.hilly):
        return []
    return [(i, world) for i, world in enumerate(which.tolist()) if worlds.hilly[world]]


def _padded(which: Tensor, K: Tensor, c2w: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Repeats the last frame so that compiled kernels always see one shape."""
    missing = group - len(which)
    if missing <= 0:
        return which, K, c2w
    return (
        torch.cat([which, which[-1:].expand(missing)]),
        torch.cat([K, K[-1:].expand(missing, -1, -1)]),
        torch.cat([c2w, c2w[-1:].expand(missing, -1, -1)]),
    )


class _Kernels(NamedTuple):
    """The parts of rendering that touch every sample, each a function of tensors alone."""

    first_hit: Callable[..., tuple[Tensor, Tensor]]
    hit_time: Callable[..., Tensor]
    distance: Callable[..., Tensor]
    meet_surface: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    face: Callable[..., tuple[Tensor, Tensor, Tensor]]
    albedo: Callable[..., Tensor]
    aim: Callable[..., tuple[Tensor, Tensor, Tensor]]
    sky: Callable[..., Tensor]
    develop: Callable[..., Tensor]


@remember
def _kernels(compiled: bool) -> _Kernels:
    """Each part as one kernel where `compiled`."""
    plain = _Kernels(first_hit, hit_time, distance, _meet_surface, _face, _albedo, _aim, _sky, _develop)
    if not compiled:
        return plain
    parts: list[Any] = [torch.compile(part) for part in plain]
    return _Kernels(*parts)
