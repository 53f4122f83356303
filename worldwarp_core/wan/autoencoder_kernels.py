"""The memory-bound steps of Wan's autoencoder as one CUDA kernel each, for bfloat16 on Triton.

Between two convolutions lie a bias, a norm over channels, an activation, and the two frames of the past that go in
front: next to no arithmetic, but at 720x480 each pass over a tensor costs as much as a tenth of its convolution, and
PyTorch needs seven. Here it is one. What streaming.py writes in plain PyTorch is their readable twin.

Tensors are (1, C, T, H, W) with channels last in memory, as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

STACKED_CHANNELS = 128
"""Up to as many input channels a 3x3x3 convolution is faster as a 3x3 one over three frames' channels side by side."""

MIN_OUT_CHANNELS = 64
"""Below, the convolution reads more than it computes, and three copies of its input cost more than they save."""

ELEMENTS = 4096
"""Of a tensor, by a program."""


def normalise_and_convolve(
    conv: nn.Conv3d, x: Tensor, bias: Tensor | None, gamma: Tensor, past: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """A causal 3x3x3 convolution, without its own bias, of the activated norm of `x + bias` behind `past`.

    Args:
        conv: whose weights are used.
        x: (1, C, T, H, W).
        bias: (C,) still to be added to `x`.
        gamma: C gains of the norm.
        past: (1, C, 2, H, W), what the convolution saw last.
        eps: beside the mean of squares.

    Returns:
        (1, C', T, H, W), and what it saw last now, like `past`.
    """
    stacked = conv.in_channels <= STACKED_CHANNELS and conv.out_channels >= MIN_OUT_CHANNELS
    seen, last = normalise_after(past, x, bias, gamma, eps, stacked)
    if not stacked:
        return F.conv3d(_as_clip(seen), conv.weight, None, 1, (0, 1, 1)), last
    weight = conv.weight.movedim(2, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    return F.conv2d(seen.movedim(-1, 1), weight, None, 1, 1).movedim(0, 1)[None], last


def normalise_after(
    past: Tensor, x: Tensor, bias: Tensor | None, gamma: Tensor, eps: float, stacked: bool
) -> tuple[Tensor, Tensor]:
    """The activated norm of `x + bias` behind `past`: SiLU of gamma times channels over the root of their mean square.

    Returns:
        (T + 2, H, W, C); or where `stacked`, for each of T frames the channels of it and of the two before it, the
        oldest first, (T, H, W, 3C). And its last two frames, (1, C, 2, H, W).
    """
    rows, before = _as_rows(x), _as_rows(past)
    frames, height, width, channels = rows.shape
    assert before.shape == (2, height, width, channels), (past.shape, x.shape)
    shape = (frames, height, width, 3 * channels) if stacked else (frames + 2, height, width, channels)
    seen, last = rows.new_empty(shape), torch.empty_like(before)
    pixels, block = height * width, triton.next_power_of_2(channels)
    pixels_each = max(1, ELEMENTS // block)
    _normalise_after[(triton.cdiv(pixels, pixels_each), frames + 2)](
        rows,
        rows if bias is None else bias,
        gamma,
        before,
        seen,
        last,
        frames,
        pixels,
        eps,
        CHANNELS=channels,
        BLOCK=block,
        PIXELS=pixels_each,
        BIASED=bias is not None,
        STACKED=stacked,
        num_warps=4,
    )
    return seen, _as_clip(last)


def add_residual(x: Tensor, bias: Tensor, shortcut: Tensor) -> Tensor:
    """`x + bias + shortcut`, written over `x`; `bias` is (C,)."""
    rows, other = _as_rows(x), _as_rows(shortcut)
    assert rows.shape == other.shape, (x.shape, shortcut.shape)
    _add_residual[(triton.cdiv(rows.numel(), ELEMENTS),)](
        rows, bias, other, rows.numel(), CHANNELS=rows.shape[-1], BLOCK=ELEMENTS, num_warps=4
    )
    return _as_clip(rows)


def double_sides(pictures: Tensor) -> Tensor:
    """(T, C, H, W) -> (T, C, 2H, 2W): each pixel four times. PyTorch's own takes several times a copy's time."""
    rows = pictures.movedim(1, -1).contiguous()
    frames, height, width, channels = rows.shape
    out = rows.new_empty(frames, 2 * height, 2 * width, channels)
    block = min(ELEMENTS, triton.next_power_of_2(width * channels))
    _double_sides[(frames * height, triton.cdiv(width * channels, block))](
        rows, out, width, CHANNELS=channels, BLOCK=block, num_warps=4
    )
    return out.movedim(-1, 1)


def _as_rows(x: Tensor) -> Tensor:
    """(1, C, T, H, W) -> (T, H, W, C), contiguous; a view where channels are last."""
    return x[0].movedim(0, -1).contiguous()


def _as_clip(rows: Tensor) -> Tensor:
    """(T, H, W, C) -> (1, C, T, H, W)."""
    return rows.movedim(-1, 0)[None]


@triton.jit
def _normalise_after(  # type: ignore[no-untyped-def]
    x_ptr,
    bias_ptr,
    gamma_ptr,
    past_ptr,
    seen_ptr,
    last_ptr,
    frames,
    pixels,
    eps,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
    BIASED: tl.constexpr,
    STACKED: tl.constexpr,
):
    """A program holds some pixels of one frame, all their channels; frames 0 and 1 are the past."""
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, BLOCK)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < CHANNELS)
    place = pixel[:, None] * CHANNELS + channel[None, :]
    size = pixels.to(tl.int64) * CHANNELS
    if frame >= 2:
        x = tl.load(x_ptr + (frame - 2) * size + place, inside, 0.0).to(tl.float32)
        if BIASED:
            x += tl.load(bias_ptr + channel, channel < CHANNELS, 0.0).to(tl.float32)[None, :]
        gamma = tl.load(gamma_ptr + channel, channel < CHANNELS, 0.0).to(tl.float32)
        y = x * tl.rsqrt(tl.sum(x * x, 1) / CHANNELS + eps)[:, None] * gamma[None, :]
        y = (y * tl.sigmoid(y)).to(seen_ptr.dtype.element_ty)
    else:
        y = tl.load(past_ptr + frame * size + place, inside, 0.0)
    if frame >= frames:
        tl.store(last_ptr + (frame - frames) * size + place, y, inside)
    if STACKED:
        row = pixel[:, None] * (3 * CHANNELS) + channel[None, :]
        for back in tl.static_range(3):
            into = frame - back
            if into >= 0 and into < frames:
                tl.store(seen_ptr + into * 3 * size + row + back * CHANNELS, y, inside)
    else:
        tl.store(seen_ptr + frame * size + place, y, inside)


@triton.jit
def _add_residual(  # type: ignore[no-untyped-def]
    x_ptr, bias_ptr, shortcut_ptr, total, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
    x += tl.load(bias_ptr + place % CHANNELS, inside, 0.0).to(tl.float32)
    x += tl.load(shortcut_ptr + place, inside, 0.0).to(tl.float32)
    tl.store(x_ptr + place, x.to(x_ptr.dtype.element_ty), inside)


@triton.jit
def _double_sides(  # type: ignore[no-untyped-def]
    x_ptr, out_ptr, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """A program reads a stretch of a row, channels and all, and writes it to two columns of two rows."""
    row = tl.program_id(0).to(tl.int64)
    size = width * CHANNELS
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = tl.load(x_ptr + row * size + place, inside, 0.0)
    into = out_ptr + row * 4 * size + place // CHANNELS * 2 * CHANNELS + place % CHANNELS
    for copy in tl.static_range(4):
        tl.store(into + copy // 2 * 2 * size + copy % 2 * CHANNELS, x, inside)
