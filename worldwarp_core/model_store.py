"""The models of the learned engines: which they are, where they are on this machine, and whether they are whole.

Models live in Hugging Face's own cache (`HF_HOME` moves it) or in folders that the user names. A manifest says what
each file must hash to: for a model from the Hub it is what the Hub states, kept beside the cache at the time of the
download; for a converted checkpoint it lies in the folder. Without a manifest the cache itself tells: it names each
file after its hash. Nothing here needs torch, and nothing goes to the network but `download`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .atomic_write import atomic_write
from .errors import WorldWarpError, install_command

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, in [0, 1]."""

MANIFEST = "worldwarp-manifest.json"
MANIFEST_FORMAT = 1
MANIFEST_MAX_BYTES = 16 * 2**20
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


@dataclass(frozen=True)
class Manifest:
    """What the files of a folder must be: by path, bytes and hash (`sha256:...` or, as git has it, `git-sha1:...`)."""

    files: dict[str, tuple[int, str]]
    source: dict[str, Any] = field(default_factory=dict)


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


def locate(name: str, *, what: str, fetch: bool = False, progress: Progress | None = None) -> Path:
    """Returns the folder of a model: one that the user names, else that of the Hub's cache.

    Args:
        name: a folder, a short name of `KNOWN`, or `owner/name`; the latter two with `@revision` where one is pinned.
        what: what it is for, in the messages ("the base model").
        fetch: download it where it is not here.

    Raises:
        WorldWarpError: `no_weights`, with the command that brings it; what `download` raises.
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
        if fetch:
            return download(on_hub, progress)
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
    found = _hub().try_to_load_from_cache(on_hub.repo, TRANSFORMER_CONFIG, revision=on_hub.revision) if on_hub else None
    if not isinstance(found, str):
        what = f"Run: {on_hub.command}" if on_hub else "Give its folder or its config.json."
        raise WorldWarpError("no_weights", f"The transformer's configuration of {name} is not on this machine. {what}")
    return Path(found)


def cached(name: HubName) -> Path | None:
    """The model's folder in the Hub's cache; None where it is not there or not complete. Asks no network."""
    hub = _hub()
    try:
        folder = Path(
            hub.snapshot_download(
                name.repo, revision=name.revision, local_files_only=True, allow_patterns=list(name.patterns)
            )
        )
    except (OSError, ValueError):
        return None
    needs = name.known.needs if name.known else ()
    return folder if all((folder / need).is_file() for need in needs) and not absent_shards(folder) else None


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


# ---------------------------------------------------------------- fetching


def download(name: HubName, progress: Progress | None = None) -> Path:
    """Returns the model's folder, fetched, and every file of it checked against the hash that the Hub states.

    What is here already is not fetched again, what was cut off goes on; a file that is not what it should be is fetched
    anew. A checkpoint that is a pickle is converted (worldwarp_core.checkpoints), and the converted folder is returned.

    Raises:
        WorldWarpError: `download_failed` (no connection, no such model, no access), `disk_full`, `bad_weights`, and
            what the conversion raises.
    """
    hub, say = _hub(), progress or (lambda what, share: None)
    api, known = hub.HfApi(), name.known
    with _hub_errors(name):
        wanted = hub.snapshot_download(
            name.repo,
            revision=name.revision,
            allow_patterns=list(name.patterns),
            dry_run=True,
            tqdm_class=_bar(lambda done: None),
        )
        if not wanted:
            raise WorldWarpError("download_failed", f"{name} on the Hub has no weights that can be used.")
        to_come = sum(file.file_size for file in wanted if file.will_download)
        _check_space(name, to_come)
        folder = Path(
            hub.snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=list(name.patterns),
                tqdm_class=_bar(lambda done: say(f"fetching {name}", min(1.0, done / max(to_come, 1)))),
            )
        )
        commit = folder.name
        paths = {file.filename for file in wanted}
        stated = {
            file.path: (file.size, f"sha256:{file.lfs.sha256}" if file.lfs else f"git-sha1:{file.blob_id}")
            for file in api.list_repo_tree(name.repo, recursive=True, revision=commit)
            if file.path in paths
        }
        manifest = Manifest(stated, {"repo": name.repo, "revision": commit})
        write_manifest(_manifest_beside_cache(name, commit), manifest)
        for path in _faults(folder, manifest, say):
            hub.hf_hub_download(name.repo, path, revision=commit, force_download=True)
    if faults := _faults(folder, manifest, say):
        raise WorldWarpError(
            "bad_weights",
            f"{', '.join(faults)} of {name} do not have the hash that the Hub states, though fetched anew. Something "
            "between the Hub and this disk changes files: try another connection or disk.",
        )
    if known and known.checkpoint:
        return _convert(name, known, folder, say)
    return folder


def _convert(name: HubName, known: KnownModel, folder: Path, say: Progress) -> Path:
    """The safetensors folder of the checkpoint in `folder`, made where it is not there."""
    out = converted_folder(name, folder.name)
    if converted(name, folder) and not _faults(out, read_manifest(out / MANIFEST), say):
        return out
    shutil.rmtree(out, ignore_errors=True)  # what is there is not whole
    try:
        from .checkpoints import convert_checkpoint
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "engine_not_installed",
            f"{known.checkpoint} is here; converting it needs {error.name!r}, which is not installed: "
            f"{install_command('engine')}",
        ) from error
    with _hub_errors(name):
        config = Path(_hub().hf_hub_download(KNOWN[0].repo, TRANSFORMER_CONFIG))
    convert_checkpoint(folder / known.checkpoint, out, config, progress=say)
    return out


def _check_space(name: HubName, to_come: int) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if to_come > free:
        raise WorldWarpError(
            "disk_full",
            f"{name} needs {to_come / 1e9:.1f} GB in {constants.HF_HUB_CACHE}, where {free / 1e9:.1f} GB are free. "
            "Free some, or set HF_HOME to a folder on a larger disk.",
        )


@contextmanager
def _hub_errors(name: HubName) -> Iterator[None]:
    """Turns what the Hub's client raises into one sentence that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HTTPError, OSError) as error:
        # Asking what there is to fetch wraps the reason why it cannot be asked.
        cause = error.__cause__ if isinstance(error, errors.DryRunError) and error.__cause__ else error
        raise _translated(name, cause) from error


