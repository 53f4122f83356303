"""What stands where in a world: from a seed to primitives, materials, light and places for a camera, in plain numbers.

World axes: z up, metres. A primitive has a centre, three axes (rows of `axes`, world vectors), half sizes along them,
and a material. A pierced box has one hole through its local y: |x| < radius, between `bottom` and `top` along z,
with a half disc of `radius` on top where `arched`. Everything drawn comes from one `random.Random(seed)`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Triple = tuple[float, float, float]

CAPACITY: dict[str, int] = {"box": 112, "pierced": 16, "cylinder": 28, "ellipsoid": 28}
"""How many primitives of a shape a world may have, in the order of the tables; what is drawn beyond is left out."""


@dataclass(frozen=True)
class Material:
    """What a surface looks like.

    Attributes:
        picture: in the texture bank.
        repeats: textures a metre; with `stretched`, over a whole face instead.
        offset: (u, v) in turns.
        tint: linear factor.
        detail, detail_repeats, detail_strength: a second, coarser picture that varies the brightness.
        stretched: the picture is laid once over each face.
        glow: light that it gives off, linear.
    """

    picture: int
    repeats: float
    offset: tuple[float, float]
    tint: Triple
    detail: int
    detail_repeats: float
    detail_strength: float
    stretched: bool = False
    glow: float = 0.0

    def row(self) -> list[float]:
        return [
            self.picture, self.repeats, *self.offset, *self.tint, self.detail, self.detail_repeats,
            self.detail_strength, float(self.stretched), self.glow,
        ]  # fmt: skip


@dataclass
class Layout:
    """One world in numbers; rows are center 3, axes 9, half 3, hole 4 (radius, bottom, top, arched), material 12.

    Attributes:
        kind: its family.
        shapes: rows of each shape.
        light: (x, y, z, w) a lamp's place (w 1) or the direction to the sun (w 0).
        light_colour, sky_light, ground_light: linear.
        zenith, horizon: sky, linear.
        fog: 1 / metres.
        cloud, cloud_amount: a picture of the bank laid over the sky.
        places: (center, half) boxes where a camera may start.
        reach: metres that a camera likes to see ahead.
        waves: the terrain as a sum of waves, (kx, ky, phase, amplitude) each; empty where the ground is flat.
        ground: the terrain's two materials.
    """

    kind: str
    shapes: dict[str, list[list[float]]] = field(default_factory=lambda: {name: [] for name in CAPACITY})
    light: tuple[float, float, float, float] = (0.3, 0.2, 0.9, 0.0)
    light_colour: Triple = (2.0, 2.0, 2.0)
    sky_light: Triple = (0.5, 0.5, 0.5)
    ground_light: Triple = (0.3, 0.3, 0.3)
    zenith: Triple = (0.1, 0.25, 0.6)
    horizon: Triple = (0.6, 0.7, 0.8)
    fog: float = 0.0
    cloud: int = 0
    cloud_amount: float = 0.0
    places: list[tuple[Triple, Triple]] = field(default_factory=list)
    reach: float = 3.0
    waves: list[tuple[float, float, float, float]] = field(default_factory=list)
    ground: tuple[Material, Material] | None = None


def lay_out(seed: int, groups: dict[str, list[int]], kind: str | None = None) -> Layout:
    """The world of a seed, dressed from a texture bank's `groups`; `kind` forces its family (one of `KINDS`)."""
    rng = random.Random(seed)
    drawn = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    hand = Builder(rng, groups, kind or drawn)
    KINDS[kind or drawn][0](hand)
    return hand.layout


