"""Keys that open a server to chosen clients on other machines, as files; and which addresses can do without.

    FOLDER/server.key          the server's pair, JSON, for its owner's eyes alone
           NAME.key            a client's pair, and the public key of the server it trusts; likewise
           allowed_clients     who may come in: a line each, "PUBLIC_KEY NAME"; everything after # is a comment

The keys are CurveZMQ's (Curve25519), as text of 40 characters in Z85. A pair proves who someone is and encrypts what
is said; the secret half never leaves its file. Runs inside Blender.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import stat
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import zmq

from worldwarp_core.atomic_write import atomic_write

from .errors import BridgeError, disk_errors
from .messages import DEFAULT_ADDRESS

SERVER_FILE = "server.key"
ALLOWED_FILE = "allowed_clients"
MAX_FILE_BYTES = 1_000_000

_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_ADDRESS = re.compile(r"tcp://(\[[0-9a-fA-F:]+\]|\*|[^:/\[\]\s*]+):(\d{1,5}|\*)")


@dataclass(frozen=True)
class ServerKey:
    """A server's pair."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class ClientKey:
    """A client's pair, what it is called, and the server that it trusts."""

    name: str
    public: str
    secret: str = field(repr=False)
    """Not to come into a log by way of a message about its owner."""
    server_public: str


# ---------------------------------------------------------------- addresses


def parse_address(address: str) -> tuple[str, str]:
    """The host and the port (digits or "*") of tcp://HOST:PORT.

    Raises:
        BridgeError: `bad_address`.
    """
    match = _ADDRESS.fullmatch(address)
    if not match or (match[2] != "*" and not 0 < int(match[2]) < 65536):
        raise BridgeError("bad_address", f"An address is tcp://HOST:PORT, as in {DEFAULT_ADDRESS}; got {address!r}.")
    return match[1].strip("[]"), match[2]


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant by the host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_client_address(address: str, key: ClientKey | None) -> None:
    """Raises `bad_address`, or `not_loopback` where a client without a key would talk to another machine."""
    host, port = parse_address(address)
    if key is None and not is_loopback(host):
        raise BridgeError(
            "not_loopback",
            f"{host} is another machine, and without a key anybody in between could read and change what is said. Give "
            f"a key made by 'worldwarp keys client' (--key), or open a tunnel and use tcp://127.0.0.1:{port}: "
            f"ssh -N -L {port}:127.0.0.1:{port} USER@{host}",
        )


# ---------------------------------------------------------------- making


def make_server_key(folder: Path) -> ServerKey:
    """Makes a server's pair in `folder`.

    Raises:
        BridgeError: `keys_exist`, `disk_full`, `cannot_write`.
    """
    public, secret = _new_pair()
    _write_secret(folder / SERVER_FILE, {"worldwarp": "server key", "public": public, "secret": secret})
    return ServerKey(public, secret)


def make_client_key(folder: Path, name: str, server_public: str) -> tuple[ClientKey, Path]:
    """Makes a client's pair in `folder`, for the server with this public key; returns it and its file.

    Raises:
        BridgeError: `bad_keys` for a name or key that is none; `keys_exist`, `disk_full`, `cannot_write`.
    """
    _check_name(name)
    check_public(server_public, "the server's public key")
    public, secret = _new_pair()
    key = ClientKey(name, public, secret, server_public)
    path = folder / f"{name}.key"
    _write_secret(path, {"worldwarp": "client key", **asdict(key)})
    return key, path


def allow_client(folder: Path, name: str, public: str) -> None:
    """Puts a client on the server's list; from its next connection on it comes in.

    Raises:
        BridgeError: `bad_keys`, also where the name or the key is on the list; `disk_full`, `cannot_write`.
    """
    _check_name(name)
    check_public(public, "the client's public key")
    clients = read_allowed(folder) if (folder / ALLOWED_FILE).exists() else {}
    for other, known in clients.items():
        if name == known or public == other:
            raise BridgeError("bad_keys", f"{known} is on the list already: worldwarp keys forbid {known}, then again.")
    _write_allowed(folder, {**clients, public: name})


def forbid_client(folder: Path, name: str) -> None:
    """Takes a client off the list; connections that it has are not cut.

    Raises:
        BridgeError: `bad_keys`, `disk_full`, `cannot_write`.
    """
    clients = read_allowed(folder)
    left = {public: known for public, known in clients.items() if known != name}
    if len(left) == len(clients):
        raise BridgeError("bad_keys", f"No client called {name!r} is on the list: {', '.join(clients.values())}.")
    _write_allowed(folder, left)


# ---------------------------------------------------------------- reading


def read_server_key(folder: Path) -> ServerKey:
    """The server's pair.

    Raises:
        BridgeError: `bad_keys`: there is none, it cannot be read, or others may read it.
    """
    path = folder / SERVER_FILE
    if not path.exists():
        raise BridgeError("bad_keys", f"There is no server key {path}. Make one with: worldwarp keys server")
    values = _read_secret(path, "server key")
    return ServerKey(check_public(values.get("public"), str(path)), check_public(values.get("secret"), str(path)))


