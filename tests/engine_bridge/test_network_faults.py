"""What networks do, by a proxy on loopback or between two network namespaces: shots come through whole.

The long versions are in `bench_bridge.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from engine_bridge import messages as m
from engine_bridge import session
from engine_bridge.client import Client, ConnectionLost
from engine_bridge.errors import BridgeError
from worldwarp_core.spec import PathDepth

from . import namespaces
from .conftest import RunningServer
from .proxy import Fault, Proxy
from .shots import shot
from .talk import frames, run, until


@pytest.mark.parametrize(
    "fault",
    [Fault(after_s=0.5, cut_s=0.7), Fault(delay_s=0.1), Fault(loss=0.05, retransmit_s=0.05)],
    ids=["cut", "delay", "loss"],
)
def test_a_shot_comes_through_whole(server: RunningServer, fault: Fault) -> None:
    port = int(server.address.rpartition(":")[2])
    with Proxy(port, fault) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}", gone_timeout_s=30) as client:
        events = run(client, client.submit(shot(20, prompt="slow=0.08", width=160, height=96)))
    assert events[-1].state == "done"
    assert [frame.index for frame in frames(events)] == list(range(20))
    assert any(isinstance(event, ConnectionLost) for event in events) == bool(fault.cut_s)


def test_a_shot_comes_whole_through_a_network_that_loses_packets() -> None:
    if why_not := namespaces.why_not():
        pytest.skip(why_not)
    result = namespaces.run_faults(15, ["loss_5_percent"])["loss_5_percent"]
    assert result["packets_lost"] > 10
    assert (result["lost"], result["twice"]) == (0, 0)


def test_a_job_that_takes_long_to_send_is_sent_once(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_bridge.session.UNANSWERED_LIMIT_S", 1.0)
    monkeypatch.setattr("engine_bridge.session.PING_EVERY_S", 0.3)
    port = int(server.address.rpartition(":")[2])
    maps = PathDepth(np.arange(1, 21), np.ones((20, 640, 960), np.float16))
    spec = shot(20, path_depth=maps)
    with Proxy(port, Fault(bytes_per_s=8e6)) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        started_s = time.monotonic()
        events = run(client, client.submit(spec))
    assert time.monotonic() - started_s > 2.5, "longer than the server may be silent"
    assert events[-1].state == "done"
    assert not any(isinstance(event, ConnectionLost) for event in events)


def test_splats_come_however_long_they_take_as_long_as_they_come(server: RunningServer, tmp_path: Path) -> None:
    port = int(server.address.rpartition(":")[2])
    with Proxy(port, Fault(bytes_per_s=8e6)) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        job_id = client.submit(shot(1))
        run(client, job_id)
        content = bytes(20_000_000)
        server.server._store.open(job_id).add_splats(lambda path: path.write_bytes(content), splats=1)
        started_s = time.monotonic()
        client.fetch_splats_now(job_id, tmp_path / "splats.ply", timeout_s=1.5)
        assert time.monotonic() - started_s > 2.0
        assert (tmp_path / "splats.ply").read_bytes() == content
        with pytest.raises(BridgeError, match="did not answer in 0 s"):
            client.fetch_splats_now(job_id, tmp_path / "splats.ply", timeout_s=0.0)


def test_a_client_that_the_server_has_forgotten_comes_back(server: RunningServer) -> None:
    with Client(server.address) as client:
        job_id = client.submit(shot(20, prompt="slow=0.05"))
        events = until(client, m.FrameEvent, 3)
        # As after a minute of silence; the connection itself is whole.
        server.server._sessions.clear()
        client.cancel("0" * 32)
        events += run(client, job_id)
    assert any(isinstance(event, ConnectionLost) and "not heard of us" in event.message for event in events)
    assert [frame.index for frame in frames(events)] == list(range(20))


def test_a_connection_that_is_open_and_dead_is_noticed(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_bridge.session.UNANSWERED_LIMIT_S", 1.0)
    monkeypatch.setattr("engine_bridge.session.PING_EVERY_S", 0.3)
    assert session.UNANSWERED_LIMIT_S == 1.0
    port = int(server.address.rpartition(":")[2])
    fault = Fault(after_s=0.8, half_open_s=2.5)
    with Proxy(port, fault) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}", gone_timeout_s=30) as client:
        events = run(client, client.submit(shot(20, prompt="slow=0.08")))
    assert any(isinstance(event, ConnectionLost) and "said nothing" in event.message for event in events)
    assert [event.index for event in events if isinstance(event, m.FrameEvent)] == list(range(20))
