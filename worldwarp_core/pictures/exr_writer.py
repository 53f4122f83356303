"""OpenEXR files written with NumPy and zlib alone.

In: named channels, (H, W) float32 or float16. Out: the bytes of a scan-line OpenEXR file, version 2, ZIP compressed,
lossless; it opens in whatever opens EXR. The add-on writes depth from inside Blender, where the OpenEXR package must
not be loaded: Blender's own OpenEXR is in the same process, and on Linux the dynamic linker binds the package's calls
to it, which ends in a crash.

Layout: https://openexr.com/en/latest/OpenEXRFileLayout.html
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np

_MAGIC_AND_VERSION = struct.pack("<II", 20000630, 2)
_KINDS = {np.dtype(np.float16): 1, np.dtype(np.float32): 2}
_ZIP = 3
_LINES_PER_BLOCK = 16
"""What ZIP compression means in OpenEXR."""
_LEVEL = 4
"""As OpenEXR's own writer has it: depth gains little from more."""


def encode_exr(channels: Mapping[str, np.ndarray], comments: str = "") -> bytes:
    """The file's bytes for the channels, each (H, W), all float32 or all float16, top row first.

    Args:
        comments: what people should know of the file, in its header.
    """
    # The format wants them sorted by name.
    names = sorted(channels)
    values = np.stack([channels[name] for name in names], axis=1)  # (H, C, W), as a line holds them
    assert values.ndim == 3, values.shape
    assert values.dtype in _KINDS, values.dtype
    assert all(0 < len(name) < 32 for name in names), names
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    header = _header(values, names, comments)
    starts = range(0, len(values), _LINES_PER_BLOCK)
    blocks = [_block(y, values[y : y + _LINES_PER_BLOCK]) for y in starts]
    offsets = np.cumsum([len(header) + 8 * len(blocks), *(len(block) for block in blocks[:-1])])
    return b"".join([header, offsets.astype("<u8").tobytes(), *blocks])


def _header(values: np.ndarray, names: list[str], comments: str) -> bytes:
    height, _, width = values.shape
    window = struct.pack("<iiii", 0, 0, width - 1, height - 1)
    kind = struct.pack("<iBxxxii", _KINDS[np.dtype(values.dtype.type)], 0, 1, 1)
    attributes = [
        ("channels", "chlist", b"".join(name.encode("ascii") + b"\0" + kind for name in names) + b"\0"),
        *([("comments", "string", comments.encode("utf-8"))] if comments else []),
        ("compression", "compression", bytes([_ZIP])),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1.0)),
        ("screenWindowCenter", "v2f", struct.pack("<ff", 0.0, 0.0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1.0)),
    ]
    parts = [f"{name}\0{kind}\0".encode() + struct.pack("<i", len(value)) + value for name, kind, value in attributes]
    return _MAGIC_AND_VERSION + b"".join(parts) + b"\0"


def _block(y: int, lines: np.ndarray) -> bytes:
    """One compressed block: bytes of even and odd place apart, each as its difference to the one before, deflated."""
    raw = lines.reshape(-1).view(np.uint8)
    apart = np.concatenate([raw[0::2], raw[1::2]])
    differences = apart.copy()
    differences[1:] = apart[1:] - apart[:-1] + np.uint8(128)
    packed = zlib.compress(differences.tobytes(), _LEVEL)
    # What does not shrink is stored as it is; readers tell by the size.
    data = packed if len(packed) < raw.size else raw.tobytes()
    return struct.pack("<ii", y, len(data)) + data
