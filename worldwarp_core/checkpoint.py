"""The state that a shot goes on from, as plain arrays, and as a file without pickle.

The loop yields a `Checkpoint` wherever it could be taken up again: after each fit of the world ("fitted": everything
it holds), and once a chunk's frames exist ("made": what came since, to be laid over the fitted one before it). `join`
makes one of such a row; given to the engine as `resume`, the loop goes on there as if it had never stopped.

A file is NumPy's .npz, uncompressed, with a CRC-32 for each array; text and numbers are JSON in an array of bytes.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .atomic_write import atomic_write
from .errors import WorldWarpError

FORMAT = 2
_FACTS = "__facts__"
DTYPES = ("bool", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")


@dataclass(frozen=True)
class Checkpoint:
    """Where a shot can go on.

    Attributes:
        chunk: the chunk that was being made.
        stage: `fitted`, whole in itself, after the world was fitted; `made`, laid over the last fitted one, when the
            frames of `chunk` exist and the world does not hold them yet.
        frames: how many of the path's frames, from the first, exist now. With `made` they are final.
        arrays: name -> array, of any shape and of `DTYPES`.
        facts: what is no array, in JSON's types.
    """

    chunk: int
    stage: Literal["fitted", "made"]
    frames: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def join(row: Sequence[Checkpoint]) -> Checkpoint:
    """One checkpoint of a fitted one and those that were laid over it, oldest first."""
    assert [checkpoint.stage for checkpoint in row[:1]] == ["fitted"], row
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for checkpoint in row:
        arrays |= checkpoint.arrays
        facts |= checkpoint.facts
    return Checkpoint(row[-1].chunk, row[-1].stage, row[-1].frames, arrays, facts)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, whole or not at all, and waits until the disk has it.

    Raises:
        WorldWarpError: `cannot_write`.
    """
    for name, array in checkpoint.arrays.items():
        assert array.dtype.name in DTYPES, (name, array.dtype)
        assert name != _FACTS
    facts = {
        "format": FORMAT,
        "chunk": checkpoint.chunk,
        "stage": checkpoint.stage,
        "frames": checkpoint.frames,
        "facts": checkpoint.facts,
    }
    packed = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, **{_FACTS: packed}, **checkpoint.arrays)
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads what `write_checkpoint` wrote.

    Raises:
        WorldWarpError: `bad_checkpoint`, for a file that is damaged or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop(_FACTS).tobytes())
        if facts["format"] != FORMAT:
            raise ValueError(f"it is of version {facts['format']}")
        if not all(array.dtype.name in DTYPES for array in arrays.values()):
            raise ValueError("it holds other things than numbers")
        return Checkpoint(facts["chunk"], facts["stage"], facts["frames"], arrays, facts["facts"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise WorldWarpError("bad_checkpoint", f"The saved state {path} cannot be read: {error}.") from error
