"""SPZ files: splats in about a tenth of a PLY's bytes, read and written in NumPy.

SPZ is defined in RUB axes (x right, y up, z back: `y-up` here). Versions 2 to 4 are read and 3 is written, with
antialiasing off, as our rasterisers have it. The format has no place for source frames and sky: they are lost.

    versions 2, 3   gzip of: header (16 bytes), sections
    version 4       header (32 bytes), extensions, table of (packed, unpacked) sizes as u64, each section as zstd

    header          magic u32, version u32, count u32, degree u8, fractional bits u8, flags u8, then a reserved u8;
                    in version 4 the number of streams u8, the table's place u32, 12 reserved bytes
    positions       xyz, 24-bit signed fixed point
    alphas          u8, alpha * 255
    colours         rgb u8, (sh0 * 0.15 + 0.5) * 255
    scales          xyz u8, (log scale + 10) * 16
    rotations       version 2: xyz u8, (v + 1) * 127.5, w >= 0 left out; since 3: u32, the largest of xyzw left out
                    (its index in the top 2 bits), of the others, first to last, a sign bit and 9 bits of |v| * sqrt(2)
    harmonics       u8, sh * 128 + 128, coefficient by coefficient, rgb inside

What the format rounds to: positions to half a step of 2^-fractional_bits, which is chosen so that 24 bits just hold the
farthest Gaussian; standard deviations to 3.2%; alpha to 1/510; sh0 to 0.0131; shN to 1/256 (clipped to [-1, 1));
rotations to about 0.2 degrees.

Layout: https://github.com/nianticlabs/spz
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .axes import to_axes
from .cloud import SplatCloud

SPZ_AXES = "y-up"
MAX_GAUSSIANS = 10_000_000
"""As in the reference reader."""
MAX_FRACTIONAL_BITS = 24
MAX_COORDINATE = float(2**22)
"""24 bits with one fractional bit, the least that readers take."""
LOG_SCALE_RANGE = (-10.0, 5.9375)
"""What 8 bits of 1/16 from -10 hold."""
MAX_EXTRA_BYTES = 1 << 20
"""Extensions that may follow the sections we read."""

_MAGIC = 0x5053474E
_GZIP_START = b"\x1f\x8b"
_GZIP_LEVEL = 6
_HARMONICS = (0, 3, 8, 15)
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
"""The components of a quaternion that are stored, by the one that is not."""


@dataclass(frozen=True)
class _Header:
    version: int
    count: int
    degree: int
    fractional_bits: int

    @property
    def sizes(self) -> list[int]:
        """Bytes of each section, in the file's order."""
        a_gaussian = (9, 1, 3, 3, 3 if self.version == 2 else 4, 3 * _HARMONICS[self.degree])
        return [self.count * size for size in a_gaussian]


def write_spz(path: str | os.PathLike[str], cloud: SplatCloud) -> None:
    """Writes `cloud`, which is in Blender's axes; equal clouds give equal bytes.

    Raises:
        WorldWarpError: `bad_splats` where the format cannot hold the cloud, `cannot_write`.
    """
    path = Path(path)
    cloud = to_axes(cloud, "blender", SPZ_AXES)
    _check_fits(cloud, path)
    farthest = float(np.abs(cloud.means).max())
    fractional_bits = int(np.clip(np.floor(np.log2((2**23 - 1) / max(farthest, 0.25))), 1, MAX_FRACTIONAL_BITS))
    header = struct.pack("<IIIBBBB", _MAGIC, 3, len(cloud), cloud.sh_degree, fractional_bits, 0, 0)
    with (
        atomic_write(path) as partial,
        partial.open("wb") as file,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed,
    ):
        packed.write(header)
        for section in _sections_of(cloud, fractional_bits):
            packed.write(np.ascontiguousarray(section).data)


