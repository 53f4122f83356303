"""Trains one of the preview's networks from a user's options: data, network, task and loop put together.

Each process of several (one a GPU) runs the same function; see `train_network`.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import WorldWarpError
from ..evaluation.lpips import Lpips, find_lpips
from ..preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from ..preview.depth import DepthNetwork, load_imagenet
from ..preview.load import PRESETS, PreviewFill, load_transformer
from ..preview.shipped import network_files
from ..preview.transformer import make_transformer
from ..preview.weights import NetworkFile, load_state, read_network
from ..st_diff.noise_map import SMALL_PICTURES
from ..transformer.prepare import TransformerOptions
from ..worlds.textures import Split, TextureBank, build_bank
from .autoencoder import AutoencoderTask, AutoencoderTraining
from .clips import ClipSource, WarpSettings
from .continued import ContinuedSource
from .decoder import DecoderTask, DecoderTraining
from .depth import DepthTask, DepthTraining
from .distill import DistillTask, DistillTraining, Teacher
from .imagine import Imagination
from .levels import make_trainable
from .objective import ObjectiveSettings, Target
from .pool import PoolSettings, Source, turns
from .precision import full
from .stdiff import StDiffTask, StDiffTraining
from .trainer import Progress, Task, TrainSettings, read_progress, train
from .views import ViewSource

if TYPE_CHECKING:
    from ..wan.weights import ModelFiles

logger = logging.getLogger(__name__)

Kind = Literal["vae", "stdiff", "depth", "lora"]
NAMES: dict[Kind, str] = {"vae": "autoencoder", "stdiff": "transformer", "depth": "depth", "lora": "lora"}
"""What the files of each are called."""


LAYOUTS = ("re10k", "dl3dv")
JUDGED_FOOTAGE = 1 << 30
"""Seeds of the clips of footage that are judged by, beyond those that are learned from."""


@dataclass(frozen=True)
class KindDefaults:
    """What suits a network where the user does not say.

    Attributes:
        frames: of a clip that is made; of `depth`, views of a world.
        batch: clips (of depth: pictures) in a step.
        learning_rate, average: see `TrainSettings`.
        made: clips made at once.
        first, capacity: of the pool, in clips.
        judged: validation clips.
    """

    frames: int
    batch: int
    learning_rate: float
    average: float
    made: int
    first: int
    capacity: int
    judged: int


DEFAULTS: dict[Kind, KindDefaults] = {
    "vae": KindDefaults(17, 16, 1e-3, 0.998, 16, 64, 4096, 12),
    "stdiff": KindDefaults(49, 16, 5e-4, 0.999, 8, 64, 20_000, 8),
    "depth": KindDefaults(5, 48, 4e-4, 0.995, 32, 128, 2048, 64),
    "lora": KindDefaults(49, 1, 1e-4, 0.99, 2, 8, 512, 2),
}
DECODER = KindDefaults(49, 16, 5e-4, 0.998, 16, 64, 1500, 12)
"""Of `vae` where a transformer is given: whole clips, as it samples them, kept as pixels, 13 MB each."""
STUDENT = replace(DEFAULTS["stdiff"], capacity=1500)
"""Of `stdiff` where a teacher is given: an example is all states on a clip's way, 4 MB; there are two of each clip."""


