"""Events in shared memory: whole or not at all, and in the log whoever dies."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import pytest

from engine_bridge import codec, hot
from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.hot import SLOTS, Looker, ShowCase

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


def show(case: ShowCase, seq: int, side: int = 400) -> m.Shown | None:
    """Shows an event whose every byte is `seq`; what the server is told of it."""
    told: list[m.Shown] = []
    case.show(JOB, seq, parts_of(seq, side), 7, told.append)
    return told[0] if told else None


def seen(looker: Looker, shown: m.Shown | None) -> list[bytes]:
    assert shown is not None
    return [bytes(part) for part in looker.take(shown) or []]


def test_what_is_shown_is_seen(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    for seq, side in ((1, 320), (2, 330), (3, 1000), (4, 400)):
        shown = show(case, seq, side)
        assert shown is not None
        assert (shown.seq, shown.frames_done) == (seq, 7)
        assert seen(looker, shown) == parts_of(seq, side)


def test_what_is_still_being_sent_stays_as_it_is(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    on_the_way = [looker.take(shown) for seq in range(1, SLOTS + 1) if (shown := show(case, seq)) is not None]
    assert len(on_the_way) == SLOTS
    assert show(case, 9) is None, "every slot is taken: by the disk"
    assert [[bytes(part) for part in parts or []] for parts in on_the_way] == [parts_of(n, 400) for n in range(1, 5)]
    # A part of one message keeps all of it.
    last = (on_the_way.pop() or [])[1]
    on_the_way.clear()
    for seq in range(10, 10 + 2 * SLOTS):
        assert seen(looker, show(case, seq)) == parts_of(seq, 400)
    assert bytes(last) == parts_of(SLOTS, 400)[1]


def test_larger_memory_takes_the_place_of_one_that_is_still_in_use(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    others = list(hot._left)  # of servers that ran in this process before
    first = show(case, 1)
    assert first is not None
    held = looker.take(first)
    assert seen(looker, show(case, 2, side=1000)) == parts_of(2, 1000)
    assert [bytes(part) for part in held or []] == parts_of(1, 400)
    looker.bury()
    assert [bytes(part) for part in held or []] == parts_of(1, 400)
    assert not set(hot._left) <= set(others)
    del held
    looker.close()
    assert set(hot._left) <= set(others)


def test_the_disk_waits_for_the_network_but_not_for_a_client_that_does_not_read(
    ends: tuple[ShowCase, Looker], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, looker = ends
    case.wait_until_sent()  # nothing was shown yet
    first = show(case, 1)
    assert first is not None
    held = looker.take(first)
    began = time.monotonic()
    case.wait_until_sent()
    assert time.monotonic() - began >= hot.SEND_LIMIT_S
    monkeypatch.setattr(hot, "SEND_LIMIT_S", 60.0)
    threading.Timer(0.05, lambda: held.clear() if held else None).start()
    case.wait_until_sent()
    assert time.monotonic() - began < 30


def test_the_disk_does_not_wait_for_what_the_server_only_keeps(
    ends: tuple[ShowCase, Looker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot, "SEND_LIMIT_S", 60.0)
    case, looker = ends
    first = show(case, 1)
    assert first is not None
    kept, on_way = looker.take(first), looker.to_send()
    assert [bytes(part) for part in on_way] == parts_of(1, 400)
    began = time.monotonic()
    threading.Timer(0.05, on_way.clear).start()
    case.wait_until_sent()
    assert 0.05 <= time.monotonic() - began < 30
    others = [show(case, seq) for seq in range(2, SLOTS + 1)]
    assert show(case, 9) is None
    assert [bytes(part) for part in kept or []] == parts_of(1, 400), "nothing else was put there"
    assert seen(looker, others[0]) == parts_of(2, 400)
    del kept
    again = show(case, 10)
    assert again is not None


def test_what_is_sent_is_written_without_waiting_for_the_next(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(factory="tests.engine_bridge.test_hot:load_patient")
    with Client(server.address) as client:
        job_id = client.submit(shot(10, width=320, height=180))
        until(client, m.FrameEvent)
        began = time.monotonic()
        assert len(frames(run(client, job_id))) == 9
    assert time.monotonic() - began < 20.0, "by the limit it would be 45 s"


def load_patient(name: str = "", **options: Any) -> Any:
    """The fake engine in a worker whose disk waits for as long as a frame takes to be sent."""
    from .fake_engine import load

    hot.SEND_LIMIT_S = 5.0
    return load(name, **options)


def test_a_copy_that_takes_too_long_is_left_to_the_log(
    ends: tuple[ShowCase, Looker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot, "COPY_LIMIT_S", 0.01)
    case, looker = ends
    late = show(case, 1)
    assert late is not None
    assert case._memory is not None
    case._memory.buf[late.slot] = hot.TAKEN
    assert looker.take(late) is None
    case._memory.buf[late.slot] = hot.WHOLE
    others = [show(case, seq) for seq in range(2, SLOTS + 1)]
    assert show(case, 9) is None
    assert seen(looker, others[0]) == parts_of(2, 400)
    again = show(case, 10)
    assert again is not None
    assert again.slot == late.slot, "free again, though nobody has read it"


def frame_of(case: ShowCase, value: int, height: int = 200, width: int = 300) -> m.FrameEvent:
    """A frame in lent arrays, every byte of which is `value`."""
    arrays = case.lend(height, width)
    assert arrays is not None
    for array in arrays:
        array.reshape(-1).view(np.uint8)[:] = value
    return event_of(*arrays)


def event_of(rgb: np.ndarray, depth: np.ndarray, validity: np.ndarray) -> m.FrameEvent:
    return m.FrameEvent(
        job_id=JOB, seq=1, index=0, number=1, chunk=0, attempt=1, rgb=rgb, depth=depth, validity=validity
    )


def show_frame(case: ShowCase, frame: m.FrameEvent) -> m.Shown | None:
    told: list[m.Shown] = []
    case.show(JOB, frame.seq, codec.encode(frame), 7, told.append)
    return told[0] if told else None


def test_a_frame_in_lent_arrays_is_shown_where_it_lies(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    frame = frame_of(case, 3)
    shown = show_frame(case, frame)
    assert shown is not None
    parts = looker.take(shown)
    assert parts is not None
    assert codec.decode(parts, m.LoggedEvent) == frame
    # Not a copy: what is written here is seen there.
    frame.rgb[0, 0, 0] = 99
    assert parts[1][0] == 99


def test_a_lent_slot_is_taken_until_it_is_sent_and_nobody_here_has_it(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    held = [frame_of(case, value) for value in range(SLOTS)]
    assert case.lend(200, 300) is None, "every slot is lent"
    shown = show_frame(case, held[0])
    assert shown is not None
    parts = looker.take(shown)
    del held[0]
    assert case.lend(200, 300) is None, "it is still being sent"
    del parts
    held.append(frame_of(case, 9))
    shown = show_frame(case, held[-1])
    assert shown is not None
    looker.take(shown)
    assert case.lend(200, 300) is None, "it is sent, but the log may still be written from it"
    assert [frame.rgb[0, 0, 0] for frame in held] == [1, 2, 3, 9]
    held.clear()
    # Most were never shown.
    assert all(case.lend(200, 300) is not None for _ in range(2 * SLOTS))


def test_arrays_that_are_not_all_lent_or_were_shown_before_are_copied(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    frame = frame_of(case, 3)
    mixed = attrs.evolve(frame, depth=frame.depth.copy())
    for event, in_place in ((mixed, False), (frame, True), (frame, False)):
        shown = show_frame(case, event)
        assert shown is not None
        parts = looker.take(shown)
        assert parts is not None
        assert codec.decode(parts, m.LoggedEvent) == event
        frame.rgb[0, 0, 0] ^= 1
        assert (parts[1][0] == frame.rgb[0, 0, 0]) == in_place


def test_lent_arrays_outlive_the_memory_that_a_larger_one_replaces(ends: tuple[ShowCase, Looker]) -> None:
    case, looker = ends
    small, large = frame_of(case, 3), frame_of(case, 4, 400, 600)
    for frame in (small, large):
        shown = show_frame(case, frame)
        assert shown is not None
        assert codec.decode(looker.take(shown) or [], m.LoggedEvent) == frame
    case.close()
    assert (large.rgb == 4).all()


def test_small_frames_and_those_of_an_odd_size_are_not_lent_to(ends: tuple[ShowCase, Looker]) -> None:
    assert ends[0].lend(20, 30) is None
    assert ends[0].lend(201, 301) is None


def test_what_cannot_be_had_is_in_the_log(ends: tuple[ShowCase, Looker], monkeypatch: pytest.MonkeyPatch) -> None:
    case, looker = ends
    shown = show(case, 1)
    assert shown is not None
    for wrong in ({"name": "nowhere"}, {"size_bytes": 2**40}, {"slot": SLOTS}):
        assert looker.take(attrs.evolve(shown, **wrong)) is None
    monkeypatch.setattr(hot, "SharedMemory", no_memory)
    assert show(case, 2, side=1000) is None


def no_memory(*_: Any, **__: Any) -> None:
    raise OSError("no shared memory")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises memory that it does not have")
def test_memory_that_is_only_promised_is_not_written_to(
    ends: tuple[ShowCase, Looker], monkeypatch: pytest.MonkeyPatch
) -> None:
    little = shutil.disk_usage("/dev/shm")._replace(free=300_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: little)
    assert show(ends[0], 1) is None


def test_small_events_go_by_the_log(ends: tuple[ShowCase, Looker]) -> None:
    assert show(ends[0], 1, side=20) is None


def test_frames_are_the_same_in_memory_and_in_the_log(server: RunningServer) -> None:
    spec = shot(10, prompt="noise slow=0.03", width=320, height=180)
    with Client(server.address) as live, Client(server.address) as late:
        job_id = live.submit(spec)
        events = logged(run(live, job_id))
        late.subscribe(job_id)
        assert logged(run(late, job_id)) == events
        assert len(frames(events)) == 10


def test_an_engine_that_writes_its_frames_into_lent_arrays_has_none_copied(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(factory="tests.engine_bridge.test_hot:load_uncopied")
    with Client(server.address) as client:
        job_id = client.submit(shot(10, prompt="noise", width=320, height=180))
        events = run(client, job_id)
        assert (events[-1].state, events[-1].message) == ("done", "")
        assert len(frames(events)) == 10


def load_uncopied(name: str = "", **options: Any) -> Any:
    """The fake engine in a worker that fails where it copies more than a page."""
    from .fake_engine import load

    put, lend = ShowCase._put, ShowCase.lend

    def patiently(case: ShowCase, *size: int) -> Any:
        """Arrays as soon as there are any: while the server has not sent what is in all of them there are none."""
        deadline_s = time.monotonic() + 60
        while (arrays := lend(case, *size)) is None and time.monotonic() < deadline_s:
            time.sleep(0.001)
        return arrays

    def little(case: ShowCase, pieces: Any, *place: int) -> None:
        assert codec.size_of(pieces) < hot.PAGE_BYTES, "copied"
        put(case, pieces, *place)

    ShowCase._put, ShowCase.lend = little, patiently  # type: ignore[method-assign]
    return load(name, **options)


def test_an_engine_that_writes_into_a_frame_it_has_given_away_fails(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(factory="tests.engine_bridge.test_hot:load_forgetful")
    with Client(server.address) as client:
        job_id = client.submit(shot(10, width=320, height=180))
        events = run(client, job_id)
    assert (events[-1].state, events[-1].code) == ("failed", "engine_failed")
    assert "read-only" in events[-1].message
    assert len(frames(events)) == 1


def load_forgetful(name: str = "", **options: Any) -> Any:
    """The fake engine, which blackens each of its frames afterwards."""
    from worldwarp_core.spec import Frame

    from .fake_engine import FakeEngine

    class Forgetful(FakeEngine):
        def generate(self, *args: Any, **settings: Any) -> Any:
            for event in super().generate(*args, **settings):
                yield event
                if isinstance(event, Frame):
                    event.rgb[...] = 0

    return Forgetful()


def test_an_event_that_was_shown_is_in_the_log_though_the_worker_died_before(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(factory="tests.engine_bridge.test_hot:load_dying")
    with Client(server.address) as client:
        job_id = client.submit(shot(10, prompt="noise slow=0.05", width=320, height=180))
        events = logged(run(client, job_id))
    assert (server.data_dir / job_id / "died").exists()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    with Client(server.address) as late:
        late.subscribe(job_id)
        assert logged(run(late, job_id)) == events


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
        spec = shot(15, prompt="noise slow=0.02 hold=10", width=320, height=180)
        job_id = client.submit(spec)
        events = until(client, m.FrameEvent, 7)
        worker_process().kill()
        events = logged(events + run(client, job_id))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert {frame.index for frame in frames(events)} == set(range(15))
