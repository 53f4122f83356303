"""Which Gaussians each tile of an image draws, nearest first, in buffers of fixed size.

gsplat's own search sizes its buffers to what it finds, so the host waits for the count in the middle of every step and
no CUDA graph can hold one. Here the caller gives the capacity; what was needed stays on the device, to be looked at when
it suits. The lists are those of gsplat: Gaussians are sorted by depth first, then, stably, by tile, which orders equal
keys as gsplat's one sort of (tile, depth) does and takes a third of its passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 16
"""Pixels, gsplat's default."""


@dataclass(frozen=True)
class TileLists:
    """Tiles of an image of `rows` x `columns` tiles, as `gsplat.rasterize_to_pixels` takes them.

    Behind the image lies one more row of tiles: its first one holds the unused end of `ids`, so `drawn` masks it.

    Attributes:
        ids: (capacity,) int32 Gaussians, tile after tile, nearest first within each.
        offsets: (1, rows + 1, columns) int32, where each tile's Gaussians begin in `ids`.
        drawn: (1, rows + 1, columns) bool, False in the row behind the image.
        needed: () int64, how many ids there are; where that exceeds the capacity, the farthest Gaussians are missing.
    """

    ids: Tensor
    offsets: Tensor
    drawn: Tensor
    needed: Tensor


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of tiles that cover an image in pixels."""
    return -(-height // TILE), -(-width // TILE)


def tile_lists(means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, capacity: int) -> TileLists:
    """Lists for one image, without waiting for the device.

    Args:
        means2d: (N, 2) centres in pixels.
        radii: (N, 2) int32 half extents in pixels; 0 where the camera does not see the Gaussian.
        depths: (N,) planar z.
        capacity: ids to make room for.
    """
    n = len(depths)
    assert means2d.shape == radii.shape == (n, 2), (means2d.shape, radii.shape, depths.shape)
    rows, columns = tile_grid(width, height)
    device = depths.device
    order = depths.argsort(stable=True)
    reach = radii.float()
    low = ((means2d - reach) / TILE).floor()
    high = ((means2d + reach) / TILE).ceil()
    x0, x1 = (t[:, 0].clamp(0, columns).int() for t in (low, high))
    y0, y1 = (t[:, 1].clamp(0, rows).int() for t in (low, high))
    across = x1 - x0
    count = torch.where((radii > 0).all(1), across * (y1 - y0), 0)

    ends = count[order].cumsum(0)
    slot = torch.arange(capacity, device=device)
    place = torch.searchsorted(ends, slot, right=True).clamp(max=n - 1)
    owner = order[place]
    within = slot - (ends[place] - count[owner])
    wide = across[owner].clamp_min(1)
    tile = (y0[owner] + within // wide) * columns + x0[owner] + within % wide
    # What is unused sorts behind every tile.
    tile = torch.where(slot < ends[-1], tile, rows * columns)
    keys = tile.to(torch.int16 if (rows + 1) * columns < 2**15 else torch.int32)
    keys, chosen = keys.sort(stable=True)
    corners = torch.arange((rows + 1) * columns, device=device, dtype=keys.dtype)
    offsets = torch.searchsorted(keys, corners, out_int32=True).view(1, rows + 1, columns)
    drawn = (corners < rows * columns).view(1, rows + 1, columns)
    return TileLists(owner[chosen].int(), offsets, drawn, ends[-1])
