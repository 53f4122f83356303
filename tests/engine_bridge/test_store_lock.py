"""One server to a store: a second one is refused, and so is one that comes while an old worker still writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine_bridge import store_lock
from engine_bridge.client import Client
from engine_bridge.errors import BridgeError
from engine_bridge.store_lock import claim_as_worker, claim_store

from .conftest import RunningServer
from .shots import shot
from .talk import run


def test_a_second_server_on_a_folder_is_refused_and_harms_nothing(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server()
    with Client(server.address) as client:
        job_id = client.submit(shot(prompt="slow=0.05"))
        with pytest.raises(BridgeError, match="--data-dir") as refused:
            start_server()
        assert refused.value.code == "folder_in_use"
        assert run(client, job_id)[-1].state == "done"
    server.stop()
    assert start_server().is_alive()


def test_a_server_that_is_known_to_leave_is_waited_for(tmp_path: Path) -> None:
    earlier = claim_store(tmp_path)
    with pytest.raises(BridgeError, match="Another WorldWarp server"):
        claim_store(tmp_path)
    leaves = threading.Timer(0.1, earlier.release)
    leaves.start()
    claim_store(tmp_path, server_leaves_s=60).release()
    leaves.join()


def test_a_worker_of_an_earlier_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = claim_as_worker(tmp_path)
    monkeypatch.setattr(store_lock, "LEAVING_S", 0.1)
    with pytest.raises(BridgeError, match=r"earlier server still writes into .*\(process \d+\)"):
        claim_store(tmp_path)
    worker.release()
    server = claim_store(tmp_path)
    assert [path.name for path in (tmp_path / "locks").glob("worker-*")] == []
    server.release()