def read_client_key(path: Path) -> ClientKey:
    """A client's pair.

    Raises:
        BridgeError: `bad_keys`: there is none, it cannot be read, or others may read it.
    """
    path = Path(path)
    if not path.exists():
        raise BridgeError(
            "bad_keys",
            f"There is no key file {path}. Make one with: worldwarp keys client NAME --server-public KEY",
        )
    values = _read_secret(path, "client key")
    name = values.get("name")
    if not isinstance(name, str):
        raise BridgeError("bad_keys", f"{path} does not say whose key it is.")
    _check_name(name)
    halves = (check_public(values.get(half), str(path)) for half in ("public", "secret", "server_public"))
    return ClientKey(name, *halves)


def read_allowed(folder: Path) -> dict[str, str]:
    """Public key -> name of every client that may come in.

    Raises:
        BridgeError: `bad_keys`: there is no list, others may write it, or a line is not "PUBLIC_KEY NAME".
    """
    path = folder / ALLOWED_FILE
    if not path.exists():
        raise BridgeError("bad_keys", f"No client is allowed yet ({path}). Allow one: worldwarp keys allow NAME KEY")
    _check_mode(path, 0o022, "change")
    clients: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        # "#" may be part of a key, so only a blank before it makes a comment.
        words = re.split(r"(?:^|\s)#\s", line, maxsplit=1)[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise BridgeError("bad_keys", f"Line {number} of {path} is not 'PUBLIC_KEY NAME'.")
        clients[check_public(words[0], f"line {number} of {path}")] = words[1][:64]
    return clients


def default_keys_dir() -> Path:
    """Where keys are when nobody says: the user's settings folder by the platform's custom."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", Path.home() / "AppData" / "Roaming")) / "WorldWarp" / "keys"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "WorldWarp" / "keys"
    return Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "worldwarp" / "keys"


def check_public(value: object, where: str) -> str:
    """`value`, where it is one half of a key.

    Raises:
        BridgeError: `bad_keys`.
    """
    if not (isinstance(value, str) and _Z85.fullmatch(value)):
        raise BridgeError(
            "bad_keys", f"A key is 40 characters of Z85, as 'worldwarp keys' prints them; not so {where}."
        )
    return value


# ---------------------------------------------------------------- files


def _new_pair() -> tuple[str, str]:
    """A public and a secret key. None begins with "-", which a command line would take for an option."""
    while True:
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if not public.startswith("-"):
            return public, secret


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise BridgeError(
            "bad_keys",
            f"A client's name is letters, digits and . _ @ - (at most 64), beginning with a letter or digit; got "
            f"{name[:80]!r}.",
        )


def _write_secret(path: Path, values: dict[str, Any]) -> None:
    """Writes a file that only its owner can ever read, also while it is being written; never over another."""
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise BridgeError(
                "keys_exist", f"{path} exists. A new key locks out all who trust it: delete it first if you mean that."
            ) from None
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(values, indent=2) + "\n")


def _write_allowed(folder: Path, clients: dict[str, str]) -> None:
    path = folder / ALLOWED_FILE
    with disk_errors(path), atomic_write(path) as partial:
        lines = [
            "# Clients that this server lets in: PUBLIC_KEY NAME",
            *(f"{key} {name}" for key, name in clients.items()),
        ]
        partial.write_text("\n".join(lines) + "\n", "utf-8")
        partial.chmod(0o600)


def _read_secret(path: Path, kind: str) -> dict[str, Any]:
    _check_mode(path, 0o077, "read")
    try:
        values = json.loads(_read_text(path))
    except ValueError as error:
        raise BridgeError("bad_keys", f"{path} is not a key file: {error}.") from error
    if not isinstance(values, dict) or values.get("worldwarp") != kind:
        raise BridgeError("bad_keys", f"{path} is not a {kind} of WorldWarp.")
    return values


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BridgeError("bad_keys", f"{path} is too large to be what it should be.")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BridgeError("bad_keys", f"{path} cannot be read: {error}.") from error


def _check_mode(path: Path, forbidden: int, what: str) -> None:
    """Refuses a file that others can read or change, as its own mode or its folder's allows. Windows has no modes."""
    if sys.platform == "win32":
        return
    try:
        file, folder = path.stat(), path.parent.stat()
    except OSError as error:
        raise BridgeError("bad_keys", f"{path} cannot be read: {error}.") from error
    if not stat.S_ISREG(file.st_mode):
        raise BridgeError("bad_keys", f"{path} is not a file.")
    if file.st_uid != os.geteuid():
        raise BridgeError("bad_keys", f"{path} belongs to another user.")
    if file.st_mode & forbidden:
        raise BridgeError(
            "bad_keys",
            f"Others than you can {what} {path} (mode {stat.S_IMODE(file.st_mode):o}). Close it: chmod 600 '{path}'",
        )
    if folder.st_mode & 0o022 and not folder.st_mode & stat.S_ISVTX:
        raise BridgeError(
            "bad_keys",
            f"Others than you can replace files in {path.parent} (mode {stat.S_IMODE(folder.st_mode):o}). Close it: "
            f"chmod 700 '{path.parent}'",
        )
