"""Wan's video autoencoder run a few frames at a time, each step continuing exactly where the last one stopped.

In: the encoder and the decoder of diffusers' `AutoencoderKLWan` (the 2.1 architecture), a step's pictures or latents,
and what the step before remembered. Out: the step's latents or pictures, and what to remember.

All its convolutions are causal in time, so all that a step needs of the past is the last two frames that each of them
saw: zeros before the clip begins. With the memory always two frames deep every step after the first is alike, whatever
the position in the clip; diffusers' own feature cache grows over three steps and branches on each. The first frame is
different by design: it alone makes a latent, and nothing resamples it in time.

Tensors are (1, C, T, H, W), channels last in memory, so that each pixel's channels are contiguous: tensor cores want
that, and so does the normalisation over channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import Tensor, nn

from ..errors import WorldWarpError

FRAMES_PER_LATENT = 4
"""After the first frame, which has a latent of its own."""

PIXELS_PER_LATENT = 8
"""Along each side."""

EPSILON = 1e-24
"""Beside a mean of squares: keeps a black pixel from dividing by zero, changes nothing else."""

Memory = list[Tensor]
"""What each causal convolution saw last, in the order in which they run."""


def check_architecture(vae: AutoencoderKLWan) -> None:
    """Raises `bad_weights` unless this module can run `vae`."""
    config = vae.config
    expected = {"is_residual": False, "patch_size": None, "scale_factor_temporal": 4, "scale_factor_spatial": 8}
    other = {name: config[name] for name, value in expected.items() if config[name] != value}
    if config["attn_scales"]:
        other["attn_scales"] = config["attn_scales"]
    if other:
        got = ", ".join(f"{name}={value!r}" for name, value in other.items())
        raise WorldWarpError(
            "bad_weights",
            f"This autoencoder is not Wan 2.1's: {got}. Use the vae folder of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, which "
            "is what the transformer was trained with.",
        )


def to_channels_last(vae: AutoencoderKLWan) -> None:
    """Lays the weights of every convolution out as this module's tensors are, in place."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def encode_step(
    vae: AutoencoderKLWan, pictures: Tensor, memory: Memory | None, fused: bool = False
) -> tuple[Tensor, Memory]:
    """Returns the latents of a clip's next frames, and what the step after needs.

    Args:
        vae: whose encoder runs.
        pictures: (1, 3, T, H, W) in [-1, 1] in the weights' precision: T is 1 where `memory` is None, else 4n.
        memory: of the step before; None begins a clip.
        fused: by the kernels of autoencoder_kernels.py; CUDA only.

    Returns:
        (1, C, 1 or n, H/8, W/8), the mean of the posterior, not normalised.
    """
    first = memory is None
    assert pictures.shape[2] == 1 if first else pictures.shape[2] % FRAMES_PER_LATENT == 0, (pictures.shape, first)
    flow = _Flow(memory, fused)
    encoder: Any = vae.encoder
    x = flow.convolve(encoder.conv_in, pictures)
    for layer in encoder.down_blocks:
        x = _residual(layer, x, flow) if isinstance(layer, WanResidualBlock) else _downsample(layer, x, flow)
    x = _middle(encoder.mid_block, x, flow)
    x = flow.normalise_and_convolve(encoder.norm_out, encoder.conv_out, x)
    mean = _plain(vae.quant_conv, x)[:, : vae.config["z_dim"]]
    return mean, flow.remembered


def decode_step(
    vae: AutoencoderKLWan, latents: Tensor, memory: Memory | None, fused: bool = False
) -> tuple[Tensor, Memory]:
    """Returns the frames of a clip's next latents, and what the step after needs.

    Args:
        vae: whose decoder runs.
        latents: (1, C, n, H/8, W/8), not normalised, in the weights' precision: n is 1 where `memory` is None.
        memory: of the step before; None begins a clip.
        fused: by the kernels of autoencoder_kernels.py; CUDA only.

    Returns:
        (1, 3, 1 or 4n, H, W) in about [-1, 1].
    """
    assert memory is not None or latents.shape[2] == 1, latents.shape
    flow = _Flow(memory, fused)
    decoder: Any = vae.decoder
    x = flow.convolve(decoder.conv_in, _plain(vae.post_quant_conv, latents))
    x = _middle(decoder.mid_block, x, flow)
    for block in decoder.up_blocks:
        for layer in block.resnets:
            x = _residual(layer, x, flow)
        if block.upsamplers is not None:
            x = _upsample(block.upsamplers[0], x, flow)
    x = flow.normalise_and_convolve(decoder.norm_out, decoder.conv_out, x)
    return x, flow.remembered


