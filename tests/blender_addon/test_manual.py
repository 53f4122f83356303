"""The manual speaks of what there is: its pictures are there, and what it calls by name is called that in Blender."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import blender_addon
from blender_addon.registration import CLASSES

pytestmark = pytest.mark.usefixtures("addon")
FOLDER = Path(blender_addon.__file__).parent
MANUAL = (FOLDER / "MANUAL.md").read_text(encoding="utf-8")

OF_BLENDER = {"N", "Render", "Image", "Text", "WorldWarp", "From Frame N", "Another"}
"""Tabs, choices, keys, and buttons whose text depends on what they would do."""
WORDS = {"server", "take"}
"""What is explained, not named."""


def names_in_blender() -> set[str]:
    """Returns the labels of all that the add-on adds: panels, buttons and settings."""
    names = {prop.name for cls in CLASSES for prop in cls.bl_rna.properties}
    return names | {getattr(cls, "bl_label", "") for cls in CLASSES}


def test_what_the_manual_names_is_named_so_in_blender() -> None:
    named = {re.sub(r"^\d\. |\.$", "", name) for name in re.findall(r"\*\*(.+?)\*\*", MANUAL)}
    assert named - names_in_blender() - OF_BLENDER - WORDS == set()


def test_the_manuals_pictures_are_there_and_no_others() -> None:
    linked = re.findall(r"!\[.+?\]\(manual/(.+?)\)", MANUAL)
    assert sorted(linked) == sorted(file.name for file in (FOLDER / "manual").iterdir())
    for name in linked:
        with Image.open(FOLDER / "manual" / name) as picture:
            picture.load()
            assert picture.width >= 384
