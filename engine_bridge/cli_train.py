"""`worldwarp train vae | stdiff | depth`: trains the networks of the engine `preview`, in pieces of any length; `lora`
trains a LoRA of the engine `wan`; `move` goes on with a distilled transformer whose teacher has learned more.

A run is a folder; the same command goes on where it stopped. What is trained ships as it is: put the folder's weights
where the engine finds them, or start another run from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .doctor import INSTALL_ENGINE

train_app = typer.Typer(
    help="Train the networks of the engine preview, or a LoRA for wan.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
console = Console(stderr=True)

Run = Annotated[Path, typer.Option("--run", help="Folder of the run; one that holds a run goes on.")]
Minutes = Annotated[
    float, typer.Option("--minutes", help="Wall-clock limit; a run always ends with its weights saved.")
]
Steps = Annotated[int | None, typer.Option("--steps", help="Stop after so many steps.")]
Textures = Annotated[
    Path | None,
    typer.Option("--data", help="Pictures for the procedural worlds (.npz, see worlds/textures.py); none are needed."),
]
Lpips = Annotated[
    Path | None,
    typer.Option(
        "--lpips",
        help="AlexNet's LPIPS weights (safetensors), for loss and figures; else those of the package lpips.",
    ),
]
Size = Annotated[str, typer.Option("--size", help="Of the clips: WIDTHxHEIGHT, multiples of 16.")]
Also = Annotated[
    list[str] | None,
    typer.Option("--also", help="Learn from clips of WIDTHxHEIGHTxFRAMES every second time; may be repeated."),
]
Frames = Annotated[int | None, typer.Option("--frames", help="Of a clip, 4k + 1; for depth, views of a world.")]
Batch = Annotated[int | None, typer.Option("--batch", help="Clips (of depth: pictures) in a step, on each GPU.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="At its highest.")]
Schedule = Annotated[
    str, typer.Option("--schedule", help="cosine falls over the run; constant stays, for runs that go on.")
]
Pool = Annotated[int | None, typer.Option("--pool", help="Clips kept in memory; for depth, worlds.")]
Share = Annotated[float, typer.Option("--data-share", help="Of the time, spent making new clips.")]
Cached = Annotated[
    float,
    typer.Option(
        "--cached", help="Of the clips, warped by the engine's own splat cache: 0 to 1; each takes as long as three."
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", help="GPUs to train on.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network: worth it for runs of over 5 minutes.")]
Seed = Annotated[int, typer.Option("--seed", help="Other seeds see other worlds.")]


def register(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(train_app, name="train")


@train_app.command()
def vae(
    run: Run,
    minutes: Minutes = 6.0,
    steps: Steps = None,
    data: Textures = None,
    lpips: Lpips = None,
    size: Size = "256x144",
    also: Also = None,
    frames: Frames = None,
    batch: Batch = None,
    learning_rate: Rate = None,
    schedule: Schedule = "cosine",
    pool: Pool = None,
    share: Share = 0.25,
    cached: Cached = 0.0,
    gpus: Gpus = 1,
    device: Device = "auto",
    compile: Compile = False,
    seed: Seed = 0,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Learn the decoder alone: a trained transformer keeps its latents.")
    ] = False,
    transformer: Annotated[
        Path | None,
        typer.Option("--transformer", help="Folder with a trained transformer, whose latents the decoder learns from."),
    ] = None,
) -> None:
    """Train the autoencoder and its guided decoder."""
    _train("vae", locals())


@train_app.command()
def stdiff(
    run: Run,
    autoencoder: Annotated[Path, typer.Option("--autoencoder", help="Folder with a trained autoencoder.")],
    minutes: Minutes = 6.0,
    steps: Steps = None,
    data: Textures = None,
    lpips: Lpips = None,
    size: Size = "256x144",
    also: Also = None,
    frames: Frames = None,
    batch: Batch = None,
    learning_rate: Rate = None,
    schedule: Schedule = "cosine",
    pool: Pool = None,
    share: Share = 0.25,
    cached: Cached = 0.0,
    gpus: Gpus = 1,
    device: Device = "auto",
    compile: Compile = False,
    seed: Seed = 0,
    target: Annotated[
        str, typer.Option("--target", help="consistent with the sampler, or the paper's.")
    ] = "consistent",
    sampler_steps: Annotated[
        int | None,
        typer.Option(
            "--for-steps",
            help="Learn only what a sampler of so few steps meets; with --teacher, to take so many (7 by default).",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="Folder with a trained transformer: few steps learn to make what it makes."),
    ] = None,
    weaker: Annotated[
        Path | None,
        typer.Option("--weaker", help="With --teacher: folder with an earlier state of it, to be led away from."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", help="With --teacher: how far to be led, 2 where not given; 1 is not at all."),
    ] = None,
    maker: Annotated[
        Path | None,
        typer.Option(
            "--maker",
            help="Folder with a trained transformer: two clips in five go on from what it made, as a shot's later "
            "chunks do.",
        ),
    ] = None,
) -> None:
    """Train ST-Diff: fill what is blank, revise what is warped."""
    _train("stdiff", locals())


@train_app.command()
def depth(
    run: Run,
    minutes: Minutes = 6.0,
    steps: Steps = None,
    data: Textures = None,
    imagenet: Annotated[
        Path | None,
        typer.Option("--imagenet", help="EfficientNet-Lite0 weights (safetensors) for a new network to start from."),
    ] = None,
    size: Size = "256x144",
    also: Also = None,
    frames: Frames = None,
    batch: Batch = None,
    learning_rate: Rate = None,
    schedule: Schedule = "cosine",
    pool: Pool = None,
    share: Share = 0.25,
    gpus: Gpus = 1,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train the depth network."""
    _train("depth", locals())


