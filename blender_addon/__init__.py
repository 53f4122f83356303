# SPDX-License-Identifier: GPL-3.0-or-later
"""WorldWarp for Blender: fly an animated camera through a world that does not exist yet.

A thin client: it exports cameras, renders the start frame, talks to a WorldWarp server through `engine_bridge.client`
and brings frames and splats back into the scene. Never torch.
"""

from __future__ import annotations


def register() -> None:
    """Registers everything; safe to call again, also after Blender was reset."""
    from . import registration

    registration.register()


def unregister() -> None:
    """Takes everything back; safe to call again."""
    from . import registration

    registration.unregister()
