"""A server of one's own for one command: started on a free port of this machine, gone when the command is.

The server stops when its standard input closes, so it goes even when the command that started it is killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BridgeError, disk_errors

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class OwnServer:
    """A server that this process has started."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raises `server_gone`, with the last line of its log, once the server's process has ended."""
        code = self.process.poll()
        if code is not None:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            raise BridgeError(
                "server_gone",
                f"The server that was started for this ended unexpectedly ({how}); its last words: "
                f"{_last_line(self.log)}",
            )


@contextmanager
def private_server(folder: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Yields the address of an `own_server`."""
    with own_server(folder, options) as server:
        yield server.address


@contextmanager
def own_server(folder: Path, options: Sequence[str] = ()) -> Iterator[OwnServer]:
    """Yields a server that keeps its jobs in `folder` and its log in `folder/server.log`.

    Args:
        options: for `worldwarp serve`, such as ["--engine", "cache"].

    Raises:
        BridgeError: `server_not_running`, with the last line of its log, when it does not start; `cannot_write`.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ready, log_path = folder / "address", folder / "server.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "engine_bridge.cli", "serve", "--port", "0", "--data-dir", str(folder / "jobs")]
    command += ["--ready-file", str(ready), "--until-stdin-closes", *options]
    # Ctrl-C in the terminal is for the command, which then cancels its job; the server must live to hear of it.
    own_group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with log_path.open("ab") as log:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, **own_group)
    assert server.stdin is not None
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.is_file():
            if server.poll() is not None or time.monotonic() > deadline:
                raise BridgeError("server_not_running", f"The server did not start: {_last_line(log_path)}")
            time.sleep(0.02)
        yield OwnServer(ready.read_text("utf-8").strip(), server, log_path)
    finally:
        server.stdin.close()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _last_line(log: Path) -> str:
    return (log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]
