"""One GPU, one job: a lock among all of a user's servers on this machine.

Within a server each GPU has one worker, which runs one job at a time. Two servers that were started side by side know
nothing of each other, and on one GPU both their jobs would run out of memory: so a job takes this lock, and waits for
it. The system lets go of the lock of a process that dies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .store import default_data_dir

POLL_S = 0.25


@contextmanager
def only_job_on(gpu: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of a GPU.

    Args:
        gpu: its number or UUID; "" is no GPU, and takes no lock.
        waiting: called a few times a second while another server's job has the GPU; may raise to give up.
    """
    if not gpu:
        yield
        return
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
