"""Which Gaussians each tile of an image draws, nearest first, in buffers of fixed size.

gsplat's own search sizes its buffers to what it finds, so the host waits for the count in the middle of every step and
no CUDA graph can hold one. Here the caller gives the capacity, and what was needed stays on the device until somebody
looks. The lists are those of gsplat: Gaussians are sorted by depth first and then, stably, by tile, which orders equal
keys as gsplat's one sort of (tile, depth) does, in fewer passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
    means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, tile: int, capacity: int
) -> TileLists:
    """Lists for one image, without waiting for the device.

    Args:
        means2d: (N, 2) centres in pixels.
        radii: (N, 2) int32 half extents in pixels; 0 where the camera does not see the Gaussian.
        depths: (N,) planar z.
        width, height: of the image, in pixels.
        tile: side of a tile, in pixels.
        capacity: ids to make room for.
    """
    n = len(depths)
    assert means2d.shape == radii.shape == (n, 2), (means2d.shape, radii.shape, depths.shape)
    rows, columns = -(-height // tile), -(-width // tile)
    tiles = rows * columns
    x0, x1, y0, y1 = _touched(means2d, radii, tile, rows, columns)
    order = depths.argsort(stable=True)
    ends = ((x1 - x0) * (y1 - y0))[order].cumsum(0, dtype=torch.int32)

    # Each slot finds the Gaussian it belongs to, and which of that one's tiles it is.
    slot = torch.arange(capacity, device=depths.device, dtype=torch.int32)
    place = torch.searchsorted(ends, slot, right=True, out_int32=True).clamp(max=n - 1)
    owner = order[place]
    across = (x1 - x0)[owner]
    from_last = ends[place] - slot - 1
    touched = (
        (y1[owner] - 1 - from_last // across.clamp_min(1)) * columns + x1[owner] - 1 - from_last % across.clamp_min(1)
    )
    # What is unused sorts behind every tile.
    keys = torch.where(slot < ends[-1], touched, tiles).to(torch.int16 if tiles < 2**15 else torch.int32)
    keys, chosen = keys.sort(stable=True)
    starts = torch.arange(tiles + 1, device=depths.device, dtype=keys.dtype)
    return TileLists(owner[chosen].int(), torch.searchsorted(keys, starts, out_int32=True), ends[-1].long())


def _touched(means2d: Tensor, radii: Tensor, tile: int, rows: int, columns: int) -> tuple[Tensor, ...]:
    """(N,) int32 first and last + 1 column, first and last + 1 row of the tiles that each Gaussian's box touches."""
    low, high = ((means2d - radii) / tile).floor(), ((means2d + radii) / tile).ceil()
    x0, x1 = (t[:, 0].clamp(0, columns).int() for t in (low, high))
    y0, y1 = (t[:, 1].clamp(0, rows).int() for t in (low, high))
    seen = (radii[:, 0] > 0) & (radii[:, 1] > 0)
    return torch.where(seen, x0, 0), torch.where(seen, x1, 0), torch.where(seen, y0, 0), torch.where(seen, y1, 0)
