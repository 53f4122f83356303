"""The models of the learned engines: which they are, where they are on this machine, and whether they are whole.

Models live in Hugging Face's own cache (`HF_HOME` moves it) or in folders that the user names. A manifest says what
each file must hash to: for a model from the Hub it is what the Hub states, kept beside the cache at the time of the
download; for a converted checkpoint it lies in the folder. Without a manifest the cache itself tells: it names each
file after its hash. Nothing here needs torch, and nothing goes to the network.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WorldWarpError, install_command
from .manifest import MANIFEST, Manifest, Progress, faults_in, read_manifest
from .shards import absent_shards

TRANSFORMER_CONFIG = "transformer/config.json"
WEIGHTS = ("*.safetensors", "*.json", "*.model", "*.txt")
"""What is fetched of a model: weights as safetensors, configurations, vocabularies. No pickle and no code."""


@dataclass(frozen=True)
class KnownModel:
    """A model that this program can use by a short name.

    Attributes:
        name: the short name.
        repo: its name on the Hub.
        purpose: what it does here.
        licence: as its authors state it, and what that forbids.
        gigabytes: about how much is fetched, 1e9 bytes.
        files: patterns of what is fetched.
        needs: files without which it is not there.
        checkpoint: the pickle among `files` that is converted to safetensors after the download; "" where none is.
    """

    name: str
    repo: str
    purpose: str
    licence: str
    gigabytes: float
    files: tuple[str, ...]
    needs: tuple[str, ...]
    checkpoint: str = ""


KNOWN = (
    KnownModel(
        "wan-1.3b",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "the video model: autoencoder, text encoder, and the transformer that makes a first frame from text",
        "Apache-2.0",
        28.9,
        WEIGHTS,
        ("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"),
    ),
    KnownModel(
        "worldwarp",
        "imsuperkong/worldwarp",
        "the fine-tuned transformer that fills in and revises; converted to safetensors after the download",
        "not stated by its authors",
        2.9,
        ("worldwarp_latest.ckpt",),
        ("worldwarp_latest.ckpt",),
        checkpoint="worldwarp_latest.ckpt",
    ),
    KnownModel(
        "qwen2.5-vl-7b",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "automatic prompts and style references",
        "Apache-2.0",
        16.6,
        WEIGHTS,
        ("config.json", "preprocessor_config.json"),
    ),
    KnownModel(
        "depth-anything-small",
        "depth-anything/Depth-Anything-V2-Small-hf",
        "depth of photographs (--depth-model), up to scale",
        "Apache-2.0",
        0.1,
        WEIGHTS,
        ("config.json", "preprocessor_config.json", "model.safetensors"),
    ),
    KnownModel(
        "depth-anything-large",
        "depth-anything/Depth-Anything-V2-Large-hf",
        "the same, better",
        "CC-BY-NC-4.0: not for commercial use",
        1.3,
        WEIGHTS,
        ("config.json", "preprocessor_config.json", "model.safetensors"),
    ),
    KnownModel(
        "depth-pro",
        "apple/DepthPro-hf",
        "depth of photographs in metres",
        "Apple ML research: not for commercial use",
        1.9,
        WEIGHTS,
        ("config.json", "preprocessor_config.json", "model.safetensors"),
    ),
)


@dataclass(frozen=True)
class HubName:
    """A model on the Hub: `owner/name`, with `@revision` where one is pinned."""

    repo: str
    revision: str | None = None

    @property
    def known(self) -> KnownModel | None:
        return next((model for model in KNOWN if model.repo == self.repo), None)

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.known.files if self.known else WEIGHTS

    @property
    def command(self) -> str:
        """The command that brings it here."""
        name = self.known.name if self.known else self.repo
        return f"worldwarp models download {name}{f'@{self.revision}' if self.revision else ''}"

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Verification:
    """What `verify` found: how many files were read, and those that are not what they should be."""

    folder: Path
    checked: int
    faults: tuple[str, ...] = ()


# ---------------------------------------------------------------- names and places


def hub_name(name: str) -> HubName | None:
    """The Hub's name for a short name or `owner/name`, either with `@revision`; None where it can be neither."""
    bare, _, revision = name.partition("@")
    known = next((model for model in KNOWN if model.name == bare), None)
    if known is None and not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", bare):
        return None
    if revision and not re.fullmatch(r"[\w][\w./-]*", revision):
        return None
    return HubName(known.repo if known else bare, revision or None)


def locate(name: str, *, what: str) -> Path:
    """Returns the folder of a model: one that the user names, else that of the Hub's cache.

    Args:
        name: a folder, a short name of `KNOWN`, or `owner/name`; the latter two with `@revision` where one is pinned.
        what: what it is for, in the messages ("the base model").

    Raises:
        WorldWarpError: `no_weights`, with the command that brings it.
    """
    if name and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    on_hub = hub_name(name)
    if on_hub is None:
        known = ", ".join(model.name for model in KNOWN)
        raise WorldWarpError(
            "no_weights",
            f"There is no folder {name!r} for {what}. Give a folder, owner/name on the Hub, or one of: {known}.",
        )
    folder = cached(on_hub)
    if folder is not None and on_hub.known and on_hub.known.checkpoint:
        folder = converted(on_hub, folder)
    if folder is None:
        raise WorldWarpError(
            "no_weights", f"{on_hub} ({what}) is not, or not wholly, on this machine. Run: {on_hub.command}"
        )
    return folder