def read_spz(path: str | os.PathLike[str], *, axes: str | None = None) -> SplatCloud:
    """The Gaussians of an SPZ file in Blender's axes.

    Args:
        axes: for files of programs that do not keep to the format's own axes.

    Raises:
        WorldWarpError: `bad_splats`, saying what is wrong with the file; `missing_package` for a version 4 file where
            zstandard is not installed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
            file.seek(0)
            if start.startswith(_GZIP_START):
                header, sections = _read_gzip(file, path)
            else:
                header, sections = _read_streams(file, start, path)
    except OSError as error:
        raise _bad(path, f"it cannot be read: {error.strerror or error}.") from error
    except (zlib.error, struct.error) as error:
        raise _bad(path, f"it is damaged ({error}).") from error
    return to_axes(_cloud_of(header, sections), axes or SPZ_AXES, "blender")


# ---------------------------------------------------------------- numbers


def _sections_of(cloud: SplatCloud, fractional_bits: int) -> list[np.ndarray]:
    """The sections of a version 3 file, in order, each (N, ...) uint8."""
    fixed = np.round(cloud.means.astype(np.float64) * 2.0**fractional_bits).clip(-(2**23), 2**23 - 1).astype("<i4")
    with np.errstate(over="ignore"):
        alphas = 1 / (1 + np.exp(-cloud.opacities))
    return [
        fixed.view(np.uint8).reshape(-1, 3, 4)[..., :3],
        _rounded(alphas * 255),
        _rounded((cloud.sh0 * 0.15 + 0.5) * 255),
        _rounded((cloud.scales + 10) * 16),
        _packed_rotations(cloud.quats).view(np.uint8),
        _rounded(cloud.shN * 128 + 128),
    ]


def _cloud_of(header: _Header, sections: list[np.ndarray]) -> SplatCloud:
    """The Gaussians of the sections, each flat uint8, in the file's axes."""
    positions, alphas, colours, scales, rotations, harmonics = sections
    fixed = np.zeros((3 * header.count, 4), np.uint8)
    fixed[:, 1:] = positions.reshape(-1, 3)
    # Shifted as a signed number, the sign of the upper 24 bits stays.
    means = (fixed.view("<i4").reshape(-1, 3) >> 8) * 2.0**-header.fractional_bits
    # The outermost bytes stand for the last half step before 0 and 1, where logits have no end.
    alpha = (alphas / 255.0).clip(0.25 / 255, 1 - 0.25 / 255)
    quats = _unpacked_xyz(rotations) if header.version == 2 else _unpacked_rotations(rotations.view("<u4"))
    return SplatCloud(
        means=means.astype(np.float32),
        # Three large bytes need not leave room for a fourth.
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=scales.reshape(-1, 3) / np.float32(16) - np.float32(10),
        opacities=(np.log(alpha) - np.log1p(-alpha)).astype(np.float32),
        sh0=(colours.reshape(-1, 1, 3) / np.float32(255) - np.float32(0.5)) / np.float32(0.15),
        shN=(harmonics.reshape(header.count, _HARMONICS[header.degree], 3) - np.float32(128)) / np.float32(128),
    )


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.round(values).clip(0, 255).astype(np.uint8)


def _packed_rotations(wxyz: np.ndarray) -> np.ndarray:
    """(N,) uint32 of (N, 4) unit quaternions: the three smallest components, 10 bits each."""
    xyzw = np.roll(wxyz, -1, axis=1)
    largest = np.abs(xyzw).argmax(axis=1)
    # q and -q are one rotation: the component that is left out is the positive one.
    others = np.take_along_axis(xyzw, _OTHERS[largest], axis=1)
    others = np.where(np.take_along_axis(xyzw, largest[:, None], axis=1) < 0, -others, others)
    magnitudes = np.round(np.abs(others) * (511 * np.sqrt(2))).clip(0, 511).astype("<u4")
    packed = largest.astype("<u4")
    for place in range(3):
        packed = packed << 10 | (others[:, place] < 0).astype("<u4") << 9 | magnitudes[:, place]
    return packed


def _unpacked_rotations(packed: np.ndarray) -> np.ndarray:
    """(N, 4) wxyz of `_packed_rotations`."""
    largest = packed >> 30
    others = np.stack([packed >> 20, packed >> 10, packed], axis=1)
    values = (others & 511) / (511 * np.sqrt(2)) * np.where(others & 512, -1, 1)
    xyzw = np.empty((len(packed), 4))
    np.put_along_axis(xyzw, _OTHERS[largest], values, axis=1)
    np.put_along_axis(xyzw, largest[:, None].astype(int), _missing_component(values)[:, None], axis=1)
    return np.roll(xyzw, 1, axis=1)


def _unpacked_xyz(packed: np.ndarray) -> np.ndarray:
    """(N, 4) wxyz of version 2's three bytes."""
    xyz = packed.reshape(-1, 3) / 127.5 - 1
    return np.concatenate([_missing_component(xyz)[:, None], xyz], axis=1)


def _missing_component(three: np.ndarray) -> np.ndarray:
    return np.sqrt((1 - (three**2).sum(axis=1)).clip(0))


# ---------------------------------------------------------------- containers


