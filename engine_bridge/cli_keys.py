"""`worldwarp keys`: makes keys, and says who may come in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import keys as key_files

keys_app = typer.Typer(help="Let chosen clients on other machines in.", no_args_is_help=True)
console = Console()

Folder = Annotated[Path | None, typer.Option("--folder", help="Where the keys are (the user's settings folder).")]


@keys_app.command("server")
def server(folder: Folder = None) -> None:
    """Make this machine's server key; once."""
    folder = folder or key_files.default_keys_dir()
    key = key_files.make_server_key(folder)
    _say(f"The server's key is in {folder / key_files.SERVER_FILE}. On each client's machine:")
    _say(f"    worldwarp keys client NAME --server-public '{key.public}'")


@keys_app.command("client")
def client(
    name: Annotated[str, typer.Argument(help="What the server's owner will know this client by.")],
    server_public: Annotated[str, typer.Option(help="What `worldwarp keys server` printed on the server's machine.")],
    folder: Folder = None,
) -> None:
    """Make a key for a client on this machine."""
    key, path = key_files.make_client_key(folder or key_files.default_keys_dir(), name, server_public)
    _say(f"The key is in {path}: give it with --key, or in the add-on's preferences. On the server's machine:")
    _say(f"    worldwarp keys allow {key.name} '{key.public}'")


@keys_app.command("allow")
def allow(
    name: Annotated[str, typer.Argument(help="The client's name.")],
    public: Annotated[str, typer.Argument(help="Its public key, as `worldwarp keys client` printed it.")],
    folder: Folder = None,
) -> None:
    """Let a client in; a running server need not be started again."""
    key_files.allow_client(folder or key_files.default_keys_dir(), name, public)
    _say(f"{name} may come in.")


@keys_app.command("forbid")
def forbid(name: Annotated[str, typer.Argument(help="The client's name.")], folder: Folder = None) -> None:
    """Let a client in no more. Connections that are open stay until they end."""
    key_files.forbid_client(folder or key_files.default_keys_dir(), name)
    _say(f"{name} may not come in any more.")


@keys_app.command("list")
def list_clients(folder: Folder = None) -> None:
    """Say who may come in."""
    for public, name in key_files.read_allowed(folder or key_files.default_keys_dir()).items():
        _say(f"{public} {name}")


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
