"""Looking around: the newest look wins, stale ones are dropped, the growing world shows, strangers stay out."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from engine_bridge import codec, keys, viewer
from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.errors import BridgeError
from engine_bridge.live_view import LiveView
from engine_bridge.store import JobStore

from .conftest import RunningServer
from .shots import JOB, shot
from .talk import Raw, run, until

VIEWER = "tests.engine_bridge.fake_viewer:open_viewer"
K = np.array([50.0, 50.0, 24.0, 16.0])


def camera(x: float) -> np.ndarray:
    c2w = np.eye(4)
    c2w[0, 3] = x
    return c2w


@pytest.fixture
def server(start_server: Callable[..., RunningServer]) -> RunningServer:
    return start_server(view=True, view_factory=VIEWER)


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.address) as client:
        assert client.view_port(), "its process has started"
        yield client


def picture_of(view: LiveView, look_id: int, timeout_s: float = 60.0) -> m.Picture:
    deadline = time.monotonic() + timeout_s
    while True:
        assert time.monotonic() < deadline
        picture = view.picture(0.1)
        if picture is not None and picture.look_id == look_id:
            return picture


def test_a_look_is_answered_with_what_the_camera_sees(client: Client) -> None:
    job_id = client.submit(shot(5))
    run(client, job_id)
    with LiveView(client, job_id) as view:
        picture = picture_of(view, view.look(K, camera(7), 20, 10))
        assert (picture.width, picture.height, picture.format, picture.revision) == (20, 10, "raw", 1)
        assert (picture.data.reshape(10, 20, 3) == (104, 24, 7)).all()
    with LiveView(client, job_id, format="jpeg", quality=95) as view:
        picture = picture_of(view, view.look(K, camera(7), 64, 48))
        pixels = np.asarray(Image.open(io.BytesIO(picture.data.tobytes())))
        assert pixels.shape == (48, 64, 3)
        assert np.abs(pixels.astype(int) - (104, 24, 7)).max() <= 3


@pytest.fixture
def viewer_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the view says that it is at a slow look, and waits; asked for before there is a server."""
    monkeypatch.setenv("FAKE_VIEWER", str(tmp_path))
    return tmp_path


def test_the_newest_look_wins_and_stale_ones_are_dropped(viewer_folder: Path, client: Client) -> None:
    job_id = client.submit(shot(5))
    run(client, job_id)
    slow = K.copy()
    slow[0] = 1
    with LiveView(client, job_id) as view:
        picture_of(view, view.look(K, camera(0), 8, 8))
        first = last = view.look(slow, camera(0), 8, 8)
        deadline = time.monotonic() + 60
        while not (viewer_folder / "looking").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        for x in range(120):
            last = view.look(K, camera(x % 13), 8, 8)
            time.sleep(1 / 120)
        (viewer_folder / "go").touch()
        seen = []
        while last not in seen:
            assert time.monotonic() < deadline
            if (picture := view.picture(0.1)) is not None:
                seen.append(picture.look_id)
        assert seen == sorted(set(seen))
        # Of the many that came meanwhile the newest is shown, and the last where that was still to be sent.
        assert len([look_id for look_id in seen if look_id != first]) <= 2


def test_a_growing_world_is_shown_while_its_job_runs(client: Client, go: Path) -> None:
    job_id = client.submit(shot(15, prompt=f"slow=0.05 hold=8 go={go}"))
    with LiveView(client, job_id) as view:
        # Sent before there is a world: the view tries again by itself.
        look_id = view.look(K, camera(1), 8, 8)
        sizes = [int(picture_of(view, look_id).data[0])]
        state = client.list_jobs()[0].state
        assert state == "running"
        assert sizes == [104], "the first world, of 5 frames"
        go.touch()
        deadline = time.monotonic() + 60
        while sizes[-1] != 114 and time.monotonic() < deadline:
            if (picture := view.picture(0.2)) is not None:
                sizes.append(int(picture.data[0]))
        assert sizes[-1] == 114, "the last world, of 15 frames"
        assert sizes == sorted(sizes)
    assert run(client, job_id)[-1].state == "done"


def test_a_camera_that_cannot_be_rendered_loses_one_look(client: Client) -> None:
    job_id = client.submit(shot(5))
    run(client, job_id)
    with LiveView(client, job_id) as view:
        view.look(K, camera(13), 8, 8)
        assert view.picture(0.5) is None
        assert picture_of(view, view.look(K, camera(1), 8, 8)).data[2] == 1
        for bad in (camera(np.nan), np.zeros((3, 4))):
            with pytest.raises(BridgeError) as caught:
                view.look(K, bad, 8, 8)
            assert caught.value.code == "bad_message"


def test_who_does_not_say_what_was_seen_gets_no_more(client: Client) -> None:
    job_id = client.submit(shot(5))
    run(client, job_id)
    with Raw(f"tcp://127.0.0.1:{client.view_port()}") as raw:
        assert isinstance(raw.hello(), m.Welcome)

        def look(look_id: int, seen_id: int) -> None:
            raw.say(*codec.encode(m.Look(
                job_id=job_id, look_id=look_id, seen_id=seen_id, width=4, height=4, format="raw", quality=1, K=K,
                c2w=camera(look_id),
            )))  # fmt: skip

        answered = []
        for look_id in (1, 2):
            look(look_id, 0)
            answered.append(raw.hear().look_id)
        assert answered == [1, 2]
        for look_id in range(3, 12):
            look(look_id, 0)
        assert not raw.socket.poll(1500)
        look(11, answered[-1])
        assert raw.hear().look_id == 11


