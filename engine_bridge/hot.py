"""The newest large events of a worker in shared memory: the server sends them from there, before the disk has them.

Writing a frame to the log takes milliseconds, and many more while the disk is busy; a copy into shared memory takes
one, and the server makes none. Nor is there that one where the engine writes its frames there to begin with, into
arrays that it was lent (worldwarp_core.frame_memory). The log stays the truth: the worker appends the same event right
after, and shows the next one only then, so what is not to be had here is in the log.

    bytes 0 ... SLOTS - 1    of each slot: FREE, TAKEN, WHOLE or SENT
    from PAGE_BYTES on       the slots; in each an event, as the log has it (`codec.join`), whose arrays begin a page
                             after the slot does: they may be there before what goes in front of them

The server is told of an event when its copying begins, since to wake up takes it as long. What is in a slot is sent
when it has gone to everybody who waited for it. The server keeps it until the next, for whoever comes later; a slot is
free again when nobody there has any of it, and nobody in the worker has the arrays any more.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from worldwarp_core.frame_memory import FrameArrays

from . import codec
from .codec import Part
from .errors import ProtocolError
from .messages import Shown

SMALLEST_BYTES = 100_000
"""Of an event for which this is worth it."""
SLOTS = 4
"""Events that may be on their way at a time; while all are, more go by the disk."""
PAGE_BYTES = 4096
"""Also the room for what goes in front of an event's arrays; of a frame that is some 300 bytes."""
FREE, TAKEN, WHOLE, SENT = range(4)
SEND_LIMIT_S = 0.01
"""How long the disk lets the network go first; a frame that a slow client is still to get is written meanwhile."""
COPY_LIMIT_S = 0.05
"""How long the server waits for a copy: a worker that is held up must not hold up others' clients."""


