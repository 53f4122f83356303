"""An engine: the models and settings of one machine, loaded once, that makes shots."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .checkpoint import Checkpoint
from .errors import WorldWarpError
from .geometry.monocular import DepthModel, MonocularDepth
from .loop.fill import CacheFill, Fill
from .loop.pipeline import Models, PipelineSettings, generate
from .spec import ENGINES, Event, Finished, FirstFrameSettings, GenerateSpec, Notice, OnDrawStep
from .splats.cache import CacheSettings
from .splats.fit import why_not_captured
from .splats.prepare import prepare_rasterizer, rasterizer_info
from .triton_here import why_no_triton
from .wan.budget import GIB

POINTS_PER_PIXEL = 0.5
"""With 0.3 the first chunk's priors are 1 dB further from the truth, at preview size on eight worlds."""

CPU = PipelineSettings(
    device="cpu",
    max_pixels=512 * 288,
    points_per_pixel=POINTS_PER_PIXEL,
    # Steps are where the curve of PSNR against steps flattens: tests/benchmarks/bench_cache_steps.py.
    cache=CacheSettings(
        first_steps=200, update_steps=60, sh_degree=0, key_views=4, anchor_views=1, max_gaussians=200_000
    ),
)
CUDA = PipelineSettings(
    device="cuda",
    max_pixels=832 * 480,
    points_per_pixel=POINTS_PER_PIXEL,
    cache=CacheSettings(first_steps=300, update_steps=150),
)

Draw = Callable[[FirstFrameSettings, OnDrawStep], np.ndarray]
"""Draws a start frame from words, (H, W, 3) uint8 sRGB."""

VERSIONED = ("worldwarp", "torch", "numpy", "numba", "gsplat", "diffusers", "transformers", "opencv-python-headless")


@dataclass(frozen=True)
class Engine:
    """Makes shots on one device; see `load_engine`."""

    name: str
    models: Models
    settings: PipelineSettings
    notices: tuple[Notice, ...] = ()
    draws: Draw | None = None
    """None where no model here draws from words alone."""

    def generate(self, spec: GenerateSpec, resume: Checkpoint | None = None) -> Iterator[Event]:
        """Yields the events of one shot (worldwarp_core.spec); stop asking for more to cancel it."""
        yield from self.notices
        on_cuda = self.settings.device == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        for event in generate(spec, self.models, self.settings, resume):
            if isinstance(event, Finished):
                took = {"memory_gib": round(torch.cuda.max_memory_allocated() / GIB, 2)} if on_cuda else {}
                event = replace(event, summary=event.summary | took | {"engine": self.describe()})
            yield event

    def draw(self, settings: FirstFrameSettings, on_step: OnDrawStep) -> np.ndarray:
        """Returns a start frame from words, (H, W, 3) uint8 sRGB; see `api.Engine`."""
        if self.draws is None:
            raise WorldWarpError(
                "cannot_draw",
                f"The engine {self.name!r} has no model that draws from words. Start a server with --engine wan, or "
                "let the shot begin with a render or an image.",
            )
        return self.draws(settings, on_step)

    def describe(self) -> dict[str, Any]:
        """What makes the pictures here: for `job.json`, `doctor` and a client that asks."""
        device = self.settings.device
        return {
            "engine": self.name,
            "fill": self.models.fill.describe(),
            "draws": self.draws is not None,
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
            "device_kind": device,
            "device_gib": _device_gib() if device == "cuda" else None,
            "rasterizer": rasterizer_info(device),
            "torch_threads": torch.get_num_threads(),
            "monocular_depth": self.models.monocular.name if self.models.monocular else None,
            "versions": {name: found for name in VERSIONED if (found := _version(name))},
        }


def _device_gib() -> float:
    return round(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB, 1)


def make_engine(name: str, device: str, depth_model: str | None, options: dict[str, Any]) -> Engine:
    """Builds the engine called `name`; `worldwarp_core.api.load_engine` says what the arguments mean."""
    if name not in ENGINES:
        raise WorldWarpError("unknown_engine", f"There is no engine called {name!r}. Choose: {', '.join(ENGINES)}.")
    if device not in ("auto", "cpu", "cuda"):
        raise WorldWarpError("bad_settings", f"device must be auto, cpu or cuda; got {device!r}.")
    notices: list[Notice] = []
    settings = CPU
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        missing = _why_no_cuda()
        if missing is None:
            settings = CUDA
        elif device == "cuda":
            raise WorldWarpError("no_cuda", missing)
        else:
            notices.append(
                Notice(
                    "cpu_rasterizer",
                    f"{missing} Until then the CPU rasteriser is used: slower, and with smaller frames.",
                )
            )
    if settings is CPU:
        prepare_rasterizer("cpu")  # compiles once on a machine: better now than inside the first shot
    elif slow := why_not_captured():
        video = ", and a video model and its autoencoder up to twice" if why_no_triton() else ""
        notices.append(
            Notice("no_kernels", f"{slow}. So fitting the world takes about four times as long on this GPU{video}.")
        )
    fill, draws = _load_fill(name, settings.device, options, notices)
    models = Models(fill, _load_depth(name, settings.device, depth_model, options))
    return Engine(name, models, settings, tuple(notices), draws)


def _load_fill(name: str, device: str, options: dict[str, Any], notices: list[Notice]) -> tuple[Fill, Draw | None]:
    """What fills in, with what it has learned loaded, and what draws start frames; adds what every job is to say."""
    if name == "wan":
        # Imported here: it takes seconds, and only this engine needs it.
        from .st_diff.fill import StDiffFill
        from .st_diff.noise_map import choose_noise
        from .st_diff.presets import PRESETS
        from .wan.source import WanSource, read_options

        wan = read_options(options)
        source = WanSource(wan, device)
        notices += source.load(PRESETS[wan.preset])  # better now than inside the first shot
        return StDiffFill(source, preset=wan.preset, noise=choose_noise(wan.mask_rule, wan.noise)), source.draw
    taken = ("weights",) if name == "preview" else ()
    if refused := [option for option in options if option not in taken]:
        raise WorldWarpError(
            "bad_settings", f"The engine {name!r} takes no such models: {', '.join(refused)} cannot be used with it."
        )
    if name == "preview":
        from .preview.load import load_fill

        return load_fill(device, _preview_weights(options)), None
    return CacheFill(), None


def _load_depth(name: str, device: str, depth_model: str | None, options: dict[str, Any]) -> DepthModel | None:
    """What estimates depth where none is given; the preview brings its own."""
    if depth_model:
        return MonocularDepth.load(depth_model, device)
    if name == "preview":
        from .preview.load import load_depth

        return load_depth(device, _preview_weights(options))
    return None


def _preview_weights(options: dict[str, Any]) -> Path:
    """The folder of the preview's networks: that of the package, or of somebody's own training."""
    from .preview.shipped import WEIGHTS

    return Path(options["weights"]) if "weights" in options else WEIGHTS


def _why_no_cuda() -> str | None:
    """Why gsplat cannot rasterise here, with what to do; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: install a driver and a CUDA build of torch (see `worldwarp doctor`)."
    try:
        prepare_rasterizer("cuda")
    except WorldWarpError as error:
        return error.message
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
