"""LoRA files of Wan's transformer, fused into its weights: afterwards it is the stock model again, and no slower.

Files may be diffusers' own, peft's adapters (with their `adapter_config.json`), or of the original Wan's naming
(ComfyUI, kohya's musubi-tuner, DiffSynth); diffusers turns those into its own. Every file is checked before any
of them touches the transformer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor

from ..errors import WorldWarpError
from ..model_files.tensors import open_tensors

ADAPTER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What a folder with a LoRA in it calls its weights: peft, diffusers."""

METADATA = "lora_adapter_metadata"
"""Where diffusers keeps an adapter's settings in the header of its file, as JSON."""

MAX_SCALE = 10.0
NOT_LORA = {
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "a LoRA of embeddings",
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA: a .safetensors file or peft's folder, and how strongly it counts (1 as trained, 0 not at all)."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and abs(self.scale) <= MAX_SCALE):
            raise WorldWarpError(
                "bad_settings",
                f"The scale of {self.path} is {self.scale}; give one from -{MAX_SCALE:g} to {MAX_SCALE:g}.",
            )


@torch.no_grad()
def apply_loras(transformer: WanTransformer3DModel, loras: Sequence[LoraFile]) -> None:
    """Adds LoRAs, each times its scale, to the transformer's weights. All of them or, on any error, none (to rounding).

    Raises:
        WorldWarpError: `no_weights`, `bad_weights` (an unreadable file), `bad_lora` (no LoRA, of another architecture,
            or of a kind that is not read).
    """
    model: Any = transformer
    read = [_checked(lora.path, model) for lora in loras]
    names = [f"lora_{number}" for number in range(len(read))]
    if not read:
        return
    try:
        for name, tensors in zip(names, read, strict=True):
            model.load_lora_adapter(tensors, prefix="transformer", adapter_name=name)
        model.set_adapters(names, [lora.scale for lora in loras])
        try:
            model.fuse_lora(safe_fusing=True, adapter_names=names)
        except BaseException:
            model.unfuse_lora()  # the layers that it has reached
            raise
    finally:
        # What has been fused stays in the weights; what has not is gone.
        model.unload_lora()


def _checked(path: Path, transformer: Any) -> dict[str, Tensor]:
    """The tensors of a LoRA under diffusers' names, each of which fits a layer of the transformer."""
    file = _file_of(path)
    with open_tensors(file) as reader:
        tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        settings = _settings(file, reader.metadata() or {})
    for sign, kind in NOT_LORA.items():
        if any(sign in name for name in tensors):
            raise WorldWarpError("bad_lora", f"{file} holds {kind}, which is not read: give a plain LoRA.")
    if not any("lora" in name for name in tensors):
        raise WorldWarpError("bad_lora", f"{file} holds no LoRA: nothing in it is named so.")
    named = _with_prefix(tensors)
    try:
        converted = WanPipeline.lora_state_dict(named)
    except Exception as error:
        # diffusers' converters look names up as they go, and fail in whatever way a name that is not there makes them.
        raise _other_architecture(file, "its names are not those of Wan's layers") from error
    if settings:
        converted = _scaled(converted, settings, file)
    _check_fit(converted, transformer, file)
    return converted


def _file_of(path: Path) -> Path:
    if path.is_dir():
        for name in ADAPTER_FILES:
            if (path / name).is_file():
                return path / name
        raise WorldWarpError("no_weights", f"{path} holds no LoRA: none of {', '.join(ADAPTER_FILES)} is there.")
    return path


def _with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the prefix by which diffusers tells whose names they are, where the file leaves it out."""
    bare = {re.sub(r"^base_model\.model\.|\.default(?=\.weight$|\.bias$)", "", name): t for name, t in tensors.items()}
    if any(name.startswith(("transformer.", "diffusion_model.", "lora_unet_")) for name in bare):
        return bare
    original = any(".self_attn." in name or ".cross_attn." in name or ".ffn.0." in name for name in bare)
    return {f"{'diffusion_model' if original else 'transformer'}.{name}": tensor for name, tensor in bare.items()}


def _settings(file: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """How the adapter was made, by the file's header (diffusers) or the file beside it (peft); {} where neither is."""
    beside = file.with_name("adapter_config.json")
    try:
        if METADATA in header:
            found = json.loads(header[METADATA])
            return {str(key).removeprefix("transformer."): value for key, value in found.items()}
        return dict(json.loads(beside.read_text("utf-8"))) if beside.is_file() else {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WorldWarpError("bad_lora", f"The settings of the LoRA {file} cannot be read: {error}.") from error


def _scaled(tensors: dict[str, Tensor], settings: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """The tensors with alpha / rank in them. Nothing else of an adapter's settings is used: they come from outside."""
    if settings.get("use_dora"):
        raise WorldWarpError("bad_lora", f"{file} holds DoRA, which is not read: give a plain LoRA.")
    if settings.get("alpha_pattern"):
        raise WorldWarpError("bad_lora", f"{file} has an alpha of its own for some layers, which is not read.")
    alpha, root = settings.get("lora_alpha"), bool(settings.get("use_rslora"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise WorldWarpError("bad_lora", f"The settings of the LoRA {file} give lora_alpha as {alpha!r}, no number.")
    scaled = dict(tensors)
    for name in tensors:
        if name.endswith(".lora_B.weight"):
            rank = tensors[name].shape[1]
            scaled[name] = tensors[name] * (alpha / (math.sqrt(rank) if root else rank))
    return scaled


def _check_fit(tensors: Mapping[str, Tensor], transformer: Any, file: Path) -> None:
    layers: dict[str, Any] = dict(transformer.named_modules())
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"transformer\.(.+)\.(lora_[AB]\.(?:weight|bias))", name)
        if found is None or not isinstance(layers.get(found[1]), torch.nn.Linear):
            raise _other_architecture(file, f"the transformer has no linear layer for {name}")
        if not (tensor.is_floating_point() and torch.isfinite(tensor).all()):
            raise WorldWarpError("bad_lora", f"{name} in {file} is not made of finite floating point numbers.")
        by_layer.setdefault(found[1], {})[found[2]] = tensor
    for name, parts in by_layer.items():
        layer = layers[name]
        down, up = parts.get("lora_A.weight"), parts.get("lora_B.weight")
        if down is None or up is None:
            raise WorldWarpError("bad_lora", f"{file} is not whole: half of the LoRA of {name} is missing.")
        got = (*down.shape, *up.shape)
        if len(got) != 4 or got[0] != got[3] or (got[1], got[2]) != (layer.in_features, layer.out_features):
            raise _other_architecture(
                file,
                f"its LoRA of {name} is for {down.shape[-1]} inputs and {up.shape[0]} outputs, the transformer's "
                f"layer has {layer.in_features} and {layer.out_features}",
            )


def _other_architecture(file: Path, why: str) -> WorldWarpError:
    return WorldWarpError("bad_lora", f"{file} is a LoRA of another architecture than this transformer: {why}.")
