"""The newest large events of a worker in shared memory: the server sends them from there, before the disk has them.

Writing a frame to the log takes milliseconds, and many more while the disk is busy; a copy into shared memory takes
one, and the server makes none. The log stays the truth: the worker appends the same event right after, and shows the
next one only then, so what is not to be had here is in the log.

    bytes 0 ... SLOTS - 1    of each slot: FREE, COPYING or WHOLE
    from HEAD_BYTES on       the slots; in each an event, as the log has it (`codec.join`)

The server is told of an event when its copying begins, since to wake up takes it as long. A slot is free again when
the server has sent what is in it to everybody.
"""

from __future__ import annotations

import shutil
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from . import codec
from .codec import Part
from .errors import ProtocolError
from .messages import Shown

SMALLEST_BYTES = 100_000
"""Of an event for which this is worth it."""
SLOTS = 4
"""Events that may be on their way at a time; while all are, more go by the disk."""
HEAD_BYTES = 4096
FREE, COPYING, WHOLE = range(3)
SEND_LIMIT_S = 0.01
"""How long the disk lets the network go first; a frame that a slow client is still to get is written meanwhile."""
COPY_LIMIT_S = 0.05
"""How long the server waits for a copy: a worker that is held up must not hold up others' clients."""


class ShowCase:
    """The worker's end."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._slot_bytes = 0
        self._slot = 0

    def show(
        self, job_id: str, seq: int, parts: Sequence[Part], frames_done: int, report: Callable[[Shown], None]
    ) -> bool:
        """Puts an event there and reports it, unless it is too small or finds no room; returns whether it did."""
        record = codec.joined(parts)
        size = codec.size_of(record)
        if size < SMALLEST_BYTES:
            return False
        try:
            memory = self._with_room(size)
        except OSError:
            # No shared memory to be had (a container with little of it, say): the disk is the way.
            return False
        buffer = memory.buf
        assert buffer is not None
        slot = next((slot for slot in range(SLOTS) if buffer[slot] == FREE), None)
        if slot is None:
            return False
        buffer[slot] = COPYING
        at = HEAD_BYTES + slot * self._slot_bytes
        shown = Shown(
            job_id=job_id, seq=seq, name=memory.name, slot=slot, offset=at, size_bytes=size, frames_done=frames_done
        )
        report(shown)
        for piece in record:
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        buffer[slot] = WHOLE
        self._slot = slot
        return True

    def wait_until_sent(self) -> None:
        """Waits until the server has sent what was shown last, for `SEND_LIMIT_S` at most.

        Sending and writing both move all of a frame through memory: beside each other both take longer.
        """
        deadline_s = time.monotonic() + SEND_LIMIT_S
        while self._memory is not None and (buffer := self._memory.buf) is not None and buffer[self._slot] != FREE:
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.0002)

    def close(self) -> None:
        """Gives the memory back; what the server is sending stays until it is sent."""
        if self._memory is not None:
            self._memory.close()
            with suppress(FileNotFoundError):
                self._memory.unlink()
            self._memory = None

    def _with_room(self, size: int) -> SharedMemory:
        """The memory, with slots of at least `size` bytes.

        Raises:
            OSError: there is not so much.
        """
        if self._memory is None or self._slot_bytes < size:
            self.close()
            total = HEAD_BYTES + SLOTS * size
            # Linux promises memory that it does not have, and ends the process that then writes there.
            if sys.platform == "linux" and shutil.disk_usage("/dev/shm").free < 2 * total:
                raise OSError(f"{total} bytes of shared memory are not to be had")
            self._memory, self._slot_bytes = SharedMemory(create=True, size=total), size
        return self._memory


class Looker:
    """The server's end for one worker."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._late: set[int] = set()
        """Slots whose copy took too long to wait for."""

    def take(self, shown: Shown) -> list[Part] | None:
        """The event's parts, where they are; None where they cannot be had, and the log has it.

        The worker puts nothing else there until the last of the parts, and of what was made of them, is gone.
        """
        try:
            if self._memory is None or self._memory.name != shown.name:
                self.close()
                self._memory = SharedMemory(shown.name)
        except (OSError, ValueError):
            return None
        buffer = self._memory.buf
        assert buffer is not None
        if shown.slot >= SLOTS or len(buffer) < shown.offset + shown.size_bytes:
            return None
        for slot in [slot for slot in self._late if buffer[slot] == WHOLE]:
            self._late.discard(slot)
            buffer[slot] = FREE
        deadline_s = time.monotonic() + COPY_LIMIT_S
        while buffer[shown.slot] != WHOLE:
            if time.monotonic() > deadline_s:
                self._late.add(shown.slot)
                return None
            time.sleep(0.00002)
        record = np.frombuffer(buffer, np.uint8, shown.size_bytes, shown.offset)
        weakref.finalize(record, _free, self._memory, shown.slot).atexit = False
        try:
            return codec.split(record.data)
        except ProtocolError:
            return None

    def close(self) -> None:
        """Lets go of the memory, as soon as nothing of it is being sent any more."""
        if self._memory is not None:
            _left.append(self._memory)
            self._memory = None
            self._late.clear()
        _left[:] = [memory for memory in _left if not _closed(memory)]

    def bury(self) -> None:
        """Lets go of the memory of a worker that has died, and frees it in its place."""
        if self._memory is not None:
            with suppress(FileNotFoundError):
                self._memory.unlink()
        self.close()


_left: list[SharedMemory] = []
"""Memories that nothing new is taken from, of which something may still be on its way."""


def _closed(memory: SharedMemory) -> bool:
    """Closes it, unless something of it is still in use."""
    try:
        memory.close()
    except BufferError:
        return False
    return True


def _free(memory: SharedMemory, slot: int) -> None:
    if memory.buf is not None:
        memory.buf[slot] = FREE
