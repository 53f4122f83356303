"""Runs an evaluation: every scene by every variant, one by one or several at once, going on where it stopped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..engine import Engine, make_engine
from ..errors import WorldWarpError
from .folders import Dl3dv, RealEstate10k
from .inception import Inception
from .judge import Judges, judge_scene
from .lpips import PACKAGE, find_lpips, package_is_here
from .poses import load_pycolmap
from .results import FRAME_FIGURES, ResultFolder, plain
from .scenes import HeldOutWorlds, Scene, SceneSet
from .variants import Variant

Data = Literal["worlds", "re10k", "dl3dv"]


@dataclass(frozen=True)
class EvalOptions:
    """What a user says.

    Attributes:
        out: folder of the results; one that holds some goes on.
        data: held-out worlds of our own, or a folder in the layout of RealEstate10K or DL3DV.
        folder: of the footage; worlds need none.
        textures: pictures for the worlds; without them they wear procedural patterns alone.
        paths: how many, over all strata; None takes all.
        revisits: of the worlds, how many paths that come back; None takes all.
        width, height: of what is judged, multiples of 16.
        lpips: weights of LPIPS with AlexNet, which KID's features come from too; None takes the package `lpips`.
        inception: weights for FID, or None for KID alone.
        poses_every, window_every: see `Judges`.
        device: auto, cpu or cuda.
        depth_model: for the engines that have none.
        engine_options: for `load_engine`, by the engine's name.
        jobs: scenes at once, each in a process of its own with its share of the cores and, of several GPUs, one.
    """

    out: Path
    data: Data = "worlds"
    folder: Path | None = None
    textures: Path | None = None
    paths: int | None = None
    revisits: int | None = None
    width: int = 256
    height: int = 144
    lpips: Path | None = None
    inception: Path | None = None
    poses_every: int = 8
    window_every: int = 1
    device: str = "auto"
    depth_model: str | None = None
    engine_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: int = 1

    def __post_init__(self) -> None:
        def settle(ok: bool, message: str) -> None:
            if not ok:
                raise WorldWarpError("bad_settings", message)

        settle(self.data in get_args(Data), f"The data is one of {', '.join(get_args(Data))}; got {self.data!r}.")
        settle(
            (self.data == "worlds") == (self.folder is None),
            "re10k and dl3dv need --footage FOLDER, and worlds take none.",
        )
        settle(
            self.width % 16 == self.height % 16 == 0 and min(self.width, self.height) >= 32,
            f"The sides must be multiples of 16, at least 32; got {self.width}x{self.height}.",
        )
        for name, least in (("jobs", 1), ("window_every", 1), ("poses_every", 0), ("paths", 1), ("revisits", 0)):
            value = getattr(self, name)
            settle(value is None or value >= least, f"{name.replace('_', ' ')} must be at least {least}; got {value}.")

    def settings(self) -> dict[str, Any]:
        """What the figures depend on: a folder of results has the same for all of them."""
        return {
            "data": self.data,
            "folder": None if self.folder is None else str(self.folder),
            "textures": None if self.textures is None else self.textures.name,
            "size": [self.width, self.height],
            "lpips": self.lpips.name if self.lpips is not None else PACKAGE if package_is_here() else None,
            "inception": None if self.inception is None else self.inception.name,
            "poses_every": self.poses_every,
            "window_every": self.window_every,
            "depth_model": self.depth_model,
            "engine_options": self.engine_options,
            "figures": list(FRAME_FIGURES),  # a folder from before there was one has it of none of its paths
        }


class KeptScenes:
    """A set whose scenes are made once: choosing a path through a world takes a second."""

    def __init__(self, scenes: SceneSet) -> None:
        self.name, self._scenes = scenes.name, scenes
        self._kept: dict[int, Scene] = {}

    def __len__(self) -> int:
        return len(self._scenes)

    def scene(self, index: int) -> Scene:
        if index not in self._kept:
            self._kept[index] = self._scenes.scene(index)
        return self._kept[index]


@dataclass(frozen=True)
class Task:
    """One scene by one variant."""

    scene: int
    variant: Variant


@dataclass(frozen=True)
class Step:
    """How far a run is: `done` of `total` tasks, and `share` of the one at hand (0 where several are)."""

    done: int
    total: int
    share: float
    what: str


def open_scenes(options: EvalOptions) -> SceneSet:
    """The scenes that the options name.

    Raises:
        WorldWarpError: `bad_textures`, `bad_footage`.
    """
    size = (options.height, options.width)
    if options.data == "worlds":
        device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
        return KeptScenes(HeldOutWorlds(options.paths, options.revisits, size, options.textures, device))
    assert options.folder is not None
    kind = RealEstate10k if options.data == "re10k" else Dl3dv
    return KeptScenes(kind(options.folder, size, options.paths))


def open_engine(options: EvalOptions, name: str) -> Engine:
    """As `load_engine`, with what the options say for this engine."""
    return make_engine(name, options.device, options.depth_model, options.engine_options.get(name, {}))


def open_judges(options: EvalOptions) -> tuple[Judges, dict[str, str]]:
    """What measures, and figure by figure what cannot be measured and why.

    Raises:
        WorldWarpError: `not_installed` where poses are asked for without pycolmap: now, and not after the first shot.
    """
    missing: dict[str, str] = {}
    lpips, why = find_lpips(options.lpips)
    if lpips is None:
        missing |= {"lpips": why, "kid": "it compares the features of LPIPS's network, which is not here"}
    if options.inception is None:
        missing["fid"] = "it needs Inception's weights (pytorch-fid's file): --inception FILE; KID stands in its place"
    inception = None if options.inception is None else Inception.load(options.inception)
    if options.poses_every == 0:
        missing["r_dist"] = missing["t_dist"] = "left out, as asked"
    else:
        load_pycolmap()
    return Judges(lpips, inception, options.poses_every, options.window_every), missing


def run_tasks(
    options: EvalOptions,
    tasks: Sequence[Task],
    scenes: SceneSet,
    engines: Mapping[str, Engine],
    tell: Callable[[Step], None] = lambda step: None,
) -> None:
    """Does what is not done yet; the results are in the folder, task by task.

    Args:
        engines: those of the tasks' variants; processes of their own load theirs again.
        tell: called as the work goes on; what it raises, ends it, with what is done kept.

    Raises:
        WorldWarpError: as engines and judges do; `other_settings` where the folder holds shots of other weights.
    """
    results = ResultFolder(options.out, options.settings())
    names: dict[int, str] = {}
    todo = []
    for task in tasks:
        if task.scene not in names:
            names[task.scene] = scenes.scene(task.scene).name
        if not results.done(task.variant.name, names[task.scene]):
            todo.append(task)
        elif task.variant.engine in engines:
            _check_same_weights(results, task, names[task.scene], engines[task.variant.engine])
    before, total = len(tasks) - len(todo), len(tasks)
    tell(Step(before, total, 0.0, "starting"))
    if not todo:
        return
    if options.jobs == 1:
        bench = _Bench(options, scenes, engines)
        for done, task in enumerate(todo, before):
            what = f"{names[task.scene]} by {task.variant.name}"
            bench.do(task, lambda share, done=done, what=what: tell(Step(done, total, share, what)))  # type: ignore[misc]
    else:
        for done, task in enumerate(_at_once(options, todo), before + 1):
            tell(Step(done, total, 0.0, f"{names[task.scene]} by {task.variant.name}"))
    tell(Step(total, total, 0.0, "done"))


def _check_same_weights(results: ResultFolder, task: Task, scene: str, engine: Engine) -> None:
    """What is kept must be of the weights that are loaded: a network that has learned on is another one."""
    (kept,) = results.load(task.variant.name, [scene])
    before = kept.figures["summary"].get("fill", {}).get("models")
    now = plain(engine.models.fill.describe().get("models"))
    if before != now:
        raise WorldWarpError(
            "other_settings",
            f"{results.out} holds shots of other weights ({before}; these are {now}). Give another --out.",
        )


class _Bench:
    """Everything loaded: scenes, judges and engines."""

    def __init__(self, options: EvalOptions, scenes: SceneSet, engines: Mapping[str, Engine]) -> None:
        self._scenes, self._engines = scenes, dict(engines)
        self._options, self._results = options, ResultFolder(options.out)
        self._judges, _ = open_judges(options)

    def do(self, task: Task, tell: Callable[[float], None] = lambda share: None) -> None:
        name = task.variant.engine
        if name not in self._engines:
            self._engines = {name: open_engine(self._options, name)}  # one at a time: they may be large
        engine = self._engines[name]
        task.variant.check(engine)
        scene = self._scenes.scene(task.scene).remembered(self._results.truth)
        judged = judge_scene(scene, task.variant, engine, self._judges, tell)
        judged.figures["jobs"] = self._options.jobs
        self._results.save(task.variant.name, scene.name, judged)


_bench: _Bench | None = None


def _at_once(options: EvalOptions, tasks: Sequence[Task]) -> Iterator[Task]:
    """Yields tasks as they are done, several processes at once; the first that fails ends all."""
    context = multiprocessing.get_context("spawn")
    threads = max(torch.get_num_threads() // options.jobs, 1)
    started = context.Value("i", 0)
    with ProcessPoolExecutor(options.jobs, context, _start_process, (options, threads, started)) as pool:
        left: dict[Future[None], Task] = {pool.submit(_do_in_process, task): task for task in tasks}
        try:
            while left:
                finished, _ = wait(left, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    yield left.pop(future)
        finally:
            for future in left:
                future.cancel()


def _start_process(options: EvalOptions, threads: int, started: Any) -> None:
    """Loads what a process works with; `started`, which all share, is how many of them there are already."""
    global _bench
    import numba

    with started.get_lock():
        turn, started.value = started.value, started.value + 1
    if options.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(turn % torch.cuda.device_count())  # "cuda" is this one from here on
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    _bench = _Bench(options, open_scenes(options), {})


def _do_in_process(task: Task) -> None:
    assert _bench is not None
    _bench.do(task)
