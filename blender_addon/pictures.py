# SPDX-License-Identifier: GPL-3.0-or-later
"""Image data-blocks as NumPy arrays: start pictures, style references, painted masks, depth maps.

In: a `bpy.types.Image` that shows a still. Out: arrays with the top row first. Pictures come as they look (sRGB),
masks and depths as their stored numbers.
"""

from __future__ import annotations

import bpy
import numpy as np

from worldwarp_core.errors import WorldWarpError

from .sequences import ELSEWHERE, SRGB


def picture_of(image: bpy.types.Image) -> np.ndarray:
    """Returns (H, W, 3) uint8 sRGB.

    Raises:
        WorldWarpError: `bad_image` when it has no pixels.
    """
    colours = stored_pixels(image)
    colours = colours[..., :3] if colours.shape[2] >= 3 else colours[..., :1].repeat(3, axis=2)
    # Blender keeps pictures of more than 8 bits as linear light.
    encoded = linear_to_srgb(colours) if image.is_float and not image.colorspace_settings.is_data else colours
    return np.rint(np.clip(np.nan_to_num(encoded), 0, 1) * 255).astype(np.uint8)


def values_of(image: bpy.types.Image) -> np.ndarray:
    """Returns (H, W) float32: the mean of red, green and blue as their file has them.

    Raises:
        WorldWarpError: `bad_image` when it has no pixels.
    """
    values = stored_pixels(image)[..., :3].mean(axis=2, dtype=np.float32)
    # A map of 16 bits that the artist left as sRGB was taken for a picture, and turned into light when it was read.
    is_taken_for_srgb = image.is_float and image.colorspace_settings.name in (SRGB, *ELSEWHERE[SRGB])
    return linear_to_srgb(values).astype(np.float32) if is_taken_for_srgb else values


def stored_pixels(image: bpy.types.Image) -> np.ndarray:
    """Returns (H, W, channels) float32, top row first, as Blender holds them: 8-bit pictures as stored values / 255.

    Raises:
        WorldWarpError: `bad_image` when it has no pixels.
    """
    width, height = image.size
    pixels = np.empty(width * height * image.channels, np.float32)
    if pixels.size == 0 or len(image.pixels) != pixels.size:
        raise WorldWarpError(
            "bad_image",
            f'The image "{image.name}" has no pixels: its file may have been moved. Reload it, or pick another.',
        )
    image.pixels.foreach_get(pixels)
    return pixels.reshape(height, width, image.channels)[::-1]


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Returns sRGB's encoding of linear light (IEC 61966-2-1); below 0 stays 0."""
    linear = np.maximum(linear, 0.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def cropped_to_aspect(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns the largest part around the middle of (H, W, ...) `picture` that has the aspect of width x height."""
    tall, wide = picture.shape[:2]
    keep_wide = min(wide, round(tall * width / height))
    keep_tall = min(tall, round(wide * height / width))
    left, top = (wide - keep_wide) // 2, (tall - keep_tall) // 2
    return np.ascontiguousarray(picture[top : top + max(keep_tall, 1), left : left + max(keep_wide, 1)])


def reduced(picture: np.ndarray, longest: int) -> np.ndarray:
    """Returns (H, W, ...) `picture` averaged over whole blocks of pixels until no side is over `longest`."""
    block = -(-max(picture.shape[:2]) // longest)
    if block <= 1:
        return picture
    # Blocks that the edge cuts short are left out.
    height, width = (max(side // block, 1) for side in picture.shape[:2])
    whole = picture[: height * block, : width * block].astype(np.float32)
    size = (height, whole.shape[0] // height, width, whole.shape[1] // width, *picture.shape[2:])
    means = whole.reshape(size).mean(axis=(1, 3))
    return (np.rint(means) if picture.dtype == np.uint8 else means).astype(picture.dtype)
