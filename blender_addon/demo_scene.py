# SPDX-License-Identifier: GPL-3.0-or-later
"""A sunlit courtyard and a camera that drifts through it, made by script alone: the scene of `worldwarp demo`.

In: a scene to fill (or none), a size and a number of frames. Out: the animated camera.
Units are metres, z is up, the fountain stands at (0.5, 6.5). Every surface is purely diffuse, so that what one frame
shows holds for all of them, and every texture is procedural, so that the .blend needs no files beside it.

    python -m blender_addon.demo_scene --out courtyard.blend
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import bpy

# isort: split
# The bpy module brings these; there is no importing them before it.
import bmesh
from mathutils import Matrix, Vector, noise

Colour = tuple[float, float, float]
Point = tuple[float, float, float]
Outline = list[tuple[float, float]]

FPS = 24

# (share of the shot, x, y, z of the camera, x, y, z of what it looks at): a slow dolly along an arc, and a pan that
# leaves the stairs, finds the market stall and settles on the fountain.
FLIGHT: list[tuple[float, float, float, float, float, float, float]] = [
    (0.00, -2.60, -3.60, 1.75, -2.00, 8.00, 2.00),
    (0.25, -2.30, -3.00, 1.80, -0.55, 8.00, 1.95),
    (0.50, -1.70, -1.90, 1.90, 0.70, 8.20, 1.95),
    (0.75, -1.00, -0.50, 2.00, 1.35, 8.20, 1.95),
    (1.00, -0.60, 0.40, 2.05, 1.55, 8.40, 1.95),
]


def build_demo_scene(
    scene: bpy.types.Scene | None = None, width: int = 256, height: int = 144, frames: int = 93
) -> bpy.types.Object:
    """The animated camera of a courtyard built in `scene` (a new scene when None), ready to render.

    Args:
        scene: receives the objects, the world, the render settings and the frame range 1 to `frames` at 24 fps.
        width, height: of the render in pixels.
        frames: how many frames the flight takes.
    """
    scene = scene or bpy.data.scenes.new("Courtyard")
    collection = bpy.data.collections.new("Courtyard")
    scene.collection.children.link(collection)
    build = Builder(collection)
    build_ground(build)
    build_arcade(build)
    build_stair_wall(build)
    build_market_side(build)
    build_fountain(build)
    build_props(build)
    build_light(scene, build)
    camera = build_camera(scene, collection, frames)
    set_render(scene, width, height, frames)
    return camera


# --- The courtyard --------------------------------------------------------------------------------


def build_ground(b: Builder) -> None:
    paving = material(
        "Paving", "voronoi", [(0.30, 0.25, 0.20), (0.52, 0.45, 0.36), (0.66, 0.58, 0.46)], scale=1.3, joint=0.05
    )
    ring = material(
        "Ring paving",
        "brick",
        [(0.50, 0.30, 0.20), (0.60, 0.42, 0.30), (0.36, 0.30, 0.25)],
        scale=0.55,
        mapping="round",
    )
    b.box("Ground", (0, 8, -0.1), (36, 36, 0.2), paving)
    b.lathe("Ring", [(0, 0.03), (2.9, 0.03), (2.95, 0.0)], (0.5, 6.5, 0), ring, segments=48)


def build_arcade(b: Builder) -> None:
    """The north side: an arcade, a set-back upper storey with shuttered windows, and a bell tower."""
    ochre = material("Ochre plaster", "noise", [(0.60, 0.34, 0.13), (0.76, 0.49, 0.22), (0.84, 0.62, 0.34)], scale=0.9)
    inner = material("Arcade inside", "noise", [(0.42, 0.22, 0.14), (0.58, 0.34, 0.22)], scale=1.2)
    stone = material("Stone", "noise", [(0.55, 0.50, 0.42), (0.74, 0.69, 0.58)], scale=2.5)
    rose = material("Rose plaster", "noise", [(0.62, 0.30, 0.24), (0.78, 0.46, 0.36)], scale=0.8)
    roof = material("Roof tiles", "brick", [(0.56, 0.20, 0.10), (0.70, 0.32, 0.16), (0.34, 0.12, 0.07)], scale=1.4)
    shutter = material("Green shutters", "stripes", [(0.06, 0.22, 0.16), (0.14, 0.36, 0.27)], scale=4.0, axis="Y")
    tower = material("Tower brick", "brick", [(0.58, 0.36, 0.24), (0.68, 0.46, 0.32), (0.72, 0.64, 0.52)], scale=0.8)
    door = material("Oak door", "stripes", [(0.20, 0.09, 0.04), (0.33, 0.17, 0.08)], scale=3.0)
    dark = material("Dark room", "noise", [(0.03, 0.03, 0.04), (0.08, 0.07, 0.07)], scale=1.0)

    bays = [-5.6, -2.9, -0.2, 2.5]
    b.slab("Arcade", rectangle(-7.2, -0.4, 4.0, 4.3), [arch(x, -0.2, 1.9, 2.2) for x in bays], 0.5, (0, 12.0, 0), ochre)
    b.box("Arcade back", (-1.6, 14.6, 2.1), (11.2, 0.2, 4.2), inner)
    b.box("Arcade ceiling", (-1.6, 13.4, 4.2), (11.2, 2.6, 0.2), inner)
    b.box("Cornice", (-1.6, 11.95, 4.35), (11.5, 0.75, 0.25), stone)
    for x in [-6.95, *((l + r) / 2 for l, r in pairwise(bays)), 3.85]:
        b.column("Arcade column", (x, 11.75, 0), 2.1, 0.2, stone)
    b.slab("Arcade door", arch(-2.9, 0, 1.4, 1.7), [], 0.1, (0, 14.45, 0), door)
    b.box("Arcade bench", (0.1, 14.1, 0.3), (2.0, 0.5, 0.6), stone)

    windows = [-5.7, -3.6, -1.5]
    b.slab(
        "Upper storey",
        rectangle(-7.2, 4.3, 0.4, 7.2),
        [rectangle(x - 0.4, 5.0, x + 0.4, 6.5) for x in windows],
        0.3,
        (0, 13.2, 0),
        rose,
    )
    b.box("Upper dark", (-3.4, 13.75, 5.7), (7.4, 0.1, 2.9), dark)
    b.box("Upper side", (0.2, 14.55, 5.7), (0.3, 2.6, 2.8), rose)
    for x in windows:
        for side in (-0.62, 0.62):
            b.box("Shutter", (x + side, 13.0, 5.75), (0.42, 0.08, 1.55), shutter)
        b.box("Sill", (x, 13.0, 4.93), (1.0, 0.3, 0.12), stone)
    b.box("Upper roof", (-3.4, 13.6, 7.45), (8.2, 2.6, 0.18), roof, tilt=(math.radians(18), 0, 0))
    for x in (1.2, 2.3, 3.4):
        b.pot((x, 12.0, 4.47), 0.26, terracotta(), bloom=x == 2.3)

    b.slab(
        "Tower",
        rectangle(4.0, -0.4, 7.4, 9.0),
        [arch(5.7, 5.4, 1.3, 1.5), arch(5.7, -0.2, 1.3, 2.1)],
        0.5,
        (0, 12.2, 0),
        tower,
    )
    b.box("Tower west", (4.16, 14.2, 4.5), (0.2, 3.6, 8.9), tower)
    b.box("Tower room", (5.7, 14.0, 4.5), (3.2, 0.2, 9.0), dark)
    b.slab("Tower door", arch(5.7, 0, 1.3, 1.9), [], 0.12, (0, 12.5, 0), door)
    b.box("Tower band", (5.7, 12.2, 4.7), (3.7, 0.35, 0.25), stone)
    b.lathe("Bell", [(0.0, 0.95), (0.2, 0.9), (0.26, 0.5), (0.45, 0.0)], (5.7, 12.9, 5.7), brass(), segments=20)


def build_stair_wall(b: Builder) -> None:
    """The west side: a brick wall, a stair with pots on it, and what grows over the top."""
    brick = material("Old brick", "brick", [(0.50, 0.20, 0.12), (0.62, 0.30, 0.18), (0.62, 0.54, 0.44)], scale=0.9)
    step = material("Steps", "noise", [(0.46, 0.42, 0.36), (0.66, 0.61, 0.52)], scale=3.0)
    blue = material("Blue door", "stripes", [(0.05, 0.16, 0.32), (0.10, 0.26, 0.46)], scale=3.0)
    b.box("West wall", (-7.1, 4.0, 2.3), (0.4, 16.0, 4.6), brick)
    b.box("West coping", (-7.1, 4.0, 4.68), (0.6, 16.0, 0.16), stone := bpy.data.materials["Stone"])
    profile: Outline = [(4.6, -0.4)]
    for i in range(8):
        profile += [(4.6 + 0.42 * i, 0.24 * (i + 1)), (4.6 + 0.42 * (i + 1), 0.24 * (i + 1))]
    profile += [(11.6, 0.24 * 8), (11.6, -0.4)]
    b.slab("Stair", profile, [arch(9.8, -0.2, 1.3, 0.9)], 1.5, (-6.9, 0, 0), step, facing="x")
    b.box("Stair dark", (-6.6, 9.8, 0.8), (0.2, 1.8, 1.5), bpy.data.materials["Dark room"])
    b.slab("West door", arch(9.6, 1.92, 1.1, 1.5), [], 0.12, (-6.9, 0, 0), blue, facing="x")
    b.slab("West frame", arch(9.6, 1.92, 1.5, 1.6), [arch(9.6, 1.97, 1.1, 1.45)], 0.18, (-6.9, 0, 0), stone, facing="x")
    b.lantern((-6.6, 8.3, 3.2))
    b.lantern((-6.6, 3.6, 2.9))
    for i in (1, 3, 5):
        b.pot((-5.65, 4.82 + 0.42 * i, 0.24 * (i + 1)), 0.17, terracotta(), bloom=i == 3)
    for x, y, z, r in [
        (-6.8, 6.6, 4.6, 0.75),
        (-6.75, 5.6, 4.75, 0.6),
        (-6.7, 6.1, 3.9, 0.5),
        (-6.8, 7.5, 4.75, 0.55),
        (-6.72, 6.9, 3.5, 0.35),
    ]:
        b.clump("Bougainvillea", (x, y, z), r, blossom())
    for y, h in ((1.0, 7.0), (4.6, 8.2), (10.6, 7.6)):
        b.clump("Cypress", (-9.4, y, h * 0.5), 1.0, cypress(), stretch=(0.75, 0.75, h * 0.55))
    b.box(
        "Rug",
        (-6.84, 2.2, 2.9),
        (0.06, 1.3, 1.9),
        material("Rug", "checker", [(0.55, 0.10, 0.09), (0.80, 0.62, 0.30)], scale=2.4),
    )


def build_market_side(b: Builder) -> None:
    """The east side: a pale house with blue shutters, and the stall under its awning."""
    cream = material("Cream plaster", "noise", [(0.72, 0.62, 0.46), (0.86, 0.78, 0.62)], scale=0.7)
    blue = material("Blue shutters", "stripes", [(0.08, 0.22, 0.38), (0.16, 0.36, 0.54)], scale=4.0, axis="Y")
    plinth = material("Plinth", "brick", [(0.46, 0.38, 0.30), (0.58, 0.50, 0.40), (0.38, 0.32, 0.27)], scale=0.8)
    canvas = material(
        "Awning canvas", "stripes", [(0.72, 0.12, 0.09), (0.86, 0.80, 0.68)], scale=0.7, axis="Y", hard=True
    )
    wood = timber()
    dark = bpy.data.materials["Dark room"]
    windows = [2.4, 4.6, 8.6, 10.4]
    holes = [arch(y, 2.9, 0.9, 1.0) for y in windows] + [arch(6.6, -0.2, 1.5, 2.1), rectangle(2.6, 0.9, 4.0, 2.2)]
    b.slab("East house", rectangle(-1.0, -0.4, 12.2, 5.4), holes, 0.4, (7.0, 0, 0), cream, facing="x")
    b.box("East dark", (7.5, 5.6, 2.7), (0.1, 13.0, 5.4), dark)
    for south, north in ((-1.0, 5.85), (7.35, 12.2)):
        b.box("East plinth", (6.95, (south + north) / 2, 0.4), (0.14, north - south, 0.8), plinth)
    b.slab("East door", arch(6.6, 0, 1.5, 1.9), [], 0.1, (7.2, 0, 0), bpy.data.materials["Oak door"], facing="x")
    for y in windows:
        for side in (-0.68, 0.68):
            b.box("Shutter", (6.92, y + side, 3.6), (0.08, 0.44, 1.4), blue)
        b.box("Flower box", (6.8, y, 2.78), (0.36, 1.0, 0.22), wood)
        for i in (-0.3, 0.05, 0.35):
            b.clump("Geranium", (6.75, y + i, 2.98), 0.2, blossom() if i else leaves())
    b.box(
        "East eave",
        (6.9, 5.6, 5.5),
        (1.4, 13.6, 0.16),
        bpy.data.materials["Roof tiles"],
        tilt=(0, math.radians(-14), 0),
    )
    b.lantern((6.6, 7.9, 2.5))
    b.lantern((6.6, 5.3, 2.5))

    # The stall: a counter with fruit under a striped awning.
    b.box("Counter", (5.6, 9.3, 0.5), (1.1, 2.8, 1.0), wood)
    b.box("Counter top", (5.55, 9.3, 1.04), (1.4, 3.0, 0.08), timber("Pale timber", 1.5))
    for y in (7.85, 10.75):
        b.box("Stall post", (4.85, y, 1.2), (0.11, 0.11, 2.4), wood)
    b.box("Awning", (5.75, 9.3, 2.68), (2.5, 3.3, 0.05), canvas, tilt=(0, math.radians(-15), 0))
    scallops: Outline = [(10.95, 0.0)]
    for i in range(11):
        scallops += [
            (10.95 - 0.3 * (i + 0.15), -0.22),
            (10.95 - 0.3 * (i + 0.5), -0.3),
            (10.95 - 0.3 * (i + 0.85), -0.22),
            (10.95 - 0.3 * (i + 1), -0.12),
        ]
    b.slab("Awning edge", [*scallops, (7.65, 0.0)], [], 0.03, (4.53, 0, 2.36), canvas, facing="x")
    fruit = [
        ((0.84, 0.38, 0.05), (0.92, 0.55, 0.12)),
        ((0.62, 0.06, 0.05), (0.76, 0.16, 0.08)),
        ((0.32, 0.46, 0.08), (0.52, 0.62, 0.16)),
        ((0.82, 0.66, 0.12), (0.90, 0.78, 0.30)),
    ]
    for i, colours in enumerate(fruit):
        ripe = material(f"Fruit {i + 1}", "noise", list(colours), scale=6.0)
        centre = (5.45, 8.2 + 0.73 * i, 1.08)
        b.crate((centre[0], centre[1], centre[2]), (0.8, 0.6, 0.2))
        for j in range(12):
            b.ball(
                "Fruit",
                (centre[0] - 0.27 + 0.18 * (j % 4), centre[1] - 0.18 + 0.18 * (j // 4), 1.28 + 0.03 * ((j * 7) % 3)),
                0.11,
                ripe,
            )


def build_fountain(b: Builder) -> None:
    stone = material("Fountain stone", "noise", [(0.48, 0.46, 0.42), (0.72, 0.69, 0.62)], scale=2.2)
    tiles = material("Fountain tiles", "checker", [(0.10, 0.34, 0.42), (0.78, 0.74, 0.62)], scale=2.6, mapping="round")
    water = material("Water", "noise", [(0.07, 0.26, 0.32), (0.20, 0.44, 0.48)], scale=2.0)
    at = (0.5, 6.5, 0)
    b.lathe(
        "Basin",
        [(1.75, 0), (1.75, 0.12), (1.55, 0.18), (1.55, 0.5), (1.7, 0.56), (1.7, 0.66), (1.35, 0.66), (1.35, 0.4)],
        at,
        stone,
        segments=8,
    )
    b.lathe("Basin tiles", [(1.57, 0.2), (1.57, 0.48)], at, tiles, segments=8)
    b.lathe("Basin water", [(0, 0.5), (1.36, 0.5)], at, water, segments=8)
    b.lathe(
        "Fountain stem",
        [
            (0.42, 0.4),
            (0.42, 0.6),
            (0.2, 0.75),
            (0.16, 1.1),
            (0.24, 1.35),
            (0.75, 1.55),
            (0.85, 1.7),
            (0.78, 1.7),
            (0.5, 1.6),
        ],
        at,
        stone,
    )
    b.lathe("Bowl water", [(0, 1.66), (0.76, 1.66)], at, water)
    b.lathe("Fountain top", [(0.16, 1.6), (0.12, 1.9), (0.2, 2.0), (0.26, 2.15), (0.16, 2.32), (0, 2.4)], at, stone)


def build_props(b: Builder) -> None:
    clay, wood = terracotta(), timber()
    for x, y, s in (
        (-5.2, 2.6, 1.0),
        (-4.4, 2.9, 1.0),
        (-4.85, 3.5, 0.9),
        (3.3, 10.9, 0.95),
        (6.2, 2.4, 1.0),
        (6.3, 3.3, 0.9),
    ):
        b.barrel((x, y, 0), s)
    b.crate((-4.6, 2.9, 0.98), (0.6, 0.5, 0.32))
    b.crate((4.1, 11.0, 0), (0.9, 0.8, 0.5))
    b.crate((4.2, 11.0, 0.52), (0.7, 0.6, 0.4))
    b.crate((5.9, 4.5, 0), (0.9, 0.8, 0.5))
    for x, y, r in (
        (-6.2, 11.0, 0.4),
        (-1.55, 11.2, 0.34),
        (1.15, 11.2, 0.34),
        (-1.9, 4.6, 0.32),
        (2.9, 4.6, 0.32),
        (4.5, 5.2, 0.36),
        (6.2, 5.4, 0.4),
    ):
        b.pot((x, y, 0), r, clay, bloom=r < 0.33)
    b.pot((-3.9, 9.6, 0), 0.55, clay, tree=True)
    b.pot((3.4, 8.9, 0), 0.45, clay, tree=True)
    for x, y, s in ((-4.6, 7.6, 1.0), (-4.1, 7.1, 0.8), (4.4, 6.2, 0.9)):
        b.lathe(
            "Amphora",
            [
                (0.12 * s, 0),
                (0.3 * s, 0.35 * s),
                (0.33 * s, 0.6 * s),
                (0.12 * s, 0.92 * s),
                (0.11 * s, 1.05 * s),
                (0.17 * s, 1.1 * s),
            ],
            (x, y, 0),
            clay,
        )

    # A hand cart with sacks, left where the sun reaches it.
    cart = (3.4, 2.7)
    b.box("Cart bed", (cart[0], cart[1], 0.72), (1.9, 1.0, 0.1), wood)
    for side in (-0.5, 0.5):
        b.box("Cart side", (cart[0], cart[1] + side, 0.92), (1.9, 0.07, 0.3), wood)
        b.wheel("Cart wheel", (cart[0] + 0.1, cart[1] + side * 1.25, 0.5), 0.5, wood)
        b.box(
            "Cart shaft",
            (cart[0] - 1.5, cart[1] + side * 0.8, 0.62),
            (1.3, 0.08, 0.08),
            wood,
            tilt=(0, math.radians(-12), 0),
        )
    sack = material("Sacking", "noise", [(0.48, 0.36, 0.20), (0.70, 0.57, 0.37)], scale=4.0)
    for x, y, z in ((-0.5, 0.1, 1.0), (0.15, -0.12, 1.02), (0.6, 0.15, 1.0), (-0.1, 0.15, 1.3)):
        b.clump("Sack", (cart[0] + x, cart[1] + y, z), 0.36, sack, stretch=(1.1, 0.85, 0.75), roughness=0.12)

    # Washing on a pole across the courtyard.
    b.box("Washing pole", (1.0, 10.6, 3.45), (11.6, 0.07, 0.07), timber())
    linen = [
        ((0.80, 0.77, 0.70), (0.88, 0.86, 0.80)),
        ((0.16, 0.34, 0.52), (0.26, 0.46, 0.62)),
        ((0.80, 0.56, 0.16), (0.88, 0.68, 0.28)),
        ((0.60, 0.14, 0.14), (0.72, 0.26, 0.22)),
        ((0.78, 0.75, 0.70), (0.84, 0.82, 0.76)),
    ]
    for i, (x, width, drop) in enumerate(
        ((-3.5, 1.1, 1.0), (-2.1, 0.9, 0.8), (1.9, 1.2, 0.9), (3.2, 0.8, 0.75), (4.3, 1.0, 1.1))
    ):
        b.cloth("Linen", (x, 10.6, 3.45), width, drop, material(f"Linen {i + 1}", "stripes", list(linen[i]), scale=2.0))
    b.box("Bench seat", (-4.8, 5.4, 0.48), (0.5, 1.9, 0.1), wood)
    for y in (4.7, 6.1):
        b.box("Bench leg", (-4.8, y, 0.22), (0.4, 0.12, 0.44), bpy.data.materials["Stone"])


def build_light(scene: bpy.types.Scene, b: Builder) -> None:
    """Late-morning sun from behind the camera's left, and a sky with soft clouds."""
    sun = bpy.data.lights.new("Sun", "SUN")
    sun.energy, sun.color, sun.angle = 3.6, (1.0, 0.86, 0.68), math.radians(1.5)
    b.add("Sun", sun).rotation_euler = (math.radians(48), math.radians(6), math.radians(-38))
    world = bpy.data.worlds.new("Courtyard sky")
    scene.world = world
    world.use_nodes = True
    tree = world.node_tree
    tree.nodes.clear()
    direction = node(tree, "ShaderNodeTexCoord").outputs["Generated"]
    height = node(tree, "ShaderNodeSeparateXYZ", Vector=direction).outputs["Z"]
    blue = ramp(tree, height, [(0.0, (0.80, 0.80, 0.76)), (0.18, (0.52, 0.70, 0.86)), (0.7, (0.16, 0.38, 0.72))])
    stretched = node(tree, "ShaderNodeMapping", Vector=direction, Scale=(1.0, 1.0, 3.0)).outputs["Vector"]
    cloud = node(tree, "ShaderNodeTexNoise", Vector=stretched, Scale=2.6, Detail=3.0).outputs[0]
    cover = node(
        tree, "ShaderNodeMapRange", {"Value": cloud, "From Min": 0.5, "From Max": 0.72, "To Max": 0.8}
    ).outputs[0]
    white = node(tree, "ShaderNodeMix", {0: cover, 6: blue, 7: (0.92, 0.90, 0.87, 1.0)}, data_type="RGBA").outputs[2]
    background = node(tree, "ShaderNodeBackground", Color=white, Strength=0.95)
    node(tree, "ShaderNodeOutputWorld", Surface=background.outputs[0])
    # Blender's automatic map would look at the clouds two million times before the first sample.
    world.cycles.sampling_method, world.cycles.sample_map_resolution = "MANUAL", 128


