"""How long a server's engine takes and how much memory, by the jobs that it has done: `speeds` in `engine_info`.

In: what the engine said at the end of each job (its summary). Out: for every preset and size of frames the seconds
that the middle frame took, so that a client can tell what a shot will take before it is sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEPT = 5
"""Newest jobs of a kind that count: a machine, or its engine, may have been changed."""
MOST_KINDS = 50
"""Presets and sizes that are told of, the newest."""


@dataclass
class _Kind:
    """Jobs of one preset and one size."""

    seconds_and_frames: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=KEPT))
    memory_gib: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class Speeds:
    """What is known by now."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, int, int], _Kind] = {}

    def note(self, summary: Mapping[str, Any]) -> None:
        """Takes a job's summary into account; one that does not say enough is passed over."""
        try:
            width, height = (int(side) for side in summary["delivered_size"])
            frames = int(summary["frames"])
            seconds = math.fsum(float(part) for part in summary["seconds"].values())
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        if frames < 1 or not 0 < seconds < math.inf:
            return
        key = (_preset(summary), width, height)
        # The newest at the end.
        kind = self._kinds[key] = self._kinds.pop(key, _Kind())
        kind.seconds_and_frames.append((seconds, frames))
        memory_gib = summary.get("memory_gib")
        if isinstance(memory_gib, int | float) and 0 < memory_gib < math.inf:
            kind.memory_gib.append(float(memory_gib))
        while len(self._kinds) > MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]

    def as_plain(self) -> list[dict[str, Any]]:
        """One map for each preset and size, the newest last."""
        return [
            {
                "preset": preset,
                "width": width,
                "height": height,
                "seconds_per_frame": round(_seconds_of_middle_frame(kind.seconds_and_frames), 4),
                "memory_gib": round(max(kind.memory_gib), 2) if kind.memory_gib else None,
                "jobs": len(kind.seconds_and_frames),
            }
            for (preset, width, height), kind in self._kinds.items()
        ]


def _seconds_of_middle_frame(jobs: Sequence[tuple[float, int]]) -> float:
    """The median over all frames of all jobs: a job of few frames, most of which is its beginning, counts for few."""
    frames = np.array([frames for _, frames in jobs])
    each = np.array([seconds for seconds, _ in jobs]) / frames
    order = np.argsort(each)
    return float(each[order][np.searchsorted(np.cumsum(frames[order]), frames.sum() / 2)])


def _preset(summary: Mapping[str, Any]) -> str:
    """The preset that the job was made with; "" where its engine has only one way."""
    fill = summary.get("fill")
    preset = fill.get("preset") if isinstance(fill, Mapping) else None
    name = preset.get("name") if isinstance(preset, Mapping) else None
    return name if isinstance(name, str) else ""
