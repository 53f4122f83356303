# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on Blender's main thread that is cut into small steps, so that the window can be drawn in between.

Such work is a generator: it yields after every few milliseconds, and returns what it made.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

Made = TypeVar("Made")
Steps = Generator[None, None, Made]


def run_through(steps: Generator[None, None, Made]) -> Made:
    """Returns what `steps` make, done in one go: for operators, which are waited for, and for background mode."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def run_until(steps: Generator[None, None, Any], until_s: float) -> bool:
    """Goes on by at least one step, until the time (`time.perf_counter`) is up; returns whether all are done."""
    while True:
        try:
            next(steps)
        except StopIteration:
            return True
        if time.perf_counter() >= until_s:
            return False
