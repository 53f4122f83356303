"""The sampler of ST-Diff: steps along one schedule, each token from its own noise level (method section 2).

In: a transformer, latents, the start sigma of every token (see noise_map.py), text embeddings. Out: clean latents.

Latents are (B, C, T', H/8, W/8) float32, normalised by the autoencoder's mean and deviation; `sigma_map` is
(B, T', H/16, W/16), one value per token. A token at noise level sigma holds z_sigma = (1 - sigma) z + sigma eps, and
the model predicts its velocity dz/dsigma = eps - z.

The method is Euler steps with guidance at each. What `SamplerSettings` offers beside that is faster and not the same:
another solver, guidance at some steps only, steps that ask no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from ..errors import WorldWarpError
from .noise_map import expand_to_latents

TIMESTEPS = 1000
"""What the transformer calls sigma = 1."""
FEW_LEVELS, MANY_LEVELS = 4, 64
"""Levels are padded to 4 (the plain method has 3) or to a multiple of 64, so that few shapes are ever compiled."""
STEEPEST = 1.0
"""How far `adams` continues a slope, in lengths of what it was measured over; half a length is usual.

Two nodes of the schedule may lie arbitrarily close; what was measured between them is then mostly noise.
"""

Solver = Literal["euler", "adams"]


class Transformer(Protocol):
    """What the sampler asks of a model; see `worldwarp_core.transformer.prepare`."""

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, hidden_states: Tensor, levels: Tensor, index: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Returns the velocity of (B, C, T', H/8, W/8) latents.

        `levels` are (n,) float32 timesteps, `index` (B, L) int64 says which of them each token (t, h, w) is at.
        """
        ...


