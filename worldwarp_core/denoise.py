"""The sampler of ST-Diff: Euler steps along one schedule, each token from its own noise level (method section 2).

In: a Wan transformer, latents, the start sigma of every token (see noise_map.py), text embeddings. Out: clean latents.

Latents are (B, C, T', H/8, W/8) float32, normalised by the autoencoder's mean and deviation; `sigma_map` is
(B, T', H/16, W/16), one value per token. A token at noise level sigma holds z_sigma = (1 - sigma) z + sigma eps, and
the model predicts its velocity dz/dsigma = eps - z.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .errors import WorldWarpError
from .noise_map import expand_to_latents

TIMESTEPS = 1000
"""What the transformer calls sigma = 1."""


class Transformer(Protocol):
    """What the sampler asks of a model; diffusers' `WanTransformer3DModel` is one."""

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *, return_dict: bool
    ) -> tuple[Tensor, ...]:
        """Returns a 1-tuple: the velocity of (B, C, T', H/8, W/8) latents, from (B, L) timesteps in order t, h, w."""
        ...


@dataclass(frozen=True)
class SamplerSettings:
    """How the model is asked.

    Attributes:
        guidance: classifier-free guidance: how far to go beyond the negative prompt's velocity towards the prompt's.
            1 asks for the prompt's alone, in half the time.
        batched: both prompts in one pass; one after the other saves memory.
    """

    guidance: float = 5.0
    batched: bool = True

    def __post_init__(self) -> None:
        if not self.guidance >= 1.0:
            raise WorldWarpError("bad_settings", f"Guidance must be at least 1; got {self.guidance}.")


def draw_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal float32 noise, drawn where the generator lives: a CPU generator gives every device the same."""
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(device)


def compose_latents(prior: Tensor, context: Tensor, noise: Tensor, sigma_map: Tensor) -> Tensor:
    """Where the sampler starts: history, then the prior, each token mixed with as much noise as its start sigma says.

    Args:
        prior: (B, C, T', H/8, W/8) latents of the warped clip.
        context: (B, C, n, H/8, W/8) latents of the history; they replace the first n of the prior. n may be 0.
        noise: like `prior`, standard normal.
        sigma_map: (B, T', H/16, W/16).
    """
    assert noise.shape == prior.shape, (noise.shape, prior.shape)
    clean = torch.cat([context, prior[:, :, context.shape[2] :]], 2)
    assert clean.shape == prior.shape, (context.shape, prior.shape)
    sigma = _over_latents(sigma_map, prior)
    return (1 - sigma) * clean + sigma * noise


@torch.no_grad()
def denoise(
    model: Transformer,
    latents: Tensor,
    sigma_map: Tensor,
    sigmas: list[float],
    prompt: Tensor,
    negative_prompt: Tensor | None,
    settings: SamplerSettings = SamplerSettings(),
) -> Iterator[Tensor]:
    """Yields the latents after each step, the clean ones last; stop asking and the work stops there.

    Args:
        model: predicts velocities.
        latents: (B, C, T', H/8, W/8) from `compose_latents`.
        sigma_map: (B, T', H/16, W/16), where each token starts: 0 stays as it is.
        sigmas: noise levels falling to 0, see `sigma_schedule`; one step each pair.
        prompt: (B, N, D) text embeddings.
        negative_prompt: like `prompt`; may be None where guidance is 1.
        settings: guidance.
    """
    start = _over_latents(sigma_map, latents)
    for sigma, sigma_next in pairwise(sigmas):
        timestep = TIMESTEPS * sigma_map.clamp(max=sigma).flatten(1)
        velocity = _guided_velocity(model, latents, timestep, prompt, negative_prompt, settings)
        # 0 where a token holds, and where it is context.
        step = start.clamp(max=sigma_next) - start.clamp(max=sigma)
        latents = latents + step * velocity
        yield latents


def _guided_velocity(
    model: Transformer,
    latents: Tensor,
    timestep: Tensor,
    prompt: Tensor,
    negative_prompt: Tensor | None,
    settings: SamplerSettings,
) -> Tensor:
    """(B, C, T', H/8, W/8), from (B, L) timesteps."""
    if settings.guidance == 1.0:
        return _velocity(model, latents, timestep, prompt)
    assert negative_prompt is not None, "guidance needs a negative prompt"
    assert negative_prompt.shape == prompt.shape, (negative_prompt.shape, prompt.shape)
    if settings.batched:
        both = torch.cat([prompt, negative_prompt])
        wanted, unwanted = _velocity(model, latents.repeat(2, 1, 1, 1, 1), timestep.repeat(2, 1), both).chunk(2)
    else:
        wanted = _velocity(model, latents, timestep, prompt)
        unwanted = _velocity(model, latents, timestep, negative_prompt)
    return unwanted + settings.guidance * (wanted - unwanted)


def _velocity(model: Transformer, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    """The model's answer in the latents' precision, not its own: steps are too small to add up in half precision."""
    answer = model(latents.to(model.dtype), timestep, text.to(model.dtype), return_dict=False)[0]
    return answer.to(latents.dtype)


def _over_latents(sigma_map: Tensor, latents: Tensor) -> Tensor:
    """(B, T', H/16, W/16) -> (B, 1, T', H/8, W/8), the sigma of each latent."""
    sigma = expand_to_latents(sigma_map)[:, None]
    assert sigma.shape == (latents.shape[0], 1, *latents.shape[2:]), (sigma_map.shape, latents.shape)
    return sigma
