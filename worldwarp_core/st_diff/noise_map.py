"""How noisy each token of a clip starts, and the schedule that all of them share (method section 2).

In: the priors' validity per pixel, the strength, the number of context frames. Out: one start sigma per token of the
transformer (one latent frame, 2x2 latents, 16x16 pixels). Noise, timestep, hold and update all follow from that one
map: when the schedule is at sigma, a token stands at min(sigma, its start). So

- a blank token (start 1) follows the whole schedule,
- a valid token holds at its start until the schedule has come down to it, then follows,
- a context token (start 0) stays clean, at timestep 0, for ever.

sigma in [0, 1] is the noise level of flow matching: z_sigma = (1 - sigma) z + sigma eps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, assert_never, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import WorldWarpError

LATENT_FRAMES = 4
"""Frames in each latent after the first, which holds one."""
LATENT_PX = 8
TOKEN_PX = 16
"""A token is 2x2 latents."""
GUARD_PX = 4
"""Valid pixels that a token needs around its own under `spare_thin`.

The public erosion asks for 7 above and to the left, none below and to the right: it is sampled at the latents' corners.
"""
PUBLIC_EROSION_PX = 15
MAJORITY = 0.6

# What diffusers' FlowMatchEulerDiscreteScheduler(shift=5).set_timesteps(50) gives, to the last bit of its float32, and
# the final 0. The published weights and all that is measured refer to these values: they stay whatever diffusers does.
# fmt: off
REFERENCE_SIGMAS: tuple[float, ...] = (
    1.0, 0.9958716034889221, 0.9916046261787415, 0.9871918559074402, 0.9826257824897766,
    0.9778982400894165, 0.9730004668235779, 0.9679232239723206, 0.9626563191413879, 0.9571889638900757,
    0.9515095353126526, 0.945605456829071, 0.9394630789756775, 0.9330677390098572, 0.9264034032821655,
    0.9194527864456177, 0.9121970534324646, 0.904615581035614, 0.8966860771179199, 0.8883838057518005,
    0.8796820640563965, 0.8705511689186096, 0.8609585762023926, 0.8508684039115906, 0.8402409553527832,
    0.8290320634841919, 0.8171926736831665, 0.8046680092811584, 0.791396975517273, 0.7773106098175049,
    0.762331485748291, 0.7463719248771667, 0.729332447052002, 0.7110996246337891, 0.691543459892273,
    0.6705145239830017, 0.6478399038314819, 0.6233185529708862, 0.5967152714729309, 0.5677531957626343,
    0.5361040234565735, 0.5013756155967712, 0.46309566497802734, 0.4206899404525757, 0.37345343828201294,
    0.3205108940601349, 0.2607618570327759, 0.19280360639095306, 0.1148194670677185, 0.0244140662252903,
    0.0,
)
# fmt: on
REFERENCE_STEPS = len(REFERENCE_SIGMAS) - 1
SHIFT = 5.0

Variant = Literal["both", "spatial", "temporal", "uniform", "full_noise"]
Frames = Literal["all", "last"]
Erosion = Literal["spare_thin", "box", "majority"]


@dataclass(frozen=True)
class NoiseSettings:
    """How validity becomes noise.

    Attributes:
        variant: the method, or one of its ablations. Two of its ideas are switched: levels that differ within a frame
            (valid against blank) and levels that differ between frames (history clean, the rest noisy).
            `both`: the method. Context clean; valid tokens start at sigma(strength), blank ones at 1.
            `spatial`: the same levels in every frame. Context is not clean: it counts as valid everywhere, starts at
            sigma(strength) and is denoised with the rest.
            `temporal`: one level per latent frame. Context clean; all tokens of another latent frame start at the mean
            strength that `both` would give them (blank counts as strength 1).
            `uniform`: one level for the clip. Context, valid and blank tokens all start at sigma(strength).
            `full_noise`: context clean, every other token starts at 1: the prior is not used.
        threshold: a pixel is valid from this validity on; above 0, below 1.
        frames: which frames of a latent must be valid. `all`: all of its 4 (the first latent: its one).
            `last`: its last alone, the public rule's every 4th frame.
        erosion: how far valid tokens keep from the mask's edge.
            `spare_thin`: a token needs its own pixels and `GUARD_PX` around them; where that leaves no token of a
            structure, its own pixels suffice. What lies outside the image is no edge.
            `box`: the public rule. The mask is eroded by a 15x15 box, outside the image invalid; a latent takes the
            pixel in its upper left corner; a token is valid if its four latents are.
            `majority`: a token needs `MAJORITY` of its pixels, over the frames of its latent, and no guard.
        graded: valid tokens start between sigma(strength) and 1 by their confidence: validity from `threshold` to 1
            becomes 0 to 1, everything above becomes the minimum instead of `and`, and confidence c acts as strength
            1 - c (1 - strength).
        closed: holes of the prior are closed from around them before it is encoded (close_holes.py). Otherwise they
            are black, and spoil the latents of what they cut.
    """

    variant: Variant = "both"
    threshold: float = 0.5
    frames: Frames = "all"
    erosion: Erosion = "spare_thin"
    graded: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        for name, kinds in (("variant", Variant), ("frames", Frames), ("erosion", Erosion)):
            if getattr(self, name) not in get_args(kinds):
                choices = ", ".join(get_args(kinds))
                raise WorldWarpError("bad_settings", f"{name} must be one of {choices}; got {getattr(self, name)!r}.")
        if not 0.0 < self.threshold < 1.0:
            raise WorldWarpError(
                "bad_settings", f"The validity threshold must be above 0 and below 1; got {self.threshold}."
            )


PUBLIC_RULE = NoiseSettings(frames="last", erosion="box")
"""Mask to tokens as in the method's public code, but for tokens that a mask edge cuts: they are blank as a whole."""
SMALL_PICTURES = NoiseSettings(erosion="majority", closed=True)
"""For models of small pictures that learned with it. At 256x144 a token is a sixteenth of the width, and a warp is full
of cracks: where one pixel makes its token blank, half of what is known is lost to the latents."""
MASK_RULES: dict[str, NoiseSettings] = {"ours": NoiseSettings(), "public": PUBLIC_RULE}
"""Names for how a mask becomes tokens: a server's options choose by them."""