def base_config(name: str) -> Path:
    """The `config.json` of a model's transformer: of a folder, of a model on the Hub that is here, or the file itself.

    Raises:
        WorldWarpError: `no_weights`, with the command that brings it.
    """
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        return path
    if path.is_dir():
        inner = path / "transformer" / "config.json"
        return inner if inner.is_file() else path / "config.json"
    on_hub = hub_name(name)
    found = hub().try_to_load_from_cache(on_hub.repo, TRANSFORMER_CONFIG, revision=on_hub.revision) if on_hub else None
    if not isinstance(found, str):
        what = f"Run: {on_hub.command}" if on_hub else "Give its folder or its config.json."
        raise WorldWarpError("no_weights", f"The transformer's configuration of {name} is not on this machine. {what}")
    return Path(found)


def cached(name: HubName) -> Path | None:
    """The model's folder in the Hub's cache; None where it is not there or not complete. Asks no network."""
    client = hub()
    try:
        folder = Path(
            client.snapshot_download(
                name.repo, revision=name.revision, local_files_only=True, allow_patterns=list(name.patterns)
            )
        )
    except (OSError, ValueError):
        return None
    needs = name.known.needs if name.known else ()
    return folder if all((folder / need).is_file() for need in needs) and not absent_shards(folder) else None


def converted(name: HubName, snapshot: Path) -> Path | None:
    """The safetensors made of the checkpoint in a snapshot; None where that has not been done."""
    folder = converted_folder(name, snapshot.name)
    return folder if (folder / MANIFEST).is_file() else None


def converted_folder(name: HubName, commit: str) -> Path:
    """Where the safetensors of a checkpoint from the Hub are kept; the folder need not be there yet."""
    from huggingface_hub import constants

    owner, _, repo = name.repo.partition("/")
    return Path(constants.HF_ASSETS_CACHE) / "worldwarp" / f"{owner}--{repo}" / f"converted-{commit}"


def identity(folder: Path) -> str:
    """A string that changes when the files of a model's folder do: what caches of its outputs are keyed by.

    Taken from the cache's own hashes where the folder is in it, else from names, sizes and times of change.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        stated = _hash_in_name(path)
        if stated is None:
            facts = path.stat()
            stated = f"{facts.st_size} {facts.st_mtime_ns}"
        digest.update(f"{path.relative_to(folder).as_posix()} {stated}\n".encode())
    return digest.hexdigest()


def hub() -> Any:
    """The Hub's client.

    Raises:
        WorldWarpError: `engine_not_installed`, with the command that brings it.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "engine_not_installed",
            f"Models are fetched by huggingface_hub, which is missing: {install_command('engine')}",
        ) from error
    return huggingface_hub


# ---------------------------------------------------------------- verifying


def verify(folder: Path, progress: Progress | None = None) -> Verification:
    """Reads every file of a model's folder and compares it with what it must hash to.

    Raises:
        WorldWarpError: `no_manifest` where nothing says what the files must be; `bad_manifest`.
    """
    manifest = _expected(folder)
    if manifest is None:
        raise WorldWarpError(
            "no_manifest",
            f"Nothing says what the files in {folder} must be: it has no {MANIFEST}, and it is not in the Hub's cache.",
        )
    faults = faults_in(folder, manifest, progress or (lambda what, share: None))
    return Verification(folder, len(manifest.files), tuple(f"{path} {why}" for path, why in faults.items()))


def _expected(folder: Path) -> Manifest | None:
    """The folder's manifest, else the one kept at its download, else what the cache's own names of the files say."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder / MANIFEST)
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        kept = manifest_beside_cache(HubName(repo), folder.name)
        if kept.is_file():
            return read_manifest(kept)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if stated := _hash_in_name(path):
            files[path.relative_to(folder).as_posix()] = (path.stat().st_size, stated)
    return Manifest(files) if files else None


def manifest_beside_cache(name: HubName, commit: str) -> Path:
    """Where the manifest of a model from the Hub is kept, as the Hub stated it at the download."""
    return converted_folder(name, commit).with_name(f"{commit}-{MANIFEST}")


def _hash_in_name(path: Path) -> str | None:
    """The hash after which the Hub's cache has named the file that `path` links to."""
    if not path.is_symlink():
        return None
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return f"sha256:{name}"
    return f"git-sha1:{name}" if re.fullmatch(r"[0-9a-f]{40}", name) else None


def bytes_of(folders: Sequence[Path]) -> int:
    """How much disk the files of some folders take, bytes."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
