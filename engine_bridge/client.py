"""The client: a thread that owns the sockets, and methods that any thread may call without waiting for the network.

    client = Client("tcp://127.0.0.1:5577")
    job_id = client.submit(spec)
    for event in client.events(job_id): ...        # a program that may block
    for event in client.poll(): ...                # a user interface, in a timer

Events are plain typed objects: those of messages.py (FrameEvent, CacheEvent, NoticeEvent, StateEvent, Progress, ...)
and the few below about the connection. Whoever takes an event from `poll` or `events` gives the server leave to send
more; an unread client therefore holds at most `credit_bytes`, however long the shot.

Frames and control (submit, cancel, list, ping) go over a connection each, so that a cancel never waits behind frames; a
large job goes over that of the frames, in pieces, one job after the other. A lost connection is made again, and every
job continues after the last event that arrived, or after the last piece that did.

Needs NumPy, pyzmq, msgpack, attrs and cattrs; never torch, never bpy.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import zmq
import zmq.utils.monitor

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import FirstFrameSettings, GenerateSpec, PathDepth

from . import codec
from .errors import BridgeError, ProtocolError, disk_errors
from .keys import ClientKey, check_client_address
from .messages import (
    DEFAULT_ADDRESS,
    Accepted,
    CacheEvent,
    Cancel,
    Cancelling,
    ChunkCommitted,
    Compress,
    Draw,
    Error,
    FetchSplats,
    FrameEvent,
    JobInfo,
    Jobs,
    ListJobs,
    NoticeEvent,
    Ping,
    Progress,
    PromptKey,
    Resume,
    ServerMessage,
    SplatsBlock,
    StateEvent,
    Submit,
    Subscribed,
    Uploaded,
    Welcome,
)
from .session import FINAL, LARGE_MESSAGE_LIMIT_S, UNANSWERED_LIMIT_S, ClientSession, Follower
from .uploads import LARGE_BYTES, Outgoing, OutOfStep
from .version import package_version

CREDIT_BYTES = 64 * 2**20
CREDIT_SHARE = 4
"""Credit is given back in this part of the window."""
CONNECT_TIMEOUT_S = 5.0
GONE_TIMEOUT_S = 120.0
TICK_MS = 250
FETCH_RESTARTS = 5


# ---------------------------------------------------------------- events about the connection


@dataclass(frozen=True)
class Connected:
    """The server answers; also after a lost connection was made again."""

    welcome: Welcome


@dataclass(frozen=True)
class ConnectionLost:
    """The connection broke; it is being made again. The job goes on at the server."""

    message: str


@dataclass(frozen=True)
class Disconnected:
    """The client has given up, for the reason in `code`; no more events come. Make a new Client to go on."""

    code: str
    message: str


@dataclass(frozen=True)
class RequestFailed:
    """The server refused a request, or a fetched file could not be written. `job_id` is "" where it is about no job."""

    code: str
    message: str
    job_id: str


@dataclass(frozen=True)
class Sending:
    """A job that takes a while to send is on its way: the server has so much of it."""

    job_id: str
    received_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class SplatsFetched:
    """The job's newest splat file is whole at `path`."""

    job_id: str
    path: Path
    revision: int


ClientEvent = (
    Connected | ConnectionLost | Disconnected | RequestFailed | Sending | SplatsFetched
    | Accepted | Cancelling | Jobs | Progress | FrameEvent | ChunkCommitted | CacheEvent | NoticeEvent | StateEvent
)  # fmt: skip


JobRequest = Submit | Draw | Resume
"""What is answered with `accepted`; the job is followed from then on."""


# ---------------------------------------------------------------- the client


