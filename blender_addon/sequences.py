# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbered pictures: found on disk, and shown behind a camera and in the sequencer, each at its own scene frame.

Showing the same folder again brings what shows it up to date, so that a sequence can be watched while it grows.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy

from worldwarp_core.errors import WorldWarpError

from .stored_paths import mark_source, source_of, stored_path, strips_of

SRGB, LINEAR, DATA = "sRGB", "Linear Rec.709", "Non-Color"
ELSEWHERE = {
    SRGB: ("sRGB - Texture", "sRGB Encoded Rec.709 (sRGB)", "Utility - sRGB - Texture"),
    LINEAR: ("Linear Rec.709 (sRGB)", "Utility - Linear - sRGB"),
    DATA: ("Raw", "Utility - Raw"),
}
"""What other colour managements call these spaces: studios bring their own (OCIO), mostly that of ACES."""
MAX_CHANNEL = 128
"""Of Blender's sequencer."""
LINEAR_SUFFIXES = (".exr", ".hdr")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".tga", ".dpx", *LINEAR_SUFFIXES)


@dataclass(frozen=True)
class Sequence:
    """Numbered pictures of one kind.

    Attributes:
        files: the number in its name -> file, in rising order.
        colorspace: `SRGB`, `LINEAR` or `DATA`.
        shift: what is added to a file's number to get the scene frame that shows it.
    """

    files: dict[int, Path]
    colorspace: str
    shift: int = 0

    @property
    def first(self) -> int:
        """The scene frame of the first file."""
        return min(self.files) + self.shift

    @property
    def last(self) -> int:
        """The scene frame of the last file."""
        return max(self.files) + self.shift

    @property
    def first_file(self) -> Path:
        return self.files[min(self.files)]

    def held(self) -> list[Path]:
        """Returns one file for every scene frame from first to last: where a number has none, the one before it."""
        shown, latest = [], self.first_file
        for number in range(min(self.files), max(self.files) + 1):
            latest = self.files.get(number, latest)
            shown.append(latest)
        return shown


def find_sequence(folder: Path, suffix: str, colorspace: str) -> Sequence | None:
    """Returns the numbered files of a folder, or None where there is none.

    Frames below 0 (frame_-003.png) are left out: Blender's image sequences do not count below it.
    """
    files = {}
    for file in folder.glob(f"*{suffix}") if folder.is_dir() else ():
        if (found := name_and_number(file)) is not None:
            files[found[1]] = file
    return Sequence(dict(sorted(files.items())), colorspace) if files else None


def sequence_with(file: Path) -> Sequence:
    """Returns the sequence that a picture belongs to: all in its folder whose names differ from its in the number.

    Raises:
        WorldWarpError: `missing_file` where there is no such file, `bad_image` where it is no picture or its name has
            no number.
    """
    if not file.is_file():
        raise WorldWarpError("missing_file", f"There is no file {file}. Pick one picture of the sequence.")
    if file.suffix.lower() not in PICTURE_SUFFIXES:
        raise WorldWarpError(
            "bad_image", f"{file.name} is no picture of a sequence; those end in {', '.join(PICTURE_SUFFIXES)}."
        )
    found = name_and_number(file)
    if found is None:
        raise WorldWarpError(
            "bad_image", f"{file.name} has no number at the end of its name, such as name_0001{file.suffix}."
        )
    files = {}
    for other in file.parent.iterdir():
        named = name_and_number(other)
        if other.suffix == file.suffix and named is not None and named[0] == found[0]:
            files[named[1]] = other
    return Sequence(dict(sorted(files.items())), LINEAR if file.suffix.lower() in LINEAR_SUFFIXES else SRGB)


def name_and_number(file: Path) -> tuple[str, int] | None:
    """Returns what comes before the number at the end of a file's name, and that number; None without one."""
    match = re.fullmatch(r"((?:.*[^-\d])?)(\d+)", file.stem)
    return (match[1], int(match[2])) if match is not None else None


def sequence_image(frames: Sequence) -> bpy.types.Image:
    """Returns the image data-block that plays `frames`, the existing one where the scene has it already."""
    first = frames.first_file
    shown = (image for image in bpy.data.images if source_of(image) == first.parent)
    image = next((image for image in shown if _of_one(image.filepath, first)), None)
    if image is None:
        image = bpy.data.images.load(str(first))
        image.name = f"{first.parent.parent.name} {first.parent.name}"
        mark_source(image, first.parent)
    # Setting what is set already would make Blender load the pictures anew.
    settle(image, filepath=stored_path(first), source="SEQUENCE")
    set_colorspace(image, frames.colorspace)
    return image


def set_colorspace(owner: Any, colorspace: str) -> None:
    """Says in which of our three spaces an image or a strip is.

    Where the colour management has it by no name that is known, Blender's own guess by the kind of file stays.
    """
    for name in (colorspace, *ELSEWHERE[colorspace]):
        with suppress(TypeError):
            settle(owner.colorspace_settings, name=name)
            return


def _of_one(name: str, file: Path) -> bool:
    """Returns whether a file's name differs from that of `file` in its number alone."""
    shown, wanted = name_and_number(Path(bpy.path.basename(name))), name_and_number(file)
    return shown is not None and wanted is not None and shown[0] == wanted[0]


def time_sequence(user: Any, frames: Sequence) -> None:
    """Makes an image user, or an image node, show each file at its scene frame."""
    settle(
        user,
        frame_start=frames.first,
        frame_offset=frames.first - frames.shift - 1,
        frame_duration=frames.last - frames.first + 1,
        use_auto_refresh=True,
    )


def settle(owner: Any, **values: Any) -> None:
    """Sets those attributes of a Blender struct that have another value."""
    for name, value in values.items():
        if getattr(owner, name) != value:
            setattr(owner, name, value)


def show_behind_camera(camera: bpy.types.Object, frames: Sequence) -> bpy.types.CameraBackgroundImage:
    """Returns the camera's background that shows `frames`, each at its own scene frame."""
    image = sequence_image(frames)
    backgrounds = camera.data.background_images
    shown = next((background for background in backgrounds if background.image == image), None)
    if shown is None:
        shown = backgrounds.new()
        shown.image = image
        shown.alpha = 1.0
        shown.frame_method = "STRETCH"
        # Behind the scene's own surfaces nothing of it would be seen; the artist may put it there.
        shown.display_depth = "FRONT"
    time_sequence(shown.image_user, frames)
    settle(camera.data, show_background_images=True)
    return shown


def add_strip(scene: bpy.types.Scene, name: str, frames: Sequence) -> Any:
    """Returns the sequencer strip that plays `frames` in place; a strip of the same files gives way.

    A sequencer that was empty stays out of the render, so that rendering the scene still renders the scene.
    """
    if scene.sequence_editor is None:
        scene.sequence_editor_create()
    strips = strips_of(scene)
    shown = frames.held()
    folder = shown[0].parent
    channel = 1 + max((strip.channel for strip in strips), default=0)
    for strip in [strip for strip in strips if source_of(strip) == folder]:
        if _of_one(strip.elements[0].filename, shown[0]):
            # Not a new one each time: there are not many.
            channel = strip.channel
            strips.remove(strip)
    if len(strips) == 0:
        scene.render.use_sequencer = False
    strip = strips.new_image(
        name=name,
        filepath=stored_path(shown[0]),
        channel=min(channel, MAX_CHANNEL),
        frame_start=frames.first,
        fit_method="FIT",
    )
    for file in shown[1:]:
        strip.elements.append(file.name)
    mark_source(strip, folder)
    set_colorspace(strip, frames.colorspace)
    return strip
