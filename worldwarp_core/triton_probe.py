"""The kernel that tells whether Triton compiles here; importing it needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _double(values, doubled, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    tl.store(doubled + at, 2.0 * tl.load(values + at, mask=at < count, other=0.0), mask=at < count)


def double(values: Tensor) -> Tensor:
    """Twice the values, at most 16 on a GPU."""
    doubled = torch.empty_like(values)
    _double[(1,)](values, doubled, len(values), BLOCK=16)
    return doubled
