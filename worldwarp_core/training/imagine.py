"""Clips as the engine's sampler would end them, for training on: whole batches at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import WorldWarpError
from ..preview.autoencoder import PreviewAutoencoder, join_guide
from ..preview.load import PreviewFill
from ..preview.transformer import no_text
from ..st_diff.close_holes import close_holes
from ..st_diff.denoise import SamplerSettings, compose_latents, denoise
from ..st_diff.noise_map import SMALL_PICTURES, build_sigma_map, sigma_schedule
from ..transformer.prepare import WorldWarpTransformer
from .precision import half

ENCODED_AT_ONCE = 4
"""Clips."""


@dataclass(frozen=True)
class Imagined:
    """B clips that a transformer made of their history and priors.

    Attributes:
        latents: (B, C, T', H/8, W/8), normalised.
        prior: (B, T, 3, H, W) float32, history in place.
        validity: (B, T, H, W) float32, history valid.
    """

    latents: Tensor
    prior: Tensor
    validity: Tensor


@dataclass(frozen=True)
class Imagination:
    """The engine's sampler.

    Attributes:
        autoencoder, transformer: trained.
        steps, strength: of the sampler.
    """

    autoencoder: PreviewAutoencoder
    transformer: WorldWarpTransformer
    steps: int = 7
    strength: float = PreviewFill.strength

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0.0 <= self.strength <= 1.0:
            raise WorldWarpError(
                "bad_settings",
                f"A sampler takes at least 1 step, its strength is in [0, 1]; got {self.steps} and {self.strength}.",
            )

    @torch.no_grad()
    def make(self, history: Tensor, prior: Tensor, validity: Tensor, context: int, seed: int) -> Imagined:
        """Samples clips that begin with `context` frames of `history`.

        Args:
            history, prior: (B, T, 3, H, W) in [0, 1].
            validity: (B, T, H, W) in [0, 1].
            context: frames, at most T.
            seed: of the noise.
        """
        device = prior.device
        prior, validity = prior.float().clone(), validity.float().clone()
        prior[:, :context], validity[:, :context] = history[:, :context].float(), 1.0
        closed = close_holes(prior.flatten(0, 1), validity.flatten(0, 1)).view_as(prior)
        sigma_map = torch.stack([build_sigma_map(v, self.strength, context, SMALL_PICTURES) for v in validity])
        warped = self.encode(closed)
        noise = torch.randn(warped.shape, generator=Generator(device).manual_seed(seed), device=device)
        # History is in place in the prior.
        start = compose_latents(warped, warped[:, :, :0], noise, sigma_map)
        text = no_text(len(warped), self.transformer.config["text_dim"], device)
        sigmas = sigma_schedule(self.steps, [self.strength])
        states = denoise(self.transformer, start, sigma_map, sigmas, text, None, SamplerSettings(guidance=1.0))
        return Imagined(deque(states, maxlen=1).pop(), prior, validity)

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> (B, C, T', H/8, W/8)."""
        with half(clips.device):
            return torch.cat([self.autoencoder.encode_clips(part) for part in clips.float().split(ENCODED_AT_ONCE)])

    @torch.no_grad()
    def decode(self, made: Imagined) -> Tensor:
        """(B, T, 3, H, W) float32 in [0, 1]: the clips' pictures, beside their priors."""
        parts = zip(
            made.latents.split(ENCODED_AT_ONCE), made.prior.split(ENCODED_AT_ONCE),
            made.validity.split(ENCODED_AT_ONCE), strict=True,
        )  # fmt: skip
        with half(made.prior.device):
            frames = [
                self.autoencoder.to_frames(self.autoencoder.denormalise(latents.float()), join_guide(prior, validity))
                for latents, prior, validity in parts
            ]
        return torch.cat(frames).float().clamp(0, 1)
