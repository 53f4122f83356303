"""A transformer out of a training checkpoint: read without running anything in it, checked, written as safetensors.

A checkpoint is a pickle, and a pickle can run code when it is read. It is read with torch's restricted reader alone,
which knows tensors and plain containers; one that holds anything else is refused, unread. What comes out is a folder in
diffusers' layout with a manifest of hashes, whole or not there.
"""

from __future__ import annotations

import errno
import json
import pickle
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from torch import Tensor

from ..errors import WorldWarpError
from .manifest import MANIFEST, Manifest, Progress, hash_file, write_manifest
from .tensors import check_shapes, open_tensors

CONVERTER_VERSION = 1
PATTERN = "diffusion_pytorch_model{suffix}.safetensors"
MAX_SHARD = "10GB"
MARKER = "patch_embedding.weight"
"""A tensor that every Wan transformer has under this name, in diffusers' naming as in the original one."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing leave in the names of a model that they have wrapped."""

ZIP, PICKLE = b"PK", b"\x80"
"""How torch's files begin: the present format, and the one before."""

MAX_NESTING = 5
OTHER_WANS = ("face_adapter", "motion_encoder")
"""Parts of Wan-Animate, whose conversion changes tensors and not names alone."""


@dataclass(frozen=True)
class Converted:
    """What a conversion made: the folder, the file's hash, which part of the file was taken, how much it is."""

    folder: Path
    source_hash: str
    taken: str
    tensors: int
    bytes: int


