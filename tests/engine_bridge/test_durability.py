"""Nothing that was computed is lost: jobs go on after the death of worker, server or client, bit for bit."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import psutil
import pytest

from engine_bridge import messages as m
from engine_bridge.client import Client, ConnectionLost
from engine_bridge.commits import NOTHING, Commits
from engine_bridge.worker import _LogWriter
from worldwarp_core.checkpoint import Checkpoint
from worldwarp_core.errors import WorldWarpError

from .conftest import RunningServer
from .fake_engine import FakeEngine
from .shots import shot
from .talk import frames, logged, run, suspended, until, worker_process

Connect = Callable[..., Client]

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL to die of")


def noise(count: int = 23, **more: Any) -> Any:
    """A shot whose every frame depends on all before it; 5 chunks of 5."""
    return shot(count, prompt=more.pop("prompt", "noise slow=0.02"), **more)


def uninterrupted(spec: Any) -> list[np.ndarray]:
    calm = dataclasses.replace(spec, prompt="noise")
    return [event.rgb for event in FakeEngine().generate(calm) if hasattr(event, "rgb")]


def check_whole(events: list[Any], spec: Any) -> None:
    """Every frame is there and final once, by the attempt that was committed, and as if nothing had happened."""
    events = logged(events)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (events[-1].state, events[-1].code) == ("done", "")
    final: dict[int, np.ndarray] = {}
    provisional: dict[int, m.FrameEvent] = {}
    for event in events:
        if isinstance(event, m.FrameEvent):
            assert event.index not in final, "a final frame came again"
            earlier = provisional.get(event.index)
            assert earlier is None or earlier.attempt < event.attempt
            provisional[event.index] = event
        elif isinstance(event, m.ChunkCommitted):
            ready = {index: frame for index, frame in provisional.items() if index < event.frames}
            assert sorted([*final, *ready]) == list(range(event.frames))
            assert all(frame.chunk == event.chunk and frame.attempt == event.attempt for frame in ready.values())
            final |= {index: frame.rgb for index, frame in ready.items()}
            provisional = {index: frame for index, frame in provisional.items() if index >= event.frames}
    wanted = uninterrupted(spec)
    assert len(final) == len(wanted)
    for index, picture in enumerate(wanted):
        assert (final[index] == picture).all(), index


def test_each_chunk_is_committed_once_with_its_frames(connect: Connect, server: RunningServer) -> None:
    client = connect()
    job_id = client.submit(noise())
    events = run(client, job_id)
    check_whole(events, noise())
    commits = [event for event in events if isinstance(event, m.ChunkCommitted)]
    assert [(c.chunk, c.attempt, c.frames) for c in commits] == [(n, 1, min(5 * n + 5, 23)) for n in range(5)]
    left = {path.name for path in (server.data_dir / job_id).iterdir()}
    assert not [name for name in left if name.startswith("state_")] and "resume.json" not in left  # noqa: PT018


@pytest.mark.parametrize("kind", [m.FrameEvent, m.ChunkCommitted, m.CacheEvent])
def test_a_killed_worker_costs_no_more_than_its_chunk(connect: Connect, kind: type) -> None:
    client = connect()
    # The last chunk is left to the second attempt, which begins with the sixth frame at the earliest.
    spec = noise(prompt="noise slow=0.02 hold=18")
    job_id = client.submit(spec)
    seen = until(client, kind, 2 if kind is not m.FrameEvent else 8)
    worker_process().kill()
    rest = run(client, job_id)
    check_whole(seen + rest, spec)
    died = next(e for e in rest if isinstance(e, m.StateEvent) and e.state == "queued")
    assert died.code == "worker_died"
    assert "signal 9" in died.message
    again = [frame.index for frame in frames(seen + rest) if frame.attempt == 2]
    assert again[0] >= 5, "the first chunk was committed"
    assert sum(event.code == "fake" for event in logged(seen + rest) if isinstance(event, m.NoticeEvent)) == 1


def test_an_engine_that_saves_nothing_begins_anew(connect: Connect, go: Path) -> None:
    client = connect()
    spec = noise(9, prompt=f"noise slow=0.05 forgetful hold=8 go={go}")
    job_id = client.submit(spec)
    seen = until(client, m.FrameEvent, 6)
    worker_process().kill()
    go.touch()
    got = frames(seen + run(client, job_id))
    assert [frame.index for frame in got if frame.attempt == 2] == list(range(9))
    for frame, picture in zip(got[-9:], uninterrupted(spec), strict=True):
        assert (frame.rgb == picture).all()


def test_damaged_states_are_said_and_final_frames_stay_final(connect: Connect, server: RunningServer, go: Path) -> None:
    client = connect()
    spec = noise(prompt=f"noise slow=0.02 hold=18 go={go}")
    job_id = client.submit(spec)
    seen = until(client, m.ChunkCommitted, 2)
    worker = suspended(worker_process())
    folder = server.data_dir / job_id
    for path in folder.glob("state_*.npz"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    worker.kill()
    go.touch()
    events = seen + run(client, job_id)
    assert any(isinstance(event, m.NoticeEvent) and event.code == "starts_over" for event in events)
    check_whole(events, spec)


def test_a_commit_that_died_before_it_was_told_is_told_once(
    start_server: Callable[..., RunningServer], go: Path
) -> None:
    server = start_server(stop_grace_s=0)
    spec = noise(prompt=f"noise slow=0.02 hold=18 go={go}")
    with Client(server.address) as client:
        job_id = client.submit(spec)
        until(client, m.ChunkCommitted, 2)
    server.stop()
    go.touch()
    # As if the worker had died between saving the state of the newest chunk and appending the message.
    log = server.server._store.open(job_id).log
    last = max(e.seq for e in log.small_events() if isinstance(e, m.ChunkCommitted))
    index = server.data_dir / job_id / "events.index"
    index.write_bytes(index.read_bytes()[: 16 * (last - 1)])
    again = start_server()
    with Client(again.address) as client:
        client.subscribe(job_id)
        check_whole(run(client, job_id), spec)


def test_a_stopped_server_lets_the_chunk_be_committed_and_a_new_one_goes_on(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server(factory="tests.engine_bridge.test_durability:load_waiting_for_the_stop")
    with Client(server.address) as client:
        job_id = client.submit(noise())
        seen = until(client, m.FrameEvent, 7)
        server.stop()
        start_server(address=server.address)
        events = seen + run(client, job_id)
        check_whole(events, noise())
    (at,) = [n for n, e in enumerate(events) if isinstance(e, m.StateEvent) and e.code == "server_stopped"]
    assert events[at].state == "queued"
    assert len(frames(events[:at])) == 10
    assert sum(isinstance(event, m.ChunkCommitted) for event in events[:at]) == 2, "the second chunk was made whole"


def load_waiting_for_the_stop(name: str = "", **options: Any) -> FakeEngine:
    """The fake engine in a worker that makes no eighth frame before it has heard that its server stops."""
    from engine_bridge import worker
    from worldwarp_core.spec import Frame

    told = threading.Event()
    draining = property(lambda _: told.is_set(), lambda _, value: told.set() if value else None)
    worker._Server.draining = draining  # type: ignore[assignment, method-assign]

    class Waiting(FakeEngine):
        def generate(self, *args: Any, **settings: Any) -> Any:
            for event in super().generate(*args, **settings):
                yield event
                if isinstance(event, Frame) and event.index == 6:
                    assert told.wait(60)

    return Waiting()


def test_a_server_told_twice_leaves_at_once(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(stop_grace_s=3600)
    with Client(server.address) as client:
        client.submit(noise(prompt="wait"))
        until(client, m.Progress)
        server.server.stop()
        server.stop()  # of which a minute is the most


def _serve(data_dir: str, address: str, tell: Connection) -> None:
    tell.send(RunningServer(Path(data_dir), address=address).address)


def test_a_killed_server_takes_its_worker_along_and_the_next_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    listen, tell = context.Pipe()
    processes: list[Any] = []

    def start(address: str) -> str:
        processes.append(context.Process(target=_serve, args=(str(tmp_path / "jobs"), address, tell)))
        processes[-1].start()
        assert listen.poll(120), "the server does not start"
        return listen.recv()

    try:
        address = start("tcp://127.0.0.1:*")
        with Client(address) as client:
            spec = noise(prompt="noise slow=0.02 hold=18")
            job_id = client.submit(spec)
            seen = until(client, m.FrameEvent, 8)
            workers = psutil.Process(processes[0].pid).children(recursive=True)
            processes[0].kill()
            processes[0].join()
            _, alive = psutil.wait_procs(workers, timeout=60)
            assert not alive
            start(address)
            rest = run(client, job_id)
            assert any(isinstance(event, ConnectionLost) for event in seen + rest)
            check_whole(seen + rest, spec)
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_a_few_random_kills_lose_no_frame(connect: Connect) -> None:
    """The short version of `bench_bridge.py --kills`."""
    rng = random.Random(4)
    client = connect()
    # Each attempt commits a chunk and is killed within the next.
    spec = noise(prompt="noise slow=0.02 hold=8")
    events: list[Any] = []
    job_id = client.submit(spec)
    for attempt in (1, 2, 3):
        events += until(client, m.ChunkCommitted)
        assert events[-1].attempt == attempt
        time.sleep(rng.uniform(0, 0.15))
        worker_process().kill()
    check_whole(events + run(client, job_id), spec)


# ---------------------------------------------------------------- resume


def test_a_failed_job_goes_on_when_it_is_resumed(connect: Connect) -> None:
    client = connect()
    spec = noise(prompt="noise full=12")
    job_id = client.submit(spec)
    seen = run(client, job_id)
    assert (seen[-1].state, seen[-1].code) == ("failed", "disk_full")
    client.resume(job_id, after_seq=seen[-1].seq)
    rest = run(client, job_id)
    check_whole(seen + rest, spec)
    # Who comes later hears of the job's one end, not of the one that it left again.
    late = connect()
    late.subscribe(job_id)
    events = run(late, job_id)
    assert events[-1].state == "done"
    assert not any(isinstance(event, m.StateEvent) and event.state == "failed" for event in events)


def test_a_cancelled_job_can_be_resumed_and_a_done_one_stays_done(connect: Connect) -> None:
    client = connect()
    spec = noise(prompt="noise slow=0.02 hold=18")
    job_id = client.submit(spec)
    seen = until(client, m.FrameEvent, 8)
    client.cancel(job_id)
    seen += run(client, job_id)
    assert seen[-1].state == "cancelled"
    client.resume(job_id, after_seq=seen[-1].seq)
    everything = seen + run(client, job_id)
    check_whole(everything, spec)
    client.resume(job_id)
    assert frames(run(client, job_id)) == frames(everything)


@pytest.mark.parametrize("dies", ["worker", "server", "machine"])
def test_a_cancelled_job_is_not_gone_on_with_whoever_dies_before_it_stops(
    start_server: Callable[..., RunningServer], tmp_path: Path, dies: str
) -> None:
    server = start_server()
    with Client(server.address) as client:
        job_id = client.submit(shot(prompt="slow=2"))
        until(client, m.Progress)
        client.cancel(job_id)
        until(client, m.Cancelling)
        if dies == "machine":
            suspended(worker_process())  # it goes on writing until then: the copy is of one moment
            half_written = ".*"
            shutil.copytree(tmp_path / "jobs", tmp_path / "after", ignore=shutil.ignore_patterns("locks", half_written))
        worker_process().kill()
        if dies == "worker":
            assert run(client, job_id)[-1].state == "cancelled"
            return
    if dies == "server":
        server.stop(at_once=True)
    again = start_server(data_dir=tmp_path / ("after" if dies == "machine" else "jobs"))
    with Client(again.address) as client:
        assert [job.state for job in client.list_jobs()] == ["cancelled"]
        client.subscribe(job_id)
        end = run(client, job_id)[-1]
        assert end.code == "cancelled"
        client.resume(job_id, after_seq=end.seq)
        until(client, m.Progress)


def test_a_worker_leaves_it_to_its_server_when_to_stop(connect: Connect) -> None:
    client = connect()
    job_id = client.submit(noise(8))
    until(client, m.FrameEvent, 2)
    worker_process().terminate()
    events = run(client, job_id)
    assert events[-1].state == "done"
    assert {frame.attempt for frame in frames(events)} == {1}


def test_a_job_is_made_where_threads_may_not_have_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden, raising=False)
    written = []
    with _LogWriter(lambda parts: written.append(parts) or 1, threading.Lock(), list, lambda seq: None) as log:  # type: ignore[arg-type, func-returns-value]
        log.append([b"event"])
    assert written == [[b"event"]]


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file while which exists, the disk of this server and of its workers is full."""
    flag = tmp_path / "full"
    monkeypatch.setenv("FULL_DISK_FLAG", str(flag))
    monkeypatch.setattr("engine_bridge.store._write", _write_unless_full)
    return flag