def _translated(name: HubName, error: BaseException) -> WorldWarpError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return WorldWarpError(
            "download_failed",
            f"The authors of {name.repo} ask you to accept their terms: open https://huggingface.co/{name.repo}, then "
            "run: hf auth login",
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return WorldWarpError(
            "download_failed", f"The Hub knows no {name}. Check the name; where it is private, run: hf auth login"
        )
    if getattr(error, "errno", None) == errno.ENOSPC:
        return WorldWarpError("disk_full", f"No space is left on the disk for {name}; free some and go on.")
    why = (
        "HF_HUB_OFFLINE is set, which forbids it"
        if isinstance(error, errors.OfflineModeIsEnabled)
        else f"{type(error).__name__}: {_first_line(error)}"
    )
    return WorldWarpError(
        "download_failed",
        f"{name} could not be fetched ({why}). With a connection, run: {name.command}\n"
        "What has come already is kept. Or copy the model's folder from another machine and give its path.",
    )


def _bar(show: Callable[[int], None]) -> type:
    """A progress bar class for the Hub's client that draws nothing and tells `show` how many bytes have come.

    The client makes one bar for what comes over the wire and one for what is written; the one that is further counts.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    lock, done = threading.Lock(), 0

    class Bytes(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            self._bytes = 0 if settings.get("unit") == "B" else None
            settings.pop("name", None)
            super().__init__(*args, **(settings | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            if self._bytes is not None:
                with lock:
                    self._bytes += int(n or 0)
                    done = max(done, self._bytes)
                    show(done)

    return Bytes


def _hub() -> Any:
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
    faults = _faults(folder, manifest, progress or (lambda what, share: None))
    return Verification(folder, len(manifest.files), tuple(f"{path} {why}" for path, why in faults.items()))


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


def _faults(folder: Path, manifest: Manifest, say: Progress) -> dict[str, str]:
    """By path, what is wrong with a file."""
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


def _expected(folder: Path) -> Manifest | None:
    """The folder's manifest, else the one kept at its download, else what the cache's own names of the files say."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder / MANIFEST)
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        kept = _manifest_beside_cache(HubName(repo), folder.name)
        if kept.is_file():
            return read_manifest(kept)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if stated := _hash_in_name(path):
            files[path.relative_to(folder).as_posix()] = (path.stat().st_size, stated)
    return Manifest(files) if files else None


def _manifest_beside_cache(name: HubName, commit: str) -> Path:
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
