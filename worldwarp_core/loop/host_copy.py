"""Tensors on their way from a device to the machine's memory, without the device waiting for each."""

from __future__ import annotations

import torch
from torch import Tensor


def send_to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU, there once the device has come this far; on the CPU the tensor itself."""
    if tensor.device.type != "cuda":
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def mark(device: torch.device) -> torch.cuda.Event | None:
    """How far a device has to come for what was sent until now to be there; None where nothing is waited for."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
