"""Large jobs on their way to the server in pieces: `Outgoing` at the client, `Uploads` at the server (PROTOCOL.md).

A message holds up everything behind it on its connection, and one that takes minutes cannot be told from a dead line.
In pieces a job may take as long as it takes: each piece is answered, whatever else is to be said goes in between, and
over a new connection it goes on where it was.

No sockets and no clock here, as in session.py; the server's half keeps what has come in files that nobody else sees.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from . import codec
from .errors import BridgeError, ProtocolError, disk_errors
from .messages import MAX_PIECE_BYTES, Submit, Upload, Uploaded

LARGE_BYTES = 256 * 2**10
"""A Submit of more than this goes in pieces."""

FIRST_PIECE_BYTES = 64 * 2**10
MIN_PIECE_BYTES = 16 * 2**10
PIECES_ON_WAY = 2
"""One to fill the line while the answer to the one before is on its way back."""
QUICK_S = 0.5
"""Pieces that are answered sooner than this grow."""
SLOW_S = 2.0
"""Pieces that are answered later than this shrink."""

MAX_UPLOADS = 64
MAX_UPLOADS_OF_ONE = 8
KEPT_S = 600.0
"""How long a server keeps what has come of a job after its newest piece."""


class OutOfStep(Exception):
    """The server has less of an upload than it had: ask it anew, over a connection without answers on their way."""


class Outgoing:
    """A Submit that is being sent: which piece is next, and how much the server has."""

    def __init__(self, message: Submit) -> None:
        self.message = message
        # Without its request id, as the server stores it: so it knows a job that is sent again from its first piece.
        record = codec.joined(codec.encode(attrs.evolve(message, request_id=0)))
        self._parts = [memoryview(part) for part in record]
        self.size_bytes = codec.size_of(record)
        self.received_bytes = 0
        """What the server has, as far as it has said."""
        self._sent_bytes = 0
        self._piece_bytes = FIRST_PIECE_BYTES
        self._on_way: deque[tuple[int, float]] = deque()
        """(where it ends, when it was sent) of each piece that is not answered yet."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part)
        self._sha256 = digest.hexdigest()

    def ask(self) -> Upload:
        """What to say first over each new connection: how much is there?"""
        self._on_way.clear()
        return self._piece(0, 0)

    def answered(self, answer: Uploaded, now_s: float) -> list[Upload]:
        """Takes an answer; returns the pieces to send now.

        Raises:
            OutOfStep: what was there is there no more.
        """
        if not self._on_way:
            self._sent_bytes = answer.received_bytes
        else:
            end, sent_s = self._on_way.popleft()
            if answer.received_bytes != end:
                raise OutOfStep
            self._fit_to_line(now_s - sent_s)
        self.received_bytes = answer.received_bytes
        pieces = []
        while len(self._on_way) < PIECES_ON_WAY and self._sent_bytes < self.size_bytes:
            end = min(self._sent_bytes + self._piece_bytes, self.size_bytes)
            pieces.append(self._piece(self._sent_bytes, end))
            self._on_way.append((end, now_s))
            self._sent_bytes = end
        return pieces

    def _fit_to_line(self, took_s: float) -> None:
        if took_s < QUICK_S:
            self._piece_bytes = min(self._piece_bytes * 2, MAX_PIECE_BYTES)
        elif took_s > SLOW_S:
            self._piece_bytes = max(self._piece_bytes // 2, MIN_PIECE_BYTES)

    def _piece(self, start: int, end: int) -> Upload:
        pieces, at = [], 0
        for part in self._parts:
            pieces.append(part[max(start - at, 0) : max(end - at, 0)])
            at += len(part)
        return Upload(
            request_id=self.message.request_id,
            job_id=self.message.job_id,
            engine=self.message.engine,
            size_bytes=self.size_bytes,
            offset=start,
            sha256=self._sha256,
            data=np.frombuffer(b"".join(pieces), np.uint8),
        )


@dataclass
class _Incoming:
    size_bytes: int
    sha256: str
    file: Any
    heard_s: float
    received_bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class Uploads:
    """The jobs that have come to a server in part, each its client's own.

    Args:
        folder: on whose disk they are kept, in files without a name: they are gone when the server is.
        limits: of the message that each becomes.
    """

    def __init__(self, folder: Path, limits: codec.Limits) -> None:
        self._folder = folder
        self._most_bytes = limits.message_bytes + codec.size_of(codec.joined([b""] * limits.parts))
        self._incoming: dict[tuple[str, str], _Incoming] = {}

    def take(self, owner: str, piece: Upload, now_s: float) -> tuple[int, bytes | None]:
        """Takes a piece where it is the next one; returns (bytes that are there, the record once it is whole).

        Raises:
            BridgeError: `too_large`, `over_limit`, `queue_full`; `disk_full`, `cannot_write`; `bad_message` where the
                bytes are not those that were announced. What had come of it is then forgotten.
        """
        key = owner, piece.job_id
        upload = self._incoming.get(key)
        if upload is not None and (upload.size_bytes, upload.sha256) != (piece.size_bytes, piece.sha256):
            self.drop(*key)
            upload = None
        if upload is None:
            self._check_room(owner, piece)
            if piece.offset or not len(piece.data):
                return 0, None
            with disk_errors(self._folder):
                # Unbuffered: what did not fit on a full disk must not be written once more when it is closed.
                file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115 (open until the last piece)
            upload = self._incoming[key] = _Incoming(piece.size_bytes, piece.sha256, file, now_s)
        upload.heard_s = now_s
        if piece.offset == upload.received_bytes:
            try:
                with disk_errors(self._folder):
                    left = piece.data.data
                    while left:
                        left = left[upload.file.write(left) :]
            except BridgeError:
                self.drop(*key)
                raise
            upload.digest.update(piece.data.data)
            upload.received_bytes += len(piece.data)
        if upload.received_bytes < upload.size_bytes:
            return upload.received_bytes, None
        try:
            if upload.digest.hexdigest() != upload.sha256:
                raise ProtocolError("bad_message", "The job did not arrive as it was announced. Send it again.")
            with disk_errors(self._folder):
                upload.file.seek(0)
                return upload.received_bytes, upload.file.read()
        finally:
            self.drop(*key)

    def drop(self, owner: str, job_id: str) -> bool:
        """Forgets what has come of a job; returns whether there was any."""
        upload = self._incoming.pop((owner, job_id), None)
        if upload is not None:
            upload.file.close()
        return upload is not None

    def tidy(self, now_s: float) -> None:
        """Forgets what nobody has gone on with for too long."""
        for key, upload in list(self._incoming.items()):
            if now_s - upload.heard_s > KEPT_S:
                self.drop(*key)

    def close(self) -> None:
        """Forgets everything."""
        for key in list(self._incoming):
            self.drop(*key)

    def _check_room(self, owner: str, piece: Upload) -> None:
        if piece.size_bytes > self._most_bytes:
            much = f"The job has {piece.size_bytes} bytes; at most {self._most_bytes} are allowed."
            raise BridgeError("too_large", much)
        if sum(who == owner for who, _ in self._incoming) >= MAX_UPLOADS_OF_ONE:
            few = f"{MAX_UPLOADS_OF_ONE} of your jobs are being sent already. Try again when one has been."
            raise BridgeError("over_limit", few)
        if len(self._incoming) >= MAX_UPLOADS:
            raise BridgeError(
                "queue_full", f"{MAX_UPLOADS} jobs are being sent already. Try again when some have been."
            )
