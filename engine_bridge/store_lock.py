"""One server to a job store, and none while a worker of the one before it may still write there.

A server holds a lock on its store, and each of its workers one of its own beside it. Two servers on one store would
each take the other's running jobs for interrupted ones, and write into one log. The system lets go of the locks of a
process that dies.

    ROOT/locks/server.lock
               worker-4711.lock    of the worker with this process id
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from .doctor import INSTALL_ENGINE
from .errors import BridgeError, disk_errors

LEAVING_S = 30.0
"""How long a worker may take to notice that its server is gone: mostly as long as one call of its engine."""


def claim_store(root: Path, server_leaves_s: float = 0.0) -> Any:
    """Takes a job store for one server, once the workers of the one before are gone; `release` what is returned.

    Args:
        server_leaves_s: how long to wait for the server before, where it is known to be leaving.

    Raises:
        BridgeError: `folder_in_use`, `cannot_write`, `disk_full`; `engine_unavailable` without filelock.
    """
    lock = _lock(root, "server", server_leaves_s)
    if lock is None:
        raise BridgeError(
            "folder_in_use",
            f"Another WorldWarp server keeps its jobs in {root}. Use that one, or give this one a folder of its own "
            "with --data-dir.",
        )
    deadline_s = time.monotonic() + LEAVING_S
    for path in sorted((root / "locks").glob("worker-*.lock")):
        worker = _lock(root, path.stem, max(deadline_s - time.monotonic(), 0.0))
        if worker is None:
            lock.release()
            raise BridgeError(
                "folder_in_use",
                f"A worker of an earlier server still writes into {root} (process {path.stem.partition('-')[2]}). Wait "
                "until it has ended, or end it.",
            )
        worker.release()
        path.unlink(missing_ok=True)
    return lock


def claim_as_worker(root: Path) -> Any:
    """Says that this process writes into a job store until it ends, or until what is returned is released.

    Raises:
        BridgeError: `cannot_write`, `disk_full`; `engine_unavailable` without filelock.
    """
    return _lock(root, f"worker-{os.getpid()}", 0.0)


def _lock(root: Path, name: str, timeout_s: float) -> Any:
    """The lock `ROOT/locks/NAME.lock`, held; None where another process holds it."""
    try:
        from filelock import FileLock, Timeout
    except ModuleNotFoundError as error:
        raise BridgeError(
            "engine_unavailable",
            f"A server needs the Python package filelock: {INSTALL_ENGINE}",
        ) from error
    with disk_errors(root):
        (root / "locks").mkdir(parents=True, exist_ok=True)
        # Not of one thread: it may be released in another.
        lock = FileLock(root / "locks" / f"{name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout:
            return None
    return lock
