"""ST-Diff: the learned fill (method section 1, steps 4 to 6).

In: a chunk's history and the priors of its new frames. Out: the new frames, all denoised together, each token from as
much noise as its prior deserves.

    clip    = history, then priors, the last one repeated up to 4k + 1 frames
    latents = encode(clip), mixed with noise by the sigma map; history stays clean
    latents = denoise(latents, prompt)
    frames  = decode(latents), without those of the history and the padding

The same code runs Wan's 1.3 B transformer and the small preview model; only what `ModelSource` gives differs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import WorldWarpError
from ..history import History
from ..loop.chunks import ChunkPlan
from ..loop.fill import FillStep
from ..loop.priors import Priors
from ..spec import GenerateSpec, Notice, Stage
from .captions import Captioner, compose_prompt, describe_look, describe_scene
from .close_holes import close_holes
from .denoise import Transformer, compose_latents, denoise, draw_noise
from .noise_map import NoiseSettings, build_sigma_map, sigma_schedule
from .noise_map import Variant as NoiseVariant
from .presets import PRESETS, Preset, choose_preset, preset_notices
from .prompts import prompt_for, prompt_notices

THE_METHOD = NoiseSettings()
ABLATIONS = {
    "spatial": "the history is made anew with the rest",
    "temporal": "all of a frame is as free of its prior as its mean",
    "uniform": "all of a clip, known or not, starts from the same noise",
    "full_noise": "what is known of the frames to come is not used",
}
"""What is lost where the noise is not the method's."""
WITHOUT_MASK = ("uniform", "full_noise")
"""Variants that a user's strength mask cannot change."""


class Autoencoder(Protocol):
    """Encodes clips and decodes them frame by frame.

    T = 4k + 1, T' = (T - 1)/4 + 1, and sides are multiples of 16; latents are float32, normalised by the autoencoder's
    own mean and deviation.
    """

    name: str
    channels: int

    def encode(self, frames: Tensor) -> Tensor:
        """(T, H, W, 3) -> (1, C, T', H/8, W/8)."""
        ...

    def decode(self, latents: Tensor, priors: Priors | None = None) -> Iterator[Tensor]:
        """Yields (H, W, 3) frames in [0, 1], each as soon as it is decoded; stop asking and the work stops there.

        `priors`, of the same T frames, is for decoders that are guided by what the cache knows in detail.
        """
        ...


class TextSource(Protocol):
    """Prompts to what the transformer reads."""

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """(P, N, D), on the transformer's device."""
        ...


Captions = Callable[[], AbstractContextManager[Captioner]]
"""Loads a captioner for the length of a `with` block."""


@dataclass(frozen=True)
class StDiffModels:
    """What one chunk is made with.

    Attributes:
        batched: both prompts in one pass of the transformer; one after the other takes less memory.
    """

    autoencoder: Autoencoder
    transformer: Transformer
    text: TextSource
    device: torch.device
    batched: bool = True


class ModelSource(Protocol):
    """Has the models ready, in as much memory as there is."""

    @property
    def captions(self) -> Captions | None:
        """None where there is no captioner: automatic prompts and style images change nothing then."""
        ...

    @property
    def distilled(self) -> bool:
        """The transformer was trained for few steps."""
        ...

    @property
    def float8(self) -> bool:
        """Whether presets that ask for float8 get it."""
        ...

    @property
    def slower(self) -> str:
        """What takes longer because there is little memory, in words; "" for nothing."""
        ...

    def models(self, preset: Preset) -> StDiffModels:
        """The models as `preset` runs them, loaded where they are not yet."""
        ...

    def decoder(self) -> Autoencoder:
        """The autoencoder of the models, without loading any other."""
        ...

    def shrink(self) -> Notice | None:
        """Takes less of the device's memory from now on, and says how; None when there is no less."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is loaded, as plain values."""
        ...


@dataclass(frozen=True)
class FixedModels:
    """A `ModelSource` of models that are loaded already and as small as they get."""

    name: str
    loaded: StDiffModels
    captions: Captions | None = None
    distilled: bool = False
    float8: bool = False
    slower: str = ""

    def models(self, preset: Preset) -> StDiffModels:
        return self.loaded

    def decoder(self) -> Autoencoder:
        return self.loaded.autoencoder

    def shrink(self) -> Notice | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"models": self.name}


