"""Weights of the preview networks on disk: safetensors in half precision, in files of at most 16 MB.

A network called `name` is `<name>.safetensors`, or `<name>-00001-of-00003.safetensors` and so on. Each file's metadata
says what it is: `format`, `network` (the name), `config` (the network's settings) and `progress` (steps, clips seen,
seconds of training, figures), the last two as JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .shipped import NAME, network_files

FORMAT = "worldwarp-preview-1"
FILE_BYTES = 15_000_000


@dataclass(frozen=True)
class NetworkFile:
    """What was read.

    Attributes:
        config: the network's settings, as it was saved with.
        state: float32 tensors.
        progress: how it was trained.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    progress: dict[str, Any]


def save_network(
    folder: Path, name: str, state: dict[str, Tensor], config: dict[str, Any], progress: dict[str, Any]
) -> list[Path]:
    """Writes a network's files, in the place of any that were there, and returns them."""
    groups: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, values in state.items():
        half = values.detach().to("cpu", torch.float16 if values.is_floating_point() else values.dtype).contiguous()
        if filled and filled + half.nbytes > FILE_BYTES:
            groups.append({})
            filled = 0
        groups[-1][key] = half
        filled += half.nbytes
    metadata = {"format": FORMAT, "network": name, "config": json.dumps(config), "progress": json.dumps(progress)}
    paths = []
    for part, group in enumerate(groups, 1):
        suffix = "" if len(groups) == 1 else f"-{part:05d}-of-{len(groups):05d}"
        path = folder / f"{name}{suffix}.safetensors"
        with atomic_write(path) as partial:
            save_file(group, partial, metadata)
        paths.append(path)
    for stale in network_files(folder, name):
        if stale not in paths:
            stale.unlink()
    return paths


def read_network(folder: Path, name: str) -> NetworkFile:
    """Reads a network's files.

    Raises:
        WorldWarpError: `no_weights` where there are none, `bad_weights` where they are not all there or not ours.
    """
    paths = network_files(folder, name)
    if not paths:
        raise WorldWarpError("no_weights", f"There are no weights of the preview network {name!r} in {folder}.")
    state: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as opened:
                metadata = opened.metadata() or {}
                state.update({key: _as_float(opened.get_tensor(key)) for key in opened.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WorldWarpError("bad_weights", f"{path} cannot be read as safetensors: {error}") from error
        if metadata.get("format") != FORMAT or metadata.get("network") != name:
            raise WorldWarpError(
                "bad_weights",
                f"{path} holds {metadata.get('network', 'an unknown network')!r} in the format "
                f"{metadata.get('format', 'unknown')!r}; expected {name!r} in {FORMAT!r}.",
            )
    match = NAME.match(paths[0].name)
    wanted = int(match["parts"]) if match and match["parts"] else 1
    if len(paths) != wanted:
        raise WorldWarpError("bad_weights", f"{folder} has {len(paths)} files of {name!r}; expected {wanted}.")
    try:
        config, progress = json.loads(metadata["config"]), json.loads(metadata["progress"])
    except (KeyError, ValueError) as error:
        raise WorldWarpError("bad_weights", f"{paths[-1]} does not say how its network is built.") from error
    return NetworkFile(config, state, progress)


def load_state(network: nn.Module, found: NetworkFile, name: str) -> None:
    """Puts what was read into `network`.

    Raises:
        WorldWarpError: `bad_weights` where names or shapes differ.
    """
    try:
        network.load_state_dict(found.state)
    except RuntimeError as error:
        raise WorldWarpError("bad_weights", f"The weights of {name!r} do not fit: {error}") from error


def _as_float(values: Tensor) -> Tensor:
    return values.float() if values.is_floating_point() else values
