"""What a job goes on from when it was interrupted: the engine's saved states, and which of its frames are final.

    FOLDER/state_000003_made_1f0a93c2.npz   what the engine saved (worldwarp_core.checkpoint), only what is needed
           resume.json   which of them make the state, with their SHA-256, and how many frames it makes final

A state counts once `resume.json` names it, which is replaced whole; a state whose bytes are not what it says does not
count. Only the worker that runs the job writes here.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from worldwarp_core.atomic_write import atomic_write
from worldwarp_core.checkpoint import Checkpoint, join, read_checkpoint, write_checkpoint
from worldwarp_core.errors import WorldWarpError

from .errors import disk_errors


@dataclass(frozen=True)
class Saved:
    """What `resume.json` says."""

    chunk: int
    attempt: int
    frames: int
    """Final frames of the path, from its first."""
    row: tuple[tuple[str, str], ...]
    """(file, SHA-256) of a whole state and what is laid over it, oldest first."""


NOTHING = Saved(0, 0, 0, ())


class Commits:
    """The saved states of one job's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "resume.json"

    def read(self) -> Saved:
        """What is saved; `NOTHING` where nothing is, or where it cannot be read."""
        try:
            values = json.loads(self._path.read_text("utf-8"))
            row = tuple((str(name), str(digest)) for name, digest in values["row"])
            if any(Path(name).name != name for name, _ in row):
                return NOTHING
            return Saved(int(values["chunk"]), int(values["attempt"]), int(values["frames"]), row)
        except (OSError, ValueError, KeyError, TypeError):
            return NOTHING

    def load(self) -> Checkpoint | None:
        """The state to go on from; None where there is none.

        Raises:
            WorldWarpError: `bad_checkpoint`, where there is one and it is damaged.
        """
        row = []
        for name, digest in self.read().row:
            path = self._folder / name
            try:
                intact = _sha256(path) == digest
            except OSError as error:
                raise WorldWarpError("bad_checkpoint", f"The saved state {path} is gone: {error}.") from error
            if not intact:
                raise WorldWarpError("bad_checkpoint", f"The saved state {path} is damaged.")
            row.append(read_checkpoint(path))
        if row and row[0].stage != "fitted":
            raise WorldWarpError("bad_checkpoint", f"The saved state in {self._folder} is not whole.")
        return join(row) if row else None

    def save(self, checkpoint: Checkpoint, attempt: int) -> Saved:
        """Saves a state; when this returns, the disk has it, and the states that it makes needless are gone.

        Raises:
            WorldWarpError: `disk_full`, `cannot_write`; what was saved before still counts.
        """
        before = self.read()
        # Never in the place of one that counts: it counts until `resume.json` names the new one.
        path = self._folder / f"state_{checkpoint.chunk:06d}_{checkpoint.stage}_{uuid.uuid4().hex[:8]}.npz"
        with disk_errors(self._folder):
            write_checkpoint(path, checkpoint)
            entry = (path.name, _sha256(path))
            made = checkpoint.stage == "made"
            saved = Saved(
                chunk=checkpoint.chunk,
                attempt=attempt,
                frames=max(checkpoint.frames, before.frames) if made else before.frames,
                row=(*before.row, entry) if made else (entry,),
            )
            with atomic_write(self._path) as partial, partial.open("w", encoding="utf-8") as file:
                json.dump(asdict(saved), file)
                file.flush()
                os.fsync(file.fileno())
            self._tidy({name for name, _ in saved.row})
        return saved

    def clear(self) -> None:
        """Forgets every state: the job is done. What cannot be deleted stays until the job is."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._tidy(set())

    def _tidy(self, keep: set[str]) -> None:
        for file in self._folder.glob("state_*.npz"):
            if file.name not in keep:
                file.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