def choose_noise(mask_rule: str, variant: str) -> NoiseSettings:
    """Returns the settings of a rule and a variant that were named.

    Raises:
        WorldWarpError: `bad_settings` for a name that is none of theirs.
    """
    if mask_rule not in MASK_RULES:
        raise WorldWarpError(
            "bad_settings", f"The mask rule must be one of {', '.join(MASK_RULES)}; got {mask_rule!r}."
        )
    return replace(MASK_RULES[mask_rule], variant=cast(Variant, variant))


def start_sigma(strength: float) -> float:
    """The noise level that valid tokens start at: `strength` of the reference schedule is left to go from there.

    Strength, in [0, 1], is a fraction of the 50 reference steps, not a sigma: it means the same at any step count.
    """
    assert 0.0 <= strength <= 1.0, strength
    return float(_start_sigmas(torch.tensor(strength, dtype=torch.float64)))


def sigma_schedule(steps: int, strengths: Iterable[float] = ()) -> list[float]:
    """Falling noise levels from 1 to 0 for the sampler to walk pairwise; each pair is one step.

    With 50 steps these are the reference values, which hold the start of every strength already. With any other number
    they are that many steps of the same shifted schedule, and the start sigma of each of `strengths` is inserted as a
    node of its own (one step more each) unless it is one already: few steps then neither lose the prior nor leap over
    the moment when valid and blank tokens come together. Starts that are no node (graded, a user's mask) need none:
    a token joins the schedule within a step, for the rest of it.
    """
    assert steps >= 1, steps
    if steps == REFERENCE_STEPS:
        return list(REFERENCE_SIGMAS)
    return sorted({*_shifted_schedule(steps), *map(start_sigma, strengths)}, reverse=True)


