"""The transformer's block with its memory-bound steps as one kernel each, for CUDA and inference.

What surrounds attention and matrix products (residuals, norms, modulation, rotary embedding, the activation) does
next to no arithmetic, but moves every token through memory each time. A compiler's kernels read tokens twice, as a norm
over 1,536 channels is more than it keeps in registers, and rotary pairs four times; these read once. They round where
the stock model rounds. Rows are tokens: a program holds one, whole, in registers.

The plain block (block.py) is their readable twin and what tests compare them with. Hooks on norms are passed by,
those on blocks and linear layers work.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .block import AttentionProcessor, LevelBlock, Rotary
from .float8 import FLOAT8, LARGEST, Float8Linear, Float8Rows

# The six rows of a block's modulation.
SHIFT, SCALE, GATE, FFN_SHIFT, FFN_SCALE, FFN_GATE = range(6)

# Warps that share a row: the fastest on an H100 for 1,536 and 8,960 channels.
NORM_WARPS = 4
ROTATE_WARPS = 2
GELU_WARPS = 8


class FusedBlock(LevelBlock):
    """The same block in fewer kernels; where gradients are wanted, as it was."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, index: Tensor, rotary_emb: Rotary
    ) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(hidden_states, encoder_hidden_states, temb, index, rotary_emb)
        modulation = self.scale_shift_table + temb.float()
        levels = modulation, index
        own: Any = self  # Modules, not the tensors that their type also allows
        tokens = hidden_states.contiguous()
        float8 = takes_float8(own.attn1.to_q, own.attn1.to_k, own.attn1.to_v)
        tokens, normed = add_and_norm(tokens, None, *levels, None, own.norm1, (SHIFT, SCALE), float8)
        answer = own.attn1(normed, None, None, rotary_emb)
        float8 = takes_float8(own.attn2.to_q)
        tokens, normed = add_and_norm(tokens, answer, *levels, GATE, own.norm2, None, float8)
        answer = own.attn2(normed, encoder_hidden_states, None, None)
        float8 = takes_float8(own.ffn.net[0].proj)
        tokens, normed = add_and_norm(tokens, answer, *levels, None, own.norm3, (FFN_SHIFT, FFN_SCALE), float8)
        answer = feed_forward(own.ffn, normed)
        return (tokens.float() + answer.float() * modulation[:, FFN_GATE][index]).type_as(tokens)


def takes_float8(*layers: nn.Module) -> bool:
    """Whether all of them are quantised, so that what goes into them may be."""
    return all(type(layer) is Float8Linear for layer in layers)


