"""Distils ST-Diff: few steps learn to make what many guided ones make.

A small network that learns the mean of all that is likely makes smears of what nobody has seen, however many steps it
takes. What helps is to exaggerate what sets it apart from a weaker state of itself (autoguidance, Karras et al. 2024,
arXiv 2406.02507): velocity v + (guidance - 1) (v - v_weaker), here on blank tokens alone; what is warped is known well
enough. That costs twice the passes, and four times the steps show what it can do. So the teacher samples clips so, the
states at the few levels that the preset visits are kept, and the student learns to get from each to the next in one
step (as Salimans and Ho 2022, arXiv 2202.00512, on the sampler's own path): the way from noise to picture is a
function, so there is nothing to average, and it comes out as sharp as the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from ..errors import WorldWarpError
from ..evaluation.lpips import Lpips
from ..preview.transformer import no_text
from ..st_diff.denoise import SamplerSettings, Transformer, compose_latents, denoise
from ..st_diff.noise_map import SHIFT, expand_to_latents, sigma_schedule, start_sigma
from ..transformer.prepare import WorldWarpTransformer
from .objective import NoisyClips, few_levels, weights
from .pool import Clips, Examples, PoolSettings, Source
from .stdiff import ClipAutoencoder, StDiffTask, StDiffTraining

OWN_DRAWS = 1 << 40
"""Added to seeds, so that what is drawn here does not follow from what the clips' own seeds draw."""


@dataclass(frozen=True)
class DistillTraining(StDiffTraining):
    """What is learned, beside what `StDiffTraining` says: `steps` are the student's.

    Attributes:
        guidance: how far to go beyond the teacher, away from its weaker state; 1 is the teacher's own way.
        substeps: steps of the teacher for one of the student's.
    """

    strength: float = 0.2
    guidance: float = 2.0
    substeps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance < 1.0:
            raise WorldWarpError("bad_settings", f"Guidance must be at least 1; got {self.guidance}.")
        if self.substeps < 1:
            raise WorldWarpError("bad_settings", f"At least 1 step for one of the student's; got {self.substeps}.")


@dataclass(frozen=True)
class Teacher:
    """A trained transformer and a weaker state of it."""

    better: Transformer
    weaker: Transformer


