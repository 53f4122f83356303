"""The engine in a process of its own: takes a job from the store, runs it, appends what comes of it to the job's log.

The server and the worker speak over a pipe in the protocol's own encoding, small messages only: frames and splats go
straight to the job's folder, so the server's memory never sees more than one. A crash in here (a CUDA fault, no memory)
ends this process and one attempt at a job, never the server; when the server goes, so does this process. Where the
engine saves its state (worldwarp_core.checkpoint), an interrupted job goes on from there; every frame is final once.

This is the one module of the bridge that runs the core's engine, and `load_engine` is the door that it takes to it
(worker_config.py).
"""

from __future__ import annotations

import functools
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from worldwarp_core import spec as core
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.checkpoint import Checkpoint
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.frame_memory import lending
from worldwarp_core.splat_files.ply import write_ply

from . import codec
from .errors import EngineLost
from .gpu_lock import gpus_of, only_job_on
from .hot import ShowCase
from .logs import add_log_file
from .messages import (
    MAX_TEXT_CHARS,
    CacheEvent,
    ChunkCommitted,
    Drain,
    Draw,
    Ended,
    FrameEvent,
    LoadFailed,
    Logged,
    Lost,
    NoticeEvent,
    Progress,
    Quit,
    Ready,
    RunJob,
    StopJob,
    Submit,
    WorkerCommand,
)
from .store import Appender, JobStore, StoredJob
from .store_lock import claim_as_worker
from .worker_config import PROGRESS_EVERY_S, WorkerConfig, make_engine

_log = logging.getLogger(__name__)

APPEND_TIMEOUT_S = 5.0
DRAW_STAGES: dict[core.DrawPart, core.Stage] = {
    "text": "encode",
    "load": "load",
    "steps": "denoise",
    "decode": "decode",
}
DRAW_SHARES: dict[core.DrawPart, tuple[float, float]] = {
    "text": (0.0, 0.1),
    "load": (0.1, 0.1),
    "steps": (0.2, 0.75),
    "decode": (0.95, 0.05),
}
"""Where each part of drawing a picture begins, and how much of the whole it takes, about."""


def run_worker(connection: Connection, config: WorkerConfig) -> None:
    """The worker process: loads the engine, then runs one job after another until told to quit."""
    # Ctrl-C in a terminal reaches every process in it, and what stops a service may tell every process of it; here the
    # server decides what becomes of the job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not ignored: programs that the engine starts would ignore it too.
    signal.signal(signal.SIGTERM, lambda *_: None)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(levelname)s %(message)s")
    if config.log_path:
        add_log_file(Path(config.log_path), f"worker {config.device}".strip())
    if config.device:
        # Read when torch is loaded, with the engine.
        os.environ["CUDA_VISIBLE_DEVICES"] = config.device
    server = _Server(connection)
    try:
        _work(config, server)
    except EngineLost as lost:
        server.report(Lost(how=str(lost)))


def _work(config: WorkerConfig, server: _Server) -> None:
    root = Path(config.store_root)
    try:
        writing = claim_as_worker(root)
        engine = _load(config)
        server.report(Ready(engine_info=as_plain(engine.describe())))
    except EngineLost:
        raise
    except BaseException as error:
        code, message, log_id = _explain(error, "engine_unavailable", "The engine could not be started")
        server.report(LoadFailed(code=code, message=message, log_id=log_id))
        return
    store = JobStore(root)
    # Of an engine that is elsewhere, GPUs are seen to there.
    gpus = gpus_of(engine.describe()) if config.ray is None else []
    show_case = ShowCase()
    while (run := server.next_job()) is not None:
        server.report(_Run(engine, store.open(run.job_id), run, server, gpus, show_case).to_its_end())
    show_case.close()
    writing.release()


def read_spec(submit: Submit) -> core.GenerateSpec:
    """What a client asked for as the core takes it.

    Raises:
        WorldWarpError: the core's own checks of cameras, images and settings.
    """
    K = np.zeros((len(submit.K), 3, 3))
    K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = submit.K
    K[:, 2, 2] = 1.0
    path_depth = None
    if submit.path_depth is not None and submit.path_depth_frames is not None:
        path_depth = core.PathDepth(submit.path_depth_frames, submit.path_depth)
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
        path_depth=path_depth,
    )


