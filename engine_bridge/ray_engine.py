"""The engine on a Ray cluster: an actor makes the frames, the worker beside the server keeps the job.

The actor holds the engine and nothing else. What it yields goes through Ray to the worker, which writes the log, saves
the states and commits the chunks, as it does for an engine of its own; the state to go on from goes the other way. So
no disk is shared, and a job that loses its actor, its node or its worker goes on as any other does.

The nodes need this package, of the server's version, and what the engine needs. Ray asks nobody who they are: whoever
reaches its ports runs code there, so a cluster belongs into a network of its own.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from worldwarp_core import spec as core
from worldwarp_core.checkpoint import Checkpoint
from worldwarp_core.errors import WorldWarpError

from .doctor import INSTALL_RAY
from .errors import BridgeError, EngineLost
from .gpu_lock import gpus_of, only_job_on
from .version import package_version
from .worker_config import PROGRESS_EVERY_S, RayPlace, WorkerConfig, make_engine

_log = logging.getLogger(__name__)

AHEAD = 2
"""Events that the actor is asked for before the worker has taken the one before: so many it may make after a cancel."""
ANSWER_LIMIT_S = 60.0
RETRY_S = 5.0
WAITING_EVERY_S = 60.0


@dataclass(frozen=True)
class Cluster:
    """What a Ray cluster has."""

    nodes: int
    gpus: int


def places_on(address: str, *, workers: int | None, gpus_each: int | None, device: str) -> tuple[RayPlace, int]:
    """Where each worker's engine is to be on the Ray cluster at `address`, and how many workers there are.

    Args:
        workers: None takes one for each GPU, or for each `gpus_each` of them, and one where there are none.
        gpus_each: None takes one where there are any and the engine may use them.
        device: the engine's: auto, cpu or cuda.

    Raises:
        BridgeError: `engine_unavailable`: no Ray, no cluster, or not the GPUs that are asked for.
    """
    cluster = look_at(address)
    if device == "cpu":
        gpus = 0
    elif cluster.gpus or device != "auto" or gpus_each:
        gpus = gpus_each or 1
    else:
        gpus = 0
    workers = workers or (max(cluster.gpus // gpus, 1) if gpus else 1)
    if workers * gpus > cluster.gpus:
        each = f"{workers} workers with {gpus} GPUs each" if workers > 1 else f"A worker with {gpus} GPUs"
        raise BridgeError(
            "engine_unavailable",
            f"{each} cannot be had: the Ray cluster at {address!r} has {cluster.gpus} GPUs on {cluster.nodes} nodes. "
            "Choose fewer with --ray-workers or --gpus-per-job, or --device cpu.",
        )
    return RayPlace(address, gpus), workers


def look_at(address: str) -> Cluster:
    """What the Ray cluster at `address` ("auto" finds that of this machine) has.

    Asked for in a process of its own: Ray waits minutes for a cluster that does not answer.

    Raises:
        BridgeError: `engine_unavailable`: Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise BridgeError("engine_unavailable", f"--executor ray needs Ray, which is not installed: {INSTALL_RAY}")
    command = [sys.executable, "-m", "engine_bridge.ray_engine", address]
    hint = "Start one with 'ray start --head', or join one with 'ray start --address HOST:6379', or name one with "
    nobody = f"No Ray cluster answers at {address!r}. {hint}--ray-address."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_LIMIT_S, check=True)
        return Cluster(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise BridgeError("engine_unavailable", nobody) from error
    except (subprocess.CalledProcessError, ValueError, IndexError, TypeError) as error:
        said = (getattr(error, "stderr", "") or "").strip().splitlines()
        raise BridgeError("engine_unavailable", f"{nobody} Ray says: {said[-1][:300] if said else error}") from error


class RayEngine:
    """An engine that is in an actor, as the worker sees it.

    Waits for the cluster and for room on it as long as it takes.

    Raises:
        WorldWarpError: the engine cannot be loaded there.
        EngineLost: the actor has died.
    """

    def __init__(self, config: WorkerConfig) -> None:
        import ray

        assert config.ray is not None
        self._ray: Any = ray
        self._node = "?"
        _connect(config.ray.address)
        hosted: Any = ray.remote(HostedEngine)
        # One to a node as long as there are nodes, so that the memory of none is filled while another's is free.
        self._actor = hosted.options(
            num_cpus=1, num_gpus=config.ray.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        ).remote()
        loading = self._actor.load.remote(config.factory, config.engine, config.options, package_version())
        needs = f"{config.ray.gpus} GPUs" if config.ray.gpus else "a CPU"
        while not ray.wait([loading], timeout=WAITING_EVERY_S)[0]:
            _log.warning("The Ray cluster has no room yet (%s), or the engine is still being loaded there.", needs)
        self._info = self._get(loading)
        self._node = str(self._info.get("node", "?"))

    def describe(self) -> dict[str, Any]:
        """What the engine says of itself, and where it is."""
        return self._info

    def generate(self, spec: core.GenerateSpec, resume: Checkpoint | None = None) -> Iterator[core.Event]:
        """The engine's events; see `worldwarp_core.api`.

        Raises:
            EngineLost: the actor has died.
        """
        return self._pull(self._actor.begin.remote(spec, resume))

    def draw(self, settings: core.FirstFrameSettings, on_step: core.OnDrawStep) -> np.ndarray:
        """A picture drawn from words; see `worldwarp_core.api`.

        Raises:
            EngineLost: the actor has died.
        """
        with closing(self._pull(self._actor.begin_drawing.remote(settings))) as coming:
            for made in coming:
                if isinstance(made, np.ndarray):
                    return made
                # It is a step, or the progress of one who waits for a GPU.
                step = made if isinstance(made, DrawStep) else DrawStep("load", 0, 1)
                on_step(step.part, step.step, step.steps)
        raise WorldWarpError("engine_failed", "The engine stopped before it had drawn the picture.")

    def _pull(self, began: Any) -> Generator[Any, None, None]:
        """What the job that was begun makes, to its end."""
        coming = deque(self._actor.next.remote() for _ in range(AHEAD))
        try:
            self._get(began)
            while (made := self._get(coming.popleft())) is not None:
                coming.append(self._actor.next.remote())
                yield made
        finally:
            self._actor.end.remote()

    def _get(self, reference: Any) -> Any:
        try:
            value = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            _log.error("The Ray actor is lost: %s", error)
            raise EngineLost(f"its Ray actor on {self._node} is lost") from error
        if isinstance(value, Failure):
            raise value.as_error()
        return value


def _connect(address: str) -> None:
    """Joins the cluster, as soon as it is there."""
    import ray

    while True:
        try:
            ray.init(address=address, namespace="worldwarp", log_to_driver=False, logging_level=logging.WARNING)
            return
        except ConnectionError as error:
            _log.error("No Ray cluster answers at %s; trying again: %s", address, error)
            time.sleep(RETRY_S)


# ---------------------------------------------------------------- in the actor


@dataclass(frozen=True)
class Failure:
    """What went wrong in the actor, in plain text: not every exception can travel."""

    kind: str
    """The exception's class."""
    message: str
    code: str
    """Of a `WorldWarpError`, else ""."""
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        code = error.code if isinstance(error, WorldWarpError) else ""
        return cls(type(error).__name__, str(error), code, "".join(traceback.format_exception(error)))

    def as_error(self) -> Exception:
        """An exception to raise on the other side, of the same name, with the traceback noted on it."""
        if self.code:
            return WorldWarpError(self.code, self.message)
        error: Exception = type(self.kind, (RuntimeError,), {})(self.message)
        error.add_note(f"In the Ray actor:\n{self.traceback}")
        return error


@dataclass(frozen=True)
class DrawStep:
    """How far a picture is that is being drawn."""

    part: core.DrawPart
    step: int
    steps: int


class HostedEngine:
    """The actor. Its methods run one after the other, in the order in which the worker called them."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._events: Iterator[Any] = iter(())
        self._progress = ("", -math.inf)
        """The stage of which progress was passed on last, and when."""

    def load(self, factory: str, name: str, options: dict[str, Any], version: str) -> dict[str, Any] | Failure:
        """Loads the engine; what it says of itself."""
        # Ray allows an actor one thread for each CPU that it booked; an engine uses what the node has, as anywhere.
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        node = socket.gethostname()
        try:
            if package_version() != version:
                both = f"{node} has version {package_version()} of WorldWarp, the server {version}"
                raise BridgeError("engine_unavailable", f"{both}: install the same on every node of the Ray cluster.")
            self._engine = make_engine(factory, name, options)
            return {**self._engine.describe(), "executor": "ray", "node": node}
        except Exception as error:
            return Failure.of(error)

    def begin(self, spec: core.GenerateSpec, resume: Checkpoint | None) -> None:
        """Begins a shot, or goes on with one."""
        self._events = self._with_its_gpus(lambda: self._engine.generate(spec, resume=resume))

    def begin_drawing(self, settings: core.FirstFrameSettings) -> None:
        """Begins a picture."""
        self._events = self._with_its_gpus(lambda: self._draw(settings))

    def next(self) -> core.Event | DrawStep | np.ndarray | Failure | None:
        """The next event of the job; None after the last. Progress within a stage comes a few times a second."""
        try:
            return next((event for event in self._events if self._is_due(event)), None)
        except Exception as error:
            return Failure.of(error)

    def end(self) -> None:
        """Ends the job, wherever it is."""
        events, self._events = self._events, iter(())
        close = getattr(events, "close", None)
        if close is not None:
            close()

    def _with_its_gpus(self, begin: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        with ExitStack() as held:
            # Ray gives a GPU to one actor; this asks whether a server without Ray has a job on it.
            while True:
                try:
                    held.enter_context(only_job_on(gpus_of(self._engine.describe()), _raise_busy))
                    break
                except _Busy:
                    yield core.Progress(cast(core.Stage, "gpu"), 0, 1, 0, 1, 0.0, None)
            yield from begin()

    def _draw(self, settings: core.FirstFrameSettings) -> Iterator[DrawStep | np.ndarray | Failure]:
        """The steps of a picture, and the picture: the engine calls back with each, on a thread, and is asked here."""
        made: queue.SimpleQueue[DrawStep | np.ndarray | Failure] = queue.SimpleQueue()
        ended = threading.Event()

        def on_step(part: core.DrawPart, step: int, steps: int) -> None:
            if ended.is_set():
                raise _Ended
            made.put(DrawStep(part, step, steps))

        def draw() -> None:
            try:
                made.put(self._engine.draw(settings, on_step))
            except Exception as error:
                made.put(Failure.of(error))

        drawing = threading.Thread(target=draw, name="drawing")
        drawing.start()
        try:
            while isinstance(newest := made.get(), DrawStep):
                yield newest
            yield newest
        finally:
            ended.set()
            drawing.join()

    def _is_due(self, event: Any) -> bool:
        if not isinstance(event, core.Progress):
            return True
        now_s = time.monotonic()
        if event.stage == self._progress[0] and now_s - self._progress[1] < PROGRESS_EVERY_S:
            return False
        self._progress = (event.stage, now_s)
        return True


class _Ended(Exception):
    """Nobody wants the picture any more."""


class _Busy(Exception):
    """Another server's job has the GPU."""


def _raise_busy() -> None:
    raise _Busy


# ---------------------------------------------------------------- looking at the cluster


def _main() -> None:
    import ray

    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
    alive = [node for node in ray.nodes() if node["Alive"]]
    print(json.dumps({"nodes": len(alive), "gpus": int(ray.cluster_resources().get("GPU", 0))}))


if __name__ == "__main__":
    _main()