def convert_checkpoint(
    source: Path,
    out: Path,
    base_config: Path,
    *,
    take: str | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Writes the transformer in a checkpoint to the folder `out`, bit for bit as it is, in diffusers' layout.

    Names may be diffusers' or the original Wan's, with the prefixes that trainers leave; every name and shape is
    checked against the configuration. The file is mapped, not read into memory, where its format allows that.

    Args:
        source: .ckpt, .pt, .pth or .bin of torch, or a .safetensors file.
        out: a folder that is not there yet, or empty.
        base_config: `config.json` of the transformer that it was trained from.
        take: which of several transformers in the file, by the name that the error says ("ema").
        progress: told what is being done.

    Raises:
        WorldWarpError: `no_checkpoint`, `unsafe_checkpoint` (it holds code; nothing of it was run), `bad_checkpoint`
            (cut short, no checkpoint, no transformer in it, not finite), `ambiguous_checkpoint`, `wrong_architecture`,
            `bad_weights`, `folder_in_use`, `disk_full`, `cannot_write`.
    """
    say = progress or (lambda what, share: None)
    if not source.is_file():
        raise WorldWarpError("no_checkpoint", f"There is no file {source}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WorldWarpError("folder_in_use", f"{out} is there already. Give a folder that is not, or delete it.")
    model = _empty_transformer(base_config)
    say("reading the checkpoint", 0.0)
    taken, tensors = _choose(source, _read(source), take)
    names = diffusers_names(tensors)
    tensors = {names[name]: tensor for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected, str(source))
    tensors = _writable(tensors, source, say)
    source_hash = _hash(source, "hashing the checkpoint", say)
    size = sum(tensor.nbytes for tensor in tensors.values())
    partial = out.with_name(f".{out.name}-{uuid.uuid4().hex[:12]}")
    try:
        partial.mkdir(parents=True)
        _check_space(partial, size)
        say("writing safetensors", 0.0)
        _write(model, tensors, partial, source, source_hash, say)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot_write"
        raise WorldWarpError(code, f"Cannot write {out}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Converted(out, source_hash, taken, len(tensors), size)


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """By name of a tensor in a file, the name that diffusers has for it; names of nothing in a Wan transformer stay.

    Undoes wrappers, one common prefix, and the original Wan's naming.

    Raises:
        WorldWarpError: `bad_weights`, where two tensors come out with one name.
    """
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    plain = {name: _unwrapped(name) for name in names}
    prefixes = {name.removesuffix(MARKER) for name in plain.values() if name.endswith(MARKER)}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    plain = {name: bare.removeprefix(prefix) for name, bare in plain.items()}
    original = any(".self_attn." in bare for bare in plain.values())
    if original and not any(other in bare for bare in plain.values() for other in OTHER_WANS):
        # The library's conversion renames the keys of a dictionary whatever its values are: here, the names themselves.
        converted = convert_wan_transformer_to_diffusers({bare: bare for bare in plain.values()})
        renamed = {bare: new for new, bare in converted.items()}
        plain = {name: renamed.get(bare, bare) for name, bare in plain.items()}
    if len(set(plain.values())) < len(plain):
        twice = next(bare for bare in plain.values() if list(plain.values()).count(bare) > 1)
        raise WorldWarpError("bad_weights", f"Two tensors in the file are both {twice} of the transformer.")
    return plain


# ---------------------------------------------------------------- reading


def _read(source: Path) -> Mapping[Any, Any]:
    """What a checkpoint holds: tensors and plain containers, nothing else."""
    with source.open("rb") as file:
        start = file.read(16)
    if source.suffix == ".safetensors" or start[8:9] == b"{":
        with open_tensors(source) as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    if not start.startswith((ZIP, PICKLE)):
        raise WorldWarpError("bad_checkpoint", f"{source} is no checkpoint of torch, nor a safetensors file.")
    try:
        # Only the zip format can be mapped; an older one is read into memory.
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=start.startswith(ZIP))
    except pickle.UnpicklingError as error:
        # What torch's reader says of something it does not allow, by name where it has one.
        refused = re.search(r"[Uu]nsupported|GLOBAL|not allowed|[Tt]rying to", str(error))
        if refused is None:
            raise WorldWarpError("bad_checkpoint", f"{source} is no checkpoint of torch, or damaged.") from error
        named = re.search(r"(?:GLOBAL|global:|call|load) ([\w]+(?:\.[\w]+)+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise WorldWarpError(
            "unsafe_checkpoint",
            f"{source} holds more than tensors{what}: reading it could run a program hidden in it. It was refused, and "
            "nothing of it was run. Ask for the weights as .safetensors, or as a plain state dict.",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, IndexError, OSError) as error:
        # What torch raises for a file that is cut short.
        raise WorldWarpError(
            "bad_checkpoint",
            f"{source} ({source.stat().st_size} bytes) is cut short, or no checkpoint of torch: fetch it again.",
        ) from error
    if not isinstance(found, Mapping):
        raise WorldWarpError("bad_checkpoint", f"{source} holds a {type(found).__name__}, not a model's state dict.")
    return found


def _choose(source: Path, tree: Mapping[Any, Any], take: str | None) -> tuple[str, dict[str, Tensor]]:
    """The transformer's tensors among what the file holds, and where they were."""
    found = dict(_transformers(tree))
    listed = ", ".join(repr(label) for label in sorted(found))
    if not found:
        raise WorldWarpError("bad_checkpoint", f"{source} holds no Wan transformer: nothing in it is called {MARKER}.")
    if take is not None:
        if take not in found:
            raise WorldWarpError("ambiguous_checkpoint", f"{source} holds no {take!r}; it holds {listed}.")
        return take, found[take]
    if len(found) > 1:
        raise WorldWarpError(
            "ambiguous_checkpoint", f"{source} holds several transformers: {listed}. Choose one with --take."
        )
    return next(iter(found.items()))


def _transformers(tree: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every set of tensors in a tree of dictionaries that has the marker, with its path as a dotted name."""
    tensors = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, Tensor)}
    prefixes = {name.removesuffix(MARKER) for name in tensors if name.endswith(MARKER)}
    for prefix in prefixes:
        deeper = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        yield (
            ".".join((*path, *filter(None, prefix.split(".")))) or "the whole file",
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and not (deeper and name.startswith(deeper))
            },
        )
    if len(path) < MAX_NESTING:
        for name, value in tree.items():
            if isinstance(value, Mapping):
                yield from _transformers(value, (*path, str(name)))


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _empty_transformer(config: Path) -> Any:
    """The transformer of a configuration, without its weights."""
    try:
        with init_empty_weights():
            return WanTransformer3DModel.from_config(dict(json.loads(config.read_text("utf-8"))))
    except FileNotFoundError as error:
        raise WorldWarpError("no_weights", f"There is no {config}, the configuration of the transformer.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WorldWarpError("bad_weights", f"{config} is no configuration of a Wan transformer: {error}.") from error


# ---------------------------------------------------------------- writing


def _writable(tensors: dict[str, Tensor], source: Path, say: Progress) -> dict[str, Tensor]:
    """The tensors with storage of their own each, as safetensors writes them; all floating point and finite."""
    out: dict[str, Tensor] = {}
    stored: set[int] = set()
    for done, (name, tensor) in enumerate(sorted(tensors.items())):
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise WorldWarpError("bad_checkpoint", f"{name} in {source} is {tensor.dtype}; weights are floating point.")
        if not torch.isfinite(tensor).all():
            raise WorldWarpError("bad_checkpoint", f"{name} in {source} is not finite: the training had gone wrong.")
        tensor = tensor.detach().contiguous()
        if tensor.data_ptr() in stored or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        stored.add(tensor.data_ptr())
        out[name] = tensor
        say("checking", (done + 1) / len(tensors))
    return out


def _write(
    model: Any,
    tensors: dict[str, Tensor],
    folder: Path,
    source: Path,
    source_hash: str,
    say: Progress,
) -> None:
    from huggingface_hub import save_torch_state_dict

    facts = {"source": source.name, "source_hash": source_hash, "converter": f"worldwarp {CONVERTER_VERSION}"}
    model.save_config(folder)
    save_torch_state_dict(
        tensors,
        folder,
        filename_pattern=PATTERN,
        max_shard_size=MAX_SHARD,
        metadata={f"worldwarp_{name}": value for name, value in facts.items()},
    )
    for path in folder.iterdir():
        shutil.copymode(folder / "config.json", path)  # safetensors writes for its owner alone
    files = {
        path.name: (path.stat().st_size, _hash(path, "hashing what was written", say)) for path in folder.iterdir()
    }
    write_manifest(folder / MANIFEST, Manifest(files, facts))


def _hash(path: Path, what: str, say: Progress) -> str:
    done, size = 0, max(path.stat().st_size, 1)

    def count(n: int) -> None:
        nonlocal done
        done += n
        say(what, done / size)

    return hash_file(path, on_bytes=count)


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise WorldWarpError(
            "disk_full", f"The weights need {size / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} GB are free."
        )
