"""Where one generation ends and the next begins (method section 8)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import WorldWarpError

MIN_NEW_FRAMES = 8
"""A last chunk with fewer new frames starts earlier, with more context: a shorter clip says too little."""


@dataclass(frozen=True)
class ChunkPlan:
    """One generation unit: `context` frames that exist already, then `new` ones, padded at the end to `length`.

    Both ranges are positions in the path. `length` is 4k + 1, the clip the video model sees; the padding repeats the
    last camera and is trimmed off.
    """

    index: int
    context: range
    new: range
    length: int

    @property
    def padding(self) -> int:
        return self.length - len(self.context) - len(self.new)


def split_chunks(total: int, chunk: int = 49, overlap: int = 5) -> list[ChunkPlan]:
    """Returns the chunks of a path of `total` frames.

    The first has the start frame alone as context; every later one has `overlap` delivered frames, so 49 frames and
    then 44 new ones each.

    Raises:
        WorldWarpError: `bad_settings` unless both lengths are 4k + 1 and `overlap` is the smaller.
    """
    for name, length in (("chunk", chunk), ("overlap", overlap)):
        if length < 1 or length % 4 != 1:
            raise WorldWarpError("bad_settings", f"{name} must be 4k + 1 (1, 5, 9, ... 49); got {length}.")
    if overlap >= chunk and total > 1:
        raise WorldWarpError("bad_settings", f"overlap ({overlap}) must be smaller than chunk ({chunk}).")
    assert total >= 1, total

    plans = [ChunkPlan(0, range(1), range(1, min(total, chunk)), _padded(min(total, chunk)))]
    while (start := plans[-1].new.stop) < total:
        new = min(total - start, chunk - overlap)
        context = overlap
        while new < MIN_NEW_FRAMES and context + new < overlap + MIN_NEW_FRAMES and context + 4 + new <= chunk:
            context += 4
        plans.append(
            ChunkPlan(len(plans), range(start - context, start), range(start, start + new), _padded(context + new))
        )
    return plans


def _padded(length: int) -> int:
    """The next 4k + 1: the video autoencoder packs 4 frames into a latent after the first."""
    return (length + 2) // 4 * 4 + 1
