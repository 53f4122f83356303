"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import WorldWarpError

WAITS_S = (0.02, 0.05, 0.1, 0.3, 0.6)
"""Between the tries to replace a file that another program has open."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a name in `path`'s folder, with its suffix, to write to; the file becomes `path` when the block ends well.

    The folder is made where it is missing.

    Raises:
        WorldWarpError: `cannot_write`, when the folder or the file cannot be written (no permission, disk full). What
            was at `path` before is then untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise WorldWarpError("cannot_write", f"Cannot write {path}: {error.strerror or error}.") from error


def _replace(partial: Path, path: Path) -> None:
    """Moves a file into another's place. On Windows that has to wait for who reads it: a viewer, a virus scanner."""
    for wait_s in WAITS_S if sys.platform == "win32" else ():
        try:
            os.replace(partial, path)
        except PermissionError:
            time.sleep(wait_s)
        else:
            return
    os.replace(partial, path)
