"""Where training calculates in half precision, and where it must not: geometry has no digits to spare."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

HALF_ON: frozenset[str] = frozenset({"cuda"})
"""Kinds of device with fast bfloat16."""


def half(device: torch.device) -> AbstractContextManager[None]:
    """For networks: matrix products and convolutions in bfloat16 where the device is fast at it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type in HALF_ON)


def full(device: torch.device) -> AbstractContextManager[None]:
    """For everything else, whatever it is called within."""
    return torch.autocast(device.type, enabled=False)
