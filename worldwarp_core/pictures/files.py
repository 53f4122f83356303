"""The start frame, its depth and what else a shot is made with, read from files.

In: a path. Out: (H, W, 3) uint8 sRGB, (H, W) float32 planar z in scene units, the same of a whole path, or (n, H, W)
float32 of a strength mask; all top row first. The kind of a file is told from its content, not from its name.
"""

from __future__ import annotations

import io
import math
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..errors import WorldWarpError
from ..spec import BACKGROUND_DEPTH, PATH_DEPTH_PIXELS, PathDepth
from .exr import MAX_SIDE_PX, read_depth_exr
from .framing import resize_map

MAX_PIXELS = 89_000_000
"""Of a start frame, a little below where Pillow begins to warn of decompression bombs."""

_NUMBERED = re.compile(r"((?:(?<![A-Za-z0-9])-)?\d+)\.(?:exr|npy)$", re.IGNORECASE)
"""A hyphen after a letter separates, as in shot-0001.exr; elsewhere it is a sign."""

# Decoders for what cameras and renderers write. Pillow knows formats (EPS) that run other programs: not from outside.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "TGA", "JPEG2000", "PPM")

_PNG, _NPY, _EXR = b"\x89PNG", b"\x93NUMPY", b"\x76\x2f\x31\x01"


def read_start_frame(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W, 3) uint8 sRGB of a PNG, JPEG, TIFF, WebP, BMP, TGA, JPEG 2000 or PPM.

    Turned upright as its EXIF says, and brought to sRGB from the colour profile in it. Of 16 bits the upper 8 are
    taken. Transparency is laid over black, which is what Blender writes of the same render without alpha.

    Raises:
        WorldWarpError: `bad_start_frame`.
    """
    return _read_picture(Path(path), "bad_start_frame", "start frame")


def read_style_image(path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W, 3) uint8 sRGB of any picture that `read_start_frame` takes.

    Raises:
        WorldWarpError: `bad_style_image`.
    """
    return _read_picture(Path(path), "bad_style_image", "style image")


def read_strength_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """(n, H, W) float32 in [-1, 1]: what to add to the strength, by region.

    A picture is one mask for all frames: mid grey (128) changes nothing, black is -1, white +1. A NumPy .npy is taken
    as it is: (H, W), or (n, H, W) with one for each frame of the path.

    Raises:
        WorldWarpError: `bad_strength_mask`.
    """
    path = Path(path)
    _require_file(path, "bad_strength_mask", "strength mask")
    with path.open("rb") as file:
        is_array = file.read(len(_NPY)) == _NPY
    if not is_array:
        grey = _read_picture(path, "bad_strength_mask", "strength mask").mean(axis=2, dtype=np.float32)
        return np.clip((grey - 128) / 127, -1, 1)[None]
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, SyntaxError) as error:
        raise WorldWarpError("bad_strength_mask", f"The strength mask {path} cannot be read: {error}.") from error
    if stored.ndim not in (2, 3) or stored.dtype.kind not in "fiu" or not (np.abs(stored) <= 1).all():
        raise WorldWarpError(
            "bad_strength_mask",
            f"The strength mask {path} must be (H, W) or (frames, H, W) numbers from -1 to 1; got {stored.dtype} of "
            f"shape {stored.shape}.",
        )
    return stored.astype(np.float32).reshape(-1, *stored.shape[-2:])


def _read_picture(path: Path, code: str, what: str) -> np.ndarray:
    _require_file(path, code, what)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if max(image.size) > MAX_SIDE_PX or image.width * image.height > MAX_PIXELS:
                raise WorldWarpError(
                    code,
                    f"The {what} {path} is {image.width}x{image.height} pixels; at most {MAX_PIXELS / 1e6:.0f} "
                    f"megapixels and {MAX_SIDE_PX} a side are taken. Scale it down.",
                )
            if image.mode == "F":
                raise WorldWarpError(
                    code,
                    f"The {what} {path} has floating-point values, so what they look like is not said. Save it as "
                    "PNG with the view transform that you see.",
                )
            return np.array(_in_srgb(ImageOps.exif_transpose(image)))
    except WorldWarpError:
        raise
    except Image.DecompressionBombError as error:
        raise WorldWarpError(code, f"The {what} {path} is too large: {error}") from error
    except Exception as error:  # decoders of damaged files raise whatever their parsing trips over
        raise WorldWarpError(
            code,
            f"The {what} {path} cannot be read: {error or type(error).__name__}. It must be a whole image file "
            "(PNG, JPEG, TIFF or WebP); save it again.",
        ) from error


def read_depth(path: str | os.PathLike[str], *, scale: float | None = None) -> np.ndarray:
    """(H, W) float32 planar z in scene units of an EXR, a NumPy .npy or a 16-bit grey PNG; background is 1e10.

    Background are infinity, 1e10 and above, and in a PNG or an array of integers the counts 0 (nothing measured) and
    the type's largest (too far to count). NaN and negative values are left for whoever knows the start frame to
    refuse.

    Args:
        scale: scene units per stored unit: needed for integers, 1 by default for floating point.

    Raises:
        WorldWarpError: `bad_depth`.
    """
    path = Path(path)
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise WorldWarpError(
            "bad_depth", f"The depth scale must be above 0 (scene units per stored unit); got {scale}."
        )
    _require_file(path, "bad_depth", "depth file")
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise _bad_depth(path, f"it cannot be opened ({error.strerror})") from error
    if magic.startswith(_EXR):
        stored = read_depth_exr(path)
    elif magic.startswith(_NPY):
        stored = _read_npy(path)
    elif magic.startswith(_PNG):
        stored = _read_png(path)
    else:
        raise _bad_depth(path, "it is neither OpenEXR nor NumPy .npy nor PNG")

    if stored.dtype.kind in "iu":
        if scale is None:
            raise _bad_depth(
                path, "it counts in whole numbers. Say how many scene units one count is with --depth-scale"
            )
        background = (stored == 0) | (stored == np.iinfo(stored.dtype).max)
    else:
        with np.errstate(invalid="ignore"):
            background = stored >= BACKGROUND_DEPTH
    with np.errstate(over="ignore", invalid="ignore"):
        depth = (stored * np.float64(1.0 if scale is None else scale)).astype(np.float32)
        depth[background | (depth >= BACKGROUND_DEPTH)] = BACKGROUND_DEPTH
    return depth