def read_wish(draw: Draw) -> core.FirstFrameSettings:
    """The picture that a client asked for as the core takes it.

    Raises:
        WorldWarpError: `bad_settings`.
    """
    return core.FirstFrameSettings(
        prompt=draw.prompt,
        negative_prompt=draw.negative_prompt,
        width=draw.width,
        height=draw.height,
        seed=draw.seed,
        steps=draw.steps,
        guidance=draw.guidance,
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


class _Drained(Exception):
    """The server is stopping; the job goes on from its last commit when there is one again."""


class _Server:
    """The worker's end of the pipe: a thread listens for commands, so that a running job can be stopped."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._jobs: queue.Queue[RunJob | None] = queue.Queue()
        self._stop: set[str] = set()
        self._quit = False
        self.appending = threading.Lock()
        """Held while an event is shown and appended: this process does not end in between."""
        self.draining = False
        """Whether to leave the running job at its next commit."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def report(self, report: Any) -> None:
        with self._sending:
            self._connection.send_bytes(codec.join(codec.encode(report)))

    def next_job(self) -> RunJob | None:
        """The next job, when there is one; None to quit."""
        return self._jobs.get()

    def wants_stop(self, job_id: str) -> bool:
        """Whether the job was cancelled.

        Raises:
            _Drained: the server leaves at once.
        """
        if self._quit:
            raise _Drained
        return job_id in self._stop

    def _listen(self) -> None:
        while True:
            try:
                command = codec.decode(codec.split(self._connection.recv_bytes()), WorkerCommand)
            except (EOFError, OSError):
                # The server is gone, and with it whoever could be told. The log ends with its last whole event.
                self.appending.acquire(timeout=APPEND_TIMEOUT_S)
                os._exit(1)
            if isinstance(command, RunJob):
                # It may have been cancelled before, and resumed.
                self._stop.discard(command.job_id)
                self._jobs.put(command)
            elif isinstance(command, StopJob):
                self._stop.add(command.job_id)
            elif isinstance(command, Drain):
                self.draining = True
                self._jobs.put(None)
            elif isinstance(command, Quit):
                self._quit = True
                self._jobs.put(None)


def _load(config: WorkerConfig) -> Any:
    if config.ray is None:
        return make_engine(config.factory, config.engine, config.options)
    from .ray_engine import RayEngine

    return RayEngine(config)


class _Stopped(Exception):
    """The job was cancelled before it began."""


class _Run:
    """One attempt at a job."""

    def __init__(
        self, engine: Any, job: StoredJob, run: RunJob, server: _Server, gpus: list[str], show_case: ShowCase
    ) -> None:
        self._engine, self._job, self._server, self._gpus = engine, job, server, gpus
        self._show_case = show_case
        self._job_id, self._attempt = run.job_id, run.attempt
        self._final = 0
        """Frames of the path, from its first, that are final."""
        self._frames_done = 0
        self._told: set[tuple[str, str]] = set()
        """Notices that are in the log: each attempt has the same to say."""
        self._reported = ("", -math.inf)
        """The stage of which progress was reported last, and when."""

    def to_its_end(self) -> Ended:
        """Runs to whatever end it comes to. The log is closed then: its last event is for the server to write."""
        job_id = self._job_id
        try:
            with (
                only_job_on(self._gpus, self._wait_for_gpu),
                self._job.log.appending() as append,
                _LogWriter(append, self._server.appending, self._show_case.wait_until_sent, self._report_log) as log,
                lending(self._show_case.lend),
            ):
                summary = self._follow(log)
            if summary is not None:
                return Ended(job_id=job_id, state="done", summary=as_plain(summary))
        except _Drained:
            return Ended(job_id=job_id, state="queued", code="server_stopped")
        except _Stopped:
            pass
        except Exception as error:
            code, message, log_id = _explain(error, "engine_failed", "The engine met an unexpected error", job_id)
            return Ended(job_id=job_id, state="failed", code=code, message=message, log_id=log_id)
        return Ended(job_id=job_id, state="cancelled", code="cancelled", message="The job was cancelled.")

    def _wait_for_gpu(self) -> None:
        if self._server.draining:
            raise _Drained
        if self._server.wants_stop(self._job_id):
            raise _Stopped
        waiting = Progress(
            job_id=self._job_id, stage="gpu", step=0, steps=1, chunk=0, chunks=1, fraction=0.0, eta_s=None
        )
        self._server.report(waiting)

    def _follow(self, log: _LogWriter) -> dict[str, Any] | None:
        """Logs the engine's events as they come; returns its summary, or None when the job was stopped."""
        saved = self._take_up(log)
        request = self._job.request()
        if isinstance(request, Draw):
            return self._draw(read_wish(request), log)
        spec = read_spec(request)
        if saved is not None:
            _log.info("Job %s goes on after chunk %d", self._job_id, saved.chunk, extra={"job_id": self._job_id})
            try:
                return self._make(self._engine.generate(spec, resume=saved), log)
            except WorldWarpError as error:
                if error.code != "bad_checkpoint":
                    raise
                self._start_over(error, log)
        return self._make(self._engine.generate(spec), log)

    def _draw(self, wish: core.FirstFrameSettings, log: _LogWriter) -> dict[str, Any]:
        """Logs the one picture; returns what it was made with.

        Raises:
            _Stopped: the job was cancelled.
        """
        started_s = time.monotonic()

        def on_step(part: core.DrawPart, step: int, steps: int) -> None:
            if self._server.wants_stop(self._job_id):
                raise _Stopped
            if self._server.draining:
                raise _Drained
            begins, share = DRAW_SHARES[part]
            taken_s = time.monotonic() - started_s
            done = begins + share * step / steps
            left_s = taken_s * (1 - done) / done if part == "steps" and step else None
            self._report_progress(core.Progress(DRAW_STAGES[part], step, steps, 0, 1, done, left_s))

        rgb = self._engine.draw(wish, on_step)
        unknown = np.full(rgb.shape[:2], core.BACKGROUND_DEPTH, np.float32)
        self._log(core.Frame(0, 0, 0, rgb, unknown, np.zeros(rgb.shape[:2], np.uint8)), log)
        seconds = {"draw": round(time.monotonic() - started_s, 3)}
        return {"settings": asdict(wish), "seconds": seconds, "engine": self._engine.describe()}

    def _make(self, events: Iterator[core.Event], log: _LogWriter) -> dict[str, Any] | None:
        try:
            for event in events:
                if isinstance(event, core.Finished):
                    return event.summary
                if isinstance(event, core.Progress):
                    self._report_progress(event)
                elif isinstance(event, Checkpoint):
                    self._save(event, log)
                elif not self._is_known(event):
                    self._log(event, log)
                if self._server.wants_stop(self._job_id):
                    return None
                waiting = isinstance(event, core.Progress) and event.stage == "gpu"
                if self._server.draining and (waiting or isinstance(event, Checkpoint)):
                    raise _Drained
        finally:
            # Runs the generator's own clean-up now, in this thread.
            close = getattr(events, "close", None)
            if close is not None:
                close()
        raise WorldWarpError("engine_failed", "The engine stopped before the end of the path.")

    def _take_up(self, log: _LogWriter) -> Checkpoint | None:
        """Finds out what earlier attempts left, and finishes a commit that died between its state and its message."""
        for event in self._job.log.small_events():
            if isinstance(event, ChunkCommitted):
                self._final = max(self._final, event.frames)
            elif isinstance(event, NoticeEvent):
                self._told.add((event.code, event.message))
        saved = self._job.commits.read()
        if saved.frames > self._final:
            self._commit(saved.chunk, saved.attempt, saved.frames, log)
        self._frames_done = self._final
        try:
            return self._job.commits.load()
        except WorldWarpError as error:
            self._start_over(error, log)
            return None

    def _start_over(self, error: WorldWarpError, log: _LogWriter) -> None:
        _log.error("Job %s starts over: %s", self._job_id, error, extra={"job_id": self._job_id})
        message = "What the job had saved cannot be used, so it is made from its beginning; final frames stay."
        self._log(core.Notice("starts_over", message), log)

    def _report_progress(self, event: core.Progress) -> None:
        now_s = time.monotonic()
        if event.stage != self._reported[0] or now_s - self._reported[1] >= PROGRESS_EVERY_S:
            self._reported = (event.stage, now_s)
            self._server.report(_progress(event, self._job_id))

    def _save(self, checkpoint: Checkpoint, log: _LogWriter) -> None:
        """Saves the engine's state; where it completes a chunk, that chunk is committed."""
        log.sync()
        saved = self._job.commits.save(checkpoint, self._attempt)
        if saved.frames > self._final:
            self._commit(checkpoint.chunk, self._attempt, saved.frames, log)

    def _commit(self, chunk: int, attempt: int, frames: int, log: _LogWriter) -> None:
        seq = log.next_seq()
        event = ChunkCommitted(job_id=self._job_id, seq=seq, chunk=chunk, attempt=attempt, frames=frames)
        log.append(codec.encode(event))
        log.sync()
        self._final = frames

    def _is_known(self, event: core.Event) -> bool:
        """Whether the log has it from an earlier attempt, and it must not come again."""
        if isinstance(event, core.Frame):
            return event.index < self._final
        return isinstance(event, core.Notice) and (event.code[:200], event.message[:MAX_TEXT_CHARS]) in self._told

    def _log(self, event: core.Event, log: _LogWriter) -> None:
        if isinstance(event, core.Frame):
            # It is sent and written from where it lies: an engine that goes on writing there is to hear of it.
            for array in (event.rgb, event.depth, event.validity):
                array.flags.writeable = False
        seq = log.next_seq()
        parts = codec.encode(_logged(event, self._job, self._job_id, seq, self._attempt))
        self._frames_done += isinstance(event, core.Frame)
        show = functools.partial(self._show_case.show, self._job_id, seq, parts, self._frames_done, self._server.report)
        log.append(parts, show)

    def _report_log(self, last_seq: int) -> None:
        self._server.report(Logged(job_id=self._job_id, last_seq=last_seq, frames_done=self._frames_done))


class _LogWriter:
    """Appends to the job's log; what was shown, on a thread of its own, so that the engine need not wait for the disk.

    Args:
        append: see `EventLog.appending`.
        appending: held while an event is shown and appended.
        wait_until_sent: returns when the event that was shown has gone to the clients, or soon.
        appended: called with the `seq` of each event that is in the log.
    """

    def __init__(
        self,
        append: Appender,
        appending: threading.Lock,
        wait_until_sent: Callable[[], None],
        appended: Callable[[int], None],
    ) -> None:
        self._append, self._appending, self._appended = append, appending, appended
        self._wait_until_sent = wait_until_sent
        self._thread = ThreadPoolExecutor(1, "log", initializer=_yield_to_others)
        self._behind: Future[None] | None = None

    def __enter__(self) -> _LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait()
        finally:
            self._thread.shutdown()

    def next_seq(self) -> int:
        """The `seq` of the event that is appended next.

        Raises:
            BridgeError: `disk_full` or `cannot_write`, of the event before it.
        """
        self._wait()
        return self._append.last_seq + 1

    def append(self, parts: list[codec.Part], show: Callable[[], bool] = lambda: False) -> None:
        """Shows an event, where it can be, and appends it.

        Raises:
            BridgeError: `disk_full` or `cannot_write`.
        """
        self._wait()
        # What was shown is on its way to clients: it must be in the log, too, whoever dies.
        self._appending.acquire()
        shown = False
        try:
            shown = show()
        finally:
            self._behind = self._thread.submit(self._write, parts, shown)
        if not shown:
            self._wait()

    def sync(self) -> None:
        """Waits until the disk has all of it.

        Raises:
            BridgeError: `disk_full` or `cannot_write`.
        """
        self._wait()
        self._append.sync()

    def _write(self, parts: list[codec.Part], shown: bool) -> None:
        try:
            if shown:
                self._wait_until_sent()
            self._appended(self._append(parts))
        finally:
            self._appending.release()

    def _wait(self) -> None:
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.result()


def _yield_to_others() -> None:
    """Lets other threads run before this one, where threads have priorities of their own."""
    if sys.platform == "linux":
        # Not every container allows it.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + 10, 19))


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


def _logged(
    event: core.Event, job: StoredJob, job_id: str, seq: int, attempt: int
) -> FrameEvent | CacheEvent | NoticeEvent:
    if isinstance(event, core.Frame):
        return FrameEvent(
            job_id=job_id,
            seq=seq,
            index=int(event.index),
            number=int(event.number),
            chunk=int(event.chunk),
            attempt=attempt,
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


def _explain(error: BaseException, code: str, what: str, job_id: str = "") -> tuple[str, str, str]:
    """Code, message and log id of an error. What a user can mend keeps its own words; the rest goes to the log."""
    if isinstance(error, WorldWarpError):
        return error.code, error.message[:MAX_TEXT_CHARS], ""
    log_id = uuid.uuid4().hex[:8]
    _log.error(
        "[%s] %s", log_id, "".join(traceback.format_exception(error)), extra={"job_id": job_id, "log_id": log_id}
    )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        what = "The engine ran out of memory"
    text = f"{what} ({type(error).__name__}: {str(error)[:300]}). The server's log has the details under {log_id}."
    return code, text, log_id
