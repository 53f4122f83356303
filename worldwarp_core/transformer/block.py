"""The transformer's block, its modulation picked by level, and its attention, in plain PyTorch.

Tokens are (B, L, D) in the order t, h, w; `index` (B, L) says which row of the (n, 6, D) modulation is a token's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each (1, L, 1, head size), every value twice."""


class LevelBlock(WanTransformerBlock):
    """The stock block, its six modulations by level."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, index: Tensor, rotary_emb: Rotary
    ) -> Tensor:
        """(B, L, D) tokens to (B, L, D), from (B, N, D) text, (n, 6, D) modulation and (B, L) index."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + temb.float()).unbind(1)
        tokens = hidden_states
        answer = self.attn1(modulate(tokens, self.norm1, shift, scale, index), None, None, rotary_emb)
        tokens = (tokens.float() + answer * gate[index]).type_as(tokens)
        answer = self.attn2(self.norm2(tokens.float()).type_as(tokens), encoder_hidden_states, None, None)
        tokens = tokens + answer
        answer = self.ffn(modulate(tokens, self.norm3, ffn_shift, ffn_scale, index))
        return (tokens.float() + answer.float() * ffn_gate[index]).type_as(tokens)


def modulate(tokens: Tensor, norm: nn.Module, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """Normalised (B, L, D) tokens, each scaled and shifted by the row of (n, D) that its index says."""
    return (norm(tokens.float()) * (1 + scale[index]) + shift[index]).type_as(tokens)


class AttentionProcessor:
    """The stock attention with its rotary embedding written as one expression, which a compiler makes one kernel of."""

    # Names that diffusers looks for.
    _attention_backend: AttentionBackendName
    _parallel_config: Any = None

    def __init__(self, backend: AttentionBackendName) -> None:
        self._attention_backend = backend

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and source.shape[1] == 1:
            # Of one word every token takes all, whatever it asks; cuDNN does not attend to a single key.
            answer = attn.to_out[0](attn.to_v(source))
            return answer.expand(-1, hidden_states.shape[1], -1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        if rotary_emb is None:
            query, key = (x.unflatten(-1, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key)))
        else:
            query, key = self.norm_and_rotate(attn, query, key, rotary_emb)
        value = value.unflatten(-1, (attn.heads, -1))
        parallel = self._parallel_config if encoder_hidden_states is None else None
        if self._attention_backend is AttentionBackendName._NATIVE_CUDNN and parallel is None:
            answer = _cudnn_attention(query, key, value)
        else:
            answer = dispatch_attention_fn(query, key, value, backend=self._attention_backend, parallel_config=parallel)
        return attn.to_out[0](answer.flatten(2, 3).type_as(query))

    def norm_and_rotate(self, attn: Any, query: Tensor, key: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Two (B, L, D), normalised over all heads and rotated: (B, L, heads, D / heads)."""
        query, key = (x.unflatten(-1, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key)))
        return rotate(query, *rotary), rotate(key, *rotary)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, L, heads, size): each pair of neighbours turned by its angle."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


def _cudnn_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """diffusers' backend of that name without its three copies: cuDNN reads any layout."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        answer = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return answer.transpose(1, 2)
