# SPDX-License-Identifier: GPL-3.0-or-later
"""What Blender is told about: classes, the properties on the scene, and who is called when a file is left.

Both directions may be called twice, and survive a reset of Blender in between.
"""

from __future__ import annotations

from collections.abc import Callable

import bpy

from . import (
    cloud_overlay,
    first_frame,
    first_frame_operators,
    live_view,
    live_view_operators,
    local_server,
    operators,
    panel,
    path_overlay,
    preferences,
    properties,
    result_operators,
    scale_operators,
    server_facts,
    session,
    shot_operators,
    splat_edit,
    splat_viewport,
    stored_paths,
    take_operators,
)

CLASSES = (
    *properties.CLASSES,
    *preferences.CLASSES,
    *operators.CLASSES,
    *shot_operators.CLASSES,
    *first_frame_operators.CLASSES,
    *take_operators.CLASSES,
    *live_view_operators.CLASSES,
    *scale_operators.CLASSES,
    *panel.CLASSES,
    *result_operators.CLASSES,
    *splat_edit.CLASSES,
)


def register() -> None:
    """Registers all that is not yet registered."""
    for cls in CLASSES:
        if not cls.is_registered:
            bpy.utils.register_class(cls)
    properties.add()
    splat_viewport.add()
    path_overlay.add()
    cloud_overlay.add()
    live_view.add()
    stored_paths.add()
    for menu, draw in panel.menus():
        # Removing what is not there is no fault, and nothing may be in a menu twice.
        menu.remove(draw)
        menu.append(draw)
    for functions, function in handlers():
        if function not in functions:
            functions.append(function)


def unregister() -> None:
    """Stops what runs and takes back all that is registered, the last first."""
    leave_blender()
    splat_viewport.remove()
    path_overlay.remove()
    cloud_overlay.remove()
    live_view.remove()
    stored_paths.remove()
    for functions, function in handlers():
        if function in functions:
            functions.remove(function)
    for menu, draw in panel.menus():
        menu.remove(draw)
    properties.remove()
    for cls in reversed(CLASSES):
        if cls.is_registered:
            bpy.utils.unregister_class(cls)


def handlers() -> list[tuple[list, Callable]]:
    """Returns Blender's lists of functions, and what it should call of ours."""
    lists = bpy.app.handlers
    found: list[tuple[list, Callable]] = [
        (lists.load_pre, leave_file),
        (lists.load_post, take_operators.look_at_takes),
        (lists.undo_pre, finish_steps),
        (lists.redo_pre, finish_steps),
    ]
    # Blenders without this one unregister add-ons when they end.
    return [*found, (lists.exit_pre, leave_blender)] if hasattr(lists, "exit_pre") else found


@bpy.app.handlers.persistent
def leave_file(*_: object) -> None:
    """Lets no thread outlive the file that it works for, and nothing that was found in it. A server is of no file."""
    session.close()
    first_frame.close()
    live_view.close()
    path_overlay.show(None)
    cloud_overlay.show(None)


@bpy.app.handlers.persistent
def leave_blender(*_: object) -> None:
    """Ends all that runs."""
    leave_file()
    server_facts.close()
    local_server.close()


@bpy.app.handlers.persistent
def finish_steps(*_: object) -> None:
    """Lets nothing half done be taken away by an undo."""
    session.finish_steps()
