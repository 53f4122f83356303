"""Trains the preview autoencoder: clips through 16 channels and back, with a prior to be guided by and without.

Each batch holds clips of worlds and of photographs that are panned and zoomed over. Half of the worlds' clips are
decoded beside their prior, the rest (and photographs) from the latents alone. Latents get some noise always and much
of it for a part of the guided clips: what the transformer makes is never exact, and then the prior must be kept.

At the end the decoder can learn from a trained transformer's own latents; see `decoder.py`.

Loss: mean absolute error, the same of the pictures' gradients, and LPIPS on some frames.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import WorldWarpError
from ..evaluation.lpips import Lpips
from ..loop.priors import VALID
from ..preview.autoencoder import PreviewAutoencoder, join_guide
from ..st_diff.noise_map import LATENT_FRAMES
from .judge import contact_sheet, inpainted, psnr
from .pool import Clips, ExamplePool, Examples, PoolSettings, Source
from .precision import half
from .trainer import Validation

STILL_FRAMES = 5
"""Length of a still clip of a photograph that is judged."""
MOMENTUM = 0.01
"""How fast the latents' mean and deviation follow those of a batch."""


class Batch(NamedTuple):
    """True clips (B, t, 3, H, W), their guides (B, t, 4, H, W) and which of them (B,) are guided."""

    truth: Tensor
    guide: Tensor
    guided: Tensor


@dataclass(frozen=True)
class AutoencoderTraining:
    """What the loss is made of.

    Attributes:
        clips: in a batch.
        frames: of each, 4k + 1; all of those that are shorter.
        photos: the share of clips that are photographs, where there are any.
        guided: the share of the worlds' clips that see their prior.
        shaken: the share of guided clips whose latents get much noise.
        perceptual, gradient: weights of LPIPS and of gradients beside the absolute error.
        perceptual_frames: frames of each clip that LPIPS looks at.
        freeze_encoder: learn the decoder alone: latents stay what they are to a trained transformer.
    """

    clips: int = 16
    frames: int = 9
    photos: float = 0.25
    guided: float = 0.5
    shaken: float = 0.4
    perceptual: float = 0.2
    gradient: float = 0.5
    perceptual_frames: int = 3
    freeze_encoder: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.clips < 1 or self.frames < 1 or self.frames % LATENT_FRAMES != 1:
            raise WorldWarpError(
                "bad_settings", f"Clips must be at least 1 and frames 4k + 1; got {self.clips} and {self.frames}."
            )


