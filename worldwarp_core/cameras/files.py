"""Camera paths on disk: our `cameras.json`, Nerfstudio's and BlenderNeRF's `transforms.json`, and NumPy's files read.

`cameras.json`, version 1, is one JSON object:

    {
      "version": 1,
      "width": 1920, "height": 1080,      of the delivered image, pixels
      "fps": 24.0,                         frames a second
      "frames": [
        {
          "frame": 1,                      Blender's frame number; whole, strictly increasing, gaps are fine
          "K": [fx, fy, cx, cy],           pixels; origin at the image's top left corner, pixel centres at +0.5,
                                           so a centred camera has cx = width / 2; fx != fy is a pixel aspect
          "c2w": [[r, r, r, x],            4x4 row major, camera to world: OpenCV camera axes (x right, y down,
                  [r, r, r, y],            z forward) to Blender's world (z up), scene units, rigid
                  [r, r, r, z],
                  [0, 0, 0, 1]]
        }
      ]
    }

Keys that are not listed are left for others and ignored. Numbers are written so that reading gives back the same bits.

`transforms.json` (Nerfstudio, instant-ngp, BlenderNeRF) has OpenGL camera axes and a world that is Blender's for
BlenderNeRF and otherwise whatever the file says; it is taken as it stands, and written in Blender's. An `.npz` has
`c2w` (T, 4, 4) and `K` (T, 3, 3) or (3, 3) in our own conventions and may have `frames`, `fps`, `width` and `height`.
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .path import MAX_CAMERAS, CameraPath, blender_to_opencv

VERSION = 1
MAX_FILE_BYTES = 256 * 2**20
DEFAULT_FPS = 24.0
"""For files that know no frame rate, when none is given."""

_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_FOCAL = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
_PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "PERSPECTIVE", "RADIAL", "SIMPLE_RADIAL")


def read_cameras(
    path: str | os.PathLike[str], *, width: int | None = None, height: int | None = None, fps: float | None = None
) -> CameraPath:
    """The camera path in the file, whose kind is told from its content, not its name.

    Args:
        width, height, fps: for files that do not say them; what the file says wins.

    Raises:
        WorldWarpError: `bad_camera_path`, saying what is wrong and where in the file.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise WorldWarpError("bad_camera_path", f"There is no camera file {path}.")
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise _bad(path, f"it is {size_bytes / 2**20:.0f} MiB; at most {MAX_FILE_BYTES // 2**20} MiB are read")
        content = path.read_bytes()
    except OSError as error:
        raise WorldWarpError("bad_camera_path", f"Cannot read {path}: {error.strerror or error}.") from error
    known = {"width": width, "height": height, "fps": fps}
    try:
        if content[:2] == b"PK":
            return _from_npz(path, known)
        document = _parsed(path, content)
        frames = document.get("frames")
        first = frames[0] if isinstance(frames, list) and frames and isinstance(frames[0], dict) else {}
        if "transform_matrix" in first:
            return _from_transforms(path, document, known)
        return _from_cameras_json(path, document)
    except WorldWarpError as error:
        if str(path) in error.message:
            raise
        raise WorldWarpError(error.code, f"{path}: {error.message}") from error


def write_cameras(path: str | os.PathLike[str], cameras: CameraPath) -> None:
    """Writes `cameras.json`, version 1, whole or not at all.

    Raises:
        WorldWarpError: `cannot_write`.
    """
    intrinsics = cameras.K[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    head = {"version": VERSION, "width": cameras.width, "height": cameras.height, "fps": cameras.fps}
    # One camera a line: small, and still something that people and diffs can read.
    rows = ",\n".join(
        "  " + json.dumps({"frame": int(number), "K": K.tolist(), "c2w": c2w.tolist()}, allow_nan=False)
        for number, K, c2w in zip(cameras.frames, intrinsics, cameras.c2w, strict=True)
    )
    text = json.dumps(head, allow_nan=False)[:-1] + f', "frames": [\n{rows}\n]}}\n'
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_transforms(path: str | os.PathLike[str], cameras: CameraPath) -> None:
    """Writes `transforms.json` beside a shot's frames/, whole or not at all: what trainers of splats and NeRFs read.

    Raises:
        WorldWarpError: `cannot_write`.
    """
    # One line turns the axes of cameras, both ways.
    poses = blender_to_opencv(cameras.c2w)
    frames = [
        {
            "file_path": f"frames/frame_{number:04d}.png",
            "fl_x": K[0, 0],
            "fl_y": K[1, 1],
            "cx": K[0, 2],
            "cy": K[1, 2],
            "transform_matrix": c2w.tolist(),
        }
        for number, K, c2w in zip(cameras.frames.tolist(), cameras.K, poses, strict=True)
    ]
    document = {"camera_model": "PINHOLE", "w": cameras.width, "h": cameras.height, "fps": cameras.fps}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps({**document, "frames": frames}, indent=1, allow_nan=False) + "\n", "utf-8")


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise WorldWarpError(
            "bad_camera_path",
            f"{path} is neither JSON nor .npz ({where}). Export the camera again from Blender as cameras.json.",
        ) from error
    if not isinstance(document, dict):
        raise _bad(path, f'its JSON is a {type(document).__name__}, not an object with "frames"')
    return document