def _read_gzip(file: BinaryIO, path: Path) -> tuple[_Header, list[np.ndarray]]:
    """The header and sections of versions 2 and 3, never unpacking more than the header announces."""
    stream = zlib.decompressobj(wbits=31)
    content, total = bytearray(), 0
    header, announced = None, 16
    while not stream.eof:
        packed = stream.unconsumed_tail or file.read(1 << 18)
        if not packed:
            raise _bad(path, "it is cut off.")
        part = stream.decompress(packed, 1 << 20)
        total += len(part)
        content += part
        if header is None and total >= 16:
            header = _header(bytes(content[:16]), path, versions=(2, 3))
            announced = 16 + sum(header.sizes)
        if total > announced + MAX_EXTRA_BYTES:
            raise _bad(path, f"it holds more than the {announced} bytes that its header announces.")
    if header is None or total < announced:
        raise _bad(path, f"it is cut off: {announced} bytes are announced and {total} are there.")
    values = np.frombuffer(content, np.uint8)
    return header, np.split(values[16:announced], np.cumsum(header.sizes)[:-1])


def _read_streams(file: BinaryIO, start: bytes, path: Path) -> tuple[_Header, list[np.ndarray]]:
    """The header and sections of version 4."""
    header = _header(start, path, versions=(4,))
    try:
        import zstandard
    except ImportError as error:
        raise WorldWarpError(
            "missing_package",
            f"{path} is an SPZ file of version 4, which needs the Python package zstandard: pip install zstandard. Or "
            "have it written as version 3, or as PLY.",
        ) from error
    streams, table_at = struct.unpack_from("<BI", start, 15)
    if streams != sum(size > 0 for size in header.sizes):
        raise _bad(path, f"it is damaged (it has {streams} streams).")
    file.seek(table_at)
    table = [struct.unpack("<QQ", file.read(16)) for _ in range(streams)]
    sections, entries = [], iter(table)
    for size in header.sizes:
        content = b""
        if size:
            packed, unpacked = next(entries)
            if unpacked != size or packed > 2 * size + 1024:
                raise _bad(path, f"it is damaged (a section of {unpacked} bytes where {size} are announced).")
            try:
                # As a stream, so that no frame's own word says how much memory is taken.
                reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(file.read(packed)))
                content = reader.read(size + 1)
            except zstandard.ZstdError as error:
                raise _bad(path, f"it is damaged ({error}).") from error
            if len(content) > size:
                raise _bad(path, f"it holds more than the {size} bytes that its table announces.")
            if len(content) < size:
                raise _bad(path, f"it is cut off: {size} bytes are announced and {len(content)} are there.")
        sections.append(np.frombuffer(content, np.uint8))
    return header, sections


def _header(start: bytes, path: Path, versions: tuple[int, ...]) -> _Header:
    """The header at the beginning of `start`, checked: what it announces is safe to take."""
    if len(start) < 16:
        raise _bad(path, "it is no SPZ file: it is too short.")
    magic, *values = struct.unpack_from("<IIIBB", start)
    if magic != _MAGIC:
        raise _bad(path, "it is no SPZ file.")
    header = _Header(*values)
    if header.version not in versions:
        raise _bad(path, f"SPZ version {header.version} is not supported; versions 2 to 4 are.")
    if header.degree > 3:
        raise _bad(path, f"its spherical harmonics are of degree {header.degree}; 0 to 3 are supported.")
    if header.count > MAX_GAUSSIANS:
        raise _bad(path, f"it announces {header.count} Gaussians; {MAX_GAUSSIANS} are supported.")
    if header.fractional_bits > MAX_FRACTIONAL_BITS:
        raise _bad(path, f"it is damaged (positions of {header.fractional_bits} fractional bits).")
    return header


def _check_fits(cloud: SplatCloud, path: Path) -> None:
    if len(cloud) == 0:
        raise _bad(path, "there are no Gaussians to write.")
    if len(cloud) > MAX_GAUSSIANS:
        raise _bad(path, f"SPZ readers take {MAX_GAUSSIANS} Gaussians, and there are {len(cloud)}. Write a PLY.")
    far = int((np.abs(cloud.means) > MAX_COORDINATE).any(axis=1).sum())
    if far:
        raise _bad(
            path, f"{far} Gaussians are farther than {MAX_COORDINATE:g} units from the origin, which SPZ cannot hold."
        )
    # A disc may be thinner than the smallest scale; it is its longest axis that shows.
    longest = cloud.scales.max(axis=1)
    low, high = LOG_SCALE_RANGE
    outside = int(((longest < low) | (longest > high)).sum())
    if outside:
        raise _bad(
            path,
            f"{outside} of {len(cloud)} Gaussians are smaller than {np.exp(low):.2g} or larger than {np.exp(high):.3g} "
            "units, which SPZ cannot hold. Write a PLY, or scale the world.",
        )


def _bad(path: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_splats", f"{path}: {what}")
