# SPDX-License-Identifier: GPL-3.0-or-later
"""A server on this machine that Blender starts, watches and stops; it installs nothing.

In: the environment that the artist installed WorldWarp into. Out: an address on a free port. The server ends when its
standard input closes, so it goes with Blender even when that crashes; jobs it had begun go on with its next start.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy

from engine_bridge.errors import disk_errors
from worldwarp_core.errors import WorldWarpError, install_command

LOOK_EVERY_S = 0.5
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
LOOPBACK_TIMEOUT_S = 0.5
PROGRAMS = ("bin/worldwarp", "Scripts/worldwarp.exe", ".venv/bin/worldwarp", ".venv/Scripts/worldwarp.exe")


@dataclass
class LocalServer:
    """The server that this Blender has started.

    Attributes:
        address: where it listens; "" while it starts.
        words: what is wrong; "" while nothing is.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    started_s: float
    address: str = ""
    words: str = ""
    stopping: bool = False


_server: LocalServer | None = None
_then: Callable[[], None] | None = None


def program_in(environment: Path) -> Path:
    """Returns the `worldwarp` program of an environment: its folder, a folder around it, or the program itself.

    Raises:
        WorldWarpError: `no_environment`, with what to do.
    """
    if environment.is_file() and environment.stem == "worldwarp":
        return environment
    found = next((file for name in PROGRAMS if (file := environment / name).is_file()), None)
    if found is None:
        raise WorldWarpError(
            "no_environment",
            f"There is no WorldWarp in {environment}: it should hold {PROGRAMS[os.name == 'nt']}. Install it once: in "
            "a terminal, in the folder of WorldWarp's source, python -m venv .venv, then "
            f".venv/{'Scripts' if os.name == 'nt' else 'bin'}/{install_command('engine')}. Then set that folder here.",
        )
    return found


def running() -> LocalServer | None:
    """Returns the server that was started and has not ended; also one whose end has not been looked at yet."""
    return _server


def address() -> str:
    """Returns the address of the server that runs, or nothing."""
    return _server.address if _server is not None and not _server.words and not _server.stopping else ""


def start(program: Path, folder: Path, options: str, then: Callable[[], None]) -> None:
    """Starts a server that keeps its jobs and its log in `folder`; waits for it only in background mode.

    Args:
        options: more for `worldwarp serve`, as in a terminal.
        then: called on the main thread whenever something has changed.

    Raises:
        WorldWarpError: `server_runs`, `bad_settings` for options that cannot be read, `cannot_write` or `disk_full` for
            the folder, `server_not_running`.
    """
    global _server, _then
    if _server is not None and _server.process.poll() is None:
        raise WorldWarpError("server_runs", "The local server runs already: stop it first.")
    more = words_of_options(options)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_alone(folder)
        (folder / "address").unlink(missing_ok=True)
    command = [str(program), "serve", "--port", "0", "--data-dir", str(folder / "jobs")]
    command += ["--ready-file", str(folder / "address"), "--until-stdin-closes", *more]
    # Blender's Python is another one: what it sets for itself would mislead that of the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    hidden: dict[str, Any] = {}
    if sys.platform == "win32":
        hidden = {"creationflags": subprocess.CREATE_NO_WINDOW}
    try:
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, cwd=folder, **hidden
            )
    except OSError as error:
        raise WorldWarpError("server_not_running", f"{program} cannot be run: {error.strerror or error}.") from error
    _server, _then = LocalServer(process, folder, time.monotonic()), then
    if bpy.app.background:
        while _server is not None and not _server.address and not _server.words:
            watch()
            time.sleep(0.05)
        if _server.words:
            raise WorldWarpError("server_not_running", _server.words)
    elif not bpy.app.timers.is_registered(tick):
        bpy.app.timers.register(tick, first_interval=LOOK_EVERY_S, persistent=True)


def words_of_options(options: str, windows: bool = sys.platform == "win32") -> list[str]:
    """Returns the single options, as a terminal of this system reads them: on Windows a backslash is part of a path.

    Raises:
        WorldWarpError: `bad_settings`.
    """
    try:
        words = shlex.split(options, posix=not windows)
    except ValueError as error:
        raise WorldWarpError("bad_settings", f"The server's options cannot be read: {error}.") from error
    # Quotes hold a path with spaces together, and are no part of it.
    return [word.replace('"', "") for word in words] if windows else words


def check_alone(folder: Path) -> None:
    """Raises `server_runs` when another Blender's server keeps its jobs in `folder`: two would spoil each other's."""
    try:
        place = (folder / "address").read_text("utf-8").strip()
        host, port = place.removeprefix("tcp://").rsplit(":", 1)
        socket.create_connection((host, int(port)), LOOPBACK_TIMEOUT_S).close()
    except (OSError, ValueError):
        return
    raise WorldWarpError(
        "server_runs",
        f"Another Blender has started a local server: use it, by setting the server's address to {place}.",
    )


def tick() -> float | None:
    """Looks after the server; returns the seconds to the next look, None when there is no more to look after."""
    if watch() and _then is not None:
        _then()
    return LOOK_EVERY_S if _server is not None and _server.process.poll() is None else None


def watch() -> bool:
    """Brings what is known of the server up to date; returns whether anything has changed."""
    global _server
    if _server is None:
        return False
    before = (_server.address, _server.words)
    code = _server.process.poll()
    if code is not None and _server.stopping:
        _server = None
        return True
    if code is not None:
        _server.address = ""
        _server.words = f"The local server ended (exit code {code}). Its last words: {last_line(_server.folder)}"
    elif not _server.address and (_server.folder / "address").is_file():
        # It may have taken longer than was thought.
        _server.address, _server.words = (_server.folder / "address").read_text("utf-8").strip(), ""
    elif not _server.address and time.monotonic() - _server.started_s > START_TIMEOUT_S:
        _server.words = f"The local server does not start. Its last words: {last_line(_server.folder)}"
    return before != (_server.address, _server.words)


def stop() -> None:
    """Asks the server to end; what it was making goes on with its next start. Waits for nothing."""
    if _server is not None:
        _server.stopping = True
        assert _server.process.stdin is not None
        _server.process.stdin.close()


def close() -> None:
    """Ends the server and waits for it; for unregistering and Blender's exit."""
    global _server
    if bpy.app.timers.is_registered(tick):
        bpy.app.timers.unregister(tick)
    if _server is None:
        return
    stop()
    try:
        _server.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _server.process.kill()
        _server.process.wait()
    _server = None


def last_line(folder: Path) -> str:
    """Returns the last line of the server's log."""
    return ((folder / "server.log").read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]


def server_folder(package: str) -> Path:
    """Returns where the local server keeps its jobs: the extension's own folder, or Blender's for a plain package."""
    try:
        return Path(bpy.utils.extension_path_user(package, path="server", create=True))
    except ValueError:
        return Path(bpy.utils.user_resource("DATAFILES", path="worldwarp", create=True)) / "server"
