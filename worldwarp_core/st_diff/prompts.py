"""Which prompt a chunk is made with, and what that does to the keys of a prompt that changes along the path."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from ..loop.chunks import ChunkPlan
from ..spec import GenerateSpec, Notice


def prompt_for(spec: GenerateSpec, plan: ChunkPlan, numbers: np.ndarray) -> str:
    """Returns the prompt of a chunk: the one that holds for most of its new frames, on a tie the later one.

    A chunk is denoised as one clip under one text, so a key cannot take effect inside it. Of the possible rules this
    one is never wrong for more than half a chunk; the first frame's prompt would put off a key by up to a whole one,
    and letting any key inside take the whole chunk would show what it describes as much too early.
    `prompt_notices` says where that moves a key.

    Args:
        spec: its `prompt` holds before the first of its `prompt_keys`.
        plan: the chunk.
        numbers: (T,) frame numbers of the whole path.
    """
    return _texts(spec)[_governing(spec, plan, numbers)]


def prompt_notices(spec: GenerateSpec, plans: Sequence[ChunkPlan], numbers: np.ndarray) -> list[Notice]:
    """Says of every prompt key that cannot begin at its own frame from which frame it shows, or that it never does."""
    governing = [(_governing(spec, plan, numbers), plan) for plan in plans if plan.new]
    notices = []
    for index, key in enumerate(spec.prompt_keys, 1):
        if key.frame > numbers[-1]:
            notices.append(
                Notice(
                    "prompt_key_unused", f"The prompt at frame {key.frame} lies after the path's end, {numbers[-1]}."
                )
            )
            continue
        shown = [plan.new for chosen, plan in governing if chosen == index]
        until = spec.prompt_keys[index].frame if index < len(spec.prompt_keys) else None
        if until is not None and until <= numbers[0]:
            continue  # replaced before the path begins
        if not shown:
            notices.append(
                Notice(
                    "prompt_key_unused",
                    f"The prompt at frame {key.frame} is not shown: it holds for too few frames of its chunk, and a "
                    "chunk has one prompt. Move its key, or make the chunks shorter.",
                )
            )
            continue
        first = int(numbers[shown[0].start])
        wanted = int(numbers[max(int(np.searchsorted(numbers, key.frame)), plans[0].new.start)])
        if first != wanted:
            notices.append(
                Notice(
                    "prompt_key_moved",
                    f"The prompt at frame {key.frame} shows from frame {first} on: a chunk has one prompt, and that is "
                    "where the nearest chunk begins.",
                )
            )
    return notices


def _texts(spec: GenerateSpec) -> list[str]:
    """The shot's prompt, then those of its keys."""
    return [spec.prompt, *(key.prompt for key in spec.prompt_keys)]


def _governing(spec: GenerateSpec, plan: ChunkPlan, numbers: np.ndarray) -> int:
    """Which of `_texts` a chunk is made with."""
    frames = np.array([key.frame for key in spec.prompt_keys], dtype=np.int64)
    holding = np.searchsorted(frames, numbers[plan.new.start : plan.new.stop], side="right")
    lengths = [(len(list(run)), index) for index, run in groupby(holding.tolist())]
    return max(lengths, default=(0, 0))[1]
