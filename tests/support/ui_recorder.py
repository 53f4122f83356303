"""Stands in for Blender's UI layout, which needs a window: notes what is drawn, refuses what does not exist."""

from __future__ import annotations

from typing import Any

import bpy


class Recorder:
    """A `bpy.types.UILayout` whose rows and columns are all itself.

    Attributes:
        operators: ids of the buttons, in the order in which they were drawn.
        labels: texts, in that order.
        props: names of the settings.
        icons: of the settings that `prop` drew, "" where there is none.
    """

    def __init__(self) -> None:
        self.operators: list[str] = []
        self.labels: list[str] = []
        self.props: list[str] = []
        self.icons: list[object] = []

    def _same(self, **_: object) -> Recorder:
        return self

    row = column = box = split = _same

    def prop(self, owner: bpy.types.bpy_struct, name: str, **options: object) -> None:
        assert name in owner.bl_rna.properties, name
        check_options("prop", options)
        self.props.append(name)
        self.icons.append(options.get("icon", ""))

    def template_ID(self, owner: bpy.types.bpy_struct, name: str, **options: object) -> None:
        assert owner.bl_rna.properties[name].type == "POINTER", name
        check_options("template_ID", options)
        self.props.append(name)

    def template_list(
        self, kind: str, _: str, owner: object, name: str, active: object, index: str, **__: object
    ) -> None:
        assert hasattr(bpy.types, kind), kind
        assert owner.bl_rna.properties[name].type == "COLLECTION"
        assert active.bl_rna.properties[index].type == "INT"
        self.props.append(name)

    def operator(self, name: str, **options: object) -> OperatorProperties:
        check_options("operator", options)
        self.operators.append(name)
        return OperatorProperties(name)

    def menu(self, name: str, **_: object) -> None:
        assert hasattr(bpy.types, name), name

    def label(self, text: str, **_: object) -> None:
        self.labels.append(text)

    def separator(self, **_: object) -> None:
        pass

    def progress(self, factor: float, text: str) -> None:
        assert 0 <= factor <= 1
        self.labels.append(text)


class OperatorProperties:
    """What a button's operator will be called with; takes only properties that it has."""

    def __init__(self, name: str) -> None:
        module, _, function = name.partition(".")
        self.__dict__["known"] = getattr(getattr(bpy.ops, module), function).get_rna_type().properties

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.known, name


def check_options(function: str, options: dict[str, object]) -> None:
    """Raises where Blender's own layout has no such argument, or no such icon."""
    parameters = bpy.types.UILayout.bl_rna.functions[function].parameters
    assert set(options) <= set(parameters.keys()), options
    if "icon" in options:
        assert options["icon"] in parameters["icon"].enum_items, options["icon"]
