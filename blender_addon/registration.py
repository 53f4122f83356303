# SPDX-License-Identifier: GPL-3.0-or-later
"""What Blender is told about: classes, and the properties on the scene. Both directions may be called twice."""

from __future__ import annotations

import bpy

from . import operators

CLASSES = (*operators.CLASSES,)


def register() -> None:
    """Registers every class that is not yet registered."""
    for cls in CLASSES:
        if not cls.is_registered:
            bpy.utils.register_class(cls)


def unregister() -> None:
    """Unregisters every class that is registered, the last one first."""
    for cls in reversed(CLASSES):
        if cls.is_registered:
            bpy.utils.unregister_class(cls)
