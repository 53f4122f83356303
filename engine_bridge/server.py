"""The server: one thread, one ROUTER socket, one worker process, and the jobs on disk.

A turn of its loop reads what has arrived, hears the worker, and sends every connection at most one event of each job it
follows, straight from the log on disk, while its credit lasts. So a slow or dead client costs no memory and delays
nobody. What was asked, and in what state a connection or job is, is decided in session.py.

Loopback only: nobody is asked for a key yet. From another machine, use an SSH tunnel.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import zmq

from worldwarp_core.errors import WorldWarpError

from . import codec
from .errors import BridgeError, ProtocolError
from .messages import (
    DEFAULT_ADDRESS,
    MAX_TEXT_CHARS,
    Accepted,
    Cancel,
    Cancelling,
    ClientMessage,
    Ended,
    Error,
    FetchSplats,
    JobInfo,
    Jobs,
    JobState,
    ListJobs,
    LoadFailed,
    Logged,
    Progress,
    Quit,
    Ready,
    RunJob,
    ServerMessage,
    SplatsBlock,
    StateEvent,
    StopJob,
    Submit,
    Subscribe,
    Subscribed,
    WorkerReport,
)
from .session import FINAL, JobTable, ServerFacts, ServerSession
from .store import JobStore, StoredState, default_data_dir
from .version import package_version
from .worker import WorkerConfig, read_spec, run_worker

_log = logging.getLogger(__name__)

TICK_MS = 250
"""The longest the loop sleeps: how late it notices silence or a signal."""
HIGH_WATER = 1000
"""Messages that may wait for one connection; a peer that lets more pile up is not reading."""
STOP_GRACE_S = 5.0
"""How long a stopping server waits for the engine's next event before it ends the worker."""
LISTED_JOBS = 1000
KEEP_BYTES = 20 * 2**30
STOPPED = "The server was stopped before the job was done. What was delivered is kept; submit it again for the rest."


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, where it keeps jobs, and which engine it runs."""

    address: str = DEFAULT_ADDRESS
    data_dir: Path = field(default_factory=default_data_dir)
    engine: str = "cache"
    factory: str = "worldwarp_core.api:load_engine"
    """`module:function` that makes the engine in the worker."""
    options: dict[str, Any] = field(default_factory=dict)
    limits: codec.Limits = codec.LIMITS
    max_queued: int = 1000
    keep_bytes: int = KEEP_BYTES
    """How much of the disk ended jobs may take; the oldest beyond that are deleted."""

    def __post_init__(self) -> None:
        check_loopback(self.address)


def check_loopback(address: str) -> None:
    """Raises `bad_address` or `not_loopback` unless `address` is tcp://HOST:PORT on this machine."""
    match = re.fullmatch(r"tcp://(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):(\d{1,5}|\*)", address)
    if not match or (match[2] != "*" and not 0 < int(match[2]) < 65536):
        raise BridgeError("bad_address", f"An address is tcp://HOST:PORT, as in {DEFAULT_ADDRESS}; got {address!r}.")
    host = match[1].strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        port = match[2] if match[2] != "*" else "5577"
        raise BridgeError(
            "not_loopback",
            f"{host} can be reached from other machines, and this version has no keys to keep strangers out. Serve on "
            f"tcp://127.0.0.1:{port} and open a tunnel from the other machine: "
            f"ssh -N -L {port}:127.0.0.1:{port} USER@THIS_MACHINE",
        )


