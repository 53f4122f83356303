"""A real server with a real worker process, in which only the engine and the viewer are fakes that do as they are told.

    python -m tests.support.serve_fake DATA_DIR [tcp://127.0.0.1:PORT]

Prints its address and serves until it is told to stop, or its standard input ends.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from engine_bridge.server import Server, ServerConfig


def main(data_dir: str, address: str = "tcp://127.0.0.1:*") -> None:
    """Serves until it is stopped."""
    server = Server(
        ServerConfig(
            address=address,
            data_dir=Path(data_dir),
            factory="tests.engine_bridge.fake_engine:load",
            view_factory="tests.engine_bridge.fake_viewer:open_viewer",
        )
    )
    server.handle_signals()
    print(server.address, flush=True)
    threading.Thread(target=_stop_with, args=(server,), daemon=True).start()
    server.serve()


def _stop_with(server: Server) -> None:
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
