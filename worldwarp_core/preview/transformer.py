"""The preview transformer: a `WanTransformer3DModel` small enough for two CPU cores, run by the production code path.

It is made and saved as diffusers' stock class and asked through `worldwarp_core.transformer.prepare`, like the big one.
It is asked without words: its text is `NO_TEXT`, one vector of zeros, which the text embedding's biases make a learned
one.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from ..transformer.prepare import TransformerOptions, WorldWarpTransformer, prepare_transformer

TEXT_DIM = 64
CONFIG: dict[str, Any] = {
    "num_attention_heads": 6,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 256,
    "ffn_dim": 1152,
    "num_layers": 10,
}
"""22 million parameters."""


def make_transformer(
    config: dict[str, Any] = CONFIG,
    options: TransformerOptions | None = None,
    state: dict[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WorldWarpTransformer:
    """Builds one on `device`, with the weights of `state`, or untrained.

    Raises:
        RuntimeError: where `state` is of another configuration.
    """
    model: Any = WanTransformer3DModel(**config)
    if state is not None:
        model.load_state_dict(state)
    for name, parameter in model.named_parameters():
        # Norms and what makes the levels stay in single precision, as when diffusers loads the big one.
        if set(model._keep_in_fp32_modules).isdisjoint(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    # Changed over where it will run: what is fastest depends on that.
    return prepare_transformer(model.to(device), options or TransformerOptions())


def no_text(clips: int, text_dim: int = TEXT_DIM, device: torch.device | str = "cpu") -> Tensor:
    """(B, 1, D): what stands for a prompt."""
    return torch.zeros(clips, 1, text_dim, device=device)
