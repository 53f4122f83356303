# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths that a .blend keeps: relative to it wherever it lies, so that it can move together with its folder.

Blender does this for the images and strips that it knows. What is ours to keep right are the take list's folders and
the mark that everything brought in carries: the folder or file that it shows. They are rewritten for the place that a
file is about to be saved to, and, where only a copy was saved there, back again. Assets go to other files without
their folder: what they say is absolute, so that no other file takes it for a folder of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bpy

SOURCE = "worldwarp_source"
"""Custom property of all that is brought in: the folder or file it shows, as `stored_path` writes it."""


def stored_path(file: Path, blend: str | None = None) -> str:
    """Returns `file` as the .blend stores it: relative to it where it has been saved, else absolute.

    Args:
        blend: the .blend's own path; None takes that of the file in front.
    """
    blend = bpy.data.filepath if blend is None else blend
    if not blend:
        return str(file)
    try:
        relative = bpy.path.relpath(str(file), start=os.path.dirname(blend))
        # Windows writes a/b as a\b, which no other system reads; / all of them do.
        return relative.replace("\\", "/") if os.sep == "\\" else relative
    except ValueError:
        # Another drive on Windows.
        return str(file)


def resolved_path(stored: str, blend: str | None = None) -> Path:
    """Returns the absolute path that `stored_path` wrote, or that an artist picked on any system."""
    if stored.startswith("//"):
        stored = "//" + stored[2:].replace("\\", "/")
    start = os.path.dirname(blend) if blend else None
    return Path(os.path.normpath(bpy.path.abspath(stored, start=start)))


def mark_source(owner: Any, source: Path) -> None:
    """Marks what shows the folder or file `source`."""
    owner[SOURCE] = stored_path(source)


def source_of(owner: Any) -> Path | None:
    """Returns the folder or file that `owner` shows, or None where it is none of ours."""
    stored = owner.get(SOURCE) if owner is not None else None
    if not isinstance(stored, str):
        return None
    # What is linked from another file is relative to that.
    library = getattr(owner, "library", None)
    return resolved_path(stored, bpy.path.abspath(library.filepath) if library is not None else None)


def add() -> None:
    """Has Blender call the two functions below around every save."""
    for handlers, function in _handlers():
        if function not in handlers:
            handlers.append(function)


def remove() -> None:
    """Has Blender call them no more."""
    for handlers, function in _handlers():
        if function in handlers:
            handlers.remove(function)


@bpy.app.handlers.persistent
def before_saving(target: str, *_: object) -> None:
    """Writes all paths of ours for the place that is saved to; Blender gives "" for its startup file."""
    if target:
        _rewrite(bpy.data.filepath, target)


@bpy.app.handlers.persistent
def after_saving(target: str, *_: object) -> None:
    """Writes them for the file that is in front now: the saved one, unless that was a copy, or could not be saved."""
    if target and target != bpy.data.filepath:
        _rewrite(target, bpy.data.filepath)


def _handlers() -> list[tuple[list, Callable]]:
    handlers = bpy.app.handlers
    after = (handlers.save_post, handlers.save_post_fail)
    return [(handlers.save_pre, before_saving), *((list_of, after_saving) for list_of in after)]


def _rewrite(before: str, after: str) -> None:
    for owner, name in _stored():
        earlier = owner[name] if name == SOURCE else getattr(owner, name)
        # A relative path without a file to be relative to means nothing.
        if not earlier or (earlier.startswith("//") and not before):
            continue
        path = resolved_path(earlier, before)
        later = str(path) if getattr(owner, "asset_data", None) is not None else stored_path(path, after)
        if later != earlier:
            if name == SOURCE:
                owner[name] = later
            else:
                setattr(owner, name, later)


def _stored() -> Iterator[tuple[Any, str]]:
    """Yields each owner of a path of ours with the name of the property."""
    # Linked from another file, they are that file's to write.
    marked: list[Any] = [thing for thing in (*bpy.data.images, *bpy.data.objects) if thing.library is None]
    for scene in (scene for scene in bpy.data.scenes if scene.library is None):
        marked += strips_of(scene)
        tree = scene.compositing_node_group if hasattr(scene, "compositing_node_group") else scene.node_tree
        marked += tree.nodes if tree is not None else ()
        yield from ((take, "directory") for take in scene.worldwarp.takes)
        yield scene.worldwarp, "shown_take"
        yield scene.worldwarp, "earlier_take"
    yield from ((owner, SOURCE) for owner in marked if isinstance(owner.get(SOURCE), str))


def strips_of(scene: bpy.types.Scene) -> Any:
    """Returns the scene's sequencer strips; an empty list where it has no sequencer."""
    editor = scene.sequence_editor
    if editor is None:
        return []
    # Blender 5.0 dropped the old name.
    return editor.strips if hasattr(editor, "strips") else editor.sequences
