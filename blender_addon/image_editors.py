# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated frames in the Image Editors that are open: the newest while a shot is made, else that of the timeline.

Editors that show nothing, the last render or an earlier shot are taken; what the artist looks at otherwise is left
alone, and so is an editor that is painted in.
"""

from __future__ import annotations

from collections.abc import Iterator

import bpy

from .sequences import Sequence, sequence_image, settle, time_sequence
from .stored_paths import source_of


def show_newest(frames: Sequence) -> None:
    """Shows the last of `frames`, wherever the timeline is."""
    for space in free_editors():
        image = sequence_image(frames)
        settle(space, image=image)
        # A sequence of one picture, which begins with that frame's number.
        settle(space.image_user, frame_start=1, frame_offset=frames.last - frames.shift - 1, frame_duration=1)
        refresh(space)


def show_at_timeline(frames: Sequence) -> None:
    """Shows that of `frames` whose number is the scene's frame."""
    for space in free_editors():
        settle(space, image=sequence_image(frames))
        time_sequence(space.image_user, frames)
        refresh(space)


def refresh(space: bpy.types.SpaceImageEditor) -> None:
    """Has an Image Editor find out which picture of its sequence it shows: else it does so when the timeline moves."""
    settle(space.image_user, use_auto_refresh=True)
    # Setting what is set already says to all editors of the image that it has changed.
    space.image.use_view_as_render = space.image.use_view_as_render


def free_editors() -> Iterator[bpy.types.SpaceImageEditor]:
    """Yields the open Image Editors that may be taken."""
    for area in open_areas():
        if area.type == "IMAGE_EDITOR" and is_free(area.spaces.active):
            yield area.spaces.active


def open_areas() -> Iterator[bpy.types.Area]:
    """Yields all that the windows show."""
    for window in bpy.context.window_manager.windows:
        yield from window.screen.areas


def is_free(space: bpy.types.SpaceImageEditor) -> bool:
    """Returns whether an Image Editor shows nothing that the artist chose."""
    if space.mode != "VIEW" or space.use_image_pin:
        return False
    image = space.image
    return image is None or image.type == "RENDER_RESULT" or source_of(image) is not None
