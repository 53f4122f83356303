"""Frames to latents and back: what the loop asks of a video autoencoder.

Frames are (T, H, W, 3) in [0, 1], T = 4k + 1, sides multiples of 16. Latents are (1, C, T', H/8, W/8) float32 with
T' = (T - 1)/4 + 1, normalised by the autoencoder's own mean and deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from .priors import Priors


class Autoencoder(Protocol):
    """Encodes clips and decodes them frame by frame."""

    name: str
    channels: int

    def encode(self, frames: Tensor) -> Tensor:
        """(T, H, W, 3) -> (1, C, T', H/8, W/8)."""
        ...

    def decode(self, latents: Tensor, priors: Priors | None = None) -> Iterator[Tensor]:
        """Yields (H, W, 3) frames in [0, 1], each as soon as it is decoded; stop asking and the work stops there.

        `priors`, of the same T frames, is for decoders that are guided by what the cache knows in detail.
        """
        ...
