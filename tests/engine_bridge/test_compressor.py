"""Frames compressed for slow networks: fewer bytes on the wire, the same frames, and nobody waits for it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from engine_bridge import codec, compressor
from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.compressor import Compressor

from .conftest import RunningServer
from .shots import JOB, shot
from .talk import frames, logged, run, until
from .test_codec import smooth_frame
from .test_security import eavesdropper


def test_frames_are_the_same_and_fewer_bytes_go_over_the_wire(server: RunningServer) -> None:
    heard: list[int] = []
    events = []
    with Client(server.address) as first:
        job_id = first.submit(shot(10, width=320, height=180))
        events.append(logged(run(first, job_id)))
    for compress in (False, True):
        with eavesdropper(int(server.address.rpartition(":")[2])) as (port, ear):
            with Client(f"tcp://127.0.0.1:{port}", compress=compress) as client:
                client.subscribe(job_id)
                events.append(logged(run(client, job_id)))
            heard.append(len(ear))
    assert events[0] == events[1] == events[2]
    assert heard[1] * 10 < heard[0]


def test_a_client_that_compresses_and_one_that_does_not_follow_one_running_job(server: RunningServer) -> None:
    # Less credit than two frames: what is booked at both ends has to agree, or it would run dry.
    spec = shot(12, prompt="noise slow=0.02", width=320, height=180)
    with (
        Client(server.address, compress=True, credit_bytes=700_000) as small,
        Client(server.address, credit_bytes=700_000) as plain,
    ):
        job_id = small.submit(spec)
        until(small, m.Accepted)
        plain.subscribe(job_id)
        assert logged(run(small, job_id)) == logged(run(plain, job_id))


def test_control_is_answered_while_a_frame_is_being_compressed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, done = threading.Event(), threading.Event()
    compress = codec.compress

    def slowly(parts: list[codec.Part]) -> list[codec.Part]:
        begun.set()
        assert done.wait(120)
        return compress(parts)

    monkeypatch.setattr(codec, "compress", slowly)
    with Client(server.address, compress=True) as client:
        job_id = client.submit(shot(3, width=320, height=180))
        until(client, m.StateEvent, 2)
        assert begun.wait(60)
        for _ in range(5):
            assert client.list_jobs()[0].job_id == job_id
        assert not done.is_set()
        assert not frames(client.poll())
        done.set()
        assert len(frames(run(client, job_id))) == 3


def test_a_frame_is_compressed_once_and_forgotten_when_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    may_begin = threading.Event()
    compress = codec.compress

    def when_told(parts: list[codec.Part]) -> list[codec.Part]:
        assert may_begin.wait(120)
        return compress(parts)

    monkeypatch.setattr(codec, "compress", when_told)
    frames_of = Compressor()
    parts = codec.encode(smooth_frame())
    assert frames_of.take(JOB, 1, parts) is None
    frames_of.tidy()
    assert frames_of.busy, "what is being done is not forgotten"
    may_begin.set()
    while frames_of.busy:
        time.sleep(0.005)
    taken = frames_of.take(JOB, 1, parts)
    assert taken is not None
    assert np.array_equal(codec.decode(taken, m.ServerMessage).rgb, smooth_frame().rgb)
    assert frames_of.take(JOB, 1, parts) is taken, "for the next client too"
    monkeypatch.setattr(compressor, "KEEP_S", 1000.0)
    frames_of.tidy()
    assert frames_of.take(JOB, 1, parts) is taken
    monkeypatch.setattr(compressor, "KEEP_S", 0.0)
    time.sleep(0.05)
    frames_of.tidy()
    assert not frames_of._frames
    assert not frames_of._asked_s
    frames_of.close()
