"""Metrics: what a collector reads, and that nobody from elsewhere can."""

from __future__ import annotations

import re
import socket
import stat
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.errors import BridgeError
from engine_bridge.metrics import Metrics, gpu_memory_mib

from .conftest import RunningServer
from .shots import shot
from .talk import run, until

prometheus = pytest.importorskip("prometheus_client")


def read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    lines = (re.fullmatch(r"(worldwarp_\S+) (\S+)", line) for line in text.splitlines())
    return {line[1]: float(line[2]) for line in lines if line}


def test_a_collector_reads_what_happened(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(metrics_port=0)
    with Client(server.address) as client:
        run(client, client.submit(shot()))
        run(client, client.submit(shot(prompt="refuse")))
        held, waiting = client.submit(shot(prompt="wait")), client.submit(shot())
        until(client, m.Accepted, 2)
        until(client, m.Progress)
        port = server.server._metrics.port  # type: ignore[attr-defined]
        found = read(port)
        assert found["worldwarp_frames_total"] == 7
        assert found['worldwarp_jobs_total{state="done"}'] == 1
        assert found['worldwarp_jobs_total{state="failed"}'] == 1
        assert found['worldwarp_jobs_total{state="queued"}'] == 4
        assert found['worldwarp_stage_seconds_total{stage="fill"}'] == 1.0
        assert (found["worldwarp_jobs_running"], found["worldwarp_jobs_queued"]) == (1, 1)
        assert found["worldwarp_workers_ready"] == 1
        assert found["worldwarp_connections"] == 2
        assert found["worldwarp_sent_bytes_total"] > 7 * 48 * 32 * 8
        client.cancel(held)
        run(client, waiting)
    server.stop()
    with pytest.raises(OSError, match="refused"):
        read(port)


def test_metrics_are_for_this_machine_alone() -> None:
    metrics = Metrics(0, {})
    try:
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            with pytest.raises(OSError, match=r"refused|timed out"):
                socket.create_connection((own, metrics.port), timeout=1)
        with pytest.raises(BridgeError) as caught:
            Metrics(metrics.port, {})
        assert caught.value.code == "address_in_use"
    finally:
        metrics.close()


def test_the_gpus_memory_is_asked_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '0, 1024'\necho '1, 3'\n")
    driver.chmod(driver.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("engine_bridge.metrics.GPU_TIMEOUT_S", 60.0)
    assert gpu_memory_mib() == {"0": 1024.0, "1": 3.0}
    metrics = Metrics(0, {"answer": ("Of everything.", lambda: 42.0)})
    try:
        found = read(metrics.port)
        assert found['worldwarp_gpu_memory_bytes{gpu="0"}'] == 2**30
        assert found["worldwarp_answer"] == 42
    finally:
        metrics.close()
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_memory_mib() == {}