def build_camera(scene: bpy.types.Scene, collection: bpy.types.Collection, frames: int) -> bpy.types.Object:
    """The camera on its `FLIGHT`, keyed at each station; Blender's own Bezier easing makes it start and end softly."""
    lens = bpy.data.cameras.new("Flight")
    lens.lens, lens.clip_end = 26.0, 200.0
    camera = bpy.data.objects.new("Flight", lens)
    collection.objects.link(camera)
    for share, *numbers in FLIGHT if frames > 1 else FLIGHT[:1]:
        at, target = Vector(numbers[:3]), Vector(numbers[3:])
        camera.location = at
        camera.rotation_euler = (target - at).to_track_quat("-Z", "Y").to_euler()
        for channel in ("location", "rotation_euler"):
            camera.keyframe_insert(channel, frame=1 + share * (frames - 1))
    scene.camera = camera
    return camera


def set_render(scene: bpy.types.Scene, width: int, height: int, frames: int) -> None:
    """Cycles on the CPU, few samples and a denoiser, through the Standard view."""
    scene.frame_start, scene.frame_end, scene.frame_step = 1, frames, 1
    scene.render.fps, scene.render.fps_base = FPS, 1.0
    scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = width, height, 100
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = 24
    scene.cycles.use_adaptive_sampling = False
    scene.cycles.use_denoising = True
    scene.cycles.denoising_prefilter = "FAST"
    scene.cycles.max_bounces = 4
    scene.cycles.seed = 1
    scene.display_settings.display_device = "sRGB"
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.look = "None"
    scene.frame_set(1)