class _Flow:
    """The walk of one step through the network: hands each causal convolution its past and keeps what it saw."""

    def __init__(self, memory: Memory | None, fused: bool) -> None:
        self.first = memory is None
        self.fused = fused
        self._memory: Memory = memory or []
        self.remembered: Memory = []

    def past(self) -> Tensor:
        """What the next convolution in line saw last."""
        return self._memory[len(self.remembered)]

    def remember(self, seen: Tensor) -> None:
        """A copy, because a view would keep the whole step's activations alive."""
        self.remembered.append(seen.clone())

    def convolve(self, conv: WanCausalConv3d, x: Tensor) -> Tensor:
        """A causal convolution that keeps the number of frames."""
        x = torch.cat([self._past_of(conv, x), x], 2)
        self.remember(x[:, :, 1 - conv.kernel_size[0] :])
        return _plain(conv, x)

    def normalise_and_convolve(self, norm: WanRMS_norm, conv: WanCausalConv3d, x: Tensor) -> Tensor:
        """The same, of the SiLU of the normalised channels."""
        if not self.fused:
            return self.convolve(conv, F.silu(_rms(norm, x)))
        assert conv.bias is not None
        return self.fused_convolution(norm, conv, x, None) + conv.bias[:, None, None, None]

    def fused_convolution(self, norm: WanRMS_norm, conv: WanCausalConv3d, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same of `x + bias`, and without the convolution's own bias: whoever comes next adds it on the way."""
        from .autoencoder_kernels import normalise_and_convolve  # needs triton, which torch brings where it brings CUDA

        past = self._past_of(conv, x)
        x, last = normalise_and_convolve(conv, x, bias, norm.gamma.flatten(), past, EPSILON)
        self.remembered.append(last)
        return x

    def _past_of(self, conv: WanCausalConv3d, x: Tensor) -> Tensor:
        """What `conv`, the next in line, saw last; nothing but zeros at the beginning."""
        return _zeros_before(conv, x) if self.first else self.past()


def _zeros_before(conv: WanCausalConv3d, x: Tensor) -> Tensor:
    """As many empty frames like `x` as `conv` looks back."""
    shape = (*x.shape[:2], conv.kernel_size[0] - 1, *x.shape[3:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d).zero_()


def _plain(conv: WanCausalConv3d, x: Tensor) -> Tensor:
    """The convolution itself: padded in space by the kernel, in time by what the caller put in front."""
    pad = int(conv._padding[0])
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, (0, pad, pad))


def _rms(norm: WanRMS_norm, x: Tensor) -> Tensor:
    """Channels over the root of their mean square; computed in float32 within the kernel."""
    return F.rms_norm(x.movedim(1, -1), (x.shape[1],), norm.gamma.flatten(), EPSILON).movedim(-1, 1)


def _residual(block: WanResidualBlock, x: Tensor, flow: _Flow) -> Tensor:
    shortcut = _plain(block.conv_shortcut, x) if isinstance(block.conv_shortcut, WanCausalConv3d) else x
    if flow.fused:
        return _fused_residual(block, x, shortcut, flow)
    x = flow.normalise_and_convolve(block.norm1, block.conv1, x)
    x = flow.normalise_and_convolve(block.norm2, block.conv2, x)
    return x + shortcut


def _fused_residual(block: WanResidualBlock, x: Tensor, shortcut: Tensor, flow: _Flow) -> Tensor:
    """The same in five kernels; each bias rides on the kernel after its convolution."""
    from .autoencoder_kernels import add_residual

    assert block.conv2.bias is not None
    x = flow.fused_convolution(block.norm1, block.conv1, x, None)
    x = flow.fused_convolution(block.norm2, block.conv2, x, block.conv1.bias)
    return add_residual(x, block.conv2.bias, shortcut)


def _middle(block: WanMidBlock, x: Tensor, flow: _Flow) -> Tensor:
    attentions: Any = block.attentions
    resnets: Any = block.resnets
    x = _residual(resnets[0], x, flow)
    for attention, resnet in zip(attentions, resnets[1:], strict=True):
        x = _residual(resnet, _attend(attention, x), flow)
    return x


def _attend(block: WanAttentionBlock, x: Tensor) -> Tensor:
    """Self-attention within each frame, one head."""
    pictures = _as_pictures(x)
    q, k, v = block.to_qkv(_rms(block.norm, pictures)).flatten(2).transpose(1, 2).chunk(3, -1)
    seen = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return x + _as_clip(block.proj(seen.transpose(1, 2).unflatten(2, pictures.shape[2:])))


def _downsample(layer: WanResample, x: Tensor, flow: _Flow) -> Tensor:
    """Halves the sides and, where the layer does that, the frames of every step but the first."""
    conv: Any = layer.resample[1]
    # 3x3 with a row and a column of zeros beyond the last is 4x4 with zero weights before the first: saves a copy.
    x = _as_clip(F.conv2d(_as_pictures(x), F.pad(conv.weight, (1, 0, 1, 0)), conv.bias, stride=2, padding=1))
    if layer.mode != "downsample3d":
        return x
    if flow.first:
        flow.remember(x)
        return x
    seen = torch.cat([flow.past(), x], 2)
    flow.remember(x[:, :, -1:])
    return _plain(layer.time_conv, seen)


def _upsample(layer: WanResample, x: Tensor, flow: _Flow) -> Tensor:
    """Doubles the sides and, where the layer does that, the frames of every step but the first."""
    if layer.mode == "upsample3d":
        if flow.first:
            flow.remember(_zeros_before(layer.time_conv, x))
        else:
            # A pixel's channels are the earlier frame's, then the later one's.
            pairs = flow.convolve(layer.time_conv, x)[0].movedim(0, -1).unflatten(-1, (2, x.shape[1]))
            x = pairs.movedim(3, 1).flatten(0, 1).movedim(-1, 0)[None]
    if flow.fused:
        from .autoencoder_kernels import double_sides

        pictures = double_sides(_as_pictures(x))
    else:
        # What diffusers' upsampling does in float32: copying a pixel needs no precision.
        pictures = F.interpolate(_as_pictures(x), scale_factor=2.0, mode="nearest-exact")
    return _as_clip(layer.resample[1](pictures))


def _as_pictures(x: Tensor) -> Tensor:
    """(1, C, T, H, W) -> (T, C, H, W)."""
    return x[0].movedim(1, 0)


def _as_clip(pictures: Tensor) -> Tensor:
    """(T, C, H, W) -> (1, C, T, H, W)."""
    return pictures.movedim(0, 1)[None]
