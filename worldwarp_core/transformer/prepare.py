"""The Wan transformer asked with a few noise levels and an index of tokens into them (method section 2).

The stock `WanTransformer3DModel` takes one timestep per token and computes a modulation of (6, D) float32 for each of
17,550 tokens, of which three are different. Here it is computed for the distinct levels, (n, 6, D), and each token
picks its own inside the kernels that use it. Nothing else changes: the same modules with the same weights in the same
order, so the answer is the stock model's. `prepare_transformer` turns a stock model into this one in place by giving
it, its blocks and their attention other forward functions; what diffusers does with a model (saving, LoRA,
quantisation, offloading, context parallelism) goes on working, as hooks find every module where it was.

Latents are (B, C, T', H/8, W/8), tokens are in the order t, h, w, levels are timesteps (1000 sigma), float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from diffusers.models._modeling_parallel import ContextParallelInput
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from ..errors import WorldWarpError
from ..triton_here import why_no_triton
from .block import AttentionProcessor, LevelBlock, modulate
from .float8 import quantise_linears

CUDNN_CAPABILITIES = ((9, 0), (10, 0), (10, 3))
"""GPUs whose attention cuDNN does fastest."""
RECOMPILATIONS = 64


@dataclass(frozen=True)
class TransformerOptions:
    """How the transformer is run; all but `fp8` leave its answer as it is, up to rounding.

    Attributes:
        compile: compile the repeated block once (some 15 s at the first call of each shape) and run it 30 times.
        attention: a backend of diffusers ("native", "_native_cudnn", "_native_flash", "sage", ...), or "auto": cuDNN's
            on Hopper and data-centre Blackwell in half precision, where it takes 3.1 ms against FlashAttention's 5.4
            (17,550 tokens, 12 heads of 128, H100); torch's choice elsewhere.
        fused: own kernels for what surrounds attention and matrix products (fused.py), on CUDA and without gradients.
        fp8: the blocks' linear layers in float8 (compute capability 8.9 or more): an approximation.
    """

    compile: bool = False
    attention: str = "auto"
    fused: bool = True
    fp8: bool = False

    def __post_init__(self) -> None:
        known = {"auto", *(backend.value for backend in AttentionBackendName)}
        if self.attention not in known:
            raise WorldWarpError(
                "bad_settings", f"attention must be one of {', '.join(sorted(known))}; got {self.attention!r}."
            )


def prepare_transformer(
    model: WanTransformer3DModel, options: TransformerOptions = TransformerOptions()
) -> WorldWarpTransformer:
    """Returns `model` itself, now asked with levels and an index.

    Call it where the model runs (device, precision), with LoRAs loaded, before offloading hooks or context parallelism.
    """
    assert "forward" not in vars(model), "hooks wrap the forward function they find: prepare the model before them"
    config = model.config
    if config["image_dim"] is not None or config["added_kv_proj_dim"] is not None or not config["cross_attn_norm"]:
        raise WorldWarpError(
            "bad_weights",
            "This transformer is not built as Wan 2.1's text-to-video one, which is needed. Is it for images to video?",
        )
    prepared: Any = model
    prepared.__class__ = WorldWarpTransformer
    prepared.modulate = modulate
    device = next(prepared.blocks.parameters()).device
    attention = _choose_attention(model.dtype, device) if options.attention == "auto" else options.attention
    fused = options.fused and device.type == "cuda" and why_no_triton() is None
    block_class, processor_class = _fused_classes() if fused else (LevelBlock, AttentionProcessor)
    for block in prepared.blocks:
        block.__class__ = block_class
        for attn in (block.attn1, block.attn2):
            attn.set_processor(processor_class(AttentionBackendName(attention)))
    if options.fp8:
        quantise_linears(prepared.blocks)
    if options.compile:
        # Static shapes: a clip's are the same at every step. The first clip of another size compiles again, as often as
        # there are sizes: past its limit torch would run what is new without compiling it.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)
        for block in prepared.blocks:
            block.compile(dynamic=False)
        prepared.modulate = torch.compile(modulate, dynamic=False)
    return prepared


class WorldWarpTransformer(WanTransformer3DModel):
    """A `WanTransformer3DModel` that `prepare_transformer` has changed over; never made directly."""

    _repeated_blocks = ["LevelBlock", "FusedBlock"]  # noqa: RUF012
    _cp_plan = {  # noqa: RUF012
        **{name: plan for name, plan in WanTransformer3DModel._cp_plan.items() if name != ""},
        "": {"index": ContextParallelInput(split_dim=1, expected_dims=2, split_output=False)},
    }

    modulate: Callable[..., Tensor]  # that of block.py, compiled or not

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, levels: Tensor, index: Tensor, encoder_hidden_states: Tensor
    ) -> Tensor:
        """Returns the velocity, (B, C, T', H/8, W/8).

        Args:
            hidden_states: (B, C, T', H/8, W/8) latents.
            levels: (n,) float32 timesteps, 1000 sigma. They may repeat; the same n compiles once.
            index: (B, L) int64, the level of each token.
            encoder_hidden_states: (B, N, D) text embeddings.
        """
        patch = self.config["patch_size"]
        clip = [side // size for side, size in zip(hidden_states.shape[2:], patch, strict=True)]
        index = index.contiguous()  # a part of it, under context parallelism
        rotary = self.rope(hidden_states)
        tokens = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        time, modulation, text, _ = self.condition_embedder(levels, encoder_hidden_states)
        modulation = modulation.unflatten(1, (6, -1))
        for block in self.blocks:
            tokens = block(tokens, text, modulation, index, rotary)

        shift, scale = (self.scale_shift_table.to(time.device) + time[:, None]).unbind(1)
        tokens = self.proj_out(self.modulate(tokens, self.norm_out, shift, scale, index))
        patches = tokens.unflatten(1, clip).unflatten(-1, (*patch, -1))
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def to_json_string(self) -> str:
        """The stock class's configuration: what is saved is a stock model."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = WanTransformer3DModel.__name__
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _fused_classes() -> tuple[type[LevelBlock], type[AttentionProcessor]]:
    from .fused import FusedAttentionProcessor, FusedBlock  # imports triton, which comes with torch for CUDA alone

    return FusedBlock, FusedAttentionProcessor


def _choose_attention(dtype: torch.dtype, device: torch.device) -> str:
    half = dtype in (torch.bfloat16, torch.float16)
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) in CUDNN_CAPABILITIES
    return AttentionBackendName._NATIVE_CUDNN.value if half and fast else AttentionBackendName.NATIVE.value
