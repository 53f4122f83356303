"""What ST-Diff learns (method section 3): clips at the joint noise levels that the sampler visits, and where to go.

In: latents of true clips z and of their priors z_w, the confidence of every token, how many latents are context. Out:
noisy clips, their levels and the velocity to predict. Shapes are those of the sampler: latents (B, C, T', H/8, W/8),
token maps (B, T', H/16, W/16), levels (n,) float32 in [0, 1] and an index of tokens into them.

One state of the sampler: the schedule stands at sigma. A blank token is at sigma, a valid one at
min(sigma, its start), a context token is clean (level 0, timestep 0) and not learned from. Starts come from a
strength drawn for each clip, by confidence where the validity is graded, exactly as `noise_map.build_sigma_map` does.

Two targets, of which measurement chooses:

- `paper`: x = (1 - sigma) z_c + sigma eps with z_c = z_w where valid, z where blank; target eps - z. Simple, but a
  perfect model then ends the sampler at (1 - start) z_w + start z: a part of the prior's error stays, the more the
  lower the strength. And after its first update the sampler is off this distribution.
- `consistent`: a valid token starts at x_s = (1 - s) z_w + s eps, s being its start, and the model should lead it
  straight to z. Then every state on the way is x = z + (sigma / s)(x_s - z), and the velocity is (x - z) / sigma
  everywhere: (x_s - z) / s = (eps - z) + (1 - s) / s (z_w - z), bounded for any sigma. A perfect model ends the
  sampler at z, from any strength and with any number of steps. For a blank token (s = 1) this is flow matching's own.

The velocity says as much as the clean latents do: z = x - sigma v. Errors of v weigh on z with sigma, so learning v
in plain L2 is learning z with weight 1 / sigma^2: fine detail counts at low noise, layout at high noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from ..errors import WorldWarpError
from ..st_diff.noise_map import REFERENCE_SIGMAS, REFERENCE_STEPS, expand_to_latents, sigma_schedule

Target = Literal["consistent", "paper"]


@dataclass(frozen=True)
class ObjectiveSettings:
    """Which states are drawn.

    Attributes:
        target: see above.
        strengths: the range that a clip's strength is drawn from, evenly.
        usual, usual_strength: the share of clips that are at this strength instead: the one that is asked for the most.
        graded: the share of clips whose valid tokens start by their confidence; the rest start alike.
        independent: the share of clips in which every latent frame is at a step of its own. The sampler never visits
            these; the ablation with noise that varies in time alone does.
        erased: the share of clips whose prior is not used at all (all blank): the ablation with full noise.
        jitter: levels are drawn between those of the reference schedule too: schedules of few steps stand there.
        blank_weight: how much a blank token counts, beside 1 of a valid one. Where the decoder is guided by the prior,
            pictures need little of the latents there.
        steps: where given, only the states that a sampler of so many steps visits are drawn, and no others: a small
            network then spends all it has on them. `jitter` and `independent` change nothing then.
    """

    target: Target = "consistent"
    strengths: tuple[float, float] = (0.15, 0.9)
    usual: float = 0.0
    usual_strength: float = 0.8
    graded: float = 0.3
    independent: float = 0.1
    erased: float = 0.05
    jitter: bool = True
    blank_weight: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise WorldWarpError(
                "bad_settings", f"target must be one of {', '.join(get_args(Target))}; got {self.target!r}."
            )
        low, high = self.strengths
        if not 0.0 < low <= high <= 1.0:
            raise WorldWarpError("bad_settings", f"strengths must rise within (0, 1]; got {low} to {high}.")
        if not 0.0 < self.usual_strength <= 1.0:
            raise WorldWarpError("bad_settings", f"usual_strength is in (0, 1]; got {self.usual_strength}.")
        if not self.blank_weight > 0:
            raise WorldWarpError("bad_settings", f"blank_weight must be above 0; got {self.blank_weight}.")
        if self.steps is not None and self.steps < 1:
            raise WorldWarpError("bad_settings", f"A sampler takes at least 1 step; got {self.steps}.")
        for name in ("usual", "graded", "independent", "erased"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise WorldWarpError("bad_settings", f"{name} is a share in [0, 1]; got {getattr(self, name)}.")


@dataclass(frozen=True)
class NoisyClips:
    """One batch to learn from.

    Attributes:
        latents: (B, C, T', H/8, W/8), noisy.
        levels: (n,) float32, falling from 1 to 0.
        index: (B, L) int64, the level of each token, in the order t, h, w.
        target: like `latents`: the velocity to predict.
        learned: (B, 1, T', H/8, W/8), how much the target counts: nothing in context.
    """

    latents: Tensor
    levels: Tensor
    index: Tensor
    target: Tensor
    learned: Tensor


def draw_states(
    truth: Tensor,
    prior: Tensor,
    confidence: Tensor,
    context: Tensor,
    generator: Generator,
    settings: ObjectiveSettings = ObjectiveSettings(),
) -> NoisyClips:
    """Draws a state of the sampler for each clip.

    Args:
        truth: (B, C, T', H/8, W/8) latents z.
        prior: like `truth`, z_w.
        confidence: (B, T', H/16, W/16) in [0, 1], above 0 where a token is valid; see `noise_map.token_confidence`.
        context: (B,) int64, latents of each clip that are history.
        generator: of the device of `truth`.
        settings: which states.
    """
    clips, _, frames, height, width = truth.shape
    assert prior.shape == truth.shape, (prior.shape, truth.shape)
    assert confidence.shape == (clips, frames, height // 2, width // 2), (confidence.shape, truth.shape)
    assert context.shape == (clips,), context.shape

    start, own = _draw_starts(confidence, generator, settings)
    if settings.steps is None:
        levels, now = draw_levels(generator, settings.jitter), _draw_steps(clips, frames, generator, settings)
    else:
        levels, places, nodes = _few_levels(settings.steps, truth.device)
        start, own = places[start], places[own]
        now = _draw_nodes(nodes, own, generator)
    at = torch.maximum(now, start)  # a higher index is a lower level
    clean = torch.arange(frames, device=truth.device) < context[:, None]
    at = at.masked_fill(clean[:, :, None, None], len(levels) - 1)

    sigma = expand_to_latents(levels[at])[:, None].to(truth.dtype)
    begin = expand_to_latents(levels[start])[:, None].to(truth.dtype)
    eps = torch.randn(truth.shape, generator=generator, device=truth.device, dtype=truth.dtype)
    if settings.target == "consistent":
        outset = (1 - begin) * prior + begin * eps
        latents = truth + sigma / begin * (outset - truth)
        target = (outset - truth) / begin
    else:
        composite = torch.where(expand_to_latents(start > 0)[:, None], prior, truth)
        latents = (1 - sigma) * composite + sigma * eps
        target = eps - truth
    latents = torch.where(clean[:, None, :, None, None], truth, latents)
    learned = weights(start == 0, ~clean[:, :, None, None], settings)
    return NoisyClips(latents, levels, at.flatten(1), target, learned)


def weights(blank: Tensor, learned: Tensor, settings: ObjectiveSettings) -> Tensor:
    """(B, 1, T', H/8, W/8): how much each token's target counts, of token maps (B, T', H/16, W/16), the one of what is
    blank and the other of what counts at all."""
    return expand_to_latents(torch.where(blank, settings.blank_weight, 1.0) * learned)[:, None]


def velocity_loss(velocity: Tensor, clips: NoisyClips) -> Tensor:
    """Mean squared error over all that is learned; 0 where nothing is."""
    error = (velocity.float() - clips.target.float()).square() * clips.learned
    return error.sum() / (clips.learned.sum() * clips.target.shape[1]).clamp_min(1)


def draw_levels(generator: Generator, jitter: bool = True) -> Tensor:
    """(51,) levels falling from 1 to 0: the reference schedule's, each moved at random up to half way to the next."""
    levels = torch.tensor(REFERENCE_SIGMAS, device=generator.device)
    if not jitter:
        return levels
    edges = (levels[:-1] + levels[1:]) / 2
    share = torch.rand(len(levels) - 2, generator=generator, device=generator.device)
    inner = torch.lerp(edges[1:], edges[:-1], share)
    return torch.cat([levels[:1], inner, levels[-1:]])


def few_levels(steps: int, device: torch.device) -> Tensor:
    """(n,) levels from 1 to 0: of the reference schedule, where tokens start, and of one of few steps together."""
    return _few_levels(steps, device)[0]


def _few_levels(steps: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Levels of the reference schedule and of one of few steps together.

    Returns (n,) levels from 1 to 0, (51,) places of the reference's among them, and (steps,) places of the few.
    """
    few = sigma_schedule(steps)[:-1]
    every = sorted({*REFERENCE_SIGMAS, *few}, reverse=True)
    places = torch.tensor([every.index(sigma) for sigma in REFERENCE_SIGMAS], device=device)
    nodes = torch.tensor([every.index(sigma) for sigma in few], device=device)
    return torch.tensor(every, dtype=torch.float32, device=device), places, nodes


def _draw_nodes(nodes: Tensor, own: Tensor, generator: Generator) -> Tensor:
    """(B, 1, 1, 1) int64: a node of each clip's schedule, evenly.

    A clip's schedule has the (steps,) nodes and its own start, (B, 1, 1, 1), as `noise_map.sigma_schedule` inserts it.
    """
    schedule = torch.cat([nodes.expand(len(own), -1), own.flatten(1)], 1)
    drawn = torch.randint(schedule.shape[1], (len(own), 1), generator=generator, device=own.device)
    return schedule.gather(1, drawn)[..., None, None]


def _draw_starts(confidence: Tensor, generator: Generator, settings: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    """(B, T', H/16, W/16) int64: where on the reference schedule each token starts, 0 is blank; and (B, 1, 1, 1) where
    a wholly valid one does."""

    def draw(share: float) -> Tensor:
        return _uniform(confidence.shape[0], generator) < share

    low, high = settings.strengths
    strength = low + (high - low) * _uniform(confidence.shape[0], generator).double()
    strength = torch.where(draw(settings.usual), settings.usual_strength, strength)
    trust = torch.where(draw(settings.graded), confidence.double(), (confidence > 0).double())
    trust = torch.where(draw(settings.erased), 0.0, trust)
    # Confidence c acts as strength 1 - c (1 - strength), truncated to a step as noise_map does: 0.6 is index 20.
    starts = [
        ((share * (1 - strength)).round(decimals=6) * REFERENCE_STEPS).long().clamp(0, REFERENCE_STEPS - 1)
        for share in (trust, torch.ones_like(strength))
    ]
    return starts[0], starts[1]


def _draw_steps(clips: int, frames: int, generator: Generator, settings: ObjectiveSettings) -> Tensor:
    """(B, T', 1, 1) int64: the step at which the schedule stands, for each frame."""
    device = generator.device
    alike = torch.randint(REFERENCE_STEPS, (clips, 1, 1, 1), generator=generator, device=device)
    alone = torch.randint(REFERENCE_STEPS, (clips, frames, 1, 1), generator=generator, device=device)
    return torch.where(_uniform(clips, generator) < settings.independent, alone, alike)


def _uniform(clips: int, generator: Generator) -> Tensor:
    """(B, 1, 1, 1) in [0, 1)."""
    return torch.rand((clips, 1, 1, 1), generator=generator, device=generator.device)
