"""What the next chunk and the next fit see of the frames made so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class History:
    """V frames that exist, at the model's size, in cache units.

    Attributes:
        numbers: the frames' own numbers.
        rgb: (V, H, W, 3) in [0, 1], in the 256 levels that frames are delivered in (`in_levels`).
        trusted: (V, H, W) in the same levels; 1 where the picture agrees with other frames (real, or a valid prior).
        w2c: (V, 4, 4), K: (V, 3, 3).
    """

    numbers: list[int]
    rgb: Tensor
    trusted: Tensor
    w2c: Tensor
    K: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: list[int]) -> History:
        return History(
            [self.numbers[r] for r in rows], self.rgb[rows], self.trusted[rows], self.w2c[rows], self.K[rows]
        )

    def last(self, count: int) -> History:
        return self[list(range(max(len(self) - count, 0), len(self)))]


def in_levels(rgb: Tensor) -> Tensor:
    """What was delivered of pictures in [0, 1]: 256 levels, float32. What comes after goes on from what is there."""
    return from_bytes(to_bytes(rgb))


def to_bytes(x: Tensor) -> Tensor:
    """[0, 1] -> uint8."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def from_bytes(x: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]; on one device always the same, to the bit."""
    return x.float() / 255


def extend_history(history: History, new: History, keep: int) -> History:
    """The last `keep` frames of both: memory must not grow with the path."""
    joined = History(
        history.numbers + new.numbers,
        torch.cat([history.rgb, new.rgb]),
        torch.cat([history.trusted, new.trusted]),
        torch.cat([history.w2c, new.w2c]),
        torch.cat([history.K, new.K]),
    )
    return joined.last(keep)
