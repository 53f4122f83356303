"""Who may come in: the server's end of CURVE, its list of clients, and which addresses it may listen on.

On loopback nobody is asked for a key unless the server has keys. On any other address a server without keys, or with
nobody on its list, does not start. With keys, a peer that does not prove one on the list gets no further than the
handshake: not one byte of it reaches the server's own code, and nobody in between can read what is said.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from .errors import BridgeError
from .keys import ServerKey, is_loopback, parse_address, read_allowed, read_server_key

_log = logging.getLogger(__name__)
_DOMAIN = "worldwarp"


@dataclass(frozen=True)
class Lock:
    """A server's own key, and where its list of clients is."""

    key: ServerKey
    folder: Path


def lock_for(address: str, keys_dir: Path | None) -> Lock | None:
    """What locks a server at `address`; None where it may stand open, which is on loopback without keys.

    Raises:
        BridgeError: `bad_address`; `not_loopback`, `bad_keys`: it must not listen there like that.
    """
    host, port = parse_address(address)
    if keys_dir is None:
        if is_loopback(host):
            return None
        port = port if port != "*" else "5577"
        raise BridgeError(
            "not_loopback",
            f"{host} can be reached from other machines, so only clients with a key may come in: make keys with "
            f"'worldwarp keys server' and serve with --keys. Or serve on tcp://127.0.0.1:{port} and open a tunnel from "
            f"the other machine: ssh -N -L {port}:127.0.0.1:{port} USER@THIS_MACHINE",
        )
    lock = Lock(read_server_key(keys_dir), keys_dir)
    if not read_allowed(keys_dir):
        raise BridgeError("bad_keys", "No client is allowed to come in. Allow one: worldwarp keys allow NAME KEY")
    return lock


def bind_address(address: str) -> str:
    """What ZeroMQ is told to bind: a name has to become a number."""
    host, port = parse_address(address)
    if host == "localhost":
        return f"tcp://127.0.0.1:{port}"
    return f"tcp://[{host}]:{port}" if ":" in host else address


class Gate:
    """Keeps strangers out of the sockets of one context. Make it before the sockets are bound; close it last."""

    def __init__(self, context: zmq.Context, lock: Lock) -> None:
        self._lock = lock
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=_DOMAIN, credentials_provider=self)

    def guard(self, socket: zmq.Socket) -> None:
        """Makes a socket, not yet bound, ask for keys."""
        socket.curve_server = True
        socket.curve_publickey = self._lock.key.public.encode()
        socket.curve_secretkey = self._lock.key.secret.encode()
        socket.setsockopt_string(zmq.ZAP_DOMAIN, _DOMAIN)
        # Without this the library lets everyone in once nobody answers for the domain.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key may come in; the list is read each time, so it can be changed."""
        try:
            name = read_allowed(self._lock.folder).get(key.decode("ascii", "replace"))
        except BridgeError as error:
            _log.error("Nobody is let in: %s", error)
            return False
        if name is None:
            _log.warning("A client whose key is not on the list was turned away: %s", key.decode("ascii", "replace"))
        return name is not None

    def name_of(self, public: str) -> str:
        """What the list calls the client with this key, which has come in."""
        try:
            return read_allowed(self._lock.folder).get(public, "")
        except BridgeError:
            return ""

    def close(self) -> None:
        """Stops answering; nobody comes in any more."""
        self._authenticator.stop()