class FusedAttentionProcessor(AttentionProcessor):
    """The same attention; norm and rotary embedding of queries and keys are one kernel."""

    def norm_and_rotate(self, attn: Any, query: Tensor, key: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return super().norm_and_rotate(attn, query, key, rotary)
        return (
            rms_norm_and_rotate(query, attn.norm_q.weight, attn.norm_q.eps, attn.heads, *rotary),
            rms_norm_and_rotate(key, attn.norm_k.weight, attn.norm_k.eps, attn.heads, *rotary),
        )


def add_and_norm(
    tokens: Tensor,
    answer: Tensor | None,
    modulation: Tensor,
    index: Tensor,
    gate: int | None,
    norm: nn.LayerNorm,
    shift_and_scale: tuple[int, int] | None,
    float8: bool,
) -> tuple[Tensor, Tensor | Float8Rows]:
    """`tokens + answer * gate`, and its layer norm, scaled and shifted.

    Args:
        tokens: (B, L, D).
        answer: (B, L, D), or None to add nothing.
        modulation: (n, 6, D) float32.
        index: (B, L), the level of each token: which (6, D) of the modulation is its own.
        gate: the row of those that the answer is multiplied by; None adds it as it is.
        norm: gives the epsilon, and its weights where `shift_and_scale` is None.
        shift_and_scale: the rows that the normalised tokens are shifted and (1 +) scaled by.
        float8: return the second quantised.
    """
    *shape, width = tokens.shape
    rows = tokens.numel() // width
    total = tokens if answer is None else torch.empty_like(tokens)
    out = torch.empty((rows, width), dtype=FLOAT8 if float8 else tokens.dtype, device=tokens.device)
    scales = torch.empty((rows if float8 else 1, 1), dtype=torch.float32, device=tokens.device)
    shift, scale = shift_and_scale or (0, 0)
    by_level = shift_and_scale is not None
    _add_and_norm[(rows,)](
        tokens,
        tokens if answer is None else answer.contiguous(),
        total,
        out,
        scales,
        modulation,
        modulation if by_level else norm.weight,
        modulation if by_level else norm.bias,
        index,
        width,
        gate or 0,
        shift,
        scale,
        EPS=norm.eps,
        LARGEST=LARGEST,
        ADD=answer is not None,
        GATED=gate is not None,
        BY_LEVEL=by_level,
        QUANTISE=float8,
        BLOCK=triton.next_power_of_2(width),
        num_warps=NORM_WARPS,
    )
    if float8:
        return total, Float8Rows(out, scales, torch.Size(shape), tokens.dtype)
    return total, out.unflatten(0, shape)


def rms_norm_and_rotate(x: Tensor, weight: Tensor, eps: float, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, heads, D / heads): RMS norm over all heads, then each pair of channels rotated."""
    out = torch.empty_like(x)
    batch, tokens, width = x.shape
    _rotate[(batch * tokens,)](
        x,
        weight,
        cos,
        sin,
        out,
        tokens,
        width,
        width // heads,
        EPS=eps,
        BLOCK=triton.next_power_of_2(width),
        num_warps=ROTATE_WARPS,
    )
    return out.unflatten(-1, (heads, -1))


def feed_forward(ffn: Any, x: Tensor | Float8Rows) -> Tensor:
    """The stock feed-forward network; the activation rides on the first product, or on the second's quantisation."""
    first, last = ffn.net[0].proj, ffn.net[2]
    if type(first) is Float8Linear:
        return last(gelu_to_float8(first(x)))
    untouched = type(first) is nn.Linear and "forward" not in vars(first)  # not a LoRA layer, no hook on it
    if untouched and first.weight.is_cuda:
        return last(linear_gelu(x, first.weight, first.bias))
    return ffn(x)


@torch.library.custom_op("worldwarp::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """tanh-approximated GELU of a linear layer, in the product's own kernel: a compiler would split it off."""
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True).unflatten(0, x.shape[:-1])


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def gelu_to_float8(x: Tensor) -> Float8Rows:
    """The GELU of (B, L, D), quantised."""
    *shape, width = x.shape
    rows = x.numel() // width
    out = torch.empty((rows, width), dtype=FLOAT8, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    _gelu_to_float8[(rows,)](
        x, out, scales, width, LARGEST=LARGEST, BLOCK=triton.next_power_of_2(width), num_warps=GELU_WARPS
    )
    return Float8Rows(out, scales, torch.Size(shape), x.dtype)


# Numbers that are no integers are compile-time constants below: a compiler hands others over in double precision.


@triton.jit
def _add_and_norm(  # type: ignore[no-untyped-def]
    tokens, answer, total, out, scales, modulation, weight, bias, index,
    width, gate, shift, scale,
    EPS: tl.constexpr, LARGEST: tl.constexpr,
    ADD: tl.constexpr, GATED: tl.constexpr, BY_LEVEL: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(tokens + row * width + column, mask=inside, other=0.0).to(tl.float32)
    level = modulation + tl.load(index + row) * 6 * width + column
    if ADD:
        y = tl.load(answer + row * width + column, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            y *= tl.load(level + gate * width, mask=inside, other=0.0)
        rounded = (x + y).to(total.dtype.element_ty)
        tl.store(total + row * width + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    normed = centred / tl.sqrt(tl.sum(centred * centred, 0) / width + EPS)
    if BY_LEVEL:
        normed = normed * (1 + tl.load(level + scale * width, mask=inside, other=0.0))
        normed += tl.load(level + shift * width, mask=inside, other=0.0)
    else:
        normed = normed * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        normed += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if QUANTISE:
        step = tl.maximum(tl.max(tl.abs(tl.where(inside, normed, 0.0)), 0), 1e-12) / LARGEST
        tl.store(scales + row, step)
        normed = tl.minimum(tl.maximum(normed / step, -LARGEST), LARGEST)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    x, weight, cos, sin, out, tokens, width, size, EPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values, 0) / width + EPS)
    values *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    values = values.to(out.dtype.element_ty).to(tl.float32)
    even, odd = tl.split(tl.reshape(values, (BLOCK // 2, 2)))
    pair = 2 * tl.arange(0, BLOCK // 2)
    angle = (row % tokens) * size + pair % size
    c = tl.load(cos + angle, mask=pair < width, other=0.0)
    s = tl.load(sin + angle + 1, mask=pair < width, other=0.0)
    turned = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), (BLOCK,))
    tl.store(out + row * width + column, turned.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_to_float8(  # type: ignore[no-untyped-def]
    x, out, scales, width, LARGEST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    inner = 0.7978845608028654 * (values + 0.044715 * values * values * values)
    values *= tl.sigmoid(2 * inner)  # (1 + tanh(a)) / 2
    scale = tl.maximum(tl.max(tl.abs(values), 0), 1e-12) / LARGEST
    tl.store(scales + row, scale)
    values = tl.minimum(tl.maximum(values / scale, -LARGEST), LARGEST)
    tl.store(out + row * width + column, values.to(out.dtype.element_ty), mask=inside)