class AutoencoderTask:
    """A `Task` of the trainer."""

    name = "autoencoder"
    sampler_steps: int | None = None

    def __init__(
        self,
        network: PreviewAutoencoder,
        source: Source[Clips],
        photos: Tensor | None,
        judged: Clips,
        judged_photos: Tensor | None,
        lpips: Lpips | None,
        pool: PoolSettings,
        settings: AutoencoderTraining,
        first_seed: int = 0,
        stride: int | None = None,
    ) -> None:
        """`photos` and `judged_photos` are (N, 3, S, S) uint8; `judged` clips are of worlds kept out of training."""
        self.network, self.settings, self.lpips = network, settings, lpips
        self._photos, self._judged, self._judged_photos = photos, judged, judged_photos
        self._source, self._batch = source, pool.batch
        self._pool = ExamplePool(self._make, pool, first_seed, stride or pool.batch)
        self._followed = bool((network.std != 1).any())  # a network that was trained before knows its latents
        network.encoder.requires_grad_(not settings.freeze_encoder)
        if settings.compile:
            network.encoder.compile(dynamic=False)
            network.decoder.compile(dynamic=False)

    def config(self) -> dict[str, Any]:
        return asdict(self.network.config)

    def clips_seen(self) -> int:
        return self._pool.next_seed

    def top_up(self, elapsed_s: float) -> None:
        self._pool.top_up(elapsed_s)

    def loss(self, batch: Batch, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        truth, guide, guided = batch
        if self.settings.freeze_encoder:
            with torch.no_grad():
                raw = self.network.to_latents(truth)
        else:
            raw = self.network.to_latents(truth)
            self._follow(raw)
        latents = self._disturb(raw, guided, generator)
        return self._picture_loss(self.network.to_frames(latents, guide).float(), truth, guided, generator)

    def _picture_loss(
        self, made: Tensor, truth: Tensor, guided: Tensor, generator: Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of made and true clips, (B, T, 3, H, W) each, and which of them (B,) are guided; with its parts."""
        error = (made - truth).abs()
        each = error.mean((1, 2, 3, 4))
        parts = {"l1": _mean_where(each, ~guided), "l1_guided": _mean_where(each, guided)}
        loss = error.mean() + self.settings.gradient * _gradient_error(made, truth)
        if self.lpips is not None:
            rows = torch.randperm(truth.shape[1], generator=generator, device=truth.device)
            rows = rows[: self.settings.perceptual_frames]
            distance = self.lpips(made[:, rows].flatten(0, 1), truth[:, rows].flatten(0, 1))
            parts["lpips"] = distance.mean()
            loss = loss + self.settings.perceptual * distance.mean()
        return loss, parts

    @torch.no_grad()
    def validate(self) -> Validation:
        truth, prior, validity = (x.float() for x in (self._judged.rgb, self._judged.prior, self._judged.validity))
        alone, guided, shaken = [], [], []
        generator = Generator(truth.device).manual_seed(0)
        with half(truth.device):
            for row in range(len(truth)):
                raw = self.network.to_latents(truth[row : row + 1])
                noise = torch.randn(raw.shape, generator=generator, device=raw.device) * _over_channels(
                    self.network.std
                )
                guide = join_guide(prior[row], validity[row])[None]
                alone.append(self.network.to_frames(raw, None)[0].float().clamp(0, 1))
                guided.append(self.network.to_frames(raw, guide)[0].float().clamp(0, 1))
                shaken.append(self.network.to_frames(0.6 * raw + 0.4 * noise, guide)[0].float().clamp(0, 1))
        chosen = list(range(LATENT_FRAMES, truth.shape[1], LATENT_FRAMES))
        made = (torch.stack(clips) for clips in (alone, guided, shaken))
        t, p, a, g, s = (x[:, chosen].flatten(0, 1) for x in (truth, prior, *made))
        v = validity[:, chosen].flatten(0, 1)
        closed = inpainted(p, v)
        figures = {
            "autoencoder_world_db": psnr(a, t),
            "guided_db": psnr(g, t),
            "shaken_db": psnr(s, t),
            "inpainted_db": psnr(closed, t),
            "valid_guided_db": psnr(g, t, v >= VALID),
            "valid_prior_db": psnr(p, t, v >= VALID),
        }
        if self._judged_photos is not None:
            figures["autoencoder_photo_db"] = self._judge_photos()
        if self.lpips is not None:
            for name, pictures in (("alone", a), ("guided", g), ("shaken", s), ("inpainted", closed)):
                figures[f"{name}_lpips"] = float(self.lpips(pictures, t).mean())
        each = len(chosen)
        last = slice(each - 1, 6 * each, each)
        return Validation(figures, contact_sheet([t[last], p[last], closed[last], a[last], g[last]]))

    def _make(self, first_seed: int) -> Examples:
        clips = self._source.batch(self._batch, first_seed)
        return {name: (getattr(clips, name) * 255).round().to(torch.uint8) for name in ("rgb", "prior", "validity")}

    def draw(self, generator: Generator) -> Batch:
        count = self.settings.clips
        found = self._pool.draw(count, generator)
        frames = min(self.settings.frames, found["rgb"].shape[1])
        starts = torch.randint(
            found["rgb"].shape[1] - frames + 1, (count, 1), generator=generator, device=generator.device
        )
        window = starts + torch.arange(frames, device=starts.device)
        every = torch.arange(count, device=starts.device)[:, None]
        truth, prior, validity = (found[name][every, window].float() / 255 for name in ("rgb", "prior", "validity"))
        chance = torch.rand((3, count), generator=generator, device=generator.device)
        guided = chance[0] < self.settings.guided
        number = round(self.settings.photos * count)
        if self._photos is not None and number:
            clips = pan_over(self._photos, number, frames, (truth.shape[3], truth.shape[4]), generator)
            truth = torch.cat([clips, truth[number:]])
            guided = guided & (torch.arange(count, device=guided.device) >= number)
        flip = (chance[1] < 0.5)[:, None, None, None, None]
        guide = join_guide(prior, validity) * guided[:, None, None, None, None]
        truth, guide = (torch.where(flip, x.flip(-1), x) for x in (truth, guide))
        return Batch(truth, guide, guided)

    def _disturb(self, raw: Tensor, guided: Tensor, generator: Generator) -> Tensor:
        """Latents with noise, in deviations: up to 0.1 for all; for some of the guided, mixed in by up to 0.8."""
        centre, deviation = _spread(raw)
        noise = torch.randn(raw.shape, generator=generator, device=raw.device) * _over_channels(deviation)
        chance = torch.rand((3, len(raw), 1, 1, 1, 1), generator=generator, device=raw.device)
        little = raw + 0.1 * chance[0] * noise
        share = 0.8 * chance[1]
        much = torch.lerp(raw.detach().float(), noise + _over_channels(centre), share)
        shaken = guided[:, None, None, None, None] & (chance[2] < self.settings.shaken)
        return torch.where(shaken, much, little)

    def _follow(self, raw: Tensor) -> None:
        """Keeps the network's mean and deviation of latents, by which they are normalised, up with a batch's."""
        centre, deviation = _spread(raw)
        share = MOMENTUM if self._followed else 1.0
        self.network.mean.lerp_(centre, share)
        self.network.std.lerp_(deviation, share)
        self._followed = True

    def _judge_photos(self) -> float:
        assert self._judged_photos is not None
        height, width = self._judged.rgb.shape[-2:]
        still = self._judged_photos[..., :height, :width].float() / 255
        clips = still[:, None].expand(-1, STILL_FRAMES, -1, -1, -1)
        made = [self.network.to_frames(self.network.to_latents(part), None)[:, -1] for part in clips.split(16)]
        return psnr(torch.cat(made), still)


def pan_over(photos: Tensor, count: int, frames: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """(count, frames, 3, H, W) in [0, 1]: photographs as a camera that pans and zooms over them sees them.

    `photos` is (N, 3, S, S) uint8. A third of the clips stand still.
    """
    device = photos.device
    rows = torch.randint(len(photos), (count,), generator=generator, device=device)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((count, 1), generator=generator, device=device)

    height, width = size
    along = torch.linspace(0, 1, frames, device=device)
    moves = (draw(0, 1) < 2 / 3).float()
    zoom = draw(0.65, 1.0) * (1 + moves * draw(-0.2, 0.05) * along)  # half of the width seen, of the photograph's
    zoom_y = zoom * height / width
    x = draw(-1, 1) * (1 - zoom[:, :1]) + moves * draw(-0.25, 0.25) * along
    y = draw(-1, 1) * (1 - zoom_y[:, :1]) + moves * draw(-0.15, 0.15) * along
    zero = torch.zeros_like(x)
    affine = torch.stack([torch.stack([zoom, zero, x], -1), torch.stack([zero, zoom_y, y], -1)], -2).flatten(0, 1)
    grid = F.affine_grid(affine, [count * frames, 3, height, width], align_corners=False)
    pictures = (photos[rows].float() / 255).repeat_interleave(frames, 0)
    seen = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return seen.unflatten(0, (count, frames))


def _spread(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (C,) each."""
    values = raw.detach().float()
    return values.mean((0, 2, 3, 4)), values.std((0, 2, 3, 4))


def _over_channels(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen, 0 where there are none."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def _gradient_error(made: Tensor, truth: Tensor) -> Tensor:
    difference = made - truth
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    return across + down
