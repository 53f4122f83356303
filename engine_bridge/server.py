"""The server: one thread, one ROUTER socket, a worker process for each device, and the jobs on disk.

A turn of its loop reads what has arrived, hears the workers, and sends every connection at most one event of each job
it follows, straight from the log on disk, while its credit lasts. So a slow or dead client costs no memory and delays
nobody. What was asked, and in what state a connection or job is, is decided in session.py; who may come in, in
security.py.

A job that was interrupted, by the death of its worker or of the whole server, is queued again and goes on after its
last committed chunk.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import zmq

from worldwarp_core.errors import WorldWarpError

from . import codec
from .compressor import Compressor
from .errors import BridgeError, ProtocolError, printable
from .keys import parse_address
from .logs import add_log_file
from .messages import (
    DEFAULT_ADDRESS,
    MAX_TEXT_CHARS,
    Accepted,
    Cancel,
    Cancelling,
    ClientMessage,
    Drain,
    Draw,
    Ended,
    Error,
    FetchSplats,
    JobInfo,
    Jobs,
    JobState,
    ListJobs,
    Logged,
    LoggedEvent,
    Look,
    Progress,
    Quit,
    Ready,
    Resume,
    RunJob,
    ServerMessage,
    Shown,
    SplatsBlock,
    StateEvent,
    StopJob,
    Submit,
    Subscribe,
    Subscribed,
    Upload,
    Uploaded,
)
from .metrics import Counted, Metrics, NoMetrics
from .security import Gate, Lock, bind_address, lock_for
from .session import FINAL, LARGE_MESSAGE_LIMIT_S, JobTable, ServerFacts, ServerSession
from .speeds import Speeds
from .store import JobStore, StoredState, default_data_dir
from .store_lock import claim_store
from .uploads import Uploads
from .version import package_version
from .viewer import ViewConfig, ViewProcess
from .worker import read_spec, read_wish
from .worker_config import RayPlace, WorkerConfig
from .workers import REST_S, Gone, Worker, Workers

_log = logging.getLogger(__name__)

TICK_MS = 250
"""The longest the loop sleeps: how late it notices silence or a signal."""
COMPRESSING_TICK_MS = 3
"""The longest it sleeps while a frame is being compressed: how late it notices that it is done."""
HIGH_WATER = 1000
"""Messages that may wait for one connection; a peer that lets more pile up is not reading."""
STOP_GRACE_S = 60.0
"""How long a stopping server waits for the running chunks to be committed before it ends the workers."""
QUIT_GRACE_S = 5.0
"""How long a worker that is told to leave at once may take."""
DRAW_PRIORITY = 10
"""Of pictures from words, among one client's own jobs: they take seconds, and somebody waits for them."""
MAX_CONNECTIONS = 1024
MAX_DEATHS = 3
"""Workers that may die of a job without a commit in between."""
LISTED_JOBS = 1000
KEEP_BYTES = 20 * 2**30
STOPPED = "The server was stopped. The job goes on after its last committed chunk."


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
    devices: tuple[str, ...] = ("",)
    """A worker for each: its GPUs as CUDA_VISIBLE_DEVICES names them, or "" to leave that to the engine."""
    ray: RayPlace | None = None
    """The Ray cluster that every worker's engine is on; None for this machine."""
    max_queued: int = 1000
    max_queued_by_client: int = 250
    keep_bytes: int = KEEP_BYTES
    """How much of the disk ended jobs may take; the oldest beyond that are deleted."""
    keys_dir: Path | None = None
    """Where the server's key and its list of clients are; None to ask nobody for a key, which only loopback may."""
    server_leaves_s: float = 0.0
    """How long to wait for a server that still keeps its jobs in `data_dir`, where it is known to be leaving."""
    stop_grace_s: float = STOP_GRACE_S
    view: bool = True
    """Whether there is a live view."""
    view_factory: str = "worldwarp_core.api:open_viewer"
    metrics_port: int | None = None
    """Of the metrics in Prometheus' format, on loopback; None for none, 0 for a free one."""

    def __post_init__(self) -> None:
        named = [gpu for device in self.devices for gpu in device.split(",") if gpu]
        assert self.devices, "a server without workers makes nothing"
        if len(set(named)) < len(named):
            raise BridgeError("bad_settings", f"A GPU takes one worker; got {', '.join(named)}.")
        lock_for(self.address, self.keys_dir)


