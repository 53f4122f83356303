"""What a job leaves with the user: a folder that is right at every moment, however the job ends.

    OUT/frames/frame_0001.png   8-bit sRGB, numbered by the path's own frame numbers: the picture as it was made
        frames_exr/frame_0001.exr   the same as scene-linear light, half float, where it was asked for
        depth/frame_0001.exr    planar z in scene units, float32, background 1e10
        mask/frame_0001.png     8-bit, white where the prior was valid
        splats.ply              the world, 3DGS PLY in Blender's axes (fetched by the client, not an event)
        job.json                settings, versions, seconds by stage, state, notices, which frames are here, and how
                                many of them, from the first, are final

Every file is written beside its place and moved into it, so none is ever half there. `job.json` says with `last_seq` up
to which event the folder is complete: a client that is started again continues after it.

Needs NumPy; runs inside Blender.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from worldwarp_core.atomic_write import atomic_write
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures.exr import write_depth_exr, write_picture_exr

from .errors import BridgeError, disk_errors
from .messages import CacheEvent, ChunkCommitted, FrameEvent, NoticeEvent, StateEvent, Welcome
from .png_writer import encode_png, is_whole_png
from .session import FINAL

FORMAT_VERSION = 1
SAVE_EVERY_S = 1.0
"""`job.json` is rewritten at most this often for frames alone; repeating a second of frames after a crash is cheap."""

_KINDS = (("frames", ".png"), ("depth", ".exr"), ("mask", ".png"))
_LINEAR_KIND = ("frames_exr", ".exr")
_FORMATS = {
    "frames": "PNG, 8-bit sRGB",
    "frames_exr": "OpenEXR, half float, scene-linear Rec. 709",
    "depth": "OpenEXR, float, planar z in scene units, background 1e10",
    "mask": "PNG, 8-bit, 255 where the world was known",
}
"""What job.json says of the files."""
_EXR_START = b"\x76\x2f\x31\x01"


class JobFolder:
    """Writes one job's events into `out` as they come; see the top of the module.

    Args:
        out: made where it is missing.
        job_id: of the job; a folder that holds this very job is continued.
        frames: the path's frame numbers, all that are to come.
        settings: what was asked for, in JSON's types.
        records: more for job.json, each under its own name (the .blend, how the start frame was rendered, ...).
        overwrite: whether the frames of an earlier job in `out` may be removed.
        linear_copies: whether each frame is written as scene-linear EXR too; a continued folder stays as it began.

    Raises:
        BridgeError: `folder_in_use`, `cannot_write`, `disk_full`.
    """

    def __init__(
        self,
        out: Path,
        *,
        job_id: str,
        frames: Iterable[int],
        settings: Mapping[str, Any],
        records: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        linear_copies: bool = False,
    ) -> None:
        self.out = Path(out)
        self.job_id = job_id
        self.frames = [int(number) for number in frames]
        self._written: set[int] = set()
        self._saved_s = float("-inf")
        self._job: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "job_id": job_id,
            "state": "queued",
            "code": "",
            "message": "",
            "log_id": "",
            "started": _timestamp(),
            "ended": None,
            "settings": dict(settings),
            "formats": {kind: said for kind, said in _FORMATS.items() if linear_copies or kind != _LINEAR_KIND[0]},
            "frames": {},
            "frames_final": 0,
            "splats": None,
            "last_seq": 0,
            "notices": [],
            **(records or {}),
        }
        with disk_errors(self.out):
            if not self._continue():
                check_free(self.out, overwrite=overwrite)
                for file in _earlier_files(self.out):
                    file.unlink()
            for kind in self._job["formats"]:
                (self.out / kind).mkdir(parents=True, exist_ok=True)
        self.save()

    @property
    def splats_path(self) -> Path:
        """Where the splat file belongs."""
        return self.out / "splats.ply"

    @property
    def expects_splats(self) -> bool:
        """Whether the job has made a splat file."""
        return self._job["splats"] is not None

    @property
    def last_seq(self) -> int:
        """The last event that is on disk here: what to subscribe after."""
        return int(self._job["last_seq"])

    def paths(self, number: int) -> tuple[Path, Path, Path]:
        """Picture, depth and mask of a frame number."""
        return _paths(self.out, number)

    def write(self, event: object) -> None:
        """Writes what an event brings; those that bring nothing for the folder are passed over.

        Raises:
            WorldWarpError: `disk_full` or `cannot_write`; what came before stays, and the event can be written again.
        """
        if not isinstance(event, FrameEvent | ChunkCommitted | CacheEvent | NoticeEvent | StateEvent):
            return
        if isinstance(event, FrameEvent):
            self._write_frame(event)
        elif isinstance(event, ChunkCommitted):
            self._job["frames_final"] = event.frames
        elif isinstance(event, CacheEvent):
            self._job["splats"] = {"count": event.splats, "chunk": event.chunk, "size_bytes": event.size_bytes}
        elif isinstance(event, NoticeEvent):
            notice = {"code": event.code, "message": event.message}
            # An event may come again, where a folder is continued.
            if notice not in self._job["notices"]:
                self._job["notices"].append(notice)
        else:
            self._take_state(event)
        self._job["last_seq"] = event.seq
        if not isinstance(event, FrameEvent) or time.monotonic() - self._saved_s > SAVE_EVERY_S:
            self.save()

    def note(self, **records: Any) -> None:
        """Adds records to job.json, each under its own name, in JSON's types."""
        self._job.update(records)
        self.save()

    def note_server(self, welcome: Welcome) -> None:
        """Records which server and engine make the job."""
        self.note(
            server={
                "name": welcome.server,
                "version": welcome.version,
                "protocol_version": welcome.protocol_version,
                "engine": welcome.engine,
            }
        )

    def fail(self, code: str, message: str) -> None:
        """Records that the job ended here without the server's last word: the server is gone, or the disk is full."""
        self._job.update(state="failed", code=code, message=message, ended=_timestamp())
        self.save()

    def missing(self) -> list[str]:
        """What a whole job should have left and is not here or not whole, in words; empty when all is well.

        Reads every file: call it once, at the end.
        """
        faults = missing(self.out, self.frames, (self._job["splats"] or {}).get("size_bytes"))
        linear = (_linear_path(self.out, number) for number in self.frames if self._has_linear_copies)
        return faults + [fault for path in linear if (fault := _fault_of(self.out, path))]

    def save(self) -> None:
        """Writes job.json as things stand."""
        self._job["frames"] = {
            "asked": len(self.frames),
            "written": len(self._written),
            "first": self.frames[0],
            "last": self.frames[-1],
            "written_ranges": _ranges(self._written),
        }
        path = self.out / "job.json"
        with disk_errors(path), atomic_write(path) as partial:
            partial.write_text(json.dumps(self._job, indent=2, ensure_ascii=False) + "\n", "utf-8")
        self._saved_s = time.monotonic()

    # ------------------------------------------------------------ helpers

    def _write_frame(self, event: FrameEvent) -> None:
        picture, depth, mask = self.paths(event.number)
        text = {"Software": "WorldWarp", "worldwarp:job": self.job_id, "worldwarp:frame": str(event.number)}
        for path, content in ((picture, encode_png(event.rgb, text)), (mask, encode_png(event.validity))):
            with disk_errors(path), atomic_write(path) as partial:
                partial.write_bytes(content)
        with disk_errors(depth):
            write_depth_exr(depth, event.depth)
        if self._has_linear_copies:
            linear = _linear_path(self.out, event.number)
            with disk_errors(linear):
                write_picture_exr(linear, event.rgb)
        self._written.add(event.number)

    def _take_state(self, event: StateEvent) -> None:
        self._job.update(state=event.state, code=event.code, message=event.message, log_id=event.log_id)
        if event.state in FINAL:
            self._job["ended"] = _timestamp()
        if event.state == "done":
            self._job["frames_final"] = len(self.frames)
        summary = dict(event.summary)
        # The engine's account of the settings has the defaults that it filled in; ours says what was asked for.
        asked = {name: value for name, value in self._job["settings"].items() if value is not None}
        self._job["settings"] = self._job["settings"] | summary.pop("settings", {}) | asked
        engine = summary.get("engine")
        if isinstance(engine, dict) and "versions" in engine:
            self._job["versions"] = engine["versions"]
        for name, value in summary.items():
            self._job.setdefault(name, value)

    def _continue(self) -> bool:
        """Takes up the job.json of this very job, where there is one."""
        try:
            earlier = json.loads((self.out / "job.json").read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        if not isinstance(earlier, dict) or earlier.get("job_id") != self.job_id:
            return False
        # Folders of earlier versions say nothing of formats; they have no EXR frames.
        plain = {kind: _FORMATS[kind] for kind, _ in _KINDS}
        self._job.update({"formats": plain, **earlier})
        self._written = {number for number in self.frames if all(path.is_file() for path in self._all_paths(number))}
        return True

    @property
    def _has_linear_copies(self) -> bool:
        return _LINEAR_KIND[0] in self._job["formats"]

    def _all_paths(self, number: int) -> list[Path]:
        return [*self.paths(number), *([_linear_path(self.out, number)] if self._has_linear_copies else [])]


def check_free(out: Path, *, overwrite: bool = False) -> None:
    """Raises unless a new job may have `out`; changes nothing there.

    A folder may be had that holds no job's files, or no more than the job.json of a job that ended with nothing.

    Raises:
        BridgeError: `folder_in_use`, or `cannot_write` where `out` is no folder.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise BridgeError("cannot_write", f"Cannot write into {out}: it is a file. Choose another folder.")
    files = _earlier_files(out)
    if files and not overwrite and not (files == [out / "job.json"] and _came_to_nothing(out)):
        raise BridgeError(
            "folder_in_use",
            f"{out} holds another job's files ({len(files)}, such as {files[0].name}). "
            "Choose another folder, or allow overwriting (--overwrite on the command line).",
        )


def missing(out: Path, numbers: Iterable[int], splats_bytes: int | None) -> list[str]:
    """What a whole job of the frames `numbers` leaves in `out` and is not here or not whole, in words.

    Pictures are read to the end; of a depth file the start is looked at.

    Args:
        splats_bytes: the size that splats.ply should have; None where the job has made none.
    """
    paths = (path for number in numbers for path in _paths(out, number))
    faults = [fault for path in paths if (fault := _fault_of(out, path))]
    splats = out / "splats.ply"
    if not splats.is_file():
        faults.append("splats.ply is missing")
    elif splats_bytes != splats.stat().st_size:
        faults.append(f"splats.ply is not the {splats_bytes} bytes that it should be")
    return faults


def _paths(out: Path, number: int) -> tuple[Path, Path, Path]:
    picture, depth, mask = (out / kind / f"frame_{number:04d}{suffix}" for kind, suffix in _KINDS)
    return picture, depth, mask


def _linear_path(out: Path, number: int) -> Path:
    kind, suffix = _LINEAR_KIND
    return out / kind / f"frame_{number:04d}{suffix}"


def _fault_of(out: Path, path: Path) -> str:
    """What is wrong with a picture, in words; "" when it is whole."""
    if not path.is_file():
        return f"{path.relative_to(out)} is missing"
    if not (is_whole_png(path.read_bytes()) if path.suffix == ".png" else _starts_as_exr(path)):
        return f"{path.relative_to(out)} is damaged"
    return ""


def _starts_as_exr(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_EXR_START)) == _EXR_START


def _earlier_files(out: Path) -> list[Path]:
    kinds = (*_KINDS, _LINEAR_KIND)
    files = [path for kind, suffix in kinds for path in sorted((out / kind).glob(f"frame_*{suffix}"))]
    names = ("job.json", "splats.ply", "preview.mp4", "contact_sheet.png")
    return files + [out / name for name in names if (out / name).is_file()]


def _came_to_nothing(out: Path) -> bool:
    """Whether the job in `out` failed or was cancelled before anything of it arrived."""
    try:
        job = read_job(out)
        return job["state"] in ("failed", "cancelled") and not job["frames"]["written"] and job["splats"] is None
    except (WorldWarpError, KeyError, TypeError):
        return False


def read_job(out: Path) -> dict[str, Any]:
    """What job.json in `out` says.

    Raises:
        WorldWarpError: `no_job`, where there is none that can be read.
    """
    path = Path(out) / "job.json"
    try:
        job = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WorldWarpError(
            "no_job", f"There is no WorldWarp job in {out}: {path} cannot be read ({error})."
        ) from error
    if not isinstance(job, dict) or "job_id" not in job:
        raise WorldWarpError("no_job", f"{path} was not written by WorldWarp.")
    return job


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """[[first, last], ...] of the runs in `numbers`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
