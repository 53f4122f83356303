"""Trains the preview autoencoder's decoder on what the engine will give it: a transformer's own latents, beside priors.

Whole clips are sampled by the transformer once, as the engine samples chunks, and kept with the truth; the decoder
learns on a few latents of them at a time. The encoder stays as it is: the transformer knows its latents alone. True
latents, with and without a prior, keep their share, so that what the decoder could before is not lost.

Loss: as in `autoencoder.py`; and what the prior leaves open is also pulled towards what looks true (`critic.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ..errors import WorldWarpError
from ..evaluation.lpips import Lpips
from ..loop.priors import VALID
from ..preview.autoencoder import PreviewAutoencoder, join_guide
from ..st_diff.noise_map import LATENT_FRAMES
from ..transformer.prepare import WorldWarpTransformer
from .autoencoder import AutoencoderTask, AutoencoderTraining, pan_over
from .critic import TOGETHER, WIDTHS, Judgement
from .imagine import Imagination
from .judge import contact_sheet, detail
from .pool import Clips, Examples, PoolSettings, Source
from .precision import half
from .trainer import Validation

CONTEXTS = (1, 5)
"""Frames of history that clips begin with: a start frame, the overlap of two chunks."""


class Batch(NamedTuple):
    """Latents (B, C, t, h, w) as the decoder takes them, guides (B, t, 4, 4, H, W), true clips (B, 4t, 3, H, W), and of
    each clip (B,) whether it is guided and whether its latents are the transformer's."""

    raw: Tensor
    guide: Tensor
    truth: Tensor
    guided: Tensor
    imagined: Tensor


