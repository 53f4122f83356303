"""Files that are whole or not there, also while somebody looks at them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from worldwarp_core import atomic_write as module
from worldwarp_core.atomic_write import atomic_write
from worldwarp_core.errors import WorldWarpError


@pytest.mark.parametrize("held_for", [0, 2, 99])
def test_windows_waits_a_moment_for_who_reads_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_for: int
) -> None:
    path = tmp_path / "frame.png"
    path.write_text("before")
    replace, tries = os.replace, []

    def replace_unless_read(source: Path, target: Path) -> None:
        tries.append(source)
        if len(tries) <= held_for:
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        replace(source, target)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "replace", replace_unless_read)
    monkeypatch.setattr(module, "WAITS_S", (0.0, 0.0, 0.0))
    if held_for == 99:
        with pytest.raises(WorldWarpError, match="Cannot write"), atomic_write(path) as partial:
            partial.write_text("after")
        assert path.read_text() == "before"
    else:
        with atomic_write(path) as partial:
            partial.write_text("after")
        assert path.read_text() == "after"
    assert [file.name for file in tmp_path.iterdir()] == ["frame.png"]


def test_elsewhere_what_is_forbidden_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(WorldWarpError, match="Cannot write"), atomic_write(tmp_path / "taken") as partial:
        partial.write_text("a file where a folder is")
    assert list((tmp_path / "taken").iterdir()) == []
