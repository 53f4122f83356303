"""The pictures that worlds wear: procedural patterns and, from a file, photographs and photographed surfaces.

A texture file is an .npz of JPEG bytes: `data` (uint8, all of them), `ends` (int64, the cumulative end of each) and
`kinds` ('tex' for surfaces, 'photo' for photographs), every image square and of one size. The package ships none.
The bank holds every picture with its mip levels as one table of texels, so that a gather reads any of them.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import WorldWarpError
from .patterns import PATTERNS, make_patterns

Split = Literal["train", "val", "test"]

SPLIT_WINDOWS: dict[str, tuple[float, float]] = {"test": (0.03, 0.13), "val": (0.40, 0.46)}
"""Which stretch of each kind's list belongs to validation and test; the rest is for training."""
GUARD = 6
"""Images left out on either side of a stretch: crops of one photograph lie side by side in the list."""
SAME = 0.02
"""Mean difference of 8x8 thumbnails, in [0, 1], up to which two images count as one."""
PATTERN_SEEDS: dict[str, int] = {"train": 101, "val": 202, "test": 303}
FILE_LIMIT = 1 << 30
IMAGE_LIMIT = 20_000
IMAGE_SIDE = 4096
"""Bytes of a texture file, its images, and pixels along a side of one: more is not read."""


@dataclass(frozen=True)
class TextureBank:
    """Pictures with mip levels.

    Attributes:
        texels: (N * stride, 4) uint8 sRGB and an unused byte; picture i's level l starts at i * stride + offsets[l].
        size: side of level 0 in texels, a power of two.
        offsets: (levels,) int64.
        groups: names of patterns, 'tex' and 'photo' -> the pictures of that kind.
    """

    texels: Tensor
    size: int
    offsets: Tensor
    groups: dict[str, list[int]]

    @property
    def stride(self) -> int:
        return sum(4**k for k in range(self.size.bit_length()))

    @property
    def levels(self) -> int:
        return self.size.bit_length()

    def __len__(self) -> int:
        return len(self.texels) // self.stride

    def sample(self, picture: Tensor, uv: Tensor, level: Tensor) -> Tensor:
        """(..., 3) sRGB in [0, 1] of (...,) pictures at (..., 2) `uv` in turns, repeated, trilinearly.

        `level` (...,) is log2 of the footprint in level-0 texels.
        """
        if uv.is_cuda:
            from . import trace_triton

            return trace_triton.sample(self.texels, self.size, picture, uv, level)
        level = level.clamp(0, self.levels - 1)
        low = level.floor()
        start = picture * self.stride
        fine = _bilinear(self.texels, self.offsets, self.size, start, uv, low.long())
        coarse = _bilinear(self.texels, self.offsets, self.size, start, uv, (low.long() + 1).clamp(max=self.levels - 1))
        return torch.lerp(fine, coarse, (level - low)[..., None])


def _bilinear(texels: Tensor, offsets: Tensor, size: int, start: Tensor, uv: Tensor, level: Tensor) -> Tensor:
    side = size >> level
    xy = uv * side[..., None] - 0.5
    corner = xy.floor()
    fraction = xy - corner
    x0, y0 = (corner.long() & (side[..., None] - 1)).unbind(-1)
    x1, y1 = (x0 + 1) & (side - 1), (y0 + 1) & (side - 1)
    start = start + offsets[level]
    fx, fy = fraction[..., :1], fraction[..., 1:]

    def at(x: Tensor, y: Tensor) -> Tensor:
        return texels[start + y * side + x][..., :3].float() / 255.0

    return torch.lerp(torch.lerp(at(x0, y0), at(x1, y0), fx), torch.lerp(at(x0, y1), at(x1, y1), fx), fy)


def build_bank(
    split: Split,
    path: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    size: int = 256,
    patterns_each: int = 12,
) -> TextureBank:
    """The pictures of one split: `patterns_each` of every procedural pattern and what the file at `path` has for it.

    Args:
        split: "train", "val" or "test": no pattern and no image of the file is in two of them.
        path: a texture file, or None for patterns alone.
        device: where the texels lie.
        size: side of a texture, a power of two.
        patterns_each: pictures of each procedural pattern.

    Raises:
        WorldWarpError: `bad_textures` where the file is not of the layout above.
    """
    assert size & (size - 1) == 0, size
    generator = torch.Generator().manual_seed(PATTERN_SEEDS[split])
    groups: dict[str, list[int]] = {}
    pictures: list[Tensor] = []
    for name in PATTERNS:
        made = make_patterns(name, patterns_each, size, generator, device)
        groups[name] = list(range(len(pictures) * patterns_each, (len(pictures) + 1) * patterns_each))
        pictures.append((made * 255).round().to(torch.uint8))
    count = len(pictures) * patterns_each
    if path is not None:
        images, kinds = load_images(path)
        for kind in ("tex", "photo"):
            chosen = choose(images, kinds, kind, split)
            groups[kind] = list(range(count, count + len(chosen)))
            count += len(chosen)
            if len(chosen):
                found = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).to(device)
                if found.shape[-1] != size:
                    shrunk = F.interpolate(found.float(), (size, size), mode="bilinear", antialias=True)
                    found = shrunk.round().clamp(0, 255).to(torch.uint8)
                pictures.append(found)
    texels = torch.cat([_with_mips(some) for some in pictures])
    levels = size.bit_length()
    offsets = [sum((size >> k) ** 2 for k in range(level)) for level in range(levels)]
    return TextureBank(texels.reshape(-1, 4), size, torch.tensor(offsets, device=device), groups)


