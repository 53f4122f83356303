# SPDX-License-Identifier: GPL-3.0-or-later
"""One channel of a multi-layer EXR that Blender has just written, uncompressed.

The OpenEXR package must not be loaded in Blender: on Linux its calls are bound to Blender's own OpenEXR, another
version, which ends in a crash. Blender itself gives Python no passes of a render, in no version. An uncompressed file
of scan lines is simple enough to be read in NumPy; anything else is refused.

Layout: https://openexr.com/en/latest/OpenEXRFileLayout.html
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = 20000630
MULTIPART = 0x1000
UNCOMPRESSED = 0
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


def read_channel(path: Path, ending: str) -> np.ndarray:
    """Returns (H, W) float32 of the channel whose name, after its part's, ends in `ending`; top row first.

    Raises:
        UnexpectedLayout: no such channel, compressed, or cut off.
    """
    content = path.read_bytes()
    try:
        multipart, parts, at = read_headers(content)
        for number, part in enumerate(parts):
            for name, _ in part.channels:
                if f"{part.name}.{name}".endswith(ending):
                    before = sum(earlier.height for earlier in parts[:number])
                    return read_lines(content, at + 8 * before, part, name, multipart)
    except (struct.error, IndexError, KeyError, ValueError) as error:
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
    if attributes["compression"][0] != UNCOMPRESSED:
        raise UnexpectedLayout("the file is compressed")
    left, top, right, bottom = struct.unpack("<iiii", attributes["dataWindow"])
    channels, place, held = [], 0, attributes["channels"]
    while held[place]:
        channel, place = read_name(held, place)
        (kind,) = struct.unpack_from("<i", held, place)
        channels.append((channel, SAMPLES[kind]))
        place += 16
    name = attributes.get("name", b"").decode("utf-8", "replace")
    return Part(name, channels, right - left + 1, bottom - top + 1), at + 1


def read_name(content: bytes, at: int) -> tuple[str, int]:
    """Returns the text that ends in a zero byte at `at`, and where what follows begins."""
    end = content.index(b"\0", at)
    return content[at:end].decode("utf-8", "replace"), end + 1


def read_lines(content: bytes, offsets_at: int, part: Part, name: str, multipart: bool) -> np.ndarray:
    """Returns (H, W) float32 of one channel; an uncompressed line holds its channels one after the other."""
    skipped = 0
    for channel, dtype in part.channels:
        if channel == name:
            break
        skipped += dtype.itemsize * part.width
    # Before its samples a line says its part (where there are many), its y and its size.
    head = 12 if multipart else 8
    values = np.empty((part.height, part.width), np.float32)
    for row, offset in enumerate(struct.unpack_from(f"<{part.height}Q", content, offsets_at)):
        values[row] = np.frombuffer(content, dtype, part.width, offset + head + skipped)
    return values