def _write_unless_full(file: Any, *pieces: Any) -> None:
    if os.path.exists(os.environ["FULL_DISK_FLAG"]):
        raise OSError(errno.ENOSPC, "No space left on device")
    for piece in pieces:
        file.write(piece)


def load_on_small_disk(name: str = "", **options: Any) -> FakeEngine:
    """The fake engine in a worker whose disk is full now and then."""
    from engine_bridge import store

    store._write = _write_unless_full
    return FakeEngine()


@pytest.mark.parametrize("size", [(48, 32), (320, 180)], ids=["small", "large"])
def test_a_disk_that_is_full_in_the_middle_is_said_and_nothing_is_lost(
    start_server: Callable[..., RunningServer], full_disk: Path, go: Path, size: tuple[int, int]
) -> None:
    server = start_server(factory="tests.engine_bridge.test_durability:load_on_small_disk")
    spec = noise(prompt=f"noise slow=0.05 hold=9 go={go}", width=size[0], height=size[1])
    with Client(server.address) as client:
        job_id = client.submit(spec)
        seen = until(client, m.FrameEvent, 8)
        full_disk.touch()
        go.touch()
        seen += run(client, job_id)
        assert (seen[-1].state, seen[-1].code) == ("failed", "disk_full"), "who follows hears of it from memory"
        # Still no room: said again, and still nothing is lost.
        client.resume(job_id, after_seq=seen[-1].seq)
        seen += run(client, job_id)
        assert (seen[-1].state, seen[-1].code) == ("failed", "disk_full")
        full_disk.unlink()
        client.resume(job_id, after_seq=seen[-1].seq)
        seen += run(client, job_id)
        check_whole(seen, spec)
    with Client(server.address) as late:
        late.subscribe(job_id)
        got = logged(run(late, job_id))
    assert got == [event for event in logged(seen) if not (isinstance(event, m.StateEvent) and event.state == "failed")]


