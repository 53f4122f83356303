"""Workers on a Ray cluster: two nodes, each a raylet with processes of its own, and jobs that outlive both."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine_bridge import messages as m
from engine_bridge import ray_engine
from engine_bridge.client import Client
from engine_bridge.errors import BridgeError
from engine_bridge.gpu_lock import only_job_on
from engine_bridge.logs import read_logs
from engine_bridge.ray_engine import Cluster, DrawStep, Failure, HostedEngine, look_at, places_on
from engine_bridge.version import package_version
from engine_bridge.worker_config import RayPlace
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import CacheUpdate, Finished, FirstFrameSettings, Frame, Progress

from .conftest import FAKE_ENGINE, RunningServer
from .shots import shot
from .talk import frames, is_worker, run, until
from .test_durability import check_whole, noise

ROOT = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -c constraints.txt -e '.[ray]'"
)
StartServer = Callable[..., RunningServer]
STORE_BYTES = 80 * 2**20
"""Of each node's memory for what is on its way, the least that Ray takes."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that holds no engine, and a node with room for two."""
    from ray.cluster_utils import Cluster as LocalCluster

    # A short path, as sockets are in it. Ray's own place is one in it too: else its head writes its address into the
    # machine's /tmp/ray, which need not be there, and which a user's programs would join this cluster by.
    folder = tempfile.mkdtemp(prefix="ray")
    own = Path(folder, "ray")
    own.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False, "temp_dir": str(own)}
        nodes = LocalCluster(initialize_head=True, head_node_args=head)
        try:
            nodes.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
            yield nodes
        finally:
            nodes.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def actors(cluster: Any) -> list[tuple[psutil.Process, Any]]:
    """The processes that hold an engine, each with the cluster's node that it is on."""
    found = []
    for node in cluster.list_all_nodes():
        for raylet in node.all_processes["raylet"]:
            children = psutil.Process(raylet.process.pid).children(recursive=True)
            for child in children:
                # It may be gone by now.
                with suppress(psutil.Error):
                    found += [(child, node)] if "HostedEngine" in " ".join(child.cmdline()) else []
    return found


# ---------------------------------------------------------------- on a cluster


@needs_ray
def test_jobs_run_side_by_side_on_a_cluster_and_nothing_stays_there(cluster: Any, start_server: StartServer) -> None:
    assert look_at(cluster.address) == Cluster(nodes=2, gpus=0)
    server = start_server(ray=RayPlace(cluster.address), devices=("", ""))
    with Client(server.address) as client:
        waits = client.submit(shot(prompt="wait"))
        until(client, m.Progress, timeout_s=300)
        spec = noise(9, prompt="noise", width=320, height=180)
        check_whole(run(client, client.submit(spec)), spec)

        end = run(client, client.submit(shot(prompt="refuse")))[-1]
        assert (end.state, end.code) == ("failed", "no_depth")
        assert "Give one with --depth" in end.message

        events = run(client, client.submit(shot(prompt="fail=2")))
        end = events[-1]
        assert (end.state, end.code, len(frames(events))) == ("failed", "engine_failed", 3)
        assert "RuntimeError: a secret of the inside" in end.message
        assert "Traceback" not in end.message
        (record,) = read_logs(server.data_dir / "logs", log_id=end.log_id)
        assert "fake_engine.py" in record["message"], "the actor's own traceback"

        drawn = run(client, client.draw(FirstFrameSettings("an abbey", width=64, height=48, seed=77)))
        assert drawn[-1].state == "done"
        assert (frames(drawn)[0].rgb == 77).all()

        client.cancel(waits)
        assert run(client, waits)[-1].state == "cancelled"
        with Client(server.address) as other:
            assert other.connect().engine_info["executor"] == "ray"
    assert len(actors(cluster)) == 2
    for child in psutil.Process().children():
        if is_worker(child):
            child.kill()
    server.stop(at_once=True)
    deadline = time.monotonic() + 120
    while actors(cluster):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@needs_ray
def test_a_job_on_a_cluster_outlives_its_actor_and_its_node(cluster: Any, start_server: StartServer, go: Path) -> None:
    cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    server = start_server(ray=RayPlace(cluster.address))
    with Client(server.address) as client:
        # Each attempt commits a chunk and is ended within the next.
        spec = noise(prompt=f"noise slow=0.05 hold=8 go={go}")
        job_id = client.submit(spec)
        events = until(client, m.ChunkCommitted, timeout_s=300)
        ((actor, _),) = actors(cluster)
        actor.kill()
        events += until(client, m.ChunkCommitted, timeout_s=300)
        assert events[-1].attempt == 2
        ((_, node),) = actors(cluster)
        cluster.remove_node(node, allow_graceful=False)
        go.touch()
        events += run(client, job_id)
        check_whole(events, spec)
        died = [event for event in events if isinstance(event, m.StateEvent) and event.code == "worker_died"]
        assert len(died) == 2
        assert all("its Ray actor on" in event.message for event in died)


@needs_ray
def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "ANSWER_LIMIT_S", 1.0)
    with pytest.raises(BridgeError, match=r"No Ray cluster answers at '127\.0\.0\.1:9'.*ray start --head") as caught:
        look_at("127.0.0.1:9")
    assert caught.value.code == "engine_unavailable"


