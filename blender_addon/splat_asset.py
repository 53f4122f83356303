# SPDX-License-Identifier: GPL-3.0-or-later
"""A generated world as an asset: marked, described, with a picture of it, in no catalog.

Blender draws asset pictures itself for most objects; splats would come out empty there, so the picture is the shot's
start frame. The sky of a world follows its object: it is what the object's nodes render.
"""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np

from engine_bridge.job_folder import read_job
from worldwarp_core.errors import WorldWarpError

from .pictures import cropped_to_aspect, picture_of, reduced
from .results import find_frames
from .splats import sky_of
from .stored_paths import source_of

PREVIEW_PX = 256


def mark_as_asset(thing: bpy.types.Object, author: str, description: str) -> bool:
    """Marks a splat object as an asset; returns whether a picture of its shot was found.

    Args:
        description: empty says what the world is, from its shot's records.
    """
    thing.asset_mark()
    thing.asset_data.author = author
    thing.asset_data.description = description or description_of(thing)
    picture = picture_of_shot(thing)
    if picture is None:
        return False
    small = reduced(cropped_to_aspect(picture, 1, 1), PREVIEW_PX)
    height, width = small.shape[:2]
    pixels = np.ones((height, width, 4), np.float32)
    # From the bottom row on.
    pixels[..., :3] = small[::-1] / np.float32(255)
    preview = thing.preview_ensure()
    preview.image_size = (width, height)
    preview.image_pixels_float.foreach_set(pixels.reshape(-1))
    return True


def description_of(thing: bpy.types.Object) -> str:
    """Returns what the world is, in a sentence or two."""
    count = sum(len(part.data.attributes["position"].data) for part in (thing, *sky_of(thing)))
    words = [f"A world of {count:,} Gaussian splats"]
    file = source_of(thing)
    try:
        job = read_job(file.parent) if file is not None else {}
        prompt = str(job.get("settings", {}).get("prompt") or "")
        frames = job.get("frames", {})
        words += [f", seen on {int(frames['written'])} frames"] if "written" in frames else []
        words += [f": {prompt}"] if prompt else []
    except (WorldWarpError, AttributeError, TypeError, ValueError):
        # Splats of another origin, or a folder that was moved: then that much is known.
        pass
    return "".join(words)


def picture_of_shot(thing: bpy.types.Object) -> np.ndarray | None:
    """Returns (H, W, 3) uint8 of the shot that a splat object is of, or None where there is no such picture."""
    file = source_of(thing)
    if file is None:
        return None
    frames = find_frames(file.parent / "frames")
    beside: list[Path] = [file.parent / "start_frame.png", *([frames.first_file] if frames is not None else [])]
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        return None
    image = bpy.data.images.load(str(found))
    try:
        return picture_of(image)
    finally:
        bpy.data.images.remove(image)
