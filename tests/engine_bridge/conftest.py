"""Real servers on free loopback ports, with the fake engine in a real worker process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_bridge.client import Client
from engine_bridge.server import Server, ServerConfig

FAKE_ENGINE = "tests.engine_bridge.fake_engine:load"


class RunningServer:
    """A server in a thread of this process; its worker is a process as always."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        settings = {"address": "tcp://127.0.0.1:*", "factory": FAKE_ENGINE, "view": False, **settings}
        self.server = Server(ServerConfig(data_dir=data_dir, **settings))
        self.address = self.server.address
        self.data_dir = data_dir
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, *, at_once: bool = False) -> None:
        for _ in range(2 if at_once else 1):
            self.server.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Limits that cost time only where something is wrong: a machine that does something else meanwhile is no fault."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Client.__init__.__kwdefaults__, "connect_timeout_s", 60.0)  # type: ignore[arg-type]
        for asks in (Client.list_jobs, Client.view_port):
            patch.setattr(asks, "__defaults__", (60.0,))
        patch.setattr("engine_bridge.live_view.CONNECT_TIMEOUT_S", 60.0)
        yield


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The file that the fake engine waits for where its prompt says `hold=N go={go}`."""
    return tmp_path / "go"


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers that are stopped after the test."""
    running: list[RunningServer] = []

    def start(**settings: Any) -> RunningServer:
        server = RunningServer(settings.pop("data_dir", tmp_path / "jobs"), **settings)
        running.append(server)
        return server

    yield start
    for server in running:
        if server.is_alive():
            server.stop(at_once=True)


@pytest.fixture
def server(start_server: Callable[..., RunningServer]) -> RunningServer:
    return start_server()


@pytest.fixture
def connect(server: RunningServer) -> Iterator[Callable[..., Client]]:
    """Makes clients of `server` that are closed after the test."""
    clients: list[Client] = []

    def make(**settings: Any) -> Client:
        clients.append(Client(settings.pop("address", server.address), **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
