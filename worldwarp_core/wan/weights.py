"""The Wan models of the learned fill: found by name or folder, checked, loaded; nothing is fetched.

`resolve_models` says which files; the `load_*` functions read them. Configurations are checked first (is it a Wan 2.1
text-to-video model at all?), then the header of every weight file (names and shapes), and only then tensors are read,
shard by shard and straight into their final type: peak memory is that of the model.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from ..errors import WorldWarpError
from ..model_files.convert import diffusers_names
from ..model_files.store import hub_name, identity, locate
from ..model_files.tensors import check_shapes, open_tensors, shapes_in, weight_files
from .loras import LoraFile, apply_loras

__all__ = [
    "LoraFile",
    "ModelFiles",
    "apply_loras",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "resolve_models",
]

STEM = "diffusion_pytorch_model"
TEXT_STEM = "model"
CONFIG_MAX_BYTES = 2**20

TRANSFORMER_CONFIG = {
    "_class_name": "WanTransformer3DModel",
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
"""What makes a transformer one of Wan's for text to video, of any size; the method's tokens are its 1x2x2 patches."""

VAE_CONFIG = {
    "_class_name": "AutoencoderKLWan",
    "temperal_downsample": [False, True, True],
    "is_residual": False,
    "patch_size": None,
    "in_channels": 3,
    "out_channels": 3,
}
"""What makes an autoencoder one of Wan 2.1's: x4 in time, x8 in space. (The misspelt key is the library's.)"""

VAE_LEVELS = 4


@dataclass(frozen=True)
class ModelFiles:
    """Where the models of one engine are; made by `resolve_models`.

    Attributes:
        base: folder in the layout of a Wan pipeline of diffusers.
        transformer: folder with `config.json` and safetensors, or one .safetensors file.
        transformer_config: its `config.json`; the base model's where `transformer` is a single file.
        names: what the user called the base model and the transformer, for `job.json`.
    """

    base: Path
    transformer: Path
    transformer_config: Path
    names: tuple[str, str]

    @property
    def vae(self) -> Path:
        return self.base / "vae"

    @property
    def text_encoder(self) -> Path:
        return self.base / "text_encoder"

    @property
    def tokenizer(self) -> Path:
        return self.base / "tokenizer"

    @property
    def scheduler(self) -> Path:
        return self.base / "scheduler"

    @property
    def text_identity(self) -> str:
        """Changes when tokenizer or text encoder do: the key of a cache of embeddings."""
        return f"{identity(self.tokenizer)}-{identity(self.text_encoder)}"


def resolve_models(base: str = "wan-1.3b", transformer: str | None = None) -> ModelFiles:
    """Finds the base model and the transformer, and checks by their configurations that they belong together.

    Args:
        base: a folder in diffusers' layout, a name on the Hub, or a short name of `model_files.store.KNOWN`; names with
            `@revision` where one is pinned.
        transformer: the same, or a single .safetensors file of the base's size; None takes the base's own.

    Raises:
        WorldWarpError: `no_weights` with the command that brings what is missing, `wrong_architecture`, `bad_weights`.
    """
    folder = locate(base, what="the base model")
    _check_pipeline(folder, base)
    path = folder / "transformer" if transformer is None else _find_transformer(transformer)
    config = (folder / "transformer" if path.is_file() else path) / "config.json"
    files = ModelFiles(folder, path, config, (base, transformer or base))
    _check_configs(files)
    if path.is_dir():
        weight_files(path, STEM)
    weight_files(files.vae, STEM)
    weight_files(files.text_encoder, TEXT_STEM)
    return files


def load_transformer(files: ModelFiles, dtype: torch.dtype = torch.bfloat16) -> WanTransformer3DModel:
    """The transformer on the CPU, in `dtype` but for what Wan keeps in float32 (time embedding, norms, modulation).

    Raises:
        WorldWarpError: `wrong_architecture`, `bad_weights`, `no_weights`.
    """
    single = files.transformer.is_file()
    paths = [files.transformer] if single else weight_files(files.transformer, STEM)
    return _assemble(WanTransformer3DModel, read_config(files.transformer_config), paths, dtype)


def load_vae(files: ModelFiles, dtype: torch.dtype = torch.bfloat16) -> AutoencoderKLWan:
    """The video autoencoder on the CPU, in `dtype`. Raises what `load_transformer` does."""
    return _assemble(AutoencoderKLWan, read_config(files.vae / "config.json"), weight_files(files.vae, STEM), dtype)


def load_text_encoder(files: ModelFiles, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
    """The tokenizer and the UMT5 encoder, the latter on the CPU in `dtype`.

    Raises:
        WorldWarpError: `wrong_architecture`, `bad_weights`, `no_weights`.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    shapes_in(weight_files(files.text_encoder, TEXT_STEM))  # unreadable files are named before the library meets them
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.tokenizer, local_files_only=True, trust_remote_code=False)
        loaded: Any = UMT5EncoderModel.from_pretrained(
            files.text_encoder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WorldWarpError(
            "bad_weights", f"Tokenizer or text encoder in {files.base} cannot be loaded: {first}"
        ) from error
    encoder, found = loaded
    wrong = {kind: names for kind, names in found.items() if names}
    if wrong:
        kinds = "; ".join(f"{kind.replace('_', ' ')}: {sorted(map(str, names))[0]}" for kind, names in wrong.items())
        raise WorldWarpError(
            "wrong_architecture", f"{files.text_encoder} is not the encoder of its config.json: {kinds}."
        )
    return tokenizer, encoder.eval()


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json` as it is.

    Raises:
        WorldWarpError: `no_weights` where it is not there, `bad_weights` where it is none.
    """
    try:
        if path.stat().st_size > CONFIG_MAX_BYTES:
            raise ValueError("it is too large")
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
        return config
    except FileNotFoundError as error:
        raise WorldWarpError("no_weights", f"There is no {path}; a model in diffusers' layout has one.") from error
    except (OSError, ValueError) as error:
        raise WorldWarpError("bad_weights", f"{path} is not a model's configuration: {error}.") from error


# ---------------------------------------------------------------- finding


def _find_transformer(name: str) -> Path:
    """The transformer's folder or .safetensors file."""
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise WorldWarpError(
                "bad_weights", f"{path} is not a .safetensors file. A checkpoint: worldwarp convert {path} OUT"
            )
        return path
    if not path.is_dir() and (hub_name(name) is None or path.suffix in (".safetensors", ".ckpt", ".pt", ".pth")):
        raise WorldWarpError(
            "no_weights", f"There is no {name}. Give a folder, a .safetensors file or a name on the Hub (owner/name)."
        )
    folder = locate(name, what="the transformer")
    inner = folder / "transformer"
    return inner if (inner / "config.json").is_file() else folder


def _check_pipeline(folder: Path, name: str) -> None:
    index = read_config(folder / "model_index.json")
    wrong = _differences(index, {"_class_name": "WanPipeline"})
    if (index.get("transformer_2") or [None])[0] is not None:
        wrong.append("it has a second transformer (Wan 2.2), where one is expected")
    if wrong:
        raise WorldWarpError("wrong_architecture", f"{name} is no Wan 2.1 text-to-video model: {'; '.join(wrong)}.")


def _check_configs(files: ModelFiles) -> None:
    vae = _completed(AutoencoderKLWan, read_config(files.vae / "config.json"))
    transformer = _completed(WanTransformer3DModel, read_config(files.transformer_config))
    text = read_config(files.text_encoder / "config.json")
    wrong_vae = _differences(vae, VAE_CONFIG)
    if len(vae["dim_mult"]) != VAE_LEVELS:
        wrong_vae.append(f"dim_mult is {vae['dim_mult']}, expected {VAE_LEVELS} levels")
    channels = {"in_channels": vae["z_dim"], "out_channels": vae["z_dim"]}
    wrong_transformer = _differences(transformer, TRANSFORMER_CONFIG | channels | {"text_dim": text.get("d_model")})
    wrong_text = _differences(text, {"model_type": "umt5"})
    for path, wrong in (
        (files.vae, wrong_vae),
        (files.text_encoder, wrong_text),
        (files.transformer_config.parent, wrong_transformer),
    ):
        if wrong:
            raise WorldWarpError(
                "wrong_architecture", f"{path} is of another architecture than Wan 2.1's: {'; '.join(wrong)}."
            )


def _completed(model_class: Any, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the class's own values for what it leaves out: published ones are older than the class."""
    parameters = inspect.signature(model_class.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in (defaults | config).items()}


def _differences(config: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [
        f"{key} is {config.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if config.get(key) != value
    ]


# ---------------------------------------------------------------- loading


def _assemble(model_class: Any, config: dict[str, Any], paths: list[Path], dtype: torch.dtype) -> Any:
    """A model of diffusers, of its configuration and files, in `dtype` but for what its class keeps in float32."""
    try:
        with init_empty_weights(include_buffers=False):
            model = model_class.from_config(config)
    except (TypeError, ValueError, KeyError) as error:
        raise WorldWarpError(
            "bad_weights", f"No {model_class.__name__} can be made of the configuration beside {paths[0]}: {error}"
        ) from error
    found = shapes_in(paths)
    names = diffusers_names(found) if model_class is WanTransformer3DModel else {name: name for name in found}
    source = str(paths[0] if len(paths) == 1 else paths[0].parent)
    check_shapes(
        {names[name]: shape for name, shape in found.items()},
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        source,
    )
    kept = set(model_class._keep_in_fp32_modules or ())

    def cast(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            raise WorldWarpError("bad_weights", f"{name} in {source} is {tensor.dtype}; weights are floating point.")
        return tensor.to(torch.float32 if kept & set(name.split(".")) else dtype)

    for path in paths:
        with open_tensors(path) as reader:
            tensors = {names[name]: cast(name, reader.get_tensor(name)) for name in reader.keys()}  # noqa: SIM118
        model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval()
