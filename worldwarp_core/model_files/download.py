"""Models fetched from the Hub: every file checked against the hash that the Hub states, checkpoints converted.

What the Hub's client raises becomes one sentence that says what to do. Nothing here needs torch, but to convert.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import WorldWarpError, install_command
from .manifest import MANIFEST, Manifest, Progress, faults_in, read_manifest, write_manifest
from .store import (
    KNOWN,
    TRANSFORMER_CONFIG,
    HubName,
    KnownModel,
    converted,
    converted_folder,
    hub,
    manifest_beside_cache,
)


def download(name: HubName, progress: Progress | None = None) -> Path:
    """Returns the model's folder, fetched, and every file of it checked against the hash that the Hub states.

    What is here already is not fetched again, what was cut off goes on; a file that is not what it should be is fetched
    anew. A checkpoint that is a pickle is converted (convert.py), and the converted folder is returned.

    Raises:
        WorldWarpError: `download_failed` (no connection, no such model, no access), `disk_full`, `bad_weights`, and
            what the conversion raises.
    """
    client, say = hub(), progress or (lambda what, share: None)
    api, known = client.HfApi(), name.known
    with _hub_errors(name):
        wanted = client.snapshot_download(
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
            client.snapshot_download(
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
        write_manifest(manifest_beside_cache(name, commit), manifest)
        for path in faults_in(folder, manifest, say):
            client.hf_hub_download(name.repo, path, revision=commit, force_download=True)
    if faults := faults_in(folder, manifest, say):
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
    if converted(name, folder) and not faults_in(out, read_manifest(out / MANIFEST), say):
        return out
    shutil.rmtree(out, ignore_errors=True)  # what is there is not whole
    try:
        from .convert import convert_checkpoint
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "engine_not_installed",
            f"{known.checkpoint} is here; converting it needs {error.name!r}, which is not installed: "
            f"{install_command('engine')}",
        ) from error
    with _hub_errors(name):
        config = Path(hub().hf_hub_download(KNOWN[0].repo, TRANSFORMER_CONFIG))
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
