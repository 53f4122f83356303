"""Frames to latents and back by Wan's video autoencoder, which the method was made with.

Frames are (T, H, W, 3) in [0, 1], T = 4k + 1, sides multiples of 16. Latents are (1, C, T', H/8, W/8) float32 with
T' = (T - 1)/4 + 1, normalised by the autoencoder's own mean and deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from ..errors import WorldWarpError
from ..loop.priors import Priors
from ..triton_here import why_no_triton
from .streaming import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    Memory,
    check_architecture,
    decode_step,
    encode_step,
    to_channels_last,
)

TILE_OVERLAP = 4
"""Neighbouring tiles share a quarter of their side; there one fades into the other."""


@dataclass(frozen=True)
class AutoencoderOptions:
    """How fast against how little memory; none of it changes the pictures beyond rounding, except tiles.

    Attributes:
        group: latents a step after the first, 4 frames each: more keeps a GPU busier and takes more memory. On an H100
            2 are 5% faster than 1 and take 1.5 GiB more at 720x480.
        tile: side of the square tiles that a frame is worked on in, pixels, a multiple of 32; None takes it whole.
            Tiles see nothing beyond their border, so their seams are faded into each other.
    """

    group: int = 1
    tile: int | None = None

    def __post_init__(self) -> None:
        if self.group < 1:
            raise WorldWarpError("bad_settings", f"The autoencoder needs at least 1 latent a step; got {self.group}.")
        if self.tile is not None and (self.tile < 64 or self.tile % 32):
            raise WorldWarpError(
                "bad_settings", f"A tile's side must be a multiple of 32 and at least 64 pixels; got {self.tile}."
            )


class WanAutoencoder:
    """Wan 2.1's autoencoder in bounded memory: the latents of a clip in groups, each frame out as soon as it exists.

    Takes `vae` over: moves it to the device, in bfloat16 on CUDA and float32 elsewhere, and lays its weights out anew.

    Raises:
        WorldWarpError: `bad_weights` when `vae` is of another architecture.
    """

    name = "wan"

    def __init__(
        self,
        vae: AutoencoderKLWan,
        options: AutoencoderOptions = AutoencoderOptions(),
        device: torch.device | str = "cpu",
    ) -> None:
        check_architecture(vae)
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.options = options
        self.channels: int = vae.config["z_dim"]
        self._vae = vae
        nn.Module.to(vae, self.device, self.dtype)  # diffusers' own `to` warns that nothing needs float32
        vae.eval().requires_grad_(False)
        to_channels_last(vae)
        shape = (1, self.channels, 1, 1, 1)
        self._mean = torch.tensor(vae.config["latents_mean"], device=self.device).view(shape)
        self._std = torch.tensor(vae.config["latents_std"], device=self.device).view(shape)
        self.fused = self.device.type == "cuda" and why_no_triton() is None
        """Whether autoencoder_kernels.py is used; where it cannot be (no Triton), all takes more than twice as long."""

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(T, H, W, 3) in [0, 1], on any device -> (1, C, T', H/8, W/8) float32: the posterior's mean, nothing random.

        Only one group of frames is on the device at a time.
        """
        total, height, width, rgb = frames.shape
        assert (rgb, total % FRAMES_PER_LATENT) == (3, 1), frames.shape
        assert (height % PIXELS_PER_LATENT, width % PIXELS_PER_LATENT) == (0, 0), frames.shape
        tiles = _Tiles(height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT, self.options.tile)
        memories: list[Memory | None] = [None] * len(tiles)
        latents = []
        for start, stop in pairwise(_boundaries(total // FRAMES_PER_LATENT + 1, self.options.group)):
            group = frames[_first_frame(start) : _first_frame(stop)].to(self.device)
            # Causal: frames after the clip's end change nothing before it, and all steps have shapes tuned already.
            group = _padded(group, 1 if start == 0 else FRAMES_PER_LATENT * self.options.group)
            pictures = (group * 2 - 1).to(self.dtype).movedim(-1, 0)[None]
            parts = []
            for i in range(len(tiles)):
                with _tuned():
                    tile = tiles.cut(pictures, i, PIXELS_PER_LATENT)
                    part, memories[i] = encode_step(self._vae, tile, memories[i], self.fused)
                parts.append(part)
            latents.append(tiles.join(parts, 1)[:, :, : stop - start].float())
        return (torch.cat(latents, 2) - self._mean) / self._std

    @torch.no_grad()
    def decode(self, latents: Tensor, priors: Priors | None = None) -> Iterator[Tensor]:
        """Yields the T (H, W, 3) float32 frames in [0, 1] on the device; `priors` guide nothing here."""
        batch, channels, count, height, width = latents.shape
        assert (batch, channels) == (1, self.channels), latents.shape
        tiles = _Tiles(height, width, self.options.tile)
        memories: list[Memory | None] = [None] * len(tiles)
        for start, stop in pairwise(_boundaries(count, self.options.group)):
            group = latents[:, :, start:stop].to(self.device) * self._std + self._mean
            group = _padded(group.movedim(2, 0), 1 if start == 0 else self.options.group).movedim(0, 2)
            group = group.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
            parts = []
            for i in range(len(tiles)):
                with _tuned():
                    part, memories[i] = decode_step(self._vae, tiles.cut(group, i, 1), memories[i], self.fused)
                parts.append(part)
            clip = tiles.join(parts, PIXELS_PER_LATENT)[0].movedim(0, -1)
            clip = (clip.float() / 2 + 0.5).clamp_(0, 1)
            yield from clip[: _first_frame(stop) - _first_frame(start)]


@contextmanager
def _tuned() -> Iterator[None]:
    """Lets cuDNN time its convolutions once for each shape, of which a clip has few; nobody else's are affected."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _boundaries(count: int, group: int) -> list[int]:
    """Where the steps over `count` latents begin, and the end: the first latent alone, then groups."""
    return [0, *range(1, count, group), count]


def _first_frame(latent: int) -> int:
    """The first frame of a latent."""
    return 0 if latent == 0 else 1 + FRAMES_PER_LATENT * (latent - 1)


def _padded(frames: Tensor, length: int) -> Tensor:
    """`frames` along the first axis, the last one repeated up to `length`."""
    missing = length - len(frames)
    return torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])]) if missing else frames


class _Tiles:
    """Overlapping squares over a picture, cut and joined by the rule of diffusers' tiled autoencoder.

    Args:
        height, width: of the picture in latents.
        side: of a tile in pixels; None is one tile, the whole picture.
    """

    def __init__(self, height: int, width: int, side: int | None) -> None:
        whole = max(height, width)
        self._side = whole if side is None else min(side // PIXELS_PER_LATENT, whole)
        self._stride = self._side if self._side == whole else self._side - self._side // TILE_OVERLAP
        self._rows = range(0, height, self._stride)
        self._columns = range(0, width, self._stride)
        self._size = height, width

    def __len__(self) -> int:
        return len(self._rows) * len(self._columns)

    def cut(self, clip: Tensor, tile: int, scale: int) -> Tensor:
        """Tile number `tile` of a (1, C, T, H, W) clip with `scale` pixels a latent."""
        y = self._rows[tile // len(self._columns)] * scale
        x = self._columns[tile % len(self._columns)] * scale
        side = self._side * scale
        return clip[..., y : y + side, x : x + side].contiguous(memory_format=torch.channels_last_3d)

    def join(self, parts: list[Tensor], scale: int) -> Tensor:
        """The clip of its tiles, each fading in over what it shares with the tile above and the one to its left."""
        if len(parts) == 1:
            return parts[0]
        stride = self._stride * scale
        shared = (self._side - self._stride) * scale
        columns = len(self._columns)
        rows = []
        for row in range(len(self._rows)):
            for column in range(columns):
                i = row * columns + column
                if row:
                    parts[i] = _fade(parts[i - columns], parts[i], shared, -2)
                if column:
                    parts[i] = _fade(parts[i - 1], parts[i], shared, -1)
            kept = [part[..., :stride, :stride] for part in parts[row * columns : (row + 1) * columns]]
            rows.append(torch.cat(kept, -1))
        height, width = self._size
        return torch.cat(rows, -2)[..., : height * scale, : width * scale]


def _fade(before: Tensor, after: Tensor, shared: int, axis: int) -> Tensor:
    """`after`, its first `shared` rows or columns faded from the last ones of `before`."""
    shared = min(before.shape[axis], after.shape[axis], shared)
    weight = torch.arange(shared, device=after.device, dtype=after.dtype) / shared
    weight = weight[:, None] if axis == -2 else weight
    end = before.narrow(axis, before.shape[axis] - shared, shared)
    faded = end * (1 - weight) + after.narrow(axis, 0, shared) * weight
    return torch.cat([faded, after.narrow(axis, shared, after.shape[axis] - shared)], axis)
