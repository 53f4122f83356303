"""Image Editors show the newest frame while a shot is made, then the timeline's; the artist's own are left alone."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import image_editors
from blender_addon.image_editors import show_at_timeline, show_newest
from blender_addon.sequences import Sequence, find_sequence
from engine_bridge.png_writer import encode_png

pytestmark = pytest.mark.usefixtures("addon")


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> bpy.types.SpaceImageEditor:
    """Returns an Image Editor of one of Blender's workspaces, as if its window were open."""
    bpy.ops.wm.read_factory_settings()
    areas = [area for screen in bpy.data.screens for area in screen.areas]
    area = next(area for area in areas if area.type == "IMAGE_EDITOR" and area.spaces.active.mode == "VIEW")
    monkeypatch.setattr(image_editors, "open_areas", lambda: iter([area]))
    area.spaces.active.image = None
    return area.spaces.active


@pytest.fixture
def frames(tmp_path: Path) -> Sequence:
    folder = tmp_path / "shot_001/frames"
    folder.mkdir(parents=True)
    for number in range(11, 16):
        (folder / f"frame_{number:04d}.png").write_bytes(encode_png(np.full((4, 6, 3), number, np.uint8)))
    found = find_sequence(folder, ".png", "sRGB")
    assert found is not None
    return found


def shown_number(space: bpy.types.SpaceImageEditor, scene_frame: int) -> int:
    """Returns which file's number an Image Editor shows when the scene is at a frame, by Blender's own rule."""
    user = space.image_user
    return min(max(scene_frame - user.frame_start + 1, 1), user.frame_duration) + user.frame_offset


def test_the_newest_frame_is_shown_wherever_the_timeline_is(
    editor: bpy.types.SpaceImageEditor, frames: Sequence
) -> None:
    show_newest(frames)
    assert editor.image.source == "SEQUENCE"
    assert [shown_number(editor, frame) for frame in (1, 12, 500)] == [15, 15, 15]
    show_at_timeline(frames)
    assert [shown_number(editor, frame) for frame in (11, 13, 15)] == [11, 13, 15]


def test_what_the_artist_looks_at_is_left_alone(editor: bpy.types.SpaceImageEditor, frames: Sequence) -> None:
    own = bpy.data.images.new("Reference", 8, 8)
    editor.image = own
    show_newest(frames)
    assert editor.image == own
    editor.image, editor.use_image_pin = None, True
    show_newest(frames)
    assert editor.image is None
    editor.use_image_pin, editor.mode = False, "PAINT"
    show_newest(frames)
    assert editor.image is None


def test_an_earlier_shot_gives_way(editor: bpy.types.SpaceImageEditor, frames: Sequence, tmp_path: Path) -> None:
    show_at_timeline(frames)
    before = editor.image
    other = tmp_path / "shot_002/frames"
    other.mkdir(parents=True)
    (other / "frame_0011.png").write_bytes(encode_png(np.zeros((4, 6, 3), np.uint8)))
    later = find_sequence(other, ".png", "sRGB")
    assert later is not None
    show_newest(later)
    assert editor.image != before
    assert shown_number(editor, 99) == 11
