"""What lies in safetensors files, and whether it is what a model expects; the header is read before any tensor is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import WorldWarpError
from .shards import shards_of

Shapes = dict[str, tuple[int, ...]]
"""The shape of every tensor by its name."""

NAMED = 3
"""Tensors that a message names of each kind; the others are counted."""


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Yields safetensors' reader of a file; tensors it hands out are views of the mapped file, on the CPU.

    Raises:
        WorldWarpError: `no_weights` where the file is not there, `bad_weights` where it is cut short, is a pickle, or
            is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as reader:
            yield reader
    except FileNotFoundError as error:
        raise WorldWarpError("no_weights", f"There is no file {path}.") from error
    except (SafetensorError, OSError) as error:
        raise WorldWarpError("bad_weights", _why_unreadable(path, error)) from error


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a model in `folder`: `stem`.safetensors, or the shards that its index lists.

    Raises:
        WorldWarpError: `no_weights`, naming what is missing; `bad_weights` for an index that is none.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        also = f" (only {pickles[0]}, a pickle, which is not read)" if pickles else ""
        raise WorldWarpError("no_weights", f"{folder} holds no {single.name}{also}.")
    files = shards_of(index)
    if absent := [file.name for file in files if not file.is_file()]:
        raise WorldWarpError("no_weights", f"{folder} is not complete: {', '.join(absent)} missing.")
    return files


def shapes_in(files: list[Path]) -> Shapes:
    """The shapes of all tensors in some files; raises what `open_tensors` does."""
    shapes: Shapes = {}
    for file in files:
        with open_tensors(file) as reader:
            shapes |= {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118 - no mapping
    return shapes


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Compares the tensors of `source` with those that a model has.

    Raises:
        WorldWarpError: `wrong_architecture`, where shapes differ or where tensors are both missing and left over;
            `bad_weights`, where some are only missing or only left over.
    """
    differ = [
        f"{name} is {_size(found[name])}, expected {_size(expected[name])}"
        for name in sorted(found.keys() & expected.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if not (differ or missing or extra):
        return
    kinds = (("of another shape", differ), ("missing", missing), ("not of this model", extra))
    what = "; ".join(f"{len(names)} {kind}: {_few(names)}" for kind, names in kinds if names)
    other = bool(differ) or (bool(missing) and bool(extra))
    fault = "is of another architecture" if other else "is not whole" if missing else "holds more than the model"
    raise WorldWarpError(
        "wrong_architecture" if other else "bad_weights", f"{source} {fault}, of {len(expected)} tensors: {what}."
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _why_unreadable(path: Path, error: BaseException) -> str:
    if path.is_dir():
        return f"{path} is a folder, not a .safetensors file."
    with path.open("rb") as file:
        start = file.read(8)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return f"{path} is a pickle, which is not read as weights. Convert it first: worldwarp convert {path} OUT"
    if any(sign in str(error) for sign in ("not fully covered", "invalid header length", "header too small")):
        return f"{path} is cut short or damaged ({path.stat().st_size} bytes): fetch or copy it again."
    return f"{path} is not a safetensors file: {error}."