@dataclass(frozen=True)
class DecoderTraining(AutoencoderTraining):
    """What is learned from; what `AutoencoderTraining` says beside it.

    Attributes:
        imagined: the share of guided clips whose latents are the transformer's own.
        steps, strength: of the sampler.
        critic: how hard the critic pulls at the unknown pixels that it sees, as a multiple of the absolute error's pull
            there; 0 goes without one.
        critic_widths: of its layers.
        critic_first: steps over which its pull rises from nothing: it starts anew with every run.
        judged_together: groups of three frames of each clip that it sees.
    """

    photos: float = 0.1
    guided: float = 0.8
    freeze_encoder: bool = True
    imagined: float = 0.75
    steps: int = 7
    strength: float = 0.2
    critic: float = 0.5
    critic_widths: tuple[int, ...] = WIDTHS
    critic_first: int = 100
    judged_together: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("imagined", "strength"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise WorldWarpError("bad_settings", f"{name} is in [0, 1]; got {getattr(self, name)}.")
        if self.steps < 1 or self.critic < 0 or self.critic_first < 1 or self.judged_together < 1:
            raise WorldWarpError(
                "bad_settings",
                "steps, critic_first and judged_together are at least 1 and critic at least 0; got "
                f"{self.steps}, {self.critic_first}, {self.judged_together} and {self.critic}.",
            )


class DecoderTask(AutoencoderTask):
    """A `Task` of the trainer."""

    settings: DecoderTraining

    def __init__(
        self,
        network: PreviewAutoencoder,
        transformer: WorldWarpTransformer,
        source: Source[Clips],
        photos: Tensor | None,
        judged: Clips,
        judged_photos: Tensor | None,
        lpips: Lpips | None,
        pool: PoolSettings,
        settings: DecoderTraining,
        first_seed: int = 0,
        stride: int | None = None,
    ) -> None:
        """As `AutoencoderTask`; the network must have been trained before."""
        super().__init__(network, source, photos, judged, judged_photos, lpips, pool, settings, first_seed, stride)
        self._engine = Imagination(network, transformer, settings.steps, settings.strength)
        self._judgement: Judgement | None = None
        self._judged_so_far = 0
        if settings.critic:
            self._judgement = Judgement(judged.rgb.device, settings.critic_widths)

    def loss(self, batch: Batch, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        latents = self._disturb(batch.raw, batch.guided, generator)
        latents = torch.where(batch.imagined[:, None, None, None, None], batch.raw, latents)
        made = self.network.decoder(latents, batch.guide).float()
        loss, parts = self._picture_loss(made, batch.truth, batch.guided, generator)
        if self._judgement is not None:
            unknown = batch.guide[:, :, :, 3].flatten(1, 2) < VALID
            unknown &= batch.imagined[:, None, None, None]
            starts, groups = made.shape[1] - TOGETHER + 1, (self.settings.judged_together,)
            drawn = torch.randint(starts, groups, generator=generator, device=generator.device).tolist()
            seen, true, empty = (
                torch.cat([x[:, start : start + TOGETHER] for start in drawn]) for x in (made, batch.truth, unknown)
            )
            way, figures = self._judgement.pull(seen, true, empty)
            self._judged_so_far += 1
            pull = self.settings.critic * min(self._judged_so_far / self.settings.critic_first, 1.0)
            # The absolute error pulls at each value of all pictures with 1 / their number.
            loss = loss + pull * (way * seen).sum() / made.numel()
            parts |= figures
        return loss, parts

    @torch.no_grad()
    def validate(self) -> Validation:
        result = super().validate()
        truth, made, holes, priors = [], [], [], []
        for row in range(len(self._judged.rgb)):
            clip = {name: getattr(self._judged, name)[row : row + 1] for name in ("rgb", "prior", "validity")}
            found = self._imagine(clip["rgb"], clip["prior"], clip["validity"], 1, row)
            with half(found["made"].device):
                raw = self.network.denormalise(found["made"].float())
                guide = join_guide(found["prior"].float(), found["validity"].float())
                frames = self.network.to_frames(raw, guide)[0].float().clamp(0, 1)
            true, unknown = clip["rgb"][0].float(), found["validity"][0] < VALID
            chosen = slice(LATENT_FRAMES, None, LATENT_FRAMES)
            truth.append(true[chosen])
            made.append(frames[chosen])
            priors.append(found["prior"][0].float()[chosen])
            holes.append(unknown[chosen])
        t, m, p = (torch.cat(x) for x in (truth, made, priors))
        figures = result.figures | {"made_detail": detail(m, t, torch.cat(holes))}
        if self.lpips is not None:
            figures["made_lpips"] = float(self.lpips(m, t).mean())
        each = len(truth[0])
        middle, last = slice(each // 2, 6 * each, each), slice(each - 1, 6 * each, each)
        return Validation(figures, contact_sheet([x[rows] for rows in (middle, last) for x in (t, p, m)]))

    def draw(self, generator: Generator) -> Batch:  # type: ignore[override]
        settings, count, device = self.settings, self.settings.clips, generator.device
        found = self._pool.draw(count, generator)
        length = (settings.frames - 1) // LATENT_FRAMES + 1
        most = found["made"].shape[2]
        length = min(length, most)
        first = torch.randint(most - length + 1, (count, 1), generator=generator, device=device)
        steps = first + torch.arange(length, device=device)
        # The first latent stands for one frame; the decoder makes four of it, all alike.
        frames = LATENT_FRAMES * first - (LATENT_FRAMES - 1) + torch.arange(LATENT_FRAMES * length, device=device)
        every, window = torch.arange(count, device=device)[:, None], frames.clamp_min(0)
        rgb, prior, validity = (found[name][every, window].float() / 255 for name in ("rgb", "prior", "validity"))
        truth, made = (found[name].transpose(1, 2)[every, steps].transpose(1, 2).float() for name in ("true", "made"))
        chance = torch.rand((2, count), generator=generator, device=device)
        guided = chance[0] < settings.guided
        number = round(settings.photos * count)
        if self._photos is not None and number:
            shown = LATENT_FRAMES * (length - 1) + 1
            clips = pan_over(self._photos, number, shown, (rgb.shape[-2], rgb.shape[-1]), generator)
            with half(device), torch.no_grad():
                truth = torch.cat([self.network.encode_clips(clips), truth[number:]])
            still = clips[:, :1].expand(-1, LATENT_FRAMES - 1, -1, -1, -1)
            rgb = torch.cat([torch.cat([still, clips], 1), rgb[number:]])
            guided = guided & (torch.arange(count, device=device) >= number)
        imagined = guided & (chance[1] < settings.imagined)
        guide = join_guide(prior, validity) * guided[:, None, None, None, None]
        raw = torch.where(imagined[:, None, None, None, None], made, truth)
        return Batch(self.network.denormalise(raw), guide.unflatten(1, (length, LATENT_FRAMES)), rgb, guided, imagined)

    def _make(self, first_seed: int) -> Examples:
        clips = self._source.batch(self._batch, first_seed)
        mirrored, longer = (torch.rand(2, generator=Generator().manual_seed(first_seed)) < 0.5).tolist()
        context = CONTEXTS[int(longer)]
        rgb, prior, validity = (x.flip(-1) if mirrored else x for x in (clips.rgb, clips.prior, clips.validity))
        found = self._imagine(rgb, prior, validity, min(context, rgb.shape[1]), first_seed)
        pixels = {"rgb": rgb, "prior": found["prior"], "validity": found["validity"]}
        return {name: (values * 255).round().to(torch.uint8) for name, values in pixels.items()} | {
            name: found[name].half() for name in ("true", "made")
        }

    def _imagine(self, rgb: Tensor, prior: Tensor, validity: Tensor, context: int, seed: int) -> Examples:
        """Clips with `context` frames of history as the engine would sample them.

        In: (B, T, 3, H, W) twice and (B, T, H, W). Returns `true` and `made` latents (B, C, T', H/8, W/8), and the
        `prior` and `validity` that they were made beside, history in place.
        """
        found = self._engine.make(rgb, prior, validity, context, seed)
        true = self._engine.encode(rgb)
        return {"true": true, "made": found.latents, "prior": found.prior, "validity": found.validity}