# --- Materials ------------------------------------------------------------------------------------


def material(
    name: str,
    kind: str,
    colours: Sequence[Colour],
    scale: float = 1.0,
    *,
    mapping: str = "box",
    axis: str = "X",
    hard: bool = False,
    joint: float = 0.0,
) -> bpy.types.Material:
    """The diffuse material of that name, made once.

    Args:
        kind: noise, brick, stripes, checker or voronoi.
        colours: linear RGB; two or three (brick takes two bricks and the mortar).
        scale: features a metre, about.
        mapping: `box` lays the texture along the faces in world metres, `round` around the object's own z axis.
        axis: across which stripes change, X (along the face) or Y (up it).
        hard: stripes with an edge instead of a wave.
        joint: width in metres of the dark joint between voronoi cells.
    """
    if found := bpy.data.materials.get(name):
        return found
    made = bpy.data.materials.new(name)
    made.use_nodes = True
    made.diffuse_color = (*colours[0], 1.0)
    tree = made.node_tree
    tree.nodes.clear()
    at = {"box": box_coordinates, "round": round_coordinates}[mapping](tree)
    shades = [(i / (len(colours) - 1), c) for i, c in enumerate(colours)]
    if kind == "noise":
        value = node(tree, "ShaderNodeTexNoise", Vector=at, Scale=2 * scale, Detail=4.0, Roughness=0.55).outputs[0]
        colour = ramp(
            tree,
            node(tree, "ShaderNodeMapRange", {"Value": value, "From Min": 0.3, "From Max": 0.7}).outputs[0],
            shades,
        )
    elif kind == "brick":
        rgba = [(*c, 1.0) for c in colours]
        brick = node(
            tree, "ShaderNodeTexBrick", Vector=at, Color1=rgba[0], Color2=rgba[1], Mortar=rgba[2], Scale=2 * scale
        )
        brick.inputs["Mortar Size"].default_value = 0.03
        colour = brick.outputs[0]
    elif kind == "stripes":
        wave = node(
            tree, "ShaderNodeTexWave", Vector=at, Scale=scale, Distortion=0.0 if hard else 1.2, bands_direction=axis
        )
        colour = ramp(
            tree,
            wave.outputs[1],
            [(0.0, colours[0]), (0.5, colours[1])] if hard else shades,
            constant=hard,
        )
    elif kind == "checker":
        colour = node(
            tree,
            "ShaderNodeTexChecker",
            Vector=at,
            Color1=(*colours[0], 1.0),
            Color2=(*colours[1], 1.0),
            Scale=2 * scale,
        ).outputs[0]
    elif kind == "voronoi":
        cell = node(tree, "ShaderNodeTexVoronoi", Vector=at, Scale=scale, voronoi_dimensions="2D")
        value = node(tree, "ShaderNodeSeparateColor", Color=cell.outputs["Color"]).outputs[0]
        colour = ramp(tree, value, shades)
        if joint:
            edge = node(
                tree,
                "ShaderNodeTexVoronoi",
                Vector=at,
                Scale=scale,
                voronoi_dimensions="2D",
                feature="DISTANCE_TO_EDGE",
            ).outputs["Distance"]
            colour = scaled(
                tree,
                colour,
                node(tree, "ShaderNodeMapRange", {"Value": edge, "From Max": joint * scale, "To Min": 0.55}).outputs[0],
            )
    else:
        raise ValueError(f"unknown kind of material: {kind}")
    # Weather: broad stains over everything, so that no surface is flat from afar.
    where = node(tree, "ShaderNodeNewGeometry").outputs["Position"]
    stain = node(tree, "ShaderNodeTexNoise", Vector=where, Scale=0.7, Detail=3.0).outputs[0]
    colour = scaled(
        tree,
        colour,
        node(
            tree,
            "ShaderNodeMapRange",
            {"Value": stain, "From Min": 0.3, "From Max": 0.7, "To Min": 0.7, "To Max": 1.12},
        ).outputs[0],
    )
    surface = node(tree, "ShaderNodeBsdfDiffuse", Color=colour, Roughness=0.0)
    node(tree, "ShaderNodeOutputMaterial", Surface=surface.outputs[0])
    return made


