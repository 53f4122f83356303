"""A real Blender (`bpy`) in this process, emptied before every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

bpy = pytest.importorskip("bpy", reason="needs Blender as a Python module (the `blender` extra)")


@pytest.fixture(autouse=True)
def empty_scene() -> None:
    """Gives each test Blender's factory settings without objects."""
    bpy.ops.wm.read_factory_settings(use_empty=True)


@pytest.fixture
def addon() -> Iterator[None]:
    """Registers the add-on for one test; a timer left registered would hang Blender at exit."""
    import blender_addon

    blender_addon.register()
    yield
    blender_addon.unregister()


@pytest.fixture
def camera() -> bpy.types.Object:
    """Returns a camera at the origin that films the scene."""
    made = bpy.data.objects.new("Hero Camera", bpy.data.cameras.new("Hero Camera"))
    bpy.context.scene.collection.objects.link(made)
    bpy.context.scene.camera = made
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 1, 3
    return made
