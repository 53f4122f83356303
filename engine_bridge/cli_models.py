"""`worldwarp models` (list, `download`, `verify`) and `worldwarp convert`: the weights of the learned engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.model_files.download import download
from worldwarp_core.model_files.store import KNOWN, HubName, base_config, bytes_of, cached, converted, hub_name, verify

from .doctor import INSTALL_ENGINE
from .errors import BridgeError

models_app = typer.Typer(rich_markup_mode=None)
out_console = Console()
console = Console(stderr=True)

NAMES = ", ".join(model.name for model in KNOWN)


def register(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(models_app, name="models")
    app.command(name="convert")(convert)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """List, download and verify the models.

    Without a command: what each is for, its size and licence, and whether it is here.
    """
    if context.invoked_subcommand:
        return
    table = Table("name", "GB", "here", "what for")
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    places = []
    for model in KNOWN:
        state, place = _here(HubName(model.repo))
        what = Text(f"{model.purpose}. Licence: {model.licence}.")
        table.add_row(model.name, f"{model.gigabytes:.1f}", state, what)
        places += [f"{model.name}: {place}"] if place else []
    out_console.print(table)
    for line in places:
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)
    out_console.print(
        "`worldwarp models download NAME` fetches one; a folder that you have serves as well wherever a name does.",
        soft_wrap=True,
    )


@models_app.command(name="download")
def download_model(
    name: Annotated[str, typer.Argument(help=f"One of {NAMES}; or owner/name on the Hub. @REVISION pins one.")],
) -> None:
    """Fetch a model from the Hub and check every hash. What is here is not fetched again; a pickle is converted."""
    on_hub = _named(name)
    if on_hub.known:
        console.print(f"Licence of {on_hub.repo}: {on_hub.known.licence}", soft_wrap=True, highlight=False)
    with _bar() as show:
        folder = download(on_hub, show)
    out_console.print(
        f"{on_hub} is in {folder} ({bytes_of([folder]) / 1e9:.1f} GB), every file as it should be.", soft_wrap=True
    )


@models_app.command(name="verify")
def verify_models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names or folders; without any, every model that is here.")
    ] = None,
) -> None:
    """Compare every file with its hash. The Hub stated it, or a conversion wrote it down."""
    wanted = names or [model.name for model in KNOWN if cached(HubName(model.repo))]
    if not wanted:
        out_console.print("No model is here. `worldwarp models` lists them.")
    faulty: list[str] = []
    for name in wanted:
        for folder in _folders(name):
            with _bar() as show:
                found = verify(folder, show)
            state = "; ".join(found.faults) or "as they should be"
            out_console.print(f"{name}: {found.checked} files in {folder}: {state}", soft_wrap=True, highlight=False)
            faulty += [name] if found.faults else []
    if faulty:
        repair = [
            on_hub.command for name in dict.fromkeys(faulty) if not _is_folder(name) and (on_hub := hub_name(name))
        ]
        what = f"Run: {'; '.join(repair)}" if repair else "Copy or convert the folder again."
        raise WorldWarpError("bad_weights", f"Not every file is what it should be. {what}")


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="worldwarp_latest.ckpt or another of a Wan transformer.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: config.json and safetensors, as diffusers has them.")],
    base: Annotated[
        str, typer.Option(help="The model that it was trained from: name, folder, or the transformer's config.json.")
    ] = "wan-1.3b",
    take: Annotated[str | None, typer.Option(help="Which of several transformers in the file (such as ema).")] = None,
) -> None:
    """Convert a checkpoint to safetensors. Nothing in it is run, and every name and shape is checked."""
    config = base_config(base)
    try:
        from worldwarp_core.model_files.convert import convert_checkpoint
    except ModuleNotFoundError as error:
        raise BridgeError(
            "engine_not_installed",
            f"Converting needs the Python package {error.name!r}, which is missing: {INSTALL_ENGINE}",
        ) from error
    with _bar() as show:
        made = convert_checkpoint(checkpoint, out, config, take=take, progress=show)
    out_console.print(
        f"{made.tensors} tensors ({made.bytes / 1e9:.2f} GB, {made.taken}) of {checkpoint} are in {made.folder}.",
        soft_wrap=True,
        highlight=False,
    )


# ---------------------------------------------------------------- helpers


def _named(name: str) -> HubName:
    on_hub = hub_name(name)
    if on_hub is None:
        raise BridgeError("unknown_model", f"There is no model called {name!r}. Give owner/name, or one of: {NAMES}.")
    return on_hub


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _folders(name: str) -> list[Path]:
    """Every folder of a model that is to be verified: the Hub's and, where there is one, the converted one."""
    if _is_folder(name):
        return [Path(name).expanduser()]
    on_hub = _named(name)
    folder = cached(on_hub)
    if folder is None:
        raise WorldWarpError("no_weights", f"{on_hub} is not, or not wholly, on this machine. Run: {on_hub.command}")
    made = converted(on_hub, folder)
    return [folder] + ([made] if made else [])


def _here(name: HubName) -> tuple[str, str]:
    """Whether a model is here, in a word, and where, or what is left to do; "" where nothing is to say."""
    folder = cached(name)
    if folder is None:
        return "no", ""
    made = converted(name, folder)
    if name.known and name.known.checkpoint and made is None:
        return "not converted", f"run {name.command}"
    return "yes", f"{bytes_of([folder]) / 1e9:.1f} GB in {made or folder}"


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar; yields what tells it what is being done and how far that is."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("asking the Hub", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)
