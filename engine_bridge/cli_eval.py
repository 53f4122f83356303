"""`worldwarp eval`: how good the fills are, measured against the truth; `experiment` and `report`.

A run of hours can be stopped and goes on where it was: every path's results are written as it ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from worldwarp_core.errors import WorldWarpError, install_command

from .cli_engine import CaptionerName, EngineArguments, GpusPerJob, Loras, NoCompile, Preset, Transformer, Vram, Weights

if TYPE_CHECKING:
    from worldwarp_core.evaluation.experiments import Arm, Experiment
    from worldwarp_core.evaluation.run import EvalOptions, Step, Task
    from worldwarp_core.evaluation.scenes import SceneSet
    from worldwarp_core.evaluation.variants import Variant

eval_app = typer.Typer(help="Measure the fills against the truth, and show it.", rich_markup_mode=None)
out_console = Console()
console = Console(stderr=True)

DEFAULT_OUT = Path("worldwarp_eval")
QUALITY_FILE = "preview_quality.json"
REPORT_FILE = "report.html"

Out = Annotated[Path, typer.Option("--out", help="Folder of the results; one that holds some goes on.")]
Results = Annotated[
    Path | None, typer.Option("--results", help="Folder for the JSON files and plots; --out if not given.")
]
Engines = Annotated[
    list[str] | None,
    typer.Option("--engine", help="cache, preview or wan; may be repeated. Without it, cache and, if here, preview."),
]
Data = Annotated[str, typer.Option("--data", help="worlds (our held-out ones), re10k or dl3dv.")]
Footage = Annotated[
    Path | None, typer.Option("--footage", help="With re10k and dl3dv: the folder, in the data set's own layout.")
]
Textures = Annotated[
    Path | None,
    typer.Option("--textures", help="Pictures for the worlds (.npz), as in training; none: patterns alone."),
]
Paths = Annotated[int | None, typer.Option("--paths", help="How many paths, evenly over the strata; all if not given.")]
Revisits = Annotated[
    int | None, typer.Option("--revisits", help="How many paths that go out and come back; all if not given.")
]
Size = Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT, multiples of 16.")]
LpipsFile = Annotated[
    Path | None,
    typer.Option(
        "--lpips", help="AlexNet's LPIPS weights (safetensors), for LPIPS and KID; else those of the package lpips."
    ),
]
InceptionFile = Annotated[
    Path | None, typer.Option("--inception", help="Inception weights (pytorch-fid's file), for FID.")
]
Depth = Annotated[
    str, typer.Option("--depth", help="Depth of the start frame: given, or estimated by the engine's depth model.")
]
DepthModel = Annotated[
    str | None, typer.Option("--depth-model", help="Depth model (name or folder, transformers) for --depth estimated.")
]
PosesEvery = Annotated[
    int, typer.Option("--poses-every", help="Let COLMAP place one frame in so many anew; 0 leaves poses out.")
]
WindowEvery = Annotated[
    int, typer.Option("--window-every", help="Of the frames 45-55 and 190-200, judge one in so many.")
]
Jobs = Annotated[int, typer.Option("--jobs", help="Paths at once, each in a process of its own, over all GPUs.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the fills; the paths are a fixed list.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def register(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.add_typer(eval_app, name="eval")


@eval_app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    out: Out = DEFAULT_OUT,
    results: Results = None,
    engine: Engines = None,
    data: Data = "worlds",
    footage: Footage = None,
    textures: Textures = None,
    paths: Paths = None,
    revisits: Revisits = None,
    size: Size = "256x144",
    lpips: LpipsFile = None,
    inception: InceptionFile = None,
    depth: Depth = "given",
    depth_model: DepthModel = None,
    poses_every: PosesEvery = 8,
    window_every: WindowEvery = 1,
    jobs: Jobs = 1,
    seed: Seed = 0,
    device: Device = "auto",
    weights: Weights = None,
    transformer: Transformer = None,
    lora: Loras = None,
    vram: Vram = None,
    captioner: CaptionerName = None,
    no_compile: NoCompile = False,
    gpus_per_job: GpusPerJob = None,
    preset: Preset = None,
) -> None:
    """Measure fills on paths that nothing was trained on. Leaves preview_quality.json and report.html."""
    if context.invoked_subcommand:
        return
    given = dict(locals())
    options, base = _options(given)
    core = _core()
    scenes, missing = _open(core, options)
    chosen, engines, absent = _engines(core, options, base, engine)
    missing |= absent
    tasks = [core.Task(i, variant) for variant in chosen for i in range(len(scenes))]
    with _progress() as tell:
        core.run_tasks(options, tasks, scenes, engines, tell)

    from worldwarp_core.evaluation.quality import quality
    from worldwarp_core.evaluation.results import ResultFolder, write_json

    kept = ResultFolder(out)
    names = [scenes.scene(i).name for i in range(len(scenes))]
    measured = {variant.engine: kept.load(variant.name, names) for variant in chosen}
    target = (results or out) / QUALITY_FILE
    trained = Path(weights) if weights and any(v.engine == "preview" for v in chosen) else None
    document = quality(measured, missing, options.settings() | {"depth": depth, "seed": seed}, trained, target)
    write_json(out / QUALITY_FILE, document)
    if target != out / QUALITY_FILE:
        write_json(target, document)
    for variant in chosen:
        _show(variant.engine, document[variant.engine])
    out_console.print(f"Figures: {target}", soft_wrap=True, highlight=False)
    write_page(out)


@eval_app.command()
def report(out: Annotated[Path, typer.Argument(help="Folder of an evaluation.")] = DEFAULT_OUT) -> None:
    """Make the report again, of what a folder holds. One HTML page with all pictures in it."""
    write_page(out)


@eval_app.command()
def experiment(
    names: Annotated[
        list[str], typer.Argument(help="strength, cache, noise, cache-steps, depth-errors, persistence; or all.")
    ],
    out: Out = DEFAULT_OUT,
    results: Results = None,
    engine: Engines = None,
    data: Data = "worlds",
    footage: Footage = None,
    textures: Textures = None,
    paths: Paths = None,
    revisits: Revisits = None,
    size: Size = "256x144",
    lpips: LpipsFile = None,
    inception: InceptionFile = None,
    depth: Depth = "given",
    depth_model: DepthModel = None,
    poses_every: PosesEvery = 8,
    window_every: WindowEvery = 1,
    jobs: Jobs = 1,
    seed: Seed = 0,
    device: Device = "auto",
    weights: Weights = None,
    transformer: Transformer = None,
    lora: Loras = None,
    vram: Vram = None,
    captioner: CaptionerName = None,
    no_compile: NoCompile = False,
    gpus_per_job: GpusPerJob = None,
    preset: Preset = None,
) -> None:
    """Run the paper's experiments, those named or all. Each leaves a JSON file, a table and a plot."""
    core = _core()
    from worldwarp_core.evaluation.experiments import EXPERIMENTS

    for name in names:
        if name not in (*EXPERIMENTS, "all"):
            raise WorldWarpError(
                "bad_settings", f"There is no experiment called {name!r}. Choose: {', '.join(EXPERIMENTS)}, or all."
            )
    given = dict(locals())
    options, base = _options(given)
    if len(engine or []) > 1:
        raise WorldWarpError("bad_settings", "An experiment is run with one engine: give --engine once.")
    trials = [_trial(asked, base, engine) for asked in EXPERIMENTS.values() if asked.name in names or "all" in names]
    engines = {name: core.open_engine(options, name) for name in dict.fromkeys(t.base.engine for t in trials)}
    for trial in trials:
        for variant in trial.variants:
            variant.check(engines[trial.base.engine])
    scenes, missing = _open(core, options)
    tasks = [task for trial in trials for task in _tasks(core, trial, scenes)]
    with _progress() as tell:
        # together, so that many at once are busy to the end; arms that experiments share are made once
        core.run_tasks(options, list(dict.fromkeys(tasks)), scenes, engines, tell)
    for trial in trials:
        notes = [f"{n} cannot be measured: {why}" for n, why in missing.items() if _is_asked(n, trial.asked.figures)]
        settings = options.settings() | {"seed": seed, "engine": trial.base.engine}
        _tell_experiment(trial, scenes, notes, settings, out, results)


