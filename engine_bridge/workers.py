"""The server's worker processes: one for each device, started, told, heard and buried.

A worker is a process of its own (worker.py) behind a pipe; a thread for each carries its reports to the server's loop,
because a poller cannot wait for a pipe on Windows.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import zmq

from . import codec
from .hot import Looker
from .messages import LoadFailed, Lost, Ready, WorkerReport
from .worker import run_worker
from .worker_config import WorkerConfig

_log = logging.getLogger(__name__)
_REPORTS = "inproc://workers"
REST_S = 60.0
"""How long a worker that could not start is left alone while there are others."""


@dataclass(frozen=True)
class Gone:
    """A worker's process has ended."""

    how: str
    """In words: by what signal, or with what exit code."""


class Worker:
    """One process. `job_id` is the job that it was given, "" where it has none."""

    def __init__(self, context: zmq.Context, config: WorkerConfig, slot: int) -> None:
        self.slot = slot
        self.job_id = ""
        self.ready = False
        self.load_failure: LoadFailed | None = None
        self.lost: Lost | None = None
        self.looker = Looker()
        # Spawned, never forked: a fork would copy the server's sockets and, with CUDA, not work at all.
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=run_worker, args=(theirs, config), name=f"worldwarp-worker-{slot}")
        # OpenMP reads this when torch loads it. Its threads else spin while they wait for each other, and beside any
        # other work a step of the CPU engine takes three times as long.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        self.process.start()
        theirs.close()
        self.token = f"{slot}-{self.process.pid}".encode()
        threading.Thread(
            target=_carry, args=(context, self._connection, self.token), name=f"worker-{slot}-reports", daemon=True
        ).start()

    def tell(self, command: Any) -> None:
        """Sends a command; a dead worker is noticed by the thread, not here."""
        try:
            self._connection.send_bytes(codec.join(codec.encode(command)))
        except OSError:
            _log.debug("the worker is gone before it could be told %s", type(command).__name__)


class Workers:
    """All of a server's workers. Not for use by several threads.

    Args:
        configs: one for each slot.
    """

    def __init__(self, context: zmq.Context, configs: list[WorkerConfig]) -> None:
        self._context = context
        self._configs = configs
        self._workers: dict[bytes, Worker] = {}
        self._rests_until_s: dict[int, float] = {}
        self.reports = context.socket(zmq.PULL)
        """For a poller: readable when `hear` has something."""
        self.reports.bind(_REPORTS)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def start(self) -> None:
        """Starts a worker in every slot that has none; in those that are to rest, only where there is no other."""
        taken, now_s = {worker.slot for worker in self}, time.monotonic()
        for slot, config in enumerate(self._configs):
            rests = bool(taken) and now_s < self._rests_until_s.get(slot, 0.0)
            if slot not in taken and not rests:
                worker = Worker(self._context, config, slot)
                self._workers[worker.token] = worker

    def rest(self, slot: int) -> None:
        """Leaves a slot empty for a while: what could not start cannot a moment later either."""
        self._rests_until_s[slot] = time.monotonic() + REST_S

    def with_job(self, job_id: str) -> Worker | None:
        """The worker that was given the job."""
        return next((worker for worker in self if worker.job_id == job_id), None)

    @property
    def idle(self) -> list[Worker]:
        """Those that wait for a job."""
        return [worker for worker in self if worker.ready and not worker.job_id]

    def hear(self) -> Iterator[tuple[Worker, Any]]:
        """What workers have reported since the last time, with `Gone` as the last of each."""
        while True:
            try:
                token, record = self.reports.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            worker = self._workers.get(token)
            if worker is None:
                continue
            if not record:
                del self._workers[token]
                worker.process.join()
                worker.looker.bury()
                yield worker, Gone(worker.lost.how if worker.lost else _how(worker.process.exitcode))
                continue
            message = codec.decode(codec.split(record), WorkerReport)
            if isinstance(message, Ready):
                worker.ready = True
            elif isinstance(message, LoadFailed):
                worker.load_failure = message
            elif isinstance(message, Lost):
                worker.lost = message
            yield worker, message

    def tell_all(self, command: Any) -> None:
        """Sends a command to every worker."""
        for worker in self:
            worker.tell(command)

    def kill(self) -> None:
        """Ends every process; that they are gone is then heard."""
        for worker in self:
            worker.process.kill()

    def close(self) -> None:
        """Closes the socket; no worker may be left."""
        self.reports.close(0)


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        hint = ", which is often a lack of memory" if exit_code == -9 else ""
        return f"killed by signal {-exit_code}{hint}"
    return f"exit code {exit_code}"


def _carry(context: zmq.Context, connection: Connection, token: bytes) -> None:
    """Carries reports as [token, record]; an empty record says that the process is gone."""
    socket = context.socket(zmq.PUSH)
    try:
        socket.connect(_REPORTS)
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
