# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist says about the look beyond one sentence: prompts on the timeline, a painted mask, a style picture.

A timeline marker named "ww: ..." is a prompt from its frame on. A marker's name holds 63 characters; a longer prompt
is written in a text of the Text Editor, and the marker says the text's name: "ww: Storm".
"""

from __future__ import annotations

import bpy
import numpy as np

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import PromptKey

from .pictures import picture_of, reduced, values_of

MARK = "ww:"
MAX_MARKER_CHARS = 63
STYLE_SIDE_PX = 1024
"""A style is described, not copied: nothing finer is needed, and a photograph would be a long upload."""
MASK_SIDE_PX = 1024


def prompt_keys(scene: bpy.types.Scene) -> tuple[PromptKey, ...]:
    """Returns the prompts of the timeline's markers up to the scene's last frame, in the order of their frames.

    Raises:
        WorldWarpError: `bad_settings` for two on one frame, or one that says nothing.
    """
    keys: dict[int, PromptKey] = {}
    for marker in prompt_markers(scene):
        if marker.frame > scene.frame_end:
            continue
        prompt = prompt_of(marker)
        if not prompt:
            raise WorldWarpError(
                "bad_settings",
                f'The marker at frame {marker.frame} is a prompt that says nothing. Rename it to "{MARK} what is seen '
                'from here on", or delete it.',
            )
        if marker.frame in keys:
            raise WorldWarpError(
                "bad_settings", f"Two markers at frame {marker.frame} are prompts. Move or delete one of them."
            )
        keys[marker.frame] = PromptKey(marker.frame, prompt)
    return tuple(keys.values())


def prompt_markers(scene: bpy.types.Scene) -> list[bpy.types.TimelineMarker]:
    """Returns the markers that are prompts, in the order of their frames."""
    found = [marker for marker in scene.timeline_markers if marker.name.lower().startswith(MARK)]
    return sorted(found, key=lambda marker: marker.frame)


def prompt_of(marker: bpy.types.TimelineMarker) -> str:
    """Returns what a prompt's marker says: the words after "ww:", or the text of that name."""
    words = marker.name[len(MARK) :].strip()
    text = bpy.data.texts.get(words)
    return " ".join(text.as_string().split()) if text is not None else words


def add_prompt(scene: bpy.types.Scene, frame: int, prompt: str) -> bpy.types.TimelineMarker:
    """Returns the marker that makes `prompt` hold from `frame` on; a prompt that was there before gives way."""
    for marker in [marker for marker in prompt_markers(scene) if marker.frame == frame]:
        scene.timeline_markers.remove(marker)
    name = f"{MARK} {prompt}"
    if len(name.encode()) > MAX_MARKER_CHARS:
        text = bpy.data.texts.new(f"Prompt {frame}")
        text.write(prompt)
        name = f"{MARK} {text.name}"
    return scene.timeline_markers.new(name, frame=frame)


def style_picture(image: bpy.types.Image | None) -> np.ndarray | None:
    """Returns (h, w, 3) uint8 sRGB of the style reference, small enough to be sent at once; None without one."""
    return reduced(picture_of(image), STYLE_SIDE_PX) if image is not None else None


def strength_mask(image: bpy.types.Image | None, amount: float) -> np.ndarray | None:
    """Returns (1, h, w) float32: `amount` where the picture is white, 0 where it is black; None without one.

    Args:
        amount: -1 to 1, added to the strength.
    """
    if image is None:
        return None
    white = np.clip(np.nan_to_num(reduced(values_of(image), MASK_SIDE_PX)), 0.0, 1.0)
    return (white * np.float32(amount))[None]