class StDiffFill:
    """Makes a chunk's frames by spatio-temporal diffusion.

    Args:
        source: the models.
        presets: by name.
        preset: the one that a shot which names none is made with.
        noise: how validity becomes noise; whether it is graded is the shot's to say.
    """

    name = "st-diff"
    holes_agree = True
    frame_stage: Stage = "decode"
    strength = 0.8
    """tau where a shot names none: the method's."""

    def __init__(
        self,
        source: ModelSource,
        presets: Mapping[str, Preset] = PRESETS,
        preset: str = "reference",
        noise: NoiseSettings = THE_METHOD,
    ) -> None:
        self._source = source
        self._presets = dict(presets)
        self._default = preset
        self._noise = noise
        self._look: tuple[np.ndarray, str] | None = None
        if preset not in self._presets:
            raise WorldWarpError(
                "bad_settings", f"There is no preset called {preset!r}. Choose: {', '.join(self._presets)}."
            )

    def with_noise(self, variant: NoiseVariant) -> Self:
        """The same models with another of the method's noises."""
        other = copy(self)
        other._noise = replace(self._noise, variant=variant)
        return other

    def describe(self, spec: GenerateSpec | None = None) -> dict[str, Any]:
        preset = self._presets[self._default] if spec is None else self._preset(spec)
        return {
            "name": self.name,
            "description": "spatio-temporal diffusion over the rendered cache",
            "preset": preset.describe(),
            "presets": list(self._presets),
            "strength": self.strength if spec is None else self._strength(spec),
            "noise": asdict(self._noise if spec is None else self._noise_of(spec)),
            **self._source.describe(),
        }

    def prepare(self, spec: GenerateSpec, plans: Sequence[ChunkPlan]) -> Iterator[Notice]:
        preset = self._preset(spec)
        yield from preset_notices(preset, distilled=self._source.distilled)
        if preset.fp8 and not self._source.float8:
            yield Notice("no_float8", "Float8 arithmetic is not used here: what the preset does in it is done in full.")
        if self._source.slower:
            yield Notice("little_memory", f"To keep within the GPU's memory, slower: {self._source.slower}.")
        if self._noise.variant != "both":
            lost = ABLATIONS[self._noise.variant]
            yield Notice("ablation", f"The engine was started with the noise {self._noise.variant}: {lost}.")
        if self._noise.variant in WITHOUT_MASK and spec.strength_mask is not None:
            yield Notice("no_effect", f"With the noise {self._noise.variant} the strength mask changes nothing.")
        yield from prompt_notices(spec, plans, spec.cameras.frames)
        if preset.sampler.guidance == 1.0 and spec.negative_prompt:
            yield Notice("no_effect", "Without guidance (1) the negative prompt changes nothing.")
        asked = {"auto prompt": spec.auto_prompt, "style image": spec.style_image is not None}
        if idle := [name for name, given in asked.items() if given and self._source.captions is None]:
            change = "changes" if len(idle) == 1 else "change"
            yield Notice(
                "no_captioner", f"The engine was started without a captioner: {', '.join(idle)} {change} nothing."
            )

    def count_steps(self, spec: GenerateSpec, plan: ChunkPlan) -> Mapping[Stage, int]:
        return {"encode": 1, "denoise": len(self._sigmas(spec)) - 1}

    def fill(
        self, context: History, priors: Priors, plan: ChunkPlan, spec: GenerateSpec
    ) -> Iterator[FillStep | Notice | Tensor]:
        delivered = 0
        clip: Priors | None = None
        latents: Tensor | None = None
        while delivered < len(plan.new):
            try:
                clip = clip or _whole_clip(context, priors, plan)
                if latents is None:
                    latents = yield from self._latents(clip, context, plan, spec)
                # A frame that was delivered stays what it is: after a fall-back only the rest is decoded.
                for frame in self._decode(latents, clip, plan, skip=delivered):
                    yield frame
                    delivered += 1
                break
            except torch.OutOfMemoryError as error:
                reason = str(error)
            # Only now: the error held on to what it was raised among.
            notice = self.make_room()
            if notice is None:
                raise WorldWarpError(
                    "out_of_memory",
                    f"The device's memory is full, and the models take as little as they can: {reason} Close other "
                    "programs that use it, or make the frames smaller or the chunks shorter.",
                )
            yield notice

    def make_room(self) -> Notice | None:
        return self._source.shrink()

    def _preset(self, spec: GenerateSpec) -> Preset:
        return choose_preset(spec, self._presets, self._default)

    def _noise_of(self, spec: GenerateSpec) -> NoiseSettings:
        return replace(self._noise, graded=spec.graded_validity)

    def _strength(self, spec: GenerateSpec) -> float:
        return self.strength if spec.strength is None else spec.strength

    def _sigmas(self, spec: GenerateSpec) -> list[float]:
        return sigma_schedule(self._preset(spec).steps, [self._strength(spec)])

    def _latents(
        self, clip: Priors, context: History, plan: ChunkPlan, spec: GenerateSpec
    ) -> Generator[FillStep | Notice, None, Tensor]:
        """The clip's clean latents, (1, C, T', H/8, W/8)."""
        preset = self._preset(spec)
        models = self._source.models(preset)
        guided = preset.sampler.guidance > 1
        described = yield from self._describe(context, plan, spec)
        texts = [described, *[spec.negative_prompt] * guided]
        prompt, *negatives = models.text.embed(texts).to(models.device).split(1)
        negative = negatives[0] if guided else None
        encoded = models.autoencoder.encode(_as_encoded(clip, self._noise)).to(models.device)
        if models.device.type == "cuda":
            torch.cuda.synchronize(models.device)  # a step is reported when it is done
        yield FillStep("encode", 1, 1)
        sigma_map = build_sigma_map(
            clip.validity,
            self._strength(spec),
            len(plan.context),
            self._noise_of(spec),
            _strength_offset(spec, plan, clip.validity),
        )[None].to(models.device)
        noise = draw_noise(tuple(encoded.shape), _chunk_generator(spec.seed, plan.index), models.device)
        # The encoder is causal: the composite clip's first latents are those of the history alone.
        latents = compose_latents(encoded, encoded[:, :, :0], noise, sigma_map)
        sampler = replace(preset.sampler, batched=models.batched)
        sigmas = self._sigmas(spec)
        steps = denoise(models.transformer, latents, sigma_map, sigmas, prompt, negative, sampler)
        for step, denoised in enumerate(_in_step(steps, models.device), 1):
            latents = denoised
            yield FillStep("denoise", step, len(sigmas) - 1)
        return latents

    def _describe(
        self, context: History, plan: ChunkPlan, spec: GenerateSpec
    ) -> Generator[FillStep | Notice, None, str]:
        """The chunk's prompt: the artist's words, then what is to be seen from its first frame, then the style."""
        words = prompt_for(spec, plan, spec.cameras.frames)
        if self._source.captions is None or not (spec.auto_prompt or spec.style_image is not None):
            return words
        with self._source.captions() as captioner:
            scene = describe_scene(captioner, context.rgb[-1], words) if spec.auto_prompt else ""
            look = "" if spec.style_image is None else self._look_of(spec.style_image, captioner)
        prompt = compose_prompt(words, scene, look)
        yield Notice("prompt_written", f"Frames from {spec.cameras.frames[plan.new.start]} on are made with: {prompt}")
        return prompt

    def _look_of(self, picture: np.ndarray, captioner: Captioner) -> str:
        """The description of a style image, asked for once: a shot has the same one for all its chunks."""
        if self._look is None or not np.array_equal(self._look[0], picture):
            self._look = picture, describe_look(captioner, torch.from_numpy(picture) / 255)
        return self._look[1]

    def _decode(self, latents: Tensor, clip: Priors, plan: ChunkPlan, skip: int) -> Iterator[Tensor]:
        """The plan's new frames but the first `skip`."""
        first, last = len(plan.context) + skip, len(plan.context) + len(plan.new)
        yield from islice(self._source.decoder().decode(latents, clip), first, last)