@dataclass(frozen=True)
class TrainOptions:
    """What a user says.

    Attributes:
        run: folder of the run; one that holds a run goes on.
        textures: file of pictures for the worlds (see `worlds/textures.py`); None takes procedural ones alone.
        lpips: weights of LPIPS with AlexNet; None takes the package `lpips`, and without it leaves LPIPS out of the
            loss and of the figures.
        imagenet: weights of an EfficientNet-Lite0 for a new depth network to start from.
        autoencoder: folder with a trained autoencoder; `stdiff` needs it.
        transformer: folder with a trained transformer: the decoder learns from its latents, its own encoder frozen.
        width, height: of the clips, multiples of 16.
        also: (width, height, frames) of other clips of worlds, to learn from every second time; judged are those above
            alone.
        frames, batch, learning_rate, pool, judged: None takes what suits the network.
        sampler_steps: of ST-Diff, learn the states alone that a sampler of so many steps visits; with a teacher, the
            student's steps.
        teacher, weaker: of ST-Diff, folders with a trained transformer to distil and with an earlier state of it.
        guidance: with a teacher, how far beyond it to go, away from its earlier state; None takes what suits.
        maker: of ST-Diff, a folder with a trained transformer: a share of the clips goes on from what it makes, as the
            later chunks of a shot do.
        freeze_encoder: of the autoencoder, learn the decoder alone.
        wan, base: of a LoRA, the models that it is for: Wan's, and the fine-tuned transformer or `base` for Wan's own.
        prompt: of a LoRA, the words that it is learned with.
        rank: of a LoRA.
        footage, layout: of a LoRA, a folder of clips with cameras to learn from, in the layout of `re10k` or `dl3dv`;
            None learns from worlds.
        depth_model: for footage, a depth model of `transformers`.
        share: of the time, spent making clips.
        cached: the share of clips of worlds that are warped by the engine's own cache; see `WarpSettings`.
        devices: GPUs to train on.
    """

    run: Path
    minutes: float = 6.0
    steps: int | None = None
    textures: Path | None = None
    lpips: Path | None = None
    imagenet: Path | None = None
    autoencoder: Path | None = None
    transformer: Path | None = None
    width: int = 256
    height: int = 144
    also: tuple[tuple[int, int, int], ...] = ()
    frames: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    schedule: Literal["constant", "cosine"] = "cosine"
    target: Target = "consistent"
    sampler_steps: int | None = None
    teacher: Path | None = None
    weaker: Path | None = None
    guidance: float | None = None
    maker: Path | None = None
    freeze_encoder: bool = False
    wan: str = "wan-1.3b"
    base: str = "worldwarp"
    prompt: str = ""
    rank: int = 16
    footage: Path | None = None
    layout: str = "re10k"
    depth_model: str | None = None
    share: float = 0.25
    cached: float = 0.0
    pool: int | None = None
    judged: int | None = None
    compile: bool = False
    device: str = "auto"
    devices: int = 1
    seed: int = 0
    validate_every_s: float = TrainSettings.validate_every_s
    save_every_s: float = TrainSettings.save_every_s

    def __post_init__(self) -> None:
        for width, height, frames in ((self.width, self.height, self.frames or 1), *self.also):
            if width % 16 or height % 16 or min(width, height) < 32:
                raise WorldWarpError(
                    "bad_settings", f"Clips' sides must be multiples of 16, at least 32; got {width}x{height}."
                )
            if frames < 1 or frames % 4 != 1:
                raise WorldWarpError("bad_settings", f"A clip has 4k + 1 frames; got {frames}.")
        if self.also and self.footage is not None:
            raise WorldWarpError("bad_settings", "Footage is learned from in one size; leave the others out.")
        if self.transformer is not None and not self.freeze_encoder:
            raise WorldWarpError(
                "bad_settings",
                "A transformer knows its own encoder's latents alone: freeze the encoder to learn from it.",
            )
        if (self.teacher is None) != (self.weaker is None):
            raise WorldWarpError(
                "bad_settings", "Distilling takes two states of a transformer: give both --teacher and --weaker."
            )
        if self.teacher is None and self.guidance is not None:
            raise WorldWarpError("bad_settings", "--guidance leads away from a weaker state: give --teacher, --weaker.")
        if self.teacher is not None and self.target != "consistent":
            raise WorldWarpError("bad_settings", "With a teacher its own way is the target; leave --target out.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise WorldWarpError("bad_settings", f"device must be auto, cpu or cuda; got {self.device!r}.")
        if not 0.0 <= self.cached <= 1.0:
            raise WorldWarpError("bad_settings", f"The share of cached clips is in [0, 1]; got {self.cached}.")
        if self.devices < 1:
            raise WorldWarpError("bad_settings", f"At least 1 device is needed; got {self.devices}.")
        if self.footage is not None and self.depth_model is None:
            raise WorldWarpError(
                "bad_settings", "Footage comes without depth: give --depth-model NAME to warp it with."
            )
        if self.layout not in LAYOUTS:
            raise WorldWarpError("bad_settings", f"The layout is {' or '.join(LAYOUTS)}; got {self.layout!r}.")
        for name in ("batch", "pool", "judged", "rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise WorldWarpError("bad_settings", f"{name} must be at least 1; got {value}.")


def train_network(kind: Kind, options: TrainOptions) -> Progress:
    """Trains until the limit; the run folder then holds the weights. Returns what was done over all of its runs.

    The limit in minutes counts from this call on; the last validation and the last save come after it.

    Raises:
        WorldWarpError: `bad_settings`, `no_weights`, `bad_weights`, `bad_textures`, `no_cuda`, `diverged`.
    """
    started = time.monotonic()
    if kind not in get_args(Kind):
        raise WorldWarpError("bad_settings", f"There is no network {kind!r} to train: {', '.join(get_args(Kind))}.")
    found = torch.cuda.device_count() if options.device != "cpu" else 0
    if options.device == "cuda" and not found:
        raise WorldWarpError("no_cuda", "torch sees no CUDA device: install a driver and a CUDA build of torch.")
    if options.devices > max(found, 1):
        raise WorldWarpError("no_cuda", f"{options.devices} devices were asked for; torch sees {found}.")
    _check_inputs(kind, options)
    if options.cached:
        from ..splats.prepare import prepare_rasterizer  # numba or gsplat, only where it is wanted

        # Kernels are built here, before there are several processes that would wait for one another.
        prepare_rasterizer("cuda" if found else "cpu")
    if options.devices == 1:
        return _train_here(kind, options, torch.device("cuda" if found else "cpu"), 0, 1, started)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    # The clock is the machine's: kernels built above and processes that start here are of the user's minutes too.
    mp.spawn(_train_as_one_of, (kind, options, address, started), nprocs=options.devices, join=True)
    return read_progress(options.run, NAMES[kind])


def _check_inputs(kind: Kind, options: TrainOptions) -> None:
    """Raises where what the network starts from is not there: known at once, as making clips takes a while."""
    _settings(kind, options)
    frames = options.frames or _defaults(kind, options).frames
    shapes = [(options.width, options.height, frames), *options.also]
    if len({shape[:2] if kind == "depth" else shape for shape in shapes}) < len(shapes):
        told = "sides of the pictures" if kind == "depth" else "shapes"
        raise WorldWarpError("bad_settings", f"Two of the {told} to learn from are the same; leave one out.")
    read_progress(options.run, NAMES[kind])
    if options.lpips is not None:
        Lpips.load(options.lpips)
    if kind == "vae" and options.transformer is not None:
        read_network(options.transformer, NAMES["stdiff"])
        if not (network_files(options.run, NAMES["vae"]) or (options.run / "resume.safetensors").exists()):
            raise WorldWarpError(
                "no_weights",
                f"The decoder learns beside an encoder that is trained already, and {options.run} has none: give --run "
                "the folder of the autoencoder's run.",
            )
    if kind == "stdiff":
        _read_autoencoder(options)
        if options.maker is not None:
            read_network(options.maker, NAMES["stdiff"])
        if options.teacher is None or options.weaker is None:
            _learning(options)
            return
        _distilling(options)
        better, weaker = (read_network(folder, NAMES["stdiff"]).state for folder in (options.teacher, options.weaker))
        if all(name in weaker and torch.equal(values, weaker[name]) for name, values in better.items()):
            raise WorldWarpError(
                "bad_settings", "The teacher and the weaker state are the same: there is nothing to be led away from."
            )
    if kind == "depth":
        _new_depth_network(options)
    if kind == "lora":
        _wan_files(options)


def _train_as_one_of(rank: int, kind: Kind, options: TrainOptions, address: str, started: float) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", init_method=address, rank=rank, world_size=options.devices, device_id=device)
    try:
        _train_here(kind, options, device, rank, options.devices, started)
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class _InFull:
    """A source that calculates in full precision wherever it is asked."""

    source: Source[Any]
    device: torch.device

    def batch(self, n: int, first_seed: int) -> Any:
        with full(self.device):
            return self.source.batch(n, first_seed)


class _InTurn:
    """Several sources, each of a shape of its own, asked in the order of `turns`."""

    def __init__(self, sources: Sequence[Source[Any]]) -> None:
        self._sources, self._turn = [sources[shape] for shape in turns(len(sources))], 0

    def batch(self, n: int, first_seed: int) -> Any:
        source = self._sources[self._turn % len(self._sources)]
        self._turn += 1
        return source.batch(n, first_seed)


@dataclass(frozen=True)
class _Ready:
    """What every task is built from."""

    options: TrainOptions
    device: torch.device
    source: Source[Any]
    judged: Any
    photos: Tensor | None
    judged_photos: Tensor | None
    lpips: Lpips | None
    pool: PoolSettings
    first_seed: int
    stride: int


def _defaults(kind: Kind, options: TrainOptions) -> KindDefaults:
    if kind == "vae" and options.transformer is not None:
        return DECODER
    return STUDENT if kind == "stdiff" and options.teacher is not None else DEFAULTS[kind]


def _train_here(
    kind: Kind, options: TrainOptions, device: torch.device, rank: int, world: int, started: float
) -> Progress:
    defaults = _defaults(kind, options)
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    size, frames = (options.height, options.width), options.frames or defaults.frames
    settings = _settings(kind, options)
    lpips, why = find_lpips(options.lpips, device) if kind != "depth" else (None, "")
    if why:
        logger.info("LPIPS is left out of the loss and the figures. %s", why)
    logger.info("making clips to judge by")
    if options.footage is not None:
        source: Source[Any] = _InFull(_footage(options, frames, device), device)
        judged = source.batch(options.judged or defaults.judged, JUDGED_FOOTAGE)
        photos = judged_photos = None
    else:
        banks: dict[Split, TextureBank] = {
            split: build_bank(split, options.textures, device=device) for split in ("train", "val")
        }
        photos, judged_photos = (_photos(bank) for bank in banks.values())
        shapes = [(size, frames), *(((height, width), length) for width, height, length in options.also)]
        source = _InTurn([_worlds(kind, options, "train", banks["train"], *shape, device) for shape in shapes])
        judged = _worlds(kind, options, "val", banks["val"], size, frames, device).batch(
            options.judged or defaults.judged, 0
        )
    logger.info("loading the network, after %.1f s", time.monotonic() - started)
    capacity, shapes_in_turn = options.pool or defaults.capacity, 1 + len(options.also)
    made = min(defaults.made, max(capacity // len(turns(shapes_in_turn)), 1))
    pool = PoolSettings(capacity, min(defaults.first, capacity), made, options.share, shapes_in_turn)
    ready = _Ready(
        options,
        device,
        source,
        judged,
        photos,
        judged_photos,
        lpips,
        pool,
        read_progress(options.run, NAMES[kind]).clips + rank * made,
        made * world,
    )
    task = BUILD[kind](ready)
    progress = train(task, options.run, settings, device, started)
    if kind == "lora" and rank == 0:
        from .lora import export_lora

        export_lora(options.run)
    return progress


def _worlds(
    kind: Kind,
    options: TrainOptions,
    split: Split,
    bank: TextureBank,
    size: tuple[int, int],
    frames: int,
    device: torch.device,
) -> _InFull:
    """Clips of a split's worlds, or views of them for the depth network; what is judged by is never the cache's."""
    seed, cached = (options.seed, options.cached) if split == "train" else (0, 0.0)
    if kind == "depth":
        return _InFull(ViewSource(split, seed, size, frames, device, bank=bank), device)
    warps = WarpSettings(cached=cached)
    return _InFull(ClipSource(split, seed, size, frames, device, bank=bank, warps=warps), device)


def _settings(kind: Kind, options: TrainOptions) -> TrainSettings:
    defaults = _defaults(kind, options)
    return TrainSettings(
        minutes=options.minutes,
        steps=options.steps,
        learning_rate=options.learning_rate or defaults.learning_rate,
        schedule=options.schedule,
        average=defaults.average,
        validate_every_s=options.validate_every_s,
        save_every_s=options.save_every_s,
        seed=options.seed,
    )


def _autoencoder(ready: _Ready) -> Task:
    options = ready.options
    defaults = _defaults("vae", options)
    clips = options.batch or defaults.batch
    frames = min(options.frames or defaults.frames, AutoencoderTraining.frames)
    network = PreviewAutoencoder().to(ready.device)
    given = (ready.source, ready.photos, ready.judged, ready.judged_photos, ready.lpips, ready.pool)
    if options.transformer is not None:
        transformer = load_transformer(str(ready.device), options.transformer)
        learning = DecoderTraining(
            clips,
            frames,
            steps=_sampler_steps(options.transformer),
            strength=PreviewFill.strength,
            compile=options.compile,
        )
        return DecoderTask(network, transformer, *given, learning, ready.first_seed, ready.stride)
    training = AutoencoderTraining(clips, frames, freeze_encoder=options.freeze_encoder, compile=options.compile)
    return AutoencoderTask(network, *given, training, ready.first_seed, ready.stride)


def _transformer(ready: _Ready) -> Task:
    options = ready.options
    found = _read_autoencoder(options)
    autoencoder = PreviewAutoencoder(AutoencoderConfig(**found.config))
    load_state(autoencoder, found, NAMES["vae"])
    plain = TransformerOptions(fused=False)  # fused kernels have no gradients
    pool = replace(ready.pool, first=2 * ready.pool.first, capacity=2 * ready.pool.capacity)  # each clip both ways
    autoencoder.to(ready.device).eval()
    source = ready.source
    if options.maker is not None:
        steps = _sampler_steps(options.maker)
        engine = Imagination(autoencoder, load_transformer(str(ready.device), options.maker), steps)
        source = ContinuedSource(source, engine, WarpSettings(cached=options.cached))
    rest = (autoencoder, source, ready.judged, ready.lpips, pool)
    seeds = (ready.first_seed, ready.stride)
    if options.teacher is None or options.weaker is None:
        network = make_trainable(make_transformer(options=plain, device=ready.device), compiled=options.compile)
        return StDiffTask(network, *rest, _learning(options), *seeds)
    teacher = Teacher(*(load_transformer(str(ready.device), folder) for folder in (options.teacher, options.weaker)))
    found = read_network(options.teacher, NAMES["stdiff"])
    student = make_transformer(found.config, plain, found.state, ready.device)
    network = make_trainable(student, compiled=options.compile)
    return DistillTask(network, teacher, *rest, _distilling(options), *seeds)


def _learning(options: TrainOptions) -> StDiffTraining:
    return StDiffTraining(
        clips=options.batch or DEFAULTS["stdiff"].batch,
        objective=_objective(options),
        noise=SMALL_PICTURES,
        strength=PreviewFill.strength,
    )


def _distilling(options: TrainOptions) -> DistillTraining:
    return DistillTraining(
        clips=options.batch or DEFAULTS["stdiff"].batch,
        objective=_objective(options),
        steps=DistillTraining.steps if options.sampler_steps is None else options.sampler_steps,
        strength=PreviewFill.strength,
        noise=SMALL_PICTURES,
        guidance=DistillTraining.guidance if options.guidance is None else options.guidance,
    )


def _objective(options: TrainOptions) -> ObjectiveSettings:
    """A small network learns most of what it will be asked most, and of what its guided decoder has no prior for."""
    steps = None if options.teacher is not None else options.sampler_steps
    return ObjectiveSettings(
        target=options.target, usual=0.6, usual_strength=PreviewFill.strength, blank_weight=3.0, steps=steps
    )


def _sampler_steps(folder: Path) -> int:
    """What the transformer in `folder` was taught to sample in; the preset's where it was taught none."""
    steps = read_network(folder, NAMES["stdiff"]).progress.get("sampler_steps")
    return PRESETS["preview"].steps if steps is None else int(steps)


def _read_autoencoder(options: TrainOptions) -> NetworkFile:
    if options.autoencoder is None:
        raise WorldWarpError(
            "no_weights", "ST-Diff learns on an autoencoder's latents: give the folder of a trained one."
        )
    return read_network(options.autoencoder, NAMES["vae"])


def _lora(ready: _Ready) -> Task:
    # Imported here: these take seconds, and only a LoRA needs them.
    from ..wan.autoencoder import WanAutoencoder
    from ..wan.text import TextEmbedder
    from ..wan.weights import load_transformer, load_vae
    from .lora import LoraTask, WanLatents, lora_training, with_adapter

    options, device = ready.options, ready.device
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    files = _wan_files(options)
    vae: Any = load_vae(files, precision)
    words = TextEmbedder(files, options.run / "prompts", device, torch.bfloat16).embed([options.prompt, ""])
    return LoraTask(
        with_adapter(load_transformer(files, precision), options.rank, device),
        options.rank,
        WanLatents(WanAutoencoder(vae, device=device)),
        words.to(device, torch.float32),
        ready.source,
        ready.judged,
        ready.lpips,
        replace(ready.pool, first=2 * ready.pool.first, capacity=2 * ready.pool.capacity),  # each clip both ways
        lora_training(options.batch or DEFAULTS["lora"].batch, ObjectiveSettings(target=options.target)),
        ready.first_seed,
        ready.stride,
    )


def _wan_files(options: TrainOptions) -> ModelFiles:
    from ..wan.weights import resolve_models

    return resolve_models(options.wan, None if options.base == "base" else options.base)


def _depth(ready: _Ready) -> Task:
    options = ready.options
    pool = ready.pool
    views = options.frames or DEFAULTS["depth"].frames
    pictures = PoolSettings(  # the pool counts pictures here
        pool.capacity * views,
        pool.first * views,
        pool.batch,
        pool.share,
        pool.shapes,
    )
    return DepthTask(
        _new_depth_network(options).to(ready.device),
        ready.source,
        ready.judged,
        ready.judged_photos,
        pictures,
        DepthTraining(pictures=options.batch or DEFAULTS["depth"].batch),
        ready.first_seed,
        ready.stride,
    )


def _new_depth_network(options: TrainOptions) -> DepthNetwork:
    network = DepthNetwork()
    if options.imagenet is not None:
        try:
            load_imagenet(network, load_file(options.imagenet))
        except (SafetensorError, OSError, ValueError) as error:
            raise WorldWarpError(
                "bad_weights", f"{options.imagenet} holds no EfficientNet-Lite0 as safetensors: {error}"
            ) from error
    return network


BUILD: dict[Kind, Callable[[_Ready], Task]] = {
    "vae": _autoencoder,
    "stdiff": _transformer,
    "depth": _depth,
    "lora": _lora,
}


def _footage(options: TrainOptions, frames: int, device: torch.device) -> Source:
    from ..evaluation.folders import Dl3dv, RealEstate10k
    from ..geometry.monocular import MonocularDepth
    from .footage import FootageSource

    assert options.footage is not None
    assert options.depth_model is not None
    kind = RealEstate10k if options.layout == "re10k" else Dl3dv
    scenes = kind(options.footage, (options.height, options.width))
    return FootageSource(scenes, MonocularDepth.load(options.depth_model, str(device)), frames, device)


def _photos(bank: TextureBank) -> Tensor | None:
    """(N, 3, S, S) uint8 photographs of a bank, where it has any."""
    rows = bank.groups.get("photo", [])
    if not rows:
        return None
    first = torch.tensor(rows, device=bank.texels.device)[:, None] * bank.stride
    texels = bank.texels[first + torch.arange(bank.size**2, device=first.device)]
    return texels[..., :3].unflatten(1, (bank.size, bank.size)).permute(0, 3, 1, 2).contiguous()
