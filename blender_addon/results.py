# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings a shot into the scene: behind the camera, in the sequencer, in the compositor, and as splats.

In: a shot's folder (frames/, depth/, mask/ with the frame number at the end of each name, splats.ply), finished or not.
Bringing the same folder in again replaces what it brought in before, so that a shot can be shown while it grows. What
the scene renders stays as it was: pictures are shown, not mixed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.files import read_splats

from .splats import add_splat_objects

SOURCE = "worldwarp_source"
"""Custom property of all that is brought in: the folder or file it shows."""


@dataclass(frozen=True)
class Sequence:
    """Numbered pictures of one kind.

    Attributes:
        files: frame number -> file, in rising order.
        colorspace: "sRGB" or "Non-Color".
    """

    files: dict[int, Path]
    colorspace: str

    @property
    def first(self) -> int:
        return min(self.files)

    @property
    def last(self) -> int:
        return max(self.files)

    def held(self) -> list[Path]:
        """Returns one file for every scene frame from first to last: where a number has none, the one before it."""
        shown, latest = [], self.files[self.first]
        for frame in range(self.first, self.last + 1):
            latest = self.files.get(frame, latest)
            shown.append(latest)
        return shown


def bring_in(context: bpy.types.Context, directory: Path) -> list[str]:
    """Brings in all that the shot's folder holds; returns what was made, in words.

    Raises:
        WorldWarpError: `missing_file` when the folder holds no results.
    """
    if not directory.is_dir():
        raise WorldWarpError("missing_file", f"There is no folder {directory}.")
    made = []
    if (directory / "frames").is_dir():
        made += bring_in_frames(context, directory)
    if (directory / "splats.ply").is_file():
        made.append(f'splats "{bring_in_splats(context, directory / "splats.ply").name}"')
    if not made:
        raise WorldWarpError(
            "missing_file", f"{directory} holds no results: it needs frames/ with numbered PNG files, or splats.ply."
        )
    return made


def bring_in_frames(context: bpy.types.Context, directory: Path) -> list[str]:
    """Shows the frames delivered so far behind the scene's camera, in the sequencer and in the compositor."""
    frames = find_sequence(directory / "frames", ".png", "sRGB")
    if frames is None:
        return []
    made = []
    if context.scene.camera is not None:
        show_behind_camera(context.scene.camera, frames)
        made.append(f'background of "{context.scene.camera.name}"')
    add_strip(context.scene, directory.name, frames)
    made.append("sequencer strip")
    depth = find_sequence(directory / "depth", ".exr", "Non-Color")
    mask = find_sequence(directory / "mask", ".png", "Non-Color")
    kinds = {"Frames": frames, "Depth": depth, "Mask": mask}
    add_nodes(context.scene, directory, {kind: found for kind, found in kinds.items() if found is not None})
    made.append("compositor nodes")
    return made


def bring_in_splats(context: bpy.types.Context, file: Path) -> bpy.types.Object:
    """Returns the splats of `file` as an object; the object of an earlier state of the file is filled anew."""
    cloud = read_splats(file)
    earlier = next((thing for thing in context.scene.objects if thing.get(SOURCE) == str(file)), None)
    made = add_splat_objects(context, file.parent.name, cloud, replacing=earlier)
    made[SOURCE] = str(file)
    return made


def find_sequence(folder: Path, suffix: str, colorspace: str) -> Sequence | None:
    """Returns the numbered files of a folder, or None where there is none.

    Frames below 0 (frame_-003.png) are left out: Blender's image sequences do not count below it.
    """
    files = {}
    for file in folder.glob(f"*{suffix}") if folder.is_dir() else ():
        if (match := re.fullmatch(r"(?:.*[^-\d])?(\d+)", file.stem)) is not None:
            files[int(match[1])] = file
    return Sequence(dict(sorted(files.items())), colorspace) if files else None


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


