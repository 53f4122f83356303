"""Depth passes as OpenEXR files: planar z in scene units, (H, W) float32, top row first; and pictures, written alone.

Needs NumPy; reading needs the OpenEXR package, which is loaded when a file is read and not before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from ..spec import BACKGROUND_DEPTH
from .exr_writer import encode_exr

MAX_SIDE_PX = 16_384
MAX_SAMPLES = 2**30
"""Of all channels together: a small file can claim any size."""

_DEPTH_CHANNELS = ("Z", "V", "Y", "R")
"""Last part of a depth channel's name, the surest first: passes are Z or V, grey images V or Y, colour images R."""


def write_depth_exr(path: str | os.PathLike[str], depth: np.ndarray) -> None:
    """Writes (H, W) depth as one float32 channel, ZIP compressed, whole or not at all.

    The channel is called Y. Of Z, Y, V and R it is the one that both OpenCV and Blender's image loader show with its
    values; a lone Z, the name of render passes, opens black in both.

    Raises:
        WorldWarpError: `cannot_write`.
    """
    assert depth.ndim == 2, depth.shape
    with atomic_write(path) as partial:
        partial.write_bytes(encode_exr({"Y": np.asarray(depth, np.float32)}))


def write_picture_exr(path: str | os.PathLike[str], rgb: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 sRGB picture as scene-linear light, half float, ZIP compressed, whole or not at all.

    Its primaries are Rec. 709's, as sRGB has them. Half floats hold each of the 256 values apart: nothing is lost.

    Raises:
        WorldWarpError: `cannot_write`.
    """
    assert rgb.ndim == 3, rgb.shape
    assert rgb.dtype == np.uint8, rgb.dtype
    linear = _LINEAR[rgb]
    channels = {name: linear[..., place] for place, name in enumerate("RGB")}
    with atomic_write(path) as partial:
        partial.write_bytes(encode_exr(channels, "Scene-linear Rec. 709 light of an 8-bit sRGB picture"))


def read_depth_exr(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W) float32 of the file's depth channel as it is stored: infinities and NaN are left in.

    Found are `Z`, a lone `V`, `Y` or `R`, and depth layers of multilayer and multi-part files as Blender and Nuke
    name them ("ViewLayer.Depth.Z", "Depth.V", "depth.Z"). An R, G and B that are the same are one grey image. A data
    window smaller than the image is background around it.

    Raises:
        WorldWarpError: `bad_depth`.
    """
    import OpenEXR

    path = Path(path)
    try:
        with OpenEXR.File(str(path), header_only=True) as file:
            _check_size(path, [part.header for part in file.parts])
            announced = len(file.parts)
        with OpenEXR.File(str(path), separate_channels=True) as file:
            # Parts whose pixels cannot be read are left out with a printed warning, not an exception.
            if len(file.parts) < announced:
                raise _bad(path, "it is damaged or not whole. Render it again")
            return _depth_of_parts(path, file.parts)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _bad(path, f"it cannot be read as OpenEXR: {error}") from error


def _linear_of_srgb() -> np.ndarray:
    """(256,) float16: the light of each 8-bit sRGB value (IEC 61966-2-1)."""
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float16)


_LINEAR = _linear_of_srgb()


def _check_size(path: Path, headers: list[dict[str, Any]]) -> None:
    samples = 0
    for header in headers:
        (left, top), (right, bottom) = header["dataWindow"]
        display = np.subtract(header["displayWindow"][1], header["displayWindow"][0], dtype=np.int64) + 1
        width, height = int(right) - int(left) + 1, int(bottom) - int(top) + 1
        if not (
            1 <= width <= MAX_SIDE_PX
            and 1 <= height <= MAX_SIDE_PX
            and 1 <= display.min() <= display.max() <= MAX_SIDE_PX
        ):
            raise _bad(path, f"it says that it is {width}x{height} pixels; up to {MAX_SIDE_PX} a side are read")
        samples += width * height * len(header["channels"])
    if samples > MAX_SAMPLES:
        raise _bad(
            path,
            f"it holds {samples:.1e} values; at most {MAX_SAMPLES:.1e} are read. Export the depth alone",
        )


def _depth_of_parts(path: Path, parts: list[Any]) -> np.ndarray:
    names = [_full_name(part.name(), channel) for part in parts for channel in part.channels]
    channels = [(part, channel) for part in parts for channel in part.channels.values()]
    ranks = [_rank(name, names) for name in names]
    best = min((rank for rank in ranks if rank is not None), default=None)
    if best is None:
        raise _bad(path, f"it has no depth channel: of {', '.join(names[:12])} none is Z, V, Y or in a Depth layer")
    chosen = [i for i, rank in enumerate(ranks) if rank == best]
    if len(chosen) > 1:
        raise _bad(path, f"it has more than one depth pass ({', '.join(names[i] for i in chosen)}). Export one")

    part, channel = channels[chosen[0]]
    layer = names[chosen[0]].rpartition(".")[0]
    if names[chosen[0]].endswith("R"):
        for other, (_, pixels) in zip(names, channels, strict=True):
            if other in (_full_name(layer, "G"), _full_name(layer, "B")) and not _same(pixels.pixels, channel.pixels):
                raise _bad(path, "it is a colour image, not a depth pass: its R, G and B differ")
    return _in_display_window(part.header, np.asarray(channel.pixels, np.float32))


def _rank(name: str, names: list[str]) -> tuple[int, int] | None:
    """How surely the channel is depth, smaller is surer; None for one that is not."""
    layer, _, last = name.rpartition(".")
    if last.upper() not in _DEPTH_CHANNELS:
        return None
    order = _DEPTH_CHANNELS.index(last.upper())
    words = layer.lower().split(".")
    if "depth" in words:
        return 0, order
    if not layer and last.upper() == "Z":
        return 1, order
    if "depth" in layer.lower():  # "Denoising Depth", "depth_pass"
        return 2, order
    colours = {_full_name(layer, colour) for colour in "RGBA"}
    alone = all(other == name or (last.upper() == "R" and other in colours) for other in names)
    return (3, order) if alone else None


def _full_name(layer: str, channel: str) -> str:
    """A channel's name with its part's, where it does not say that itself: both ways of writing layers become one."""
    return channel if not layer or channel.startswith(f"{layer}.") else f"{layer}.{channel}"


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))


def _in_display_window(header: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """The pixels of the data window laid on the whole image; background where it has none."""
    (left, top), (right, bottom) = (corner.astype(int) for corner in header["displayWindow"])
    offset_x, offset_y = header["dataWindow"][0].astype(int) - (left, top)
    height, width = pixels.shape
    if (offset_x, offset_y, width, height) == (0, 0, right - left + 1, bottom - top + 1):
        return pixels
    image = np.full((bottom - top + 1, right - left + 1), BACKGROUND_DEPTH, np.float32)
    rows = slice(max(0, offset_y), min(image.shape[0], offset_y + height))
    columns = slice(max(0, offset_x), min(image.shape[1], offset_x + width))
    if rows.start < rows.stop and columns.start < columns.stop:
        image[rows, columns] = pixels[
            rows.start - offset_y : rows.stop - offset_y, columns.start - offset_x : columns.stop - offset_x
        ]
    return image


def _bad(path: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_depth", f"Cannot take the depth of {path}: {what}.")
