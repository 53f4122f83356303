"""What goes wrong between a client and a server, each with a stable code that programs can match on.

`BridgeError` is what a user of the bridge sees; `ProtocolError` is a message that breaks PROTOCOL.md, ours or theirs.
Errors of the core (`WorldWarpError`) cross the wire with their own code and message, unchanged.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worldwarp_core.errors import WorldWarpError

CODES: dict[str, str] = {
    # the handshake
    "hello_first": "A message came before Hello.",
    "wrong_protocol_version": "Client and server speak different versions of the protocol.",
    # messages
    "bad_message": "A message cannot be read: not MessagePack, a field missing, of the wrong type or out of range.",
    "unknown_message": "The tag of a message is not one of this version of the protocol.",
    "too_large": "A message, a string, an array or the number of parts is over the limit.",
    # jobs
    "unknown_job": "The server has no job of this id.",
    "job_exists": "The job id was used before for something else.",
    "unknown_engine": "The server runs another engine than the one asked for.",
    "queue_full": "Too many jobs wait already.",
    "over_limit": "A client has as many jobs, connections or subscriptions as it may.",
    "no_splats": "The job has made no splat file yet.",
    "no_view": "The server has no live view, or what was asked belongs to the other port.",
    "splats_replaced": "The splat file that was being fetched has been replaced by a newer one.",
    "credit_exceeded": "A client gave more credit than the server's limit.",
    # how a job ends early
    "worker_died": "The engine's process ended in the middle of the job.",
    "server_stopped": "The server was stopped in the middle of the job; it goes on when the server does.",
    "engine_failed": "The engine met an unexpected error; its traceback is in the server's log.",
    "engine_unavailable": "The engine could not be started.",
    # files
    "disk_full": "No space is left where the files go.",
    "cannot_write": "Files cannot be written there.",
    "folder_in_use": "The folder holds another job's files, or is another server's.",
    "store_damaged": "A file of the server's job store cannot be read.",
    # the client's side
    "server_not_running": "Nothing answers at the address.",
    "server_gone": "The connection was lost and did not come back.",
    "closed": "The client was closed.",
    "timed_out": "The server did not answer in time.",
    "not_loopback": "The address leaves this machine, which needs keys.",
    "bad_keys": "A key or the list of clients is missing, damaged, or open to others.",
    "keys_exist": "There is a key already where one is to be made.",
    "key_refused": "Server and client do not let each other in.",
    "bad_address": "The address is not of the form tcp://HOST:PORT.",
    "address_in_use": "Another program listens on the address.",
    "too_slow": "The peer did not read what was sent to it.",
    "incomplete": "The job ended but not everything it should have made is there.",
    "cancelled": "The job was cancelled.",
}
"""Every code the bridge itself gives, with its meaning. Codes are never renamed within a protocol version."""


class BridgeError(WorldWarpError):
    """A fault at the bridge that a user can do something about; the message says what."""


class ProtocolError(BridgeError):
    """A message that breaks the protocol. `request_id` is the message's own where it could still be read, else 0."""

    def __init__(self, code: str, message: str, request_id: int = 0) -> None:
        assert code in CODES, code
        super().__init__(code, message)
        self.request_id = request_id


def printable(text: str, most: int = 200) -> str:
    """What a peer said, fit for a log or a terminal: no control characters, which could forge lines or colours."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:most])


class EngineLost(BaseException):
    """The process that holds a worker's engine is gone, and the worker with it; the text says how.

    Nothing that a job could end with: the job goes on in another worker, so whoever handles errors of jobs lets it by.
    """


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the disk says while `path` is written into `disk_full` or `cannot_write`."""
    try:
        yield
    except (OSError, WorldWarpError) as error:
        # The core's atomic writer has translated it already, but does not tell a full disk from a forbidden one.
        cause = error.__cause__ if isinstance(error, WorldWarpError) else error
        if not isinstance(cause, OSError):
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BridgeError(
                "disk_full",
                f"No space is left on the disk for {path}. What was written is kept; free some and try again.",
            ) from error
        raise BridgeError("cannot_write", f"Cannot write {path}: {cause.strerror or cause}.") from error