class Server:
    """A server that listens from the moment it is made; `serve` runs it.

    Raises:
        BridgeError: `address_in_use`, `folder_in_use`, `cannot_write`, `disk_full`, `bad_keys`.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        lock: Lock | None = lock_for(config.address, config.keys_dir)
        self._context = zmq.Context()
        self._gate = Gate(self._context, lock) if lock else None
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
            (zmq.HEARTBEAT_TIMEOUT, int(LARGE_MESSAGE_LIMIT_S * 1000)),
        ):
            self._socket.setsockopt(option, value)
        if self._gate is not None:
            self._gate.guard(self._socket)
        try:
            self._socket.bind(bind_address(config.address))
        except zmq.ZMQError as error:
            self._close(0)
            raise BridgeError(
                "address_in_use",
                f"Cannot listen on {config.address} ({error.strerror}). Is a server running there already? "
                "Use it, or choose another port with --port.",
            ) from error
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

        self._store = JobStore(config.data_dir)
        try:
            self._store_lock = claim_store(config.data_dir, config.server_leaves_s)
        except BridgeError:
            self._close(0)
            raise
        self._jobs = JobTable(config.max_queued, config.max_queued_by_client)
        self._uploads = Uploads(config.data_dir, config.limits)
        self._stored: dict[str, StoredState] = {}
        """Of every job, what its `state.json` says, or will as soon as the disk takes it."""
        self._sizes: dict[str, int] = {}
        """Bytes on disk of the jobs that have ended."""
        self._sessions: dict[bytes, ServerSession] = {}
        self._progress: dict[str, Progress] = {}
        self._hot: dict[str, dict[int, list[codec.Part]]] = {}
        """Events by job and `seq` that the disk may not have: a running job's newest, and what found no room there."""
        self._on_way: dict[tuple[str, int], list[codec.Part]] = {}
        """Of those that have just come, by job and `seq`, what is sent in this turn, and known to be gone after it."""
        self._compressor = Compressor()
        self._engine_info: dict[str, Any] = {}
        self._speeds = Speeds()
        self._failed_starts = 0
        """Workers that died before they were ready, since the last one that was."""
        self._metrics: Counted = NoMetrics()
        self._next_house_s = 0.0
        self._view: ViewProcess | None = None
        self._stops = 0
        """How often the server was told to stop: once to let chunks be committed, again to leave at once."""
        self._recover()
        self._delete_oldest()

    # ------------------------------------------------------------ the loop

    def serve(self, *, handle_signals: bool = False) -> None:
        """Serves until `stop` (or, where asked, SIGINT or SIGTERM); lets running chunks be committed, and ends."""
        if handle_signals:
            self.handle_signals()
        log_file = add_log_file(self.config.data_dir / "logs" / "server.log", "server")
        self._workers = Workers(self._context, self._worker_configs())
        self._metrics = self._start_metrics()
        self._view = ViewProcess(self._view_config()) if self.config.view else None
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._workers.reports, zmq.POLLIN)
        self._workers.start()
        _log.info("WorldWarp server on %s, jobs in %s", self.address, self.config.data_dir)
        stop_s = None
        try:
            more_to_send = False
            while stop_s is None or not self._has_stopped(stop_s):
                poller.poll(0 if more_to_send else COMPRESSING_TICK_MS if self._compressor.busy else TICK_MS)
                self._hear_clients()
                self._hear_workers()
                self._keep_house()
                if stop_s is None and self._stops:
                    stop_s = time.monotonic()
                    self._workers.tell_all(Drain())
                    if self._jobs.running:
                        _log.info(
                            "Stopping once what runs is committed, in %g s at the latest; told again, at once",
                            self.config.stop_grace_s,
                        )
                if stop_s is None:
                    self._start_next_jobs()
                more_to_send = self._send_events()
        finally:
            self._shut_down()
            logging.getLogger().removeHandler(log_file)
            log_file.close()

    def handle_signals(self) -> None:
        """From now on SIGINT and SIGTERM mean `stop`: before anybody is told that there is a server to be stopped."""
        # Windows' SIGBREAK is Ctrl-Break, and its window being closed.
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if (number := getattr(signal, name, None)) is not None:
                signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        """Makes `serve` return soon, and a second time at once; from any thread or a signal handler."""
        self._stops += 1

    def _has_stopped(self, since_s: float) -> bool:
        """Whether there is nothing left to wait for, or no more waiting."""
        return not self._jobs.running or self._stops > 1 or time.monotonic() - since_s > self.config.stop_grace_s

    def _start_metrics(self) -> Counted:
        if self.config.metrics_port is None:
            return NoMetrics()
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "jobs_queued": ("Jobs that wait.", lambda: self._jobs.queued),
            "jobs_running": ("Jobs that run.", lambda: len(self._jobs.running)),
            "connections": ("Open connections.", lambda: len(self._sessions)),
            "workers_ready": ("Workers with their engine loaded.", lambda: sum(w.ready for w in self._workers)),
        }
        return Metrics(self.config.metrics_port, gauges)

    def _keep_house(self) -> None:
        """What needs doing now and then."""
        now_s = time.monotonic()
        if now_s < self._next_house_s:
            return
        self._next_house_s = now_s + TICK_MS / 1000
        self._forget_silent()
        self._uploads.tidy(now_s)
        self._compressor.tidy()
        if self._view is not None:
            self._view.keep_up()

    def _shut_down(self) -> None:
        self._metrics.close()
        if self._view is not None:
            self._view.stop()
        self._workers.tell_all(Quit())
        # Until the last word of each, which is that it is gone, has come through.
        deadline = time.monotonic() + (QUIT_GRACE_S if self._jobs.running else 0.5)
        killed = False
        while list(self._workers):
            if not killed and time.monotonic() > deadline:
                self._workers.kill()
                killed = True
            self._workers.reports.poll(50)
            self._hear_workers()
        deadline = time.monotonic() + 1.0
        while self._send_events() and time.monotonic() < deadline:
            pass
        self._compressor.close()
        self._uploads.close()
        self._workers.close()
        self._close(1000)
        self._store_lock.release()
        _log.info("WorldWarp server stopped")

    def _close(self, linger_ms: int) -> None:
        if self._gate is not None:
            self._gate.close()
        self._context.destroy(linger_ms)

    def _view_config(self) -> ViewConfig:
        config = self.config
        host, port = parse_address(self.address)
        host = f"[{host}]" if ":" in host else host
        return ViewConfig(
            address=f"tcp://{host}:{min(int(port) + 1, 65535)}",
            store_root=str(config.data_dir),
            engine=config.engine,
            device=str(config.options.get("device", "auto")),
            gpus=config.devices[0],
            keys_dir=str(config.keys_dir or ""),
            factory=config.view_factory,
            log_path=str(config.data_dir / "logs" / "view.log"),
        )

    def _worker_configs(self) -> list[WorkerConfig]:
        config, logs = self.config, self.config.data_dir / "logs"
        return [
            WorkerConfig(
                str(config.data_dir),
                config.factory,
                config.engine,
                config.options,
                device,
                str(logs / f"{slot}.log"),
                config.ray,
            )
            for slot, device in enumerate(config.devices)
        ]

    # ------------------------------------------------------------ clients

    def _hear_clients(self) -> None:
        # A bounded number, so that a peer that floods us cannot keep events from going out.
        for _ in range(100):
            try:
                identity, public_key, parts = self._receive()
            except zmq.Again:
                return
            now_s = time.monotonic()
            session = self._session(identity, public_key, now_s)
            if session is None:
                continue
            try:
                message = codec.decode(parts, ClientMessage, self.config.limits)
            except ProtocolError as error:
                _log.warning("A message of %s was refused: %s", session.client or "a stranger", printable(str(error)))
                self._answer(identity, session.receive_fault(error, now_s))
                continue
            reply, request = session.receive(message, self._facts(), now_s)
            if reply is not None:
                self._answer(identity, reply)
            if request is not None:
                self._answer(identity, self._serve_request(session, request))

    def _receive(self) -> tuple[bytes, str, list[codec.Part]]:
        """(who, their public key where there are keys, parts) of one message.

        No more of its parts are kept than one over the limit, which the codec then refuses.
        """
        first = self._socket.recv(zmq.NOBLOCK, copy=False)
        public_key = str(first.get("User-Id")) if self._gate is not None else ""
        parts: list[codec.Part] = []
        while self._socket.getsockopt(zmq.RCVMORE):
            part = self._socket.recv()
            if len(parts) <= self.config.limits.parts:
                parts.append(part)
        return first.bytes, public_key, parts

    def _session(self, identity: bytes, public_key: str, now_s: float) -> ServerSession | None:
        """The conversation with a peer, begun where there is none; None where no more are had."""
        session = self._sessions.get(identity)
        if session is None and len(self._sessions) >= MAX_CONNECTIONS:
            refusal = Error(request_id=0, code="over_limit", message=f"{MAX_CONNECTIONS} connections are open already.")
            self._send(identity, codec.encode(refusal))
            return None
        if session is None:
            name = self._gate.name_of(public_key) if self._gate is not None else ""
            session = self._sessions[identity] = ServerSession(now_s, name)
        return session

    def _serve_request(self, session: ServerSession, request: ClientMessage) -> ServerMessage:
        job_id = getattr(request, "job_id", "")
        try:
            if isinstance(request, Submit | Draw):
                return self._submit(session, request)
            if isinstance(request, Upload):
                return self._upload(session, request)
            if isinstance(request, Subscribe):
                return self._subscribe(session, request)
            if isinstance(request, Cancel):
                return self._cancel(session, request)
            if isinstance(request, Resume):
                return self._resume(request)
            if isinstance(request, ListJobs):
                return self._list(request)
            if isinstance(request, Look):
                raise BridgeError("no_view", "Looks go to the live view's own port, which Welcome names.")
            assert isinstance(request, FetchSplats), type(request)
            return self._splats_block(request)
        except WorldWarpError as error:
            return _refusal(request, error.code, error.message, job_id)
        except Exception:
            # One request of one client met a fault of ours: it is told, the others are served on.
            log_id = uuid.uuid4().hex[:8]
            _log.exception("[%s] serving %s", log_id, type(request).__name__, extra={"log_id": log_id})
            message = f"The server met an unexpected error. Its log has the details under {log_id}."
            return _refusal(request, "engine_failed", message, job_id)

    def _upload(self, session: ServerSession, piece: Upload) -> Uploaded | Accepted:
        stored = self._stored.get(piece.job_id)
        if stored is not None and stored.digest == piece.sha256:
            return self._accepted(piece.request_id, piece.job_id)
        if not piece.offset:
            # What would refuse the job in the end does so before all of it is sent.
            self._check_engine(piece.engine)
            if stored is None:
                self._jobs.check_room(session.owner)
        received_bytes, record = self._uploads.take(session.owner, piece, time.monotonic())
        if record is None:
            return Uploaded(request_id=piece.request_id, job_id=piece.job_id, received_bytes=received_bytes)
        limits = self.config.limits
        request = codec.decode(codec.split(record, limits), ClientMessage, limits)
        if not isinstance(request, Submit) or request.job_id != piece.job_id:
            raise ProtocolError("bad_message", "What was uploaded is not the submit of the job that it came as.")
        return self._submit(session, attrs.evolve(request, request_id=piece.request_id))

    def _submit(self, session: ServerSession, request: Submit | Draw) -> Accepted:
        # Stored without its request id, so that a repeat has the same bytes.
        submitted = codec.encode(attrs.evolve(request, request_id=0))
        digest = hashlib.sha256(codec.join(submitted)).hexdigest()
        if request.job_id in self._jobs:
            if self._stored[request.job_id].digest != digest:
                raise BridgeError("job_exists", f"Job {request.job_id} was submitted before with other settings.")
        else:
            if isinstance(request, Submit):
                self._check_engine(request.engine)
                read_spec(request)
            else:
                read_wish(request)
            self._jobs.check_room(session.owner)
            job = JobInfo(
                job_id=request.job_id,
                state="queued",
                created_s=time.time(),
                client=session.owner,
                priority=request.priority if isinstance(request, Submit) else DRAW_PRIORITY,
                frames=len(request.frames) if isinstance(request, Submit) else 1,
                frames_done=0,
                last_seq=0,
                code="",
                message="",
            )
            state = StoredState(
                "queued", job.created_s, job.frames, digest=digest, client=job.client, priority=job.priority
            )
            self._jobs.add(job)
            self._stored[request.job_id] = state
            try:
                self._store.create(request.job_id, submitted, state)
                self._log_state(request.job_id)
            except WorldWarpError:
                self._forget_job(request.job_id)
                raise
            self._metrics.job("queued")
            _log_job(job.job_id, f"{job.frames} frames of {request.width}x{request.height} for {job.client}")
            self._delete_oldest()
        return self._accepted(request.request_id, request.job_id)

    def _accepted(self, request_id: int, job_id: str) -> Accepted:
        return Accepted(request_id=request_id, job_id=job_id, position=self._jobs.position(job_id))

    def _check_engine(self, wanted: str) -> None:
        if wanted and wanted != self.config.engine:
            raise BridgeError(
                "unknown_engine",
                f"The server runs the engine {self.config.engine!r}, not {wanted!r}. "
                f"Start one with: worldwarp serve --engine {wanted[:40]}",
            )

    def _subscribe(self, session: ServerSession, request: Subscribe) -> Subscribed:
        job = self._jobs[request.job_id]
        if request.after_seq > job.last_seq:
            request = attrs.evolve(request, after_seq=0)
        session.subscribe(request)
        session.subscriptions[request.job_id].progress_due = request.job_id in self._progress
        return Subscribed(
            request_id=request.request_id,
            job_id=job.job_id,
            state=job.state,
            after_seq=request.after_seq,
            last_seq=job.last_seq,
        )

    def _cancel(self, session: ServerSession, request: Cancel) -> Cancelling:
        if self._uploads.drop(session.owner, request.job_id) and request.job_id not in self._jobs:
            return Cancelling(request_id=request.request_id, job_id=request.job_id, state="queued")
        job = self._jobs[request.job_id]
        if job.state == "queued":
            self._move(job.job_id, "cancelled", "cancelled", "The job was cancelled before it started.")
        elif job.state == "running" and (worker := self._workers.with_job(job.job_id)) is not None:
            worker.tell(StopJob(job_id=job.job_id))
            # Whoever dies before the engine stops: it is not gone on with.
            self._stored[job.job_id] = replace(self._stored[job.job_id], cancelled=True)
            self._store_state(job.job_id)
        return Cancelling(request_id=request.request_id, job_id=job.job_id, state=job.state)

    def _resume(self, request: Resume) -> Accepted:
        job = self._jobs[request.job_id]
        if job.state in ("failed", "cancelled"):
            self._jobs.check_room(job.client)
            self._move(job.job_id, "queued", message="The job goes on after its last committed chunk.", deaths=0)
        return self._accepted(request.request_id, job.job_id)

    def _list(self, request: ListJobs) -> Jobs:
        newest = list(self._jobs)[-LISTED_JOBS:]
        while True:
            jobs = Jobs(request_id=request.request_id, jobs=tuple(newest))
            try:
                codec.check_sizes(codec.encode(jobs))
            except ProtocolError:
                # Long messages of many failed jobs.
                newest = newest[len(newest) // 4 + 1 :]
            else:
                return jobs

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
        if self._send(identity, codec.encode(reply)) != "full":
            return
        # More than HIGH_WATER answers unread: whoever that is may come back and say Hello.
        if (session := self._sessions.pop(identity, None)) is not None:
            _log.warning("%s does not read its answers and is forgotten", session.client)

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
            # Who follows a job says what was consumed; of who follows none, a large job may be on its way.
            may_send = session.state == "open" and not session.subscriptions
            if session.is_silent(now_s - (LARGE_MESSAGE_LIMIT_S if may_send else 0.0)):
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
                        parts, logged = self._event(job_id, subscription.next_seq), True
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
                out: list[codec.Part] | None = parts
                # Of the events in a log, frames alone have arrays.
                if session.compressed and len(parts) > 1:
                    out = self._compressor.take(job_id, subscription.next_seq, parts)
                if out is None:
                    continue
                if self._send(identity, out) != "sent":
                    break
                # Compressed or not, it costs what the client has to keep.
                session.sent(job_id, len(out[0]) + codec.size_of(parts[1:]), logged=logged)
                self._metrics.sent(codec.size_of(out))
                more = True
        self._on_way.clear()
        return more

    def _event(self, job_id: str, seq: int) -> list[codec.Part]:
        """An event of a job, from memory where the worker has just shown it."""
        parts = self._on_way.get((job_id, seq)) or self._hot.get(job_id, {}).get(seq)
        return parts if parts is not None else self._store.open(job_id).log.read(seq)

    def _last_seq(self, job_id: str) -> int:
        return max(len(self._store.open(job_id).log), *self._hot.get(job_id, {}), 0)

    def _cool(self, job_id: str, *, lasting: bool) -> None:
        """Lets go of a job's events in memory, and appends those that the log does not have.

        Args:
            lasting: whether to wait until the disk has them, as nothing comes after them.

        Raises:
            BridgeError: `disk_full` or `cannot_write`; they stay then, for who follows the job.
        """
        events, log = self._hot.get(job_id, {}), self._store.open(job_id).log
        if missing := [events[seq] for seq in sorted(events) if seq > len(log)]:
            with log.appending() as append:
                for parts in missing:
                    append(parts)
                if lasting:
                    append.sync()
        self._hot.pop(job_id, None)

    # ------------------------------------------------------------ jobs

    def _move(
        self,
        job_id: str,
        state: JobState,
        code: str = "",
        message: str = "",
        log_id: str = "",
        summary: dict[str, Any] | None = None,
        **stored: Any,
    ) -> None:
        """Moves a job on, and tells its log; `stored` are other facts to store."""
        self._jobs.move(job_id, state, code, message[:MAX_TEXT_CHARS])
        if state != "running":
            self._progress.pop(job_id, None)
        self._metrics.job(state)
        _log_job(job_id, f"{state} {message}".strip())
        try:
            self._log_state(job_id, log_id, summary, **stored)
        except WorldWarpError as error:
            _tell_unstored(job_id, error)
        self._measure(job_id)

    def _log_state(self, job_id: str, log_id: str = "", summary: dict[str, Any] | None = None, **stored: Any) -> None:
        """Appends the job's state to its log and stores it; only while no worker writes there.

        Raises:
            BridgeError: `disk_full` or `cannot_write`; who follows the job hears of the state all the same.
        """
        info, job = self._jobs[job_id], self._store.open(job_id)
        event = StateEvent(
            job_id=job_id,
            seq=self._last_seq(job_id) + 1,
            state=info.state,
            code=info.code,
            message=info.message,
            log_id=log_id,
            summary=summary or {},
        )
        self._hot.setdefault(job_id, {})[event.seq] = codec.encode(event)
        self._jobs.update(job_id, last_seq=event.seq)
        facts: dict[str, Any] = {
            "state": info.state,
            "frames_done": info.frames_done,
            "code": info.code,
            "message": info.message,
            "cancelled": False,
        }
        self._stored[job_id] = replace(self._stored[job_id], **facts, **stored)
        self._cool(job_id, lasting=info.state in FINAL)
        job.write_state(self._stored[job_id])

    def _store_state(self, job_id: str) -> None:
        try:
            self._store.open(job_id).write_state(self._stored[job_id])
        except WorldWarpError as error:
            _tell_unstored(job_id, error)

    def _start_next_jobs(self) -> None:
        """Hands jobs to the workers that have none, starting those that have died."""
        if self._jobs.queued:
            self._workers.start()
        for worker in self._workers.idle:
            job = self._jobs.next_queued
            if job is None:
                return
            self._jobs.move(job.job_id, "running")
            self._metrics.job("running")
            attempt = self._stored[job.job_id].attempt + 1
            try:
                self._log_state(job.job_id, attempt=attempt)
            except WorldWarpError as error:
                self._move(job.job_id, "failed", error.code, error.message)
                continue
            _log_job(job.job_id, f"attempt {attempt} in worker {worker.slot}")
            worker.job_id = job.job_id
            worker.tell(RunJob(job_id=job.job_id, attempt=attempt))

    def _hear_workers(self) -> None:
        for worker, message in self._workers.hear():
            if isinstance(message, Ready):
                self._engine_info = message.engine_info
                self._failed_starts = 0
                _log.info("Engine ready in worker %d: %s", worker.slot, message.engine_info)
            elif isinstance(message, Gone):
                self._bury(worker, message)
            elif isinstance(message, Progress):
                self._progress[message.job_id] = message
                for session in self._sessions.values():
                    if message.job_id in session.subscriptions:
                        session.subscriptions[message.job_id].progress_due = True
            elif isinstance(message, Shown):
                parts = worker.looker.take(message)
                if parts is not None:
                    self._hot[message.job_id] = {message.seq: parts}
                    self._on_way[message.job_id, message.seq] = worker.looker.to_send()
                    self._note_events(message.job_id, message.seq, message.frames_done)
            elif isinstance(message, Logged):
                self._note_events(message.job_id, message.last_seq, message.frames_done)
            elif isinstance(message, Ended):
                worker.job_id = ""
                self._end_job(message)

    def _note_events(self, job_id: str, last_seq: int, frames_done: int) -> None:
        self._metrics.frames(max(frames_done - self._jobs[job_id].frames_done, 0))
        self._jobs.update(job_id, last_seq=last_seq, frames_done=frames_done)

    def _end_job(self, end: Ended) -> None:
        if end.state == "queued":
            self._interrupt(end.job_id, "queued", "server_stopped", STOPPED)
            return
        seconds = end.summary.get("seconds")
        self._metrics.stages(seconds if isinstance(seconds, dict) else {})
        self._move(end.job_id, end.state, end.code, end.message, end.log_id, end.summary)
        if end.state == "done":
            self._note_speed(end.job_id, end.summary)
            self._store.open(end.job_id).commits.clear()
            self._measure(end.job_id)

    def _interrupt(self, job_id: str, state: JobState, code: str, message: str, **stored: Any) -> None:
        """Moves a job on whose attempt was cut short; queued again, it is its client's first then, as the oldest.

        One that was to be cancelled has ended with that.
        """
        job = self._store.open(job_id)
        if self._stored[job_id].cancelled:
            state, code, message = "cancelled", "cancelled", "The job was cancelled."
        self._jobs.update(job_id, last_seq=self._last_seq(job_id), frames_done=job.commits.read().frames)
        self._move(job_id, state, code, message, **stored)

    def _bury(self, worker: Worker, gone: Gone) -> None:
        """Lets the job of a worker that has died go on in another, unless it was the death of too many."""
        failure = worker.load_failure
        if self._stops:
            if worker.job_id:
                self._interrupt(worker.job_id, "queued", "server_stopped", STOPPED)
            return
        if failure is not None:
            _log.error("The engine could not be loaded: %s", failure.message, extra={"log_id": failure.log_id})
            if self._has_others(worker):
                return
            if (job := self._jobs.next_queued) is not None:
                self._move(job.job_id, "failed", failure.code, failure.message, failure.log_id)
            return
        died = f"The engine's process ended unexpectedly ({gone.how})."
        _log.error("%s", died, extra={"job_id": worker.job_id})
        if worker.job_id:
            self._outlive(worker.job_id, died)
        elif not worker.ready and not self._has_others(worker):
            self._failed_starts += 1
            if self._failed_starts >= MAX_DEATHS and (job := self._jobs.next_queued) is not None:
                self._failed_starts = 0
                self._move(job.job_id, "failed", "worker_died", f"{died} It did so {MAX_DEATHS} times as it started.")

    def _has_others(self, worker: Worker) -> bool:
        """Whether jobs can wait for other workers than this one, which could not start and is left alone then."""
        others = bool(list(self._workers))
        if others:
            self._workers.rest(worker.slot)
            _log.error("Worker %d is tried again in %g s; the others go on", worker.slot, REST_S)
        return others

    def _outlive(self, job_id: str, died: str) -> None:
        stored = self._stored[job_id]
        final = self._store.open(job_id).commits.read().frames
        deaths = 1 if final > stored.frames_at_death else stored.deaths + 1
        known: dict[str, Any] = {"deaths": deaths, "frames_at_death": final}
        if deaths < MAX_DEATHS:
            on = f"{died} The job goes on after its last committed chunk."
            self._interrupt(job_id, "queued", "worker_died", on, **known)
        else:
            over = f"{died} It did so {deaths} times at one place. What the job delivered is kept."
            self._interrupt(job_id, "failed", "worker_died", over, **known)

    def _recover(self) -> None:
        """Knows the jobs of an earlier run again; those that it left unfinished go on."""
        found = []
        for job_id in self._store.job_ids():
            try:
                found.append(self._recovered(job_id))
            except (BridgeError, OSError, TypeError, ValueError) as error:
                # One job's damaged file is that job's end, never the server's.
                _log.error("Job %s cannot be read and is left out: %s", job_id, error, extra={"job_id": job_id})
        for job in sorted(found, key=lambda job: job.created_s):
            self._jobs.add(job)
            if job.state == "done":
                self._note_speed(job.job_id, self._summary_of(job))
            if job.state == "running":
                self._interrupt(job.job_id, "queued", "server_stopped", STOPPED)
            else:
                self._measure(job.job_id)

    def _note_speed(self, job_id: str, summary: dict[str, Any]) -> None:
        """Remembers how long a job took, unless it was gone on with: its last attempt's time is only a part then."""
        if self._stored[job_id].attempt == 1:
            self._speeds.note(summary)

    def _summary_of(self, job: JobInfo) -> dict[str, Any]:
        """What the engine said at the end of a job that was done; empty where that cannot be read."""
        if not job.last_seq:
            return {}
        try:
            end = codec.decode(self._store.open(job.job_id).log.read(job.last_seq), LoggedEvent)
        except (BridgeError, OSError):
            return {}
        return end.summary if isinstance(end, StateEvent) else {}

    def _recovered(self, job_id: str) -> JobInfo:
        """A job as an earlier run left it."""
        job = self._store.open(job_id)
        stored = self._stored[job_id] = job.read_state()
        if stored.state == "running" and (lost := job.log.mend()):
            _log.warning("Job %s: the disk has lost its newest %d events", job_id, lost, extra={"job_id": job_id})
        return JobInfo(
            job_id=job_id,
            state=stored.state,
            created_s=stored.created_s,
            client=stored.client,
            priority=stored.priority,
            frames=stored.frames,
            frames_done=stored.frames_done,
            last_seq=len(job.log),
            code=stored.code,
            message=stored.message,
        )

    def _delete_oldest(self) -> None:
        """Deletes the oldest ended jobs until those that stay fit into `keep_bytes`.

        A job that has not ended stays, and so does one that an open connection has followed: its client may still be
        fetching the splats.
        """
        excess = sum(self._sizes.values()) - self.config.keep_bytes
        if excess <= 0:
            return
        followed = {job_id for session in self._sessions.values() for job_id in session.followed}
        for job in self._jobs:
            size = self._sizes.get(job.job_id)
            if size is None or job.job_id in followed:
                continue
            _log.info("Job %s: deleted to make room (%.1f MiB)", job.job_id, size / 2**20)
            self._forget_job(job.job_id)
            try:
                self._store.remove(job.job_id)
            except OSError as error:
                _log.error("Job %s: its files cannot be deleted: %s", job.job_id, error)
            excess -= size
            if excess <= 0:
                return

    def _measure(self, job_id: str) -> None:
        """Finds out what a job takes on the disk, once it has ended: to look at every job's files takes long."""
        self._sizes.pop(job_id, None)
        if self._jobs[job_id].state in FINAL:
            self._sizes[job_id] = self._store.size_of(job_id)

    def _forget_job(self, job_id: str) -> None:
        self._jobs.remove(job_id)
        for known in (self._stored, self._sizes, self._hot):
            known.pop(job_id, None)

    def _facts(self) -> ServerFacts:
        return ServerFacts(
            server="worldwarp",
            version=package_version(),
            engine=self.config.engine,
            # Empty while the engine is being loaded.
            engine_info=self._engine_info and {**self._engine_info, "speeds": self._speeds.as_plain()},
            max_message_bytes=self.config.limits.message_bytes,
            view_port=self._view.port if self._view is not None else 0,
        )


def _refusal(request: ClientMessage, code: str, message: str, job_id: str) -> Error:
    return Error(
        request_id=getattr(request, "request_id", 0),
        code=code[:200],
        message=message[:MAX_TEXT_CHARS],
        job_id=job_id,
    )


def _tell_unstored(job_id: str, error: WorldWarpError) -> None:
    """The disk is full, say. The state holds in memory, for who follows the job too; after a restart it goes on."""
    _log.error("Job %s: its state could not be stored: %s", job_id, error, extra={"job_id": job_id})


def _log_job(job_id: str, what: str) -> None:
    _log.info("Job %s: %s", job_id, what, extra={"job_id": job_id})
