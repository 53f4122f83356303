"""The newest large event of a worker in shared memory, so that the server can send it before the disk has it.

Writing a frame to the log takes milliseconds and reading it back some more; a copy through shared memory takes a few
tenths of one. The log stays the truth: the worker appends the same event right after, and shows the next one only then,
so what is not (or no longer) to be had here is in the log.

    bytes 0-7   the event's `seq` once it is whole, 0 while it is being written
    bytes 8-    the event, as the log has it (`codec.join`)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory

from . import codec
from .codec import Part
from .errors import ProtocolError
from .messages import Shown

SMALLEST_BYTES = 100_000
"""Of an event for which this is worth it."""
_SEQ = struct.Struct("<Q")


class ShowCase:
    """The worker's end."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def show(self, job_id: str, seq: int, parts: Sequence[Part], frames_done: int) -> Shown | None:
        """Puts an event there; what to tell the server of it, or None for one that is not worth it or does not fit."""
        record = codec.joined(list(parts))
        size = codec.size_of(record)
        if size < SMALLEST_BYTES:
            return None
        try:
            memory = self._with_room(_SEQ.size + size)
        except OSError:
            # No shared memory to be had (a container with little of it, say): the disk is the way.
            return None
        buffer = memory.buf
        assert buffer is not None
        _SEQ.pack_into(buffer, 0, 0)
        at = _SEQ.size
        for piece in record:
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        _SEQ.pack_into(buffer, 0, seq)
        return Shown(job_id=job_id, seq=seq, name=memory.name, size_bytes=size, frames_done=frames_done)

    def close(self) -> None:
        """Gives the memory back."""
        if self._memory is not None:
            self._memory.close()
            with suppress(FileNotFoundError):
                self._memory.unlink()
            self._memory = None

    def _with_room(self, size: int) -> SharedMemory:
        if self._memory is None or self._memory.size < size:
            self.close()
            self._memory = SharedMemory(create=True, size=size)
        return self._memory


class Looker:
    """The server's end for one worker."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def take(self, shown: Shown) -> list[Part] | None:
        """A copy of the event's parts; None where another has taken its place, and the log has it."""
        try:
            if self._memory is None or self._memory.name != shown.name:
                self.close()
                self._memory = SharedMemory(shown.name)
        except (OSError, ValueError):
            return None
        buffer = self._memory.buf
        assert buffer is not None
        if len(buffer) < _SEQ.size + shown.size_bytes or _SEQ.unpack_from(buffer)[0] != shown.seq:
            return None
        record = bytes(buffer[_SEQ.size : _SEQ.size + shown.size_bytes])
        if _SEQ.unpack_from(buffer)[0] != shown.seq:
            return None
        try:
            return codec.split(record)
        except ProtocolError:
            return None

    def close(self) -> None:
        """Lets go of the memory."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def bury(self) -> None:
        """Lets go of the memory of a worker that has died, and frees it in its place."""
        if self._memory is not None:
            with suppress(FileNotFoundError):
                self._memory.unlink()
            self.close()