class Client:
    """A connection to a server, made in the background from the moment the client is; see the top of the module.

    Args:
        address: tcp://HOST:PORT.
        program, version: who we are, for the server's log; the version is this package's unless given.
        connect_timeout_s: how long to wait for a server that does not answer at first.
        gone_timeout_s: how long to try again after a connection was lost.
        credit_bytes: how far the server may send each job's events ahead of what was taken with `poll` or `events`.
        key: made by `worldwarp keys client`, for a server that asks for one; without, only loopback is talked to.
        compress: let frames come compressed, without loss: for a network of less than some 100 MB/s.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        program: str = "worldwarp-client",
        version: str | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        gone_timeout_s: float = GONE_TIMEOUT_S,
        credit_bytes: int = CREDIT_BYTES,
        key: ClientKey | None = None,
        compress: bool = False,
    ) -> None:
        self.address = address
        self.key = key
        self.client_id = uuid.uuid4().hex
        self._inbox = _Inbox()
        self._context = zmq.Context()
        self._wake = self._context.socket(zmq.PUSH)
        self._wake.bind("inproc://wake")
        self._waking = threading.Lock()
        self._closed = False
        self._eaten: dict[str, int] = {}
        """Bytes of each job's events that were taken and that the thread does not know of yet."""
        self._todo: deque[Callable[[], None]] = deque()
        self._request_ids = itertools.count(1)
        self._credit_bytes = credit_bytes
        self._compress = compress
        self._wire = _Wire(self, program, version or package_version(), connect_timeout_s, gone_timeout_s)
        self._thread = threading.Thread(target=self._wire.run, name="worldwarp-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread and the connection; jobs go on at the server. Safe to call twice and at exit."""
        with self._waking:
            if self._closed:
                return
            self._closed = True
            self._nudge()
        self._thread.join()
        self._wake.close(0)
        self._context.destroy(0)

    # ------------------------------------------------------------ requests, none of which waits

    def submit(
        self,
        spec: GenerateSpec,
        *,
        engine: str = "",
        job_id: str | None = None,
        after_seq: int = 0,
        resume: bool = False,
        priority: int = 0,
    ) -> str:
        """Sends a job and follows it; returns its id. Its events come by `poll` or `events`, a refusal too.

        One that is large takes a while to send, and Sending says how far that is.

        Args:
            engine: the engine that the server must be running; "" takes any.
            job_id: to send the same job again (a uuid4's hex); the server then does not make it twice.
            after_seq: the last event that was had, of a job that is sent again. Where that may have been the job's
                end, ask from the one before: after the end nothing comes.
            resume: of a job that is sent again: let it go on where it has failed or was cancelled.
            priority: -10 to 10; the highest of one's own is first, below 0 yields to everybody's.

        Raises:
            BridgeError: `bad_message` or `too_large`, for settings that the protocol cannot carry.
        """
        request_id = next(self._request_ids)
        job_id = job_id or uuid.uuid4().hex
        cameras = spec.cameras
        try:
            message = Submit(
                request_id=request_id,
                job_id=job_id,
                engine=engine,
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt,
                strength=None if spec.strength is None else float(spec.strength),
                chunk=int(spec.chunk),
                overlap=int(spec.overlap),
                steps=spec.steps,
                cache_steps=spec.cache_steps,
                seed=int(spec.seed),
                priority=int(priority),
                scene_scale=None if spec.scene_scale is None else float(spec.scene_scale),
                prompt_keys=tuple(PromptKey(frame=int(key.frame), prompt=key.prompt) for key in spec.prompt_keys),
                auto_prompt=bool(spec.auto_prompt),
                preset=spec.preset,
                guidance=None if spec.guidance is None else float(spec.guidance),
                graded_validity=bool(spec.graded_validity),
                fps=float(cameras.fps),
                width=int(cameras.width),
                height=int(cameras.height),
                frames=np.asarray(cameras.frames, np.int64),
                K=np.asarray(cameras.K, np.float64)[:, [0, 1, 0, 1], [0, 1, 2, 2]],
                c2w=np.asarray(cameras.c2w, np.float64),
                start_frame=spec.start_frame,
                depth=None if spec.depth is None else np.asarray(spec.depth, np.float32),
                style_image=spec.style_image,
                strength_mask=spec.strength_mask,
                path_depth_frames=None if spec.path_depth is None else spec.path_depth.frames,
                path_depth=None if spec.path_depth is None else spec.path_depth.depth,
            )
            codec.check_sizes(codec.encode(message))
        except ProtocolError as error:
            advice = "" if spec.path_depth is None else f" {_less_depth(spec.path_depth)}"
            raise BridgeError(error.code, f"These settings cannot be sent: {error.message}{advice}") from error
        except ValueError as error:
            raise BridgeError("bad_message", f"These settings cannot be sent: {error}.") from error
        self._do(lambda: self._wire.submit(message, after_seq, resume))
        return job_id

    def draw(self, wish: FirstFrameSettings) -> str:
        """Asks for a picture from words and follows its job; returns its id. It comes as the job's one FrameEvent.

        A server that is older than this request refuses it with `unknown_message`.

        Raises:
            BridgeError: `bad_message`, for settings that the protocol cannot carry.
        """
        job_id = uuid.uuid4().hex
        try:
            message = Draw(
                request_id=next(self._request_ids),
                job_id=job_id,
                prompt=wish.prompt,
                negative_prompt=wish.negative_prompt,
                width=int(wish.width),
                height=int(wish.height),
                seed=int(wish.seed),
                steps=int(wish.steps),
                guidance=float(wish.guidance),
            )
        except ValueError as error:
            raise BridgeError("bad_message", f"This picture cannot be asked for: {error}.") from error
        self._do(lambda: self._wire.submit(message, after_seq=0, resume=False))
        return job_id

    def subscribe(self, job_id: str, after_seq: int = 0) -> None:
        """Follows a job submitted before, perhaps by another client, from the event after `after_seq`."""
        self._do(lambda: self._wire.follow(Follower(job_id, self._credit_bytes, last_seq=after_seq)))

    def cancel(self, job_id: str) -> None:
        """Asks for the job to stop at the engine's next step; its StateEvent says when it has.

        One that is still being sent ends with RequestFailed (`cancelled`), at once.
        """
        self._do(lambda: self._wire.cancel(Cancel(request_id=next(self._request_ids), job_id=job_id)))

    def resume(self, job_id: str, after_seq: int = 0) -> None:
        """Lets a failed or cancelled job go on after its last committed chunk, and follows it after that event."""
        self._do(lambda: self._wire.resume(Resume(request_id=next(self._request_ids), job_id=job_id), after_seq))

    def request_jobs(self) -> None:
        """Asks for the list of jobs, which comes as a Jobs event."""
        self._do(lambda: self._wire.request(ListJobs(request_id=next(self._request_ids))))

    def fetch_splats(self, job_id: str, path: Path) -> None:
        """Fetches the job's newest splat file to `path`, whole or not at all; SplatsFetched or RequestFailed tells."""
        self._do(lambda: self._wire.fetch(_Fetch(job_id, Path(path), None)))

    # ------------------------------------------------------------ answers

    def poll(self, limit: int | None = None) -> list[ClientEvent]:
        """The events that have arrived, oldest first, at most `limit`; never waits.

        Taking few at a time keeps a user interface smooth: what is not taken stays within the credit.
        """
        events: list[ClientEvent] = []
        while (limit is None or len(events) < limit) and (entry := self._inbox.take(0.0)) is not None:
            events.append(self._consume(entry))
        return events

    def wait(self, timeout_s: float) -> ClientEvent | None:
        """The next event, waiting for it at most so long; None where none came."""
        entry = self._inbox.take(timeout_s)
        return None if entry is None else self._consume(entry)

    def events(self, job_id: str) -> Iterator[ClientEvent]:
        """The events of one job and of the connection as they come, up to and with the job's final StateEvent. Blocks.

        Raises:
            BridgeError: the server refused a request of this job, or the connection is gone for good.
        """
        while True:
            # In short waits: a wait without end cannot be interrupted on Windows.
            event = self.wait(0.2)
            if event is None or getattr(event, "job_id", job_id) != job_id:
                continue
            if isinstance(event, Disconnected | RequestFailed):
                raise BridgeError(event.code, event.message)
            yield event
            if isinstance(event, StateEvent) and event.state in FINAL:
                return

    def connect(self) -> Welcome:
        """Waits until the server answers; returns what it says of itself.

        Raises:
            BridgeError: `server_not_running`, `wrong_protocol_version`, ...
        """
        return self._wire.welcome.result()

    def view_port(self, timeout_s: float = 10.0) -> int:
        """The port of the server's live view, waiting for it where it is just being started; 0 where there is none.

        Raises:
            BridgeError: why there is no connection.
        """
        self.connect()
        deadline_s = time.monotonic() + timeout_s
        while not (port := self._wire.view_port) and time.monotonic() < deadline_s:
            self._do(self._wire.greet)
            time.sleep(0.1)
        return port

    def list_jobs(self, timeout_s: float = 10.0) -> tuple[JobInfo, ...]:
        """The server's jobs, oldest first; waits for them.

        Raises:
            BridgeError: `timed_out`, or why there is no connection.
        """
        answer: Future[Jobs] = Future()
        self._do(lambda: self._wire.request(ListJobs(request_id=next(self._request_ids)), answer))
        return self._wait(answer, timeout_s).jobs

    def fetch_splats_now(self, job_id: str, path: Path, timeout_s: float = 120.0) -> Path:
        """Fetches the job's newest splat file to `path`; waits for it, as long as its blocks come.

        Args:
            timeout_s: for the next block.

        Raises:
            BridgeError: `no_splats`, `unknown_job`, `disk_full`, `cannot_write`, `timed_out`, ...
        """
        answer: Future[Path] = Future()
        fetch = _Fetch(job_id, Path(path), answer)
        self._do(lambda: self._wire.fetch(fetch))
        return self._wait(answer, timeout_s, lambda: fetch.offset)

    # ------------------------------------------------------------ helpers

    def _wait(self, answer: Future[Any], timeout_s: float, how_far: Callable[[], int] = lambda: 0) -> Any:
        """The answer, for which it waits so long after `how_far` has changed."""
        been, deadline_s = how_far(), time.monotonic() + timeout_s
        while True:
            # In short waits, as in `events`.
            with suppress(FutureTimeoutError):
                return answer.result(min(timeout_s, 0.2))
            if how_far() != been:
                been, deadline_s = how_far(), time.monotonic() + timeout_s
            elif time.monotonic() > deadline_s:
                late = f"The server at {self.address} did not answer in {timeout_s:g} s."
                raise BridgeError("timed_out", late)

    def _consume(self, entry: _Received) -> ClientEvent:
        if entry.size_bytes:
            # The thread is woken for a share of the window, not for every event: waking it costs more than a frame's
            # way through here.
            with self._waking:
                eaten = self._eaten.pop(entry.job_id, 0) + entry.size_bytes
                if eaten * CREDIT_SHARE < self._credit_bytes:
                    self._eaten[entry.job_id] = eaten
                    return entry.event
            # Without a connection there is nobody to give credit to.
            with suppress(BridgeError):
                self._do(lambda: self._wire.consumed(entry.job_id, eaten))
        return entry.event

    def _do(self, action: Callable[[], None]) -> None:
        """Has the thread do it.

        Raises:
            BridgeError: the connection has been given up, or the client closed.
        """
        with self._waking:
            end = self._wire.end
            if self._closed or end is not None:
                code, message = (end.code, end.message) if end else ("closed", "The client was closed.")
                raise BridgeError(code, message)
            self._todo.append(action)
            self._nudge()

    def _nudge(self) -> None:
        """Wakes the thread; where no more wake-ups fit, enough of them wait already, and it looks up by itself too."""
        with suppress(zmq.Again):
            self._wake.send(b"", zmq.NOBLOCK)


@dataclass(frozen=True)
class _Received:
    event: ClientEvent
    job_id: str = ""
    size_bytes: int = 0


def _less_depth(path_depth: PathDepth) -> str:
    """What to do about a message that is too large with maps like these."""
    size = path_depth.depth.nbytes
    few = max(math.ceil(size / (0.9 * codec.LIMITS.message_bytes)), 2)
    return f"The path's depth takes {size / 2**20:.0f} MiB of it: give it for one frame in {few}, or smaller."


class _Inbox:
    """Events between the thread and whoever takes them."""

    def __init__(self) -> None:
        self._entries: queue.SimpleQueue[_Received] = queue.SimpleQueue()

    def put(self, event: ClientEvent, job_id: str = "", size_bytes: int = 0) -> None:
        self._entries.put(_Received(event, job_id, size_bytes))

    def take(self, timeout_s: float) -> _Received | None:
        try:
            return self._entries.get(timeout=timeout_s)
        except queue.Empty:
            return None


# ---------------------------------------------------------------- the thread


@dataclass
class _Pending:
    """A request without an answer yet; sent again over a new connection (each is safe to repeat)."""

    message: Any
    answer: Future[Any] | None


@dataclass
class _Fetch:
    """A splat file on its way: blocks go to a file beside `path`, which takes its place when it is whole."""

    job_id: str
    path: Path
    answer: Future[Path] | None
    revision: int = 0
    offset: int = 0
    restarts: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    file: BinaryIO | None = None
    partial: Path | None = None

    def take(self, block: SplatsBlock) -> bool:
        """Writes a block; returns whether the file is now whole and in place.

        Raises:
            WorldWarpError: `disk_full`, `cannot_write`, or `bad_message` for blocks that do not make the stated file.
        """
        with disk_errors(self.path):
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.partial = self.path.with_name(f".{self.path.name}-{uuid.uuid4().hex[:12]}.part")
                self.file = self.partial.open("wb")
            self.file.write(block.data.data)
        self.digest.update(block.data.data)
        self.revision, self.offset = block.revision, self.offset + len(block.data)
        if self.offset < block.size_bytes and len(block.data):
            return False
        if self.offset != block.size_bytes or self.digest.hexdigest() != block.sha256:
            raise ProtocolError(
                "bad_message", "The splat file did not arrive as the server described it. Fetch it again."
            )
        assert self.partial is not None
        with disk_errors(self.path):
            self.file.close()
            self.partial.replace(self.path)
        return True

    def start_over(self) -> None:
        """Forgets what came of a file that has been replaced by a newer one."""
        self.drop()
        self.revision, self.offset, self.restarts = 0, 0, self.restarts + 1
        self.digest = hashlib.sha256()

    def drop(self) -> None:
        """Leaves nothing half written."""
        if self.file is not None:
            self.file.close()
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)
        self.file = self.partial = None


