"""Jobs on the server's disk: what was asked for, an append-only log of what came of it, and the newest splat files.

    ROOT/<job id>/submit.msg          the Submit or Draw as it arrived
                  state.json          how the job stands, rewritten whole at each change
                  events.log          the logged events, one after the other, as they go over the wire
                  events.index        16 bytes an event: where it starts (u64), its length (u32) and CRC-32 (u32)
                  splats_000001.ply   the world after each fit (the newest two), with size and SHA-256 in a .json beside
                  resume.json, state_*.npz   what it goes on from when it is interrupted (commits.py)

Event `seq` (from 1) is entry `seq - 1` of the index; an event exists once its whole index entry does, so a writer that
dies half way leaves nothing that a reader could take for an event. One process writes a log at a time: the server
before and after the run, the worker during it. Readers keep no state but the number of the event they want next.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, get_args

from worldwarp_core.atomic_write import atomic_write

from . import codec
from .codec import Part
from .commits import Commits
from .errors import BridgeError, ProtocolError, disk_errors
from .messages import MAX_BLOCK_BYTES, ChunkCommitted, ClientMessage, Draw, JobState, LoggedEvent, Submit

_INDEX = struct.Struct("<QII")
_JOB_ID = re.compile(r"[0-9a-f]{32}")
SMALL_BYTES = 100_000
"""Of an event that is no frame of a usual size."""
_SPLATS_KEPT = 2
"""The newest, and the one before it that a client may be half way through."""


@dataclass(frozen=True)
class StoredState:
    """How a job stands, as `state.json` holds it."""

    state: JobState
    created_s: float
    frames: int
    frames_done: int = 0
    code: str = ""
    message: str = ""
    digest: str = ""
    """SHA-256 of what was asked for: tells a repeat from another job under the same id."""
    client: str = ""
    priority: int = 0
    attempt: int = 0
    """How often the job has been started."""
    deaths: int = 0
    """Workers that died of it since `frames_at_death` frames were final."""
    frames_at_death: int = 0
    cancelled: bool = False
    """Whether it was told to stop and has not yet."""


@dataclass(frozen=True)
class SplatsFile:
    """One splat file of a job."""

    path: Path
    revision: int
    size_bytes: int
    sha256: str
    splats: int


class JobStore:
    """All jobs under one folder, which is made where it is missing.

    Raises:
        BridgeError: `cannot_write` or `disk_full`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)

    def job_ids(self) -> list[str]:
        """Every job that was stored whole, in no order."""
        return [f.name for f in self.root.iterdir() if _JOB_ID.fullmatch(f.name) and (f / "state.json").is_file()]

    def open(self, job_id: str) -> StoredJob:
        """The job of this id, which need not exist yet. Only an id of 32 hex digits ever becomes a folder's name."""
        assert _JOB_ID.fullmatch(job_id), job_id
        return StoredJob(self.root / job_id)

    def size_of(self, job_id: str) -> int:
        """Bytes that a job takes on the disk, as far as that can be seen: 0 where somebody has deleted it by hand."""
        size = 0
        with suppress(OSError):
            for file in self.open(job_id).folder.iterdir():
                # A splat file may be replaced while we look.
                with suppress(FileNotFoundError):
                    size += file.stat().st_size
        return size

    def remove(self, job_id: str) -> None:
        """Deletes a job whole.

        Raises:
            OSError: what stays is then no job any more.
        """
        folder = self.open(job_id).folder
        (folder / "state.json").unlink(missing_ok=True)
        shutil.rmtree(folder)

    def create(self, job_id: str, submit: list[Part], state: StoredState) -> StoredJob:
        """Stores a new job; its `state.json`, written last, is what makes it one."""
        job = self.open(job_id)
        with disk_errors(job.folder):
            _write_whole(job.folder / "submit.msg", *codec.joined(submit))
        job.write_state(state)
        return job