class Server:
    """A server that listens from the moment it is made; `serve` runs it.

    Raises:
        BridgeError: `address_in_use`, `cannot_write`, `disk_full`.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 1000),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            # A send to who is gone or does not read must fail here, not vanish in the library.
            (zmq.ROUTER_MANDATORY, 1),
            # The codec refuses with a typed error what is over its limit; this only bounds what the library buffers.
            (zmq.MAXMSGSIZE, 2 * config.limits.message_bytes),
            (zmq.HEARTBEAT_IVL, 10_000),
            (zmq.HEARTBEAT_TIMEOUT, 60_000),
        ):
            self._socket.setsockopt(option, value)
        try:
            self._socket.bind(config.address)
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise BridgeError(
                "address_in_use",
                f"Cannot listen on {config.address} ({error.strerror}). Is a server running there already? "
                "Use it, or choose another port with --port.",
            ) from error
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

        self._store = JobStore(config.data_dir)
        self._jobs = JobTable(config.max_queued)
        self._sessions: dict[bytes, ServerSession] = {}
        self._progress: dict[str, Progress] = {}
        self._worker: _Worker | None = None
        self._engine_info: dict[str, Any] = {}
        self._stopping = threading.Event()
        self._recover()
        self._delete_oldest()

    # ------------------------------------------------------------ the loop

    def serve(self, *, handle_signals: bool = False) -> None:
        """Serves until `stop` (or, where asked, SIGINT or SIGTERM); then ends the running job and the worker."""
        if handle_signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: self.stop())
        reports = self._context.socket(zmq.PULL)
        reports.bind("inproc://worker")
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(reports, zmq.POLLIN)
        self._worker = self._start_worker()
        _log.info("WorldWarp server on %s, jobs in %s", self.address, self.config.data_dir)
        try:
            more_to_send = False
            while not self._stopping.is_set():
                poller.poll(0 if more_to_send else TICK_MS)
                self._hear_clients()
                self._hear_worker(reports)
                self._start_next_job()
                more_to_send = self._send_events()
                self._forget_silent()
        finally:
            self._shut_down(reports)

    def stop(self) -> None:
        """Makes `serve` return soon; from any thread or a signal handler."""
        self._stopping.set()

    def _shut_down(self, reports: zmq.Socket) -> None:
        worker = self._worker
        if worker is not None:
            worker.tell(Quit())
            worker.process.join(STOP_GRACE_S if self._jobs.running else 0.5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        # Until its last word, which is that it is gone, has come through: the thread in between takes its time.
        deadline = time.monotonic() + STOP_GRACE_S
        while self._worker is not None and time.monotonic() < deadline:
            reports.poll(50)
            self._hear_worker(reports)
        deadline = time.monotonic() + 1.0
        while self._send_events() and time.monotonic() < deadline:
            pass
        reports.close(0)
        self._context.destroy(1000)
        _log.info("WorldWarp server stopped")

    # ------------------------------------------------------------ clients

    def _hear_clients(self) -> None:
        # A bounded number, so that a peer that floods us cannot keep events from going out.
        for _ in range(100):
            try:
                identity, *parts = self._receive()
            except zmq.Again:
                return
            now_s = time.monotonic()
            session = self._sessions.setdefault(identity, ServerSession(now_s))
            try:
                message = codec.decode(parts, ClientMessage, self.config.limits)
            except ProtocolError as error:
                _log.warning("A message of %s was refused: %s", session.client or "a stranger", error)
                self._answer(identity, session.receive_fault(error, now_s))
                continue
            reply, request = session.receive(message, self._facts(), now_s)
            if reply is not None:
                self._answer(identity, reply)
            if request is not None:
                self._answer(identity, self._serve_request(identity, session, request))

    def _receive(self) -> list[bytes]:
        """One message, with no more of its parts kept than one over the limit, which the codec then refuses."""
        parts = [self._socket.recv(zmq.NOBLOCK)]
        while self._socket.getsockopt(zmq.RCVMORE):
            part = self._socket.recv()
            if len(parts) <= self.config.limits.parts + 1:
                parts.append(part)
        return parts

    def _serve_request(self, identity: bytes, session: ServerSession, request: ClientMessage) -> ServerMessage:
        job_id = getattr(request, "job_id", "")
        try:
            if isinstance(request, Submit):
                return self._submit(request)
            if isinstance(request, Subscribe):
                return self._subscribe(session, request)
            if isinstance(request, Cancel):
                return self._cancel(request)
            if isinstance(request, ListJobs):
                return Jobs(request_id=request.request_id, jobs=tuple(list(self._jobs)[-LISTED_JOBS:]))
            assert isinstance(request, FetchSplats), type(request)
            return self._splats_block(request)
        except WorldWarpError as error:
            return _refusal(request, error.code, error.message, job_id)
        except Exception:
            # One request of one client met a fault of ours: it is told, the others are served on.
            log_id = uuid.uuid4().hex[:8]
            _log.exception("[%s] serving %s", log_id, type(request).__name__)
            message = f"The server met an unexpected error. Its log has the details under {log_id}."
            return _refusal(request, "engine_failed", message, job_id)

    def _submit(self, request: Submit) -> Accepted:
        # Stored without its request id, so that a repeat has the same bytes.
        submitted = codec.encode(attrs.evolve(request, request_id=0))
        digest = hashlib.sha256(codec.join(submitted)).hexdigest()
        if request.job_id in self._jobs:
            if self._store.open(request.job_id).read_state().digest != digest:
                raise BridgeError("job_exists", f"Job {request.job_id} was submitted before with other settings.")
        else:
            self._check_engine(request.engine)
            read_spec(request)
            job = JobInfo(
                job_id=request.job_id,
                state="queued",
                created_s=time.time(),
                frames=len(request.frames),
                frames_done=0,
                last_seq=0,
                code="",
                message="",
            )
            self._jobs.add(job)
            try:
                state = StoredState("queued", job.created_s, job.frames, digest=digest)
                self._store.create(request.job_id, submitted, state)
                self._log_state(request.job_id)
            except WorldWarpError:
                self._jobs.remove(request.job_id)
                raise
            _log.info("Job %s: %d frames of %dx%d", job.job_id, job.frames, request.width, request.height)
            self._delete_oldest()
        return Accepted(
            request_id=request.request_id, job_id=request.job_id, position=self._jobs.position(request.job_id)
        )

    def _check_engine(self, wanted: str) -> None:
        if wanted and wanted != self.config.engine:
            raise BridgeError(
                "unknown_engine",
                f"The server runs the engine {self.config.engine!r}, not {wanted!r}. "
                f"Start one with: worldwarp serve --engine {wanted[:40]}",
            )

    def _subscribe(self, session: ServerSession, request: Subscribe) -> Subscribed:
        job = self._jobs[request.job_id]
        session.subscribe(request)
        session.subscriptions[request.job_id].progress_due = request.job_id in self._progress
        return Subscribed(request_id=request.request_id, job_id=job.job_id, state=job.state, last_seq=job.last_seq)

    def _cancel(self, request: Cancel) -> Cancelling:
        job = self._jobs[request.job_id]
        if job.state == "queued":
            self._finish(job.job_id, "cancelled", "cancelled", "The job was cancelled before it started.")
        elif job.state == "running":
            assert self._worker is not None
            self._worker.tell(StopJob(job_id=job.job_id))
        return Cancelling(request_id=request.request_id, job_id=job.job_id, state=job.state)

    def _splats_block(self, request: FetchSplats) -> SplatsBlock:
        job = self._store.open(self._jobs[request.job_id].job_id)
        file = job.splats(request.revision) if request.revision else job.newest_splats()
        if file is None and not request.revision:
            raise BridgeError("no_splats", "The job has made no splat file yet.")
        block = job.splats_block(file, request.offset) if file else None
        if file is None or block is None:
            raise BridgeError("splats_replaced", f"Splat file {request.revision} was replaced by a newer one.")
        return SplatsBlock(
            request_id=request.request_id,
            job_id=request.job_id,
            revision=file.revision,
            offset=request.offset,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
            data=np.frombuffer(block, np.uint8),
        )

    def _answer(self, identity: bytes, reply: ServerMessage) -> None:
        if self._send(identity, codec.encode(reply)) == "full":
            # More than HIGH_WATER answers unread: whoever that is may come back and say Hello.
            _log.warning("%s does not read its answers and is forgotten", self._sessions[identity].client)
            self._sessions.pop(identity, None)

    def _send(self, identity: bytes, parts: Sequence[codec.Part]) -> str:
        """Sends to one peer: "sent", "full" (it does not read) or "gone" (its session is then dropped)."""
        try:
            self._socket.send_multipart([identity, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._sessions.pop(identity, None)
            return "gone"
        return "sent"

    def _forget_silent(self) -> None:
        now_s = time.monotonic()
        for identity, session in list(self._sessions.items()):
            if session.is_silent(now_s):
                del self._sessions[identity]

    # ------------------------------------------------------------ events

    def _send_events(self) -> bool:
        """Sends each connection at most one event of each job it follows; returns whether more could go at once."""
        more = False
        for identity, session in list(self._sessions.items()):
            for job_id, subscription in list(session.subscriptions.items()):
                if not subscription.may_send:
                    continue
                job = self._jobs[job_id]
                if subscription.next_seq <= job.last_seq:
                    try:
                        parts, logged = self._store.open(job_id).log.read(subscription.next_seq), True
                    except (BridgeError, OSError) as error:
                        del session.subscriptions[job_id]
                        why = f"Event {subscription.next_seq} of the job cannot be read on the server: {error}"
                        self._answer(identity, Error(request_id=0, code="store_damaged", message=why, job_id=job_id))
                        continue
                elif job.state in FINAL:
                    del session.subscriptions[job_id]
                    continue
                elif subscription.progress_due and job_id in self._progress:
                    parts, logged = codec.encode(self._progress[job_id]), False
                else:
                    continue
                if self._send(identity, parts) != "sent":
                    break
                session.sent(job_id, codec.size_of(parts), logged=logged)
                more = True
        return more

    def _log_state(self, job_id: str, log_id: str = "", summary: dict[str, Any] | None = None) -> None:
        """Appends the job's state to its log and stores it; only while no worker writes there."""
        info, job = self._jobs[job_id], self._store.open(job_id)
        stored = job.read_state()
        event = StateEvent(
            job_id=job_id,
            seq=len(job.log) + 1,
            state=info.state,
            code=info.code,
            message=info.message,
            log_id=log_id,
            summary=summary or {},
        )
        with job.log.appending() as append:
            seq = append(codec.encode(event))
        self._jobs.update(job_id, last_seq=seq)
        job.write_state(
            replace(stored, state=info.state, frames_done=info.frames_done, code=info.code, message=info.message)
        )

    def _finish(
        self,
        job_id: str,
        state: JobState,
        code: str = "",
        message: str = "",
        log_id: str = "",
        summary: dict[str, Any] | None = None,
    ) -> None:
        self._jobs.move(job_id, state, code, message[:MAX_TEXT_CHARS])
        self._progress.pop(job_id, None)
        _log.info("Job %s: %s %s", job_id, state, message)
        try:
            self._log_state(job_id, log_id, summary)
        except WorldWarpError as error:
            # The disk is full, say. The state holds in memory, and after a restart the job is found unfinished.
            _log.error("Job %s: its state could not be stored: %s", job_id, error)

    # ------------------------------------------------------------ jobs and the worker

    def _start_worker(self) -> _Worker:
        self._engine_info = {}
        return _Worker(self._context, self.config)

    def _start_next_job(self) -> None:
        """Hands the next job to the worker, starting one where the last has died."""
        job = self._jobs.next_queued
        if job is None or self._jobs.running is not None:
            return
        if self._worker is None:
            self._worker = self._start_worker()
        if not self._worker.ready:
            return
        self._jobs.move(job.job_id, "running")
        try:
            self._log_state(job.job_id)
        except WorldWarpError as error:
            self._finish(job.job_id, "failed", error.code, error.message)
            return
        self._worker.tell(RunJob(job_id=job.job_id))

    def _hear_worker(self, reports: zmq.Socket) -> None:
        while True:
            try:
                token, record = reports.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            worker = self._worker
            if worker is None or token != worker.token:
                continue
            if not record:
                self._bury_worker(worker)
                continue
            message = codec.decode(codec.split(record), WorkerReport)
            if isinstance(message, Ready):
                worker.ready = True
                self._engine_info = message.engine_info
                _log.info("Engine ready: %s", message.engine_info)
            elif isinstance(message, LoadFailed):
                worker.load_failure = message
            elif isinstance(message, Progress):
                self._progress[message.job_id] = message
                for session in self._sessions.values():
                    if message.job_id in session.subscriptions:
                        session.subscriptions[message.job_id].progress_due = True
            elif isinstance(message, Logged):
                self._jobs.update(message.job_id, last_seq=message.last_seq, frames_done=message.frames_done)
            elif isinstance(message, Ended):
                self._end_job(message)

    def _end_job(self, end: Ended) -> None:
        if end.state == "cancelled" and self._stopping.is_set():
            self._finish(end.job_id, "failed", "server_stopped", STOPPED)
        else:
            self._finish(end.job_id, end.state, end.code, end.message, end.log_id, end.summary)

    def _bury_worker(self, worker: _Worker) -> None:
        """Ends the job of a worker that has died, keeping what it did; the next job gets a new worker."""
        worker.process.join()
        self._worker = None
        exit_code, failure = worker.process.exitcode, worker.load_failure
        code, log_id = "worker_died", ""
        if self._stopping.is_set():
            code, message = "server_stopped", STOPPED
        elif failure is not None:
            code, message, log_id = failure.code, failure.message, failure.log_id
            _log.error("The engine could not be loaded: %s", message)
        else:
            how = f"killed by signal {-exit_code}" if exit_code and exit_code < 0 else f"exit code {exit_code}"
            hint = " That is often a lack of memory." if exit_code == -9 else ""
            message = f"The engine's process ended unexpectedly ({how}).{hint} What the job delivered is kept."
            _log.error("%s", message)
        job = self._jobs.running or (None if worker.ready else self._jobs.next_queued)
        if job is None:
            return
        if job.state == "running":
            log = self._store.open(job.job_id).log
            self._jobs.update(job.job_id, last_seq=len(log), frames_done=log.count_frames())
        self._finish(job.job_id, "failed", code, message, log_id)

    def _recover(self) -> None:
        """Knows the jobs of an earlier run again; those it left unfinished are failed, with all they delivered."""
        found = []
        for job_id in self._store.job_ids():
            try:
                found.append(self._recovered(job_id))
            except (BridgeError, OSError, TypeError, ValueError) as error:
                # One job's damaged file is that job's end, never the server's.
                _log.error("Job %s cannot be read and is left out: %s", job_id, error)
        for job in sorted(found, key=lambda job: job.created_s):
            self._jobs.add(job)
            if job.state not in FINAL:
                self._finish(job.job_id, "failed", "server_stopped", STOPPED)

    def _delete_oldest(self) -> None:
        """Deletes the oldest ended jobs until those that stay fit into `keep_bytes`.

        A job that has not ended stays, and so does one that an open connection has followed: its client may still be
        fetching the splats.
        """
        followed = {job_id for session in self._sessions.values() for job_id in session.followed}
        try:
            sizes = {job.job_id: self._store.size_of(job.job_id) for job in self._jobs if job.state in FINAL}
        except OSError as error:
            _log.error("How much the jobs take cannot be found out, so none is deleted: %s", error)
            return
        total = sum(sizes.values())
        for job_id, size in sizes.items():
            if total <= self.config.keep_bytes:
                return
            if job_id in followed:
                continue
            self._jobs.remove(job_id)
            total -= size
            _log.info("Job %s: deleted to make room (%.1f MiB)", job_id, size / 2**20)
            try:
                self._store.remove(job_id)
            except OSError as error:
                _log.error("Job %s: its files cannot be deleted: %s", job_id, error)

    def _recovered(self, job_id: str) -> JobInfo:
        """A job as an earlier run left it; "running" where it had not ended."""
        job = self._store.open(job_id)
        stored = job.read_state()
        unfinished = stored.state not in FINAL
        return JobInfo(
            job_id=job_id,
            state="running" if unfinished else stored.state,
            created_s=stored.created_s,
            frames=stored.frames,
            frames_done=job.log.count_frames() if unfinished else stored.frames_done,
            last_seq=len(job.log),
            code=stored.code,
            message=stored.message,
        )

    def _facts(self) -> ServerFacts:
        return ServerFacts(
            server="worldwarp",
            version=package_version(),
            engine=self.config.engine,
            engine_info=self._engine_info,
            max_message_bytes=self.config.limits.message_bytes,
        )


