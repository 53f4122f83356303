"""Optimisation steps that the host launches without waiting for any: what a CUDA graph can hold.

Everything that changes from step to step lives on the device: which view is next, the learning rates, how many steps
were done, their losses. The buffers that a step draws with have a fixed size; where that is too small the device leaves
this step and all later ones undone until the host, which looks every few steps, has made room. So nothing is lost and
no step is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .fit_settings import ADAM_EPS, BETA1, BETA2, FitSettings, cosine
from .moving import Moving

LOOK_EVERY = 16
"""Steps between two looks: so late a cancel takes effect, and so rarely the device waits for the host."""
SPARE_ROOM = 1.5
"""Buffers are made this many times as large as they need to be now: every time they are too small costs a capture, and
sorting what is unused costs little."""


class Scene(Protocol):
    """What a step draws and compares, at a view that only the device knows."""

    room: int
    """For how much there is room."""

    def loss(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """() loss of the (1,) view, differentiable in the parameters, and () how much room drawing it needs."""

    def make_room(self, needed: int) -> None:
        """Raises `room` to at least `needed`."""


@dataclass(frozen=True)
class Adam:
    """Parameters and the moments of their gradients."""

    parameters: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    rates: list[float]

    @staticmethod
    def pace(steps: int) -> Tensor:
        """(steps, 2) what changes from step to step: the share of each rate, and the scale of the second moments."""
        rows = []
        for step in range(steps):
            bias1, bias2 = (1 - beta ** (step + 1) for beta in (BETA1, BETA2))
            rows.append((cosine(step / steps) / bias1, 1 / math.sqrt(bias2)))
        return torch.tensor(rows)


def adam_update(adam: Adam, gradients: list[Tensor], pace: Tensor, go: Tensor) -> None:
    """One step of Adam in place at the (2,) `pace`, or none where `go` () is False."""
    for p, m, v, g, rate in zip(adam.parameters, adam.first, adam.second, gradients, adam.rates, strict=True):
        first = m + (1 - BETA1) * (g - m)
        second = BETA2 * v + (1 - BETA2) * g * g
        change = rate * pace[0] * first / (second.sqrt() * pace[1] + ADAM_EPS)
        p.copy_(torch.where(go, p - change, p))
        m.copy_(torch.where(go, first, m))
        v.copy_(torch.where(go, second, v))


class DeviceSteps:
    """The state of a run of optimisation steps, on the parameters' device."""

    def __init__(
        self,
        moving: Moving,
        scene: Scene,
        order: list[int],
        settings: FitSettings,
        update: Callable[[Adam, list[Tensor], Tensor, Tensor], None] = adam_update,
    ) -> None:
        """`update` is `adam_update`, or what a compiler made of it."""
        self.scene, self.update, self.steps = scene, update, len(order)
        self.leaves = list(moving.learned.values())
        device = self.leaves[0].device
        flat = [t.detach() for t in self.leaves]
        first, second = ([torch.zeros_like(t) for t in flat] for _ in range(2))
        self.adam = Adam(flat, first, second, [settings.rate(name) for name in moving.learned])
        # One row more than steps: what a step reads and writes when all are done, and nobody looks at.
        self.pace = F.pad(Adam.pace(self.steps), (0, 0, 0, 1)).to(device)
        self.order = torch.tensor([*order, 0], device=device)
        self.losses = torch.zeros(self.steps + 1, device=device)
        self.done = torch.zeros(1, dtype=torch.int64, device=device)
        self.needed = torch.zeros((), dtype=torch.int64, device=device)

    def step(self) -> None:
        """Does one step, or none where all are done or there is no room."""
        # Every launch counts here, however little it does: rows are selected, which takes fewer than an index.
        loss, needed = self.scene.loss(self.order.index_select(0, self.done))
        torch.maximum(self.needed, needed, out=self.needed)
        go = ((self.done < self.steps) & (self.needed <= self.scene.room))[0]
        gradients = list(torch.autograd.grad(loss, self.leaves))
        with torch.no_grad():
            self.update(self.adam, gradients, self.pace.index_select(0, self.done)[0], go)
        # The loss of a step that had no room is written over when it is done again.
        self.losses.index_copy_(0, self.done, loss.detach()[None])
        self.done += go

    def look(self) -> tuple[int, int]:
        """Waits for the device: steps done so far, and the most room that drawing needed."""
        done, needed = torch.cat([self.done, self.needed[None]]).tolist()
        return done, needed


def run(
    steps: DeviceSteps, capture: Callable[[Callable[[], None]], Callable[[], None]]
) -> Generator[float, None, None]:
    """Yields the loss of every step, a few of them at a time.

    Args:
        capture: turns a step into what replays it; it may do steps of its own, which count.
    """
    replay = capture(steps.step)
    reported = 0
    while reported < steps.steps:
        done, needed = steps.look()
        if needed > steps.scene.room:
            steps.scene.make_room(needed)
            replay = capture(steps.step)
        losses = steps.losses[reported:done].tolist()
        # The device goes on while the caller hears about the steps before.
        for _ in range(min(LOOK_EVERY, steps.steps - done)):
            replay()
        reported = done
        yield from losses