class DistillTask(StDiffTask):
    """A `Task` of the trainer."""

    settings: DistillTraining

    def __init__(
        self,
        model: WorldWarpTransformer,
        teacher: Teacher,
        autoencoder: ClipAutoencoder,
        source: Source[Clips],
        judged: Clips,
        lpips: Lpips | None,
        pool: PoolSettings,
        settings: DistillTraining,
        first_seed: int = 0,
        stride: int | None = None,
    ) -> None:
        """As `StDiffTask`; `model` best starts as the teacher."""
        self._teacher, self.sampler_steps = teacher, settings.steps
        super().__init__(model, autoencoder, source, judged, lpips, pool, settings, first_seed, stride)
        self._judged_latents |= self._lead(self._judged_latents, settings.strength, 0)

    def _make(self, first_seed: int) -> Examples:
        hand = Generator().manual_seed(OWN_DRAWS + first_seed)
        chance, place = torch.rand(2, generator=hand).tolist()
        objective = self.settings.objective
        low, high = objective.strengths
        strength = objective.usual_strength if chance < objective.usual else low + (high - low) * place
        return self._lead(super()._make(first_seed), strength, first_seed)

    @torch.no_grad()
    def _lead(self, examples: Examples, strength: float, seed: int) -> Examples:
        """Where the teacher leads clips from noise.

        Args:
            examples: of `StDiffTask`: `prior` (B, C, T', h, w), `confidence` (B, T', h/2, w/2) and `context` (B,).
            strength: of all of them, in [0, 1].
            seed: of the noise.

        Returns:
            `states` (B, n + 1, C, T', h, w) at the n + 1 levels `schedule` (B, n + 1) of the student, the clean ones
            last, and `start` (B, T', h/2, w/2), the level that each token started at.
        """
        prior, confidence = examples["prior"].float(), examples["confidence"].float()
        device, settings = prior.device, self.settings
        clean = torch.arange(prior.shape[2], device=device) < examples["context"][:, None]
        start = torch.where(confidence > 0, start_sigma(strength), 1.0).masked_fill(clean[:, :, None, None], 0.0)
        guided = _Guided(self._teacher, settings.guidance, expand_to_latents(start == 1.0)[:, None])
        noise = torch.randn(prior.shape, generator=Generator(device).manual_seed(seed), device=device)
        # History is in place in the prior.
        state = compose_latents(prior, prior[:, :, :0], noise, start)
        schedule = sigma_schedule(settings.steps, [strength])
        text = no_text(len(prior), self._model.config["text_dim"], device)
        fine = refine(schedule, settings.substeps)
        path = denoise(guided, state, start, fine, text, None, SamplerSettings(guidance=1.0))
        kept = [state, *list(path)[settings.substeps - 1 :: settings.substeps]]
        # A start that is a node of the schedule already makes it one shorter; examples are of one shape.
        more = settings.steps + 2 - len(schedule)
        schedule, kept = schedule + schedule[-1:] * more, kept + kept[-1:] * more
        return {
            "states": torch.stack(kept, 1),
            "schedule": torch.tensor(schedule, device=device).expand(len(prior), -1).contiguous(),
            "start": start,
        }

    def _noisy(self, examples: Examples, generator: Generator) -> NoisyClips:
        """A step of each clip's."""
        states, schedule, start = examples["states"], examples["schedule"], examples["start"]
        rows = torch.arange(len(states), device=states.device)
        levels_on_the_way = torch.minimum(start[:, None], schedule[:, :, None, None, None])
        moves = (levels_on_the_way[:, :-1] > levels_on_the_way[:, 1:]).flatten(2).any(2)
        # Evenly among the steps in which any token moves; a clip in which none ever does teaches nothing.
        step = torch.multinomial(moves.float() + 1e-9, 1, generator=generator)[:, 0]
        here, there = (levels_on_the_way[rows, at] for at in (step, step + 1))
        gap = expand_to_latents(there - here)[:, None]
        target = torch.where(gap < 0, (states[rows, step + 1] - states[rows, step]) / gap.clamp_max(-1e-6), 0.0)
        levels = few_levels(self.settings.steps, states.device)
        index = (here.flatten(1)[..., None] - levels).abs().argmin(-1)
        learned = weights(start == 1.0, there < here, self.settings.objective)
        return NoisyClips(states[rows, step], levels, index, target, learned)


class _Guided:
    """A `Transformer`: the teacher, led away from its weaker state where a token is blank."""

    def __init__(self, teacher: Teacher, guidance: float, blank: Tensor) -> None:
        self.dtype, self._teacher, self._more = teacher.better.dtype, teacher, (guidance - 1) * blank

    def __call__(self, hidden_states: Tensor, levels: Tensor, index: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        asked = (hidden_states, levels, index, encoder_hidden_states)
        better = self._teacher.better(*asked).float()
        if not self._more.any():
            return better
        return better + self._more * (better - self._teacher.weaker(*asked).float())


def refine(schedule: list[float], substeps: int) -> list[float]:
    """More levels between those of a schedule, evenly in the time before its shift."""

    def time(sigma: float) -> float:
        return sigma / (SHIFT - (SHIFT - 1) * sigma)

    fine = [schedule[0]]
    for sigma, sigma_next in pairwise(schedule):
        for part in range(1, substeps):
            u = time(sigma) + (time(sigma_next) - time(sigma)) * part / substeps
            fine.append(SHIFT * u / (1 + (SHIFT - 1) * u))
        fine.append(sigma_next)
    return fine