class _Worker:
    """A worker process and the thread that carries its reports to the server's loop.

    The thread is there because a poller cannot wait for a pipe on Windows. A report arrives as [token, record]; an
    empty record says that the process is gone.
    """

    def __init__(self, context: zmq.Context, config: ServerConfig) -> None:
        self.token = uuid.uuid4().bytes
        self.ready = False
        self.load_failure: LoadFailed | None = None
        # Spawned, never forked: a fork would copy the server's sockets and, with CUDA, not work at all.
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        worker_config = WorkerConfig(str(config.data_dir), config.factory, config.engine, config.options)
        self.process = spawn.Process(target=run_worker, args=(theirs, worker_config), name="worldwarp-worker")
        # OpenMP reads this when torch loads it. Its threads else spin while they wait for each other, and beside any
        # other work a step of the CPU engine takes three times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self.process.start()
        theirs.close()
        threading.Thread(
            target=_carry, args=(context, self._connection, self.token), name="worker-reports", daemon=True
        ).start()

    def tell(self, command: Any) -> None:
        """Sends a command; a dead worker is noticed by the thread, not here."""
        try:
            self._connection.send_bytes(codec.join(codec.encode(command)))
        except OSError:
            _log.debug("the worker is gone before it could be told %s", type(command).__name__)


def _carry(context: zmq.Context, connection: Connection, token: bytes) -> None:
    socket = context.socket(zmq.PUSH)
    try:
        socket.connect("inproc://worker")
        while True:
            try:
                record = connection.recv_bytes()
            except (EOFError, OSError):
                socket.send_multipart([token, b""])
                return
            socket.send_multipart([token, record])
    except zmq.ZMQError:
        # The server has closed its context: nobody is left to tell.
        return
    finally:
        socket.close(0)


def _refusal(request: ClientMessage, code: str, message: str, job_id: str) -> Error:
    return Error(
        request_id=getattr(request, "request_id", 0),
        code=code[:200],
        message=message[:MAX_TEXT_CHARS],
        job_id=job_id,
    )