# ---------------------------------------------------------------- states on disk


def test_only_the_states_that_are_needed_stay(tmp_path: Path) -> None:
    commits = Commits(tmp_path)
    assert commits.read() == NOTHING
    assert commits.load() is None
    commits.save(Checkpoint(0, "fitted", 0, {"a": np.zeros(3), "b": np.zeros(1)}), 1)
    assert commits.read().frames == 0
    commits.save(Checkpoint(0, "made", 5, {"b": np.ones(2)}), 1)
    assert (commits.read().frames, len(commits.read().row)) == (5, 2)
    loaded = commits.load()
    assert loaded is not None
    assert (loaded.stage, loaded.frames, len(loaded.arrays["a"]), len(loaded.arrays["b"])) == ("made", 5, 3, 2)
    commits.save(Checkpoint(0, "fitted", 5, {"a": np.ones(4)}), 2)
    assert commits.read().frames == 5
    assert len(list(tmp_path.glob("state_*"))) == 1
    commits.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_dies_as_it_saves_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(tmp_path)
    before = commits.save(Checkpoint(0, "fitted", 0, {"a": np.zeros(3)}), 1)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # Once the new state is there, and before it counts.
        patch.setattr("engine_bridge.commits.atomic_write", dies)
        with pytest.raises(KeyboardInterrupt):
            commits.save(Checkpoint(0, "fitted", 5, {"a": np.ones(3)}), 1)
    assert commits.read() == before
    loaded = commits.load()
    assert loaded is not None
    assert (loaded.frames, loaded.arrays["a"].sum()) == (0, 0)
    commits.save(Checkpoint(0, "fitted", 5, {"a": np.ones(3)}), 2)
    assert len(list(tmp_path.glob("state_*"))) == 1, "what never counted is gone, too"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"chunk": 1}', '{"chunk":0,"attempt":1,"frames":5,"row":[["../x","0"]]}']
)
def test_a_damaged_list_of_states_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "resume.json").write_text(text)
    assert Commits(tmp_path).read() == NOTHING


def test_a_state_whose_file_is_gone_is_damage(tmp_path: Path) -> None:
    commits = Commits(tmp_path)
    commits.save(Checkpoint(0, "fitted", 0, {"a": np.zeros(3)}), 1)
    (tmp_path / json.loads((tmp_path / "resume.json").read_text())["row"][0][0]).unlink()
    with pytest.raises(WorldWarpError) as caught:
        commits.load()
    assert caught.value.code == "bad_checkpoint"


def test_a_client_that_comes_back_goes_on_after_what_it_has(connect: Connect) -> None:
    first = connect()
    job_id = first.submit(noise())
    seen = logged(until(first, m.FrameEvent, 9))
    first.close()
    second = connect()
    second.submit(noise(), job_id=job_id, after_seq=seen[-1].seq)
    rest = logged(run(second, job_id))
    assert rest[0].seq == seen[-1].seq + 1
    check_whole(seen + rest, noise())
    assert attrs.evolve(second.list_jobs()[0], message="").frames_done == 23