def write_page(out: Path) -> None:
    """Writes the report of what a folder holds."""
    import json

    from worldwarp_core.evaluation.report import write_report
    from worldwarp_core.evaluation.results import ResultFolder

    file = out / QUALITY_FILE
    if not file.is_file():
        raise WorldWarpError("no_results", f"{out} holds no figures yet: run `worldwarp eval --out {out}`.")
    try:
        quality = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WorldWarpError("bad_results", f"{file} cannot be read ({error}). Run `worldwarp eval` again.") from error
    page = out / REPORT_FILE
    write_report(ResultFolder(out), quality, sorted((out / "experiments").glob("experiment_*.json")), page)
    out_console.print(f"Report: {page}", soft_wrap=True, highlight=False)


# ---------------------------------------------------------------- helpers


@dataclass(frozen=True)
class _Trial:
    """An experiment with one engine; `notes` say which arms it cannot show."""

    asked: Experiment
    base: Variant
    arms: tuple[Arm, ...]
    notes: list[str]

    @property
    def variants(self) -> list[Variant]:
        from worldwarp_core.evaluation.experiments import variant_of

        return [variant_of(arm, self.base) for arm in self.arms]

    def rows(self, scenes: SceneSet) -> list[int]:
        """The scenes that it is about."""
        return [i for i in range(len(scenes)) if scenes.scene(i).out_and_back == (self.asked.paths == "revisits")]