@dataclass(frozen=True)
class SamplerSettings:
    """How the model is asked. The defaults are the method's own, the rest trades exactness for time.

    Attributes:
        guidance: classifier-free guidance: how far to go beyond the negative prompt's velocity towards the prompt's.
            1 asks for the prompt's alone, in half the time.
        batched: both prompts in one pass; one after the other saves memory.
        guidance_interval: the lowest and highest sigma of the schedule at which there is guidance; at other steps the
            prompt's velocity alone is taken, in half the time.
        guidance_every: ask for the negative prompt's velocity at every n-th guided step only, and take its difference
            to the prompt's from the last time at the others.
        solver: `euler`: the velocity holds for a step. `adams`: it goes on changing as it did over the last step
            (Adams-Bashforth of second order along each token's own levels; a token's first step is Euler's), so that
            fewer steps reach the same accuracy.
        reuse: take a step without asking the model, with the velocity known already, while that is estimated to have
            changed by less than this share of itself since the model was asked. 0 asks at every step.
    """

    guidance: float = 5.0
    batched: bool = True
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_every: int = 1
    solver: Solver = "euler"
    reuse: float = 0.0

    def __post_init__(self) -> None:
        def settle(ok: bool, message: str) -> None:
            if not ok:
                raise WorldWarpError("bad_settings", message)

        low, high = self.guidance_interval
        settle(self.guidance >= 1.0, f"Guidance must be at least 1; got {self.guidance}.")
        settle(0.0 <= low <= high <= 1.0, f"The guidance interval must rise within [0, 1]; got {low} to {high}.")
        settle(
            self.guidance_every >= 1, f"Guidance must be asked for every 1 or more steps; got {self.guidance_every}."
        )
        settle(
            self.solver in get_args(Solver),
            f"The solver must be one of {', '.join(get_args(Solver))}; got {self.solver!r}.",
        )
        settle(
            0.0 <= self.reuse < 1.0,
            f"The change up to which velocities are reused must be in [0, 1); got {self.reuse}.",
        )


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
        settings: guidance, solver and what may be left out.
    """
    start = _over_latents(sigma_map, latents)
    levels, index = distinct_levels(sigma_map)
    guide = _Guide(model, index, prompt, negative_prompt, settings)
    before: _Asked | None = None
    last: _Asked | None = None
    for sigma, sigma_next in pairwise(sigmas):
        here, there = start.clamp(max=sigma), start.clamp(max=sigma_next)
        if last is None or before is None or not (settings.reuse and _change(before, last, sigma) < settings.reuse):
            velocity = guide.velocity(latents, levels.clamp(max=sigma), sigma)
            before, last = last, _Asked(sigma, here, velocity)
        velocity = last.velocity
        if settings.solver == "adams" and before is not None:
            velocity = velocity + _slope_over(before, last, (here + there) / 2)
        # 0 where a token holds, and where it is context.
        latents = latents + (there - here) * velocity
        yield latents


def distinct_levels(sigma_map: Tensor) -> tuple[Tensor, Tensor]:
    """The start levels (n,) that a map (B, ...) holds, padded by repetition, and the (B, L) index of each token's."""
    levels, index = sigma_map.flatten(1).unique(return_inverse=True)
    size = FEW_LEVELS if len(levels) <= FEW_LEVELS else -(-len(levels) // MANY_LEVELS) * MANY_LEVELS
    return torch.cat([levels, levels[-1:].expand(size - len(levels))]), index


class _Asked(NamedTuple):
    """What the model said, and when."""

    sigma: float  # of the schedule
    level: Tensor  # (B, 1, T', H/8, W/8), of each latent
    velocity: Tensor  # (B, C, T', H/8, W/8)


class _Guide:
    """Asks the model for velocities towards the prompt and away from the negative one."""

    def __init__(
        self,
        model: Transformer,
        index: Tensor,
        prompt: Tensor,
        negative_prompt: Tensor | None,
        settings: SamplerSettings,
    ) -> None:
        assert settings.guidance == 1.0 or negative_prompt is not None, "guidance needs a negative prompt"
        assert negative_prompt is None or negative_prompt.shape == prompt.shape, (negative_prompt.shape, prompt.shape)
        self.model, self.index, self.settings = model, index, settings
        self.prompt, self.negative_prompt = prompt.to(model.dtype), negative_prompt
        self.difference: Tensor | None = None
        """Of the velocities with the prompt and with the negative one, when both were last asked for."""
        self.guided_steps = 0

    def velocity(self, latents: Tensor, levels: Tensor, sigma: float) -> Tensor:
        """(B, C, T', H/8, W/8), of tokens at (n,) levels, the schedule being at `sigma`."""
        settings = self.settings
        low, high = settings.guidance_interval
        if settings.guidance == 1.0 or not low <= sigma <= high:
            return self._ask(latents, levels, self.index, self.prompt)
        self.guided_steps += 1
        if (self.guided_steps - 1) % settings.guidance_every:
            wanted = self._ask(latents, levels, self.index, self.prompt)
            assert self.difference is not None
            return wanted + (settings.guidance - 1) * self.difference
        assert self.negative_prompt is not None
        negative = self.negative_prompt.to(self.model.dtype)
        if settings.batched:
            texts = torch.cat([self.prompt, negative])
            both = self._ask(latents.repeat(2, 1, 1, 1, 1), levels, self.index.repeat(2, 1), texts)
            wanted, unwanted = both.chunk(2)
        else:
            wanted = self._ask(latents, levels, self.index, self.prompt)
            unwanted = self._ask(latents, levels, self.index, negative)
        self.difference = wanted - unwanted
        return unwanted + settings.guidance * self.difference

    def _ask(self, latents: Tensor, levels: Tensor, index: Tensor, text: Tensor) -> Tensor:
        """In the latents' precision, not the model's: steps are too small to add up in half precision."""
        return self.model(latents.to(self.model.dtype), TIMESTEPS * levels, index, text).to(latents.dtype)


def _change(before: _Asked, last: _Asked, sigma: float) -> float:
    """By how much of itself the velocity has changed since it was asked for, if it goes on as it did until then."""
    moved = before.level > last.level
    change = ((last.velocity - before.velocity) * moved).norm() / (last.velocity * moved).norm()
    return float(change) * (last.sigma - sigma) / (before.sigma - last.sigma)


def _slope_over(before: _Asked, last: _Asked, level: Tensor) -> Tensor:
    """What to add to the last velocity to have it at `level`; nothing where a token held between the two."""
    run = before.level - last.level
    share = torch.where(run > 0, (last.level - level) / run, 0.0).clamp(max=STEEPEST)
    return share * (last.velocity - before.velocity)


def _over_latents(sigma_map: Tensor, latents: Tensor) -> Tensor:
    """(B, T', H/16, W/16) -> (B, 1, T', H/8, W/8), the sigma of each latent."""
    sigma = expand_to_latents(sigma_map)[:, None]
    assert sigma.shape == (latents.shape[0], 1, *latents.shape[2:]), (sigma_map.shape, latents.shape)
    return sigma
