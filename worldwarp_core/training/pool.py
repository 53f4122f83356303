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
from typing import Protocol, TypeVar

import torch
from torch import Generator, Tensor

from ..errors import WorldWarpError

logger = logging.getLogger(__name__)

Examples = dict[str, Tensor]
"""Tensors whose first dimension counts examples."""

Shape = tuple[torch.Size, ...]
"""Of an example's tensors."""


class Views(Protocol):
    """Pictures of worlds; `worldwarp_core.training.views.ViewBatch` is one."""

    @property
    def rgb(self) -> Tensor:
        """(n, T, 3, H, W) in [0, 1]."""
        ...

    @property
    def depth(self) -> Tensor:
        """(n, T, H, W) planar z, inf where there is nothing."""
        ...


class Clips(Views, Protocol):
    """A batch of clips with their priors; `worldwarp_core.training.clips.ClipBatch` is one."""

    @property
    def prior(self) -> Tensor:
        """(n, T, 3, H, W) in [0, 1]: the clip as warped from what is known."""
        ...

    @property
    def validity(self) -> Tensor:
        """(n, T, H, W) in [0, 1]."""
        ...

    @property
    def history(self) -> Tensor:
        """Like `rgb`: where a clip begins with history, its frames are these; the truth, or what was made of it."""
        ...


Made = TypeVar("Made", bound=Views, covariant=True)


class Source(Protocol[Made]):
    """Makes clips or views, as `clips.ClipSource` and `views.ViewSource` do."""

    def batch(self, n: int, first_seed: int) -> Made:
        """`n` of them that no other seeds from `first_seed` to `first_seed + n - 1` give."""
        ...


@dataclass(frozen=True)
class PoolSettings:
    """How many, and how much time to make them.

    Attributes:
        capacity: examples kept.
        first: examples made before any is drawn.
        batch: examples made at once.
        share: of the time, spent making more.
        shapes: that examples come in, each kept in a ring of its own; see `turns`.
    """

    capacity: int
    first: int
    batch: int
    share: float
    shapes: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.first <= self.capacity:
            raise WorldWarpError(
                "bad_settings",
                f"A pool needs batch <= first <= capacity; got {self.batch}, {self.first}, {self.capacity}.",
            )
        if self.shapes < 1 or self.capacity < self.batch * len(turns(self.shapes)):
            raise WorldWarpError(
                "bad_settings",
                f"A pool of {self.shapes} shapes keeps at least {len(turns(self.shapes))} batches of {self.batch}; "
                f"got {self.capacity}.",
            )
        if not 0.0 <= self.share < 1.0:
            raise WorldWarpError("bad_settings", f"The share of time for data must be in [0, 1); got {self.share}.")


def turns(shapes: int) -> list[int]:
    """The order in which shapes are made and drawn, over and over: every second time the first, which is judged by."""
    return [shape for other in range(1, shapes) for shape in (0, other)] or [0]


class ExamplePool:
    """The rings. `make(first_seed)` gives one batch of examples, all of one shape; seeds go up by `stride` a batch."""

    def __init__(self, make: Callable[[int], Examples], settings: PoolSettings, first_seed: int, stride: int) -> None:
        self.settings, self.made, self.spent_s = settings, 0, 0.0
        self.next_seed = first_seed
        """Of the first process this is how many clips all of them have made: `stride` is what they make at a time."""
        self._make, self._stride = make, stride
        self._rings: dict[Shape, _Ring] = {}
        self._turns, self._turn = turns(settings.shapes), 0

    def __len__(self) -> int:
        return sum(len(ring) for ring in self._rings.values())

    def top_up(self, elapsed_s: float) -> None:
        """Makes more examples while that has taken less than its share of `elapsed_s`."""
        while self.spent_s < self.settings.share * elapsed_s:
            self._add()

    def draw(self, count: int, generator: Generator) -> Examples:
        """`count` examples of one shape, any of them; shapes take turns. The first call makes the first examples.

        Not to be called where a network's loss is worked out: see `precision.py`.
        """
        while self.made < self.settings.first or len(self._rings) < self.settings.shapes:
            self._add()
            if self.made <= self.settings.first:
                logger.info("%d of the first %d examples made in %.1f s", self.made, self.settings.first, self.spent_s)
        ring = list(self._rings.values())[self._turns[self._turn % len(self._turns)]]
        self._turn += 1
        return ring.draw(count, generator)

    def _add(self) -> None:
        started = time.monotonic()
        examples = self._make(self.next_seed)
        self.next_seed += self._stride
        shape = tuple(values.shape[1:] for values in examples.values())
        if shape not in self._rings:
            shares = self._turns.count(len(self._rings))
            self._rings[shape] = _Ring(self.settings.capacity * shares // len(self._turns))
        self._rings[shape].add(examples)
        self.made += len(next(iter(examples.values())))
        if next(iter(examples.values())).is_cuda:
            torch.cuda.synchronize()
        self.spent_s += time.monotonic() - started


class _Ring:
    """Examples of one shape, the newest `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._made = capacity, 0
        self._store: Examples = {}

    def __len__(self) -> int:
        return min(self._made, self._capacity)

    def add(self, examples: Examples) -> None:
        for name, every in examples.items():
            # Of two that are written to one place at once either would stay, or a mixture.
            values = every[-self._capacity :]
            if name not in self._store:
                self._store[name] = values.new_empty((self._capacity, *values.shape[1:]))
            rows = (torch.arange(len(values)) + self._made) % self._capacity
            self._store[name][rows.to(values.device)] = values
        self._made += min(len(next(iter(examples.values()))), self._capacity)

    def draw(self, count: int, generator: Generator) -> Examples:
        rows = torch.randint(len(self), (count,), generator=generator, device=generator.device)
        return {name: values[rows] for name, values in self._store.items()}
