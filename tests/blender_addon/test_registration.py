"""Registering is safe to repeat, also after Blender was reset."""

from __future__ import annotations

import bpy

import blender_addon
from blender_addon.panel import draw_export_menu, draw_import_menu, menus

OPERATORS = ("export_camera", "import_cameras", "import_splats", "export_splats")


def known() -> set[str]:
    return {name for name in OPERATORS if hasattr(bpy.types, f"WORLDWARP_OT_{name}")}


def test_registering_twice_and_unregistering_twice_is_quiet() -> None:
    for _ in range(2):
        blender_addon.register()
        blender_addon.register()
        assert known() == set(OPERATORS)
        blender_addon.unregister()
        blender_addon.unregister()
        assert known() == set()


def test_the_menus_hold_each_entry_once() -> None:
    def entries() -> int:
        return sum(
            draw in (draw_import_menu, draw_export_menu) for menu, _ in menus() for draw in menu._dyn_ui_initialize()
        )

    blender_addon.register()
    blender_addon.register()
    assert entries() == 2
    blender_addon.unregister()
    assert entries() == 0


def test_each_of_blenders_lists_has_our_functions_once() -> None:
    def ours() -> list[object]:
        lists = (getattr(bpy.app.handlers, name) for name in dir(bpy.app.handlers))
        found = [function for functions in lists if isinstance(functions, list) for function in functions]
        return [function for function in found if function.__module__.startswith("blender_addon")]

    blender_addon.register()
    once = ours()
    assert len(once) >= 7
    blender_addon.register()
    assert ours() == once
    blender_addon.unregister()
    assert ours() == []


def test_a_factory_reset_in_between_changes_nothing() -> None:
    blender_addon.register()
    try:
        bpy.ops.wm.read_factory_settings()
        blender_addon.register()
        assert known() == set(OPERATORS)
        bpy.ops.wm.read_factory_settings()
    finally:
        blender_addon.unregister()
    assert known() == set()