def context_latents(context: int) -> int:
    """Latent frames that `context` frames fill: 4k + 1 frames, or none."""
    assert context == 0 or context % LATENT_FRAMES == 1, context
    return (context - 1) // LATENT_FRAMES + 1


def build_sigma_map(
    validity: Tensor,
    strength: float,
    context: int,
    settings: NoiseSettings = NoiseSettings(),
    strength_offset: Tensor | None = None,
) -> Tensor:
    """Returns where every token starts: (T', H/16, W/16) float32, T' = (T - 1)/4 + 1.

    All values are of the reference table, so the model sees 52 distinct timesteps at most, in the plain method 3.

    Args:
        validity: (T, H, W) in [0, 1], alpha times geometric agreement, of the whole clip: T = 4k + 1, sides multiples
            of 16. What it says of the context frames is ignored.
        strength: tau in [0, 1].
        context: frames that exist already, 4k + 1 or 0.
        settings: the rule.
        strength_offset: (T, H, W) in [-1, 1], a user's mask by region and frame, added to the strength: above 0 frees
            the model from the prior, below 0 keeps to it. A token takes the mean over its pixels and frames. Blank
            tokens start at 1 all the same; `uniform` and `full_noise` take no mask.
    """
    assert 0.0 <= strength <= 1.0, strength
    clean = context_latents(context)
    # On the CPU: strength needs float64, which not every device has.
    confidence = token_confidence(validity, settings).cpu().double()
    assert clean <= len(confidence), (context, validity.shape)
    valid_strength = _token_strength(strength, strength_offset, validity.shape)

    match settings.variant:
        case "both":
            strengths = _blend(valid_strength, confidence)
        case "spatial":
            confidence[:clean] = 1.0
            strengths, clean = _blend(valid_strength, confidence), 0
        case "temporal":
            strengths = _blend(valid_strength, confidence).mean((1, 2), keepdim=True).expand_as(confidence)
        case "uniform":
            strengths, clean = torch.full_like(confidence, strength), 0
        case "full_noise":
            strengths = torch.ones_like(confidence)
        case _:
            assert_never(settings.variant)

    sigma_map = _start_sigmas(strengths)
    sigma_map[:clean] = 0.0
    return sigma_map.to(validity.device)


def token_confidence(validity: Tensor, settings: NoiseSettings) -> Tensor:
    """(T, H, W) in [0, 1] -> (T', H/16, W/16): 0 is blank, 1 is valid, between them only if `settings.graded`."""
    frames, height, width = validity.shape
    assert (frames % LATENT_FRAMES, height % TOKEN_PX, width % TOKEN_PX) == (1, 0, 0), validity.shape

    valid = validity >= settings.threshold
    if settings.graded:
        rise = ((validity.float() - settings.threshold) / (1 - settings.threshold)).clamp(0, 1)
        confidence = torch.where(valid, rise, 0.0)
    else:
        confidence = valid.float()

    if settings.erosion == "majority":
        return _most_of_token(valid, confidence)
    if settings.frames == "last":
        latents = confidence[::LATENT_FRAMES]
    else:
        latents = torch.cat([confidence[:1], _in_fours(confidence[1:]).amin(1)])
    return _public_tokens(latents) if settings.erosion == "box" else _tokens_sparing_thin(latents)


def expand_to_latents(token_map: Tensor) -> Tensor:
    """(..., h, w) on the token grid -> (..., 2h, 2w) on the latents'."""
    return token_map.repeat_interleave(2, -2).repeat_interleave(2, -1)


