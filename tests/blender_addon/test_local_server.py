"""A server on this machine: found where the artist says, started, watched and stopped, never installed."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import bpy
import pytest

from blender_addon import local_server, preferences, server_facts
from blender_addon.local_server import words_of_options
from blender_addon.preferences import server_address
from engine_bridge.client import DEFAULT_ADDRESS
from tests.support.ui_recorder import Recorder
from worldwarp_core.errors import WorldWarpError

pytestmark = pytest.mark.usefixtures("addon")
ENVIRONMENT = Path(sys.executable).parents[1]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local_server.LocalServer]:
    """A real server, started as by the button."""
    monkeypatch.setattr(local_server, "START_TIMEOUT_S", 300.0)
    program = local_server.program_in(ENVIRONMENT)
    local_server.start(program, tmp_path / "server", "--no-view", lambda: None)
    server = local_server.running()
    assert server is not None
    yield server
    local_server.close()


def test_the_program_is_found_from_what_an_artist_may_point_to(tmp_path: Path) -> None:
    program = tmp_path / "project/.venv/bin/worldwarp"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    for pointed_to in (program, tmp_path / "project/.venv", tmp_path / "project"):
        assert local_server.program_in(pointed_to) == program
    with pytest.raises(WorldWarpError, match=r"no WorldWarp in .*bin/pip install"):
        local_server.program_in(tmp_path)


def test_it_starts_on_a_free_port_is_used_and_stops(
    started: local_server.LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started.address.startswith("tcp://127.0.0.1:")
    assert server_address(bpy.context) == started.address != DEFAULT_ADDRESS
    facts = server_facts.ask(started.address)
    assert facts.engine == "preview"
    # It belongs to Blender, not to the file that was open when it was started.
    bpy.ops.wm.read_factory_settings(use_empty=True)
    assert started.process.poll() is None
    # A key is for the server that it was made for.
    keyed = SimpleNamespace(key_file="/not/there.key", address="tcp://127.0.0.1:5599")
    monkeypatch.setattr(preferences, "preferences_of", lambda _: keyed)
    assert preferences.connection(bpy.context) == (started.address, None)
    with pytest.raises(WorldWarpError, match=r"there\.key"):
        preferences.connection(bpy.context, keyed.address)
    monkeypatch.undo()
    with pytest.raises(WorldWarpError, match="runs already"):
        local_server.start(Path("worldwarp"), started.folder, "", lambda: None)
    assert bpy.ops.worldwarp.stop_server() == {"FINISHED"}
    assert started.process.poll() is not None
    assert server_address(bpy.context) == DEFAULT_ADDRESS


def test_a_server_that_dies_is_noticed_with_its_last_words(started: local_server.LocalServer) -> None:
    started.process.kill()
    started.process.wait()
    assert local_server.watch()
    assert "The local server ended (exit code -9)" in started.words
    assert local_server.address() == ""
    drawn = Recorder()
    preferences.draw_local_server(drawn)
    assert drawn.operators == ["worldwarp.start_server"]
    assert "last words" in drawn.labels[0]
    assert local_server.tick() is None


def fake_program(folder: Path, script: str) -> Path:
    program = folder / "worldwarp"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    program = fake_program(tmp_path, "import sys; sys.exit('error: no CUDA device')")
    with pytest.raises(WorldWarpError, match="no CUDA device"):
        local_server.start(program, tmp_path / "server", "", lambda: None)
    local_server.close()
    with pytest.raises(WorldWarpError, match="cannot be run"):
        local_server.start(tmp_path / "gone", tmp_path / "server", "", lambda: None)
    with pytest.raises(WorldWarpError, match="cannot be read"):
        local_server.start(program, tmp_path / "server", "--engine 'wan", lambda: None)


def test_blender_s_own_python_settings_do_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    # What it is told and where it writes are its own; here it only says what it sees.
    script = "import os, sys, pathlib; place = sys.argv[sys.argv.index('--ready-file') + 1]\n"
    script += "pathlib.Path(place).write_text(os.environ.get('PYTHONHOME', 'clean')); sys.stdin.read()"
    local_server.start(fake_program(tmp_path, script), tmp_path / "server", "", lambda: None)
    assert local_server.address() == "clean"
    assert "PYTHONHOME" in os.environ
    local_server.close()


def test_a_server_that_starts_late_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, pathlib; place = pathlib.Path(sys.argv[sys.argv.index('--ready-file') + 1]); "
    script += "sys.stdin.readline(); place.write_text('tcp://127.0.0.1:7'); sys.stdin.read()"
    monkeypatch.setattr(local_server, "START_TIMEOUT_S", 0.0)
    with pytest.raises(WorldWarpError, match="does not start"):
        local_server.start(fake_program(tmp_path, script), tmp_path / "server", "", lambda: None)
    server = local_server.running()
    assert server is not None
    server.process.stdin.write(b"now\n")
    server.process.stdin.flush()
    wait_until(lambda: local_server.watch() and local_server.address() != "")
    assert (local_server.address(), server.words) == ("tcp://127.0.0.1:7", "")
    local_server.close()


def test_options_are_read_as_the_system_s_terminal_reads_them() -> None:
    assert words_of_options("--weights '/a b/c' --engine wan", False) == ["--weights", "/a b/c", "--engine", "wan"]
    assert words_of_options('--weights "C:\\a b\\c" --gpus 0', True) == ["--weights", "C:\\a b\\c", "--gpus", "0"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WorldWarpError, match="Cannot write"):
        local_server.start(Path("worldwarp"), tmp_path / "file/server", "", lambda: None)


def test_an_address_that_is_none_is_said_to_be_none() -> None:
    for address in ("gpu-machine", "tcp://[::1", "http://127.0.0.1:5577"):
        with pytest.raises(WorldWarpError, match="An address is tcp://HOST:PORT"):
            preferences.connection(bpy.context, address)


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopping_beside_a_window_waits_for_nothing(started: local_server.LocalServer) -> None:
    # It cannot end before it goes on, so who waits for its end would wait for good.
    started.process.send_signal(signal.SIGSTOP)
    try:
        local_server.stop()
        assert started.process.poll() is None
    finally:
        started.process.send_signal(signal.SIGCONT)
    wait_until(lambda: started.process.poll() is not None)
    assert local_server.watch()
    assert local_server.running() is None


def test_the_preferences_draw_only_what_exists(started: local_server.LocalServer) -> None:
    drawn = Recorder()
    owner = SimpleNamespace(layout=drawn, bl_rna=preferences.WORLDWARP_preferences.bl_rna)
    preferences.WORLDWARP_preferences.draw(owner, bpy.context)
    assert drawn.props == ["environment", "server_options", "address", "key_file"]
    assert drawn.operators == ["worldwarp.stop_server", "worldwarp.test_connection"]
    assert drawn.labels[1] == f"Runs at {started.address}"


def test_the_preferences_say_all_of_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "The server at tcp://127.0.0.1:5577 does not have this key on its list. " * 3
    monkeypatch.setattr(server_facts, "_known", server_facts.Known(error=words))
    drawn = Recorder()
    preferences.draw_connection(drawn)
    assert " ".join(drawn.labels).split() == words.split()
    assert max(len(label) for label in drawn.labels) <= preferences.ERROR_LINE


def test_two_blenders_do_not_share_one_folder(
    started: local_server.LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As another Blender, which knows nothing of the first's server.
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(local_server, "_server", None)
        with pytest.raises(WorldWarpError, match=f"setting the server's address to {started.address}"):
            local_server.start(Path("worldwarp"), started.folder, "", lambda: None)
    local_server.close()
    local_server.check_alone(started.folder)


def test_start_is_grey_without_an_environment() -> None:
    with pytest.raises(RuntimeError, match="Set the folder of the environment"):
        bpy.ops.worldwarp.start_server()
