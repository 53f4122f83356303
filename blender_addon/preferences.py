# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the server is, how it lets us in, and whether Blender may talk to it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import ClassVar

import bpy
from bpy.props import StringProperty

from engine_bridge.client import DEFAULT_ADDRESS
from engine_bridge.keys import ClientKey, is_loopback, parse_address, read_client_key
from worldwarp_core.errors import WorldWarpError

from . import local_server, server_facts

ERROR_LINE = 80
"""Characters that the Preferences have room for, as wide as they open."""


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

    environment: StringProperty(
        name="Environment",
        description="The folder of the Python environment that you installed WorldWarp into, to start a server on this "
        "machine from here. Nothing is ever installed by the add-on",
        subtype="DIR_PATH",
        default="",
    )
    server_options: StringProperty(
        name="Options",
        description="More options for `worldwarp serve`, such as --engine wan; `worldwarp serve --help` lists them",
        default="",
    )

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split = True
        box = layout.box()
        box.label(text="A Server on This Machine")
        box.prop(self, "environment")
        box.prop(self, "server_options")
        draw_local_server(box)
        box = layout.box()
        box.label(text="A Server That Runs Already")
        box.active = not local_server.address()
        box.prop(self, "address")
        box.prop(self, "key_file")
        draw_connection(layout)


class WORLDWARP_OT_start_server(bpy.types.Operator):
    """Start a server on this machine, from the environment that you installed WorldWarp into; it ends with Blender"""

    bl_idname = "worldwarp.start_server"
    bl_label = "Start Local Server"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        preferences = preferences_of(context)
        if preferences is None or not preferences.environment:
            cls.poll_message_set("Set the folder of the environment that you installed WorldWarp into")
            return False
        return True

    def execute(self, context: bpy.types.Context) -> set[str]:
        preferences = preferences_of(context)
        assert preferences is not None
        try:
            program = local_server.program_in(Path(bpy.path.abspath(preferences.environment)))
            folder = local_server.server_folder(__package__)
            local_server.start(program, folder, preferences.server_options, local_server_changed)
        except WorldWarpError as error:
            server_facts.take(error)
            self.report({"ERROR"}, error.message)
            return {"CANCELLED"}
        return {"FINISHED"}


class WORLDWARP_OT_stop_server(bpy.types.Operator):
    """Stop the local server; a shot that it makes goes on with its next start"""

    bl_idname = "worldwarp.stop_server"
    bl_label = "Stop Local Server"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        if local_server.running() is None:
            cls.poll_message_set("No local server was started from here")
        return local_server.running() is not None

    def execute(self, context: bpy.types.Context) -> set[str]:
        if bpy.app.background:
            local_server.close()
        else:
            local_server.stop()
        return {"FINISHED"}


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


CLASSES = (
    WORLDWARP_preferences,
    WORLDWARP_OT_start_server,
    WORLDWARP_OT_stop_server,
    WORLDWARP_OT_test_connection,
)


def draw_local_server(layout: bpy.types.UILayout) -> None:
    """Draws the button that starts or stops the local server, and how it is."""
    server = local_server.running()
    if server is None or server.process.poll() is not None:
        layout.operator("worldwarp.start_server", icon="PLAY")
    else:
        layout.operator("worldwarp.stop_server", icon="SNAP_FACE")
        words = "Stopping..." if server.stopping else f"Runs at {server.address}" if server.address else "Starting..."
        layout.label(text=words, icon="CHECKMARK" if server.address else "TIME")
    if server is not None and server.words:
        draw_error(layout, server.words)


def local_server_changed() -> None:
    """Asks a server that has just started who it is, and shows how it is."""
    if local_server.address() and not server_facts.known().asking:
        server_facts.begin(local_server.address(), None, redraw_all)
    redraw_all()


def draw_connection(layout: bpy.types.UILayout) -> None:
    """Draws the Test Connection button and what came of it."""
    known = server_facts.known()
    layout.operator("worldwarp.test_connection", text="Asking..." if known.asking else "Test Connection", icon="LINKED")
    if known.facts is not None:
        column = layout.column(align=True)
        for number, line in enumerate(known.facts.in_words()):
            column.label(text=line, icon="CHECKMARK" if number == 0 else "BLANK1")
    if known.error:
        draw_error(layout, known.error)


def draw_error(layout: bpy.types.UILayout, text: str) -> None:
    """Draws what went wrong in whole: what to do about it stands at the end, which one line would cut off."""
    column = layout.column(align=True)
    for number, line in enumerate(textwrap.wrap(text, ERROR_LINE)):
        column.label(text=line, icon="BLANK1" if number else "ERROR")


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
    """Returns the local server's address where one runs, else what the user set, else the default."""
    if local_server.address():
        return local_server.address()
    preferences = preferences_of(context)
    return preferences.address if preferences is not None else DEFAULT_ADDRESS


def connection(context: bpy.types.Context, address: str = "") -> tuple[str, ClientKey | None]:
    """Returns where to connect and the key to show there.

    Args:
        address: in place of the preferences'.

    Raises:
        WorldWarpError: `bad_address`, `offline`, or `bad_keys` for a key file that cannot be taken.
    """
    address = address or server_address(context)
    check_online(address)
    if address == local_server.address():
        # The key file is for a server elsewhere; this one has no keys, and would not be trusted with one.
        return address, None
    preferences = preferences_of(context)
    file = preferences.key_file if preferences is not None else ""
    return address, read_client_key(Path(bpy.path.abspath(file))) if file else None


def check_online(address: str) -> None:
    """Raises `offline` when `address` leaves this machine and Blender was told to stay offline, or `bad_address`."""
    host, _ = parse_address(address)
    if not is_loopback(host) and not bpy.app.online_access:
        raise WorldWarpError(
            "offline",
            f"The server {address} is on another machine and Blender is offline. Switch on Allow Online Access in the "
            "Preferences under System.",
        )