def terracotta() -> bpy.types.Material:
    return material("Terracotta", "noise", [(0.50, 0.20, 0.10), (0.68, 0.34, 0.18)], scale=3.0)


def timber(name: str = "Timber", light: float = 1.0) -> bpy.types.Material:
    return material(
        name,
        "stripes",
        [(0.24 * light, 0.13 * light, 0.06 * light), (0.40 * light, 0.25 * light, 0.13 * light)],
        scale=1.6,
        axis="Y",
    )


def brass() -> bpy.types.Material:
    return material("Brass", "noise", [(0.34, 0.22, 0.06), (0.56, 0.40, 0.14)], scale=3.0)


def leaves() -> bpy.types.Material:
    return material("Leaves", "voronoi", [(0.04, 0.12, 0.03), (0.12, 0.26, 0.06), (0.26, 0.40, 0.12)], scale=9.0)


def blossom() -> bpy.types.Material:
    return material("Blossom", "voronoi", [(0.12, 0.24, 0.06), (0.62, 0.08, 0.26), (0.80, 0.22, 0.44)], scale=9.0)


def cypress() -> bpy.types.Material:
    return material("Cypress", "noise", [(0.03, 0.08, 0.03), (0.10, 0.18, 0.07)], scale=2.0)


def box_coordinates(tree: bpy.types.NodeTree) -> bpy.types.NodeSocket:
    """World metres along each face: (x, y) on what lies flat, (y, z) or (x, z) on walls."""
    geometry = node(tree, "ShaderNodeNewGeometry")
    p = node(tree, "ShaderNodeSeparateXYZ", Vector=geometry.outputs["Position"]).outputs
    facing = node(tree, "ShaderNodeVectorMath", {0: geometry.outputs["True Normal"]}, operation="ABSOLUTE").outputs[0]
    n = node(tree, "ShaderNodeSeparateXYZ", Vector=facing).outputs
    flat = node(tree, "ShaderNodeMath", {0: n[2], 1: 0.7}, operation="GREATER_THAN").outputs[0]
    east = node(tree, "ShaderNodeMath", {0: n[0], 1: n[1]}, operation="GREATER_THAN").outputs[0]
    side = node(tree, "ShaderNodeMix", {0: east, 2: p[0], 3: p[1]}).outputs[0]
    u = node(tree, "ShaderNodeMix", {0: flat, 2: side, 3: p[0]}).outputs[0]
    v = node(tree, "ShaderNodeMix", {0: flat, 2: p[2], 3: p[1]}).outputs[0]
    return node(tree, "ShaderNodeCombineXYZ", X=u, Y=v).outputs[0]


