"""Wan 2.1's models for ST-Diff: found, loaded once, and kept within the memory there is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from huggingface_hub import cached_assets_path
from torch import Tensor

from ..errors import WorldWarpError
from ..loop.priors import Priors
from ..model_files.store import locate
from ..spec import FirstFrameSettings, Notice, OnDrawStep
from ..st_diff.captions import Captioner, QwenCaptioner, open_captioner
from ..st_diff.denoise import Transformer
from ..st_diff.fill import Autoencoder, StDiffModels
from ..st_diff.noise_map import choose_noise
from ..st_diff.presets import PRESETS, Preset
from ..transformer.float8 import multiplies_float8
from ..transformer.prepare import TransformerOptions, WorldWarpTransformer, prepare_transformer
from ..triton_here import why_no_triton
from .autoencoder import AutoencoderOptions, WanAutoencoder
from .budget import AUTO, GIB, ON_CPU, PLANS, MemoryPlan, choose_plan, limit_memory, next_smaller, what_takes_longer
from .first_frame import make_first_frame
from .followers import Followers
from .text import TextEmbedder
from .weights import LoraFile, ModelFiles, apply_loras, load_transformer, load_vae, resolve_models

BASE_TRANSFORMER = "base"
SMALLEST_RESIDENT = [plan for plan in PLANS if plan.transformer == "resident"][-1]


@dataclass(frozen=True)
class WanOptions:
    """What the `wan` engine is started with; every value is plain JSON.

    Attributes:
        weights: folder or name of the Wan pipeline: autoencoder, text encoder.
        transformer: folder, .safetensors file or name of the fine-tuned transformer; `base` takes that of `weights`.
        loras: LoRA files for it, each a path, or `path=scale`.
        distilled: transformer or LoRA were trained for few steps; only what is said about few steps changes.
        preset: that shots which name none are made with.
        vram: gibibytes of GPU memory to keep within, or `auto`: what is free.
        captioner: folder or name of a Qwen2.5-VL for automatic prompts and style images; None goes without.
        compile: let torch compile the models, some 30 s at the first chunk of each size.
        gpus: how many GPUs share the transformer: 1, 2 or 4. More than one keeps it in bf16 and resident.
        prompt_cache: folder where embedded prompts are kept; None takes one beside the downloaded models.
        mask_rule: how validity becomes tokens, `ours` or `public` (noise_map.MASK_RULES).
        noise: the method's noise, `both`, or an ablation of it (noise_map.NoiseSettings.variant).
    """

    weights: str = "wan-1.3b"
    transformer: str = "worldwarp"
    loras: tuple[str, ...] = ()
    distilled: bool = False
    preset: str = "reference"
    vram: str = AUTO
    captioner: str | None = None
    compile: bool = True
    gpus: int = 1
    prompt_cache: str | None = None
    mask_rule: str = "ours"
    noise: str = "both"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise WorldWarpError(
                "bad_settings", f"There is no preset called {self.preset!r}. Choose: {', '.join(PRESETS)}."
            )
        choose_noise(self.mask_rule, self.noise)
        plan = choose_plan(self.vram, 0)
        if self.gpus != 1 and self.vram != AUTO and plan.transformer != "resident":
            raise WorldWarpError(
                "bad_settings",
                f"GPUs that share a transformer each hold the whole of it: give vram {SMALLEST_RESIDENT.gib} or more, "
                f"or one GPU; got {self.vram} for {self.gpus} GPUs.",
            )


def read_options(options: dict[str, Any]) -> WanOptions:
    """Returns the options from plain values.

    Raises:
        WorldWarpError: `bad_settings` for a name that is none of theirs.
    """
    known = [f.name for f in fields(WanOptions)]
    if unknown := [name for name in options if name not in known]:
        raise WorldWarpError(
            "bad_settings", f"The engine 'wan' has no option {unknown[0]!r}; it has: {', '.join(known)}."
        )
    return WanOptions(**(options | {"loras": tuple(options.get("loras", ()))}))


class WanSource:
    """The models (a `st_diff.ModelSource`), on one device, in one memory plan at a time.

    Args:
        options: which models, and how much memory.
        device: "cuda" or "cpu".
        files: where they are; None finds them by the options.

    Raises:
        WorldWarpError: `no_weights`, `bad_weights`, `wrong_architecture`, `bad_settings`.
    """

    def __init__(self, options: WanOptions, device: str, files: ModelFiles | None = None) -> None:
        self.device = _numbered(torch.device(device))
        self._options = options
        self._loras = [_read_lora(text) for text in options.loras]
        base = None if options.transformer == BASE_TRANSFORMER else options.transformer
        self._files = files or resolve_models(options.weights, base)
        self._captioner_folder = locate(options.captioner, what="the captioner") if options.captioner else None
        self._followers = Followers(options.gpus, device, options) if options.gpus != 1 else None
        if self._followers is not None:
            self.device = self._followers.ranks.device
        self.plan = _choose_plan(options.vram, self.device)
        if self._followers is not None:
            self.keep_resident()
        self._autoencoder: WanAutoencoder | None = None
        self._transformers: dict[bool, Transformer] = {}
        self._parking: UserCpuOffloadHook | None = None
        self._text: TextEmbedder | None = None
        self._captioner: QwenCaptioner | None = None

    @property
    def distilled(self) -> bool:
        return self._options.distilled

    @property
    def float8(self) -> bool:
        """Whether the device computes in float8; followers hold the transformer as it was loaded, as streaming does."""
        whole = self._followers is None and self.device.type == "cuda" and self.plan.transformer != "streamed"
        return whole and multiplies_float8(self.device)

    @property
    def slower(self) -> str:
        return what_takes_longer(self.plan, captions=self._options.captioner is not None)

    @property
    def captions(self) -> Callable[[], AbstractContextManager[Captioner]] | None:
        return self._open_captioner if self._options.captioner else None

    def keep_resident(self) -> None:
        """Takes a plan in which the transformer never leaves the device, as those have to that share one."""
        if self.plan.transformer != "resident":
            self.plan = SMALLEST_RESIDENT

    def load(self, preset: Preset) -> list[Notice]:
        """Loads what `preset` needs, in as small a memory plan as it takes, and returns what is to be said of that.

        Raises:
            WorldWarpError: `out_of_memory` where the smallest is too large; what the loading of models raises.
        """
        said: list[Notice] = []
        if self.device.type == "cpu" and self._options.vram != AUTO:
            said.append(Notice("no_effect", "The engine runs on the CPU: a size of GPU memory changes nothing."))
        while True:
            try:
                self.models(preset)
                return said
            except torch.OutOfMemoryError as error:
                reason = str(error)
            # Only now: the error held on to what it was raised among.
            notice = self.shrink()
            if notice is None:
                raise WorldWarpError(
                    "out_of_memory",
                    f"The device's memory does not hold the models: {reason} Close other programs that use it.",
                )
            said.append(notice)

    def models(self, preset: Preset) -> StDiffModels:
        return StDiffModels(
            autoencoder=self.decoder(),
            transformer=self._get_transformer(preset.fp8 and self.float8),
            text=self._get_text(),
            device=self.device,
            # Followers take half of the batch each; alone, a GPU gains nothing from it (budget.MemoryPlan).
            batched=self._followers is not None,
        )

    def decoder(self) -> Autoencoder:
        return _AloneOnTheDevice(self._get_autoencoder(), self._park)

    def shrink(self) -> Notice | None:
        alone = self._followers is None and self.device.type == "cuda"
        smaller = next_smaller(self.plan) if alone else None
        if smaller is None:
            return None
        self.plan = smaller
        self._free()
        return Notice(
            "out_of_memory",
            f"The GPU's memory is full. The job goes on with the settings for {smaller.gib} GB: {smaller.changes}.",
        )

    def draw(self, settings: FirstFrameSettings, on_step: OnDrawStep) -> np.ndarray:
        """Returns a start frame from words, (H, W, 3) uint8 sRGB, by the base model's own transformer.

        Where the memory plan holds one transformer at a time, the fine-tuned one leaves, and is loaded again with the
        next shot.
        """
        if not self.plan.keep_variants:
            self._free()
        files = resolve_models(self._options.weights)
        return make_first_frame(
            files, settings, self._prompt_cache, self.device.type, on_step, text_device=self.plan.text_device
        )

    def describe(self) -> dict[str, Any]:
        base, transformer = self._files.names
        return {
            "models": {"weights": base, "transformer": transformer, "loras": [asdict(lora) for lora in self._loras]},
            "memory_plan": asdict(self.plan),
            "compiled": self._compiled,
            "gpus": self._options.gpus,
            "captioner": self._options.captioner,
            "distilled": self.distilled,
        }

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def _compiled(self) -> bool:
        asked = self._options.compile and self.device.type == "cuda" and self.plan.transformer != "streamed"
        return asked and why_no_triton() is None

    def _get_autoencoder(self) -> WanAutoencoder:
        if self._autoencoder is None:
            options = AutoencoderOptions(self.plan.latents_at_once, self.plan.tile)
            vae: Any = load_vae(self._files, self._dtype)
            self._autoencoder = WanAutoencoder(vae, options, self.device)
        return self._autoencoder

    def _get_transformer(self, float8: bool) -> Transformer:
        if float8 not in self._transformers:
            if not self.plan.keep_variants:
                self._free_transformers()
            model = self.load_transformer(float8)
            self._transformers[float8] = model if self._followers is None else self._followers.share(model)
        return self._transformers[float8]

    def load_transformer(self, float8: bool) -> WorldWarpTransformer:
        """The transformer as the memory plan has it, loaded anew."""
        model: Any = load_transformer(self._files, self._dtype)
        apply_loras(model, self._loras)
        model.requires_grad_(False).to(self.device)
        # Widening a layer as it is called needs layers that are called: fused kernels read their weights themselves.
        fused = not self.plan.float8_storage
        options = TransformerOptions(compile=self._compiled, fused=fused, fp8=float8)
        prepared: Any = prepare_transformer(model, options)
        if self.plan.transformer == "parked":
            prepared, self._parking = cpu_offload_with_hook(prepared, self.device)
        if self.plan.transformer == "streamed":
            if self.plan.float8_storage:
                prepared.enable_layerwise_casting(torch.float8_e4m3fn, self._dtype)
            stream = self.device.type == "cuda"
            prepared.enable_group_offload(
                self.device, torch.device("cpu"), "block_level", num_blocks_per_group=1, use_stream=stream
            )
        return prepared

    def _park(self) -> None:
        """Sends a parked transformer off the device; it comes back when it is called."""
        if self._parking is not None:
            self._parking.offload()
            torch.cuda.empty_cache()

    def _get_text(self) -> TextEmbedder:
        if self._text is None:
            self._text = TextEmbedder(self._files, self._prompt_cache, self.plan.text_device, torch.bfloat16)
        return self._text

    @property
    def _prompt_cache(self) -> str | Path:
        return self._options.prompt_cache or cached_assets_path("worldwarp", "text", "embeddings")

    @contextmanager
    def _open_captioner(self) -> Iterator[QwenCaptioner]:
        name = self._captioner_folder
        assert name is not None
        if self.plan.captioner != "stays":
            with open_captioner(name, self.plan.captioner) as captioner:
                yield captioner
            return
        if self._captioner is None:
            self._captioner = QwenCaptioner(name, self.device, self._dtype)
        yield self._captioner

    def _free_transformers(self) -> None:
        if self._transformers:
            self._transformers.clear()
            self._parking = None
            torch._dynamo.reset()  # what was compiled for them
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _free(self) -> None:
        self._autoencoder = None
        self._text = None
        if self._captioner is not None:
            self._captioner.close()
            self._captioner = None
        self._free_transformers()


class _AloneOnTheDevice:
    """An autoencoder that has the transformer leave before it works, where the plan says so."""

    def __init__(self, autoencoder: WanAutoencoder, leave: Callable[[], None]) -> None:
        self._autoencoder, self._leave = autoencoder, leave
        self.name, self.channels = autoencoder.name, autoencoder.channels

    def encode(self, frames: Tensor) -> Tensor:
        self._leave()
        return self._autoencoder.encode(frames)

    def decode(self, latents: Tensor, priors: Priors | None = None) -> Iterator[Tensor]:
        self._leave()
        return self._autoencoder.decode(latents, priors)


def _numbered(device: torch.device) -> torch.device:
    """The device with its index: what counts memory wants one."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _choose_plan(vram: str, device: torch.device) -> MemoryPlan:
    """A size that the user names is kept to, whatever else is free."""
    if device.type != "cuda":
        choose_plan(vram, 0)  # refuses what is no size
        return ON_CPU
    plan = choose_plan(vram, torch.cuda.mem_get_info(device)[0] / GIB)
    limit_memory(float("inf") if vram == AUTO else plan.gib, device)
    return plan


def _read_lora(text: str) -> LoraFile:
    """`path` or `path=scale`."""
    path, equals, scale = text.rpartition("=")
    try:
        return LoraFile(Path(path), float(scale)) if equals else LoraFile(Path(text), 1.0)
    except ValueError as error:
        raise WorldWarpError(
            "bad_settings", f"A LoRA is given as its file or as file=scale, such as look.safetensors=0.8; got {text!r}."
        ) from error