def _trial(asked: Experiment, base: Variant, engine: list[str] | None) -> _Trial:
    from worldwarp_core.evaluation.experiments import arms_of

    base = _with_engine(base, engine[0] if engine else "preview" if asked.needs_fill else "cache")
    return _Trial(asked, base, *arms_of(asked, learned=base.engine != "cache"))


def _tasks(core: Any, trial: _Trial, scenes: SceneSet) -> list[Task]:
    rows = trial.rows(scenes)
    if not rows:
        raise WorldWarpError(
            "bad_settings", f"The experiment {trial.asked.name} needs {trial.asked.paths}, and there are none."
        )
    # path by path, so that what is there after a stop can be compared
    return [core.Task(i, variant) for i in rows for variant in trial.variants]


def _tell_experiment(
    trial: _Trial, scenes: SceneSet, notes: list[str], settings: dict[str, Any], out: Path, results: Path | None
) -> None:
    """Writes what came of an experiment, and shows it."""
    from worldwarp_core.evaluation.experiments import tabulate
    from worldwarp_core.evaluation.provenance import provenance
    from worldwarp_core.evaluation.results import ResultFolder, busy_note

    kept = ResultFolder(out)
    names = [scenes.scene(i).name for i in trial.rows(scenes)]
    measured = [kept.load(variant.name, names) for variant in trial.variants]
    notes = trial.notes + notes
    if "cache_s" in trial.asked.figures and (busy := busy_note([m for some in measured for m in some])):
        notes.append(busy)
    table = tabulate(trial.asked, trial.arms, measured, trial.base.engine != "cache") | {"notes": notes}
    stem = _write_experiment({**provenance(), "settings": settings, **table}, out / "experiments", results)
    _show_table(table)
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False)
    out_console.print(f"Figures: {stem}.json and .png", soft_wrap=True, highlight=False)


def _write_experiment(document: dict[str, Any], folder: Path, results: Path | None) -> Path:
    """Writes the JSON file and the plot, for the report and where the user wants them; returns the latter's stem."""
    from worldwarp_core.evaluation.plots import plot_arms, save_png
    from worldwarp_core.evaluation.results import write_json

    stem = f"experiment_{document['experiment'].replace('-', '_')}"
    for place in dict.fromkeys((folder, results or folder)):
        write_json(place / f"{stem}.json", document)
        save_png(plot_arms(document, document["plotted"]), place / f"{stem}.png")
    return (results or folder) / stem


def _core() -> Any:
    """The evaluation, loaded only now: it needs the engine's packages.

    Raises:
        WorldWarpError: `engine_not_installed`.
    """
    # GNU OpenMP reads this when it is loaded: threads that spin while they wait cost a fit ten times its own time.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        from worldwarp_core.evaluation import run
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "engine_not_installed",
            f"An evaluation needs the Python package {error.name!r}, which is missing: "
            f"{install_command('engine', 'evaluation')}",
        ) from error
    return run