_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class _Lost(Exception):
    """The connection is no more; the text says how we know."""


class _Link:
    """One connection: a DEALER, its end of the conversation, and a monitor that says when the peer is gone."""

    def __init__(self, context: zmq.Context, address: str, session: ClientSession, key: ClientKey | None) -> None:
        self.session = session
        self.socket = context.socket(zmq.DEALER)
        if key is not None:
            self.socket.curve_publickey = key.public.encode()
            self.socket.curve_secretkey = key.secret.encode()
            self.socket.curve_serverkey = key.server_public.encode()
        for option, value in (
            (zmq.LINGER, 0),
            # What is sent is bounded by what the user asks for, what is received by the credit.
            (zmq.SNDHWM, 0),
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, 2 * codec.LIMITS.message_bytes),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 2000),
        ):
            self.socket.setsockopt(option, value)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED)
        self.socket.connect(address)

    def send(self, message: Any) -> None:
        try:
            self.socket.send_multipart(codec.encode(message), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            # There is no end to what may wait, so there is nobody it could wait for: the library gives a connection up
            # when the handshake fails.
            raise _Lost("the server does not let us in") from None
        self.session.said(time.monotonic())

    def receive(self) -> Iterator[tuple[ServerMessage, int]]:
        """What has arrived and is not the session's own business, with what it costs in credit."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            parts = [frame.buffer for frame in frames]
            message = self.session.receive(codec.decode(parts, ServerMessage), time.monotonic())
            if message is not None:
                yield message, codec.cost_of(parts, message)

    def handshake_failure(self) -> int:
        """The event by which the library says that server and client do not let each other in; 0 for none."""
        while self.monitor.poll(0):
            event = int(zmq.utils.monitor.recv_monitor_message(self.monitor)["event"])
            if event & _HANDSHAKE_FAILED:
                return event
        return 0

    def keep_up(self) -> None:
        """Says that we are here where it is time to."""
        if self.session.ping_due(time.monotonic()):
            self.send(Ping(request_id=0))

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)


def _check_heard(links: Sequence[_Link]) -> None:
    """Raises _Lost where the server is silent: on every connection, or on one for longer than any message may take."""
    now_s = time.monotonic()
    if all(link.session.is_silent(now_s) for link in links):
        raise _Lost(f"the server said nothing for {UNANSWERED_LIMIT_S:g} s")
    if any(link.session.is_stuck(now_s) for link in links):
        raise _Lost(f"nothing came through one of its connections for {LARGE_MESSAGE_LIMIT_S:g} s")


class _Wire:
    """What the thread knows and does; nothing here is touched by another thread, `welcome` and the inbox excepted."""

    def __init__(self, client: Client, program: str, version: str, connect_timeout_s: float, gone_timeout_s: float):
        self.welcome: Future[Welcome] = Future()
        self.end: WorldWarpError | None = None
        """Why the connection was given up."""
        self._client = client
        self._program, self._version = program, version
        self._connect_timeout_s, self._gone_timeout_s = connect_timeout_s, gone_timeout_s
        self._control: _Link | None = None
        self._data: _Link | None = None
        self._pending: dict[int, _Pending] = {}
        self._uploads: dict[int, Outgoing] = {}
        """Of those, the jobs that go in pieces; only the first of them is on its way."""
        self._followers: dict[str, Follower] = {}
        self._unread: dict[str, int] = {}
        self._to_resume: set[str] = set()
        """Jobs that were sent again to go on, and are not accepted yet."""
        self._last_seqs: dict[str, int] = {}
        """Where each followed job's log ended when it was subscribed to."""
        self._fetches: dict[int, _Fetch] = {}
        self._open = False
        self._polled: tuple[zmq.Socket, ...] = ()
        self._poller = zmq.Poller()

    # ------------------------------------------------------------ the life of the thread

    def run(self) -> None:
        wake = self._client._context.socket(zmq.PULL)
        wake.connect("inproc://wake")
        end: WorldWarpError = BridgeError("closed", "The client was closed.")
        try:
            check_client_address(self._client.address, self._client.key)
            lost_s: float | None = None
            while not self._client._closed:
                try:
                    self._connect(wake, lost_s)
                    lost_s = None
                    self._converse(wake)
                except _Lost as lost:
                    self._hang_up()
                    lost_s = time.monotonic()
                    why = f"The connection to {self._client.address} was lost ({lost}). Trying again."
                    self._client._inbox.put(ConnectionLost(why))
        except WorldWarpError as error:
            end = error
        except zmq.ZMQError as error:
            end = BridgeError("bad_address", f"{self._client.address} is not an address to connect to: {error}.")
        finally:
            self._hang_up()
            wake.close(0)
            self._give_up(end)

    def _connect(self, wake: zmq.Socket, lost_s: float | None) -> None:
        """Opens both connections.

        Raises:
            BridgeError: `server_not_running` at first, `server_gone` after a loss, or the server's refusal.
        """
        started_s = time.monotonic()
        give_up_s = started_s + self._connect_timeout_s if lost_s is None else lost_s + self._gone_timeout_s
        failure = 0
        while not self._client._closed:
            try:
                self._control = self._link()
                failure = self._control.handshake_failure() or failure
                self._data = self._link()
            except _Lost:
                failure = failure or zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                # Not at once again: each try costs the server a handshake.
                time.sleep(0.1)
            # A Hello may be lost with a server that dies as it starts: now and then begin anew.
            anew_s = min(give_up_s, time.monotonic() + 5.0)
            while self._data is not None and not self._client._closed and time.monotonic() < anew_s:
                assert self._control is not None
                self._wait(wake, self._control, self._data)
                for link in (self._control, self._data):
                    for message, _ in link.receive():
                        raise ProtocolError("hello_first", f"{type(message).__name__} came before any request.")
                if self._control.session.is_open and self._data.session.is_open:
                    self._opened()
                    return
                failure = self._control.handshake_failure() or failure
                if failure & (zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                    raise self._not_let_in(failure)
            self._hang_up()
            if time.monotonic() >= give_up_s:
                # It let us in before: what breaks off now is a server that dies, or starts.
                raise (
                    self._not_let_in(failure) if failure and lost_s is None else self._nobody_there(lost_s is not None)
                )

    def _link(self) -> _Link:
        session = ClientSession(self._program, self._version, self._client.client_id, time.monotonic())
        link = _Link(self._client._context, self._client.address, session, self._client.key)
        try:
            link.send(session.hello())
        except _Lost:
            link.close()
            raise
        return link

    def _not_let_in(self, failure: int) -> BridgeError:
        address, key = self._client.address, self._client.key
        if key is None:
            return BridgeError(
                "key_refused",
                f"The server at {address} asks for a key. Make one with 'worldwarp keys client', have it allowed "
                "there, and give it with --key.",
            )
        if failure & zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            why = f"does not have this key on its list. There: worldwarp keys allow {key.name} '{key.public}'"
        else:
            why = (
                "has no keys, or another one than this client trusts: compare with what 'worldwarp keys server' printed"
            )
        return BridgeError("key_refused", f"The server at {address} {why}.")

    def _nobody_there(self, after_loss: bool) -> BridgeError:
        address = self._client.address
        if after_loss:
            return BridgeError(
                "server_gone",
                f"The server at {address} has not come back for {self._gone_timeout_s:g} s. Start it again with "
                "'worldwarp serve' and continue the job there: what it computed is kept.",
            )
        port = address.rpartition(":")[2]
        return BridgeError(
            "server_not_running",
            f"No WorldWarp server answers at {address}. Start one with: worldwarp serve --port {port}",
        )

    def _opened(self) -> None:
        assert self._control is not None
        assert self._control.session.welcome is not None
        self._open = True
        if not self.welcome.done():
            self.welcome.set_result(self._control.session.welcome)
        self._client._inbox.put(Connected(self._control.session.welcome))
        for request_id, pending in self._pending.items():
            if request_id not in self._uploads:
                self._control.send(pending.message)
        if self._client._compress:
            assert self._data is not None
            self._data.send(Compress())
        accepted_later = {p.message.job_id for p in self._pending.values() if isinstance(p.message, JobRequest)}
        for follower in self._followers.values():
            if not follower.ended and follower.job_id not in accepted_later:
                self._subscribe(follower)
        for request_id, fetch in self._fetches.items():
            self._ask_block(request_id, fetch)
        self._begin_upload()

    def _converse(self, wake: zmq.Socket) -> None:
        """Takes what comes until the client is closed; looks whether the server is still there now and then.

        Raises:
            _Lost: it is not.
        """
        next_check_s = 0.0
        arrived: set[zmq.Socket] | None = None
        while not self._client._closed:
            assert self._control is not None
            assert self._data is not None
            links = (self._control, self._data)
            for link in links:
                if arrived is None or link.socket in arrived:
                    self._hear(link)
            if time.monotonic() >= next_check_s:
                next_check_s = time.monotonic() + TICK_MS / 1000
                _check_heard(links)
                for link in links:
                    link.keep_up()
            arrived = self._wait(wake, *links)
            if any(link.monitor in arrived for link in links):
                # A server that leaves closes both, and its last words are read before the end of the connection that
                # they come by: the other one's end may be here sooner.
                self._data.monitor.poll(TICK_MS)
                self._hear(self._data)
                raise _Lost("the server closed the connection")

    def _hear(self, link: _Link) -> None:
        for message, size_bytes in link.receive():
            self._take(message, size_bytes)

    def _wait(self, wake: zmq.Socket, *links: _Link) -> set[zmq.Socket]:
        """Sleeps until something arrives or is asked for, and does what was asked for; returns where it arrived."""
        sockets = (wake, *(link.socket for link in links), *(link.monitor for link in links if self._open))
        if sockets != self._polled:
            self._polled, self._poller = sockets, zmq.Poller()
            for socket in sockets:
                self._poller.register(socket, zmq.POLLIN)
        arrived = {socket for socket, _ in self._poller.poll(TICK_MS)}
        while wake in arrived and wake.poll(0):
            wake.recv()
        while self._client._todo:
            self._client._todo.popleft()()
        return arrived

    def _hang_up(self) -> None:
        self._open = False
        for link in (self._control, self._data):
            if link is not None:
                link.close()
        self._control = self._data = None

    def _give_up(self, error: WorldWarpError) -> None:
        """Tells everyone who waits that nothing more will come."""
        with self._client._waking:
            self.end = error
        while self._client._todo:
            self._client._todo.popleft()()
        for fetch in self._fetches.values():
            fetch.drop()
        # Before the errors: whoever is told by one then finds this event, too.
        self._client._inbox.put(Disconnected(error.code, error.message))
        if not self.welcome.done():
            self.welcome.set_exception(error)
        for pending in self._pending.values():
            if pending.answer is not None:
                pending.answer.set_exception(error)
        for fetch in self._fetches.values():
            if fetch.answer is not None:
                fetch.answer.set_exception(error)

    # ------------------------------------------------------------ what the user asks for

    @property
    def view_port(self) -> int:
        """What the server's newest Welcome says; may be read by any thread."""
        control = self._control
        welcome = control.session.welcome if control is not None else None
        return welcome.view_port if welcome is not None else 0

    def greet(self) -> None:
        """Has the server say again what it is."""
        if self._open and self._control is not None:
            self._control.send(self._control.session.hello())

    def submit(self, message: Submit | Draw, after_seq: int, resume: bool) -> None:
        self._followers[message.job_id] = Follower(message.job_id, self._client._credit_bytes, last_seq=after_seq)
        if resume:
            self._to_resume.add(message.job_id)
        if isinstance(message, Draw) or codec.size_of(codec.encode(message)) <= LARGE_BYTES:
            self.request(message)
            return
        self._pending[message.request_id] = _Pending(message, None)
        self._uploads[message.request_id] = Outgoing(message)
        if len(self._uploads) == 1:
            self._begin_upload()

    def cancel(self, message: Cancel) -> None:
        sending = next((r for r, outgoing in self._uploads.items() if outgoing.message.job_id == message.job_id), None)
        if sending is None:
            self.request(message)
            return
        del self._pending[sending]
        self._followers.pop(message.job_id, None)
        self._to_resume.discard(message.job_id)
        # Whatever the server answers, here it has ended. By the way that the pieces go: one that overtook the last of
        # them would find no job.
        self._pending[message.request_id] = _Pending(message, Future())
        if self._open and self._data is not None:
            self._data.send(message)
        ended = RequestFailed("cancelled", "The job was cancelled before all of it was sent.", message.job_id)
        self._client._inbox.put(ended)
        self._end_upload(sending)

    def resume(self, message: Resume, after_seq: int) -> None:
        # Followed once it is accepted: before, its log may still end with the last attempt.
        self._followers[message.job_id] = Follower(message.job_id, self._client._credit_bytes, last_seq=after_seq)
        self.request(message)

    def request(self, message: Any, answer: Future[Any] | None = None) -> None:
        self._pending[message.request_id] = _Pending(message, answer)
        if self._open and self._control is not None:
            self._control.send(message)

    def follow(self, follower: Follower) -> None:
        self._followers[follower.job_id] = follower
        if self._open:
            self._subscribe(follower)

    def fetch(self, fetch: _Fetch) -> None:
        request_id = next(self._client._request_ids)
        self._fetches[request_id] = fetch
        if self._open:
            self._ask_block(request_id, fetch)

    def consumed(self, job_id: str, size_bytes: int) -> None:
        self._unread[job_id] = self._unread.get(job_id, 0) - size_bytes
        self._consumed(job_id, size_bytes)

    def _consumed(self, job_id: str, size_bytes: int) -> None:
        follower = self._followers.get(job_id)
        if follower is None:
            return
        credit = follower.consumed(size_bytes)
        if credit is not None and self._open and self._data is not None:
            self._data.send(credit)

    def _subscribe(self, follower: Follower) -> None:
        assert self._data is not None
        unread = self._unread.get(follower.job_id, 0)
        self._data.send(follower.subscribe(next(self._client._request_ids), unread))

    def _begin_upload(self) -> None:
        """Sends the first of the jobs that go in pieces, from where the server has it."""
        if self._uploads and self._open and self._data is not None:
            self._data.send(next(iter(self._uploads.values())).ask())

    def _end_upload(self, request_id: int) -> None:
        """Goes on with the next of the jobs that go in pieces, where the request was the one on its way."""
        was_first = next(iter(self._uploads), None) == request_id
        self._uploads.pop(request_id, None)
        if was_first:
            self._begin_upload()

    def _ask_block(self, request_id: int, fetch: _Fetch) -> None:
        assert self._data is not None
        self._data.send(
            FetchSplats(request_id=request_id, job_id=fetch.job_id, revision=fetch.revision, offset=fetch.offset)
        )

    # ------------------------------------------------------------ what the server says

    def _take(self, message: ServerMessage, size_bytes: int) -> None:
        if isinstance(message, Progress):
            self._put(message, size_bytes)
        elif isinstance(message, FrameEvent | ChunkCommitted | CacheEvent | NoticeEvent | StateEvent):
            follower = self._followers.get(message.job_id)
            if follower is None or not follower.accept(message):
                return
            if follower.ended and message.seq < self._last_seqs.get(message.job_id, 0):
                # An end that the job has left again: it was resumed. Whoever waits for the end need not hear of it.
                self._consumed(message.job_id, size_bytes)
            else:
                self._put(message, size_bytes)
        elif isinstance(message, Error):
            self._refused(message)
        elif isinstance(message, SplatsBlock):
            self._take_block(message)
        elif isinstance(message, Uploaded):
            self._send_on(message)
        elif isinstance(message, Subscribed):
            self._last_seqs[message.job_id] = message.last_seq
            follower = self._followers.get(message.job_id)
            if follower is not None and not message.after_seq:
                # Lower than what we have, where the server's log is not the one that it was.
                follower.last_seq = 0
        else:
            self._answered(message)

    def _put(self, event: Any, size_bytes: int) -> None:
        self._unread[event.job_id] = self._unread.get(event.job_id, 0) + size_bytes
        self._client._inbox.put(event, event.job_id, size_bytes)

    def _send_on(self, message: Uploaded) -> None:
        outgoing = self._uploads.get(message.request_id)
        if outgoing is None:
            return
        assert self._data is not None
        try:
            pieces = outgoing.answered(message, time.monotonic())
        except OutOfStep:
            raise _Lost("the server had forgotten what had been sent") from None
        for piece in pieces:
            self._data.send(piece)
        self._client._inbox.put(Sending(message.job_id, outgoing.received_bytes, outgoing.size_bytes))

    def _answered(self, message: Any) -> None:
        self._end_upload(message.request_id)
        pending = self._pending.pop(message.request_id, None)
        if pending is None:
            return
        if isinstance(message, Accepted) and message.job_id in self._to_resume:
            self._to_resume.discard(message.job_id)
            self.request(Resume(request_id=next(self._client._request_ids), job_id=message.job_id))
        elif isinstance(message, Accepted) and message.job_id in self._followers:
            self._subscribe(self._followers[message.job_id])
        if pending.answer is not None:
            pending.answer.set_result(message)
        else:
            self._client._inbox.put(message)

    def _refused(self, error: Error) -> None:
        if error.code == "hello_first":
            # We were held up for too long, by a machine that slept or a host that let no thread run.
            raise _Lost("the server had not heard of us for too long")
        self._end_upload(error.request_id)
        fetch = self._fetches.get(error.request_id)
        if fetch is not None:
            if error.code == "splats_replaced" and fetch.restarts < FETCH_RESTARTS:
                fetch.start_over()
                self._ask_block(error.request_id, fetch)
            else:
                self._fetch_failed(error.request_id, fetch, error.code, error.message)
            return
        pending = self._pending.pop(error.request_id, None)
        job_id = getattr(pending.message, "job_id", "") if pending else error.job_id
        if error.code == "unknown_job" or (pending is not None and isinstance(pending.message, JobRequest)):
            self._followers.pop(job_id, None)
        if pending is not None and pending.answer is not None:
            pending.answer.set_exception(BridgeError(error.code, error.message))
        else:
            self._client._inbox.put(RequestFailed(error.code, error.message, job_id))

    def _take_block(self, block: SplatsBlock) -> None:
        fetch = self._fetches.get(block.request_id)
        # A block asked for over a connection since lost may have been asked for again.
        if fetch is None or block.offset != fetch.offset:
            return
        try:
            whole = fetch.take(block)
        except WorldWarpError as error:
            self._fetch_failed(block.request_id, fetch, error.code, error.message)
            return
        if not whole:
            self._ask_block(block.request_id, fetch)
            return
        del self._fetches[block.request_id]
        if fetch.answer is not None:
            fetch.answer.set_result(fetch.path)
        else:
            self._client._inbox.put(SplatsFetched(fetch.job_id, fetch.path, fetch.revision))

    def _fetch_failed(self, request_id: int, fetch: _Fetch, code: str, message: str) -> None:
        del self._fetches[request_id]
        fetch.drop()
        if fetch.answer is not None:
            fetch.answer.set_exception(BridgeError(code, message))
        else:
            self._client._inbox.put(RequestFailed(code, message, fetch.job_id))
