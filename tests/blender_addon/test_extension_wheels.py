"""The libraries that the extension bundles for the client: those that it imports, at the versions that were tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from blender_addon import build

CONSTRAINTS = """
# tested together
attrs==26.1.0
cattrs==26.2.1 ; python_version >= "3.11"
msgpack==1.2.4  # a comment
Typing.Extensions==4.16.0
numpy>=1.26
"""


def test_wheels_are_asked_for_at_the_versions_of_the_constraints() -> None:
    assert build.pinned({"msgpack", "attrs", "typing_extensions", "cattrs"}, CONSTRAINTS) == [
        "attrs==26.1.0",
        "cattrs==26.2.1",
        "msgpack==1.2.4",
        "typing_extensions==4.16.0",
    ]


def test_a_version_that_is_left_open_stops_the_build() -> None:
    with pytest.raises(build.BuildError, match="no version of numpy, pyzmq,"):
        build.pinned({"msgpack", "pyzmq", "numpy"}, CONSTRAINTS)


def test_pip_is_given_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text(CONSTRAINTS)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    asked: list[list[str]] = []

    class Done:
        returncode = 0

    def run(command: list[str], **_: object) -> Done:
        asked.append(command)
        return Done()

    monkeypatch.setattr(build.subprocess, "run", run)
    build.download_wheels(tmp_path, {"msgpack", "attrs"}, "linux-x64")
    assert len(asked) == len(build.PYTHONS)
    for command in asked:
        assert command[-2:] == ["attrs==26.1.0", "msgpack==1.2.4"]


def test_nothing_is_bundled_that_the_client_does_not_import() -> None:
    sources = [file for file in sorted(build.ADDON.glob("*.py")) if file.name not in build.LEFT_OUT]
    modules, _ = build.client_modules(sources)
    imported = {name.partition(".")[0] for file in (*sources, *modules.values()) for name in build.imported_names(file)}
    # cattrs needs the other two of its row; they are imported by the client itself or by it.
    assert set(build.BUNDLED) - imported <= {"attr", "typing_extensions"}
