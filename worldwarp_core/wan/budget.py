"""What a GPU's memory allows: from gibibytes to a plan of what stays on the device and how the rest takes turns.

A plan holds for everything the engine does on the device: transformer, autoencoder, text encoder, the cache's fit and
its priors, over chunks of 49 frames at 720x480. tests/benchmarks/bench_chunk.py runs each under a hard cap of its size,
and results/chunk_h100.json there says for which that has been done. What the driver takes, about half a gibibyte, is
beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch

from ..errors import WorldWarpError

GIB = 2**30
USABLE = 0.94
"""Of a card that is sold as one of N GB this share of N GiB is free: the driver and the desktop have the rest."""
AUTO = "auto"


@dataclass(frozen=True)
class MemoryPlan:
    """How the models share a device. Guidance asks one prompt after the other in all of them: two at once take a
    large GPU as long (0.404 s against 2 x 0.198 on an H100), and more memory.

    Attributes:
        gib: what all of it takes at most.
        transformer: `resident`: it stays on the device. `parked`: it waits in the machine's memory while the
            autoencoder and the cache have the device. `streamed`: its blocks are brought in one by one, each while the
            one before it computes; it is not compiled then.
        float8_storage: a streamed transformer waits in float8 and is widened block by block: half the traffic.
        keep_variants: presets with and without float8 each keep a transformer of their own on the device.
        latents_at_once: that the autoencoder works on together, 4 frames each.
        tile: side of the autoencoder's tiles in pixels; None works on whole frames.
        text_device: where the text encoder (11 GB) runs, for prompts that were never embedded before.
        captioner: where the captioner (17 GB) runs, and whether it stays there between two chunks.
        changes: against the next larger plan, in words, for the notice that says so.
    """

    gib: int
    transformer: Literal["resident", "parked", "streamed"] = "resident"
    float8_storage: bool = False
    keep_variants: bool = True
    latents_at_once: int = 1
    tile: int | None = None
    text_device: Literal["cuda", "cpu"] = "cuda"
    captioner: Literal["stays", "cuda", "cpu"] = "cuda"
    changes: str = ""


PLANS: tuple[MemoryPlan, ...] = (
    MemoryPlan(80, latents_at_once=2, captioner="stays"),
    MemoryPlan(40, latents_at_once=2, changes="the captioner is loaded anew for every chunk"),
    MemoryPlan(24, latents_at_once=2, captioner="cpu", changes="the captioner on the CPU"),
    MemoryPlan(
        16, keep_variants=False, captioner="cpu", changes="one transformer at a time, smaller steps of the autoencoder"
    ),
    MemoryPlan(12, keep_variants=False, text_device="cpu", captioner="cpu", changes="the text encoder on the CPU"),
    MemoryPlan(
        8,
        transformer="parked",
        keep_variants=False,
        text_device="cpu",
        captioner="cpu",
        changes="the transformer leaves the GPU while others work",
    ),
    MemoryPlan(
        6,
        transformer="streamed",
        float8_storage=True,
        keep_variants=False,
        tile=256,
        text_device="cpu",
        captioner="cpu",
        changes="the transformer is brought in block by block, its weights rounded to 8 bits, which changes the "
        "pictures, the autoencoder works in tiles",
    ),
)
"""From the largest to the smallest."""
ON_CPU = MemoryPlan(0, text_device="cpu", captioner="cpu")
"""Without a GPU there is only the machine's own memory, which is not counted."""
CHOICES = (AUTO, *(str(plan.gib) for plan in reversed(PLANS)))


def choose_plan(vram: str, free_gib: float) -> MemoryPlan:
    """Returns the plan of a size, or the largest that fits into what is free.

    Args:
        vram: one of `CHOICES`.
        free_gib: of the device's memory, in GiB.

    Raises:
        WorldWarpError: `bad_settings` for another size.
    """
    if vram not in CHOICES:
        raise WorldWarpError(
            "bad_settings", f"vram must be one of {', '.join(CHOICES)} (gibibytes of GPU memory); got {vram!r}."
        )
    if vram != AUTO:
        return next(plan for plan in PLANS if str(plan.gib) == vram)
    return next((plan for plan in PLANS if USABLE * plan.gib <= free_gib), PLANS[-1])


def next_smaller(plan: MemoryPlan) -> MemoryPlan | None:
    """The plan to fall back on; None below the smallest."""
    return next((smaller for smaller in PLANS if smaller.gib < plan.gib), None)


def what_takes_longer(plan: MemoryPlan, captions: bool) -> str:
    """Says, in words, what a plan gives up speed for that the largest does not; "" for nothing.

    Args:
        captions: there is a captioner; else what a plan does with it does not matter.
    """
    smaller_than = dict(pairwise(reversed(PLANS)))
    costs = [
        step.changes
        for step, larger in reversed(smaller_than.items())
        if plan.gib and step.gib >= plan.gib and (captions or not _differs_for_captions_alone(step, larger))
    ]
    return ", ".join(costs)


def _differs_for_captions_alone(plan: MemoryPlan, larger: MemoryPlan) -> bool:
    return replace(plan, gib=larger.gib, captioner=larger.captioner, changes=larger.changes) == larger


def limit_memory(gib: float, device: torch.device) -> None:
    """Lets this process allocate no more than that on a CUDA device: beyond it is out of memory, whatever is free."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(gib * GIB / total, 1.0), device)