def _whole_clip(context: History, priors: Priors, plan: ChunkPlan) -> Priors:
    """History, priors and padding as one clip of `plan.length` frames; history counts as valid everywhere."""
    assert len(context) == len(plan.context), (len(context), plan)
    ones = torch.ones_like(context.trusted)
    # What lies behind a delivered picture is not asked for: the decoders that are guided read colour and validity.
    past = Priors(rgb=context.rgb, alpha=ones, depth=ones, validity=ones)

    def joined(name: str) -> Tensor:
        parts = [getattr(past, name), getattr(priors, name)]
        parts.append(parts[-1][-1:].expand(plan.padding, *parts[-1].shape[1:]))
        return torch.cat(parts)

    return Priors(*(joined(name) for name in ("rgb", "alpha", "depth", "validity")))


def _as_encoded(clip: Priors, noise: NoiseSettings) -> Tensor:
    """(T, H, W, 3): the clip's colours as the autoencoder reads them."""
    if not noise.closed:
        return clip.rgb
    return close_holes(clip.rgb.permute(0, 3, 1, 2), clip.validity).permute(0, 2, 3, 1)


def _strength_offset(spec: GenerateSpec, plan: ChunkPlan, validity: Tensor) -> Tensor | None:
    """(T, H, W) in [-1, 1], what the user's mask adds to the strength over the whole clip."""
    if spec.strength_mask is None:
        return None
    rows = [*plan.context, *plan.new, *[plan.new[-1]] * plan.padding]
    mask = spec.strength_mask[rows] if len(spec.strength_mask) > 1 else spec.strength_mask
    resized = F.interpolate(torch.from_numpy(mask)[:, None], validity.shape[1:], mode="area")[:, 0]
    return resized.expand(len(rows), -1, -1).to(validity.device)


def _chunk_generator(seed: int, chunk: int) -> torch.Generator:
    """Of a chunk's own noise, so that a chunk made again alone is made the same; on the CPU, so that devices agree."""
    state = np.random.SeedSequence([seed % 2**64, chunk]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) % 2**63)


def _in_step(steps: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """`steps`, each handed on when the device is done with the one before it.

    Left alone, a program queues a whole chunk's work on a GPU in a moment: its progress would mean nothing, and a
    cancel would wait for all of it. One step ahead keeps the GPU busy between two.
    """
    if device.type != "cuda":
        yield from steps
        return
    before: torch.cuda.Event | None = None
    for latents in steps:
        done = torch.cuda.Event()
        done.record()
        if before is not None:
            before.synchronize()
        before = done
        yield latents
    if before is not None:
        before.synchronize()
