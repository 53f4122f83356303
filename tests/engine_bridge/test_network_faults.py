"""What networks do, by a proxy on loopback or between two network namespaces: shots come through whole.

The long versions are in `bench_bridge.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine_bridge import messages as m
from engine_bridge import session
from engine_bridge.client import Client, ConnectionLost, RequestFailed, Sending, _Fetch
from engine_bridge.errors import BridgeError
from worldwarp_core.spec import GenerateSpec, PathDepth

from . import namespaces
from .conftest import RunningServer
from .proxy import Fault, Proxy
from .shots import shot
from .talk import frames, run, until


@pytest.mark.parametrize("fault", [Fault(delay_s=0.1), Fault(loss=0.05, retransmit_s=0.05)], ids=["delay", "loss"])
def test_a_shot_comes_through_whole(server: RunningServer, fault: Fault) -> None:
    port = int(server.address.rpartition(":")[2])
    with Proxy(port, fault) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        events = run(client, client.submit(shot(20, prompt="slow=0.08", width=160, height=96)))
    assert events[-1].state == "done"
    assert [frame.index for frame in frames(events)] == list(range(20))
    assert not any(isinstance(event, ConnectionLost) for event in events)


def test_a_shot_comes_whole_through_a_connection_that_is_cut(server: RunningServer, go: Path) -> None:
    port = int(server.address.rpartition(":")[2])
    with Proxy(port) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        job_id = client.submit(shot(20, prompt=f"slow=0.05 hold=12 go={go}", width=160, height=96))
        events = until(client, m.FrameEvent, 6)
        proxy.cut()
        events += until(client, ConnectionLost)
        proxy.mend()
        go.touch()
        events += run(client, job_id)
    assert events[-1].state == "done"
    assert [frame.index for frame in frames(events)] == list(range(20))


def test_a_shot_comes_whole_through_a_network_that_loses_packets() -> None:
    if why_not := namespaces.why_not():
        pytest.skip(why_not)
    result = namespaces.run_faults(15, ["loss_5_percent"])["loss_5_percent"]
    assert result["packets_lost"] > 10
    assert (result["lost"], result["twice"]) == (0, 0)


def large_shot(megabytes: float) -> GenerateSpec:
    """A shot of 20 frames that takes so much to send."""
    side = int((megabytes * 1e6 / (20 * 2 * 6)) ** 0.5)
    maps = np.ones((20, 2 * side, 3 * side), np.float16)
    return shot(20, path_depth=PathDepth(np.arange(1, 21), maps))


def test_a_job_that_takes_longer_than_any_message_may_is_sent_once(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock.of_the_client(monkeypatch)
    port = int(server.address.rpartition(":")[2])
    with Proxy(port, Fault(bytes_per_s=2e5)) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        job_id = client.submit(large_shot(12))
        events = until(client, Sending)
        client.list_jobs()
        events += client.poll()
        assert not any(isinstance(event, m.Accepted) for event in events), "what else is asked for does not wait for it"
        proxy.begin(Fault())
        links = client._wire._control, client._wire._data
        started_s = clock.now_s
        while not isinstance(events[-1], m.Accepted):
            events += until(client, (Sending, m.Accepted))
            if clock.now_s - started_s <= session.LARGE_MESSAGE_LIMIT_S:
                clock.now_s += 0.9 * session.UNANSWERED_LIMIT_S
                while any(link is not None and link.session._heard_s < clock.now_s for link in links):
                    time.sleep(0.01)  # until both pings, which are due by now, are answered
        assert clock.now_s - started_s > session.LARGE_MESSAGE_LIMIT_S
        events += run(client, job_id)
    assert events[-1].state == "done"
    assert not any(isinstance(event, ConnectionLost) for event in events)
    sent = [event.received_bytes for event in events if isinstance(event, Sending)]
    assert len(sent) > 5
    assert sent == sorted(set(sent))


def test_a_job_that_is_being_sent_goes_on_where_the_connection_broke(server: RunningServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with Proxy(port, Fault(bytes_per_s=5e5)) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        job_id = client.submit(large_shot(8))
        events = until(client, Sending, 2)
        proxy.cut()
        events += until(client, ConnectionLost)
        proxy.begin(Fault())
        proxy.mend()
        events += run(client, job_id)
    assert events[-1].state == "done"
    lost = next(number for number, event in enumerate(events) if isinstance(event, ConnectionLost))
    before = [event for event in events[:lost] if isinstance(event, Sending)]
    after = [event for event in events[lost:] if isinstance(event, Sending)]
    assert 0 < before[-1].received_bytes <= after[0].received_bytes < after[-1].received_bytes


def test_a_cancel_does_not_wait_for_the_job_to_be_sent(server: RunningServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with Proxy(port, Fault(bytes_per_s=2e5)) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        ids = [client.submit(large_shot(20)) for _ in range(2)]
        until(client, Sending, 2)
        started_s = time.monotonic()
        for job_id in reversed(ids):
            client.cancel(job_id)
        ended = [event for event in until(client, RequestFailed, 2) if isinstance(event, RequestFailed)]
        assert time.monotonic() - started_s < 60.0, "all of it takes 200 s"
        assert [(event.code, event.job_id) for event in ended] == [("cancelled", job_id) for job_id in reversed(ids)]
        assert run(client, client.submit(shot(1)))[-1].state == "done"
        assert len(client.list_jobs()) == 1
    assert not server.server._uploads._incoming


def test_what_refuses_a_job_does_so_before_it_is_sent(server: RunningServer) -> None:
    with Client(server.address) as client:
        client.submit(large_shot(4), engine="better")
        refused = until(client, RequestFailed)
    assert refused[-1].code == "unknown_engine"
    assert not any(isinstance(event, Sending) for event in refused)


def test_a_job_that_the_server_has_is_not_sent_again(server: RunningServer) -> None:
    spec = large_shot(4)
    with Client(server.address) as first, Client(server.address) as second:
        job_id = first.submit(spec)
        assert frames(run(first, job_id))
        second.submit(spec, job_id=job_id)
        again = run(second, job_id)
    assert len(frames(again)) == 20
    assert not any(isinstance(event, Sending) for event in again)


def test_large_jobs_are_sent_one_after_the_other(server: RunningServer) -> None:
    with Client(server.address) as client:
        ids = [client.submit(large_shot(4)) for _ in range(3)]
        events = until(client, m.Accepted, 3)
    assert [event.job_id for event in events if isinstance(event, m.Accepted)] == ids
    sending = [event.job_id for event in events if isinstance(event, Sending)]
    assert sending == sorted(sending, key=ids.index)
    assert set(sending) == set(ids)


class Clock:
    """A clock that stands still unless the test moves it on: how busy the machine is makes no difference to it."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    @classmethod
    def of_the_client(cls, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = cls()
        clients = SimpleNamespace(monotonic=lambda: clock.now_s, sleep=time.sleep)
        monkeypatch.setattr("engine_bridge.client.time", clients)
        return clock


def test_splats_come_however_long_they_take_as_long_as_they_come(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(server.address) as client:
        job_id = client.submit(shot(1))
        run(client, job_id)
        content = bytes(20_000_000)
        server.server._store.open(job_id).add_splats(lambda path: path.write_bytes(content), splats=1)
        with monkeypatch.context() as patch:
            clock = Clock.of_the_client(patch)
            started_s, take = clock.now_s, _Fetch.take

            def take_a_second(fetch: _Fetch, block: m.SplatsBlock) -> bool:
                clock.now_s += 1.0
                return take(fetch, block)

            patch.setattr(_Fetch, "take", take_a_second)
            client.fetch_splats_now(job_id, tmp_path / "splats.ply", timeout_s=1.5)
            assert clock.now_s - started_s > 2.0
        assert (tmp_path / "splats.ply").read_bytes() == content
        with pytest.raises(BridgeError, match="did not answer in 0 s"):
            client.fetch_splats_now(job_id, tmp_path / "splats.ply", timeout_s=0.0)


def test_a_client_that_the_server_has_forgotten_comes_back(server: RunningServer, go: Path) -> None:
    with Client(server.address) as client:
        job_id = client.submit(shot(20, prompt=f"slow=0.05 hold=5 go={go}"))
        events = until(client, m.FrameEvent, 3)
        # As after a minute of silence; the connection itself is whole.
        server.server._sessions = {}
        client.cancel("0" * 32)
        events += until(client, ConnectionLost)
        go.touch()
        events += run(client, job_id)
    assert any(isinstance(event, ConnectionLost) and "not heard of us" in event.message for event in events)
    assert [frame.index for frame in frames(events)] == list(range(20))


def test_a_connection_that_is_open_and_dead_is_noticed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, go: Path
) -> None:
    monkeypatch.setattr("engine_bridge.session.UNANSWERED_LIMIT_S", 1.0)
    monkeypatch.setattr("engine_bridge.session.PING_EVERY_S", 0.3)
    assert session.UNANSWERED_LIMIT_S == 1.0
    port = int(server.address.rpartition(":")[2])
    with Proxy(port) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        job_id = client.submit(shot(20, prompt=f"slow=0.05 hold=12 go={go}"))
        events = until(client, m.FrameEvent, 6)
        proxy.hold()
        events += until(client, ConnectionLost)
        proxy.mend()
        go.touch()
        events += run(client, job_id)
    assert any(isinstance(event, ConnectionLost) and "said nothing" in event.message for event in events)
    assert [event.index for event in events if isinstance(event, m.FrameEvent)] == list(range(20))


def test_a_leaving_servers_last_words_are_heard_though_its_other_connection_ends_first(
    start_server: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_bridge.client.TICK_MS", 30_000)
    server = start_server()
    port = int(server.address.rpartition(":")[2])
    with Proxy(port) as proxy, Client(f"tcp://127.0.0.1:{proxy.port}") as client:
        client.submit(shot(5, prompt="hold=2", width=320, height=180))
        until(client, m.FrameEvent, 2)
        # What frames have come by stands still; the connection for control ends.
        proxy.begin(Fault(stuck_bytes=100_000))
        server.stop(at_once=True)
        time.sleep(0.2)
        proxy.begin(Fault())
        states = [event for event in until(client, ConnectionLost) if isinstance(event, m.StateEvent)]
    assert [(event.state, event.code) for event in states] == [("queued", "server_stopped")]
