# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the server is, and whether Blender may talk to it."""

from __future__ import annotations

from urllib.parse import urlsplit

import bpy
from bpy.props import StringProperty

from engine_bridge.client import DEFAULT_ADDRESS
from worldwarp_core.errors import WorldWarpError

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

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.prop(self, "address")


CLASSES = (WORLDWARP_preferences,)


def server_address(context: bpy.types.Context) -> str:
    """Returns the address that the user set, or the default where the add-on runs without preferences."""
    addon = context.preferences.addons.get(__package__)
    return addon.preferences.address if addon is not None and addon.preferences is not None else DEFAULT_ADDRESS


def check_online(address: str) -> None:
    """Raises `offline` when `address` leaves this machine and Blender was told to stay offline."""
    if urlsplit(address).hostname not in LOOPBACK and not bpy.app.online_access:
        raise WorldWarpError(
            "offline",
            f"The server {address} is on another machine and Blender is offline. Switch on Allow Online Access in the "
            "Preferences under System.",
        )
