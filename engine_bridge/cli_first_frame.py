"""`worldwarp first-frame`: a start frame from words, as a PNG that carries what it was made of."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from worldwarp_core.errors import WorldWarpError

from .doctor import INSTALL_ENGINE

PARTS = {"text": "Reading the prompt", "load": "Loading the video model", "steps": "Drawing", "decode": "Decoding"}

console = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command(name="first-frame")(first_frame)


def first_frame(
    prompt: Annotated[str, typer.Option(help="What the frame shows.")],
    out: Annotated[Path, typer.Option(help="The picture to write, .png.")] = Path("first_frame.png"),
    size: Annotated[
        str, typer.Option(help="WIDTHxHEIGHT in multiples of 16, with the aspect of the shot.")
    ] = "832x480",
    seed: Annotated[int, typer.Option(help="Another seed, another picture.", min=0, max=2**63 - 1)] = 0,
    negative_prompt: Annotated[str, typer.Option(help="What is not wanted.")] = "",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(help="How closely to follow the prompt, from 1.")] = 5.0,
    base: Annotated[str, typer.Option(help="Wan 2.1 text to video: a name, or a folder.")] = "wan-1.3b",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Draw a start frame from words. It takes the weights of the engine wan."""
    from worldwarp_core.atomic_write import atomic_write

    from .png_writer import encode_png
    from .store import default_data_dir

    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if not found:
        raise WorldWarpError("bad_settings", f"--size must be WIDTHxHEIGHT, such as 832x480; got {size!r}.")
    if out.suffix.lower() != ".png":
        raise WorldWarpError("bad_settings", f"The picture is a PNG, so --out must end with .png; got {out}.")
    try:
        from transformers.utils.logging import disable_progress_bar

        from worldwarp_core.spec import FirstFrameSettings
        from worldwarp_core.wan.first_frame import make_first_frame
        from worldwarp_core.wan.weights import resolve_models
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "engine_not_installed",
            f"Drawing a frame needs the Python package {error.name!r}, which is missing: {INSTALL_ENGINE}",
        ) from error
    disable_progress_bar()  # it would draw over ours
    settings = FirstFrameSettings(prompt, negative_prompt, int(found[1]), int(found[2]), seed, steps, guidance)
    files = resolve_models(base)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Starting", total=None)

        def on_step(part: str, step: int, of: int) -> None:
            bar.update(task, description=PARTS[part], completed=step, total=of if of > 1 else None)

        try:
            frame = make_first_frame(files, settings, default_data_dir().parent / "prompts", device, on_step)
        except KeyboardInterrupt as error:
            raise WorldWarpError("cancelled", f"Stopped; {out} was not written.") from error
    made_of = {f"worldwarp {name}": str(value) for name, value in (asdict(settings) | {"base": base}).items()}
    with atomic_write(out) as partial:
        partial.write_bytes(encode_png(frame, made_of))
    typer.echo(f"{frame.shape[1]}x{frame.shape[0]} in {out}")
