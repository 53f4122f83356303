"""Frames compressed for clients on slow networks, on threads of their own: the server's loop never waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from . import codec
from .codec import Part

THREADS = 2
KEEP_S = 0.5
"""How long a compressed frame that nobody asks for is kept: another client may follow the same job."""


class Compressor:
    """Compresses what it is asked for. Not for use by several threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "compress")
        self._frames: dict[tuple[str, int], Future[list[Part]]] = {}
        self._asked_s: dict[tuple[str, int], float] = {}

    @property
    def busy(self) -> bool:
        """Whether something is not compressed yet that was asked for."""
        return not all(frame.done() for frame in self._frames.values())

    def take(self, job_id: str, seq: int, parts: Sequence[Part]) -> list[Part] | None:
        """The parts of a job's frame compressed; None while that is being done: ask again."""
        key = job_id, seq
        self._asked_s[key] = time.monotonic()
        if key not in self._frames:
            self._frames[key] = self._threads.submit(codec.compress, parts)
        return self._frames[key].result() if self._frames[key].done() else None

    def tidy(self) -> None:
        """Forgets what nobody asks for any more; to be called now and then."""
        old_s = time.monotonic() - KEEP_S
        for key in [key for key, frame in self._frames.items() if frame.done() and self._asked_s[key] < old_s]:
            del self._frames[key], self._asked_s[key]

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(cancel_futures=True)