@train_app.command()
def lora(
    run: Run,
    prompt: Annotated[str, typer.Option("--prompt", help="Words that the clips are learned with.")] = "",
    minutes: Minutes = 30.0,
    steps: Steps = None,
    wan: Annotated[str, typer.Option("--weights", help="Folder or name of the Wan 2.1 models.")] = "wan-1.3b",
    base: Annotated[
        str, typer.Option("--transformer", help="The transformer that the LoRA is for; `base` takes Wan's own.")
    ] = "worldwarp",
    rank: Annotated[int, typer.Option("--rank", help="Of the LoRA: how much it can learn, and how large it is.")] = 16,
    footage: Annotated[
        Path | None, typer.Option("--footage", help="Folder of clips with cameras to learn from; without it, worlds.")
    ] = None,
    layout: Annotated[str, typer.Option("--layout", help="Of the footage: re10k or dl3dv.")] = "re10k",
    depth_model: Annotated[
        str | None, typer.Option("--depth-model", help="With --footage: depth model (name or folder, transformers).")
    ] = None,
    data: Textures = None,
    lpips: Lpips = None,
    size: Size = "480x272",
    frames: Frames = None,
    batch: Batch = None,
    learning_rate: Rate = None,
    schedule: Schedule = "cosine",
    pool: Pool = None,
    share: Share = 0.25,
    gpus: Gpus = 1,
    device: Device = "auto",
    seed: Seed = 0,
    target: Annotated[str, typer.Option("--target", help="consistent with the sampler, or the paper's.")] = "paper",
) -> None:
    """Train a LoRA of Wan's transformer. On your own footage or on worlds; --lora RUN then uses it."""
    _train("lora", locals())


@train_app.command()
def move(
    student: Annotated[Path, typer.Option("--student", help="Folder with a transformer that was distilled.")],
    before: Annotated[Path, typer.Option("--before", help="Folder with the teacher that it was distilled from.")],
    teacher: Annotated[Path, typer.Option("--teacher", help="Folder with what that teacher has become since.")],
    run: Annotated[Path, typer.Option("--run", help="New folder, to go on distilling in.")],
) -> None:
    """Move a student as its teacher has moved. `train stdiff --run RUN --teacher ...` then goes on from there."""
    with _needs_engine():
        from worldwarp_core.training.move import move_student
    move_student(student, before, teacher, run)
    console.print(f"The student to go on with is in {run}.", highlight=False, soft_wrap=True)


@contextmanager
def _needs_engine() -> Iterator[None]:
    """Says in a sentence what is missing where only the add-on's part is installed."""
    from worldwarp_core.errors import WorldWarpError

    try:
        yield
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "engine_not_installed",
            f"Training needs the Python package {error.name!r}, which is missing: {INSTALL_ENGINE}",
        ) from error


def _train(kind: str, given: dict[str, Any]) -> None:
    from worldwarp_core.errors import WorldWarpError

    width, times, height = given.pop("size").partition("x")
    if not (times and width.isdigit() and height.isdigit()):
        raise WorldWarpError("bad_settings", "--size must be WIDTHxHEIGHT in pixels, such as 256x144.")
    also = []
    for shape in given.pop("also", None) or ():
        numbers = shape.split("x")
        if len(numbers) != 3 or not all(number.isdigit() for number in numbers):
            raise WorldWarpError("bad_settings", "--also must be WIDTHxHEIGHTxFRAMES, such as 192x192x25.")
        also.append(tuple(map(int, numbers)))
    with _needs_engine():
        from worldwarp_core.training.run import TrainOptions, train_network
    logging.basicConfig(format="%(message)s")
    logging.getLogger("worldwarp_core.training").setLevel(logging.INFO)
    given |= {
        "textures": given.pop("data"),
        "devices": given.pop("gpus"),
        "width": int(width),
        "height": int(height),
        "also": tuple(also),
    }
    progress = train_network(kind, TrainOptions(**given))  # type: ignore[arg-type]
    console.print(
        f"{progress.steps} steps on {progress.clips} clips so far; the weights are in {given['run']}.",
        highlight=False,
        soft_wrap=True,
    )
