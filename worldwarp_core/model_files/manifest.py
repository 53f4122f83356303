"""What the files of a folder must be, kept beside them as JSON, and whether they are that."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..atomic_write import atomic_write
from ..errors import WorldWarpError

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, in [0, 1]."""

MANIFEST = "worldwarp-manifest.json"
MANIFEST_FORMAT = 1
MANIFEST_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Manifest:
    """What the files of a folder must be: by path, bytes and hash (`sha256:...` or, as git has it, `git-sha1:...`)."""

    files: dict[str, tuple[int, str]]
    source: dict[str, Any] = field(default_factory=dict)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest as JSON."""
    record = {
        "format": MANIFEST_FORMAT,
        "source": manifest.source,
        "files": {name: {"size": size, "hash": hash_} for name, (size, hash_) in sorted(manifest.files.items())},
    }
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest.

    Raises:
        WorldWarpError: `bad_manifest`, where it is none, or names a file outside of its folder.
    """
    try:
        if path.stat().st_size > MANIFEST_MAX_BYTES:
            raise ValueError("it is too large")
        record = json.loads(path.read_text("utf-8"))
        if record["format"] != MANIFEST_FORMAT:
            raise ValueError(f"format {record['format']} instead of {MANIFEST_FORMAT}")
        files = {str(name): (int(entry["size"]), str(entry["hash"])) for name, entry in record["files"].items()}
        for name, (_, hash_) in files.items():
            parts = PurePosixPath(name).parts
            if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or ":" in name:
                raise ValueError(f"it names {name!r}, which is not in its folder")
            if not re.fullmatch(r"sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}", hash_):
                raise ValueError(f"{hash_!r} is no hash")
        return Manifest(files, dict(record["source"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorldWarpError("bad_manifest", f"{path} is not a manifest of this program: {error}.") from error


def hash_file(path: Path, kind: str = "sha256", on_bytes: Callable[[int], None] | None = None) -> str:
    """`kind:` and the hash of a file: `sha256`, or `git-sha1`, the name that git gives to a file's contents."""
    digest: Any = hashlib.sha256()
    if kind == "git-sha1":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return f"{kind}:{digest.hexdigest()}"


def faults_in(folder: Path, manifest: Manifest, say: Progress) -> dict[str, str]:
    """By path, what is wrong with each of the files that `folder` should hold; `say` hears how far the reading is."""
    total, done = sum(size for size, _ in manifest.files.values()), 0

    def count(n: int) -> None:
        nonlocal done
        done += n
        say(f"verifying {folder.name[:12]}", min(1.0, done / max(total, 1)))

    faults = {}
    for name, (size, stated) in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            faults[name] = "is missing"
        elif path.stat().st_size != size:
            faults[name] = f"has {path.stat().st_size} bytes instead of {size}"
        elif (got := hash_file(path, stated.partition(":")[0], count)) != stated:
            faults[name] = f"hashes to {got} instead of {stated}"
    return faults
