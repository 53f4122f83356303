"""Trains ST-Diff: a transformer that fills what is blank and revises what is warped (method section 3).

Clips and their priors are encoded once; the pool keeps latents, the confidence of every token and how many latents are
history, and the network learns from states drawn anew each time (`objective.py`). History is in place before a prior
is encoded, as when the loop runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from ..errors import WorldWarpError
from ..evaluation.lpips import Lpips
from ..loop.priors import VALID, Priors
from ..preview.transformer import no_text
from ..st_diff.close_holes import close_holes
from ..st_diff.denoise import TIMESTEPS, SamplerSettings, compose_latents, denoise
from ..st_diff.noise_map import (
    LATENT_FRAMES,
    NoiseSettings,
    build_sigma_map,
    context_latents,
    sigma_schedule,
    token_confidence,
)
from ..transformer.prepare import WorldWarpTransformer
from .judge import contact_sheet, detail, inpainted, psnr
from .objective import NoisyClips, ObjectiveSettings, draw_states, velocity_loss
from .pool import Clips, ExamplePool, Examples, PoolSettings, Source
from .precision import half
from .trainer import Validation

CONTEXTS = (0, 1, 5)
CONTEXT_SHARES = (0.1, 0.5, 0.4)
"""How often a clip begins with so many frames of history: none, a start frame, the overlap of two chunks."""
MIRRORED = (False, True)
"""Every clip is learned from both ways: encoding costs less than rendering."""
JUDGED_STATES = 4
"""States drawn for each judged clip: the loss of a single one is mostly luck."""
ENCODED_AT_ONCE = 4
"""Clips: enough to fill a GPU."""


@dataclass(frozen=True)
class StDiffTraining:
    """What is learned from, and how it is judged.

    Attributes:
        clips: in a batch.
        objective: the states.
        steps, strength: of the sampler when validation clips are made.
        noise: how validity becomes noise, and holes colours, where the network will be used.
    """

    clips: int = 16
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    steps: int = 7
    strength: float = 0.8
    noise: NoiseSettings = field(default_factory=NoiseSettings)

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise WorldWarpError("bad_settings", f"A batch needs at least 1 clip; got {self.clips}.")
        if self.steps < 1:
            raise WorldWarpError("bad_settings", f"A sampler takes at least 1 step; got {self.steps}.")


class ClipAutoencoder(Protocol):
    """What latents are learned on."""

    def encode_clips(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> (B, C, T', H/8, W/8)."""
        ...

    def decode(self, latents: Tensor, priors: Priors | None = None) -> Iterator[Tensor]:
        """See `autoencoder.Autoencoder`."""
        ...


