"""Training examples kept in the device's memory: a ring that rendering refills while the network trains.

Rendering inside the training step would take most of the time. So examples are rendered once, kept (as pixels in 8
bits, or as latents), drawn many times, and replaced by new ones as long as making them has not taken more than its
share of the time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from ..errors import WorldWarpError

logger = logging.getLogger(__name__)

Examples = dict[str, Tensor]
"""Tensors whose first dimension counts examples."""


class Clips(Protocol):
    """A batch of clips with their priors; `worldwarp_core.training.clips.ClipBatch` is one."""

    @property
    def rgb(self) -> Tensor:
        """(n, T, 3, H, W) in [0, 1]."""
        ...

    @property
    def depth(self) -> Tensor:
        """(n, T, H, W) planar z, inf where there is nothing."""
        ...

    @property
    def prior(self) -> Tensor:
        """(n, T, 3, H, W) in [0, 1]: the clip as warped from what is known."""
        ...

    @property
    def validity(self) -> Tensor:
        """(n, T, H, W) in [0, 1]."""
        ...


class Source(Protocol):
    """Makes clips; `worldwarp_core.training.clips.ClipSource` is one."""

    def batch(self, n: int, first_seed: int) -> Clips:
        """`n` clips that no other seeds from `first_seed` to `first_seed + n - 1` give."""
        ...


@dataclass(frozen=True)
class PoolSettings:
    """How many, and how much time to make them.

    Attributes:
        capacity: examples kept.
        first: examples made before any is drawn.
        batch: examples made at once.
        share: of the time, spent making more.
    """

    capacity: int
    first: int
    batch: int
    share: float

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.first <= self.capacity:
            raise WorldWarpError(
                "bad_settings",
                f"A pool needs batch <= first <= capacity; got {self.batch}, {self.first}, {self.capacity}.",
            )
        if not 0.0 <= self.share < 1.0:
            raise WorldWarpError("bad_settings", f"The share of time for data must be in [0, 1); got {self.share}.")


class ExamplePool:
    """The ring. `make(first_seed)` gives one batch of examples; seeds go up by `stride` a batch."""

    def __init__(self, make: Callable[[int], Examples], settings: PoolSettings, first_seed: int, stride: int) -> None:
        self.settings, self.made, self.spent_s = settings, 0, 0.0
        self.next_seed = first_seed
        """Of the first process this is how many clips all of them have made: `stride` is what they make at a time."""
        self._make, self._stride = make, stride
        self._store: Examples = {}

    def __len__(self) -> int:
        return min(self.made, self.settings.capacity)

    def top_up(self, elapsed_s: float) -> None:
        """Makes more examples while that has taken less than its share of `elapsed_s`."""
        while self.spent_s < self.settings.share * elapsed_s:
            self._add()

    def draw(self, count: int, generator: Generator) -> Examples:
        """`count` examples, any of them; the first call makes the first examples.

        Not to be called where a network's loss is worked out: see `precision.py`.
        """
        if self.made < self.settings.first:
            while self.made < self.settings.first:
                self._add()
                logger.info("%d of the first %d examples made in %.1f s", self.made, self.settings.first, self.spent_s)
        rows = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        return {name: values[rows] for name, values in self._store.items()}

    def _add(self) -> None:
        started = time.monotonic()
        examples = self._make(self.next_seed)
        self.next_seed += self._stride
        for name, values in examples.items():
            if name not in self._store:
                self._store[name] = values.new_empty((self.settings.capacity, *values.shape[1:]))
            rows = (torch.arange(len(values)) + self.made) % self.settings.capacity
            self._store[name][rows.to(values.device)] = values
        self.made += len(next(iter(examples.values())))
        if values.is_cuda:
            torch.cuda.synchronize()
        self.spent_s += time.monotonic() - started
