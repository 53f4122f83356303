"""Sharp depth edges: what a depth model blurs across an outline is put on one of the two surfaces that meet there.

A model's depth slides from the near surface to the far one over some pixels. Nothing is there: seen from elsewhere such
pixels hang between the two like a curtain, and stretch into streaks. In disparity a plane is linear over the picture,
however steep, so a slide is told from a slope by the surfaces on its two sides: each is continued to the pixel by its
own slope, and where the two disagree there is an edge.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

REACH_SHARE = 1 / 64
"""Of the picture's width: how far from an outline a model's depth still slides."""
BASE = 2
"""Pixels over which the slope of a surface beside an edge is taken."""
EDGE = 0.1
"""Sides whose disparities differ by less than this share of the nearer's are one surface."""
CALM = 0.5
"""A side that itself changes by more than this share of the step between the two is part of the slide."""
SLIDES = 0.02
"""Of the step: by how much a pixel differs from its neighbours on both sides where depth slides. What is like one of
them is a surface, however thin."""
NEAR_FROM = 0.7
"""A pixel is on the near surface from this share of the way on: an outline that grows outwards takes colours of the far
surface along with the near one."""
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def sharpen_edges(disparity: Tensor, where: Tensor) -> Tensor:
    """(H, W) disparity without slides from one surface to another, at the pixels of `where` ((H, W) bool)."""
    assert disparity.shape == where.shape, (disparity.shape, where.shape)
    reach = max(round(REACH_SHARE * disparity.shape[1]), 1)
    margin = reach + BASE
    padded = F.pad(disparity[None, None], (margin,) * 4, mode="replicate")[0, 0]
    height, width = disparity.shape

    def beside(rows: int, columns: int) -> Tensor:
        return padded[margin + rows : margin + rows + height, margin + columns : margin + columns + width]

    sharp, strongest = disparity.clone(), torch.zeros_like(disparity)
    found = torch.zeros_like(where)
    for distance in range(1, reach + 1):
        # The nearest place on either side that is past the slide is what tells; farther ones are of other surfaces.
        strength, placed = strongest.clone(), sharp.clone()
        for row, column in DIRECTIONS:
            sides, steepest = [], torch.zeros_like(disparity)
            for sign in (-1, 1):
                at, beyond = sign * distance, sign * (distance + BASE)
                own = beside(at * row, at * column)
                slope = (own - beside(beyond * row, beyond * column)) / BASE
                steepest = torch.maximum(steepest, slope.abs())
                sides.append((own + slope * distance).clamp_min(0))
            near, far = torch.maximum(*sides), torch.minimum(*sides)
            gap = near - far
            between = (disparity <= near) & (disparity >= far)
            calm = 2 * distance * steepest < CALM * gap
            before, after = disparity - beside(-row, -column), beside(row, column) - disparity
            slides = (before * after > 0) & (torch.minimum(before.abs(), after.abs()) > SLIDES * gap)
            edge = (gap > EDGE * near) & between & calm & slides & (gap > strength) & ~found
            share = (disparity - far) / gap.clamp_min(1e-12)
            placed = torch.where(edge, torch.where(share >= NEAR_FROM, near, far), placed)
            strength = torch.where(edge, gap, strength)
        found |= strength > strongest
        sharp, strongest = placed, strength
    return torch.where(where & found, sharp, disparity)
