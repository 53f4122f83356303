"""The rules of a conversation, without sockets, threads or clocks: what comes in, what is allowed, what goes out.

`ServerSession` and `ClientSession` are the two ends of one connection; `JobTable` is the server's list of jobs.
Messages go in as typed objects, answers come out as typed objects, and the time is an argument (seconds, monotonic),
so a pair of ends can be joined in memory and driven through years of silence in a millisecond.

A connection:   new --Hello--> open --silence or a failed send--> forgotten
A job:          queued -> running -> done | failed | cancelled      (and back; see JOB_STATES)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import attrs

from .errors import BridgeError, ProtocolError, printable
from .messages import (
    PROTOCOL_VERSION,
    ClientMessage,
    Compress,
    Credit,
    Error,
    Hello,
    JobInfo,
    JobState,
    LoggedEvent,
    Ping,
    Pong,
    ServerMessage,
    Subscribe,
    Welcome,
)

JOB_STATES: dict[JobState, tuple[JobState, ...]] = {
    "queued": ("running", "failed", "cancelled"),
    "running": ("done", "failed", "cancelled", "queued"),
    "done": (),
    "failed": ("queued",),
    "cancelled": ("queued",),
}
"""From each state, the states that may follow."""

FINAL: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})
"""The states that end a job, and its log unless a client resumes it."""

SILENCE_LIMIT_S = 60.0
"""After this long without a word a server forgets a connection."""
UNANSWERED_LIMIT_S = 20.0
"""After this long without an answer to its pings a client takes a server for lost, whatever the socket says."""
LARGE_MESSAGE_LIMIT_S = 120.0
"""How long one message may take on a slow network, while which nothing else comes or goes on its connection."""
PING_EVERY_S = 5.0
"""A client that has nothing else to say says at least this often that it is there."""

MAX_CREDIT_BYTES = 256 * 2**20
MAX_SUBSCRIPTIONS = 256
"""Of one connection."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself in Welcome."""

    server: str
    version: str
    engine: str
    engine_info: dict[str, Any]
    max_message_bytes: int
    view_port: int = 0


# ---------------------------------------------------------------- the server's end of a connection


@dataclass
class Subscription:
    """How far one connection has been sent one job's log."""

    next_seq: int
    credit_bytes: int
    """What may still be sent. The last event sent may take it below zero, so that no event is too large to go."""
    progress_due: bool = False

    @property
    def may_send(self) -> bool:
        return self.credit_bytes > 0


class ServerSession:
    """The server's end: handshake, silence and credit of one connection."""

    def __init__(self, now_s: float, name: str = "") -> None:
        """Args: name: what the list of clients calls the peer, where it has proved a key."""
        self.state: Literal["new", "open"] = "new"
        self._name = name
        self.client = ""
        self.client_id = ""
        self.compressed = False
        """Whether the peer wants its frames compressed."""
        self.subscriptions: dict[str, Subscription] = {}
        self.followed: set[str] = set()
        """Every job that was ever subscribed to here, also after its last event was sent."""
        self._heard_s = now_s

    @property
    def owner(self) -> str:
        """Whose jobs are submitted here."""
        return self._name or self.client_id

    def receive(
        self, message: ClientMessage, facts: ServerFacts, now_s: float
    ) -> tuple[ServerMessage | None, ClientMessage | None]:
        """Takes a message; returns (the answer that is due at once, the request left for the server to serve)."""
        self._heard_s = now_s
        if isinstance(message, Hello):
            self.state, self.client_id = "open", message.client_id
            self.client = printable(f"{message.client} {message.version}")
            return _welcome(message, facts), None
        if self.state == "new":
            request_id = getattr(message, "request_id", 0)
            return Error(request_id=request_id, code="hello_first", message="Say Hello first."), None
        if isinstance(message, Ping):
            return Pong(request_id=message.request_id), None
        if isinstance(message, Credit):
            return self._give_credit(message), None
        if isinstance(message, Compress):
            self.compressed = True
            return None, None
        return None, message

    def receive_fault(self, error: ProtocolError, now_s: float) -> Error:
        """The answer to a message that could not be read. The conversation goes on."""
        self._heard_s = now_s
        return Error(request_id=error.request_id, code=error.code, message=error.message)

    def subscribe(self, message: Subscribe) -> None:
        """Starts, or starts anew, sending a job's log.

        Raises:
            BridgeError: `credit_exceeded`, `over_limit`.
        """
        _check_credit(message.credit_bytes)
        if message.job_id not in self.subscriptions and len(self.subscriptions) >= MAX_SUBSCRIPTIONS:
            raise BridgeError("over_limit", f"A connection may follow {MAX_SUBSCRIPTIONS} jobs at a time.")
        self.subscriptions[message.job_id] = Subscription(message.after_seq + 1, message.credit_bytes)
        self.followed.add(message.job_id)

    def sent(self, job_id: str, size_bytes: int, *, logged: bool) -> None:
        """Books what was sent, by what it costs: a logged event, or the newest progress."""
        subscription = self.subscriptions[job_id]
        subscription.credit_bytes -= size_bytes
        if logged:
            subscription.next_seq += 1
        else:
            subscription.progress_due = False

    def is_silent(self, now_s: float) -> bool:
        """Whether the other end has said nothing for so long that it must be gone."""
        return now_s - self._heard_s > SILENCE_LIMIT_S

    def _give_credit(self, message: Credit) -> Error | None:
        subscription = self.subscriptions.get(message.job_id)
        if subscription is None:
            # The credit of a subscription that has ended meanwhile.
            return None
        try:
            _check_credit(subscription.credit_bytes + message.credit_bytes)
        except BridgeError as error:
            return Error(request_id=0, code=error.code, message=error.message, job_id=message.job_id)
        subscription.credit_bytes += message.credit_bytes
        return None