class StoredJob:
    """One job's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = EventLog(folder)
        self.commits = Commits(folder)

    def request(self) -> Submit | Draw:
        """What was asked for.

        Raises:
            BridgeError: `store_damaged`.
        """
        path = self.folder / "submit.msg"
        try:
            message = codec.decode(codec.split(path.read_bytes()), ClientMessage)
        except (OSError, ProtocolError) as error:
            raise BridgeError("store_damaged", f"The job's settings in {path} cannot be read: {error}") from error
        assert isinstance(message, Submit | Draw)
        return message

    def read_state(self) -> StoredState:
        """How the job stands.

        Raises:
            BridgeError: `store_damaged`.
        """
        path = self.folder / "state.json"
        try:
            state = StoredState(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BridgeError("store_damaged", f"The job's state in {path} cannot be read: {error}") from error
        if state.state not in get_args(JobState):
            raise BridgeError("store_damaged", f"The job's state in {path} is none: {state.state!r}.")
        return state

    def write_state(self, state: StoredState) -> None:
        """Replaces how the job stands, whole or not at all."""
        with disk_errors(self.folder):
            _write_whole(self.folder / "state.json", json.dumps(asdict(state)).encode())

    def add_splats(self, write: Callable[[Path], Any], splats: int) -> SplatsFile:
        """Adds a splat file, which `write` writes at the path it is given, and forgets all but the newest two."""
        newest = self.newest_splats()
        revision = newest.revision + 1 if newest else 1
        path = self.folder / f"splats_{revision:06d}.ply"
        with disk_errors(self.folder):
            with atomic_write(path) as partial:
                write(partial)
            facts: dict[str, Any] = {"size_bytes": path.stat().st_size, "sha256": _sha256(path), "splats": splats}
            with atomic_write(path.with_suffix(".json")) as partial:
                partial.write_text(json.dumps(facts), "utf-8")
            for old in sorted(self.folder.glob("splats_*.json"))[:-_SPLATS_KEPT]:
                # Windows deletes no file that is being read; the next fit tries again.
                with suppress(PermissionError):
                    old.with_suffix(".ply").unlink(missing_ok=True)
                    old.unlink(missing_ok=True)
        return SplatsFile(path, revision, **facts)

    def newest_splats(self) -> SplatsFile | None:
        """The newest whole splat file."""
        stored = sorted(self.folder.glob("splats_*.json"))
        return self.splats(int(stored[-1].stem[-6:])) if stored else None

    def splats(self, revision: int) -> SplatsFile | None:
        """The splat file of that revision, where it is still there."""
        path = self.folder / f"splats_{revision:06d}.ply"
        try:
            facts = json.loads(path.with_suffix(".json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        return SplatsFile(path, revision, facts["size_bytes"], facts["sha256"], facts["splats"])

    @staticmethod
    def splats_block(splats: SplatsFile, offset: int) -> bytes | None:
        """At most MAX_BLOCK_BYTES of the file from `offset`; None where it has been replaced meanwhile."""
        try:
            with splats.path.open("rb") as file:
                file.seek(offset)
                return file.read(MAX_BLOCK_BYTES)
        except FileNotFoundError:
            return None


class EventLog:
    """An append-only list of encoded events on disk; see the top of the module."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "events.log"
        self._index = folder / "events.index"

    def __len__(self) -> int:
        """How many events there are: the newest one's `seq`."""
        try:
            return self._index.stat().st_size // _INDEX.size
        except FileNotFoundError:
            return 0

    def size_of(self, seq: int) -> int:
        """Bytes on disk of an event that exists."""
        return self._entry(seq)[1]

    def read(self, seq: int) -> list[Part]:
        """The parts of an event that exists, as they were appended.

        Raises:
            BridgeError: `store_damaged`.
        """
        start, length, crc = self._entry(seq)
        with self._log.open("rb") as file:
            file.seek(start)
            record = file.read(length)
        if len(record) != length or zlib.crc32(record) != crc:
            raise BridgeError("store_damaged", f"Event {seq} in {self._log} is damaged.")
        return codec.split(record)

    @contextmanager
    def appending(self) -> Iterator[Appender]:
        """Yields what appends one event's parts and returns its `seq`. First drops what a dead writer left half done.

        Raises:
            BridgeError: `disk_full` or `cannot_write`; the log then ends with the last whole event.
        """
        # Unbuffered: what could not be written to a full disk must not come out of a buffer later.
        with disk_errors(self._log), self._log.open("ab", 0) as log, self._index.open("ab", 0) as index:
            count = len(self)
            end = sum(self._entry(count)[:2]) if count else 0
            log.truncate(end)
            index.truncate(count * _INDEX.size)

            yield Appender(self._log, log, index, count, end)

    def mend(self) -> int:
        """Drops the events from the first on that the disk did not get whole when the power went; returns how many.

        Looks back as far as the last commit: that was waited for. Only while nobody writes.

        Raises:
            BridgeError: `cannot_write`.
        """
        count = whole = len(self)
        for seq in range(count, 0, -1):
            try:
                parts = self.read(seq)
            except (BridgeError, OSError):
                whole = seq - 1
                continue
            # One that cannot be read for what it says, as an earlier version wrote it, is whole all the same.
            with suppress(ProtocolError):
                if isinstance(codec.decode(parts, LoggedEvent), ChunkCommitted):
                    break
        if whole < count:
            with disk_errors(self._index):
                os.truncate(self._index, whole * _INDEX.size)
        return count - whole

    def small_events(self, most_bytes: int = SMALL_BYTES) -> Iterator[LoggedEvent]:
        """The events of at most so many bytes, oldest first, up to the first that is damaged: all but the frames.

        Small frames come too. Never raises: whatever is wrong with the file, what can be had is had.
        """
        for seq in range(1, len(self) + 1):
            try:
                if self.size_of(seq) <= most_bytes:
                    yield codec.decode(self.read(seq), LoggedEvent)
            except (BridgeError, OSError):
                # Nobody will be sent what comes after it either: events go out in order.
                return

    def _entry(self, seq: int) -> tuple[int, int, int]:
        assert seq >= 1, seq
        with self._index.open("rb") as file:
            file.seek((seq - 1) * _INDEX.size)
            entry = file.read(_INDEX.size)
        if len(entry) < _INDEX.size:
            raise BridgeError("store_damaged", f"{self._index} ends before event {seq}.")
        return _INDEX.unpack(entry)


