"""How fast against how exact: the named ways to run the sampler.

`reference` is the method as published. Every other preset is an approximation of it: what it changes is said here in a
sentence, how far it strays is measured, and until that has been measured on a trained model it is experimental.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import WorldWarpError
from ..spec import GenerateSpec, Notice
from .denoise import SamplerSettings
from .noise_map import REFERENCE_STEPS


@dataclass(frozen=True)
class Preset:
    """One way to denoise.

    Attributes:
        steps: of the schedule; a start sigma that is none of its nodes is one step more.
        sampler: guidance, solver and what is left out. Whether guidance is batched is the memory plan's to say.
        fp8: the transformer's linear layers in float8, where the GPU has it.
        changes: against `reference`, in a sentence; empty for that itself.
        experimental: what it does to the pictures of a trained model has not been measured whole and within its bound.
        measured: what is known of that all the same, in a sentence's part.
    """

    name: str
    steps: int
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    fp8: bool = False
    changes: str = ""
    experimental: bool = True
    measured: str = "what that does to the pictures has not been measured yet"

    def describe(self) -> dict[str, Any]:
        """As plain values: for `job.json`."""
        return asdict(self)


REFERENCE = Preset("reference", REFERENCE_STEPS, experimental=False)
BALANCED = Preset(
    "balanced",
    26,
    SamplerSettings(solver="adams", guidance_every=2),
    changes="26 steps of a second-order solver instead of 50 of Euler's, the negative prompt asked at every other one",
    measured="on the preview's transformer before it was distilled its schedule and solver worsen LPIPS by 5.1% at "
    "strength 0.8, and 5% are allowed; what asking the negative prompt less often does is not measured, as that model "
    "knows no words",
)
FAST = Preset(
    "fast",
    8,
    SamplerSettings(solver="adams", guidance_every=4),
    fp8=True,
    changes="8 steps of a second-order solver instead of 50 of Euler's, the negative prompt asked at every fourth one, "
    "and linear layers in float8",
    measured="on the preview's transformer before it was distilled its schedule, solver and float8 do not worsen "
    "LPIPS; what asking the negative prompt less often does is not measured, as that model knows no words",
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (REFERENCE, BALANCED, FAST)}


def choose_preset(spec: GenerateSpec, presets: dict[str, Preset], default: str) -> Preset:
    """Returns the preset that a shot asks for, with the shot's own steps and guidance over it.

    Raises:
        WorldWarpError: `bad_settings` for a name that is none of `presets`.
    """
    name = spec.preset or default
    if name not in presets:
        raise WorldWarpError("bad_settings", f"There is no preset called {name!r}. Choose: {', '.join(presets)}.")
    preset = presets[name]
    if spec.guidance is not None:
        preset = replace(preset, sampler=replace(preset.sampler, guidance=spec.guidance))
    return replace(preset, steps=spec.steps or preset.steps)


def preset_notices(preset: Preset, distilled: bool) -> Iterator[Notice]:
    """Says what a preset leaves out.

    Args:
        distilled: the transformer was trained for few steps.
    """
    if preset.changes:
        unknown = f" Experimental: {preset.measured}." if preset.experimental else ""
        yield Notice("preset", f"Preset {preset.name}: {preset.changes}.{unknown}")
    if preset.steps < REFERENCE_STEPS and not distilled:
        yield Notice(
            "few_steps",
            f"{preset.steps} denoising steps with weights that were trained for {REFERENCE_STEPS} and not distilled "
            "for fewer: expect less detail.",
        )
