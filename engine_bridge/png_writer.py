"""PNG bytes from NumPy, fast enough to keep up with frames inside Blender, where there is no Pillow.

8-bit RGB (said to be sRGB in the file) and 8-bit grey, lossless. Rows are stored as differences to the row above, which
NumPy computes at once; at 1280x720 a frame takes about 0.1 s where Pillow takes 0.5 s, in a file 15% larger.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2
_UP_FILTER = 2
_COMPRESSION = 2
_PERCEPTUAL = b"\0"


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """The file's bytes for (H, W, 3) uint8 sRGB or (H, W) uint8 data.

    Args:
        text: keywords (Latin-1, at most 79 characters) and texts that go into the file as metadata.
    """
    assert image.dtype == np.uint8, image.dtype
    assert image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3), image.shape
    height, width = image.shape[:2]
    colour = _RGB if image.ndim == 3 else _GREY
    rows = np.ascontiguousarray(image).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP_FILTER
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))]
    if colour == _RGB:
        chunks.append(_chunk(b"sRGB", _PERCEPTUAL))
    for keyword, value in (text or {}).items():
        # iTXt: keyword, not compressed, no language, no translated keyword, UTF-8.
        chunks.append(_chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + value.encode()))
    chunks.append(_chunk(b"IDAT", zlib.compress(filtered.data, _COMPRESSION)))
    return b"".join([_SIGNATURE, *chunks, _chunk(b"IEND", b"")])


def is_whole_png(content: bytes) -> bool:
    """Whether these are a PNG's bytes from its first to its last, by the checksums of its chunks."""
    if not content.startswith(_SIGNATURE):
        return False
    start = len(_SIGNATURE)
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 12 + length
        if end > len(content):
            return False
        kind = content[start + 4 : start + 8]
        (stated,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(memoryview(content)[start + 4 : end - 4]) != stated:
            return False
        if kind == b"IEND":
            return end == len(content)
        start = end
    return False


def _chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join([struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))])
