"""Where a finished frame lies: in memory that whoever runs the engine lends, so that it need not be copied to be sent.

An engine whose last step writes into arrays from here gives its frames away as they are. One that makes its own arrays
works as well; those are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

FrameArrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A `Frame`'s rgb (H, W, 3) uint8, depth (H, W) float32 and validity (H, W) uint8."""
Lender = Callable[[int, int], FrameArrays | None]
"""Lends arrays for a frame of a height and a width; None where there are none to be had now."""

_lender: ContextVar[Lender | None] = ContextVar("lender", default=None)


@contextmanager
def lending(lender: Lender) -> Iterator[None]:
    """Has `frame_arrays` in this thread ask `lender` first."""
    token = _lender.set(lender)
    try:
        yield
    finally:
        _lender.reset(token)


def frame_arrays(height: int, width: int) -> FrameArrays:
    """Arrays for one frame, with anything in them: to be filled before it is given away, and left alone after that."""
    lender = _lender.get()
    lent = lender(height, width) if lender is not None else None
    if lent is not None:
        return lent
    size = (height, width)
    return np.empty((*size, 3), np.uint8), np.empty(size, np.float32), np.empty(size, np.uint8)
