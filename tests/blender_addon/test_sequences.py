"""Numbered pictures of any origin are shown as a shot's are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon.sequences import sequence_with
from blender_addon.stored_paths import SOURCE, strips_of
from worldwarp_core.errors import WorldWarpError

from .conftest import ROOT

pytestmark = pytest.mark.usefixtures("addon")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".exr": "OPEN_EXR"}


def write_pictures(folder: Path, name: str, numbers: range, suffix: str) -> Path:
    """Writes small grey pictures with Blender itself; returns the first."""
    folder.mkdir(exist_ok=True)
    image = bpy.data.images.new("tmp", 8, 6, float_buffer=suffix == ".exr")
    for number in numbers:
        image.pixels.foreach_set(np.full(8 * 6 * 4, 0.1 * number, np.float32))
        image.file_format = FORMATS[suffix]
        image.filepath_raw = str(folder / f"{name}{number:03d}{suffix}")
        image.save()
    bpy.data.images.remove(image)
    return folder / f"{name}{numbers[0]:03d}{suffix}"


@pytest.mark.parametrize("suffix", FORMATS)
def test_pictures_come_behind_the_camera_into_sequencer_and_compositor(
    camera: bpy.types.Object, tmp_path: Path, suffix: str
) -> None:
    first = write_pictures(tmp_path / "plates", "plate.", range(3, 7), suffix)
    assert bpy.ops.worldwarp.import_sequence(filepath=str(first.with_name(f"plate.005{suffix}"))) == {"FINISHED"}
    scene = bpy.context.scene
    (background,) = camera.data.background_images
    assert background.image.colorspace_settings.name == ("Linear Rec.709" if suffix == ".exr" else "sRGB")
    for frame in range(3, 7):
        scene.frame_set(frame)
        shown = background.image.filepath_from_user(image_user=background.image_user)
        assert Path(bpy.path.abspath(shown)).name == f"plate.{frame:03d}{suffix}"
    (strip,) = strips_of(scene)
    assert [element.filename for element in strip.elements] == [f"plate.{n:03d}{suffix}" for n in range(3, 7)]
    tree = scene.compositing_node_group if hasattr(scene, "compositing_node_group") else scene.node_tree
    (node,) = (node for node in tree.nodes if node.bl_idname == "CompositorNodeImage")
    assert (node.frame_start, node.frame_offset, node.frame_duration) == (3, 2, 4)


def test_a_sequence_can_begin_where_the_scene_does(camera: bpy.types.Object, tmp_path: Path) -> None:
    first = write_pictures(tmp_path / "plates", "plate_", range(501, 504), ".png")
    scene = bpy.context.scene
    scene.frame_start = 20
    bpy.ops.worldwarp.import_sequence(filepath=str(first), by_number=False)
    (background,) = camera.data.background_images
    for frame, number in ((20, 501), (22, 503)):
        scene.frame_set(frame)
        shown = background.image.filepath_from_user(image_user=background.image_user)
        assert Path(bpy.path.abspath(shown)).name == f"plate_{number}.png"
    (strip,) = strips_of(scene)
    assert strip.frame_final_start == 20


def test_sequences_that_share_a_folder_are_told_apart(camera: bpy.types.Object, tmp_path: Path) -> None:
    left = write_pictures(tmp_path / "plates", "left_", range(1, 4), ".png")
    right = write_pictures(tmp_path / "plates", "right_", range(1, 3), ".png")
    (tmp_path / "plates/notes.txt").touch()
    for file in (left, right, left):
        bpy.ops.worldwarp.import_sequence(filepath=str(file), nodes=False)
    assert len(camera.data.background_images) == 2
    assert len(strips_of(bpy.context.scene)) == 2
    assert len([image for image in bpy.data.images if image.get(SOURCE)]) == 2


def test_only_what_is_asked_for_is_made(camera: bpy.types.Object, tmp_path: Path) -> None:
    first = write_pictures(tmp_path / "plates", "a", range(1, 3), ".png")
    bpy.ops.worldwarp.import_sequence(filepath=str(first), strip=False, nodes=False)
    assert len(camera.data.background_images) == 1
    assert len(strips_of(bpy.context.scene)) == 0
    bpy.context.scene.camera = None
    with pytest.raises(RuntimeError, match="Nothing to show"):
        bpy.ops.worldwarp.import_sequence(filepath=str(first), strip=False, nodes=False)


@pytest.mark.parametrize(
    ("name", "says"), [("gone_001.png", "no file"), ("notes_001.txt", "no picture"), ("poster.png", "no number")]
)
def test_what_is_no_sequence_is_a_sentence(tmp_path: Path, name: str, says: str) -> None:
    if not name.startswith("gone"):
        (tmp_path / name).touch()
    with pytest.raises(WorldWarpError, match=says):
        sequence_with(tmp_path / name)


ACES = """ocio_profile_version: 2
roles: {{default: Raw, data: Raw, scene_linear: ACEScg, rendering: ACEScg, reference: ACEScg, color_picking: {srgb},
  default_byte: {srgb}, default_float: ACEScg, default_sequencer: {srgb}, texture_paint: {srgb}, matte_paint: {srgb}}}
displays:
  sRGB - Display:
    - !<View> {{name: ACES 1.0 - SDR Video, colorspace: {srgb}}}
    - !<View> {{name: Un-tone-mapped, colorspace: {srgb}}}
colorspaces:
  - !<ColorSpace> {{name: ACEScg}}
  - !<ColorSpace> {{name: Linear Rec.709 (sRGB)}}
  - !<ColorSpace> {{name: {srgb}, to_scene_reference: !<ExponentTransform> {{value: [2.2, 2.2, 2.2, 1]}}}}
  - !<ColorSpace> {{name: Raw, isdata: true}}
""".format(srgb="sRGB - Texture")
IN_A_STUDIO = """
import os, sys
import bpy
import blender_addon
from blender_addon.sequences import DATA, LINEAR, SRGB, set_colorspace
from blender_addon.stored_paths import strips_of
blender_addon.register()
bpy.ops.worldwarp.import_sequence(filepath=sys.argv[1], behind_camera=False)
image = bpy.data.images.new("Any", 4, 4)
named = []
for colorspace in (SRGB, LINEAR, DATA):
    set_colorspace(image, colorspace)
    named.append(image.colorspace_settings.name)
bpy.ops.worldwarp.match_view()
shown = strips_of(bpy.context.scene)[0].colorspace_settings.name
print("told:", "|".join([*named, shown, bpy.context.scene.view_settings.view_transform]), flush=True)
blender_addon.unregister()
os._exit(0)
"""


def test_a_studio_s_own_colour_management_is_spoken_to_in_its_names(tmp_path: Path) -> None:
    first = write_pictures(tmp_path / "plates", "a", range(1, 3), ".png")
    (tmp_path / "config.ocio").write_text(ACES)
    done = subprocess.run(
        [sys.executable, "-c", IN_A_STUDIO, str(first)],
        cwd=ROOT,
        env={**os.environ, "OCIO": str(tmp_path / "config.ocio")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    srgb = "sRGB - Texture"
    assert f"told: {srgb}|Linear Rec.709 (sRGB)|Raw|{srgb}|Un-tone-mapped" in done.stdout, done.stdout + done.stderr