def read_path_depth(folder: str | os.PathLike[str], frames: np.ndarray) -> PathDepth:
    """The scene's depth along a path: a folder of depth files (EXR or .npy) whose names end in their frame's number.

    Files of other frames than the path's (T,) `frames` are left out, and frames may lack a file. Maps larger than
    `PATH_DEPTH_PIXELS` are sampled down to it: the path's depth says where surfaces are, not what they look like.

    Raises:
        WorldWarpError: `bad_path_depth`, or `bad_depth` of a file that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WorldWarpError("bad_path_depth", f"There is no folder {folder} with the depth of the path's frames.")
    wanted, found = set(frames.tolist()), dict[int, Path]()
    for path in sorted(folder.iterdir()):
        named = _NUMBERED.search(path.name)
        if named is None or int(named[1]) not in wanted:
            continue
        if other := found.get(int(named[1])):
            raise WorldWarpError(
                "bad_path_depth",
                f"{other.name} and {path.name} in {folder} are both of frame {int(named[1])}: leave only one depth "
                "file of each frame in the folder.",
            )
        found[int(named[1])] = path
    if not found:
        raise WorldWarpError(
            "bad_path_depth",
            f"{folder} has no depth file of the path's frames {frames[0]} to {frames[-1]}. Files are taken whose names "
            f"end in the frame's number, such as depth_{int(frames[0]):04d}.exr (or .npy).",
        )
    numbers = sorted(found)
    maps = [_sampled(read_depth(found[number])) for number in numbers]
    for number, values in zip(numbers, maps, strict=True):
        if values.shape != maps[0].shape:
            raise WorldWarpError(
                "bad_path_depth",
                f"{found[number].name} and {found[numbers[0]].name} in {folder} differ in size: render all frames "
                "alike.",
            )
    return PathDepth.of(numbers, maps)


def _sampled(depth: np.ndarray) -> np.ndarray:
    """(h, w) depth of at most `PATH_DEPTH_PIXELS`, each pixel the one nearest to its centre."""
    shrink = min(1.0, math.sqrt(PATH_DEPTH_PIXELS / depth.size))
    height, width = (max(round(side * shrink), 1) for side in depth.shape)
    return resize_map(depth, width, height)


def _in_srgb(image: Image.Image) -> Image.Image:
    """Any mode but "F" as RGB: profile applied, wide grey narrowed, alpha laid over black."""
    if image.mode.startswith("I"):  # 16-bit grey; "I" is how older Pillows open it
        grey = np.clip(np.asarray(image).astype(np.float64), 0, 65535) / 257
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    profile = image.info.get("icc_profile")
    transparent = image.has_transparency_data
    if transparent:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if transparent or image.mode not in ("L", "CMYK", "RGB"):
        image = image.convert("RGB")
    if profile:
        image = _from_profile(image, profile)
    image = image.convert("RGB")
    return Image.composite(image, Image.new("RGB", image.size), alpha) if transparent else image


def _from_profile(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    space = {"GRAY": "L", "CMYK": "CMYK", "RGB": "RGB"}.get(source.profile.xcolor_space.strip())
    # A grey or palette picture saved with the profile of the screen: the profile says nothing about its pixels.
    if space != image.mode or "srgb" in (source.profile.profile_description or "").lower():
        return image
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # None is for in-place conversion only
    return converted


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Mapped, so that a header that claims more than the file holds is refused before memory is taken for it.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, SyntaxError) as error:
        raise _bad_depth(path, f"it is not a whole .npy of plain numbers ({error})") from error
    if (
        mapped.ndim != 2
        or mapped.dtype.kind not in "fiu"
        or not 0 < max(mapped.shape) <= MAX_SIDE_PX
        or 0 in mapped.shape
    ):
        raise _bad_depth(path, f"it must be a (height, width) array of numbers; got {mapped.dtype} {mapped.shape}")
    return np.array(mapped)


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE_PX or image.width * image.height > MAX_PIXELS:
                raise _bad_depth(
                    path, f"it is {image.width}x{image.height} pixels; at most {MAX_SIDE_PX} a side are read"
                )
            if not image.mode.startswith("I"):
                raise _bad_depth(path, "a depth PNG must be grey with 16 bits. Export the Z pass as OpenEXR instead")
            return np.array(image).astype(np.uint16)
    except WorldWarpError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever their parsing trips over
        raise _bad_depth(path, f"it is damaged or not whole ({error or type(error).__name__})") from error


def _require_file(path: Path, code: str, what: str) -> None:
    if not path.is_file():
        raise WorldWarpError(code, f"There is no {what} {path}.")


def _bad_depth(path: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_depth", f"Cannot take the depth of {path}: {what}.")
