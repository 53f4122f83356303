"""A live server, real sockets, a real worker process: jobs, deaths, strangers."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgpack
import numpy as np
import psutil
import pytest
import zmq

from engine_bridge import codec
from engine_bridge import messages as m
from engine_bridge.client import Client, Disconnected
from engine_bridge.errors import BridgeError
from engine_bridge.server import HIGH_WATER
from engine_bridge.worker import read_spec
from worldwarp_core.spec import GenerateSpec, PathDepth, PromptKey

from .conftest import RunningServer
from .fake_engine import pixel_of
from .shots import JOB, one_of_each, shot
from .talk import Raw, frames, logged, run, until

Connect = Callable[..., Client]


# ---------------------------------------------------------------- a job


def test_a_job_delivers_every_frame_in_order_and_bit_exact(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    assert client.connect().protocol_version == m.PROTOCOL_VERSION
    events = run(client, client.submit(shot(frames=12, first=-2, prompt="slow=0.02")))
    got = frames(events)
    assert [frame.index for frame in got] == list(range(12))
    assert [frame.number for frame in got] == list(range(-2, 10))
    for frame in got:
        assert (frame.rgb == pixel_of(frame.index)).all()
        assert frame.rgb.shape == (32, 48, 3)
        assert (frame.depth == np.float32(pixel_of(frame.index) + 0.5)).all()
        assert (frame.validity == (255 if frame.index % 2 else 0)).all()
    assert [event.seq for event in logged(events)] == list(range(1, len(logged(events)) + 1))
    assert [event.state for event in events if isinstance(event, m.StateEvent)] == ["queued", "running", "done"]
    took = {"frames": 12, "delivered_size": [48, 32], "memory_gib": 1.5, "ended_s": pytest.approx(time.time(), abs=60)}
    assert events[-1].summary == {"engine": "fake", "seconds": {"fill": 1.0}, "versions": {"fake": "1"}} | took
    assert any(isinstance(event, m.NoticeEvent) and event.code == "fake" for event in events)
    assert any(isinstance(event, m.Progress) for event in events)


def test_the_newest_splats_are_fetched_whole(connect: Connect, server: RunningServer, tmp_path: Path) -> None:
    client = connect()
    job_id = client.submit(shot(frames=12))
    updates = [event for event in run(client, job_id) if isinstance(event, m.CacheEvent)]
    assert [update.revision for update in updates] == [1, 2, 3]
    path = client.fetch_splats_now(job_id, tmp_path / "new folder" / "splats.ply")
    assert path.stat().st_size == updates[-1].size_bytes
    stored = server.data_dir / job_id / "splats_000003.ply"
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(stored.read_bytes()).digest()
    assert [file.name for file in path.parent.iterdir()] == ["splats.ply"]


def test_splats_larger_than_a_block_arrive_whole(connect: Connect, server: RunningServer, tmp_path: Path) -> None:
    client = connect()
    job_id = client.submit(shot())
    run(client, job_id)
    content = random.Random(1).randbytes(2 * m.MAX_BLOCK_BYTES + 12_345)
    server.server._store.open(job_id).add_splats(lambda path: path.write_bytes(content), splats=1)
    assert client.fetch_splats_now(job_id, tmp_path / "big.ply").read_bytes() == content


def test_a_job_without_splats_says_so(connect: Connect, tmp_path: Path) -> None:
    client = connect()
    job_id = client.submit(shot(prompt="refuse"))
    assert run(client, job_id)[-1].state == "failed"
    with pytest.raises(BridgeError) as caught:
        client.fetch_splats_now(job_id, tmp_path / "splats.ply")
    assert caught.value.code == "no_splats"
    assert list(tmp_path.glob("splats*")) == []


def test_an_error_of_the_users_keeps_its_code_and_words(connect: Connect) -> None:
    client = connect()
    end = run(client, client.submit(shot(prompt="refuse")))[-1]
    assert (end.state, end.code, end.log_id) == ("failed", "no_depth", "")
    assert "Give one with --depth" in end.message


def test_an_unexpected_error_keeps_its_traceback_to_itself_and_delivers_the_frames_before_it(connect: Connect) -> None:
    client = connect()
    events = run(client, client.submit(shot(prompt="fail=2")))
    end = events[-1]
    assert (end.state, end.code) == ("failed", "engine_failed")
    assert len(frames(events)) == 3
    assert len(end.log_id) == 8
    assert end.log_id in end.message
    assert "Traceback" not in end.message
    assert ".py" not in end.message
    assert run(client, client.submit(shot()))[-1].state == "done"


@pytest.mark.parametrize("change", [{"chunk": 6}, {"overlap": 9}, {"strength": 0.0}])
def test_settings_that_cannot_work_are_refused_at_once(connect: Connect, change: dict[str, Any]) -> None:
    with Raw(connect().address) as raw:
        raw.hello()
        answer = raw.ask(attrs.evolve(one_of_each()[2], **change))
        assert isinstance(answer, m.Error)
        assert answer.code in ("bad_settings", "bad_camera_path", "bad_start_frame")
        assert raw.ask(m.ListJobs(request_id=1)).jobs == ()


def test_every_setting_of_a_shot_reaches_the_engine_as_it_was(connect: Connect, server: RunningServer) -> None:
    rng = np.random.default_rng(3)
    sent = shot(
        negative_prompt="people", strength=0.5, steps=7, cache_steps=3, seed=-4, scene_scale=2.5,
        prompt_keys=(PromptKey(2, "dusk"), PromptKey(5, "ночь")), auto_prompt=True, preset="draft", guidance=4.5,
        style_image=rng.integers(0, 256, (3, 9, 3), np.uint8), graded_validity=True,
        strength_mask=rng.uniform(-1, 1, (7, 2, 2)).astype(np.float32), path_depth=walls(),
    )  # fmt: skip
    client = connect()
    job_id = client.submit(sent)
    run(client, job_id)
    got = read_spec(server.server._store.open(job_id).request())
    for field in dataclasses.fields(GenerateSpec):
        there, here = getattr(got, field.name), getattr(sent, field.name)
        if field.name == "cameras":
            assert (there.K == here.K).all()
            assert (there.c2w == here.c2w).all()
        elif field.name == "path_depth":
            assert (there.frames == here.frames).all()
            assert there.depth.dtype == here.depth.dtype == np.float16
            assert (there.depth == here.depth).all()
        else:
            assert np.array_equal(there, here), field.name
            assert type(there) is type(here), field.name


def walls(frames: tuple[int, ...] = (1, 4), size: tuple[int, int] = (4, 6)) -> PathDepth:
    """A wall in front of some frames of `shot`'s path, of half a picture; nothing is known of the other half."""
    wall = np.full(size, 3.5, np.float32)
    wall[:, size[1] // 2 :] = 1e10
    return PathDepth.of(list(frames), [wall for _ in frames])


def test_a_paths_depth_of_another_path_is_refused_with_the_cores_words(connect: Connect) -> None:
    sent = shot(path_depth=walls())
    # As a client that does not look would send it.
    object.__setattr__(sent, "path_depth", walls((1, 400)))
    client = connect()
    with pytest.raises(BridgeError, match="frame 400, which is no frame of the path") as caught:
        run(client, client.submit(sent))
    assert caught.value.code == "bad_path_depth"


def test_a_paths_depth_that_does_not_fit_is_refused_with_what_to_do(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = codec.Limits(message_bytes=2**20)
    monkeypatch.setattr(codec, "LIMITS", small)
    monkeypatch.setattr(codec.check_sizes, "__defaults__", (small,))
    sent = shot(path_depth=walls((1, 2, 3, 4), (480, 720)))
    with pytest.raises(BridgeError, match=r"takes 3 MiB of it: give it for one frame in 3, or smaller") as caught:
        connect().submit(sent)
    assert caught.value.code == "too_large"


def test_settings_too_large_to_send_are_refused_before_they_are_sent(connect: Connect) -> None:
    keys = tuple(PromptKey(frame, "x" * 9000) for frame in range(200))
    with pytest.raises(BridgeError, match="in its header") as caught:
        connect().submit(shot(prompt_keys=keys))
    assert caught.value.code == "too_large"


def test_a_summary_that_cannot_be_sent_fails_the_job_not_the_worker(connect: Connect) -> None:
    client = connect()
    assert run(client, client.submit(shot(prompt="deep")))[-1].code == "engine_failed"
    assert run(client, client.submit(shot()))[-1].state == "done"


def test_another_engine_than_the_servers_is_refused(connect: Connect) -> None:
    client = connect()
    with pytest.raises(BridgeError, match="runs the engine 'cache', not 'better'") as caught:
        run(client, client.submit(shot(), engine="better"))
    assert caught.value.code == "unknown_engine"


def test_a_repeated_submission_is_the_same_job(connect: Connect) -> None:
    first, second = connect(), connect()
    job_id = first.submit(shot())
    run(first, job_id)
    second.submit(shot(), job_id=job_id)
    assert len(frames(run(second, job_id))) == 7
    assert [job.job_id for job in second.list_jobs()] == [job_id]
    third = connect()
    with pytest.raises(BridgeError) as caught:
        run(third, third.submit(shot(frames=8), job_id=job_id))
    assert caught.value.code == "job_exists"


# ---------------------------------------------------------------- many clients, slow clients, dead clients


def test_two_clients_follow_one_job_and_jobs_wait_their_turn(connect: Connect, go: Path) -> None:
    one, two = connect(), connect()
    first = one.submit(shot(frames=6, prompt=f"slow=0.05 hold=2 go={go}"))
    until(one, m.Accepted)
    second = two.submit(shot(frames=3))
    assert until(two, m.Accepted)[-1].position == 1
    third = connect()
    third.subscribe(first)
    go.touch()
    assert len(frames(run(third, first))) == 6
    assert len(frames(run(two, second))) == 3
    assert len(frames(run(one, first))) == 6
    listed = third.list_jobs()
    assert [(job.job_id, job.state, job.frames, job.frames_done) for job in listed] == [
        (first, "done", 6, 6),
        (second, "done", 3, 3),
    ]


def test_a_client_that_does_not_read_costs_no_memory_and_loses_nothing(connect: Connect, server: RunningServer) -> None:
    # 120 frames of 320x180 are 55 MB; the client takes nothing and has credit for one, the other one for ten.
    slow, other = connect(credit_bytes=500_000), connect(credit_bytes=5_000_000)
    job_id = slow.submit(shot(frames=120, width=320, height=180))
    until(slow, m.Accepted)
    other.subscribe(job_id)
    other_frames = 0
    before = psutil.Process().memory_info().rss
    for event in other.events(job_id):
        other_frames += isinstance(event, m.FrameEvent)
        del event
    assert other_frames == 120
    # What waits at the slow client: its credit, and the one event that may go over it.
    assert slow._wire._unread.get(job_id, 0) < 500_000 + 500_000
    assert psutil.Process().memory_info().rss - before < 40e6
    got = frames(run(slow, job_id))
    assert [frame.index for frame in got] == list(range(120))
    assert (got[-1].rgb == pixel_of(119)).all()


def _follow_and_die(address: str, job_id: str, after: int) -> None:
    client = Client(address)
    client.subscribe(job_id)
    until(client, m.FrameEvent, after)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL to die of")
def test_a_client_killed_mid_stream_loses_nothing_for_the_next(connect: Connect, server: RunningServer) -> None:
    client = connect()
    job_id = client.submit(shot(frames=20, prompt="slow=0.05"))
    until(client, m.Accepted)
    doomed = multiprocessing.get_context("spawn").Process(target=_follow_and_die, args=(server.address, job_id, 5))
    doomed.start()
    doomed.join(120)
    assert doomed.exitcode == -signal.SIGKILL
    resumed = connect()
    resumed.subscribe(job_id, after_seq=8)
    events = logged(run(resumed, job_id))
    assert events[0].seq == 9
    fresh = connect()
    fresh.subscribe(job_id)
    everything = logged(run(fresh, job_id))
    assert [event.seq for event in everything] == list(range(1, len(everything) + 1))
    assert len(frames(everything)) == 20
    assert everything[8:] == events
    assert server.is_alive()


def test_progress_is_not_kept_for_a_client_that_does_not_read(connect: Connect) -> None:
    client = connect(credit_bytes=3000)
    job_id = client.submit(shot(frames=3, prompt="progress=20000", width=16, height=16))
    reader = connect()
    until(client, m.Accepted)
    reader.subscribe(job_id)
    assert run(reader, job_id)[-1].state == "done"
    events = run(client, job_id)
    assert len(frames(events)) == 3
    assert sum(isinstance(event, m.Progress) for event in events) < 60


# ---------------------------------------------------------------- cancel


@pytest.mark.parametrize("prompt", ["wait", "slow=0.05"])
def test_cancel_stops_a_running_job_and_keeps_what_it_delivered(connect: Connect, prompt: str) -> None:
    client = connect()
    job_id = client.submit(shot(frames=2000, prompt=prompt))  # of which the slow one would take minutes
    seen = until(client, m.Progress) if prompt == "wait" else until(client, m.FrameEvent, 3)
    client.cancel(job_id)
    rest = run(client, job_id)
    assert (rest[-1].state, rest[-1].code) == ("cancelled", "cancelled")
    delivered = frames(seen + rest)
    assert len(delivered) < 600, "it stopped long before its end"
    again = connect()
    again.subscribe(job_id)
    assert len(frames(run(again, job_id))) == len(delivered)
    assert run(again, again.submit(shot()))[-1].state == "done"


def test_a_waiting_job_is_cancelled_without_starting(connect: Connect) -> None:
    client = connect()
    running = client.submit(shot(prompt="wait"))
    waiting = client.submit(shot())
    until(client, m.Progress)
    client.cancel(waiting)
    states = [event.state for event in run(client, waiting) if isinstance(event, m.StateEvent)]
    assert states[-1] == "cancelled"
    assert "running" not in states
    client.cancel(running)
    other = connect()
    other.subscribe(running)
    assert run(other, running)[-1].state == "cancelled"


def test_cancelling_an_ended_or_unknown_job_is_harmless(connect: Connect) -> None:
    client = connect()
    job_id = client.submit(shot())
    run(client, job_id)
    client.cancel(job_id)
    assert until(client, m.Cancelling)[-1].state == "done"
    client.cancel(JOB)
    with pytest.raises(BridgeError) as caught:
        run(client, JOB)
    assert caught.value.code == "unknown_job"


# ---------------------------------------------------------------- the worker dies


def test_a_worker_that_crashes_again_and_again_fails_its_job_and_only_that(
    connect: Connect, server: RunningServer
) -> None:
    client = connect()
    job_id = client.submit(shot(frames=12, prompt="crash=6"))
    events = run(client, job_id)
    assert (events[-1].state, events[-1].code) == ("failed", "worker_died")
    assert "exit code 9" in events[-1].message
    assert "3 times" in events[-1].message
    # The first chunk once, and what comes after it in each of three attempts.
    made = [(frame.index, frame.attempt) for frame in frames(events)]
    assert made == [(n, 1) for n in range(7)] + [(5, 2), (6, 2), (5, 3), (6, 3)]
    assert server.is_alive()
    again = connect()
    again.subscribe(job_id)
    assert logged(run(again, job_id)) == logged(events)
    assert len(frames(run(client, client.submit(shot())))) == 7
    assert [(job.state, job.frames_done) for job in client.list_jobs()] == [("failed", 5), ("done", 7)]


def damage(log: Path, share: float) -> None:
    """Changes a byte of the event log at that share of its length."""
    with log.open("r+b") as file:
        file.seek(int(log.stat().st_size * share))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_an_engine_that_cannot_start_fails_jobs_with_its_reason(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(options={"broken": True})
    with Client(server.address) as client:
        for _ in range(2):
            end = run(client, client.submit(shot()))[-1]
            assert (end.state, end.code) == ("failed", "engine_unavailable")
            assert "something_heavy" in end.message
        assert client.list_jobs()[-1].state == "failed"


# ---------------------------------------------------------------- jobs of long ago


def stored(server: RunningServer) -> set[str]:
    return {folder.name for folder in server.data_dir.iterdir()} - {"logs", "locks"}


def size_of(server: RunningServer, job_id: str) -> int:
    return sum(file.stat().st_size for file in (server.data_dir / job_id).iterdir())


def test_the_oldest_ended_jobs_make_room_when_a_job_is_accepted(
    start_server: Callable[..., RunningServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = start_server()
    with Client(before.address) as client:
        followed, oldest = client.submit(shot()), client.submit(shot())
        run(client, oldest)
    before.stop()
    room = sum(size_of(before, job_id) for job_id in (followed, oldest)) + 2000
    server = start_server(keep_bytes=room)
    assert stored(server) == {followed, oldest}
    with Client(server.address) as client, Client(server.address) as other:
        other.subscribe(followed)
        run(other, followed)
        ended = client.submit(shot())
        run(client, ended)
        assert stored(server) == {followed, oldest, ended}
        running = client.submit(shot(prompt="wait"))
        waiting = client.submit(shot())
        until(client, m.Accepted, 2)
        assert stored(server) == {followed, ended, running, waiting}
        assert f"Job {oldest}: deleted to make room" in caplog.text
        assert [job.job_id for job in client.list_jobs()] == [followed, ended, running, waiting]
        other.subscribe(oldest)
        with pytest.raises(BridgeError, match="may have been removed"):
            run(other, oldest)
        client.cancel(running)
        assert run(client, waiting)[-1].state == "done"


def test_only_ended_jobs_that_nobody_follows_are_deleted(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(keep_bytes=0)
    with Client(server.address) as client:
        ended = client.submit(shot())
        run(client, ended)
        running, waiting = client.submit(shot(prompt="wait")), client.submit(shot())
        until(client, m.Accepted, 2)
        assert stored(server) == {ended, running, waiting}
        client.cancel(running)
        assert run(client, waiting)[-1].state == "done"
    server.stop()
    assert stored(start_server(keep_bytes=0)) == set()


# ---------------------------------------------------------------- the server stops


def test_a_server_starts_whatever_is_damaged_in_its_jobs(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server = start_server()
    with Client(server.address) as client:
        ids = [client.submit(shot(frames=8)) for _ in range(6)]
        for job_id in ids:
            run(client, job_id)
    server.stop()
    cut, no_log, no_index, bad_state, odd_state, whole = ids
    for job_id in (cut, no_log):
        # As a server that was killed in the middle leaves it.
        state = tmp_path / "jobs" / job_id / "state.json"
        state.write_text(state.read_text().replace('"done"', '"running"'))
    damage(tmp_path / "jobs" / cut / "events.log", 0.5)
    (tmp_path / "jobs" / no_log / "events.log").unlink()
    (tmp_path / "jobs" / no_index / "events.index").unlink()
    (tmp_path / "jobs" / bad_state / "state.json").write_text('{"state": 7, "created_s": "x", "frames": null}')
    odd = tmp_path / "jobs" / odd_state / "state.json"
    odd.write_text(odd.read_text().replace('"done"', '"resting"'))
    again = start_server()
    with Client(again.address) as client:
        listed = {job.job_id: job for job in client.list_jobs()}
        assert set(listed) == {cut, no_log, no_index, whole}
        client.subscribe(whole)
        assert len(frames(run(client, whole))) == 8


def test_a_server_lives_on_when_somebody_deletes_a_running_jobs_folder(
    connect: Connect, server: RunningServer, go: Path
) -> None:
    client = connect()
    job_id = client.submit(shot(prompt=f"hold=2 go={go}"))
    until(client, m.FrameEvent, 2)
    shutil.rmtree(server.data_dir / job_id)
    go.touch()
    with pytest.raises(BridgeError, match="cannot be read on the server"):
        run(client, job_id)
    assert run(client, client.submit(shot()))[-1].state == "done"
    assert {job.job_id: job.state for job in client.list_jobs()}[job_id] in ("done", "failed")


def test_the_list_of_jobs_fits_into_a_message_whatever_they_say(connect: Connect, server: RunningServer) -> None:
    client = connect()
    client.connect()
    (job, *_) = next(message.jobs for message in one_of_each() if isinstance(message, m.Jobs) and message.jobs)
    for n in range(300):
        server.server._jobs.add(attrs.evolve(job, job_id=f"{n:032x}", message="ß" * 5000))
    listed = client.list_jobs()
    assert 50 < len(listed) < 300
    assert listed[-1].job_id == f"{299:032x}", "the newest are told of"


def test_a_server_deletes_the_oldest_ended_jobs_when_it_starts(
    start_server: Callable[..., RunningServer],
) -> None:
    server = start_server()
    with Client(server.address) as client:
        ids = [client.submit(shot()) for _ in range(3)]
        run(client, ids[-1])
    server.stop()
    sizes = [size_of(server, job_id) for job_id in ids]
    kept = start_server(keep_bytes=sizes[1] + sizes[2])
    assert stored(kept) == set(ids[1:])
    kept.stop()
    assert stored(start_server(keep_bytes=sizes[1] + sizes[2] - 1)) == {ids[2]}


def test_a_full_disk_fails_the_job_with_its_code(
    connect: Connect, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    client.connect()
    import errno

    from engine_bridge import store

    def full(file: Any, *pieces: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(BridgeError) as caught:
        run(client, client.submit(shot()))
    assert caught.value.code == "disk_full"
    monkeypatch.undo()
    assert run(client, client.submit(shot()))[-1].state == "done"


# ---------------------------------------------------------------- strangers


def test_garbage_is_answered_and_the_server_lives_on(connect: Connect, server: RunningServer) -> None:
    rng = random.Random(5)
    examples = [[bytes(part) for part in codec.encode(message)] for message in one_of_each()]
    with Raw(server.address) as raw:
        raw.hello()
        answers = 0
        for _ in range(300):
            parts = [rng.randbytes(rng.randrange(1, 80))]
            if rng.random() < 0.7:
                parts = list(rng.choice(examples[10:]))
                parts[0] = parts[0][: rng.randrange(len(parts[0]))]
            raw.say(*parts)
            answer = raw.hear()
            assert isinstance(answer, m.Error)
            assert answer.code in ("bad_message", "unknown_message", "too_large")
            answers += 1
        assert answers == 300
        assert isinstance(raw.ask(m.Ping(request_id=9)), m.Pong)
    client = connect()
    assert run(client, client.submit(shot()))[-1].state == "done"


def test_an_oversized_message_is_answered_and_the_server_lives_on(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(limits=codec.Limits(message_bytes=1_000_000, header_bytes=10_000))
    with Raw(server.address) as raw:
        raw.hello()
        for parts in (
            [msgpack.packb(["ping", {"request_id": 1}, []]), bytes(1_500_000)],
            [bytes(20_000)],
            [msgpack.packb(["ping", {"request_id": 1}, []])] + [b""] * 5000,
        ):
            raw.say(*parts)
            assert raw.hear().code == "too_large"
        assert isinstance(raw.ask(m.Ping(request_id=9)), m.Pong)
    with Raw(server.address) as raw:
        raw.say(bytes(3_000_000))
        assert not raw.socket.poll(300), "the transport itself closes on what is far too large"
    with Raw(server.address) as raw:
        assert isinstance(raw.hello(), m.Welcome)


def test_nothing_is_served_before_hello(server: RunningServer) -> None:
    with Raw(server.address) as raw:
        assert raw.ask(m.ListJobs(request_id=3)).code == "hello_first"
        assert isinstance(raw.hello(), m.Welcome)
        assert isinstance(raw.ask(m.ListJobs(request_id=3)), m.Jobs)


def test_who_asks_and_never_reads_is_forgotten(server: RunningServer) -> None:
    with Raw(server.address) as raw:
        raw.socket.set(zmq.RCVHWM, 1)
        raw.hello()
        ping = codec.encode(m.ListJobs(request_id=1))
        # Far more than the sockets' buffers and the server's limit hold.
        for _ in range(40 * HIGH_WATER):
            raw.say(*ping)
    with Raw(server.address) as other:
        assert isinstance(other.hello(), m.Welcome)
        assert isinstance(other.ask(m.Ping(request_id=1)), m.Pong)


def test_another_protocol_version_gets_a_sentence(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Raw(server.address) as raw:
        raw.say(msgpack.packb(["hello", {"request_id": 5, "protocol_version": 7, "new": True}, []]))
        answer = raw.hear()
    assert (answer.code, answer.request_id) == ("wrong_protocol_version", 5)
    assert (
        answer.message
        == f"The client speaks protocol 7 and the server protocol {m.PROTOCOL_VERSION}: update the server."
    )
    # As the add-ons of earlier versions say it.
    hello = {"request_id": 0, "client": "worldwarp-blender", "version": "0.1.0"}
    for version, more in ((1, {}), (2, {"client_id": JOB}), (3, {"client_id": JOB})):
        with Raw(server.address) as raw:
            raw.say(msgpack.packb(["hello", {**hello, "protocol_version": version, **more}, []]))
            tag, fields, _ = msgpack.unpackb(raw.socket.recv_multipart()[0])
        assert (tag, set(fields)) == ("error", {"request_id", "code", "message", "job_id"}), "as they can read it"
        assert fields["message"] == (
            f"The client speaks protocol {version} and the server protocol {m.PROTOCOL_VERSION}: "
            "update the client (in Blender: the WorldWarp extension)."
        )
    monkeypatch.setattr("engine_bridge.session.PROTOCOL_VERSION", 0)
    with Client(server.address) as client, pytest.raises(BridgeError, match="update the client") as caught:
        client.connect()
    assert caught.value.code == "wrong_protocol_version"


def test_no_path_of_a_client_reaches_the_disk(server: RunningServer, tmp_path: Path) -> None:
    with Raw(server.address) as raw:
        # Until the worker is there, it and the server still make files of their own.
        while not raw.hello().engine_info:
            time.sleep(0.02)
        before = set(tmp_path.rglob("*"))
        for job_id in ("../" * 10 + "ab", "/etc/passwd", "..", "C:\\x", "0" * 31 + "/"):
            for tag, more in (
                ("subscribe", {"after_seq": 0, "credit_bytes": 1}),
                ("fetch_splats", {"revision": 0, "offset": 0}),
            ):
                raw.say(msgpack.packb([tag, {"request_id": 1, "job_id": job_id, **more}, []]))
                assert raw.hear().code == "bad_message"
    assert set(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------- addresses


def test_an_address_in_use_is_named(server: RunningServer, tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="already") as caught:
        RunningServer(tmp_path / "other", address=server.address)
    assert caught.value.code == "address_in_use"


def test_nobody_there_says_how_to_start_a_server() -> None:
    with Client("tcp://127.0.0.1:9", connect_timeout_s=0.5) as client:
        with pytest.raises(BridgeError, match="worldwarp serve --port 9") as caught:
            client.connect()
        assert caught.value.code == "server_not_running"
        assert any(isinstance(event, Disconnected) for event in client.poll())  # it is there before the error is
        with pytest.raises(BridgeError) as caught:
            client.submit(shot())
        assert caught.value.code == "server_not_running"


def test_a_server_that_stays_away_is_given_up(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    with Client(server.address, gone_timeout_s=0.5) as client:
        client.submit(shot(prompt="wait"))
        until(client, m.Progress)
        server.server.stop()
        server.stop()
        last = [event for event in until(client, Disconnected) if isinstance(event, m.StateEvent)][-1]
        assert (last.state, last.code) == ("queued", "server_stopped"), "a server that stops tells its clients first"
        with pytest.raises(BridgeError, match="worldwarp serve") as caught:
            client.request_jobs()
        assert caught.value.code == "server_gone"
