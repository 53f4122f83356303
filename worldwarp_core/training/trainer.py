"""The loop that trains any of our networks: a wall-clock limit, an average of the weights, checkpoints, a log to watch.

In: a `Task` (a network, its loss, its data, how it is judged). Out: a run folder.

    <run>/<name>*.safetensors  averaged weights, half precision, with the network's settings and progress: what ships,
                               and all that is needed to go on on another machine
    <run>/resume.safetensors   float32 weights, their average and the optimiser's moments, to go on exactly
    <run>/log.jsonl            a line each `log_every` steps, and one for each validation
    <run>/samples.png          what it makes of validation clips, beside the truth

Weights are float32; the forward pass runs in bfloat16 where the device is a GPU. With several processes (see
`run.py`) each works on its own clips and gradients are averaged. Training ends at the time limit with a checkpoint,
whatever happens: an interrupt ends it the same way.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from ..preview.shipped import network_files
from ..preview.weights import load_state, read_network, save_network
from .precision import half

console = Console()
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast.

    Attributes:
        minutes: wall-clock limit, making the first clips and compiling included.
        steps: another limit; None for none.
        learning_rate: at its highest.
        schedule: `cosine` falls to a twentieth over the time of the run, `constant` stays: for runs that go on later.
        warmup: steps over which the rate rises, after every start: moments may have been lost.
        average: decay of the exponential average of the weights.
        log_every: steps between two lines of the log; fewer where they take `log_at_least_every_s`.
        clip: the largest norm of a gradient.
    """

    minutes: float = 6.0
    steps: int | None = None
    learning_rate: float = 5e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    average: float = 0.999
    clip: float = 1.0
    log_every: int = 25
    log_at_least_every_s: float = 10.0
    validate_every_s: float = 120.0
    save_every_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise WorldWarpError("bad_settings", f"minutes must be above 0; got {self.minutes}.")
        if self.steps is not None and self.steps < 1:
            raise WorldWarpError("bad_settings", f"steps must be at least 1; got {self.steps}.")
        if self.schedule not in ("constant", "cosine"):
            raise WorldWarpError("bad_settings", f"The schedule is constant or cosine; got {self.schedule!r}.")
        if not 0 < self.learning_rate < 1:
            raise WorldWarpError("bad_settings", f"The learning rate must be in (0, 1); got {self.learning_rate}.")


@dataclass(frozen=True)
class Validation:
    """How good it is: figures by name, and a picture (H, W, 3) uint8 to look at."""

    figures: dict[str, float]
    sheet: np.ndarray | None = None