def _from_cameras_json(path: Path, document: dict[str, Any]) -> CameraPath:
    _require(path, document, ("version", "width", "height", "fps", "frames"), "")
    version = document["version"]
    if version != VERSION or isinstance(version, bool):
        raise _bad(path, f"it is cameras.json version {version!r} and version {VERSION} is read here. Export it again")
    rows = _rows(path, document)
    for i, row in enumerate(rows):
        _require(path, row, ("frame", "K", "c2w"), f"frames[{i}] ")
        if not isinstance(row["K"], list) or len(row["K"]) != 4:
            raise _bad(path, f"frames[{i}]: K must be [fx, fy, cx, cy]")
    fx_fy_cx_cy = _array(path, "K", [row["K"] for row in rows], (len(rows), 4))
    return CameraPath(
        frames=_array(path, "frame", [row["frame"] for row in rows], (len(rows),)),
        fps=document["fps"],
        width=document["width"],
        height=document["height"],
        K=_pinholes(fx_fy_cx_cy),
        c2w=_array(path, "c2w", [row["c2w"] for row in rows], (len(rows), 4, 4)),
    )


def _from_transforms(path: Path, document: dict[str, Any], known: dict[str, Any]) -> CameraPath:
    rows = _rows(path, document)
    for i, row in enumerate(rows):
        _require(path, row, ("transform_matrix",), f"frames[{i}] ")
    sizes = {_size(path, {**document, **row}, known) for row in rows}
    if len(sizes) > 1:
        named = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:5])
        raise _bad(path, f"its images differ in size ({named}); one path has one size")
    width, height = sizes.pop()
    intrinsics = [_intrinsics(path, row, document, width, height) for row in rows]
    c2w = blender_to_opencv(_array(path, "transform_matrix", [r["transform_matrix"] for r in rows], (len(rows), 4, 4)))
    numbers = _numbers_in_names([str(row.get("file_path", "")) for row in rows])
    order = np.argsort(numbers)
    fps = document.get("fps") or known["fps"] or DEFAULT_FPS
    return CameraPath(numbers[order], fps, width, height, _pinholes(np.array(intrinsics))[order], c2w[order])


def _from_npz(path: Path, known: dict[str, Any]) -> CameraPath:
    wanted = ("c2w", "K", "frames", "fps", "width", "height")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.removesuffix(".npy") in wanted]
            unpacked = sum(member.file_size for member in members)
            if unpacked > MAX_FILE_BYTES:
                limit = MAX_FILE_BYTES // 2**20
                raise _bad(path, f"it unpacks to {unpacked / 2**20:.0f} MiB; at most {limit} MiB are read")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in wanted if name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise WorldWarpError(
            "bad_camera_path",
            f"{path} is not a whole .npz of plain arrays ({error}). Save it with numpy.savez(path, c2w=..., K=...).",
        ) from error
    _require(path, arrays, ("c2w", "K"), "")
    c2w, K = arrays["c2w"], arrays["K"]
    count = len(c2w) if c2w.ndim else 0
    if K.shape == (3, 3):
        K = np.broadcast_to(K, (count, 3, 3))
    said = {name: arrays[name].item() for name in known if name in arrays and arrays[name].size == 1}
    width, height = _size(path, {"w": said.get("width"), "h": said.get("height")}, known)
    fps = said.get("fps") or known["fps"] or DEFAULT_FPS
    return CameraPath(arrays.get("frames", np.arange(1, count + 1)), fps, width, height, K, c2w)