class Appender:
    """Appends to a log; see `EventLog.appending`."""

    def __init__(self, path: Path, log: BinaryIO, index: BinaryIO, count: int, end: int) -> None:
        self._path, self._log, self._index = path, log, index
        self._count, self._end = count, end

    def __call__(self, parts: list[Part]) -> int:
        """Appends an event; returns its `seq`."""
        record = codec.joined(parts)
        length, crc = codec.size_of(record), 0
        for piece in record:
            crc = zlib.crc32(piece, crc)
        with disk_errors(self._path):
            try:
                _write(self._log, *record)
                _write(self._index, _INDEX.pack(self._end, length, crc))
            except OSError:
                self._log.truncate(self._end)
                self._index.truncate(self._count * _INDEX.size)
                raise
        self._count, self._end = self._count + 1, self._end + length
        return self._count

    @property
    def last_seq(self) -> int:
        """The newest event's `seq`."""
        return self._count

    def sync(self) -> None:
        """Waits until the disk has everything that was appended."""
        with disk_errors(self._path):
            os.fsync(self._log.fileno())
            os.fsync(self._index.fileno())


def _write_whole(path: Path, *pieces: Part) -> None:
    """Replaces a file, and waits until the disk has it: a file of no bytes may else be left when the power goes."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _write(file: BinaryIO, *pieces: Part) -> None:
    for piece in pieces:
        left = memoryview(piece)
        while left:
            left = left[file.write(left) :]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def default_data_dir() -> Path:
    """Where a server keeps its jobs when it is not told: the user's cache folder by the platform's custom."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "WorldWarp" / "jobs"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "WorldWarp" / "jobs"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "worldwarp" / "jobs"
