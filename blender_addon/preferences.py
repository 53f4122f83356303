# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the server is, how it lets us in, and whether Blender may talk to it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import bpy
from bpy.props import StringProperty

from engine_bridge.client import DEFAULT_ADDRESS
from engine_bridge.keys import ClientKey, read_client_key
from worldwarp_core.errors import WorldWarpError

from . import server_facts

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class WORLDWARP_preferences(bpy.types.AddonPreferences):
    """Settings of the add-on on this machine, for every file"""

    # The extension's own name differs by repository; the plain package has one too.
    bl_idname = __package__

    address: StringProperty(
        name="Server",
        description="Address of the WorldWarp server; `worldwarp serve` prints it when it starts",
        default=DEFAULT_ADDRESS,
    )
    key_file: StringProperty(
        name="Key File",
        description="Lets you in at a server on another machine: the file that `worldwarp keys client` made. A server "
        "on this machine needs none",
        subtype="FILE_PATH",
        default="",
    )

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split = True
        layout.prop(self, "address")
        layout.prop(self, "key_file")
        draw_connection(layout)


class WORLDWARP_OT_test_connection(bpy.types.Operator):
    """Ask the server who it is, what it runs on, and which presets it knows"""

    bl_idname = "worldwarp.test_connection"
    bl_label = "Test Connection"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if server_facts.known().asking:
            cls.poll_message_set("The server is being asked already")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        try:
            address, key = connection(context)
            if bpy.app.background:
                server_facts.take(server_facts.ask(address, key))
            else:
                server_facts.begin(address, key, redraw_all)
        except WorldWarpError as error:
            server_facts.take(error)
            self.report({"ERROR"}, error.message)
            return {"CANCELLED"}
        return {"FINISHED"}


CLASSES = (WORLDWARP_preferences, WORLDWARP_OT_test_connection)


def draw_connection(layout: bpy.types.UILayout) -> None:
    """Draws the Test Connection button and what came of it."""
    known = server_facts.known()
    layout.operator("worldwarp.test_connection", text="Asking..." if known.asking else "Test Connection", icon="LINKED")
    if known.facts is not None:
        column = layout.column(align=True)
        for number, line in enumerate(known.facts.in_words()):
            column.label(text=line, icon="CHECKMARK" if number == 0 else "BLANK1")
    if known.error:
        layout.label(text=known.error, icon="ERROR")


def redraw_all() -> None:
    """Draws every editor again; a rare event may cost that much."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            area.tag_redraw()


def preferences_of(context: bpy.types.Context) -> WORLDWARP_preferences | None:
    """Returns the add-on's preferences; None where it runs without, as a plain package."""
    addon = context.preferences.addons.get(__package__)
    return addon.preferences if addon is not None else None


def server_address(context: bpy.types.Context) -> str:
    """Returns the address that the user set, or the default where the add-on runs without preferences."""
    preferences = preferences_of(context)
    return preferences.address if preferences is not None else DEFAULT_ADDRESS


def connection(context: bpy.types.Context, address: str = "") -> tuple[str, ClientKey | None]:
    """Returns where to connect and the key to show there.

    Args:
        address: in place of the preferences'.

    Raises:
        WorldWarpError: `offline`, or `bad_keys` for a key file that cannot be taken.
    """
    address = address or server_address(context)
    check_online(address)
    preferences = preferences_of(context)
    file = preferences.key_file if preferences is not None else ""
    return address, read_client_key(Path(bpy.path.abspath(file))) if file else None


def check_online(address: str) -> None:
    """Raises `offline` when `address` leaves this machine and Blender was told to stay offline."""
    if urlsplit(address).hostname not in LOOPBACK and not bpy.app.online_access:
        raise WorldWarpError(
            "offline",
            f"The server {address} is on another machine and Blender is offline. Switch on Allow Online Access in the "
            "Preferences under System.",
        )