def _start_sigmas(strengths: Tensor) -> Tensor:
    """float64 strengths in [0, 1] -> float32 levels of the reference table."""
    # Millionths, because the next line truncates: 0.9 from a float32 slider is 0.9, and a mean is not one bit below.
    left_out = 1 - strengths.round(decimals=6)
    # Truncated in float64: 0.8 is index 9, not 10.
    index = (left_out * REFERENCE_STEPS).long().clamp(0, REFERENCE_STEPS - 1)
    return torch.tensor(REFERENCE_SIGMAS, dtype=torch.float32)[index]


def _shifted_schedule(steps: int) -> list[float]:
    """`steps` levels from 1 down and the final 0, as diffusers spaces them.

    It shifts a range that ends at an already shifted sigma_min, which it keeps in float32.
    """
    lowest = _shift(np.array([1 / 1000], np.float32)).item()
    return [*_shift(np.linspace(1.0, lowest, steps)).astype(np.float32).tolist(), 0.0]


def _shift(sigma: np.ndarray) -> np.ndarray:
    """Noise levels moved towards 1, where the layout of a video is decided."""
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def _token_strength(strength: float, offset: Tensor | None, shape: torch.Size) -> Tensor:
    """The strength of valid tokens, float64 in [0, 1], broadcastable to (T', H/16, W/16)."""
    if offset is None:
        return torch.tensor(strength, dtype=torch.float64)
    assert offset.shape == shape, (offset.shape, shape)
    pixels = offset.cpu().double()
    latents = torch.cat([pixels[:1], _in_fours(pixels[1:]).mean(1)])
    return (strength + F.avg_pool2d(latents[:, None], TOKEN_PX)[:, 0]).clamp(0, 1)


def _blend(valid_strength: Tensor, confidence: Tensor) -> Tensor:
    """The strength of tokens between blank (confidence 0: strength 1) and valid (confidence 1)."""
    return 1 - confidence * (1 - valid_strength)


def _in_fours(frames: Tensor) -> Tensor:
    """(4n, H, W) -> (n, 4, H, W), the frames of each latent after the first."""
    return frames.unflatten(0, (len(frames) // LATENT_FRAMES, LATENT_FRAMES))


def _public_tokens(latents: Tensor) -> Tensor:
    """(T', H, W) -> (T', H/16, W/16): eroded by a box, sampled at the latents' corners, four latents a token."""
    framed = F.pad(latents[:, None], (PUBLIC_EROSION_PX // 2,) * 4)  # zeros: outside is invalid
    at_corners = _least(framed, PUBLIC_EROSION_PX, stride=LATENT_PX)
    return _least(at_corners, 2, stride=2)[:, 0]


def _tokens_sparing_thin(latents: Tensor) -> Tensor:
    """(T', H, W) -> (T', H/16, W/16): with a guard, except where a structure is too thin to have any guarded token."""
    own = _least(latents[:, None], TOKEN_PX, stride=TOKEN_PX)
    framed = F.pad(latents[:, None], (GUARD_PX,) * 4, value=1.0)
    guarded = _least(framed, TOKEN_PX + 2 * GUARD_PX, stride=TOKEN_PX)
    beside_guarded = F.max_pool2d(guarded, 3, stride=1, padding=1) > 0
    return torch.where(beside_guarded, guarded, own)[:, 0]


def _most_of_token(valid: Tensor, confidence: Tensor) -> Tensor:
    """(T, H, W) twice -> (T', H/16, W/16): the confidence of a token's valid pixels, 0 where they are too few."""

    def mean(frames: Tensor) -> Tensor:
        latents = torch.cat([frames[:1], _in_fours(frames[1:]).mean(1)])
        return F.avg_pool2d(latents[:, None], TOKEN_PX)[:, 0]

    share = mean(valid.float())
    return torch.where(share >= MAJORITY, mean(confidence) / share.clamp_min(MAJORITY), 0.0)


def _least(image: Tensor, window: int, stride: int) -> Tensor:
    """Minimum over windows of an (N, 1, H, W) image."""
    return -F.max_pool2d(-image, window, stride)
