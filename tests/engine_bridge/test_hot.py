"""Events in shared memory: whole or not at all, and in the log whoever dies."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest

from engine_bridge import codec
from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.hot import Looker, ShowCase

from .conftest import RunningServer
from .shots import JOB, shot
from .talk import frames, logged, run, until, worker_process


def parts_of(value: int, side: int = 300) -> list[bytes]:
    block = m.SplatsBlock(
        request_id=1, job_id=JOB, revision=1, offset=0, size_bytes=9, sha256="0" * 64,
        data=np.full(side * side, value, np.uint8),
    )  # fmt: skip
    return [bytes(part) for part in codec.encode(block)]


@pytest.fixture
def ends() -> Any:
    case, looker = ShowCase(), Looker()
    yield case, looker
    looker.close()
    case.close()


def test_what_is_shown_is_seen(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    for seq, side in ((1, 320), (2, 330), (3, 1000), (4, 400)):
        shown = case.show(JOB, seq, parts_of(seq, side), 7)
        assert shown is not None
        assert (shown.seq, shown.frames_done) == (seq, 7)
        assert [bytes(part) for part in looker.take(shown) or []] == parts_of(seq, side)


def test_what_has_been_replaced_or_is_half_written_is_not_seen(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    first = case.show(JOB, 1, parts_of(1, 400), 0)
    assert first is not None
    second = case.show(JOB, 2, parts_of(2, 400), 0)
    assert second is not None
    assert looker.take(first) is None
    assert looker.take(second) is not None
    assert case._memory is not None
    struct.pack_into("<Q", case._memory.buf, 0, 0)
    assert looker.take(second) is None
    assert looker.take(attrs.evolve(second, name="nowhere")) is None
    assert looker.take(attrs.evolve(second, size_bytes=2**40)) is None


def test_small_events_go_by_the_log(ends: tuple[ShowCase, Looker]) -> None:
    assert ends[0].show(JOB, 1, parts_of(1, 20), 0) is None


def test_frames_are_the_same_in_memory_and_in_the_log(server: RunningServer) -> None:
    spec = shot(10, prompt="noise slow=0.03", width=320, height=180)
    with Client(server.address) as live, Client(server.address) as late:
        job_id = live.submit(spec)
        seen = logged(run(live, job_id))
        late.subscribe(job_id)
        assert logged(run(late, job_id)) == seen
        assert len(frames(seen)) == 10


def test_an_event_that_was_shown_is_in_the_log_though_the_worker_died_before(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(factory="tests.engine_bridge.test_hot:load_dying")
    with Client(server.address) as client:
        job_id = client.submit(shot(10, prompt="noise slow=0.05", width=320, height=180))
        seen = logged(run(client, job_id))
    assert (server.data_dir / job_id / "died").exists()
    assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
    with Client(server.address) as late:
        late.subscribe(job_id)
        assert logged(run(late, job_id)) == seen


def load_dying(name: str = "", **options: Any) -> Any:
    """The fake engine in a worker that dies once, between showing its fourth frame and appending it."""
    import os

    from engine_bridge import store

    from .fake_engine import load

    write = store._write

    def dies(file: Any, *pieces: Any) -> None:
        index = next((part for part in pieces if len(part) > 100_000), None)
        path = os.path.dirname(file.name) + "/died"
        if index is not None and not os.path.exists(path) and os.path.getsize(file.name) > 900_000:
            open(path, "w").close()
            os._exit(9)
        write(file, *pieces)

    store._write = dies
    return load(name, **options)


def test_killing_a_worker_in_the_middle_of_large_frames_leaves_no_gap(server: RunningServer) -> None:
    with Client(server.address) as client:
        spec = shot(15, prompt="noise slow=0.02", width=320, height=180)
        job_id = client.submit(spec)
        seen = until(client, m.FrameEvent, 7)
        worker_process().kill()
        seen = logged(seen + run(client, job_id))
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert {frame.index for frame in frames(seen)} == set(range(15))