def _rows(path: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    rows = document["frames"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _bad(path, '"frames" must be a list of objects')
    if not rows:
        raise _bad(path, "the camera path is empty: it needs at least one frame")
    if len(rows) > MAX_CAMERAS:
        raise _bad(path, f"it has {len(rows):,} frames; at most {MAX_CAMERAS:,} are taken. Split the shot")
    return rows


def _size(path: Path, said: dict[str, Any], known: dict[str, Any]) -> tuple[int, int]:
    width, height = said.get("w") or known["width"], said.get("h") or known["height"]
    if width is None or height is None:
        raise _bad(path, "it does not say the size of the image. Give its width and height, or add them to the file")
    for side in (width, height):
        if not _number(path, "the size of its image", side).is_integer():
            raise _bad(path, f"the size of its image must be whole pixels; got {side}")
    return int(width), int(height)


def _intrinsics(path: Path, row: dict[str, Any], document: dict[str, Any], width: int, height: int) -> list[float]:
    """[fx, fy, cx, cy] of one camera of a transforms.json: its own where it has any, else the file's."""
    merged = {**document, **row}
    model = str(merged.get("camera_model", "PINHOLE")).upper()
    if model not in _PINHOLE_MODELS:
        raise _bad(path, f"its camera model is {model}; only pinhole cameras can be followed")
    bent = [name for name in _DISTORTION if merged.get(name)]
    if bent:
        raise _bad(
            path,
            f"it has lens distortion ({', '.join(bent)}) and a pinhole camera cannot follow that. Undistort the images "
            "(COLMAP's image_undistorter does) and export again",
        )
    source = row if any(key in row for key in _FOCAL) else document
    fx, fy = _focal(path, source, "x", width), _focal(path, source, "y", height)
    fx, fy = fx or fy, fy or fx  # square pixels where one is all it says
    if fx is None or fy is None:
        raise _bad(path, "it lacks the focal length: fl_x in pixels or camera_angle_x in radians")
    cx, cy = merged.get("cx", width / 2), merged.get("cy", height / 2)
    return [fx, fy, _number(path, "cx", cx), _number(path, "cy", cy)]


def _focal(path: Path, source: dict[str, Any], axis: str, side: int) -> float | None:
    """Focal length in pixels along "x" or "y", or None where it is not said."""
    if f"fl_{axis}" in source:
        return _number(path, f"fl_{axis}", source[f"fl_{axis}"])
    if f"camera_angle_{axis}" not in source:
        return None
    angle = _number(path, f"camera_angle_{axis}", source[f"camera_angle_{axis}"])
    if not 0 < angle < math.pi:
        raise _bad(path, f"camera_angle_{axis} must be between 0 and pi radians; got {angle}")
    return side / (2 * math.tan(angle / 2))


def _numbers_in_names(names: list[str]) -> np.ndarray:
    """(T,) frame numbers: the last digits of each file name, or 1, 2, ... where these are missing or not unique."""
    found = [re.findall(r"\d+", re.split(r"[\\/]", name)[-1]) for name in names]
    numbers = [int(digits[-1]) for digits in found if digits and len(digits[-1]) < 10]
    if len(set(numbers)) < len(names):
        return np.arange(1, len(names) + 1)
    return np.array(numbers)


def _pinholes(fx_fy_cx_cy: np.ndarray) -> np.ndarray:
    """(T, 3, 3) K from (T, 4)."""
    K = np.zeros((len(fx_fy_cx_cy), 3, 3))
    K[:, [0, 1, 0, 1], [0, 1, 2, 2]] = fx_fy_cx_cy
    K[:, 2, 2] = 1.0
    return K


def _require(path: Path, mapping: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise _bad(path, f"{where}lacks {', '.join(missing)}")


def _number(path: Path, name: str, value: Any) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass  # an integer of hundreds of digits
    raise _bad(path, f"{name} must be a number; got {str(value)[:40]}")


def _array(path: Path, name: str, values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """float64 array of that shape; names the first row at fault."""
    try:
        array = np.array(values)
        if array.shape == shape and array.dtype.kind in "fiu":
            return array.astype(np.float64)
    except ValueError:
        pass  # rows of unequal length: found and named below
    for i, value in enumerate(values):
        try:
            row = np.array(value)
        except ValueError:
            row = np.array(None)
        if row.shape != shape[1:] or row.dtype.kind not in "fiu":
            raise _bad(path, f"frames[{i}]: {name} must be {_shape_in_words(shape[1:])}")
    raise _bad(path, f"{name} holds numbers that are too large")


def _shape_in_words(shape: tuple[int, ...]) -> str:
    return f"{'x'.join(str(side) for side in shape)} numbers" if shape else "a number"


def _bad(path: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_camera_path", f"Cannot take the cameras of {path}: {what}.")
