"""SPZ files: splats in about a tenth of a PLY's bytes, through gsply.

SPZ is defined in RUB axes (x right, y up, z back: `y-up` here); gsply packs numbers and leaves the axes to its
caller, so they are converted here. Versions 2 to 4 are read and 3 is written, with antialiasing off, as our rasterisers
have it. The format has no place for source frames and sky: they are lost.

What the format rounds to: positions to half a step of 2^-fractional_bits, which is chosen so that 24 bits just hold the
farthest Gaussian; standard deviations to 3.2%; alpha to 1/510; sh0 to 0.0131; shN to 1/256 (clipped to [-1, 1));
rotations to about 0.2 degrees.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .axes import to_axes
from .cloud import SplatCloud

SPZ_AXES = "y-up"
MAX_GAUSSIANS = 10_000_000
"""As in the reference reader."""
MAX_COORDINATE = float(2**22)
"""24 bits with the one fractional bit that gsply asks for."""
LOG_SCALE_RANGE = (-10.0, 5.9375)
"""What 8 bits of 1/16 from -10 hold."""
MAX_EXTRA_BYTES = 1 << 20
"""Extensions that may follow the sections we read."""

_MAGIC = 0x5053474E
_SH_BYTES = (0, 9, 24, 45)


def write_spz(path: str | os.PathLike[str], cloud: SplatCloud) -> None:
    """Writes `cloud`, which is in Blender's axes.

    Raises:
        WorldWarpError: `bad_splats` where the format cannot hold the cloud, `cannot_write`, `missing_package`.
    """
    gsply = _gsply()
    path = Path(path)
    cloud = to_axes(cloud, "blender", SPZ_AXES)
    _check_fits(cloud, path)
    farthest = float(np.abs(cloud.means).max())
    fractional_bits = int(np.clip(np.floor(np.log2((2**23 - 1) / max(farthest, 2.0**-2))), 1, 24))
    data = gsply.GSData.from_arrays(
        means=cloud.means,
        scales=cloud.scales,
        quats=cloud.quats,
        opacities=cloud.opacities,
        sh0=cloud.sh0[:, 0],
        shN=cloud.shN if cloud.shN.shape[1] else None,
        format="ply",
    )
    with atomic_write(path) as partial:
        gsply.write_spz(partial, data, version=3, fractional_bits=fractional_bits)


def read_spz(path: str | os.PathLike[str], *, axes: str | None = None) -> SplatCloud:
    """The Gaussians of an SPZ file in Blender's axes.

    Args:
        axes: for files of programs that do not keep to the format's own axes.

    Raises:
        WorldWarpError: `bad_splats`, saying what is wrong with the file; `missing_package`.
    """
    gsply = _gsply()
    path = Path(path)
    try:
        _check_container(path)
    except OSError as error:
        raise _bad(path, f"it cannot be read: {error.strerror or error}.") from error
    except zlib.error as error:
        raise _bad(path, f"it is damaged ({error}).") from error
    try:
        data = gsply.read_spz(path)
    except Exception as error:  # ValueError, RuntimeError or zstd's own, by which part of gsply reads
        raise _bad(path, f"it is damaged ({error}).") from error
    n = len(data.means)
    shN = np.zeros((n, 0, 3), np.float32) if data.shN is None else np.asarray(data.shN, np.float32).reshape(n, -1, 3)
    quats = np.asarray(data.quats, np.float32)
    cloud = SplatCloud(
        means=np.asarray(data.means, np.float32),
        quats=quats
        / np.linalg.norm(quats, axis=1, keepdims=True),  # three large bytes need not leave room for a fourth
        scales=np.asarray(data.scales, np.float32),
        opacities=np.asarray(data.opacities, np.float32).reshape(n),
        sh0=np.asarray(data.sh0, np.float32).reshape(n, 1, 3),
        shN=shN,
    )
    return to_axes(cloud, axes or SPZ_AXES, "blender")


def _gsply() -> Any:
    try:
        import gsply
    except ImportError as error:
        raise WorldWarpError(
            "missing_package",
            "SPZ files need the Python package gsply: pip install gsply. Or use PLY, which needs nothing.",
        ) from error
    gsply.use_backend(
        "auto"
    )  # its compiled part where the wheel has one: the other compiles for 13 s at the first read
    return gsply


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


def _check_container(path: Path) -> None:
    """Refuses what would unpack to more than it says, is cut off, or is of a version that gsply misreads."""
    with path.open("rb") as file:
        start = file.read(16)
        if start[:2] != b"\x1f\x8b":
            _unpacked_bytes(start, path, versions=(4,))
            return
        file.seek(0)
        stream = zlib.decompressobj(wbits=31)
        head, total, limit = b"", 0, 16
        while not stream.eof:
            packed = stream.unconsumed_tail or file.read(1 << 16)
            if not packed:
                raise _bad(path, "it is cut off.")
            part = stream.decompress(packed, 1 << 20)
            total += len(part)
            if len(head) < 16:
                head += part[:16]
            if len(head) >= 16:
                limit = _unpacked_bytes(head[:16], path, versions=(2, 3))
                if total > limit + MAX_EXTRA_BYTES:
                    raise _bad(path, f"it holds more than the {limit} bytes that its header announces.")
    if total < limit:
        raise _bad(path, f"it is cut off: {limit} bytes are announced and {total} are there.")


def _unpacked_bytes(head: bytes, path: Path, versions: tuple[int, ...]) -> int:
    """What an SPZ header announces, itself included."""
    if len(head) < 16:
        raise _bad(path, "it is no SPZ file: it is too short.")
    magic, version, count, degree = struct.unpack_from("<IIIB", head)
    if magic != _MAGIC:
        raise _bad(path, "it is no SPZ file.")
    if version not in versions:
        raise _bad(path, f"SPZ version {version} is not supported; versions 2 to 4 are.")
    if degree > 3:
        raise _bad(path, f"its spherical harmonics are of degree {degree}; 0 to 3 are supported.")
    if count > MAX_GAUSSIANS:
        raise _bad(path, f"it announces {count} Gaussians; {MAX_GAUSSIANS} are supported.")
    return 16 + count * (9 + 1 + 3 + 3 + (3 if version == 2 else 4) + _SH_BYTES[degree])


def _bad(path: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_splats", f"{path}: {what}")
