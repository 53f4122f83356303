"""What tests say to servers and hear from them."""

from __future__ import annotations

import time
from typing import Any

import psutil
import zmq

from engine_bridge import codec
from engine_bridge import messages as m
from engine_bridge.client import Client

from .shots import JOB


def run(client: Client, job_id: str) -> list[Any]:
    return list(client.events(job_id))


def frames(events: list[Any]) -> list[m.FrameEvent]:
    return [event for event in events if isinstance(event, m.FrameEvent)]


def logged(events: list[Any]) -> list[Any]:
    return [event for event in events if hasattr(event, "seq")]


def until(client: Client, kind: type | tuple[type, ...], count: int = 1, timeout_s: float = 120.0) -> list[Any]:
    """The events up to and with the `count`-th of that kind."""
    events: list[Any] = []
    deadline = time.monotonic() + timeout_s
    while sum(isinstance(event, kind) for event in events) < count:
        assert time.monotonic() < deadline, f"no {kind} in {timeout_s} s; got {events[-5:]}"
        if (event := client.wait(0.1)) is not None:
            events.append(event)
    return events


def worker_process(timeout_s: float = 60.0) -> psutil.Process:
    """The one worker of the one server that runs in this process, as soon as there is one that lives."""
    deadline = time.monotonic() + timeout_s
    while len(workers := [child for child in psutil.Process().children() if is_worker(child)]) != 1:
        assert time.monotonic() < deadline, workers
        time.sleep(0.01)
    return workers[0]


def is_worker(process: psutil.Process) -> bool:
    """Other tests' programs are no workers, and one that was killed is none until its server has noticed."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def suspended(process: psutil.Process) -> psutil.Process:
    """The process, once it does nothing any more."""
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)
    return process


class Raw:
    """A bare socket, to say what a client never would."""

    def __init__(self, address: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)

    def say(self, *parts: Any) -> None:
        self.socket.send_multipart(parts)

    def hear(self, timeout_ms: int = 60_000) -> Any:
        assert self.socket.poll(timeout_ms), "no answer"
        return codec.decode(self.socket.recv_multipart(), m.ServerMessage)

    def ask(self, message: Any) -> Any:
        self.say(*codec.encode(message))
        return self.hear()

    def hello(self) -> Any:
        return self.ask(
            m.Hello(request_id=1, protocol_version=m.PROTOCOL_VERSION, client="raw", client_id=JOB, version="1")
        )

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(0)