def round_coordinates(tree: bpy.types.NodeTree) -> bpy.types.NodeSocket:
    """(angle, height) around the object's z axis, and (angle, radius) on what lies flat."""
    p = node(tree, "ShaderNodeSeparateXYZ", Vector=node(tree, "ShaderNodeTexCoord").outputs["Object"]).outputs
    angle = node(tree, "ShaderNodeMath", {0: p[1], 1: p[0]}, operation="ARCTAN2").outputs[0]
    turn = node(tree, "ShaderNodeMath", {0: angle, 1: 8 / math.pi}, operation="MULTIPLY").outputs[0]
    level = node(tree, "ShaderNodeCombineXYZ", X=p[0], Y=p[1]).outputs[0]
    radius = node(tree, "ShaderNodeVectorMath", {0: level}, operation="LENGTH").outputs["Value"]
    v = node(tree, "ShaderNodeMath", {0: radius, 1: p[2]}, operation="ADD").outputs[0]
    return node(tree, "ShaderNodeCombineXYZ", X=turn, Y=v).outputs[0]


def scaled(tree: bpy.types.NodeTree, colour: bpy.types.NodeSocket, by: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
    return node(tree, "ShaderNodeVectorMath", {0: colour, "Scale": by}, operation="SCALE").outputs[0]


def ramp(
    tree: bpy.types.NodeTree, value: bpy.types.NodeSocket, stops: Sequence[tuple[float, Colour]], constant: bool = False
) -> bpy.types.NodeSocket:
    made = node(tree, "ShaderNodeValToRGB", {0: value})
    elements = made.color_ramp.elements
    made.color_ramp.interpolation = "CONSTANT" if constant else "LINEAR"
    for _ in stops[2:]:
        elements.new(0.5)
    for element, (position, colour) in zip(elements, stops, strict=True):
        element.position, element.color = position, (*colour, 1.0)
    return made.outputs[0]


def node(tree: bpy.types.NodeTree, kind: str, inputs: dict[Any, Any] | None = None, **named: Any) -> bpy.types.Node:
    """A new node; what names an input is linked or set there, anything else is a property of the node."""
    made = tree.nodes.new(kind)
    properties = {k: v for k, v in named.items() if k in made.bl_rna.properties and k not in made.inputs}
    for key, value in properties.items():
        setattr(made, key, value)
    for key, value in {**(inputs or {}), **{k: v for k, v in named.items() if k not in properties}}.items():
        if isinstance(value, bpy.types.NodeSocket):
            tree.links.new(value, made.inputs[key])
        else:
            made.inputs[key].default_value = value
    return made


# --- Shapes ---------------------------------------------------------------------------------------


def rectangle(x0: float, z0: float, x1: float, z1: float) -> Outline:
    return [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]


def arch(x: float, z: float, width: float, spring: float, segments: int = 10) -> Outline:
    """A round-arched opening centred on `x`, standing on `z`, whose sides rise by `spring` before the arc."""
    r = width / 2
    arc = [
        (x + r * math.cos(math.pi * i / segments), z + spring + r * math.sin(math.pi * i / segments))
        for i in range(segments + 1)
    ]
    return [(x - r, z), (x + r, z), *arc]


class Builder:
    """The few shapes that the courtyard is made of; each call adds its objects to the collection."""

    def __init__(self, collection: bpy.types.Collection) -> None:
        self.collection = collection
        self.random = random.Random(7)  # the same courtyard every time

    def add(
        self,
        name: str,
        data: Any,
        surface: bpy.types.Material | None = None,
        at: Point = (0, 0, 0),
        tilt: Point = (0, 0, 0),
    ) -> bpy.types.Object:
        if surface:
            data.materials.append(surface)
        made = bpy.data.objects.new(name, data)
        made.location, made.rotation_euler = at, tilt
        self.collection.objects.link(made)
        return made

    def shape(
        self,
        name: str,
        fill: Callable[[bmesh.types.BMesh], Any],
        surface: bpy.types.Material,
        at: Point,
        tilt: Point = (0, 0, 0),
        smooth: bool = False,
    ) -> bpy.types.Object:
        mesh, made = bpy.data.meshes.new(name), bmesh.new()
        fill(made)
        bmesh.ops.recalc_face_normals(made, faces=made.faces)
        for face in made.faces:
            face.smooth = smooth
        made.to_mesh(mesh)
        made.free()
        return self.add(name, mesh, surface, at, tilt)

    def box(
        self, name: str, centre: Point, size: Point, surface: bpy.types.Material, tilt: Point = (0, 0, 0)
    ) -> bpy.types.Object:
        return self.shape(
            name,
            lambda m: bmesh.ops.create_cube(m, size=1.0, matrix=Matrix.Diagonal((*size, 1.0))),
            surface,
            centre,
            tilt,
        )

    def ball(self, name: str, centre: Point, radius: float, surface: bpy.types.Material) -> bpy.types.Object:
        return self.shape(
            name, lambda m: bmesh.ops.create_icosphere(m, subdivisions=2, radius=radius), surface, centre, smooth=True
        )

    def slab(
        self,
        name: str,
        outline: Outline,
        holes: list[Outline],
        depth: float,
        at: Point,
        surface: bpy.types.Material,
        facing: str = "y",
    ) -> bpy.types.Object:
        """A wall `depth` thick with openings, upright in the (x, z) plane, or in (y, z) when it faces `x`.

        Openings lie strictly inside the outline; one that reaches the ground starts below it, as its wall does.
        """
        curve = bpy.data.curves.new(name, "CURVE")
        curve.dimensions, curve.fill_mode, curve.extrude = "2D", "BOTH", depth / 2
        for points in [outline, *holes]:
            spline = curve.splines.new("POLY")
            spline.points.add(len(points) - 1)
            spline.use_cyclic_u = True
            for point, (u, v) in zip(spline.points, points, strict=True):
                point.co = (u, v, 0.0, 1.0)
        drawn = bpy.data.objects.new(name, curve)
        mesh = bpy.data.meshes.new_from_object(drawn)
        bpy.data.objects.remove(drawn)
        bpy.data.curves.remove(curve)
        upright = Matrix(((1, 0, 0, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 0, 0, 1)))
        sideways = Matrix(((0, 0, 1, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1)))
        mesh.transform(upright if facing == "y" else sideways)
        offset = Vector((0, depth / 2, 0) if facing == "y" else (depth / 2, 0, 0))
        return self.add(name, mesh, surface, tuple(Vector(at) + offset))

    def lathe(
        self,
        name: str,
        profile: Outline,
        at: Point,
        surface: bpy.types.Material,
        segments: int = 24,
        tilt: Point = (0, 0, 0),
    ) -> bpy.types.Object:
        """A (radius, height) profile turned around z."""

        def turn(m: bmesh.types.BMesh) -> None:
            rings = [
                [
                    m.verts.new((r * math.cos(a), r * math.sin(a), z))
                    for a in (2 * math.pi * i / segments for i in range(segments))
                ]
                for r, z in profile
            ]
            for lower, upper in pairwise(rings):
                for i in range(segments):
                    m.faces.new((lower[i], lower[(i + 1) % segments], upper[(i + 1) % segments], upper[i]))
            bmesh.ops.remove_doubles(m, verts=m.verts, dist=1e-5)

        return self.shape(name, turn, surface, at, tilt, smooth=segments > 12)

    def clump(
        self,
        name: str,
        centre: Point,
        radius: float,
        surface: bpy.types.Material,
        stretch: Point = (1, 1, 1),
        roughness: float = 0.45,
    ) -> bpy.types.Object:
        """A lumpy ball: foliage, or a sack when it is smoother."""
        shift = Vector((self.random.uniform(-50, 50), self.random.uniform(-50, 50), 0.0))

        def lump(m: bmesh.types.BMesh) -> None:
            bmesh.ops.create_icosphere(m, subdivisions=3, radius=1.0)
            for vertex in m.verts:
                swell = (
                    1.0
                    + roughness * noise.noise(vertex.co * 2.2 + shift)
                    + 0.5 * roughness * noise.noise(vertex.co * 5.0 + shift)
                )
                taper = 1.0 if stretch[2] < 2 else 1.0 - 0.55 * vertex.co.z
                vertex.co = (
                    Vector(
                        (
                            vertex.co.x * swell * stretch[0] * taper,
                            vertex.co.y * swell * stretch[1] * taper,
                            vertex.co.z * stretch[2],
                        )
                    )
                    * radius
                )

        return self.shape(name, lump, surface, centre, smooth=True)

    def cloth(self, name: str, at: Point, width: float, drop: float, surface: bpy.types.Material) -> bpy.types.Object:
        """A cloth hung from a line along x, moved a little by the wind."""

        def hang(m: bmesh.types.BMesh) -> None:
            bmesh.ops.create_grid(m, x_segments=10, y_segments=8, size=0.5)
            for v in m.verts:
                down = 0.5 - v.co.y
                v.co = Vector((v.co.x * width, 0.14 * down * math.sin(7 * v.co.x + 3 * down + at[0]), -down * drop))

        return self.shape(name, hang, surface, at, smooth=True)

    def column(
        self, name: str, at: Point, height: float, radius: float, surface: bpy.types.Material
    ) -> bpy.types.Object:
        r, h = radius, height
        return self.lathe(
            name,
            [
                (1.5 * r, 0),
                (1.5 * r, 0.12),
                (1.15 * r, 0.2),
                (r, 0.3),
                (0.88 * r, h - 0.3),
                (1.1 * r, h - 0.2),
                (1.6 * r, h - 0.1),
                (1.6 * r, h),
            ],
            at,
            surface,
        )

    def barrel(self, at: Point, size: float) -> None:
        s = size
        staves = material(
            "Barrel staves", "stripes", [(0.26, 0.13, 0.06), (0.46, 0.28, 0.14)], scale=0.35, mapping="round"
        )
        iron = material("Iron", "noise", [(0.06, 0.06, 0.07), (0.14, 0.13, 0.13)], scale=4.0)
        self.lathe(
            "Barrel",
            [
                (0.3 * s, 0),
                (0.37 * s, 0.25 * s),
                (0.4 * s, 0.48 * s),
                (0.37 * s, 0.72 * s),
                (0.3 * s, 0.96 * s),
                (0.27 * s, 0.96 * s),
                (0.27 * s, 0.92 * s),
                (0, 0.92 * s),
            ],
            at,
            staves,
        )
        for z, r in ((0.14, 0.352), (0.34, 0.392), (0.62, 0.392), (0.82, 0.352)):
            self.lathe(
                "Barrel hoop", [(r * s, (z - 0.03) * s), ((r + 0.012) * s, z * s), (r * s, (z + 0.03) * s)], at, iron
            )

    def crate(self, at: Point, size: Point) -> None:
        """An open slatted crate standing at `at`."""
        x, y, z = size
        wood = timber("Crate timber", 1.35)
        self.box("Crate bottom", (at[0], at[1], at[2] + 0.03), (x, y, 0.06), wood)
        for side in (-0.5, 0.5):
            self.box("Crate side", (at[0] + side * (x - 0.05), at[1], at[2] + z / 2), (0.05, y, z), wood)
            self.box("Crate side", (at[0], at[1] + side * (y - 0.05), at[2] + z / 2), (x - 0.1, 0.05, z), wood)

    def pot(self, at: Point, radius: float, clay: bpy.types.Material, bloom: bool = False, tree: bool = False) -> None:
        r = radius
        green, flower = leaves(), blossom()
        self.lathe(
            "Pot",
            [
                (0.62 * r, 0),
                (0.95 * r, 1.2 * r),
                (1.12 * r, 1.2 * r),
                (1.12 * r, 1.45 * r),
                (0.9 * r, 1.45 * r),
                (0.88 * r, 1.25 * r),
                (0, 1.25 * r),
            ],
            at,
            clay,
        )
        x, y, z = at
        if tree:
            self.lathe("Trunk", [(0.16 * r, 0), (0.12 * r, 3.2 * r)], (x, y, z + 1.2 * r), timber())
            self.clump("Crown", (x, y, z + 5.0 * r), 1.5 * r, green)
            return
        for i in range(4):
            a = 2 * math.pi * (i + self.random.random() * 0.5) / 4
            self.clump(
                "Plant",
                (x + 0.45 * r * math.cos(a), y + 0.45 * r * math.sin(a), z + (1.75 + 0.3 * (i % 2)) * r),
                0.7 * r,
                flower if bloom and i % 2 else green,
            )

    def wheel(self, name: str, centre: Point, radius: float, surface: bpy.types.Material) -> None:
        r, upright = radius, (math.pi / 2, 0, 0)
        self.lathe(
            name,
            [(r, -0.05), (r, 0.05), (0.85 * r, 0.05), (0.85 * r, -0.05), (r, -0.05)],
            centre,
            surface,
            tilt=upright,
        )
        self.lathe(
            f"{name} hub", [(0, -0.09), (0.2 * r, -0.09), (0.2 * r, 0.09), (0, 0.09)], centre, surface, tilt=upright
        )
        for i in range(4):
            self.box(f"{name} spoke", centre, (1.75 * r, 0.05, 0.07), surface, tilt=(0, math.pi * i / 4 + 0.2, 0))

    def lantern(self, at: Point) -> None:
        """A wall lantern hanging under `at`."""
        x, y, z = at
        glass = material("Lantern glass", "noise", [(0.86, 0.62, 0.24), (0.95, 0.80, 0.45)], scale=5.0)
        self.lathe("Lantern", [(0, 0.0), (0.11, 0.02), (0.15, 0.34)], (x, y, z - 0.4), glass, segments=6)
        self.lathe("Lantern cap", [(0.2, 0.32), (0.05, 0.5), (0.0, 0.52)], (x, y, z - 0.4), brass(), segments=6)
        wall = math.copysign(0.25, x)
        self.box("Lantern arm", (x + wall / 2, y, z + 0.12), (abs(wall) + 0.1, 0.05, 0.05), brass())


def main(arguments: Sequence[str]) -> int:
    """Writes the courtyard to a .blend that anyone can open."""
    parser = argparse.ArgumentParser(prog="demo_scene", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .blend to write")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--frames", type=int, default=93)
    options = parser.parse_args(arguments)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    build_demo_scene(bpy.context.scene, options.width, options.height, options.frames)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    bpy.ops.wm.save_as_mainfile(filepath=str(options.out.resolve()))
    return 0


if __name__ == "__main__":
    # Blender's own executable passes everything on; what is ours follows the two dashes.
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]))
