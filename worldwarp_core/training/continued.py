"""Clips that go on from what the engine made: the later chunks of a shot.

From its second chunk on, a shot's history and its cache are the engine's own work. A transformer that has only ever
gone on from true pictures takes what went wrong there for the look of the world, and each chunk is worse than the last
(drift; Huang et al. 2025, arXiv 2506.08009, train video models on their own frames against it). So a share of the clips
is made by a trained transformer first, then walked back: the last frame made is where the new clip starts, warped to
the cameras that lead back, and the truth is still what there is to see.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import WorldWarpError
from .clips import ClipBatch, WarpSettings, warp_clips
from .imagine import Imagination
from .precision import full

if TYPE_CHECKING:
    from .pool import Source

OWN_DRAWS = 1 << 41
"""Added to seeds, so that what is drawn here does not follow from what the clips' own seeds draw."""


class ContinuedSource:
    """A `pool.Source` of clips, a share of which goes on from what was made.

    Args:
        source: of the clips.
        engine: what makes them.
        warps: how what was made is warped; it always is the first frame.
        share: of the clips, in [0, 1].
    """

    def __init__(
        self, source: Source[ClipBatch], engine: Imagination, warps: WarpSettings | None = None, share: float = 0.4
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise WorldWarpError("bad_settings", f"The share of clips that go on is in [0, 1]; got {share}.")
        self._source, self._engine, self._share = source, engine, share
        self._warps = replace(warps or WarpSettings(), first_frame=1.0)

    @torch.no_grad()
    def batch(self, n: int, first_seed: int) -> ClipBatch:
        clips = self._source.batch(n, first_seed)
        chosen = torch.rand(n, generator=torch.Generator().manual_seed(OWN_DRAWS + first_seed)) < self._share
        rows = chosen.nonzero()[:, 0].to(clips.rgb.device)
        if not len(rows):
            return clips
        made = self._engine.make(clips.rgb[rows], clips.prior[rows], clips.validity[rows], 1, first_seed)
        back = {name: getattr(clips, name)[rows].flip(1) for name in ("rgb", "depth", "K", "c2w")}
        back["history"] = self._engine.decode(made).to(clips.rgb.dtype).flip(1)
        seeds = [OWN_DRAWS + first_seed + row for row in rows.tolist()]
        with full(clips.rgb.device):
            back["prior"], back["validity"], back["sources"], back["exact"] = warp_clips(
                seeds, back["history"], back["depth"], back["K"], back["c2w"], self._warps
            )
        return replace(clips, **{name: getattr(clips, name).index_copy(0, rows, some) for name, some in back.items()})