def sequence_image(frames: Sequence) -> bpy.types.Image:
    """Returns the image data-block that plays `frames`, the existing one where the scene has it already."""
    first = frames.files[frames.first]
    source = str(first.parent)
    image = next((image for image in bpy.data.images if image.get(SOURCE) == source), None)
    if image is None:
        image = bpy.data.images.load(str(first))
        image.name = f"{first.parent.parent.name} {first.parent.name}"
        image[SOURCE] = source
    # Setting what is set already would make Blender load the pictures anew.
    settle(image, filepath=stored_path(first), source="SEQUENCE")
    settle(image.colorspace_settings, name=frames.colorspace)
    return image


def time_sequence(user: Any, frames: Sequence) -> None:
    """Makes an image user, or an image node, show the file whose number is the scene's frame."""
    settle(
        user,
        frame_start=frames.first,
        frame_offset=frames.first - 1,
        frame_duration=frames.last - frames.first + 1,
        use_auto_refresh=True,
    )


def settle(owner: Any, **values: Any) -> None:
    """Sets those attributes of a Blender struct that have another value."""
    for name, value in values.items():
        if getattr(owner, name) != value:
            setattr(owner, name, value)


def add_strip(scene: bpy.types.Scene, name: str, frames: Sequence) -> Any:
    """Returns the sequencer strip that plays `frames` in place; a strip of the same files gives way.

    A sequencer that was empty stays out of the render, so that rendering the scene still renders the scene.
    """
    editor = scene.sequence_editor or scene.sequence_editor_create()
    # Blender 5.0 dropped the old name.
    strips = editor.strips if hasattr(editor, "strips") else editor.sequences
    shown = frames.held()
    source = str(shown[0].parent)
    for strip in [strip for strip in strips if strip.get(SOURCE) == source]:
        strips.remove(strip)
    if len(strips) == 0:
        scene.render.use_sequencer = False
    strip = strips.new_image(
        name=name,
        filepath=stored_path(shown[0]),
        channel=1 + max((strip.channel for strip in strips), default=0),
        frame_start=frames.first,
        fit_method="FIT",
    )
    for file in shown[1:]:
        strip.elements.append(file.name)
    strip[SOURCE] = source
    strip.colorspace_settings.name = frames.colorspace
    return strip


def add_nodes(scene: bpy.types.Scene, directory: Path, sequences: dict[str, Sequence]) -> Any:
    """Returns the compositor frame that holds one image node for each of `sequences`, ready to be linked."""
    tree = compositor_tree(scene)
    source = str(directory)
    for node in [node for node in tree.nodes if node.get(SOURCE) == source]:
        tree.nodes.remove(node)
    frame = tree.nodes.new("NodeFrame")
    frame.label = f"WorldWarp: {directory.name}"
    frame[SOURCE] = source
    for row, (kind, frames) in enumerate(sequences.items()):
        node = tree.nodes.new("CompositorNodeImage")
        node.image = sequence_image(frames)
        node.label = kind
        node.parent = frame
        node.location = (-600.0, 300.0 - 340.0 * row)
        node[SOURCE] = source
        time_sequence(node, frames)
    return frame


def compositor_tree(scene: bpy.types.Scene) -> Any:
    """Returns the scene's compositor tree; a new one passes the render through."""
    if not hasattr(scene, "compositing_node_group"):
        # Up to Blender 4.5 this makes a tree that passes the render through.
        scene.use_nodes = True
        return scene.node_tree
    if scene.compositing_node_group is None:
        tree = bpy.data.node_groups.new("Compositing", "CompositorNodeTree")
        tree.interface.new_socket(name="Image", in_out="OUTPUT", socket_type="NodeSocketColor")
        layers, output = tree.nodes.new("CompositorNodeRLayers"), tree.nodes.new("NodeGroupOutput")
        layers.location, output.location = (-200.0, 0.0), (200.0, 0.0)
        layers.scene = scene
        tree.links.new(layers.outputs["Image"], output.inputs["Image"])
        scene.compositing_node_group = tree
    return scene.compositing_node_group


def stored_path(file: Path) -> str:
    """Returns `file` as the .blend stores it: relative to it where it has been saved, so that both can move."""
    if not bpy.data.filepath:
        return str(file)
    try:
        return bpy.path.relpath(str(file))
    except ValueError:
        # Another drive on Windows.
        return str(file)
