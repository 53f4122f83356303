"""One GPU, one job: a lock among all of a user's servers on this machine.

Within a server each GPU has one worker, which runs one job at a time. Two servers that were started side by side know
nothing of each other, and on one GPU both their jobs would run out of memory: so a job takes this lock, and waits for
it. The system lets go of the lock of a process that dies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .store import default_data_dir

POLL_S = 0.25


def gpus_of(engine_info: dict[str, Any]) -> list[str]:
    """The GPUs that the engine may work on; none for one that needs none. Without word of which, the first."""
    if engine_info.get("device_kind") != "cuda":
        return []
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")


@contextmanager
def only_job_on(gpus: Sequence[str], waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the locks of GPUs.

    Args:
        gpus: their numbers or UUIDs; none takes no lock.
        waiting: called a few times a second while another server's job has one of them; may raise to give up.
    """
    with ExitStack() as held:
        # In one order for everybody: two that each hold what the other waits for would wait for ever.
        for gpu in sorted(set(gpus)):
            held.enter_context(_lock(gpu, waiting))
        yield


@contextmanager
def _lock(gpu: str, waiting: Callable[[], None]) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder = default_data_dir().parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"gpu-{re.sub(r'[^A-Za-z0-9-]', '_', gpu)}.lock")
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()
