"""Procedural surface patterns: tileable pictures of bricks, planks, tiles, grass and so on, made in batches.

Every function takes a CPU `torch.Generator` (so that any device gets the same pictures), how many, and the size, and
returns (n, 3, S, S) float32 sRGB in [0, 1] that repeats without a seam.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

TAU = 6.283185307179586


def make_patterns(name: str, count: int, size: int, generator: Generator, device: torch.device | str) -> Tensor:
    """`count` pictures of one of `PATTERNS`, (count, 3, size, size)."""
    return PATTERNS[name](count, size, generator, torch.device(device)).clamp(0, 1)


def plaster(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    grain = fractal(n, size, g, device, 8, 0.75)
    stain = fractal(n, size, g, device, 2, 0.5)
    return colour(n, g, device, 0.55, 0.95, 0.25) * (1 + 0.07 * grain + 0.08 * stain)


def concrete(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    grain = fractal(n, size, g, device, 4, 0.85)
    pits = (fractal(n, size, g, device, 32, 0.5) > 1.4).float()
    u, v = grid(size, device)
    slab = integers(n, g, device, 1, 4)
    joint = 1 - 0.45 * edge(u * slab, 0.012 * slab)
    joint = joint * (1 - 0.45 * edge(v * slab, 0.012 * slab))
    return colour(n, g, device, 0.3, 0.75, 0.1) * (1 + 0.12 * grain - 0.2 * pits) * joint


def brick(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    rows, cols = 2 * integers(n, g, device, 3, 9), integers(n, g, device, 2, 6)
    u, v = grid(size, device)
    row = (v * rows).floor()
    x = u * cols + 0.5 * (row % 2)
    joint = torch.maximum(edge(x, 0.035 * cols / 2), edge(v * rows, 0.035 * rows / 2))
    each = cell_noise(x.floor() % cols, row % rows, n, g, device)
    body = (
        colour(n, g, device, 0.25, 0.7, 0.6) * (1 + 0.35 * (each - 0.5)) * (1 + 0.16 * fractal(n, size, g, device, 16))
    )
    mortar = colour(n, g, device, 0.35, 0.8, 0.1) * (1 + 0.1 * fractal(n, size, g, device, 32))
    return torch.lerp(body, mortar.expand_as(body), joint)


def tile(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    count = 2 * integers(n, g, device, 1, 6)
    u, v = grid(size, device)
    x, y = u * count, v * count
    joint = torch.maximum(edge(x, 0.02 * count), edge(y, 0.02 * count))
    chequered = ((x.floor() + y.floor()) % 2) * (uniform(n, g, device) < 0.5)
    each = cell_noise(x.floor() % count, y.floor() % count, n, g, device)
    body = torch.lerp(colour(n, g, device, 0.3, 0.95, 0.4), colour(n, g, device, 0.1, 0.9, 0.5), chequered)
    body = body * (1 + 0.12 * (each - 0.5)) * (1 + 0.07 * fractal(n, size, g, device, 4))
    # a motif in the middle of some tiles
    radius = ((x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2).sqrt()
    motif = ((radius * 9 + 2 * each).sin() > 0.3).float() * (uniform(n, g, device) < 0.35)
    body = torch.lerp(body, colour(n, g, device, 0.2, 0.9, 0.6) * torch.ones_like(body), motif)
    return torch.lerp(body, colour(n, g, device, 0.15, 0.85, 0.1) * torch.ones_like(body), joint)


def plank(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    rows = 2 * integers(n, g, device, 2, 7)
    u, v = grid(size, device)
    row = (v * rows).floor()
    shift = cell_noise(row, 0 * row, n, g, device)
    x = u * 2 + shift * 2
    joint = torch.maximum(edge(v * rows, 0.012 * rows), edge(x, 0.012))
    each = cell_noise(x.floor() % 2, row, n, g, device)
    grain = stretched(n, size, g, device)
    wood = colour(n, g, device, 0.25, 0.75, 0.5, hue=(0.04, 0.12))
    return wood * (1 + 0.45 * (each - 0.5)) * (1 + 0.22 * grain) * (1 - 0.65 * joint)


def grass(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    mix = torch.sigmoid(1.6 * fractal(n, size, g, device, 16, 0.9))
    patch = torch.sigmoid(2 * fractal(n, size, g, device, 2, 0.6))
    dark = colour(n, g, device, 0.08, 0.3, 0.7, hue=(0.18, 0.36))
    light = colour(n, g, device, 0.35, 0.75, 0.6, hue=(0.13, 0.33))
    dry = colour(n, g, device, 0.4, 0.75, 0.45, hue=(0.08, 0.16))
    return torch.lerp(torch.lerp(dark, light, mix), dry * (0.6 + 0.6 * mix), 0.5 * patch)


def rock(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    ridge = 1 - fractal(n, size, g, device, 3, 0.7).abs()
    fine = fractal(n, size, g, device, 24, 0.8)
    base = torch.lerp(
        colour(n, g, device, 0.12, 0.4, 0.3), colour(n, g, device, 0.45, 0.8, 0.25), torch.sigmoid(3 * ridge)
    )
    return base * (1 + 0.2 * fine)


def marble(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    u, v = grid(size, device)
    bands = integers(n, g, device, 1, 5) * u + integers(n, g, device, 0, 4) * v
    vein = (TAU * bands + 2.5 * fractal(n, size, g, device, 2, 0.45)).sin().abs().clamp_min(1e-4) ** 0.35
    return torch.lerp(colour(n, g, device, 0.15, 0.6, 0.5), colour(n, g, device, 0.6, 0.98, 0.25), vein)


def fabric(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    u, v = grid(size, device)
    a, b = integers(n, g, device, 1, 9), integers(n, g, device, 1, 9)
    stripes = (TAU * a * u).sin() > uniform(n, g, device) * 1.6 - 0.8
    across = ((TAU * b * v).sin() > uniform(n, g, device) * 1.6 - 0.8) & (uniform(n, g, device) < 0.6)
    kinds = stripes.float() * (uniform(n, g, device) < 0.8)
    cloth = torch.lerp(colour(n, g, device, 0.1, 0.9, 0.8), colour(n, g, device, 0.1, 0.95, 0.8), kinds)
    cloth = torch.lerp(cloth, colour(n, g, device, 0.1, 0.95, 0.7), 0.6 * across.float())
    thread = 0.06 * ((TAU * 64 * u).sin() + (TAU * 64 * v).sin())
    return cloth * (1 + thread + 0.08 * fractal(n, size, g, device, 8))


def pavers(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    near, second, each = voronoi(n, size, g, device, (4, 11))
    gap = torch.sigmoid(((second - near) - 0.09) * 40)
    stone = (
        colour(n, g, device, 0.25, 0.75, 0.35) * (1 + 0.5 * (each - 0.5)) * (1 + 0.16 * fractal(n, size, g, device, 12))
    )
    return torch.lerp(colour(n, g, device, 0.1, 0.45, 0.3) * torch.ones_like(stone), stone, gap)


def leaves(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    near, second, each = voronoi(n, size, g, device, (12, 24))
    green = colour(n, g, device, 0.2, 0.65, 0.7, hue=(0.02, 0.4))
    shade = 0.35 + 0.8 * torch.sigmoid((second - near - 0.15) * 9)
    return green * (1 + 0.8 * (each - 0.5)) * shade * (1 + 0.25 * fractal(n, size, g, device, 4))


def bark(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    groove = stretched(n, size, g, device).transpose(-1, -2)
    return colour(n, g, device, 0.15, 0.5, 0.45, hue=(0.03, 0.12)) * (1 + 0.4 * groove)


def metal(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    u, _ = grid(size, device)
    ribs = (TAU * integers(n, g, device, 4, 17) * u).sin() * (uniform(n, g, device) < 0.5)
    rust = torch.sigmoid(4 * (fractal(n, size, g, device, 3, 0.7) - 0.9)) * (uniform(n, g, device) < 0.6)
    body = colour(n, g, device, 0.25, 0.85, 0.4) * (1 + 0.22 * ribs + 0.06 * stretched(n, size, g, device))
    return torch.lerp(body, colour(n, g, device, 0.2, 0.45, 0.7, hue=(0.03, 0.07)) * torch.ones_like(body), rust)


def facade(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    rows, cols = integers(n, g, device, 2, 5), integers(n, g, device, 2, 6)
    u, v = grid(size, device)
    x, y = u * cols, v * rows
    half_w, half_h = 0.2 + 0.18 * uniform(n, g, device), 0.22 + 0.16 * uniform(n, g, device)
    du, dv = (x % 1 - 0.5).abs(), (y % 1 - 0.5).abs()
    soft = 256 / size * 0.02
    inside = smooth(half_w - du, soft) * smooth(half_h - dv, soft)
    frame = smooth(half_w + 0.05 - du, soft) * smooth(half_h + 0.05 - dv, soft)
    bars = torch.maximum(smooth(0.02 - du, soft), smooth(0.02 - (dv - half_h * 0.3).abs(), soft))
    each = cell_noise(x.floor() % cols, y.floor() % rows, n, g, device)
    glass = colour(n, g, device, 0.05, 0.3, 0.4) * (0.5 + 1.8 * each * (0.6 + 0.8 * (y % 1)))
    wall = colour(n, g, device, 0.35, 0.9, 0.45) * (1 + 0.13 * fractal(n, size, g, device, 12))
    wall = wall * (1 - 0.35 * edge(y, 0.03))
    trim = colour(n, g, device, 0.2, 0.95, 0.3)
    wall = torch.lerp(wall, trim * torch.ones_like(wall), frame)
    return torch.lerp(wall, torch.lerp(glass, trim * torch.ones_like(glass), 0.8 * bars), inside)


def books(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    shelves = integers(n, g, device, 2, 5)
    u, v = grid(size, device)
    y = v * shelves
    across = u * 40 + 3 * cell_noise(y.floor() % shelves, 0 * y, n, g, device)
    # books of unequal width: neighbouring slots that draw the same merge
    slot = (across / 1.7 + 0.6 * (across * 1.1).sin()).floor()
    tall = 0.55 + 0.35 * cell_noise(slot % 29, y.floor() % shelves, n, g, device)
    hue = cell_noise((slot * 7) % 31, y.floor() % shelves, n, g, device)
    spine = hsv((hue * 0.5 + 0.9) % 1, 0.15 + 0.5 * ((hue * 57) % 1), 0.15 + 0.65 * ((hue * 91) % 1))
    up = 1 - y % 1
    book = (up < tall) & (up > 0.08)
    band = ((up - 0.7 * tall).abs() < 0.03).float()
    spine = spine * (1 - 0.25 * edge(across / 1.7, 0.12)) * (1 + 0.5 * band)
    wood = colour(n, g, device, 0.2, 0.6, 0.5, hue=(0.04, 0.11)) * (1 + 0.15 * stretched(n, size, g, device))
    back = wood * 0.35
    return torch.where(book, spine, torch.where(up <= 0.08, wood, back))


def blotches(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    field = fractal(n, size, g, device, 3, 0.55)
    steps = (field * integers(n, g, device, 1, 4)).round()
    hue = (uniform(n, g, device) + 0.06 * steps) % 1
    return hsv(hue, 0.1 + 0.5 * uniform(n, g, device), (0.55 + 0.12 * steps).clamp(0.1, 0.95)) * (
        1 + 0.08 * fractal(n, size, g, device, 24)
    )


def clouds(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    cover = uniform(n, g, device) * 1.6 - 0.8
    return torch.sigmoid(2.5 * (fractal(n, size, g, device, 2, 0.55) - cover)).expand(-1, 3, -1, -1)


PATTERNS: dict[str, Callable[[int, int, Generator, torch.device], Tensor]] = {
    made.__name__: made
    for made in (
        plaster, concrete, brick, tile, plank, grass, rock, marble, fabric, pavers, leaves, bark, metal, facade, books,
        blotches, clouds,
    )
}  # fmt: skip


def fractal(n: int, size: int, g: Generator, device: torch.device, base: int = 4, gain: float = 0.6) -> Tensor:
    """(n, 1, S, S) tileable noise of about zero mean and unit variance; `base` cells across, then finer by halves."""
    total = torch.zeros(n, 1, size, size, device=device)
    weight, cells = 1.0, base
    while cells <= size // 2:
        lattice = torch.randn(n, 1, cells, cells, generator=g).to(device)
        total += weight * wrap_resize(lattice, size)
        weight, cells = weight * gain, cells * 2
    return total / total.std((-1, -2), keepdim=True).clamp_min(1e-6)


def stretched(n: int, size: int, g: Generator, device: torch.device) -> Tensor:
    """(n, 1, S, S) tileable grain, long along u."""
    total = torch.zeros(n, 1, size, size, device=device)
    for along, across, weight in ((2, 16, 0.7), (4, 64, 0.7), (8, 128, 0.5)):
        lattice = torch.randn(n, 1, min(across, size), min(along, size), generator=g).to(device)
        total += weight * wrap_resize(lattice, size)
    return total


def wrap_resize(lattice: Tensor, size: int) -> Tensor:
    """(n, c, h, w) -> (n, c, size, size) bicubic, periodic."""
    pad = 2
    padded = F.pad(lattice, (pad, pad, pad, pad), mode="circular") if min(lattice.shape[-2:]) >= pad else lattice
    if padded is lattice:
        return F.interpolate(lattice, (size, size), mode="bilinear")
    h, w = lattice.shape[-2:]
    ys = (torch.arange(size, device=lattice.device) + 0.5) / size * h + pad
    xs = (torch.arange(size, device=lattice.device) + 0.5) / size * w + pad
    gy, gx = torch.meshgrid(ys / (h + 2 * pad) * 2 - 1, xs / (w + 2 * pad) * 2 - 1, indexing="ij")
    where = torch.stack([gx, gy], -1)[None].expand(lattice.shape[0], -1, -1, -1)
    return F.grid_sample(padded, where, mode="bicubic", align_corners=False)


def voronoi(
    n: int, size: int, g: Generator, device: torch.device, cells: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Distances in cells to the two nearest points of a jittered lattice, and a number per cell: (n, 1, S, S) each."""
    count = integers(n, g, device, *cells)
    u, v = grid(size, device)
    x, y = u * count, v * count
    most = cells[1]
    jitter = torch.rand(n, 3, most, most, generator=g).to(device)
    batch = torch.arange(n, device=device)[:, None, None, None]
    near = torch.full((n, 1, size, size), 9.0, device=device)
    second, each = near.clone(), torch.zeros_like(near)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            cx, cy = x.floor() + i, y.floor() + j
            col, row = (cx % count).long(), (cy % count).long()
            px = cx + 0.1 + 0.8 * jitter[batch, 0, row, col]
            py = cy + 0.1 + 0.8 * jitter[batch, 1, row, col]
            away = ((x - px) ** 2 + (y - py) ** 2).sqrt()
            closer = away < near
            second = torch.where(closer, near, torch.minimum(second, away))
            each = torch.where(closer, jitter[batch, 2, row, col], each)
            near = torch.where(closer, away, near)
    return near, second, each


