"""3DGS PLY files: the layout of the original 3DGS code, which every splat tool reads.

One `vertex` element of little-endian float32: x y z nx ny nz f_dc_0..2 f_rest_* (channel-major: all of red, then
green, then blue) opacity (logit) scale_0..2 (natural log) rot_0..3 (wxyz). What the layout has no place for is said in
comments, which every reader skips:

    comment Written by WorldWarp
    comment worldwarp axes blender: right-handed, z up, y forward, in scene units
    comment worldwarp sky_first 9216          the Gaussians from this one on stand for the sky
    comment worldwarp frame_counts 1:9000 49:216 -1:12 ...   runs of Gaussians by the frame they were first seen in

so Gaussians are written sorted by (sky, source frame). The runs cover the file; where another program has added or
taken Gaussians they no longer do, and sky and source frames are then unknown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .axes import canonical_axes, to_axes
from .cloud import SplatCloud

DEFAULT_AXES = "colmap"
"""Taken for a PLY that does not say its axes: what 3DGS trainers write."""

MAX_HEADER_BYTES = 1 << 20
OPACITY_LOGIT_LIMIT = 20.0
"""Converters write alpha 0 and 1 as logits of -inf and inf; they are read as this, which is the same in float32."""
LOG_SCALE_FLOOR = -30.0
"""A flat Gaussian (scale 0) has a log scale of -inf in some files; it is read as this."""

_AXES_WORDS = {
    "blender": "right-handed, z up, y forward, in scene units",
    "colmap": "right-handed, y down, z forward, in scene units",
    "y-up": "right-handed, y up, z backward, in scene units",
}
_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}
_POSITION = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE = ("scale_0", "scale_1", "scale_2")
_QUAT = ("rot_0", "rot_1", "rot_2", "rot_3")
_REQUIRED = (*_POSITION, *_DC, "opacity", *_SCALE, *_QUAT)
_COMMENT_WIDTH = 120
_BLOCK_ROWS = 8192  # rows in flight: a few MB, so that the transposition runs in the processor's cache


def write_ply(path_or_file: str | os.PathLike[str] | BinaryIO, cloud: SplatCloud, *, axes: str = "blender") -> None:
    """Writes `cloud`, which is in Blender's axes, with coordinates in `axes`.

    A path is written beside itself and renamed when whole, so it never holds half a file.

    Raises:
        WorldWarpError: `bad_splats` for unknown axes, `cannot_write` where the path cannot be written.
    """
    axes = canonical_axes(axes)
    cloud = to_axes(cloud, "blender", axes)
    if isinstance(path_or_file, (str, os.PathLike)):
        with atomic_write(path_or_file) as partial, partial.open("wb") as file:
            _write(file, cloud, axes)
    else:
        _write(path_or_file, cloud, axes)


def read_ply(path: str | os.PathLike[str], *, axes: str | None = None, drop_bad: bool = False) -> SplatCloud:
    """The Gaussians of a 3DGS PLY in Blender's axes, quaternions normalised.

    Properties may come in any order, of any number type, in either byte order and beside others; degree 0 to 3 follows
    from the number of `f_rest_*`.

    Args:
        axes: the file's axes; None takes what the file says, or `DEFAULT_AXES` where it says nothing.
        drop_bad: leave out Gaussians with NaN, infinite or zero-quaternion values instead of refusing the file.

    Raises:
        WorldWarpError: `bad_splats`, saying what was got and what was expected.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            cloud = _read_gaussians(file, header, path, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise WorldWarpError("bad_splats", f"{path} cannot be read: {error.strerror or error}.") from error
    cloud = _check_values(_with_provenance(cloud, header.comments), path, drop_bad)
    return to_axes(cloud, axes or _axes_of(header.comments) or DEFAULT_AXES, "blender")


def ply_axes(path: str | os.PathLike[str]) -> str | None:
    """The axes that a PLY's comment names, or None where it says nothing.

    Raises:
        WorldWarpError: `bad_splats` where it is no readable PLY.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _axes_of(_read_header(file, path).comments)
    except OSError as error:
        raise WorldWarpError("bad_splats", f"{path} cannot be read: {error.strerror or error}.") from error


# --- writing


def _write(file: BinaryIO, cloud: SplatCloud, axes: str) -> None:
    order = np.lexsort((cloud.source_frames, cloud.sky))
    rest_names = [f"f_rest_{i}" for i in range(3 * cloud.shN.shape[1])]
    names = [*_POSITION, *_NORMAL, *_DC, *rest_names, "opacity", *_SCALE, *_QUAT]
    runs = _frame_count_lines(cloud.source_frames[order], cloud.sky[order])
    lines = ["ply", "format binary_little_endian 1.0", "comment Written by WorldWarp"]
    lines += [f"comment worldwarp axes {axes}: {_AXES_WORDS[axes]}"]
    lines += [f"comment worldwarp sky_first {int((~cloud.sky).sum())}"]
    lines += [f"comment worldwarp frame_counts {line}" for line in runs]
    lines += [f"element vertex {len(cloud)}", *(f"property float {name}" for name in names), "end_header"]
    file.write("\n".join(lines).encode("ascii") + b"\n")
    rest = 9 + len(rest_names)
    for start in range(0, len(cloud), _BLOCK_ROWS):
        rows = order[start : start + _BLOCK_ROWS]
        block = np.zeros((len(rows), len(names)), "<f4")
        block[:, 0:3] = cloud.means[rows]
        block[:, 6:9] = cloud.sh0[rows, 0]
        block[:, 9:rest] = cloud.shN[rows].transpose(0, 2, 1).reshape(len(rows), -1)
        block[:, rest] = cloud.opacities[rows]
        block[:, rest + 1 : rest + 4] = cloud.scales[rows]
        block[:, rest + 4 :] = cloud.quats[rows]
        file.write(block.data)


def _frame_count_lines(frames: np.ndarray, sky: np.ndarray) -> Iterator[str]:
    """`frame:count` runs of the sorted Gaussians in lines that the strictest readers take."""
    changes = (frames[1:] != frames[:-1]) | (sky[1:] != sky[:-1])
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(frames)), bool), changes]))
    line = ""
    for frame, count in zip(frames[starts], np.diff([*starts, len(frames)]), strict=True):
        if len(line) > _COMMENT_WIDTH:
            yield line.rstrip()
            line = ""
        line += f"{frame}:{count} "
    if line:
        yield line.rstrip()


# --- reading


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]] = field(default_factory=list)
    has_list: bool = False


@dataclass(frozen=True)
class _Header:
    order: str  # "<" or ">"
    comments: list[str]
    elements: list[_Element]


def _read_header(file: BinaryIO, path: Path) -> _Header:
    if file.readline(16).strip() != b"ply":
        raise _bad(path, "this is not a PLY file (it does not begin with 'ply').")
    order = ""
    comments: list[str] = []
    elements: list[_Element] = []
    left = MAX_HEADER_BYTES
    while True:
        raw = file.readline(left)
        left -= len(raw)
        if not raw.endswith(b"\n"):
            raise _bad(
                path,
                f"the PLY header has no end_header in {MAX_HEADER_BYTES - left} bytes; it is cut off or damaged.",
            )
        line = raw.decode("ascii", "replace").strip()
        words = line.split()
        match words:
            case ["end_header"]:
                break
            case ["comment" | "obj_info", *_]:
                comments.append(line.partition(" ")[2].strip())
            case ["format", "ascii", *_]:
                raise _bad(path, "an ASCII PLY is not supported; save it as binary.")
            case ["format", "binary_little_endian" | "binary_big_endian" as name, *_]:
                order = "<" if name == "binary_little_endian" else ">"
            case ["element", name, count] if count.isdigit() and len(count) < 16:
                elements.append(_Element(name, int(count)))
            case ["property", "list", _, _, _] if elements:
                elements[-1].has_list = True
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append((name, _TYPES[kind]))
            case []:
                pass
            case _:
                raise _bad(path, f"the PLY header has a line that is not understood: {line[:80]!r}.")
    if not order:
        raise _bad(path, "the PLY header names no format.")
    return _Header(order, comments, elements)


def _read_gaussians(file: BinaryIO, header: _Header, path: Path, file_bytes: int) -> SplatCloud:
    vertex, dtype, skipped = _vertex_layout(header, path)
    begin = file.tell() + skipped
    expected = begin + vertex.count * dtype.itemsize
    if file_bytes < expected:
        raise _bad(
            path,
            f"the file is cut off. {vertex.count} Gaussians of {dtype.itemsize} bytes need {expected} bytes but it has "
            f"{file_bytes}. Save or download it again.",
        )
    n, rest = vertex.count, _rest_names(dtype, path)
    columns = [*_REQUIRED, *rest]
    means, scales, quats = np.empty((n, 3), np.float32), np.empty((n, 3), np.float32), np.empty((n, 4), np.float32)
    sh0, shN = np.empty((n, 1, 3), np.float32), np.empty((n, len(rest) // 3, 3), np.float32)
    opacities = np.empty(n, np.float32)
    file.seek(begin)
    for start in range(0, n, _BLOCK_ROWS):
        raw = np.fromfile(file, dtype, min(_BLOCK_ROWS, n - start))
        rows = slice(start, start + len(raw))
        block = np.empty((len(raw), len(columns)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # a double beyond float32 becomes inf, refused later
            for column, name in enumerate(columns):
                block[:, column] = raw[name]
        means[rows], sh0[rows, 0], opacities[rows] = block[:, 0:3], block[:, 3:6], block[:, 6]
        scales[rows], quats[rows] = block[:, 7:10], block[:, 10:14]
        shN[rows] = block[:, 14:].reshape(len(raw), 3, len(rest) // 3).transpose(0, 2, 1)
    return SplatCloud(means, quats, scales, opacities, sh0, shN)


def _vertex_layout(header: _Header, path: Path) -> tuple[_Element, np.dtype, int]:
    """The vertex element, its row type, and the bytes of the elements before it."""

    def row(element: _Element) -> np.dtype:
        if element.has_list:
            raise _bad(path, f"the element {element.name!r} holds lists, which a splat PLY does not.")
        try:
            return np.dtype([(name, header.order + kind) for name, kind in element.properties])
        except ValueError as error:  # the same name twice
            raise _bad(path, f"the element {element.name!r} names a property twice.") from error

    skipped = 0
    for element in header.elements:
        if element.name != "vertex":
            skipped += element.count * row(element).itemsize
            continue
        names = {name for name, _ in element.properties}
        missing = [name for name in _REQUIRED if name not in names]
        if missing:
            is_what = _what_it_is(header, names)
            raise _bad(path, f"this is not a 3D Gaussian splat PLY; it lacks {_shortened(missing)}. {is_what}")
        return element, row(element), skipped
    raise _bad(path, "this is not a 3D Gaussian splat PLY; it has no vertex element.")


def _what_it_is(header: _Header, names: set[str]) -> str:
    if "packed_position" in names:
        return "It is a compressed splat PLY; save it uncompressed."
    if any(element.name == "face" and element.count for element in header.elements):
        return "It is a mesh; import it as one."
    return "It looks like a plain point cloud." if {"x", "y", "z"} <= names else ""


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _rest_names(dtype: np.dtype, path: Path) -> list[str]:
    found = [name for name in dtype.names or () if name.startswith("f_rest_")]
    names = [f"f_rest_{i}" for i in range(len(found))]
    if len(found) not in (0, 9, 24, 45) or set(found) != set(names):
        raise _bad(
            path,
            f"it has {len(found)} f_rest properties; spherical harmonics of degree 0 to 3 have 0, 9, 24 or 45, "
            "numbered from 0.",
        )
    return names


def _axes_of(comments: list[str]) -> str | None:
    for comment in comments:
        match comment.replace(":", " ").split():
            case ["worldwarp", "axes", name, *_]:
                return canonical_axes(name)
    return None


def _with_provenance(cloud: SplatCloud, comments: list[str]) -> SplatCloud:
    frames: list[int] = []
    counts: list[int] = []
    sky_first = -1
    try:
        for comment in comments:
            match comment.split():
                case ["worldwarp", "sky_first", first]:
                    sky_first = int(first)
                case ["worldwarp", "frame_counts", *runs]:
                    for run in runs:
                        frame, count = run.split(":")
                        frames.append(int(np.int32(int(frame))))
                        counts.append(int(count))
    except (ValueError, OverflowError):
        return cloud
    if not counts or min(counts) < 0 or sum(counts) != len(cloud) or not 0 <= sky_first <= len(cloud):
        return cloud
    source_frames = np.repeat(np.array(frames, np.int32), counts)
    return replace(cloud, source_frames=source_frames, sky=np.arange(len(cloud)) >= sky_first)


def _check_values(cloud: SplatCloud, path: Path, drop_bad: bool) -> SplatCloud:
    limit = np.copysign(np.float32(OPACITY_LOGIT_LIMIT), cloud.opacities)
    opacities = np.where(np.isinf(cloud.opacities), limit, cloud.opacities)
    scales = np.where(np.isneginf(cloud.scales), np.float32(LOG_SCALE_FLOOR), cloud.scales)
    norm = np.linalg.norm(cloud.quats, axis=1)
    cloud = replace(cloud, opacities=opacities, scales=scales, quats=cloud.quats / np.where(norm > 0, norm, 1)[:, None])
    arrays = (cloud.means[:, None], cloud.scales[:, None], cloud.sh0, cloud.shN)
    good = np.isfinite(norm) & (norm > 0) & np.isfinite(cloud.opacities)
    for array in arrays:
        good &= np.isfinite(array).all(axis=(1, 2))
    if good.all():
        return cloud
    if not drop_bad:
        raise _bad(
            path,
            f"{int((~good).sum())} of {len(cloud)} Gaussians have NaN, infinite or zero-quaternion values. "
            "Clean the file in the program that wrote it, or read it with drop_bad=True to leave them out.",
        )
    return SplatCloud(**{name: values[good] for name, values in vars(cloud).items()})


def _bad(path: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_splats", f"{path}: {what}")