class Task(Protocol):
    """What is trained, on what, and how it is judged."""

    name: str
    sampler_steps: int | None
    """Steps of the sampler that the network is learning to be asked in, where these alone are learned."""

    @property
    def network(self) -> nn.Module: ...

    def config(self) -> dict[str, Any]:
        """The network's settings, to build it again."""
        ...

    def draw(self, generator: torch.Generator) -> Any:
        """A new batch. Geometry is worked out here, in full precision: `loss` may run in half."""
        ...

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts for the log."""
        ...

    def top_up(self, elapsed_s: float) -> None:
        """Called after every logged step: make new data if its share of the time allows."""
        ...

    def clips_seen(self) -> int:
        """Different clips made so far by all processes, earlier runs included; asked of the first process."""
        ...

    def validate(self) -> Validation:
        """Judges the network as it stands (it holds its averaged weights now)."""
        ...


@dataclass
class Progress:
    """What was done so far, over all runs."""

    steps: int = 0
    clips: int = 0
    seconds: float = 0.0
    """Of wall-clock time in training, times the number of devices."""
    figures: dict[str, float] = field(default_factory=dict)
    sampler_steps: int | None = None
    """Of the task; None where any number will do."""


def train(
    task: Task, run: Path, settings: TrainSettings, device: torch.device, started: float | None = None
) -> Progress:
    """Trains `task` until the limit and returns its progress; goes on from the run folder where it holds anything.

    `started` is when the time of the run began (`time.monotonic`), where that was before this call.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    started = time.monotonic() if started is None else started
    session = _Session(task, settings, device)
    progress = session.resume(run)
    seconds_before, first = progress.seconds, progress.steps
    progress.sampler_steps = task.sampler_steps
    generator = torch.Generator(device).manual_seed(settings.seed * 1000003 + progress.steps * 1009 + rank)
    if world > 1:
        for values in task.network.state_dict().values():
            dist.broadcast(values, 0)
    log = _Log(run) if rank == 0 else None
    saved = validated = time.monotonic()
    parts: dict[str, Tensor] = {}
    limit = settings.minutes * 60
    waited = logged = 0.0
    interrupted = False
    try:
        while True:
            elapsed = time.monotonic() - started
            rate = settings.learning_rate * _rate(settings, progress.steps - first, elapsed / limit)
            parts = session.step(generator, rate, world)
            progress.steps += 1
            done = progress.steps - first
            if done == 1:
                waited = time.monotonic() - started
                logger.info("%s: first step after %.1f s", task.name, time.monotonic() - started)
            # One process alone can stop at any step; several only where they ask each other.
            elapsed = time.monotonic() - started
            due = world == 1 and (elapsed > limit or elapsed - logged > settings.log_at_least_every_s)
            if due or done % settings.log_every == 0 or done == settings.steps:
                figures = {name: float(value) for name, value in parts.items()}  # waits for the device
                elapsed = logged = time.monotonic() - started
                progress.seconds, progress.clips = seconds_before + world * elapsed, task.clips_seen()
                if not all(map(math.isfinite, figures.values())):
                    session.recover(task)
                    figures["recovered"] = 1.0
                if log:
                    its = (done - 1) / max(elapsed - waited, 1e-6)  # the first step waits for clips and compilers
                    log.step(task.name, progress, its, rate, figures, limit - elapsed)
                if _agree(elapsed > limit or done == settings.steps, device):
                    break
                task.top_up(elapsed)
                now = time.monotonic()
                if log and now - saved > settings.save_every_s:
                    session.save(run, progress, everything=False)
                    saved = now
                if log and now - validated > settings.validate_every_s:
                    validated = now
                    log.validation(task.name, progress, session.validate(), run)
    except KeyboardInterrupt:
        interrupted = True
    logger.info("%s: stopped after %.1f s", task.name, time.monotonic() - started)
    if log:
        # Saved before it is judged: nothing that can go wrong there may cost the weights.
        session.save(run, progress, everything=True)
        if not interrupted:
            result = session.validate()
            progress.figures = result.figures
            log.validation(task.name, progress, result, run)
            session.save(run, progress, everything=False)
    return progress