class ShowCase:
    """The worker's end."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._slot_bytes = 0
        self._state: np.ndarray | None = None
        """(1) uint8: of the slot shown last."""
        self._lent: dict[int, int] = {}
        """Slots that are lent and not shown yet, by the address of their arrays."""
        self._held: set[int] = set()
        """Slots whose arrays somebody in this process has."""

    def lend(self, height: int, width: int) -> FrameArrays | None:
        """Arrays for a frame, in memory from which it is then shown as it is; None where there are none to be had."""
        pixels = height * width
        # The depth comes after the colours, and its numbers lie at multiples of four bytes.
        if 8 * pixels < SMALLEST_BYTES or pixels % 4:
            return None
        slot = self._take_slot(8 * pixels)
        if slot is None:
            return None
        assert self._memory is not None
        arrays = np.frombuffer(self._buffer, np.uint8, 8 * pixels, self._arrays_at(slot))
        self._lent[_address(arrays)] = slot
        self._held.add(slot)
        weakref.finalize(arrays, _let_go, self._memory, slot, self._lent, _address(arrays), self._held).atexit = False
        rgb, depth, validity = np.split(arrays, [3 * pixels, 7 * pixels])
        size = (height, width)
        return rgb.reshape(*size, 3), depth.view(np.float32).reshape(size), validity.reshape(size)

    def show(
        self, job_id: str, seq: int, parts: Sequence[Part], frames_done: int, report: Callable[[Shown], None]
    ) -> bool:
        """Puts an event there and reports it, unless it is too small or finds no room; returns whether it did.

        What lies in lent arrays already is not copied.
        """
        record = codec.joined(parts)
        size, arrays_size = codec.size_of(record), codec.size_of(parts[1:])
        if size < SMALLEST_BYTES or size - arrays_size > PAGE_BYTES:
            return False
        lent = self._lent_to(parts[1:])
        slot = self._take_slot(arrays_size) if lent is None else lent
        if slot is None:
            return False
        assert self._memory is not None
        at = self._arrays_at(slot) + arrays_size - size  # so that the arrays begin where they belong
        shown = Shown(
            job_id=job_id,
            seq=seq,
            name=self._memory.name,
            slot=slot,
            offset=at,
            size_bytes=size,
            frames_done=frames_done,
        )
        self._state = np.frombuffer(self._buffer, np.uint8, 1, slot)
        if lent is None:
            report(shown)
            self._put(record, at, slot)
        else:
            self._put(record[:2], at, slot)
            report(shown)
        return True

    def wait_until_sent(self) -> None:
        """Waits until the server has sent what was shown last, for `SEND_LIMIT_S` at most.

        Sending and writing both move all of a frame through memory: beside each other both take longer.
        """
        deadline_s, state = time.monotonic() + SEND_LIMIT_S, self._state
        while state is not None and state[0] not in (FREE, SENT):
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.0002)

    def close(self) -> None:
        """Gives the memory back; what the server is sending, or somebody here has, stays as long."""
        if self._memory is not None:
            with suppress(FileNotFoundError):
                self._memory.unlink()
            _left.append(self._memory)
            self._memory, self._state, self._lent, self._held = None, None, {}, set()
        _close_left()

    def _lent_to(self, arrays: Sequence[Part]) -> int | None:
        """The slot in which these arrays lie, one after the other; it is not lent any more then."""
        if not self._lent:
            return None
        addresses = [_address(np.frombuffer(array, np.uint8)) for array in arrays]
        ends = [address + len(array) for address, array in zip(addresses, arrays, strict=True)]
        return self._lent.pop(addresses[0], None) if addresses[1:] == ends[:-1] else None

    def _take_slot(self, size: int) -> int | None:
        """Takes a slot with room for arrays of `size` bytes, where there is one."""
        try:
            self._make_room(size)
        except OSError:
            # No shared memory to be had (a container with little of it, say): the disk is the way.
            return None
        buffer = self._buffer
        slot = next((slot for slot in range(SLOTS) if buffer[slot] == FREE and slot not in self._held), None)
        if slot is not None:
            buffer[slot] = TAKEN
        return slot

    def _arrays_at(self, slot: int) -> int:
        return PAGE_BYTES + slot * self._slot_bytes + PAGE_BYTES

    def _put(self, pieces: Sequence[Part], at: int, slot: int) -> None:
        """Makes a slot whole."""
        buffer = self._buffer
        for piece in pieces:
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        buffer[slot] = WHOLE

    @property
    def _buffer(self) -> memoryview:
        assert self._memory is not None
        assert self._memory.buf is not None
        return self._memory.buf

    def _make_room(self, size: int) -> None:
        """Sees to it that slots have room for arrays of `size` bytes.

        Raises:
            OSError: there is not so much.
        """
        if self._memory is None or self._slot_bytes < PAGE_BYTES + size:
            self.close()
            slot_bytes = PAGE_BYTES + math.ceil(size / PAGE_BYTES) * PAGE_BYTES
            total = PAGE_BYTES + SLOTS * slot_bytes
            # Linux promises memory that it does not have, and ends the process that then writes there.
            if sys.platform == "linux" and shutil.disk_usage("/dev/shm").free < 2 * total:
                raise OSError(f"{total} bytes of shared memory are not to be had")
            self._memory, self._slot_bytes = SharedMemory(create=True, size=total), slot_bytes


class Looker:
    """The server's end for one worker."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None
        self._late: set[int] = set()
        """Slots whose copy took too long to wait for."""
        self._taken: Callable[[], np.ndarray | None] = lambda: None
        """The record taken last, as long as somebody has it."""
        self._taken_from = 0
        """The slot that it is in."""

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
        self._taken, self._taken_from = weakref.ref(record), shown.slot
        try:
            return codec.split(record.data)
        except ProtocolError:
            return None

    def to_send(self) -> list[Part]:
        """The parts taken last, once more: the worker takes them for sent when the last of these is gone."""
        record = self._taken()
        assert record is not None, "nothing was taken"
        assert self._memory is not None
        on_way = np.frombuffer(record.data, np.uint8)
        weakref.finalize(on_way, _note_sent, self._memory, self._taken_from).atexit = False
        return codec.split(on_way.data)

    def close(self) -> None:
        """Lets go of the memory, as soon as nothing of it is being sent any more."""
        if self._memory is not None:
            _left.append(self._memory)
            self._memory = None
            self._late.clear()
        _close_left()

    def bury(self) -> None:
        """Lets go of the memory of a worker that has died, and frees it in its place."""
        if self._memory is not None:
            with suppress(FileNotFoundError):
                self._memory.unlink()
        self.close()


_left: list[SharedMemory] = []
"""Memories that nothing new is put in or taken from, of which something may still be in use."""


def _close_left() -> None:
    _left[:] = [memory for memory in _left if not _closed(memory)]


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


def _note_sent(memory: SharedMemory, slot: int) -> None:
    if memory.buf is not None and memory.buf[slot] == WHOLE:
        memory.buf[slot] = SENT


def _let_go(memory: SharedMemory, slot: int, lent: dict[int, int], address: int, held: set[int]) -> None:
    """Nobody has a lent slot's arrays any more: where they were never shown, it is free."""
    if lent.pop(address, None) is not None:
        _free(memory, slot)
    held.discard(slot)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