# ---------------------------------------------------------------- without one


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BridgeError, match="pip install") as caught:
        look_at("auto")
    assert caught.value.code == "engine_unavailable"


@pytest.mark.parametrize(
    ("gpus", "workers", "each", "device", "wanted"),
    [
        (0, None, None, "auto", (0, 1)),
        (4, None, None, "auto", (1, 4)),
        (4, None, 2, "auto", (2, 2)),
        (4, 3, None, "cuda", (1, 3)),
        (4, 3, None, "cpu", (0, 3)),
        (5, None, 2, "auto", (2, 2)),
    ],
)
def test_every_worker_has_gpus_of_its_own(
    monkeypatch: pytest.MonkeyPatch, gpus: int, workers: int | None, each: int | None, device: str, wanted: Any
) -> None:
    monkeypatch.setattr(ray_engine, "look_at", lambda _: Cluster(nodes=2, gpus=gpus))
    place, count = places_on("auto", workers=workers, gpus_each=each, device=device)
    assert (place.gpus, count) == wanted


@pytest.mark.parametrize(("workers", "each", "device"), [(3, None, "auto"), (None, 4, "auto"), (2, 2, "cuda")])
def test_gpus_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, each: int | None, device: str
) -> None:
    monkeypatch.setattr(ray_engine, "look_at", lambda _: Cluster(nodes=1, gpus=2))
    with pytest.raises(BridgeError, match="has 2 GPUs on 1 nodes"):
        places_on("auto", workers=workers, gpus_each=each, device=device)


def hosted(**options: Any) -> HostedEngine:
    engine = HostedEngine()
    info = engine.load(FAKE_ENGINE, "cache", options, package_version())
    assert isinstance(info, dict)
    assert info["engine"] == "fake"
    return engine


def made_by(engine: HostedEngine) -> list[Any]:
    """Everything that the job still makes."""
    made = []
    while (newest := engine.next()) is not None:
        made.append(newest)
    return made


def test_an_actor_gives_every_event_in_order_and_then_none() -> None:
    engine = hosted()
    engine.begin(shot(3, prompt="progress=50"), None)
    events = made_by(engine)
    assert [event.index for event in events if isinstance(event, Frame)] == [0, 1, 2]
    assert sum(isinstance(event, CacheUpdate) for event in events) == 1
    assert sum(isinstance(event, Progress) for event in events) < 20, "some progress is enough"
    assert isinstance(events[-1], Finished)
    assert engine.next() is None
    engine.begin(shot(2), None)
    engine.end()
    assert engine.next() is None


def test_an_actor_tells_what_went_wrong() -> None:
    engine = hosted()
    engine.begin(shot(prompt="fail=0"), None)
    failure = next(event for event in made_by(engine) if isinstance(event, Failure))
    error = failure.as_error()
    assert (type(error).__name__, str(error)) == ("RuntimeError", "a secret of the inside")
    assert "fake_engine.py" in error.__notes__[0]
    engine.begin(shot(prompt="refuse"), None)
    refusal = engine.next()
    assert isinstance(refusal, Failure)
    error = refusal.as_error()
    assert isinstance(error, WorldWarpError)
    assert error.code == "no_depth"


def test_an_engine_that_cannot_be_loaded_says_why() -> None:
    failure = HostedEngine().load(FAKE_ENGINE, "cache", {"broken": True}, package_version())
    assert isinstance(failure, Failure)
    assert "something_heavy" in str(failure.as_error())


def test_a_node_of_another_version_is_refused() -> None:
    failure = HostedEngine().load(FAKE_ENGINE, "cache", {}, "0.0.1")
    assert isinstance(failure, Failure)
    assert failure.code == "engine_unavailable"
    assert "the server 0.0.1: install the same" in failure.message


def test_an_actor_draws_and_stops_within_a_step() -> None:
    engine = hosted()
    engine.begin_drawing(FirstFrameSettings("an abbey", width=64, height=48, seed=7, steps=2))
    *steps, picture = made_by(engine)
    assert [step.part for step in steps] == ["text", "steps", "steps", "decode"]
    assert (picture == 7).all()
    for prompt, kind in (("refuse", "WorldWarpError"), ("fail=0", "RuntimeError")):
        engine.begin_drawing(FirstFrameSettings(prompt, width=64, height=48, steps=2))
        failure = made_by(engine)[-1]
        assert isinstance(failure, Failure)
        assert failure.kind == kind
    engine.begin_drawing(FirstFrameSettings("slow=0.1", width=64, height=48, steps=500))  # 50 seconds
    assert engine.next() == DrawStep("text", 0, 1)
    began_s = time.monotonic()
    engine.end()
    assert time.monotonic() - began_s < 20
    assert engine.next() is None
    assert all(thread.name != "drawing" for thread in threading.enumerate())


def test_an_actor_waits_for_a_gpu_that_another_server_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    engine = hosted(cuda=True)
    with only_job_on(["7"], lambda: None):
        engine.begin(shot(1), None)
        waiting = engine.next()
        assert isinstance(waiting, Progress)
        assert waiting.stage == "gpu"
    events = made_by(engine)
    assert any(isinstance(event, Frame) for event in events)
    with only_job_on(["7"], lambda: pytest.fail("the lock is held after the job")):
        pass
