# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist sets for a shot: one property group on the scene, saved with the file."""

from __future__ import annotations

import bpy
from bpy.props import BoolProperty, FloatProperty, IntProperty, PointerProperty, StringProperty

from .start_frame import DEFAULT_SAMPLES


def _whole_chunk(self: bpy.types.PropertyGroup, context: bpy.types.Context) -> None:
    """Moves chunk and overlap to 4k + 1, the lengths that video models take, with the overlap the shorter."""
    for name in ("chunk", "overlap"):
        nearest = 1 + 4 * round((getattr(self, name) - 1) / 4)
        if getattr(self, name) != nearest:
            setattr(self, name, nearest)
    if self.overlap >= self.chunk:
        self.overlap = self.chunk - 4


class WORLDWARP_PG_shot(bpy.types.PropertyGroup):
    """Settings of the shot that WorldWarp makes of this scene"""

    prompt: StringProperty(
        name="Prompt", description="What the world looks like where the camera has not looked yet", default=""
    )
    negative_prompt: StringProperty(name="Avoid", description="What should not appear in the shot", default="")
    strength: FloatProperty(
        name="Strength",
        description="How freely known surfaces are repainted: low keeps them as they were seen, high invents more",
        default=0.8,
        min=0.05,
        max=1.0,
        subtype="FACTOR",
    )
    seed: IntProperty(
        name="Seed", description="Another number gives another world from the same words", default=0, min=0
    )
    samples: IntProperty(
        name="Samples",
        description="Cycles samples of the start frame; it is denoised, so few are enough",
        default=DEFAULT_SAMPLES,
        min=1,
        max=4096,
    )
    chunk: IntProperty(
        name="Chunk",
        description="Frames that are made at once",
        default=49,
        min=5,
        max=201,
        step=4,
        update=_whole_chunk,
    )
    overlap: IntProperty(
        name="Overlap",
        description="Frames that each chunk takes over from the one before it",
        default=5,
        min=1,
        max=197,
        step=4,
        update=_whole_chunk,
    )
    steps: IntProperty(
        name="Steps",
        description="Denoising steps; 0 leaves the choice to the server's engine",
        default=0,
        min=0,
        max=1000,
    )
    cache_steps: IntProperty(
        name="World Steps",
        description="Steps that fit the splats to what was seen; 0 leaves the choice to the server's engine",
        default=0,
        min=0,
        max=100_000,
    )
    directory: StringProperty(
        name="Output",
        description="Every generated shot gets a folder of its own in here",
        default="//worldwarp/",
        subtype="DIR_PATH",
    )
    show_results: BoolProperty(
        name="Show as They Come",
        description="Put the frames behind the camera while they arrive, and the splats into the scene at the end",
        default=True,
    )


CLASSES = (WORLDWARP_PG_shot,)


def add() -> None:
    """Puts the group on every scene."""
    bpy.types.Scene.worldwarp = PointerProperty(type=WORLDWARP_PG_shot)


def remove() -> None:
    """Takes the group off again."""
    if hasattr(bpy.types.Scene, "worldwarp"):
        del bpy.types.Scene.worldwarp
