# SPDX-License-Identifier: GPL-3.0-or-later
"""One channel of an EXR file: of the passes that Blender has just rendered, or of a shot's depth.

The OpenEXR package must not be loaded in Blender: on Linux its calls are bound to Blender's own OpenEXR, another
version, which ends in a crash. Blender itself gives Python no passes of a render, in no version. A file of scan lines
that is not compressed, or by ZIP, is simple enough to be read in NumPy; anything else is refused.

Never touches Blender: threads may read with it.

Layout: https://openexr.com/en/latest/OpenEXRFileLayout.html
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = 20000630
MULTIPART = 0x1000
LINES_PER_BLOCK = {0: 1, 2: 1, 3: 16}
"""By compression: none, ZIP of single lines, ZIP."""
MAX_SIDE_PX = 16_384
SAMPLES: dict[int, np.dtype] = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}


class UnexpectedLayout(Exception):
    """The file is not as Blender writes it with our settings; the message says how it differs."""


@dataclass(frozen=True)
class Part:
    """One header: a whole file up to Blender 4.5, a pass of it from 5.0 on."""

    name: str
    channels: list[tuple[str, np.dtype]]
    """In the order in which a line holds them."""
    width: int
    height: int
    compression: int

    @property
    def line_bytes(self) -> int:
        return sum(dtype.itemsize for _, dtype in self.channels) * self.width

    @property
    def blocks(self) -> int:
        return -(-self.height // LINES_PER_BLOCK[self.compression])


def read_channel(path: Path, ending: str | tuple[str, ...]) -> np.ndarray:
    """Returns (H, W) float32 of the channel whose name, after its part's, ends so; top row first.

    Raises:
        UnexpectedLayout: no such channel, compressed in another way, or cut off.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        multipart, parts, at = read_headers(content)
        for number, part in enumerate(parts):
            for name, _ in part.channels:
                if f"{part.name}.{name}".endswith(ending):
                    before = sum(earlier.blocks for earlier in parts[:number])
                    return read_lines(content, at + 8 * before, part, name, multipart)
    except (struct.error, zlib.error, IndexError, KeyError, OverflowError, ValueError) as error:
        raise UnexpectedLayout(f"{path.name} is damaged: {error}") from error
    named = ", ".join(f"{part.name}.{name}" for part in parts for name, _ in part.channels)
    raise UnexpectedLayout(f"{path.name} has no channel {ending}, only {named}")


def read_headers(content: bytes) -> tuple[bool, list[Part], int]:
    """Returns whether the file has many parts, the parts, and where the line offsets begin."""
    magic, version = struct.unpack_from("<II", content)
    if magic != MAGIC:
        raise UnexpectedLayout("this is no EXR file")
    multipart = bool(version & MULTIPART)
    parts, at = [], 8
    while content[at]:
        part, at = read_header(content, at)
        parts.append(part)
        if not multipart:
            return multipart, parts, at
    return multipart, parts, at + 1


def read_header(content: bytes, at: int) -> tuple[Part, int]:
    """Returns the part whose header begins at `at`, and where that header ends."""
    attributes = {}
    while content[at]:
        name, at = read_name(content, at)
        _, at = read_name(content, at)
        (size,) = struct.unpack_from("<i", content, at)
        attributes[name] = content[at + 4 : at + 4 + size]
        at += 4 + size
    compression = attributes["compression"][0]
    if compression not in LINES_PER_BLOCK:
        raise UnexpectedLayout("the file is compressed in a way that is not read: save it with ZIP")
    left, top, right, bottom = struct.unpack("<iiii", attributes["dataWindow"])
    if not (0 <= right - left < MAX_SIDE_PX and 0 <= bottom - top < MAX_SIDE_PX):
        raise UnexpectedLayout(f"up to {MAX_SIDE_PX} pixels a side are read")
    channels, place, held = [], 0, attributes["channels"]
    while held[place]:
        channel, place = read_name(held, place)
        (kind,) = struct.unpack_from("<i", held, place)
        channels.append((channel, SAMPLES[kind]))
        place += 16
    name = attributes.get("name", b"").decode("utf-8", "replace")
    return Part(name, channels, right - left + 1, bottom - top + 1, compression), at + 1


def read_name(content: bytes, at: int) -> tuple[str, int]:
    """Returns the text that ends in a zero byte at `at`, and where what follows begins."""
    end = content.index(b"\0", at)
    return content[at:end].decode("utf-8", "replace"), end + 1


def read_lines(content: bytes, offsets_at: int, part: Part, name: str, multipart: bool) -> np.ndarray:
    """Returns (H, W) float32 of one channel; a line holds its channels one after the other."""
    skipped = 0
    for channel, dtype in part.channels:
        if channel == name:
            break
        skipped += dtype.itemsize * part.width
    # Before its samples a block says its part (where there are many), its y and its size.
    head = 12 if multipart else 8
    lines = LINES_PER_BLOCK[part.compression]
    values = np.empty((part.height, part.width), np.float32)
    for block, offset in enumerate(struct.unpack_from(f"<{part.blocks}Q", content, offsets_at)):
        rows = values[block * lines : (block + 1) * lines]
        (size,) = struct.unpack_from("<i", content, offset + head - 4)
        held = unpacked(content[offset + head : offset + head + size], len(rows) * part.line_bytes)
        own = held.reshape(len(rows), -1)[:, skipped : skipped + dtype.itemsize * part.width]
        rows[:] = np.ascontiguousarray(own).view(dtype)
    return values


def unpacked(block: bytes, size: int) -> np.ndarray:
    """Returns the (size,) uint8 of a block; one that ZIP did not make smaller is stored as it is."""
    if len(block) == size:
        return np.frombuffer(block, np.uint8)
    differences = np.frombuffer(zlib.decompressobj().decompress(block, size), np.uint8)
    # Bytes of even and of odd place apart, each as its difference to the one before, from 128 on.
    apart = np.cumsum(differences, dtype=np.uint8) - (np.arange(len(differences)) * 128).astype(np.uint8)
    together = np.empty(size, np.uint8)
    together[0::2], together[1::2] = apart[: (size + 1) // 2], apart[(size + 1) // 2 :]
    return together