class StDiffTask:
    """A `Task` of the trainer."""

    name = "transformer"
    sampler_steps: int | None = None

    def __init__(
        self,
        model: WorldWarpTransformer,
        autoencoder: ClipAutoencoder,
        source: Source[Clips],
        judged: Clips,
        lpips: Lpips | None,
        pool: PoolSettings,
        settings: StDiffTraining,
        first_seed: int = 0,
        stride: int | None = None,
    ) -> None:
        """`judged` are clips of worlds kept out of training; the first frame is their history."""
        self.network: nn.Module = model
        self.settings, self.lpips, self._model = settings, lpips, model
        self._autoencoder, self._source, self._judged = autoencoder, source, judged
        self._batch = pool.batch
        self._pool = ExamplePool(self._make, pool, first_seed, stride or pool.batch)
        count = len(judged.rgb)
        self._judged_latents = self._encode(judged, torch.ones(count, dtype=torch.int64))

    def config(self) -> dict[str, Any]:
        return {name: value for name, value in dict(self._model.config).items() if not name.startswith("_")}

    def clips_seen(self) -> int:
        return self._pool.next_seed

    def top_up(self, elapsed_s: float) -> None:
        self._pool.top_up(elapsed_s)

    def draw(self, generator: Generator) -> NoisyClips:
        return self._noisy(self._pool.draw(self.settings.clips, generator), generator)

    def loss(self, batch: NoisyClips, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return velocity_loss(self._velocity(batch, generator), batch), {}

    @torch.no_grad()
    def validate(self) -> Validation:
        made, figures = [], {}
        device = self._judged.rgb.device
        generator = Generator(device).manual_seed(0)
        with half(device):
            rows = torch.arange(len(self._judged.rgb), device=device).repeat(JUDGED_STATES)
            losses = []
            for part in rows.split(self.settings.clips):
                drawn = self._noisy({k: v[part] for k, v in self._judged_latents.items()}, generator)
                losses.append(velocity_loss(self._velocity(drawn), drawn))
            figures["validation_loss"] = float(torch.stack(losses).mean())
            for row in range(len(self._judged.rgb)):
                made.append(self._make_clip(row))
        chosen = list(range(LATENT_FRAMES, self._judged.rgb.shape[1], LATENT_FRAMES))
        truth, prior = (x[:, chosen].float().flatten(0, 1) for x in (self._judged.rgb, self._judged.prior))
        validity = self._judged.validity[:, chosen].float().flatten(0, 1)
        clips = torch.stack(made)[:, chosen].flatten(0, 1)
        closed = inpainted(prior, validity)
        for name, pictures in (("made", clips), ("inpainted", closed)):
            figures[f"{name}_db"] = psnr(pictures, truth)
            figures[f"{name}_valid_db"] = psnr(pictures, truth, validity >= VALID)
            figures[f"{name}_holes_db"] = psnr(pictures, truth, validity < VALID)
            figures[f"{name}_detail"] = detail(pictures, truth, validity < VALID)
            if self.lpips is not None:
                figures[f"{name}_lpips"] = float(self.lpips(pictures, truth).mean())
        each = len(chosen)
        middle, last = slice(each // 2, 6 * each, each), slice(each - 1, 6 * each, each)
        columns = [x[rows] for rows in (middle, last) for x in (truth, prior, closed, clips)]
        return Validation(figures, contact_sheet(columns))

    def _noisy(self, examples: Examples, generator: Generator) -> NoisyClips:
        truth, prior, confidence = (examples[name].float() for name in ("truth", "prior", "confidence"))
        return draw_states(truth, prior, confidence, examples["context"], generator, self.settings.objective)

    def _velocity(self, drawn: NoisyClips, generator: Generator | None = None) -> Tensor:
        text = self._text(len(drawn.latents), generator)
        return self._model(drawn.latents, TIMESTEPS * drawn.levels, drawn.index, text)

    def _text(self, clips: int, generator: Generator | None = None) -> Tensor:
        """(B, N, D): the words of clips; `generator` where they are learned from."""
        return no_text(clips, self._model.config["text_dim"], self._judged.rgb.device)

    def _make(self, first_seed: int) -> Examples:
        clips = self._source.batch(self._batch, first_seed)
        frames = clips.rgb.shape[1]
        hand = Generator().manual_seed(first_seed)
        edges = torch.tensor(CONTEXT_SHARES).cumsum(0)[:-1]
        made = []
        for mirrored in MIRRORED:
            drawn = torch.tensor(CONTEXTS)[torch.bucketize(torch.rand(len(clips.rgb), generator=hand), edges)]
            made.append(self._encode(clips, torch.where(drawn < frames, drawn, 1), mirrored))
        return {name: torch.cat([some[name] for some in made]) for name in made[0]}

    @torch.no_grad()
    def _encode(self, clips: Clips, context: Tensor, mirrored: bool = False) -> Examples:
        """Latents of clips with so many frames of history each; in half precision: the pool holds many."""
        device = clips.rgb.device
        rgb, prior, validity = (x.flip(-1) if mirrored else x.clone() for x in (clips.rgb, clips.prior, clips.validity))
        history = clips.history.flip(-1) if mirrored else clips.history
        for row, count in enumerate(context.tolist()):
            # Of the truth too: what follows is encoded, and decoded, after what was there before.
            rgb[row, :count] = prior[row, :count] = history[row, :count]
            validity[row, :count] = 1.0
        if self.settings.noise.closed:
            prior = close_holes(prior.float().flatten(0, 1), validity.float().flatten(0, 1)).view_as(prior)
        graded = replace(self.settings.noise, graded=True)
        with half(device):
            truth, warped = (
                torch.cat([self._autoencoder.encode_clips(part) for part in x.float().split(ENCODED_AT_ONCE)])
                for x in (rgb, prior)
            )
        return {
            "truth": truth.half(),
            "prior": warped.half(),
            "confidence": torch.stack([token_confidence(v.float(), graded) for v in validity]).half(),
            "context": torch.tensor([context_latents(count) for count in context.tolist()], device=device),
        }

    def _make_clip(self, row: int) -> Tensor:
        """(T, 3, H, W): a judged clip as the loop would make it, with its first frame as history."""
        validity = self._judged_validity(row)
        rgb = self._judged.prior[row].float().permute(0, 2, 3, 1).clone()
        rgb[0] = self._judged.rgb[row, 0].float().permute(1, 2, 0)
        priors = Priors(rgb, validity, torch.ones_like(validity), validity)
        return torch.stack(list(self._autoencoder.decode(self.sample(row), priors))).permute(0, 3, 1, 2)

    def sample(self, row: int) -> Tensor:
        """(1, C, T', H/8, W/8): the latents of a judged clip, as the sampler makes them."""
        settings, examples = self.settings, self._judged_latents
        device = self._judged.rgb.device
        sigma_map = build_sigma_map(self._judged_validity(row), settings.strength, 1, settings.noise)[None]
        truth, prior = (examples[name][row][None].float() for name in ("truth", "prior"))
        noise = torch.randn(truth.shape, generator=Generator(device).manual_seed(row), device=device)
        start = compose_latents(prior, truth[:, :, :1], noise, sigma_map)
        sigmas = sigma_schedule(settings.steps, [settings.strength])
        steps = denoise(self._model, start, sigma_map, sigmas, self._text(1), None, SamplerSettings(guidance=1.0))
        return deque(steps, maxlen=1).pop()

    def _judged_validity(self, row: int) -> Tensor:
        """(T, H, W) of a judged clip; its history is valid."""
        validity = self._judged.validity[row].float().clone()
        validity[:1] = 1.0
        return validity
