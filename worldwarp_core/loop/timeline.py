"""How far a job is and how long it will take, from what each stage has cost so far."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..spec import Progress, Stage


class Timeline:
    """Counts the steps of every stage of a job and estimates the rest from their measured cost.

    Args:
        planned: steps of each stage over the whole job.
        guess_s: seconds a step before anything was measured; only their ratios matter for the fraction.
    """

    def __init__(self, planned: Mapping[Stage, int], guess_s: Mapping[Stage, float], chunks: int) -> None:
        self._planned = dict(planned)
        self._guess_s = dict(guess_s)
        self._chunks = chunks
        self._done = dict.fromkeys(planned, 0)
        self._fraction = 0.0
        self._last = time.perf_counter()
        self.seconds: dict[Stage, float] = dict.fromkeys(planned, 0.0)
        """Measured so far, by stage."""

    def tick(self, stage: Stage, chunk: int, step: int, steps: int, count: int = 1) -> Progress:
        """Books `count` finished steps of a stage, and the time since the last tick, and returns where the job is."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now
        self._done[stage] += count
        done = sum(self._cost(s) * self._done[s] for s in self._planned)
        left = sum(self._cost(s) * max(self._planned[s] - self._done[s], 0) for s in self._planned)
        self._fraction = max(self._fraction, min(done / max(done + left, 1e-9), 1.0))  # never runs backwards
        return Progress(stage, step, steps, chunk, self._chunks, self._fraction, left)

    def _cost(self, stage: Stage) -> float:
        return self.seconds[stage] / self._done[stage] if self._done[stage] else self._guess_s[stage]
