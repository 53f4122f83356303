"""From a running job to a folder: takes its events as they come, writes what they bring, fetches the splats at the end.

Needs what the client needs; runs inside Blender, off its main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from worldwarp_core.errors import WorldWarpError

from .client import Client, ClientEvent, Connected, Disconnected, RequestFailed
from .errors import BridgeError
from .job_folder import JobFolder
from .messages import StateEvent
from .session import FINAL


def deliver(
    client: Client,
    job_id: str,
    folder: JobFolder,
    *,
    on_event: Callable[[ClientEvent], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> StateEvent:
    """Follows a job to its end, writing into `folder`; returns its final state. Blocks.

    Args:
        on_event: hears each event once what it brings is on disk.
        stop: asked a few times a second; once it says True the job is cancelled, and delivered up to its end. What it
            raises ends the delivery at once.

    Raises:
        WorldWarpError: the server is gone or refuses, or the folder cannot be written. What was delivered stays, and
            job.json says what happened.
    """
    cancelling = False
    end: StateEvent | None = None
    try:
        while end is None:
            if stop() and not cancelling:
                cancelling = True
                client.cancel(job_id)
            event = client.wait(0.1)
            if event is None or getattr(event, "job_id", job_id) != job_id:
                continue
            if isinstance(event, Disconnected | RequestFailed):
                raise BridgeError(event.code, event.message)
            if isinstance(event, Connected):
                folder.note_server(event.welcome)
            folder.write(event)
            on_event(event)
            if isinstance(event, StateEvent) and event.state in FINAL:
                end = event
        if folder.expects_splats:
            client.fetch_splats_now(job_id, folder.splats_path)
    except WorldWarpError as error:
        # Nobody takes the frames any more; and where the disk is full, job.json may have no room either.
        with suppress(WorldWarpError):
            client.cancel(job_id)
        with suppress(WorldWarpError):
            folder.fail(error.code, error.message)
        raise
    return end
