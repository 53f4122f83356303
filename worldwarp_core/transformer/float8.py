"""Linear layers in float8: half the weights' memory of bf16 and twice its arithmetic rate.

Weights are scaled by output channel once; activations by token at each call (their largest value becomes the largest
float8), which a compiler fuses into the kernel that wrote them. Products are summed in higher precision and leave in
the activations' own. Three mantissa bits are what remains of each factor: an approximation to be measured.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import WorldWarpError

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max


class Float8Rows(NamedTuple):
    """A (..., k) tensor whose last dimension is quantised."""

    rows: Tensor  # (m, k) float8
    scale: Tensor  # (m, 1) float32, which brings the rows back
    shape: torch.Size  # without k
    dtype: torch.dtype  # before, and of what comes of it


@functools.cache
def multiplies_float8(device: torch.device) -> bool:
    """Whether torch multiplies float8 rows on a device: not every build has the product (none for Windows), nor every
    GPU the arithmetic (from compute capability 8.9 on: RTX 40, L4, H100). It is tried, once in a process."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        return False
    layer = nn.Linear(16, 16, device=device, dtype=torch.bfloat16).requires_grad_(False)
    try:
        return bool(Float8Linear(layer)(torch.ones(16, 16, device=device, dtype=torch.bfloat16)).isfinite().all())
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # what torch raises for a product that it does not have
        return False


def quantise_linears(module: nn.Module) -> None:
    """Replaces every plain `nn.Linear` within `module` by a `Float8Linear`, in place, where its sides divide by 16.

    Raises:
        WorldWarpError: `no_fp8` where there is no float8 arithmetic.
    """
    device = next(module.parameters()).device
    if not multiplies_float8(device):
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device
        raise WorldWarpError(
            "no_fp8",
            f"There is no float8 arithmetic on {where}: it needs compute capability 8.9 (RTX 40, L4, H100 and later) "
            "and a torch that has it, which is none for Windows. Choose a preset without it.",
        )
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # Not its subclasses: a LoRA layer, say, does more than multiply.
            if type(child) is nn.Linear and child.in_features % 16 == child.out_features % 16 == 0:
                setattr(parent, name, Float8Linear(child))


class Float8Linear(nn.Module):
    """A linear layer, quantised; for inference alone."""

    weight: Tensor  # (out, in) float8
    weight_scale: Tensor  # (1, out) float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        assert (linear.in_features % 16, linear.out_features % 16) == (0, 0), linear
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = quantise_rows(linear.weight.detach())
        self.register_buffer("weight", weight.rows)
        self.register_buffer("weight_scale", weight.scale.T.contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor | Float8Rows) -> Tensor:
        x = x if isinstance(x, Float8Rows) else quantise_rows(x)
        answer = torch._scaled_mm(
            x.rows, self.weight.T, x.scale, self.weight_scale, bias=self.bias, out_dtype=x.dtype, use_fast_accum=True
        )
        return answer.unflatten(0, x.shape)


def quantise_rows(x: Tensor) -> Float8Rows:
    """(..., k) -> its rows in float8."""
    scale = x.flatten(0, -2).abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    rows = (x.flatten(0, -2).float() / scale).clamp(-LARGEST, LARGEST).to(FLOAT8)
    return Float8Rows(rows, scale, x.shape[:-1], x.dtype)