def test_each_port_sends_who_is_wrong_to_the_other(client: Client, server: RunningServer) -> None:
    look = m.Look(
        job_id=JOB, look_id=1, seen_id=0, width=4, height=4, format="raw", quality=1, K=K, c2w=camera(0)
    )  # fmt: skip
    with Raw(server.address) as raw:
        raw.hello()
        assert raw.ask(look).code == "no_view"
    with Raw(f"tcp://127.0.0.1:{client.view_port()}") as raw:
        raw.hello()
        assert raw.ask(m.ListJobs(request_id=4)).code == "no_view"
        assert raw.ask(look).code == "no_splats"
        raw.say(b"nonsense")
        assert raw.hear().code == "bad_message"


def test_the_view_asks_for_keys_where_the_server_does(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    ring = tmp_path / "keys"
    anna, _ = keys.make_client_key(ring, "anna", keys.make_server_key(ring).public)
    keys.allow_client(ring, "anna", anna.public)
    server = start_server(view=True, view_factory=VIEWER, keys_dir=ring)
    with Client(server.address, key=anna) as client:
        job_id = client.submit(shot(5))
        run(client, job_id)
        with LiveView(client, job_id) as view:
            assert picture_of(view, view.look(K, camera(7), 4, 4)).data[2] == 7
        with Raw(f"tcp://127.0.0.1:{client.view_port()}") as raw:
            raw.say(*codec.encode(m.ListJobs(request_id=1)))
            assert not raw.socket.poll(500)


def test_a_view_that_dies_is_started_again_and_the_job_goes_on(
    client: Client, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_bridge.viewer.ViewProcess.RESTART_EVERY_S", 0.1)
    job_id = client.submit(shot(30, prompt="slow=0.05"))
    until(client, m.CacheEvent)
    with LiveView(client, job_id) as looking:
        picture_of(looking, looking.look(K, camera(1), 4, 4))
        view = next(c for c in psutil.Process().children() if c.pid == server.server._view._process.pid)  # type: ignore[union-attr]
        view.kill()
        events = run(client, job_id)
        assert events[-1].state == "done"
        assert [e.index for e in events if isinstance(e, m.FrameEvent)][-1] == 29
        # Who looked before goes on looking: the new process asks for Hello.
        assert picture_of(looking, looking.look(K, camera(2), 4, 4)).data[2] == 2


def test_a_view_is_started_again_where_it_was_also_when_it_had_to_choose_another_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer.ViewProcess, "RESTART_EVERY_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = taken.getsockname()[1]
        config = viewer.ViewConfig(f"tcp://127.0.0.1:{wanted}", str(tmp_path), "cache", factory=VIEWER)
        view = viewer.ViewProcess(config)
        first = port_of(view)
        assert first != wanted
    try:
        view._process.kill()
        view._process.join()
        view.keep_up()
        assert port_of(view) == first
    finally:
        view.stop()


def port_of(view: viewer.ViewProcess) -> int:
    """Where it listens, as soon as it does."""
    deadline = time.monotonic() + 60
    while not view.port:
        assert time.monotonic() < deadline
        view.keep_up()
        time.sleep(0.01)
    return view.port


def test_a_world_that_cannot_be_shown_is_said_and_others_are_shown_on(client: Client) -> None:
    too_large, small = client.submit(shot(5, prompt="splats=1999")), client.submit(shot(5))
    run(client, too_large)
    run(client, small)
    with LiveView(client, too_large) as view, LiveView(client, small) as other:
        view.look(K, camera(1), 4, 4)
        with pytest.raises(BridgeError, match=r"cannot be shown \(MemoryError\).*log has the details under"):
            view.picture(60.0)
        assert picture_of(other, other.look(K, camera(2), 4, 4)).data[2] == 2


def test_a_connection_looks_at_a_few_jobs_only(client: Client, server: RunningServer) -> None:
    store = JobStore(server.data_dir)
    jobs = [f"{n:032x}" for n in range(viewer.MAX_LOOKED_AT + 1)]
    for job_id in jobs:
        store.open(job_id).folder.mkdir()
        store.open(job_id).add_splats(lambda path: path.write_bytes(b""), 0)
    with Raw(f"tcp://127.0.0.1:{client.view_port()}") as raw:
        raw.hello()
        for job_id in jobs:
            raw.say(*codec.encode(m.Look(
                job_id=job_id, look_id=1, seen_id=0, width=4, height=4, format="raw", quality=1, K=K, c2w=camera(0),
            )))  # fmt: skip
        refused = raw.hear()
        assert (refused.code, refused.job_id) == ("over_limit", jobs[-1])


def test_the_round_trip_is_short(client: Client) -> None:
    """Loosely, as this machine may be busy; `bench_bridge.py` measures it."""
    job_id = client.submit(shot(5))
    run(client, job_id)
    trips: list[Any] = []
    with LiveView(client, job_id) as view:
        picture_of(view, view.look(K, camera(0), 320, 180))
        for x in range(1, 20):
            began_s = time.perf_counter()
            picture_of(view, view.look(K, camera(x if x != 13 else 0), 320, 180))
            trips.append(time.perf_counter() - began_s)
    # The shortest: what else the machine does makes trips longer, and never shorter.
    assert min(trips) < 0.1