def load_images(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S, 3) uint8 RGB and (N,) kinds of a texture file.

    Raises:
        WorldWarpError: `bad_textures`.
    """
    path = Path(path)
    if not path.is_file():
        raise WorldWarpError("bad_textures", f"There is no texture file at {path}; give an .npz, or none.")
    if path.stat().st_size > FILE_LIMIT:
        raise WorldWarpError(
            "bad_textures", f"{path.name} has {path.stat().st_size} bytes; at most {FILE_LIMIT} are read."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            data, ends, kinds = file["data"], file["ends"], file["kinds"]
        if not (len(ends) == len(kinds) and 0 < len(ends) <= IMAGE_LIMIT and int(ends[-1]) == len(data)):
            raise ValueError(f"{len(ends)} ends, {len(kinds)} kinds, {len(data)} bytes")
        starts = np.concatenate([[0], ends[:-1]])
        with ThreadPoolExecutor() as pool:
            files = (data[begin:end].tobytes() for begin, end in zip(starts.tolist(), ends.tolist(), strict=True))
            return np.stack(list(pool.map(_decode, files))), kinds
    except (KeyError, ValueError, OSError, UnidentifiedImageError) as error:
        raise WorldWarpError(
            "bad_textures",
            f"{path.name} is no texture file ({error}); expected an .npz with data, ends and kinds: "
            "JPEG images of one size.",
        ) from error


def _decode(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
        if max(image.size) > IMAGE_SIDE:
            raise ValueError(f"an image of {image.size}")
        return np.asarray(image.convert("RGB"))


def choose(images: np.ndarray, kinds: np.ndarray, kind: str, split: Split) -> np.ndarray:
    """Indices of the usable images of a kind that belong to a split.

    Stretches of the list go to validation and test, with a guard on either side; from training also goes what looks
    the same as an image in one of those stretches (surfaces come several times in different places of the list).
    """
    rows = np.flatnonzero(kinds == kind)
    where = np.arange(len(rows)) / max(len(rows), 1)
    guard = GUARD / max(len(rows), 1)
    held: dict[str, np.ndarray] = {}
    near = np.zeros(len(rows), bool)
    for name, (low, high) in SPLIT_WINDOWS.items():
        held[name] = (where >= low) & (where < high)
        near |= (where >= low - guard) & (where < high + guard)
    small = _thumbnails(images)[rows]
    if split == "train":
        kept = ~near
        out = small[held["val"] | held["test"]]
    else:
        kept = held[split]
        out = small[held["test"]] if split == "val" else small[:0]
    for i in np.flatnonzero(kept):
        kept[i] = not (np.abs(out - small[i]).mean((1, 2, 3)) < SAME).any()
    return np.array([rows[i] for i in np.flatnonzero(kept) if usable(images[rows[i]], kind)], np.int64)


def usable(image: np.ndarray, kind: str) -> bool:
    """False for what makes a poor surface: flat backgrounds with a logo, a sign or cut-out leaves on them, normal maps.

    Such pictures have one colour over much of their area, or much pure black or white, or differ strongly from cell
    to cell. Photographs may differ from cell to cell.
    """
    small = image[::4, ::4].reshape(-1, 3).astype(np.int64)
    binned = (small // 24) @ np.array([121, 11, 1])
    flattest = np.bincount(binned).max() / len(binned)
    pure = ((small > 246).all(1) | (small < 8).all(1)).mean()
    mean, spread = small.mean(0), small.std(0).mean()
    normal_map = mean[2] > 200 and abs(mean[0] - 128) < 25 and abs(mean[1] - 128) < 25
    if kind == "photo":
        return bool(pure < 0.6 and spread > 6)
    side = image.shape[0] // 4 * 4
    cells = image[:side, :side].reshape(4, side // 4, 4, side // 4, 3).mean((1, 3)).reshape(16, 3)
    uneven = cells.std(0).mean()
    logo = flattest > 0.3 and uneven > 14
    return bool(not normal_map and pure < 0.12 and not logo and uneven < 30 and spread > 4)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """(N, 8, 8, 3) float32 in [0, 1]."""
    side = images.shape[1] // 8 * 8
    step = max(side // 64, 1)  # eight samples along a cell are plenty
    few = images[:, :side:step, :side:step].astype(np.float32)
    cell = few.shape[1] // 8
    return few[:, : 8 * cell, : 8 * cell].reshape(len(few), 8, cell, 8, cell, 3).mean((2, 4)) / 255


def _with_mips(pictures: Tensor) -> Tensor:
    """(n, 3, S, S) uint8 -> (n, stride, 4) uint8, level after level."""
    now = pictures.float()
    levels = []
    while True:
        flat = now.round().clamp(0, 255).to(torch.uint8).flatten(2).transpose(1, 2)
        levels.append(F.pad(flat, (0, 1)))
        if now.shape[-1] == 1:
            return torch.cat(levels, 1)
        now = F.avg_pool2d(now, 2)