def _options(given: dict[str, Any]) -> tuple[EvalOptions, Variant]:
    """What the command line says, for a run and for every variant."""
    core = _core()
    from worldwarp_core.evaluation.variants import Variant

    width, times, height = given["size"].partition("x")
    if not (times and width.isdigit() and height.isdigit()):
        raise WorldWarpError("bad_settings", "--size must be WIDTHxHEIGHT in pixels, such as 256x144.")
    learned = EngineArguments(
        given["weights"], given["transformer"], tuple(given["lora"] or ()), False, given["vram"], given["captioner"],
        given["no_compile"], given["gpus_per_job"],
    ).options()  # fmt: skip
    preview = {"weights": learned["weights"]} if "weights" in learned else {}
    named = ("out", "data", "textures", "paths", "revisits", "lpips", "inception", "poses_every", "window_every",
             "device", "depth_model", "jobs")  # fmt: skip
    options = core.EvalOptions(
        **{name: given[name] for name in named},
        folder=given["footage"],
        width=int(width),
        height=int(height),
        engine_options={name: values for name, values in (("preview", preview), ("wan", learned)) if values},
    )
    return options, Variant(depth=given["depth"], preset=given["preset"] or "", seed=given["seed"])


def _with_engine(base: Variant, engine: str) -> Variant:
    from dataclasses import replace

    from worldwarp_core.spec import ENGINES

    if engine not in ENGINES:
        raise WorldWarpError("unknown_engine", f"There is no engine called {engine!r}. Choose: {', '.join(ENGINES)}.")
    return replace(base, engine=engine)


def _engines(
    core: Any, options: EvalOptions, base: Variant, asked: list[str] | None
) -> tuple[list[Variant], dict[str, Any], dict[str, str]]:
    """The engines to measure, loaded and found to work; and why one that was not asked for by name is left out."""
    chosen, engines, absent = [], {}, {}
    for name in asked or ("cache", "preview"):
        variant = _with_engine(base, name)
        try:
            engines[name] = core.open_engine(options, name)
        except WorldWarpError as error:
            if asked or error.code != "no_weights":
                raise
            absent[name] = "this installation came without its trained weights"
            console.print(f"{name} is left out: {error.message}", soft_wrap=True, highlight=False)
            continue
        variant.check(engines[name])
        chosen.append(variant)
    return chosen, engines, absent


def _open(core: Any, options: EvalOptions) -> tuple[SceneSet, dict[str, str]]:
    """The scenes, and what cannot be measured and why; both said."""
    _, missing = core.open_judges(options)
    for name, sentence in missing.items():
        console.print(f"{name} cannot be measured: {sentence}", soft_wrap=True, highlight=False)
    with console.status("getting the scenes ready"):
        scenes = core.open_scenes(options)
    console.print(f"{len(scenes)} paths: {scenes.name}", highlight=False)
    return scenes, missing


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar over all paths; where nobody looks at a terminal, a line a path."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        row = bar.add_task("starting", total=1.0)
        said = ""

        def tell(step: Step) -> None:
            nonlocal said
            text = f"{step.done} of {step.total}: {step.what}"
            bar.update(row, description=text, total=step.total, completed=step.done + step.share)
            if not console.is_terminal and text != said:
                console.print(text, highlight=False)
            said = text

        yield tell


def _is_asked(name: str, figures: tuple[str, ...]) -> bool:
    return any(figure.partition("@")[0] == name for figure in figures)


def _show(fill: str, summary: dict[str, Any]) -> None:
    shown = {
        "PSNR": "psnr", "of what the start shows": "psnr_seen", "where the prior is valid": "psnr_valid",
        "of the prior there": "psnr_prior", "in its holes": "psnr_holes", "SSIM": "ssim", "LPIPS": "lpips",
        "KID": "kid", "R_dist": "r_dist", "T_dist": "t_dist", "not placed by COLMAP": "unregistered",
    }  # fmt: skip
    table = Table("", "frame 50", "frame 200", title=fill)
    for name, figure in shown.items():
        table.add_row(name, *(_text(summary[window].get(figure)) for window in ("50", "200")))
    out_console.print(table)
    if summary["revisits"]:
        out_console.print(f"Revisit PSNR {_text(summary['revisit_psnr'])} over {summary['revisits']} paths")


def _show_table(document: dict[str, Any]) -> None:
    """Arms side by side: there are fewer of them than figures."""
    rows = document["rows"]
    names = [name for name in rows[0] if name not in ("arm", "at")]
    title = f"{document['question']} ({len(document['paths'])} paths)"
    table = Table(document["axis"], *(row["arm"] for row in rows), title=title)
    for name in names:
        table.add_row(name, *(_text(row[name]) for row in rows))
    out_console.print(table)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) and value == value else "-"
