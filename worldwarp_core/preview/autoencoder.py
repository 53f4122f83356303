"""The preview autoencoder: clips to latents of Wan's layout and back, small enough for two CPU cores.

In: (B, T, 3, H, W) in [0, 1], T = 4k + 1, sides multiples of 16. Latents: (B, 16, T', H/8, W/8), T' = k + 1, the first
of one frame, every other of four; normalised per channel. Convolutions are over single frames; along time, neighbours
are merged in pairs, and some blocks also see the step before their own. So everything is causal, and a clip that is
decoded latent by latent comes out as if decoded whole.

A small network cannot carry every pixel of a picture through 16 channels. It need not: the decoder is *guided*. It
also sees the prior and its validity at full size (pixel-unshuffled beside its own features at a quarter and half of
the size) and says for every pixel how much of the prior to keep. What the cache knows in detail stays sharp and is
corrected; only holes are made from the latents alone. Without a prior, validity is 0 everywhere.

Beside its layers each half has a straight way: the clip at a quarter of the size, folded into the latents, and back.

Most of the work is at low resolution: at half the size there are 64 channels, at full size none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..loop.priors import Priors
from ..st_diff.noise_map import LATENT_FRAMES, LATENT_PX, TOKEN_PX

Past = dict[nn.Module, Tensor]
"""What each block with a memory saw last: the state of a clip that is run piece by piece."""

ENCODED_AT_ONCE = 2
"""Latents that are encoded together: their features stay in the processor's cache."""
LEAK = 0.1
LEAST_VALID = 1e-3
"""What is valid by less than this has no colour."""
LATENT_BOUND = 4.0
"""Latents before normalisation stay within this, so that no rare value stretches the range that is denoised."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """Widths, in channels.

    Attributes:
        latents: of a latent.
        encoder, decoder: at half, a quarter and an eighth of the size.
        guide: of the prior's features at half and a quarter of the size.
        trust: added to the logit by which the decoder keeps the prior. One that learned beside priors that are wrong on
            purpose keeps too little of those that are right; how much too little, validation worlds tell.
    """

    latents: int = 16
    encoder: tuple[int, int, int] = (48, 96, 160)
    decoder: tuple[int, int, int] = (64, 96, 224)
    guide: tuple[int, int] = (32, 64)
    trust: float = 0.0


class PreviewAutoencoder(nn.Module):
    """An `Autoencoder` (worldwarp_core.st_diff.fill); `to_latents` and `to_frames` are its differentiable halves."""

    name = "preview"
    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()) -> None:
        super().__init__()
        self.config = config
        self.channels = config.latents
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        _start(self)
        self.register_buffer("mean", torch.zeros(config.latents))
        self.register_buffer("std", torch.ones(config.latents))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what CPUs and tensor cores convolve fastest

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """(T, H, W, 3) in [0, 1] -> (1, 16, T', H/8, W/8) float32, normalised."""
        clip = self._here(frames).permute(0, 3, 1, 2)[None]
        groups = _in_fours(clip)
        past: Past = {}
        raw = [self.encoder(part, past) for part in groups.split(ENCODED_AT_ONCE, 1)]
        return self.normalise(torch.cat(raw, 2).float())

    @torch.no_grad()
    def decode(self, latents: Tensor, priors: Priors | None = None) -> Iterator[Tensor]:
        """Yields T frames, (H, W, 3) float32 in [0, 1], latent by latent; `priors` of the same T frames guide it."""
        assert latents.shape[:2] == (1, self.channels), latents.shape
        frames = LATENT_FRAMES * (latents.shape[2] - 1) + 1
        guide = None
        if priors is not None:
            assert len(priors.rgb) == frames, (len(priors.rgb), frames)
            rgb, validity = self._here(priors.rgb).permute(0, 3, 1, 2), self._here(priors.validity)
            guide = _in_fours(join_guide(rgb, validity)[None])
        raw = self._here(self.denormalise(latents))
        past: Past = {}
        for t in range(raw.shape[2]):
            part = self.decoder(raw[:, :, t : t + 1], None if guide is None else guide[:, t : t + 1], past)[0]
            for frame in part[-1:] if t == 0 else part:
                yield frame.float().clamp(0, 1).permute(1, 2, 0)

    @torch.no_grad()
    def encode_clips(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> (B, 16, T', H/8, W/8) float32, normalised: `encode` for many clips at once."""
        return self.normalise(self.to_latents(clips).float())

    def to_latents(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, 16, T', H/8, W/8), not normalised."""
        return self.encoder(_in_fours(clips))

    def to_frames(self, raw: Tensor, guide: Tensor | None) -> Tensor:
        """Latents that are not normalised, and (B, T, 4, H, W) of `join_guide` -> (B, T, 3, H, W), not clamped."""
        frames = self.decoder(raw, None if guide is None else _in_fours(guide))
        return frames[:, LATENT_FRAMES - 1 :]

    def normalise(self, raw: Tensor) -> Tensor:
        return (raw - self.mean[:, None, None, None]) / self.std[:, None, None, None]

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents.to(self.mean.device) * self.std[:, None, None, None] + self.mean[:, None, None, None]

    def _here(self, values: Tensor) -> Tensor:
        """On the network's device, in its precision."""
        parameter = next(self.parameters())
        return values.to(parameter.device, parameter.dtype)


def join_guide(rgb: Tensor, validity: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] and (..., H, W) -> (..., 4, H, W): what is not valid is black, whatever it was."""
    validity = validity.unsqueeze(-3)
    return torch.cat([rgb * validity, validity], -3)


class Encoder(nn.Module):
    """(B, T', 4, 3, H, W) -> (B, 16, T', H/8, W/8)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        half, quarter, eighth = config.encoder
        self.stem = _conv(3 * 4, half)
        self.half_block = Block(half)
        self.to_quarter = _conv(half, quarter, stride=2)
        self.quarter_block = Block(quarter)
        self.pairs = nn.Conv2d(2 * quarter, quarter, 1)
        self.quarter_pairs = Block(quarter, memory=True)
        self.to_eighth = _conv(quarter, eighth, stride=2)
        self.eighth_pairs = Block(eighth)
        self.fours = nn.Conv2d(2 * eighth, eighth, 1)
        self.eighth = Block(eighth, memory=True)
        self.last = Block(eighth)
        self.head = _conv(eighth, config.latents)
        self.straight = nn.Conv2d(3 * 4, config.latents, 1, bias=False)

    def forward(self, groups: Tensor, past: Past | None = None) -> Tensor:
        clips, steps = groups.shape[:2]
        assert not any(side % TOKEN_PX for side in groups.shape[-2:]), groups.shape
        x = F.pixel_unshuffle(groups.flatten(0, 2) * 2 - 1, 2).contiguous(memory_format=torch.channels_last)
        x = self.half_block(_act(self.stem(x)))
        x = self.quarter_block(_act(self.to_quarter(x)))
        x = _act(self.pairs(_merge_pairs(x)))
        x = self.quarter_pairs(x, 2 * steps, past)
        x = self.eighth_pairs(_act(self.to_eighth(x)))
        x = _act(self.fours(_merge_pairs(x)))
        x = self.last(self.eighth(x, steps, past))
        small = F.avg_pool2d(groups.mean(2).flatten(0, 1) * 2 - 1, LATENT_PX // 2)
        x = self.head(_act(_norm(x))) + self.straight(F.pixel_unshuffle(small, 2))
        raw = LATENT_BOUND * torch.tanh(x / LATENT_BOUND)
        return raw.unflatten(0, (clips, steps)).transpose(1, 2)


class Decoder(nn.Module):
    """(B, 16, T', H/8, W/8) and (B, T', 4, 4, H, W) of prior and validity -> (B, 4 T', 3, H, W)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        half, quarter, eighth = config.decoder
        half_guide, quarter_guide = config.guide
        self.trust = config.trust
        self.guide_half = _conv(4 * 4, half_guide)
        self.guide_quarter = _conv(half_guide, quarter_guide, stride=2)
        self.guide_block = Block(quarter_guide)

        self.stem = _conv(config.latents, eighth)
        self.eighth = Block(eighth, memory=True)
        self.eighth_last = Block(eighth)
        self.to_quarter = nn.Conv2d(eighth, 2 * 4 * quarter, 1)  # two frames, each of four times the pixels
        self.quarter_pairs = Block(quarter, memory=True)
        self.quarter_last = Block(quarter)
        self.to_frames = nn.Conv2d(quarter, 2 * quarter, 1)
        self.quarter_guided = Block(quarter, beside=quarter_guide)
        self.to_half = nn.Conv2d(quarter, 4 * half, 1)
        self.half_guided = Block(half, beside=half_guide)
        self.half_last = Block(half)
        self.head = _conv(half, 4 * (3 + 1))
        self.straight = nn.Conv2d(config.latents, 3 * 4, 1, bias=False)

    def forward(self, raw: Tensor, guide: Tensor | None = None, past: Past | None = None) -> Tensor:
        clips, _, steps, rows, cols = raw.shape
        if guide is None:
            guide = raw.new_zeros(clips, steps, LATENT_FRAMES, 4, rows * LATENT_PX, cols * LATENT_PX)
        prior, validity = guide.flatten(0, 2).split([3, 1], 1)
        guides = F.pixel_unshuffle(guide.flatten(0, 2), 2).contiguous(memory_format=torch.channels_last)
        at_half = _act(self.guide_half(guides))
        at_quarter = self.guide_block(_act(self.guide_quarter(at_half)))

        latents = raw.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.eighth_last(self.eighth(_act(self.stem(latents)), steps, past))
        x = _act(F.pixel_shuffle(_split_pairs(self.to_quarter(x)), 2))
        x = self.quarter_last(self.quarter_pairs(x, 2 * steps, past))
        x = _act(_split_pairs(self.to_frames(x)))
        x = self.quarter_guided(x, beside=at_quarter)
        x = _act(F.pixel_shuffle(self.to_half(x), 2))
        x = self.half_last(self.half_guided(x, beside=at_half))
        rgb, keep = F.pixel_shuffle(self.head(_act(_norm(x))), 2).split([3, 1], 1)
        small = F.pixel_shuffle(self.straight(latents), 2)
        large = F.interpolate(small, scale_factor=LATENT_PX // 2, mode="bilinear", align_corners=False)
        made = (rgb + large.repeat_interleave(LATENT_FRAMES, 0)) * 0.5 + 0.5
        # As it was before `join_guide`: not darker at the rims of holes.
        known = prior / validity.clamp_min(LEAST_VALID)
        frames = made + torch.sigmoid(keep + self.trust) * validity * (known - made)
        return frames.unflatten(0, (clips, steps * LATENT_FRAMES))


class Block(nn.Module):
    """Two convolutions beside the straight way, over (N, C, h, w).

    Attributes:
        memory: the step before is seen too; N is then clips of `steps` steps.
        beside: channels of features that are seen too.
    """

    def __init__(self, width: int, memory: bool = False, beside: int = 0) -> None:
        super().__init__()
        self.memory = memory
        self.first = _conv(width * (2 if memory else 1) + beside, width)
        self.second = _conv(width, width)

    def forward(self, x: Tensor, steps: int = 1, past: Past | None = None, beside: Tensor | None = None) -> Tensor:
        seen = [x]
        if self.memory:
            seen.append(self._step_before(x, steps, past))
        if beside is not None:
            seen.append(beside)
        inner = self.first(_act(_norm(torch.cat(seen, 1) if len(seen) > 1 else x)))
        return x + self.second(_act(inner))

    def _step_before(self, x: Tensor, steps: int, past: Past | None) -> Tensor:
        clips = x.unflatten(0, (-1, steps))
        before = torch.zeros_like(clips[:, :1]) if past is None or self not in past else past[self]
        if past is not None:
            past[self] = clips[:, -1:]
        return torch.cat([before, clips[:, :-1]], 1).flatten(0, 1)


def _norm(x: Tensor) -> Tensor:
    """Each pixel's channels at unit mean square: the scale of features cannot fade or run away."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)


def _act(x: Tensor) -> Tensor:
    """Never flat: without norms, plain ReLUs fall silent within some steps and take the decoder with them."""
    return F.leaky_relu(x, LEAK)


def _start(network: PreviewAutoencoder) -> None:
    """Starts a deep network without norms so that it learns from the first step on.

    Left to themselves, so many layers make all clips look alike and latents are not used for long. So the straight
    way, which skips them all, starts as a small picture folded into the latents and back; what the layers add starts
    as nothing, and most of a prior is kept. Convolutions keep the variance, blocks start as the identity.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, LEAK)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.second.weight)
    encoder, decoder = network.encoder, network.decoder
    assert decoder.head.bias is not None
    with torch.no_grad():
        encoder.head.weight *= 0.03
        decoder.head.weight *= 0.03
        decoder.head.bias[-4:] = 2.0
        nn.init.orthogonal_(encoder.straight.weight)
        decoder.straight.weight.copy_(encoder.straight.weight.transpose(0, 1))


def _in_fours(clips: Tensor) -> Tensor:
    """(B, T, ...) -> (B, T', 4, ...): the first frame four times, then each latent's own four."""
    assert clips.shape[1] % LATENT_FRAMES == 1, clips.shape
    padded = torch.cat([clips[:, :1].expand(-1, LATENT_FRAMES - 1, *clips.shape[2:]), clips], 1)
    return padded.unflatten(1, (-1, LATENT_FRAMES))


def _merge_pairs(x: Tensor) -> Tensor:
    """(2n, C, h, w) -> (n, 2C, h, w): neighbours in time beside each other."""
    return torch.cat([x[0::2], x[1::2]], 1)


def _split_pairs(x: Tensor) -> Tensor:
    """(n, 2C, h, w) -> (2n, C, h, w)."""
    return x.unflatten(1, (2, -1)).flatten(0, 1)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)