def cell_noise(col: Tensor, row: Tensor, n: int, g: Generator, device: torch.device) -> Tensor:
    """A number in [0, 1] per cell of integer (col, row), of (n, 1, S, S)."""
    table = torch.rand(n, 64, 64, generator=g).to(device)
    batch = torch.arange(n, device=device)[:, None, None, None]
    return table[batch, row.long() % 64, col.long() % 64].expand(n, 1, *row.shape[-2:])


def grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """u and v in [0, 1) at the pixel centres, (1, 1, S, S)."""
    centres = (torch.arange(size, device=device) + 0.5) / size
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    return u[None, None], v[None, None]


def edge(x: Tensor, width: Tensor | float) -> Tensor:
    """1 within `width` of whole numbers, else 0, softly."""
    away = 0.5 - (x % 1 - 0.5).abs()
    return ((width - away) / (0.5 * torch.as_tensor(width)) + 0.5).clamp(0, 1)


def smooth(x: Tensor, width: float) -> Tensor:
    """0 below -width / 2, 1 above width / 2, a ramp between."""
    return (x / width + 0.5).clamp(0, 1)


def uniform(n: int, g: Generator, device: torch.device) -> Tensor:
    return torch.rand(n, 1, 1, 1, generator=g).to(device)


def integers(n: int, g: Generator, device: torch.device, low: int, high: int) -> Tensor:
    """(n, 1, 1, 1) float whole numbers in [low, high)."""
    return torch.randint(low, high, (n, 1, 1, 1), generator=g).to(device).float()


def colour(
    n: int,
    g: Generator,
    device: torch.device,
    dark: float,
    light: float,
    saturation: float,
    hue: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """(n, 3, 1, 1) random colours: value in [dark, light], saturation in [0, `saturation`], hue in turns."""
    h, s, v, warm = (torch.rand(n, 1, 1, 1, generator=g).to(device) for _ in range(4))
    anywhere = hue[0] + (hue[1] - hue[0]) * h
    if hue == (0.0, 1.0):  # most of what people build is earth, wood, sand
        anywhere = torch.where(warm < 0.6, 0.02 + 0.14 * h, anywhere)
    return hsv(anywhere, saturation * s * s, dark + (light - dark) * v)


def hsv(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """(n, 1, ...) hue in turns, saturation and value -> (n, 3, ...) RGB."""
    shift = torch.tensor([5.0, 3.0, 1.0], device=h.device).view(1, 3, 1, 1)
    k = (shift + 6 * h) % 6
    return v * (1 - s * torch.minimum(k, 4 - k).clamp(0, 1))
