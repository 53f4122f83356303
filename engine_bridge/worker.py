"""The engine in a process of its own: takes a job from the store, runs it, appends what comes of it to the job's log.

The server and the worker speak over a pipe in the protocol's own encoding, small messages only: frames and splats go
straight to the job's folder, so the server's memory never sees more than one. A crash in here (a CUDA fault, no memory)
ends this process and one job, never the server; when the server goes, so does this process.

This is the one module of the bridge that enters the core's engine, and `load_engine` is the door it takes. Which engine
and with what options is the server's own configuration; nothing of it ever comes from a client.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import queue
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from worldwarp_core import spec as core
from worldwarp_core.cameras import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.ply import write_ply

from . import codec
from .messages import (
    MAX_TEXT_CHARS,
    CacheEvent,
    Ended,
    FrameEvent,
    LoadFailed,
    Logged,
    NoticeEvent,
    Progress,
    Quit,
    Ready,
    RunJob,
    StopJob,
    Submit,
    WorkerCommand,
)
from .store import JobStore, StoredJob

_log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 0.1
"""Progress within a stage is passed on at most this often."""


@dataclass(frozen=True)
class WorkerConfig:
    """What the server tells its worker at the start."""

    store_root: str
    factory: str = "worldwarp_core.api:load_engine"
    """`module:function` that makes the engine."""
    engine: str = "cache"
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""


def run_worker(connection: Connection, config: WorkerConfig) -> None:
    """The worker process: loads the engine, then runs one job after another until told to quit."""
    # Ctrl-C in a terminal reaches every process in it; here the server decides what becomes of the job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(levelname)s %(message)s")
    server = _Server(connection)
    try:
        engine = _load(config)
        server.report(Ready(engine_info=as_plain(engine.describe())))
    except BaseException as error:
        code, message, log_id = _explain(error, "engine_unavailable", "The engine could not be started")
        server.report(LoadFailed(code=code, message=message, log_id=log_id))
        return
    store = JobStore(Path(config.store_root))
    while (job_id := server.next_job()) is not None:
        server.report(_run(engine, store.open(job_id), job_id, server))


def read_spec(submit: Submit) -> core.GenerateSpec:
    """What a client asked for as the core takes it.

    Raises:
        WorldWarpError: the core's own checks of cameras, images and settings.
    """
    K = np.zeros((len(submit.K), 3, 3))
    K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = submit.K
    K[:, 2, 2] = 1.0
    return core.GenerateSpec(
        cameras=CameraPath(submit.frames, submit.fps, submit.width, submit.height, K, submit.c2w),
        start_frame=submit.start_frame,
        depth=submit.depth,
        prompt=submit.prompt,
        negative_prompt=submit.negative_prompt,
        strength=submit.strength,
        chunk=submit.chunk,
        overlap=submit.overlap,
        steps=submit.steps,
        cache_steps=submit.cache_steps,
        seed=submit.seed,
        scene_scale=submit.scene_scale,
        prompt_keys=tuple(core.PromptKey(key.frame, key.prompt) for key in submit.prompt_keys),
        auto_prompt=submit.auto_prompt,
        style_image=submit.style_image,
        preset=submit.preset,
        guidance=submit.guidance,
        strength_mask=submit.strength_mask,
        graded_validity=submit.graded_validity,
    )


def as_plain(value: Any) -> Any:
    """`value` in JSON's types: NumPy scalars and tuples become plain, what is not finite None, the rest text."""
    if isinstance(value, dict):
        return {str(key): as_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return as_plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


class _Server:
    """The worker's end of the pipe: a thread listens for commands, so that a running job can be stopped."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._jobs: queue.Queue[str | None] = queue.Queue()
        self._stop: set[str] = set()
        self._quit = False
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def report(self, report: Any) -> None:
        with self._sending:
            self._connection.send_bytes(codec.join(codec.encode(report)))

    def next_job(self) -> str | None:
        """The next job's id, when there is one; None to quit."""
        return self._jobs.get()

    def wants_stop(self, job_id: str) -> bool:
        return self._quit or job_id in self._stop

    def _listen(self) -> None:
        while True:
            try:
                command = codec.decode(codec.split(self._connection.recv_bytes()), WorkerCommand)
            except (EOFError, OSError):
                # The server is gone, and with it whoever could be told. The log ends with its last whole event.
                os._exit(1)
            if isinstance(command, RunJob):
                self._jobs.put(command.job_id)
            elif isinstance(command, StopJob):
                self._stop.add(command.job_id)
            elif isinstance(command, Quit):
                self._quit = True
                self._jobs.put(None)


def _load(config: WorkerConfig) -> Any:
    module, _, function = config.factory.partition(":")
    factory: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return factory(name=config.engine, **config.options)


def _run(engine: Any, job: StoredJob, job_id: str, server: _Server) -> Ended:
    """Runs one job to whatever end it comes to. The log is closed then: its last event is for the server to write."""
    try:
        summary = _append_events(engine.generate(read_spec(job.submit())), job, job_id, server)
        if summary is not None:
            return Ended(job_id=job_id, state="done", summary=as_plain(summary))
    except Exception as error:
        code, message, log_id = _explain(error, "engine_failed", "The engine met an unexpected error")
        return Ended(job_id=job_id, state="failed", code=code, message=message, log_id=log_id)
    return Ended(job_id=job_id, state="cancelled", code="cancelled", message="The job was cancelled.")


def _append_events(events: Iterator[core.Event], job: StoredJob, job_id: str, server: _Server) -> dict[str, Any] | None:
    """Logs the engine's events as they come; returns its summary, or None when the job was stopped."""
    frames_done, shown = 0, ("", -math.inf)
    try:
        with job.log.appending() as append:
            for event in events:
                if isinstance(event, core.Finished):
                    return event.summary
                if isinstance(event, core.Progress):
                    now_s = time.monotonic()
                    if event.stage != shown[0] or now_s - shown[1] >= PROGRESS_EVERY_S:
                        shown = (event.stage, now_s)
                        server.report(_progress(event, job_id))
                else:
                    seq = append(codec.encode(_logged(event, job, job_id, len(job.log) + 1)))
                    frames_done += isinstance(event, core.Frame)
                    server.report(Logged(job_id=job_id, last_seq=seq, frames_done=frames_done))
                if server.wants_stop(job_id):
                    return None
    finally:
        # Runs the generator's own clean-up now, in this thread.
        close = getattr(events, "close", None)
        if close is not None:
            close()
    raise WorldWarpError("engine_failed", "The engine stopped before the end of the path.")


def _progress(event: core.Progress, job_id: str) -> Progress:
    return Progress(
        job_id=job_id,
        stage=event.stage,
        step=event.step,
        steps=event.steps,
        chunk=event.chunk,
        chunks=event.chunks,
        fraction=min(max(float(event.fraction), 0.0), 1.0),
        eta_s=None if event.eta_s is None else max(float(event.eta_s), 0.0),
    )


def _logged(event: core.Event, job: StoredJob, job_id: str, seq: int) -> FrameEvent | CacheEvent | NoticeEvent:
    if isinstance(event, core.Frame):
        return FrameEvent(
            job_id=job_id,
            seq=seq,
            index=int(event.index),
            number=int(event.number),
            chunk=int(event.chunk),
            rgb=event.rgb,
            depth=event.depth,
            validity=event.validity,
        )
    if isinstance(event, core.CacheUpdate):
        cloud = event.splats
        file = job.add_splats(lambda path: write_ply(path, cloud), len(cloud))
        return CacheEvent(
            job_id=job_id,
            seq=seq,
            chunk=int(event.chunk),
            revision=file.revision,
            splats=file.splats,
            size_bytes=file.size_bytes,
        )
    assert isinstance(event, core.Notice), type(event)
    return NoticeEvent(job_id=job_id, seq=seq, code=event.code[:200], message=event.message[:MAX_TEXT_CHARS])


def _explain(error: BaseException, code: str, what: str) -> tuple[str, str, str]:
    """Code, message and log id of an error. What a user can mend keeps its own words; the rest goes to the log."""
    if isinstance(error, WorldWarpError):
        return error.code, error.message[:MAX_TEXT_CHARS], ""
    log_id = uuid.uuid4().hex[:8]
    _log.error("[%s] %s", log_id, "".join(traceback.format_exception(error)))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        what = "The engine ran out of memory"
    text = f"{what} ({type(error).__name__}: {str(error)[:300]}). The server's log has the details under {log_id}."
    return code, text, log_id
