# SPDX-License-Identifier: GPL-3.0-or-later
"""What Blender is told about: classes, the properties on the scene, and who is called when a file is left.

Both directions may be called twice, and survive a reset of Blender in between.
"""

from __future__ import annotations

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
    for handlers in leaving():
        if close_session not in handlers:
            handlers.append(close_session)
    if take_operators.look_at_takes not in bpy.app.handlers.load_post:
        bpy.app.handlers.load_post.append(take_operators.look_at_takes)
    for handlers in (bpy.app.handlers.undo_pre, bpy.app.handlers.redo_pre):
        if finish_steps not in handlers:
            handlers.append(finish_steps)


def unregister() -> None:
    """Stops what runs and takes back all that is registered, the last first."""
    session.close()
    first_frame.close()
    server_facts.close()
    local_server.close()
    splat_viewport.remove()
    path_overlay.remove()
    cloud_overlay.remove()
    live_view.remove()
    stored_paths.remove()
    for handlers in leaving():
        if close_session in handlers:
            handlers.remove(close_session)
    if take_operators.look_at_takes in bpy.app.handlers.load_post:
        bpy.app.handlers.load_post.remove(take_operators.look_at_takes)
    for handlers in (bpy.app.handlers.undo_pre, bpy.app.handlers.redo_pre):
        if finish_steps in handlers:
            handlers.remove(finish_steps)
    for menu, draw in panel.menus():
        menu.remove(draw)
    properties.remove()
    for cls in reversed(CLASSES):
        if cls.is_registered:
            bpy.utils.unregister_class(cls)


def leaving() -> list[list]:
    """Returns the lists of functions that Blender calls before it leaves a file or ends."""
    names = ("load_pre", "exit_pre")
    return [getattr(bpy.app.handlers, name) for name in names if hasattr(bpy.app.handlers, name)]


@bpy.app.handlers.persistent
def close_session(*_: object) -> None:
    """Lets no thread outlive the file that it works for, and nothing that was found in it."""
    session.close()
    first_frame.close()
    live_view.close()
    path_overlay.show(None)
    cloud_overlay.show(None)
    server_facts.close()
    local_server.close()


@bpy.app.handlers.persistent
def finish_steps(*_: object) -> None:
    """Lets nothing half done be taken away by an undo."""
    session.finish_steps()