def _check_credit(credit_bytes: int) -> None:
    if credit_bytes > MAX_CREDIT_BYTES:
        raise BridgeError(
            "credit_exceeded",
            f"A client may have at most {MAX_CREDIT_BYTES} bytes of credit; asked for {credit_bytes}.",
        )


def _welcome(message: Hello, facts: ServerFacts) -> Welcome:
    return Welcome(
        request_id=message.request_id,
        protocol_version=PROTOCOL_VERSION,
        server=facts.server,
        version=facts.version,
        engine=facts.engine,
        engine_info=facts.engine_info,
        max_message_bytes=facts.max_message_bytes,
        max_credit_bytes=MAX_CREDIT_BYTES,
        view_port=facts.view_port,
        silence_limit_s=SILENCE_LIMIT_S,
    )


# ---------------------------------------------------------------- the client's end of a connection


@dataclass
class Follower:
    """What a client has of one job's log, over however many connections it takes."""

    job_id: str
    credit_bytes: int
    """The window: how far the server may send ahead of what was consumed."""
    last_seq: int = 0
    ended: bool = False
    _owed_bytes: int = 0

    def accept(self, event: LoggedEvent) -> bool:
        """Whether the event is new; one that came before (by a connection since lost) is not.

        Raises:
            ProtocolError: `bad_message`, when an event is missing before this one.
        """
        if event.seq <= self.last_seq:
            return False
        if event.seq != self.last_seq + 1:
            raise ProtocolError("bad_message", f"Event {event.seq} of the job came after event {self.last_seq}.")
        self.last_seq = event.seq
        self.ended = getattr(event, "state", "queued") in FINAL
        return True

    def consumed(self, size_bytes: int) -> Credit | None:
        """Books what was consumed; returns the Credit that is due, which is not one for every small event."""
        self._owed_bytes += size_bytes
        if self._owed_bytes * 4 < self.credit_bytes:
            return None
        credit = Credit(job_id=self.job_id, credit_bytes=self._owed_bytes)
        self._owed_bytes = 0
        return credit

    def subscribe(self, request_id: int, unread_bytes: int = 0) -> Subscribe:
        """Asks for everything after what we have, with a fresh window less what waits unread on our side."""
        self._owed_bytes = 0
        credit = max(0, self.credit_bytes - unread_bytes)
        return Subscribe(request_id=request_id, job_id=self.job_id, after_seq=self.last_seq, credit_bytes=credit)


class ClientSession:
    """The client's end: handshake and silence of one connection."""

    def __init__(self, client: str, version: str, client_id: str, now_s: float) -> None:
        self.welcome: Welcome | None = None
        self._hello = Hello(
            request_id=0, protocol_version=PROTOCOL_VERSION, client=client, client_id=client_id, version=version
        )
        self._heard_s = now_s
        self._said_s = now_s

    @property
    def is_open(self) -> bool:
        return self.welcome is not None

    def hello(self) -> Hello:
        """The first message to send."""
        return self._hello

    def receive(self, message: ServerMessage, now_s: float) -> ServerMessage | None:
        """Takes a message; returns it unless it was the session's own business.

        Raises:
            BridgeError: the server refuses the connection, with its code and words.
        """
        self._heard_s = now_s
        if isinstance(message, Welcome):
            self.welcome = message
            return None
        if not self.is_open:
            if isinstance(message, Error):
                raise BridgeError(message.code, message.message)
            raise ProtocolError("hello_first", f"The server sent {type(message).__name__} before Welcome.")
        return None if isinstance(message, Pong) else message

    def said(self, now_s: float) -> None:
        """Books that something was sent."""
        self._said_s = now_s

    def ping_due(self, now_s: float) -> bool:
        """Whether it is time to say that we are here."""
        return self.is_open and now_s - self._said_s > PING_EVERY_S

    def is_silent(self, now_s: float) -> bool:
        """Whether the server has said nothing for so long that it must be gone, unless one large message takes long."""
        return now_s - self._heard_s > UNANSWERED_LIMIT_S

    def is_stuck(self, now_s: float) -> bool:
        """Whether no message can take as long as the server has said nothing."""
        return now_s - self._heard_s > LARGE_MESSAGE_LIMIT_S


