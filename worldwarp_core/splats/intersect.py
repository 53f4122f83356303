"""Which Gaussians each tile of an image draws, nearest first.

gsplat lists a Gaussian in every tile that the box around its ellipse touches. A good part of those tiles it does not
reach: a box has corners, its sides are rounded up to whole pixels, and pixels are drawn at their centres. Here it is
listed where it covers at least `MIN_ALPHA` somewhere among the centres of the tile's pixels. What is left out would
have drawn nothing, so pictures and gradients stay what they were; with small Gaussians a quarter of the work is gone.

This is the readable twin of the kernels in `step_triton`, which a fit on CUDA uses: it looks at every pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .constants import MIN_ALPHA

SLACK, ROUNDING = 0.01, 1e-6
"""How much later a Gaussian ends here than where it is drawn, in its exponent, absolutely and by the terms added up: a
pair too many draws nothing, a pair too few would be missed."""


@dataclass(frozen=True)
class TileLists:
    """Lists of the tiles of an image, in row order.

    Attributes:
        ids: (capacity,) int32 Gaussians, tile after tile, nearest first within each; the unused end is arbitrary.
        offsets: (tiles + 1,) int32: those of tile t are ids[offsets[t] : offsets[t + 1]].
        needed: () int64, how many ids there are; where that exceeds the capacity, the farthest Gaussians are missing.
    """

    ids: Tensor
    offsets: Tensor
    needed: Tensor


def tile_lists(
    means2d: Tensor,
    conics: Tensor,
    radii: Tensor,
    depths: Tensor,
    opacities: Tensor,
    width: int,
    height: int,
    tile: int,
    capacity: int,
) -> TileLists:
    """Lists for one image.

    Args:
        means2d: (N, 2) centres in pixels.
        conics: (N, 3) inverse covariances: xx, xy, yy.
        radii: (N, 2) int32 half extents in pixels; 0 where the camera does not see the Gaussian.
        depths: (N,) planar z.
        opacities: (N,) in [0, 1].
        width, height: of the image, in pixels.
        tile: side of a tile, in pixels.
        capacity: ids to make room for.
    """
    n = len(depths)
    assert means2d.shape == radii.shape == (n, 2), (means2d.shape, radii.shape, depths.shape)
    assert conics.shape == (n, 3), (conics.shape, depths.shape)
    rows, columns = -(-height // tile), -(-width // tile)
    column, row = torch.arange(columns, device=depths.device), torch.arange(rows, device=depths.device)[:, None]
    low, high = ((means2d - radii) / tile).floor(), ((means2d + radii) / tile).ceil()
    boxed = (column >= low[:, 0, None, None]) & (column < high[:, 0, None, None])
    boxed = boxed & (row >= low[:, 1, None, None]) & (row < high[:, 1, None, None])
    seen = (radii > 0).all(1)[:, None, None]
    listed = seen & boxed & _reaches(means2d, conics, opacities, column, row, tile)

    order = depths.argsort(stable=True)
    place, tiles = listed[order].flatten(1).nonzero().unbind(1)
    needed = torch.tensor(len(place), device=depths.device)
    tiles, chosen = tiles[:capacity].sort(stable=True)
    ids = torch.zeros(capacity, dtype=torch.int32, device=depths.device)
    ids[: len(chosen)] = order[place[chosen]].int()
    starts = torch.arange(rows * columns + 1, device=depths.device)
    return TileLists(ids, torch.searchsorted(tiles, starts, out_int32=True), needed)


def _reaches(means2d: Tensor, conics: Tensor, opacities: Tensor, column: Tensor, row: Tensor, tile: int) -> Tensor:
    """(N, rows, columns) bool: whether a Gaussian covers `MIN_ALPHA` anywhere between the centres of a tile's pixels.

    Its exponent is a bowl: over a rectangle that does not hold its centre it is least on a side that faces the centre,
    where it is a parabola.
    """
    (x, y), (a, b, c) = (t[..., None, None].unbind(1) for t in (means2d, conics))
    left, top = column * tile + 0.5 - x, row * tile + 0.5 - y
    right, bottom = left + (tile - 1), top + (tile - 1)
    side_x, side_y = torch.minimum(left.clamp_min(0), right), torch.minimum(top.clamp_min(0), bottom)
    along_y = torch.minimum(torch.maximum(-b * side_x / c, top), bottom)
    along_x = torch.minimum(torch.maximum(-b * side_y / a, left), right)
    ends = (opacities.clamp_min(1e-12) / MIN_ALPHA).log()[:, None, None] + SLACK
    return _below(a, b, c, side_x, along_y, ends) | _below(a, b, c, along_x, side_y, ends)


def _below(a: Tensor, b: Tensor, c: Tensor, x: Tensor, y: Tensor, ends: Tensor) -> Tensor:
    squares = a * x * x + c * y * y
    return 0.5 * squares + b * x * y <= ends + ROUNDING * squares
