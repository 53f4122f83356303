"""A picture from words through the bridge: one frame, progress, cancel, and a refusal by engines that cannot draw."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_bridge import codec
from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.errors import BridgeError
from engine_bridge.server import DRAW_PRIORITY
from worldwarp_core.spec import BACKGROUND_DEPTH, FirstFrameSettings

from .conftest import RunningServer
from .shots import JOB, shot
from .talk import Raw, frames, run, until


def wish(prompt: str = "an abbey", steps: int = 4, **more: Any) -> FirstFrameSettings:
    return FirstFrameSettings(prompt, width=64, height=48, steps=steps, **more)


def test_a_picture_is_a_job_of_one_frame_without_depth(connect: Callable[..., Client]) -> None:
    client = connect()
    events = run(client, client.draw(wish(seed=77)))
    (picture,) = frames(events)
    assert picture.rgb.shape == (48, 64, 3)
    assert (picture.rgb == 77).all()
    assert (picture.depth == np.float32(BACKGROUND_DEPTH)).all()
    assert not picture.validity.any()
    assert events[-1].state == "done"
    assert events[-1].summary["settings"]["seed"] == 77
    assert events[-1].summary["seconds"]["draw"] >= 0
    # Nothing is committed: there is nothing to go on from.
    assert not any(isinstance(event, m.ChunkCommitted | m.CacheEvent) for event in events)


def test_progress_rises_through_every_part(connect: Callable[..., Client], go: Path) -> None:
    client = connect()
    # Of progress the newest is told: there is time for that of the steps, too.
    job_id = client.draw(wish(f"hold=3 go={go}", steps=5))
    events: list[Any] = []
    while not any(isinstance(event, m.Progress) and event.stage == "denoise" for event in events):
        events += until(client, m.Progress)
    go.touch()
    events += run(client, job_id)
    told = [event for event in events if isinstance(event, m.Progress)]
    assert "denoise" in {event.stage for event in told}
    assert [event.fraction for event in told] == sorted(event.fraction for event in told)
    assert any(event.eta_s is not None for event in told)


def test_a_cancel_stops_within_a_step_and_brings_no_picture(connect: Callable[..., Client]) -> None:
    client = connect()
    job_id = client.draw(wish("slow=0.2", steps=500))  # which would take 100 seconds
    until(client, m.Progress, 3)
    began_s = time.monotonic()
    client.cancel(job_id)
    events = run(client, job_id)
    assert events[-1].state == "cancelled"
    assert not frames(events)
    assert time.monotonic() - began_s < 30


def test_an_engine_that_cannot_draw_says_so(connect: Callable[..., Client]) -> None:
    client = connect()
    end = run(client, client.draw(wish("refuse")))[-1]
    assert (end.state, end.code) == ("failed", "cannot_draw")


def test_a_fault_of_the_engine_is_told_without_its_secrets(connect: Callable[..., Client]) -> None:
    client = connect()
    end = run(client, client.draw(wish("fail=1")))[-1]
    assert (end.state, end.code) == ("failed", "engine_failed")
    assert end.log_id
    assert end.log_id in end.message


def test_a_worker_that_dies_of_it_three_times_ends_it(connect: Callable[..., Client]) -> None:
    client = connect()
    events = run(client, client.draw(wish("crash=1")))
    assert (events[-1].state, events[-1].code) == ("failed", "worker_died")
    assert sum(event.state == "running" for event in events if isinstance(event, m.StateEvent)) == 3


@pytest.mark.parametrize(("width", "height", "says"), [(100, 48, "multiples of 16"), (2048, 2048, "at most")])
def test_impossible_sizes_are_refused_at_once(server: RunningServer, width: int, height: int, says: str) -> None:
    with Raw(server.address) as raw:
        raw.hello()
        asked = m.Draw(
            request_id=3, job_id=JOB, prompt="stone", negative_prompt="", width=width, height=height, seed=0, steps=4,
            guidance=5.0,
        )  # fmt: skip
        refusal = raw.ask(asked)
        assert (refusal.request_id, refusal.code) == (3, "bad_settings")
        assert says in refusal.message
        raw.say(*codec.encode(m.ListJobs(request_id=4)))
        assert raw.hear().jobs == ()


def test_a_server_from_before_there_was_draw_is_told_apart(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {tag: kind for tag, kind in codec._KINDS[m.ClientMessage].items() if tag != "draw"}
    monkeypatch.setitem(codec._KINDS, m.ClientMessage, known)
    client = connect()
    with pytest.raises(BridgeError) as caught:
        run(client, client.draw(wish()))
    assert caught.value.code == "unknown_message"


def test_a_picture_comes_before_its_clients_own_waiting_shots(connect: Callable[..., Client], go: Path) -> None:
    client = connect()
    first = client.submit(shot(5, prompt=f"hold=1 go={go}"))
    until(client, m.FrameEvent, 1)
    later = client.submit(shot(5))
    drawn = client.draw(wish())
    assert {job.job_id: job.priority for job in client.list_jobs()} == {first: 0, later: 0, drawn: DRAW_PRIORITY}
    go.touch()
    running: list[str] = []
    while later not in running:
        event = client.wait(10.0)
        running += [event.job_id] if isinstance(event, m.StateEvent) and event.state == "running" else []
    assert running == [drawn, later]
