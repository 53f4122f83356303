"""Several workers, several clients: every GPU one job at a time, every client its turn."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.errors import BridgeError
from engine_bridge.server import ServerConfig

from .conftest import RunningServer
from .fake_engine import FakeEngine
from .shots import shot
from .talk import frames, run, until

StartServer = Callable[..., RunningServer]


def gpus_said(events: list[Any]) -> list[str]:
    return [event.message for event in events if isinstance(event, m.NoticeEvent) and event.code == "where"]


def test_each_worker_has_its_own_gpus_and_jobs_run_side_by_side(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, go: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = start_server(devices=("0", "1,2"), options={"cuda": True})
    with Client(server.address) as client:
        ids = [client.submit(shot(9, prompt=f"where hold=5 go={go}")) for _ in range(2)]
        events = until(client, m.CacheEvent, 2)
        running = [job.job_id for job in client.list_jobs() if job.state == "running"]
        assert set(running) == set(ids), "both at once"
        assert sorted(gpus_said(events)) == ["0", "1,2"]
        go.touch()
        until(client, m.CacheEvent, 2)


def load_on_the_first_gpu(name: str = "", **options: Any) -> FakeEngine:
    """An engine that only starts on GPU 0."""
    if os.environ["CUDA_VISIBLE_DEVICES"] != "0":
        raise RuntimeError("this GPU has fallen off the bus")
    return FakeEngine()


def test_a_gpu_that_does_not_start_costs_no_job_while_there_is_another(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(devices=("0", "1"), factory="tests.engine_bridge.test_workers:load_on_the_first_gpu")
    with Client(server.address) as client:
        held = client.submit(shot(prompt="wait"))
        until(client, m.Progress)
        waiting = [client.submit(shot(1)) for _ in range(3)]
        until(client, m.Accepted, 3)
        deadline = time.monotonic() + 120
        while "Worker 1 is tried again in" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        client.cancel(held)
        assert run(client, waiting[-1])[-1].state == "done"
        assert [job.state for job in client.list_jobs()] == ["cancelled", "done", "done", "done"]


def test_two_servers_do_not_run_two_jobs_on_one_gpu(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    servers = [start_server(devices=("3",), options={"cuda": True}, data_dir=tmp_path / str(n)) for n in range(2)]
    with Client(servers[0].address) as one, Client(servers[1].address) as two:
        first = one.submit(shot(prompt="wait"))
        until(one, m.Progress)
        second = two.submit(shot())
        waiting = until(two, m.Progress)
        assert waiting[-1].stage == "gpu"
        assert not frames(waiting)
        # A job that waits for the GPU can be cancelled, and the next one waits in turn.
        two.cancel(second)
        assert run(two, second)[-1].state == "cancelled"
        third = two.submit(shot())
        until(two, m.Progress)
        one.cancel(first)
        assert run(two, third)[-1].state == "done"


def test_a_gpu_is_given_to_one_worker_only(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="one worker"):
        ServerConfig(data_dir=tmp_path, devices=("0", "1,0"))


def test_clients_take_turns_on_a_real_server(start_server: StartServer) -> None:
    server = start_server()
    with Client(server.address) as busy, Client(server.address) as rare:
        held = busy.submit(shot(prompt="wait"))
        until(busy, m.Progress)
        many = [busy.submit(shot(1)) for _ in range(4)]
        until(busy, m.Accepted, 4)
        few = [rare.submit(shot(1), priority=priority) for priority in (0, 5)]
        assert [event.position for event in until(rare, m.Accepted, 2) if isinstance(event, m.Accepted)] == [1, 1]
        busy.cancel(held)
        deadline = time.monotonic() + 120
        ended: list[str] = []
        while len(ended) < 6:
            assert time.monotonic() < deadline
            for client in (busy, rare):
                for event in client.poll():
                    if isinstance(event, m.StateEvent) and event.state == "running":
                        ended.append(event.job_id)
            time.sleep(0.005)
        order = [job_id for job_id in ended if job_id in few]
        assert order == [few[1], few[0]], "the higher priority first"
        listed = {job.job_id: job for job in rare.list_jobs()}
        assert {listed[job_id].client for job_id in few} == {rare.client_id}
        assert {listed[job_id].client for job_id in many} == {busy.client_id}