def read_progress(run: Path, name: str) -> Progress:
    """What a run folder says was done so far; nothing where there is no run yet.

    Raises:
        WorldWarpError: `bad_weights` where it cannot be read.
    """
    exact = run / "resume.safetensors"
    if exact.exists():
        try:
            with safe_open(exact, "pt") as opened:
                return Progress(**json.loads(opened.metadata()["progress"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise WorldWarpError(
                "bad_weights",
                f"{exact} cannot be read ({error}). Delete it, and the run goes on from its averaged weights.",
            ) from error
    if not network_files(run, name):
        return Progress()
    return Progress(**read_network(run, name).progress)


class _Session:
    """The network with its optimiser and its average."""

    def __init__(self, task: Task, settings: TrainSettings, device: torch.device) -> None:
        self.task, self.settings, self.device = task, settings, device
        self.learned = {name: p for name, p in task.network.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.learned.items()}
        self.averaged_steps = 0
        self.optimiser = self._new_optimiser()

    def step(self, generator: torch.Generator, rate: float, world: int) -> dict[str, Tensor]:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = self.task.draw(generator)
        with half(self.device):
            loss, parts = self.task.loss(batch, generator)
        loss.backward()
        if world > 1:
            average_gradients(list(self.learned.values()), world)
        norm = torch.nn.utils.clip_grad_norm_(self.learned.values(), self.settings.clip, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.averaged_steps += 1
        decay = min(self.settings.average, (1 + self.averaged_steps) / (10 + self.averaged_steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.learned.values()), 1 - decay)
        return {"loss": loss.detach(), "norm": norm.detach()} | {name: v.detach() for name, v in parts.items()}

    def validate(self) -> Validation:
        self.task.network.eval()
        # Clips are judged in other shapes than they are learned in: not worth a compilation.
        with self._averaged(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            result = self.task.validate()
        self.task.network.train()
        return result

    def recover(self, task: Task) -> None:
        """After a loss that is not finite: back to the last finite average, with a new optimiser."""
        finite = all(bool(values.isfinite().all()) for values in self.average.values())
        if not finite:
            raise WorldWarpError("diverged", f"Training {task.name} diverged. Start again with a lower learning rate.")
        with torch.no_grad():
            for name, parameter in self.learned.items():
                parameter.copy_(self.average[name])
        self.optimiser = self._new_optimiser()

    def save(self, run: Path, progress: Progress, everything: bool) -> None:
        state = self.task.network.state_dict() | self.average
        save_network(run, self.task.name, state, self.task.config(), asdict(progress))
        if not everything:
            return
        tensors = {f"network.{name}": values for name, values in self.task.network.state_dict().items()}
        tensors |= {f"average.{name}": values for name, values in self.average.items()}
        for name, parameter in self.learned.items():
            for kind, values in self.optimiser.state[parameter].items():
                tensors[f"adam.{kind}.{name}"] = values
        tensors = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
        metadata = {"progress": json.dumps(asdict(progress)), "averaged_steps": str(self.averaged_steps)}
        with atomic_write(run / "resume.safetensors") as path:
            save_file(tensors, path, metadata)

    def resume(self, run: Path) -> Progress:
        """Takes up what the run folder holds: everything, or the averaged weights alone, or nothing."""
        exact = run / "resume.safetensors"
        if exact.exists():
            with safe_open(exact, "pt", device=str(self.device)) as opened:
                metadata, keys = opened.metadata(), opened.keys()
                found = {key: opened.get_tensor(key) for key in keys}
            average = _under(found, "average.")
            # What is learned no longer stays at its average: that is what was given away, and others rely on it.
            settled = {name: values for name, values in average.items() if name not in self.learned}
            _load(self.task.network, _under(found, "network.") | settled, exact)
            adam = {kind: _under(found, f"adam.{kind}.") for kind in ("step", "exp_avg", "exp_avg_sq")}
            for name, parameter in self.learned.items():
                self.average[name].copy_(average.get(name, parameter.detach()))
                if name in adam["exp_avg"]:
                    self.optimiser.state[parameter] = {
                        kind: _laid_out_like(parameter, values[name]) for kind, values in adam.items()
                    }
            self.averaged_steps = int(metadata["averaged_steps"])
            return Progress(**json.loads(metadata["progress"]))
        if not network_files(run, self.task.name):
            return Progress()
        network = read_network(run, self.task.name)
        load_state(self.task.network, network, self.task.name)
        for name, parameter in self.learned.items():
            self.average[name].copy_(parameter.detach())
        self.averaged_steps = 100  # these weights are an average already; what follows counts a tenth at first
        return Progress(**network.progress)

    def _new_optimiser(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.learned.values() if p.ndim > 1]
        others = [p for p in self.learned.values() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
            fused=fused,
        )

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        kept = {name: p.detach().clone() for name, p in self.learned.items()}
        with torch.no_grad():
            for name, parameter in self.learned.items():
                parameter.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.learned.items():
                    parameter.copy_(kept[name])


def average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """The mean over processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _agree(stop: bool, device: torch.device) -> bool:
    """Whether any process wants to stop: all must stop at the same step."""
    if not dist.is_initialized():
        return stop
    vote = torch.tensor(float(stop), device=device)
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return bool(vote > 0)


def _rate(settings: TrainSettings, step: int, share: float) -> float:
    """In (0, 1]: of the learning rate, at this step and this share of the time."""
    if settings.steps is not None:
        share = max(share, step / settings.steps)
    warm = min((step + 1) / settings.warmup, 1.0) if settings.warmup else 1.0
    fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))) if settings.schedule == "cosine" else 1.0
    return warm * fall


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): values for key, values in tensors.items() if key.startswith(prefix)}


def _laid_out_like(parameter: Tensor, values: Tensor) -> Tensor:
    """Moments in the parameter's own memory format, which files do not keep: the fused optimiser takes no other."""
    return values if values.shape != parameter.shape else torch.empty_like(parameter).copy_(values)


def _load(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WorldWarpError("bad_weights", f"{path} does not fit this network: {error}") from error


class _Log:
    """What a user watches: a line on the console, and the same as JSON."""

    def __init__(self, run: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.path = run / "log.jsonl"

    def step(
        self, name: str, progress: Progress, rate_s: float, rate: float, figures: dict[str, float], left_s: float
    ) -> None:
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in figures.items())
        console.print(f"{name} {progress.steps}  {numbers}  [dim]{rate_s:.1f} it/s, {max(left_s, 0):.0f} s left[/]")
        self._write({"step": progress.steps, "clips": progress.clips, "its": rate_s, "rate": rate} | figures)

    def validation(self, name: str, progress: Progress, result: Validation, run: Path) -> None:
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in result.figures.items())
        console.print(f"[bold]{name} {progress.steps}  {numbers}[/]")
        self._write({"step": progress.steps, "validation": result.figures})
        if result.sheet is not None:
            with atomic_write(run / "samples.png") as path:
                cv2.imwrite(str(path), result.sheet[..., ::-1])

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
