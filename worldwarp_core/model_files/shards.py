"""Weights that lie in several files: which files an index lists, and which of them are not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import WorldWarpError


def absent_shards(folder: Path) -> list[str]:
    """Weight files that an index anywhere in `folder` names and that are not there, relative to `folder`."""
    absent = []
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        for shard in shards_of(index):
            if not shard.is_file():
                absent.append(shard.relative_to(folder).as_posix())
    return absent


def shards_of(index: Path) -> list[Path]:
    """The files, in `index`'s own folder, that a `*.safetensors.index.json` lists.

    Raises:
        WorldWarpError: `bad_weights` where it is no such index, or names a file outside of its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        if not all(isinstance(name, str) and re.fullmatch(r"[\w][\w.-]*\.safetensors", name) for name in names):
            raise ValueError("it names something that is no .safetensors file beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorldWarpError("bad_weights", f"{index} is not an index of weight files: {error}.") from error
    return [index.parent / name for name in names]
