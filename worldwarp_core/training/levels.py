"""The transformer's modulation by level, in a form whose gradient is fast.

Tokens pick their modulation by an index into a few levels. The gradient of such a gather adds thousands of rows into
each of a few, one after the other. As a product with a one-hot matrix it is two matrix products instead, and the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer.block import LevelBlock, Rotary
from ..transformer.prepare import WorldWarpTransformer


def make_trainable(model: WorldWarpTransformer, *, compiled: bool = False) -> WorldWarpTransformer:
    """Returns `model` itself, now with blocks for training; `compiled` compiles them (once for all)."""
    prepared: Any = model
    prepared.modulate = modulate_by_product
    for block in prepared.blocks:
        block.__class__ = TrainedBlock
        if compiled:
            block.compile(dynamic=False)
    return model


class TrainedBlock(LevelBlock):
    """A `LevelBlock` with the gradient above."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, index: Tensor, rotary_emb: Rotary
    ) -> Tensor:
        tokens = hidden_states
        rows = choose_rows((self.scale_shift_table + temb.float()).flatten(1), index, tokens.dtype)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows.chunk(6, -1)
        answer = self.attn1(_modulated(tokens, self.norm1, shift, scale), None, None, rotary_emb)
        tokens = (tokens.float() + answer * gate).type_as(tokens)
        answer = self.attn2(self.norm2(tokens.float()).type_as(tokens), encoder_hidden_states, None, None)
        tokens = tokens + answer
        answer = self.ffn(_modulated(tokens, self.norm3, ffn_shift, ffn_scale))
        return (tokens.float() + answer.float() * ffn_gate).type_as(tokens)


def modulate_by_product(tokens: Tensor, norm: nn.Module, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """`worldwarp_core.transformer.block.modulate`."""
    chosen = choose_rows(torch.cat([shift, scale], -1), index, tokens.dtype)
    return _modulated(tokens, norm, *chosen.chunk(2, -1))


def choose_rows(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """`table[index]`: (n, D) and (B, L) -> (B, L, D) of `dtype`."""
    return F.one_hot(index, len(table)).to(dtype) @ table.to(dtype)


def _modulated(tokens: Tensor, norm: nn.Module, shift: Tensor, scale: Tensor) -> Tensor:
    return (norm(tokens.float()) * (1 + scale) + shift).type_as(tokens)