class Builder:
    """Adds primitives to a layout, with the draws that they need."""

    def __init__(self, rng: random.Random, groups: dict[str, list[int]], kind: str) -> None:
        self.rng = rng
        self.groups = groups
        self.layout = Layout(kind)

    # draws

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def picture(self, *names: str) -> int:
        """A picture of one of the groups that the bank has; takes two draws whatever it has."""
        group, which = self.rng.random(), self.rng.random()
        there = [name for name in names if self.groups.get(name)] or ["plaster"]
        pool = self.groups[there[int(group * len(there))]]
        return pool[int(which * len(pool))]

    def material(
        self, *names: str, repeats: tuple[float, float] = (0.4, 1.2), tint: float = 0.25, stretched: bool = False
    ) -> Material:
        """A picture of one of the groups, tinted, with stains."""
        light = self.between(1 - tint, 1.0)
        colour = tuple(light * self.between(1 - 0.5 * tint, 1.0) for _ in range(3))
        return Material(
            picture=self.picture(*names),
            repeats=1.0 if stretched else math.exp(self.between(math.log(repeats[0]), math.log(repeats[1]))),
            offset=(0.0, 0.0) if stretched else (self.rng.random(), self.rng.random()),
            tint=(colour[0], colour[1], colour[2]),
            detail=self.picture("plaster", "rock", "clouds"),
            detail_repeats=self.between(0.06, 0.3),
            detail_strength=0.0 if stretched else self.between(0.0, 0.5),
            stretched=stretched,
        )

    def thing(self) -> Material:
        """What a small object may be made of."""
        return self.material(
            "fabric",
            "metal",
            "marble",
            "plaster",
            "plank",
            "tile",
            "tex",
            "tex",
            "photo",
            "blotches",
            "books",
            repeats=(0.8, 5.0),
            tint=0.5,
        )

    def wall_material(self) -> Material:
        return self.material(
            "plaster",
            "plaster",
            "brick",
            "concrete",
            "plank",
            "tile",
            "fabric",
            "tex",
            "tex",
            "tex",
            "marble",
            repeats=(0.3, 1.0),
        )

    def floor_material(self) -> Material:
        return self.material(
            "plank", "plank", "tile", "pavers", "concrete", "fabric", "marble", "tex", "tex", repeats=(0.3, 1.0)
        )

    # primitives

    def add(
        self,
        shape: str,
        center: Sequence[float],
        half: Sequence[float],
        material: Material,
        *,
        yaw: float = 0.0,
        tilt: float = 0.0,
        hole: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    ) -> None:
        rows = self.layout.shapes[shape]
        if len(rows) >= CAPACITY[shape]:
            return
        c, s, ct, st = math.cos(yaw), math.sin(yaw), math.cos(tilt), math.sin(tilt)
        # turned about its own x by `tilt`, then about the vertical by `yaw`
        axes = [c, s, 0.0, -s * ct, c * ct, st, s * st, -c * st, ct]
        rows.append([*center, *axes, *half, *hole, *material.row()])

    def box(self, center: Sequence[float], half: Sequence[float], material: Material, yaw: float = 0.0) -> None:
        self.add("box", center, half, material, yaw=yaw)

    def span(self, low: Sequence[float], high: Sequence[float], material: Material) -> None:
        """A box from corner to corner."""
        self.box(
            [(a + b) / 2 for a, b in zip(low, high, strict=True)],
            [(b - a) / 2 for a, b in zip(low, high, strict=True)],
            material,
        )

    def post(self, x: float, y: float, z: float, radius: float, height: float, material: Material) -> None:
        """An upright cylinder standing at (x, y, z)."""
        self.add("cylinder", (x, y, z + height / 2), (radius, radius, height / 2), material)

    def ball(self, x: float, y: float, z: float, half: Sequence[float], material: Material) -> None:
        self.add("ellipsoid", (x, y, z), half, material, yaw=self.between(0, math.pi))

    def ground_at(self, x: float, y: float) -> float:
        """Height of the terrain."""
        return sum(size * math.sin(kx * x + ky * y + phase) for kx, ky, phase, size in self.layout.waves)

    def place(self, center: Triple, half: Triple) -> None:
        self.layout.places.append((center, half))

    # compound things

    def wall(
        self, a: tuple[float, float], b: tuple[float, float], z: float, height: float, material: Material,
        opening: str = "", thickness: float = 0.12,
    ) -> None:  # fmt: skip
        """A wall from a to b, with a `door`, `window`, `arch` or nothing in it."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        length, yaw = math.hypot(dx, dy), math.atan2(dy, dx)
        center = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, z + height / 2)
        half = (length / 2, thickness / 2, height / 2)
        if not opening:
            self.box(center, half, material, yaw=yaw)
            return
        radius = min(self.between(0.4, 1.1), 0.42 * length)
        if opening == "window":
            bottom, top, arched = -half[2] + height * 0.3, half[2] - height * self.between(0.12, 0.3), 0.0
        elif opening == "door":
            bottom, top, arched = -half[2] - 1.0, -half[2] + min(self.between(2.0, 2.4), 0.85 * height), 0.0
        else:
            radius = min(radius * 1.3, 0.4 * length, 0.45 * height)
            bottom, top, arched = -half[2] - 1.0, half[2] - radius - 0.08 * height, 1.0
        self.add("pierced", center, half, material, yaw=yaw, hole=(radius, bottom, top, arched))
        if opening != "arch" and self.chance(0.7):
            self._frame(center, yaw, radius, bottom, top, -half[2], thickness)

    def _frame(
        self, center: Triple, yaw: float, radius: float, bottom: float, top: float, floor: float, thickness: float
    ) -> None:
        trim = self.material("plank", "plaster", "metal", repeats=(0.5, 2.0))
        low = max(bottom, floor)
        c, s = math.cos(yaw), math.sin(yaw)
        for side in (-1, 1):
            off = side * (radius + 0.04)
            self.box(
                (center[0] + c * off, center[1] + s * off, center[2] + (low + top) / 2),
                (0.045, thickness / 2 + 0.03, (top - low) / 2 + 0.04),
                trim,
                yaw=yaw,
            )
        self.box(
            (center[0], center[1], center[2] + top + 0.03), (radius + 0.085, thickness / 2 + 0.03, 0.045), trim, yaw=yaw
        )
        if bottom > floor:
            self.box(
                (center[0], center[1], center[2] + bottom - 0.02),
                (radius + 0.12, thickness / 2 + 0.06, 0.03),
                trim,
                yaw=yaw,
            )
            if self.chance(0.6):
                self.box(
                    (center[0], center[1], center[2] + (bottom + top) / 2),
                    (0.02, 0.02, (top - bottom) / 2),
                    trim,
                    yaw=yaw,
                )

    def table(self, x: float, y: float, z: float, yaw: float, size: Triple | None = None) -> float:
        """A table or desk; returns the height of its top."""
        wood = self.material("plank", "plank", "marble", "tex", "metal", repeats=(0.5, 1.5))
        w, d, h = size or (self.between(0.35, 0.9), self.between(0.3, 0.5), self.between(0.45, 0.8))
        self.box((x, y, z + h - 0.025), (w, d, 0.025), wood, yaw)
        c, s = math.cos(yaw), math.sin(yaw)
        style = self.rng.random()
        if style < 0.7:
            for i in (-1, 1):
                for j in (-1, 1):
                    u, v = i * (w - 0.06), j * (d - 0.06)
                    self.box(
                        (x + c * u - s * v, y + s * u + c * v, z + (h - 0.05) / 2),
                        (0.03, 0.03, (h - 0.05) / 2),
                        wood,
                        yaw,
                    )
        else:
            self.post(x, y, z, 0.07, h - 0.05, wood)
            self.box((x, y, z + 0.02), (0.6 * w, 0.6 * d, 0.02), wood, yaw)
        return z + h

    def object_on(self, x: float, y: float, z: float, size: float) -> None:
        """Some object of about `size` metres standing on z."""
        kind, made = self.rng.random(), self.thing()
        yaw = self.between(0, 2 * math.pi)
        if kind < 0.28:
            half = [size * self.between(0.15, 0.55) for _ in range(3)]
            self.box((x, y, z + half[2]), half, made, yaw)
        elif kind < 0.4:  # a stack
            base = z
            for _ in range(self.rng.randint(2, 5)):
                half = [size * self.between(0.3, 0.5), size * self.between(0.2, 0.35), size * self.between(0.03, 0.1)]
                self.box((x, y, base + half[2]), half, self.thing(), yaw + self.between(-0.3, 0.3))
                base += 2 * half[2]
        elif kind < 0.62:
            radius, height = size * self.between(0.1, 0.4), size * self.between(0.2, 1.2)
            self.post(x, y, z, radius, height, made)
            if self.chance(0.4):
                self.post(
                    x, y, z + height, radius * self.between(0.3, 0.8), height * self.between(0.1, 0.4), self.thing()
                )
        elif kind < 0.82:
            radius = size * self.between(0.2, 0.5)
            flat = self.between(0.6, 1.3)
            self.ball(x, y, z + radius * flat, (radius, radius * self.between(0.7, 1), radius * flat), made)
        elif kind < 0.92:  # a thing leaning or lying
            half = [size * self.between(0.2, 0.6), size * self.between(0.05, 0.2), size * self.between(0.2, 0.5)]
            tilt = self.between(-0.5, 0.5)
            self.add(
                "box",
                (x, y, z + half[2] * math.cos(tilt) + half[1] * abs(math.sin(tilt))),
                half,
                made,
                yaw=yaw,
                tilt=tilt,
            )
        else:  # a pot with a plant
            radius = size * self.between(0.15, 0.3)
            self.post(x, y, z, radius, 1.3 * radius, made)
            leaf = self.material("leaves", "grass", repeats=(1.5, 4.0))
            for _ in range(self.rng.randint(1, 3)):
                r = radius * self.between(0.7, 1.4)
                self.ball(
                    x + self.between(-1, 1) * radius,
                    y + self.between(-1, 1) * radius,
                    z + 1.3 * radius + r * self.between(0.5, 1.6),
                    (r, r, r * self.between(0.7, 1.5)),
                    leaf,
                )

    def chair(self, x: float, y: float, z: float, yaw: float) -> None:
        cloth = self.material("fabric", "plank", "tex", "blotches", repeats=(0.8, 2.5))
        seat, half = self.between(0.4, 0.48), self.between(0.2, 0.26)
        self.box((x, y, z + seat), (half, half, 0.04), cloth, yaw)
        c, s = math.cos(yaw), math.sin(yaw)
        self.box((x - s * half, y + c * half, z + seat + 0.28), (half, 0.03, 0.28), cloth, yaw)
        if self.chance(0.5):
            for i in (-1, 1):
                for j in (-1, 1):
                    u, v = i * (half - 0.03), j * (half - 0.03)
                    self.box((x + c * u - s * v, y + s * u + c * v, z + seat / 2), (0.02, 0.02, seat / 2), cloth, yaw)
        else:
            self.post(x, y, z, 0.05, seat, cloth)

    def sofa(self, x: float, y: float, z: float, yaw: float) -> None:
        """Its back is towards +y of its own axes."""
        cloth = self.material("fabric", "blotches", "tex", repeats=(0.6, 2.0))
        w, d = self.between(0.7, 1.1), self.between(0.38, 0.48)
        c, s = math.cos(yaw), math.sin(yaw)

        def part(u: float, v: float, h: float, half: Triple, made: Material) -> None:
            self.box((x + c * u - s * v, y + s * u + c * v, z + h), half, made, yaw)

        part(0, 0, 0.2, (w, d, 0.2), cloth)
        part(0, d - 0.1, 0.6, (w, 0.1, 0.22), cloth)
        for side in (-1, 1):
            part(side * (w - 0.08), 0, 0.45, (0.08, d, 0.12), cloth)
        if self.chance(0.7):
            cushion = self.thing()
            part(self.between(-0.4, 0.4) * w, d - 0.28, 0.55, (0.2, 0.07, 0.17), cushion)

    def shelf(self, x: float, y: float, z: float, yaw: float) -> None:
        """A bookcase or cupboard; its back is towards +y of its own axes."""
        w, h, d = self.between(0.35, 0.8), self.between(0.7, 2.1), self.between(0.15, 0.25)
        c, s = math.cos(yaw), math.sin(yaw)
        if self.chance(0.45):
            front = (
                self.material("books", stretched=True) if self.chance(0.6) else self.material("plank", "tex", "metal")
            )
            self.box((x, y, z + h / 2), (w, d, h / 2), front, yaw)
            return
        wood = self.material("plank", "plaster", "metal", "tex", repeats=(0.5, 1.5))
        levels = self.rng.randint(2, 4)
        for side in (-1, 1):
            self.box((x + c * side * w, y + s * side * w, z + h / 2), (0.02, d, h / 2), wood, yaw)
        self.box((x - s * d, y + c * d, z + h / 2), (w, 0.01, h / 2), wood, yaw)
        for k in range(levels + 1):
            base = z + 0.05 + (h - 0.07) * k / levels
            self.box((x, y, base), (w, d, 0.015), wood, yaw)
            if k < levels and self.chance(0.75):
                tall = (h / levels) * self.between(0.4, 0.75)
                width = w * self.between(0.3, 0.9)
                u = (w - width) * self.between(-0.9, 0.9)
                self.box(
                    (x + c * u, y + s * u, base + 0.015 + tall / 2),
                    (width, d * 0.75, tall / 2),
                    self.material("books", "fabric", "tex", repeats=(0.8, 2.0)),
                    yaw,
                )

    def picture_on(self, x: float, y: float, z: float, yaw: float) -> None:
        """A framed picture whose wall is towards +y of its own axes."""
        w, h = self.between(0.2, 0.7), self.between(0.2, 0.5)
        self.box((x, y, z), (w + 0.04, 0.02, h + 0.04), self.material("plank", "metal", "plaster"), yaw)
        c, s = math.cos(yaw), math.sin(yaw)
        self.box(
            (x + s * 0.02, y - c * 0.02, z),
            (w, 0.012, h),
            self.material("photo", "blotches", "marble", stretched=True),
            yaw,
        )

    def tree(self, x: float, y: float, z: float) -> None:
        height = self.between(1.2, 4.5)
        trunk = self.material("bark", repeats=(0.5, 1.5))
        leaf = self.material("leaves", "leaves", "grass", repeats=(0.25, 0.8))
        self.post(x, y, z - 0.5, self.between(0.06, 0.2) * height / 2.5, height * 0.7 + 0.5, trunk)
        for _ in range(self.rng.randint(1, 3)):
            r = height * self.between(0.22, 0.42)
            self.ball(
                x + self.between(-0.3, 0.3) * r,
                y + self.between(-0.3, 0.3) * r,
                z + height * self.between(0.7, 1.1),
                (r, r * self.between(0.8, 1.1), r * self.between(0.6, 1.5)),
                leaf,
            )

    # light

    def daylight(self, fog: tuple[float, float] = (0.0, 0.02)) -> None:
        """A sun, a sky and what they throw into the shadows."""
        high = self.between(0.15, 1.3)
        round_ = self.between(0, 2 * math.pi)
        self.layout.light = (math.cos(round_) * math.cos(high), math.sin(round_) * math.cos(high), math.sin(high), 0.0)
        kind = self.rng.random()
        warm = max(0.0, 1 - high / 0.6)
        if kind < 0.6:  # clear
            power = self.between(1.4, 2.6)
            self.layout.zenith = (
                0.06 + 0.1 * self.rng.random(),
                0.2 + 0.12 * self.rng.random(),
                self.between(0.45, 0.8),
            )
            self.layout.horizon = (self.between(0.5, 0.8), self.between(0.6, 0.8), self.between(0.7, 0.95))
            sky = 0.5
        elif kind < 0.85:  # overcast
            power = self.between(0.2, 0.8)
            grey = self.between(0.4, 0.8)
            self.layout.zenith = (grey * 0.75, grey * 0.8, grey * 0.9)
            self.layout.horizon = (grey, grey, grey * 1.02)
            sky = 0.95
        else:  # dusk
            power, warm = self.between(0.7, 1.6), self.between(0.6, 1.0)
            self.layout.zenith = (self.between(0.05, 0.2), self.between(0.05, 0.15), self.between(0.2, 0.45))
            self.layout.horizon = (self.between(0.7, 1.0), self.between(0.35, 0.6), self.between(0.2, 0.5))
            sky = 0.45
        self.layout.light_colour = (power, power * (1 - 0.3 * warm), power * (1 - 0.6 * warm))
        zenith, horizon = self.layout.zenith, self.layout.horizon
        self.layout.sky_light = (
            sky * (0.5 * zenith[0] + 0.6 * horizon[0]),
            sky * (0.5 * zenith[1] + 0.6 * horizon[1]),
            sky * (0.5 * zenith[2] + 0.6 * horizon[2]),
        )
        floor = self.between(0.12, 0.3)
        self.layout.ground_light = (floor, floor * 0.95, floor * 0.85)
        self.layout.fog = fog[0] + (fog[1] - fog[0]) * self.rng.random() ** 2 if self.chance(0.5) else 0.0
        self.layout.cloud = self.picture("clouds")
        self.layout.cloud_amount = self.between(0.2, 0.95) if self.chance(0.7) else 0.0

    def indoor_light(self, lamp: Triple, size: float, sun: bool) -> None:
        """A lamp, or the sun through windows with light from the walls."""
        self.daylight()
        self.layout.fog = 0.0
        tone = self.between(-0.25, 0.25)
        if sun and self.chance(0.55):
            base = self.between(0.3, 0.55)
            power = self.between(2.0, 4.0)
            self.layout.light_colour = (power, power * 0.92, power * 0.8)
            x, y, z, w = self.layout.light
            self.layout.light = (x, y, max(z, 0.35), w)
        else:
            base = self.between(0.14, 0.4)
            power = self.between(0.45, 1.0) * max(size, 1.5) ** 2 * 0.55
            self.layout.light = (*lamp, 1.0)
            self.layout.light_colour = (power * (1 + tone), power, power * (1 - tone))
        up = self.between(0.8, 1.2)
        self.layout.sky_light = (base * up, base * up, base * up)
        self.layout.ground_light = (base * 0.9, base * 0.8, base * 0.7)


def rooms(b: Builder) -> None:
    """One to four furnished rooms in a row or a square, with doors between them and windows outside."""
    across, along = b.rng.choice([(1, 1), (1, 1), (2, 1), (3, 1), (2, 2)])
    height = b.between(2.4, 3.6)
    widths = [b.between(3.2, 6.5) for _ in range(across)]
    depths = [b.between(3.2, 6.5) for _ in range(along)]
    xs = [sum(widths[:i]) for i in range(across + 1)]
    ys = [sum(depths[:j]) for j in range(along + 1)]
    outside = b.wall_material()
    b.span((-40, -40, -1.2), (40, 40, -0.6), b.material("grass", "pavers", "concrete"))
    for i in range(across):
        for j in range(along):
            floor, ceiling = b.floor_material(), b.material("plaster", "plaster", "plank", "tex", repeats=(0.3, 0.8))
            b.span((xs[i], ys[j], -0.6), (xs[i + 1], ys[j + 1], 0.0), floor)
            b.span((xs[i] - 0.1, ys[j] - 0.1, height), (xs[i + 1] + 0.1, ys[j + 1] + 0.1, height + 0.3), ceiling)
            b.place(
                ((xs[i] + xs[i + 1]) / 2, (ys[j] + ys[j + 1]) / 2, b.between(1.0, 1.7)),
                (widths[i] / 2 - 0.3, depths[j] / 2 - 0.3, 0.5),
            )
    wall = b.wall_material()
    for i in range(across + 1):
        for j in range(along):
            outer = i in (0, across)
            made = outside if outer and b.chance(0.3) else b.wall_material() if b.chance(0.5) else wall
            opening = (b.rng.choice(["window", "window", ""])) if outer else b.rng.choice(["door", "arch", "door"])
            b.wall((xs[i], ys[j]), (xs[i], ys[j + 1]), 0.0, height, made, opening)
    for j in range(along + 1):
        for i in range(across):
            outer = j in (0, along)
            made = b.wall_material() if b.chance(0.5) else wall
            opening = (b.rng.choice(["window", "", ""])) if outer else b.rng.choice(["door", "arch", "door"])
            b.wall((xs[i], ys[j]), (xs[i + 1], ys[j]), 0.0, height, made, opening)
    for i in range(across):
        for j in range(along):
            furnish(b, xs[i], ys[j], xs[i + 1], ys[j + 1], height)
    i, j = b.rng.randrange(across), b.rng.randrange(along)
    lamp = (
        xs[i] + widths[i] * b.between(0.35, 0.65),
        ys[j] + depths[j] * b.between(0.35, 0.65),
        height * b.between(0.7, 0.92),
    )
    b.ball(lamp[0], lamp[1], height - 0.1, (0.15, 0.15, 0.08), b.material("plaster"))
    b.indoor_light(lamp, 0.5 * (widths[i] + depths[j]), sun=True)
    b.layout.reach = 2.5


def furnish(b: Builder, x0: float, y0: float, x1: float, y1: float, height: float) -> None:
    """Furniture along the walls and in the middle of a room."""
    w, d = x1 - x0, y1 - y0
    if b.chance(0.5):  # a rug
        b.box(
            ((x0 + x1) / 2, (y0 + y1) / 2, 0.006),
            (w * b.between(0.15, 0.35), d * b.between(0.15, 0.35), 0.006),
            b.material("fabric", "photo", "blotches", "tex", stretched=True),
            b.between(-0.2, 0.2),
        )
    sides = [
        (x0 + w / 2, y1 - 0.06, 0.0, w), (x0 + w / 2, y0 + 0.06, math.pi, w),
        (x0 + 0.06, y0 + d / 2, math.pi / 2, d), (x1 - 0.06, y0 + d / 2, -math.pi / 2, d),
    ]  # fmt: skip
    for x, y, yaw, length in sides:
        c, s = math.cos(yaw), math.sin(yaw)
        for slot in (-0.28, 0.28):
            if not b.chance(0.6):
                continue
            u = slot * length + b.between(-0.05, 0.05) * length
            kind = b.rng.random()
            back = {True: 0.3, False: 0.55}[kind < 0.4]
            px, py = x + c * u + s * back, y + s * u - c * back
            if kind < 0.4:
                b.shelf(px, py, 0.0, yaw)
            elif kind < 0.6:
                b.sofa(px, py, 0.0, yaw)
            elif kind < 0.85:
                top = b.table(px, py, 0.0, yaw)
                for _ in range(b.rng.randint(0, 3)):
                    b.object_on(px + b.between(-0.3, 0.3), py + b.between(-0.2, 0.2), top, b.between(0.15, 0.4))
            else:
                b.object_on(px, py, 0.0, b.between(0.5, 1.1))
        if b.chance(0.6):
            u = b.between(-0.35, 0.35) * length
            b.picture_on(x + c * u + s * 0.03, y + s * u - c * 0.03, b.between(1.4, 1.9), yaw)
    if b.chance(0.75):
        x, y, yaw = x0 + w * b.between(0.35, 0.65), y0 + d * b.between(0.35, 0.65), b.between(0, math.pi)
        top = b.table(x, y, 0.0, yaw)
        for _ in range(b.rng.randint(1, 4)):
            b.object_on(x + b.between(-0.35, 0.35), y + b.between(-0.35, 0.35), top, b.between(0.15, 0.4))
        for _ in range(b.rng.randint(0, 3)):
            turn = b.between(0, 2 * math.pi)
            b.chair(
                x + 0.95 * math.cos(turn), y + 0.95 * math.sin(turn), 0.0, turn - math.pi / 2 + b.between(-0.4, 0.4)
            )


def table_top(b: Builder) -> None:
    """A table full of things, seen from near, in a plain or furnished room."""
    w, d, h = b.between(0.6, 1.2), b.between(0.5, 0.9), b.between(0.6, 0.85)
    size, height = b.between(4.0, 7.0), b.between(2.5, 3.4)
    r = size / 2
    b.span((-r, -r, -0.5), (r, r, 0.0), b.floor_material())
    b.span((-r, -r, height), (r, r, height + 0.3), b.material("plaster"))
    for a, e, opening in (
        ((-r, -r), (r, -r), "window"), ((r, -r), (r, r), ""), ((r, r), (-r, r), "window"), ((-r, r), (-r, -r), "door"),
    ):  # fmt: skip
        b.wall(a, e, 0.0, height, b.wall_material(), opening if b.chance(0.5) else "")
    b.table(0.0, 0.0, 0.0, b.between(-0.2, 0.2), (w, d, h))
    cols, rows = b.rng.randint(3, 6), b.rng.randint(2, 4)
    for i in range(cols):
        for j in range(rows):
            if b.chance(0.75):
                x = w * 1.8 * ((i + b.between(0.25, 0.75)) / cols - 0.5)
                y = d * 1.8 * ((j + b.between(0.25, 0.75)) / rows - 0.5)
                b.object_on(x, y, h, b.between(0.12, 0.45))
    for k in range(4):
        if b.chance(0.7):
            turn = k * math.pi / 2
            x, y = (r - 0.35) * math.cos(turn), (r - 0.35) * math.sin(turn)
            side = b.between(-0.25, 0.25) * size
            b.rng.choice([b.shelf, b.sofa, b.shelf])(
                x - side * math.sin(turn), y + side * math.cos(turn), 0.0, turn - math.pi / 2
            )
        if b.chance(0.6):
            turn = k * math.pi / 2
            side = b.between(-0.3, 0.3) * size
            x, y = (
                (r - 0.08) * math.cos(turn) - side * math.sin(turn),
                (r - 0.08) * math.sin(turn) + side * math.cos(turn),
            )
            b.picture_on(x, y, b.between(1.3, 1.9), turn - math.pi / 2)
    for _ in range(4):
        turn = b.between(0, 2 * math.pi)
        away = b.between(1.1, 1.6)
        b.place((away * math.cos(turn), away * math.sin(turn), h + b.between(0.2, 0.8)), (0.15, 0.15, 0.1))
    b.indoor_light((b.between(-1, 1), b.between(-1, 1), height * 0.9), size * 0.8, sun=True)
    b.layout.reach = 1.2


def street(b: Builder) -> None:
    """A street between facades, with pavements, lamps, cars of boxes and trees."""
    half, kerb, length = b.between(2.5, 5.0), b.between(1.2, 2.5), 60.0
    b.span((-half, -length, -0.5), (half, length, 0.0), b.material("concrete", "pavers", "tex", repeats=(0.12, 0.35)))
    if b.chance(0.6):
        line = b.material("plaster", tint=0.05)
        for k in range(6):
            b.span((-0.07, -14 + 5 * k, 0.0), (0.07, -12 + 5 * k, 0.004), line)
    pavement = b.material("pavers", "tile", "concrete", "brick", repeats=(0.25, 0.7))
    for side in (-1, 1):
        lo, hi = sorted((side * half, side * (half + kerb + 14)))
        b.span((lo, -length, -0.5), (hi, length, 0.14), pavement)
        y = b.between(-22, -16)
        while y < 22:
            width = b.between(3.5, 9.0)
            x = side * (half + kerb + b.between(0.0, 0.6) + 5)
            tall = b.between(3.0, 12.0)
            _house(b, x, y + width / 2, side, width, tall)
            y += width + (b.between(1.0, 4.0) if b.chance(0.3) else 0.0)
        for _ in range(b.rng.randint(1, 4)):
            x, y = side * (half + 0.4), b.between(-14, 14)
            if b.chance(0.5):
                b.tree(side * (half + 0.7), y, 0.14)
            else:
                iron = b.material("metal", "plaster", tint=0.8)
                b.post(x, y, 0.0, 0.06, 3.6, iron)
                b.box((x - side * 0.4, y, 3.6), (0.5, 0.07, 0.06), iron)
        for _ in range(b.rng.randint(0, 2)):
            b.object_on(side * (half + kerb * 0.7), b.between(-10, 10), 0.14, b.between(0.5, 1.0))
    for _ in range(b.rng.randint(0, 3)):
        side = b.rng.choice((-1, 1))
        _car(b, side * (half - 1.1), b.between(-13, 13))
    b.place((0.0, 0.0, b.between(1.2, 2.6)), (half - 0.6, 11.0, 0.6))
    b.place((half + 0.5 * kerb, 0.0, b.between(1.4, 1.9)), (0.3 * kerb, 10.0, 0.3))
    if b.chance(0.3):
        b.place((0.0, 0.0, b.between(3.5, 7.0)), (half - 0.5, 10.0, 0.8))
    b.daylight((0.0, 0.03))
    b.layout.reach = 6.0


def _house(b: Builder, x: float, y: float, side: int, width: float, tall: float) -> None:
    """A box with a facade; the street is towards -side of x."""
    skin = b.rng.random()
    if skin < 0.5:
        made = b.material("facade", repeats=(0.12, 0.25))
    else:
        made = b.material("brick", "plaster", "concrete", "tex", "plank", repeats=(0.2, 0.6))
    b.box((x, y, tall / 2), (5.0, width / 2, tall / 2), made)
    front = x - side * 5.0
    trim = b.material("plaster", "concrete", "plank")
    if b.chance(0.6):
        b.box((x - side * 0.1, y, tall + 0.1), (5.2, width / 2 + 0.1, 0.14), trim)
    if skin >= 0.5:  # windows and a door as things of their own
        glass = b.material("photo", "marble", "clouds", stretched=True, tint=0.7)
        floors, bays = max(1, min(3, int(tall / 2.8))), max(1, min(3, int(width / 2.2)))
        for k in range(floors):
            for m in range(bays):
                wy = y + width * ((m + 0.5) / bays - 0.5)
                wz = 1.6 + 2.7 * k
                b.box((front, wy, wz), (0.03, 0.5, 0.65), glass)
                b.box((front - side * 0.06, wy, wz - 0.7), (0.12, 0.6, 0.05), trim)
    b.box(
        (front, y + b.between(-0.3, 0.3) * width, 1.15),
        (0.06, 0.5, 1.05),
        b.material("plank", "metal", "tex", stretched=True, tint=0.6),
    )
    if b.chance(0.35):
        b.box(
            (front - side * 0.5, y, 2.7), (0.6, width * 0.35, 0.05), b.material("fabric", "metal", repeats=(0.3, 1.0))
        )
    if b.chance(0.3):
        z = b.between(3.2, 4.2)
        b.box((front - side * 0.4, y, z), (0.45, width * 0.25, 0.06), trim)
        b.box((front - side * 0.82, y, z + 0.4), (0.03, width * 0.25, 0.4), b.material("metal", "plank"))


def _car(b: Builder, x: float, y: float) -> None:
    paint = b.material("plaster", "metal", "blotches", tint=0.8, repeats=(0.1, 0.4))
    dark = b.material("rock", tint=0.9)
    b.box((x, y, 0.55), (0.85, 2.0, 0.3), paint)
    b.box((x, y - 0.1, 1.05), (0.72, 1.1, 0.24), dark)
    b.box((x, y - 0.1, 1.3), (0.74, 1.05, 0.03), paint)
    for i in (-1, 1):
        for j in (-1, 1):
            b.box((x + i * 0.75, y + j * 1.25, 0.28), (0.1, 0.28, 0.28), dark)


def colonnade(b: Builder) -> None:
    """Rows of columns, with arches or lintels on them, open or roofed."""
    rows, count = b.rng.choice([2, 2, 3]), b.rng.randint(4, 7)
    gap, aisle = b.between(2.0, 3.6), b.between(2.6, 5.0)
    height, radius = b.between(2.6, 5.5), b.between(0.14, 0.4)
    stone = b.material("marble", "concrete", "plaster", "tex", "rock", "brick", repeats=(0.3, 0.9))
    other = b.material("brick", "plaster", "concrete", "tex", "tile", repeats=(0.3, 0.9))
    b.span((-60, -60, -0.5), (60, 60, 0.0), b.material("tile", "pavers", "marble", "grass", "tex", repeats=(0.2, 0.6)))
    arched = b.chance(0.55)
    square = b.chance(0.3)
    long = gap * (count - 1)
    for i in range(rows):
        x = (i - (rows - 1) / 2) * aisle
        for j in range(count):
            y = j * gap - long / 2
            if square:
                b.box((x, y, height / 2), (radius, radius, height / 2), stone)
            else:
                b.post(x, y, 0.0, radius, height, stone)
            b.box((x, y, 0.1), (radius * 1.35, radius * 1.35, 0.1), stone)
            b.box((x, y, height - 0.08), (radius * 1.3, radius * 1.3, 0.08), stone)
        top = b.between(0.5, 1.2)
        if arched and i < 3:
            for j in range(count - 1):
                y = (j + 0.5) * gap - long / 2
                r = gap / 2 - radius * 0.6
                tall = r + top
                b.add(
                    "pierced",
                    (x, y, height + tall / 2),
                    (gap / 2, radius * 0.9, tall / 2),
                    other,
                    yaw=math.pi / 2,
                    hole=(r, -tall / 2 - 1.0, -tall / 2 + 0.02, 1.0),
                )
        else:
            b.span((x - radius, -long / 2 - radius, height), (x + radius, long / 2 + radius, height + top * 0.6), other)
    roof = height + (gap / 2 + 1.0 if arched else 0.6)
    wide = aisle * (rows - 1) / 2
    if b.chance(0.45):
        b.span(
            (-wide - radius, -long / 2 - 1, roof),
            (wide + radius, long / 2 + 1, roof + 0.3),
            b.material("plank", "plaster", "tile", "concrete"),
        )
    if b.chance(0.6):  # a wall behind
        side = b.rng.choice((-1, 1))
        x = side * (wide + b.between(1.5, 4.0))
        b.span((x - 0.2, -long, 0.0), (x + 0.2, long, height * b.between(0.8, 1.6)), b.wall_material())
        for _ in range(b.rng.randint(0, 4)):
            b.picture_on(x - side * 0.24, b.between(-0.5, 0.5) * long, b.between(1.3, 2.2), -side * math.pi / 2)
    for _ in range(b.rng.randint(3, 9)):
        x, y = b.between(-1.4, 1.4) * (wide + 1), b.between(-0.6, 0.6) * long
        if b.chance(0.3):
            b.tree(b.rng.choice((-1, 1)) * (wide + b.between(3, 9)), y * 1.4, 0.0)
        else:
            b.object_on(x, y, 0.0, b.between(0.4, 1.4))
    for i in range(rows - 1):
        b.place(
            ((i - (rows - 1) / 2 + 0.5) * aisle, 0.0, b.between(1.0, 2.0)), (aisle / 2 - radius - 0.3, long / 2, 0.5)
        )
    b.place((wide + b.between(1.2, 3.0), 0.0, b.between(1.2, 2.4)), (0.8, long / 2, 0.5))
    b.daylight((0.0, 0.02))
    b.layout.reach = 4.0


def terrain(b: Builder) -> None:
    """Hills with trees, rocks and huts."""
    amplitude, falloff = b.between(0.4, 2.2), b.between(1.0, 1.5)
    for k in range(28):
        length, turn = 28.0 * 0.86**k, b.between(0, 2 * math.pi)
        size = amplitude * (length / 28.0) ** falloff * b.between(0.3, 1.0)
        turns = 2 * math.pi / length
        b.layout.waves.append((turns * math.cos(turn), turns * math.sin(turn), b.between(0, 6.3), size))
    b.layout.ground = (
        b.material("grass", "grass", "tex", "rock", "leaves", repeats=(0.12, 0.4)),
        b.material("rock", "grass", "pavers", "photo", repeats=(0.08, 0.3)),
    )
    for _ in range(b.rng.randint(4, 12)):
        x, y = b.between(-16, 16), b.between(-16, 16)
        b.tree(x, y, b.ground_at(x, y))
    for _ in range(b.rng.randint(3, 8)):
        r = b.between(0.2, 1.4)
        x, y = b.between(-13, 13), b.between(-13, 13)
        b.ball(
            x,
            y,
            b.ground_at(x, y),
            (r, r * b.between(0.6, 1), r * b.between(0.5, 0.9)),
            b.material("rock", "concrete", "tex", repeats=(0.3, 0.9)),
        )
    for _ in range(b.rng.randint(0, 4)):
        x, y, yaw = b.between(-12, 12), b.between(-12, 12), b.between(0, math.pi)
        half = (b.between(1.0, 2.6), b.between(1.0, 2.2), b.between(1.2, 2.4))
        z = b.ground_at(x, y)
        b.box((x, y, z + 0.3), half, b.material("plank", "brick", "plaster", "facade", "tex", repeats=(0.25, 0.6)), yaw)
        b.box(
            (x, y, z + 0.3 + half[2]),
            (half[0] + 0.3, half[1] + 0.3, 0.1),
            b.material("plank", "tile", "metal", "bark"),
            yaw,
        )
    if b.chance(0.6):  # a fence
        x, y, yaw = b.between(-8, 8), b.between(-8, 8), b.between(0, math.pi)
        wood = b.material("bark", "plank", repeats=(0.5, 1.5))
        for k in range(8):
            px, py = x + 1.2 * k * math.cos(yaw), y + 1.2 * k * math.sin(yaw)
            b.box((px, py, b.ground_at(px, py) + 0.4), (0.06, 0.06, 0.6), wood, yaw)
            b.box((px, py, b.ground_at(px, py) + 0.8), (0.65, 0.03, 0.05), wood, yaw)
    b.place((0.0, 0.0, b.between(1.0, 3.0)), (8.0, 8.0, 0.6))
    b.daylight((0.0, 0.03))
    b.layout.reach = 5.0


def blocks(b: Builder) -> None:
    """Blocks, drums and balls of every size on a plane or floating: geometry for its own sake."""
    b.span(
        (-60, -60, -0.5),
        (60, 60, 0.0),
        b.material("tile", "pavers", "grass", "concrete", "photo", "tex", repeats=(0.1, 0.5)),
    )
    for _ in range(b.rng.randint(20, 45)):
        x, y = b.between(-9, 9), b.between(-9, 9)
        size = math.exp(b.between(math.log(0.3), math.log(2.5)))
        made = b.thing() if b.chance(0.5) else b.wall_material()
        lift = b.between(0, 3) if b.chance(0.25) else 0.0
        half = [size * b.between(0.2, 0.7) for _ in range(3)]
        kind = b.rng.random()
        if kind < 0.6:
            half[2] *= b.between(0.6, 2.5)
            tilt = b.between(-0.6, 0.6) if b.chance(0.2) else 0.0
            b.add("box", (x, y, half[2] + lift), half, made, yaw=b.between(0, math.pi), tilt=tilt)
        elif kind < 0.8:
            b.post(x, y, lift, half[0], half[2] * 3, made)
        else:
            b.ball(x, y, half[2] + lift, half, made)
    if b.chance(0.5):
        for k in range(b.rng.randint(1, 4)):
            turn = k * math.pi / 2
            b.wall(
                (11 * math.cos(turn), 11 * math.sin(turn)),
                (11 * math.cos(turn + 1.57), 11 * math.sin(turn + 1.57)),
                0.0,
                b.between(2.0, 6.0),
                b.wall_material(),
                b.rng.choice(["arch", "door", ""]),
                0.4,
            )
    b.place((0.0, 0.0, b.between(0.8, 3.5)), (8.0, 8.0, 0.7))
    b.daylight((0.0, 0.02))
    b.layout.reach = 4.0


def corridor(b: Builder) -> None:
    """A long passage of arches and doors with side niches: much is hidden and then uncovered."""
    half, height, step = b.between(1.0, 2.2), b.between(2.4, 4.0), b.between(2.6, 4.5)
    bays = b.rng.randint(3, 5)
    floor, ceiling = b.floor_material(), b.material("plaster", "plank", "brick", "tile")
    end = step * bays
    deep = b.between(1.5, 3.5)
    b.span((-half - deep - 1, -4, -0.5), (half + deep + 1, end + 4, 0.0), floor)
    b.span((-half - deep - 1, -4, height), (half + deep + 1, end + 4, height + 0.4), ceiling)
    for side in (-1, 1):
        made = b.wall_material()
        for k in range(bays):
            opening = b.rng.choice(["arch", "door", "", "window"])
            b.wall((side * half, k * step), (side * half, (k + 1) * step), 0.0, height, made, opening, 0.25)
            if opening:
                x = side * (half + deep * 0.5)
                if b.chance(0.7):
                    b.object_on(x, (k + 0.5) * step + b.between(-0.4, 0.4), 0.0, b.between(0.5, 1.2))
            elif b.chance(0.7):
                b.picture_on(side * (half - 0.16), (k + 0.5) * step, b.between(1.4, 1.8), -side * math.pi / 2)
        back = side * (half + deep)
        b.wall((back, -1.0), (back, end + 1.0), 0.0, height, b.wall_material())
        for k in range(bays):
            if b.chance(0.6):
                b.wall((side * half, k * step), (back, k * step), 0.0, height, b.wall_material())
            if b.chance(0.5):
                b.picture_on(
                    back - side * 0.1, (k + b.between(0.3, 0.7)) * step, b.between(1.3, 1.9), -side * math.pi / 2
                )
    for k in range(1, bays):
        if b.chance(0.35):
            b.wall(
                (-half, k * step),
                (half, k * step),
                0.0,
                height,
                b.wall_material(),
                b.rng.choice(["arch", "door"]),
                0.25,
            )
    b.wall((-half - deep, -2.0), (half + deep, -2.0), 0.0, height, b.wall_material(), b.rng.choice(["window", ""]))
    b.wall(
        (-half - deep, end + 1.5),
        (half + deep, end + 1.5),
        0.0,
        height,
        b.wall_material(),
        b.rng.choice(["window", "door", ""]),
    )
    for _ in range(b.rng.randint(2, 6)):
        side = b.rng.choice((-1, 1))
        b.object_on(side * (half - 0.35), b.between(0, end), 0.0, b.between(0.3, 0.7))
    for k in range(bays):
        b.place((0.0, (k + 0.5) * step, b.between(1.1, 1.7)), (half - 0.5, step * 0.4, 0.4))
    b.indoor_light((b.between(-0.3, 0.3) * half, b.between(0.3, 0.7) * end, height * 0.85), 5.0, sun=False)
    b.layout.reach = 3.5


KINDS: dict[str, tuple[Callable[[Builder], None], float]] = {
    "rooms": (rooms, 0.26),
    "table": (table_top, 0.12),
    "street": (street, 0.17),
    "colonnade": (colonnade, 0.12),
    "terrain": (terrain, 0.13),
    "blocks": (blocks, 0.08),
    "corridor": (corridor, 0.12),
}
"""Families of worlds and how often each is drawn."""
