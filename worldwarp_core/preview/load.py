"""The networks that ship in the package, ready to run: the engine `preview`.

Their weights are package data, `weights/*.safetensors` beside this module (see `weights.py` and MODEL_CARD.md). A
source checkout may be without them: then loading says so, and nothing untrained is ever run in their place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WorldWarpError
from ..loop.chunks import ChunkPlan
from ..spec import GenerateSpec, Notice
from ..st_diff.denoise import SamplerSettings
from ..st_diff.fill import FixedModels, StDiffFill, StDiffModels
from ..st_diff.noise_map import SMALL_PICTURES
from ..st_diff.presets import Preset
from ..transformer.prepare import TransformerOptions, WorldWarpTransformer
from .autoencoder import AutoencoderConfig, PreviewAutoencoder
from .depth import DepthNetwork, PreviewDepth
from .shipped import WEIGHTS, network_files
from .transformer import TEXT_DIM, make_transformer, no_text
from .weights import NetworkFile, load_state, read_network

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # A start sigma that is no node of the schedule is one step more: 8 passes a chunk.
        Preset("preview", 7, SamplerSettings(guidance=1.0), experimental=False),
    )
}
KEEPS_WHAT_IS_KNOWN = 0.35
"""Strength up to which the network makes use of its prior; above it, valid tokens start from little but noise."""
WORDS = ("prompt", "negative_prompt", "prompt_keys", "auto_prompt", "style_image")
"""Settings that say what to make in words or pictures: the networks were trained without."""


class PreviewFill(StDiffFill):
    """ST-Diff with the networks that ship."""

    name = "preview"
    strength = 0.2
    learned_steps: int | None = None
    """What its transformer was distilled for."""

    def prepare(self, spec: GenerateSpec, plans: Sequence[ChunkPlan]) -> Iterator[Notice]:
        yield from super().prepare(spec, plans)
        strength = self._strength(spec)
        if strength > KEEPS_WHAT_IS_KNOWN:
            yield Notice(
                "high_strength",
                f"At strength {strength:g} the small network loses sight of what is known, and pictures come out "
                f"soft. A strength of {self.strength:g} to {KEEPS_WHAT_IS_KNOWN:g} keeps it.",
            )
        steps, learned = self._preset(spec).steps, self.learned_steps
        if learned is not None and steps != learned:
            comes = "overdrawn" if steps > learned else "soft"
            yield Notice(
                "other_steps",
                f"The preview model learned to make a chunk in {learned} steps; in {steps}, what nobody has seen comes "
                f"out {comes}.",
            )
        given = [name.replace("_", " ") for name in WORDS if _is_given(getattr(spec, name))]
        if spec.guidance not in (None, 1.0):
            given.append("guidance")
        if given:
            change = "changes" if len(given) == 1 else "change"
            yield Notice(
                "no_effect", f"The preview model was trained without words: {', '.join(given)} {change} nothing."
            )


@dataclass(frozen=True)
class NoWords:
    """Every prompt is the same one to a model that was trained without."""

    device: torch.device
    text_dim: int = TEXT_DIM

    def embed(self, prompts: Sequence[str]) -> Tensor:
        return no_text(len(prompts), self.text_dim, self.device)


def load_fill(device: str = "cpu", folder: Path = WEIGHTS) -> PreviewFill:
    """Returns the learned fill.

    Raises:
        WorldWarpError: `no_weights` where the package came without them, `bad_weights` where they cannot be used.
    """
    fill = PreviewFill(load_models(device, folder), PRESETS, "preview", SMALL_PICTURES)
    fill.learned_steps = _read(folder, "transformer").progress.get("sampler_steps")
    return fill


def load_models(device: str = "cpu", folder: Path = WEIGHTS, options: TransformerOptions | None = None) -> FixedModels:
    """Returns what the learned fill is made of, its transformer run as `options` say.

    Raises:
        WorldWarpError: as `load_fill`.
    """
    there = torch.device(device)
    transformer = load_transformer(device, folder, options)
    words = NoWords(there, int(transformer.config["text_dim"]))
    models = StDiffModels(load_autoencoder(device, folder), transformer, words, there)
    # Its presets' few steps are what it learns: there is no longer schedule that they fall short of.
    return FixedModels(_in_words(folder), models, distilled=True)


def load_transformer(
    device: str = "cpu", folder: Path = WEIGHTS, options: TransformerOptions | None = None
) -> WorldWarpTransformer:
    """Returns the transformer alone, to be asked and not to learn, run as `options` say.

    Raises:
        WorldWarpError: as `load_fill`.
    """
    found, there = _read(folder, "transformer"), torch.device(device)
    try:
        transformer = make_transformer(found.config, options, found.state, there, _precision(there))
    except (RuntimeError, TypeError) as error:
        raise WorldWarpError("bad_weights", f"The transformer in {folder} cannot be built: {error}") from error
    return transformer.eval().requires_grad_(False)


def load_autoencoder(device: str = "cpu", folder: Path = WEIGHTS) -> PreviewAutoencoder:
    """Returns the autoencoder alone.

    Raises:
        WorldWarpError: as `load_fill`.
    """
    found = _read(folder, "autoencoder")
    try:
        config = AutoencoderConfig(**{name: _tuples(value) for name, value in found.config.items()})
    except TypeError as error:
        raise WorldWarpError("bad_weights", f"The preview's autoencoder cannot be built: {error}") from error
    network = PreviewAutoencoder(config)
    load_state(network, found, "autoencoder")
    there = torch.device(device)
    network.to(there)
    network.encoder.to(_precision(there))
    network.decoder.to(_precision(there))
    return network.eval().requires_grad_(False)


def load_depth(device: str = "cpu", folder: Path = WEIGHTS) -> PreviewDepth:
    """Returns the depth model for start frames without depth.

    Raises:
        WorldWarpError: as `load_fill`.
    """
    network = DepthNetwork()
    load_state(network, _read(folder, "depth"), "depth")
    return PreviewDepth(network.to(torch.device(device)).eval().requires_grad_(False))


def _read(folder: Path, name: str) -> NetworkFile:
    if not network_files(folder, name):
        raise WorldWarpError(
            "no_weights",
            f"This installation came without the preview's trained {name} (expected in {folder}). Train it "
            "(`worldwarp train`) and give its folder with --weights, or choose another engine: --engine cache needs no "
            "weights.",
        )
    return read_network(folder, name)


def _in_words(folder: Path) -> str:
    """How far the networks that make pictures were trained, and a mark that no others have."""
    found = [_read(folder, name) for name in ("transformer", "autoencoder")]
    told = json.dumps([[network.config, network.progress] for network in found], sort_keys=True)
    mark = hashlib.sha256(told.encode()).hexdigest()[:6]
    return f"trained for {found[0].progress.get('steps', 0):,} steps ({mark})"


def _precision(device: torch.device) -> torch.dtype:
    """Half precision does not help on CPUs of this kind of load."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and len(value) > 0 if hasattr(value, "__len__") else bool(value)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