# ---------------------------------------------------------------- the server's jobs


@dataclass
class JobTable:
    """Every job the server knows, and whose turn it is.

    Turns are fair among clients: next is the client whose last turn was longest ago, with its job of the highest
    priority, the oldest of those first. Jobs of a priority below 0 wait for all that are not.
    """

    max_queued: int = 1000
    max_queued_by_client: int = 250
    _jobs: dict[str, JobInfo] = field(default_factory=dict)
    _queued: dict[str, None] = field(default_factory=dict)
    _running: dict[str, None] = field(default_factory=dict)
    _last_turn: dict[str, int] = field(default_factory=dict)
    _turns: int = 0

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, job_id: str) -> JobInfo:
        """The job.

        Raises:
            BridgeError: `unknown_job`.
        """
        try:
            return self._jobs[job_id]
        except KeyError:
            raise BridgeError("unknown_job", f"The server knows no job {job_id}. It may have been removed.") from None

    def __iter__(self) -> Iterator[JobInfo]:
        """Oldest first."""
        return iter(list(self._jobs.values()))

    def add(self, job: JobInfo) -> None:
        """Adds a job at the end of the queue, or one that an earlier run of the server had."""
        assert job.job_id not in self._jobs
        self._jobs[job.job_id] = job
        self._note(job)

    def check_room(self, client: str) -> None:
        """Raises `queue_full` or `over_limit` (BridgeError) where the client may not add a job now."""
        if len(self._queued) >= self.max_queued:
            raise BridgeError("queue_full", f"{self.max_queued} jobs wait already. Try again when some are done.")
        if sum(self._jobs[job_id].client == client for job_id in self._queued) >= self.max_queued_by_client:
            raise BridgeError(
                "over_limit",
                f"{self.max_queued_by_client} of your jobs wait already. Try again when some are done.",
            )

    def remove(self, job_id: str) -> None:
        """Forgets a job."""
        del self._jobs[job_id]
        self._queued.pop(job_id, None)
        self._running.pop(job_id, None)

    def update(self, job_id: str, **changes: Any) -> JobInfo:
        """Changes anything but the state."""
        assert "state" not in changes
        self._jobs[job_id] = attrs.evolve(self[job_id], **changes)
        return self._jobs[job_id]

    def move(self, job_id: str, state: JobState, code: str = "", message: str = "") -> JobInfo:
        """Moves a job on, by the table of states."""
        job = self[job_id]
        assert state in JOB_STATES[job.state], f"{job.state} -> {state}"
        if state == "running":
            self._turns += 1
            self._last_turn[job.client] = self._turns
        self._jobs[job_id] = attrs.evolve(job, state=state, code=code, message=message)
        self._note(self._jobs[job_id])
        return self._jobs[job_id]

    def position(self, job_id: str) -> int:
        """How many jobs come before this one, the running ones among them; 0 when it runs, runs next or has ended."""
        if job_id not in self._queued:
            return 0
        mine, ahead = self[job_id], 0
        lines: dict[str, list[JobInfo]] = {}
        for other_id in self._queued:
            other = self._jobs[other_id]
            if min(other.priority, 0) == min(mine.priority, 0):
                lines.setdefault(other.client, []).append(other)
            else:
                ahead += min(other.priority, 0) > min(mine.priority, 0)
        own = lines.pop(mine.client)
        rank = sum(_own_order(other) < _own_order(mine) for other in own)
        my_turn = self._last_turn.get(mine.client, 0)
        for client, line in lines.items():
            theirs = self._last_turn.get(client, 0)
            sooner = theirs < my_turn or (theirs == my_turn and min(map(_own_order, line)) < min(map(_own_order, own)))
            ahead += min(len(line), rank + sooner)
        return len(self._running) + ahead + rank

    @property
    def queued(self) -> int:
        """How many jobs wait."""
        return len(self._queued)

    @property
    def running(self) -> tuple[JobInfo, ...]:
        return tuple(self._jobs[job_id] for job_id in list(self._running))

    @property
    def next_queued(self) -> JobInfo | None:
        """The job whose turn is next."""
        if not self._queued:
            return None
        waiting = (self._jobs[job_id] for job_id in self._queued)
        return min(
            waiting, key=lambda job: (-min(job.priority, 0), self._last_turn.get(job.client, 0), *_own_order(job))
        )

    def _note(self, job: JobInfo) -> None:
        for state, those in (("queued", self._queued), ("running", self._running)):
            if job.state == state:
                those.setdefault(job.job_id)
            else:
                those.pop(job.job_id, None)


def _own_order(job: JobInfo) -> tuple[int, float, str]:
    """Sorts the jobs of one client into the order of their turns."""
    return -job.priority, job.created_s, job.job_id
