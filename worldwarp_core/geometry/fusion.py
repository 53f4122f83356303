"""Depth maps of a shot fused into one surface: a signed distance grid, surface nets, and a mesh of few triangles.

In: depth maps with their cameras. Out: triangles in the world's axes and scene units. In between:

    signed distance   every voxel is looked at from every view; the distance to the surface seen there, truncated, is
                      averaged with more weight for the near and the face-on (Curless and Levoy, 1996)
    surface nets      a vertex in every cell that the zero crosses, at the mean of where it crosses the cell's edges
                      (Gibson, 1998); what no view has seen has no surface
    clusters          the vertices of a block of cells become one where the surface in it is flat (Rossignac and
                      Borrel, 1993, with a test for flatness)

NumPy alone, and asked after every view of a part of the grid whether to go on: it runs beside a window, in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import WorldWarpError
from ..spec import BACKGROUND_DEPTH

TRUNCATION_CELLS = 3.0
"""How far behind a surface a view still says something."""
EDGE = 0.1
"""How far a pixel's neighbours may be off a plane, of its nearness, before it is an edge, where depth is mixed."""
GRAZING = 0.08
"""Cosine to the surface below which a view says nothing of it: there a pixel spans many cells."""
JUMP_CELLS = 2.5
"""More than distances can differ by within one cell, the diagonal of which is 1.7."""
BLOCK_VOXELS = 8
VOXELS_AT_ONCE = 1 << 16
MAX_VOXELS = 40_000_000
ISLAND_TRIANGLES = 60
"""Pieces of fewer triangles, before any are saved, are specks of noise."""
BLOCKS = (8, 4, 2)
"""Sides in cells of the blocks whose vertices become one where the surface is flat, the largest first."""
FLAT_CELLS = 0.15
"""How far, in cells, vertices may be off a plane that is called flat."""
FLAT_COSINE = 0.9

Told = Callable[[float], None]
"""Hears the share that is done; raises whatever should end the work."""


@dataclass(frozen=True)
class DepthView:
    """One depth map and its camera.

    Attributes:
        depth: (H, W) planar z in scene units; `BACKGROUND_DEPTH` or more, 0 and less, and NaN say nothing.
        K: (3, 3) for pixels of this map.
        c2w: (4, 4) OpenCV camera to world.
    """

    depth: np.ndarray
    K: np.ndarray
    c2w: np.ndarray


@dataclass(frozen=True)
class Surface:
    """Triangles, counter-clockwise where they are seen from.

    Attributes:
        vertices: (V, 3) float32 in the world's axes and scene units.
        triangles: (F, 3) int32.
        cell: the side of the grid's cells, in scene units.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    cell: float


def fuse_depth(
    views: Sequence[DepthView],
    *,
    cells: int = 192,
    reach: float | None = None,
    simplify: float = FLAT_CELLS,
    told: Told = lambda _: None,
) -> Surface:
    """The surface that all views together have seen.

    Args:
        cells: of the grid along its longest side.
        reach: how far from a camera surfaces are taken, in scene units; None takes what most pixels lie within.
        simplify: how far off flat, in cells, a surface may be where vertices are saved; 0 saves none.

    Raises:
        WorldWarpError: `no_surface` where the views show nothing near enough.
    """
    assert cells >= 8, cells
    prepared = [_prepared(view) for view in views]
    reach = reach or _usual_reach(prepared)
    low, high = _bounds(prepared, reach)
    cell = _cell_size(low, high, cells)
    distance, weight = _signed_distance(prepared, low, high, cell, reach, told)
    vertices, quads = _surface_nets(distance, weight > 0)
    told(0.92)
    triangles = _without_islands(_triangles(quads), len(vertices))
    if simplify > 0:
        for block in BLOCKS:
            vertices, triangles = _clustered(vertices, triangles, block, simplify)
    vertices, triangles = _used(vertices, triangles)
    if len(triangles) == 0:
        raise _nothing()
    told(1.0)
    # Point (0, 0, 0) of the grid lies at `low`.
    return Surface((vertices * cell + low).astype(np.float32), triangles.astype(np.int32), cell)


# ---------------------------------------------------------------- views


@dataclass(frozen=True)
class _View:
    """A depth map made ready: what is asked of it at any place.

    Attributes:
        nearness: (H, W) float32, 1 / z, which is linear over the pixels of a plane; 0 where nothing is known.
        cosine: (H, W) float32 of the angle between the surface and the ray, over the ray's length for z = 1: by it a
            difference in z becomes a distance from the surface. 0 at edges, where depth is mixed.
    """

    nearness: np.ndarray
    cosine: np.ndarray
    K: np.ndarray
    c2w: np.ndarray


def _prepared(view: DepthView) -> _View:
    depth = np.asarray(view.depth, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.isfinite(depth) & (depth > 0) & (depth < 0.99 * BACKGROUND_DEPTH)
        nearness = np.where(known, 1 / depth, 0).astype(np.float32)
    padded = np.pad(nearness, 1, mode="edge")
    left, right, up, down = padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]
    bend = np.maximum(np.abs(left + right - 2 * nearness), np.abs(up + down - 2 * nearness))
    sure = known & (bend < EDGE * nearness) & (np.minimum(np.minimum(left, right), np.minimum(up, down)) > 0)
    # A plane n . X = d has nearness n . (x, y, 1) / d over the image plane: its gradient gives the normal.
    fx, fy, cx, cy = view.K[0, 0], view.K[1, 1], view.K[0, 2], view.K[1, 2]
    slope_x, slope_y = (right - left) / 2 * fx, (down - up) / 2 * fy
    x = (np.arange(depth.shape[1]) + 0.5 - cx) / fx
    y = ((np.arange(depth.shape[0]) + 0.5 - cy) / fy)[:, None]
    constant = nearness - slope_x * x - slope_y * y
    length = np.sqrt(slope_x**2 + slope_y**2 + constant**2)
    cosine = np.where(sure, nearness / np.maximum(length, 1e-12), 0)
    grazing = cosine < GRAZING * np.sqrt(x**2 + y**2 + 1)
    return _View(nearness, np.where(grazing, 0, cosine).astype(np.float32), view.K, view.c2w)


def _usual_reach(views: Sequence[_View]) -> float:
    """What most pixels lie within: 98% of them, but not beyond four times the middle one."""
    depths = np.concatenate([1 / view.nearness[view.nearness > 0][::7] for view in views] or [np.zeros(0)])
    if len(depths) == 0:
        raise _nothing()
    return float(min(np.percentile(depths, 98), 4 * np.median(depths)) * 1.02)


def _bounds(views: Sequence[_View], reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The box of all that is seen within reach, strays left out."""
    points = [_seen_points(view, reach, 5) for view in views]
    seen = np.concatenate(points) if points else np.zeros((0, 3))
    if len(seen) < 10:
        raise _nothing()
    low, high = np.percentile(seen, 0.2, axis=0), np.percentile(seen, 99.8, axis=0)
    margin = 0.02 * (high - low).max()
    return low - margin, high + margin


def _seen_points(view: _View, reach: float, every: int) -> np.ndarray:
    """(N, 3) places in the world of every n-th pixel that shows a surface within reach."""
    rows, columns = np.nonzero((view.cosine > 0) & (view.nearness * reach >= 1))
    rows, columns = rows[::every], columns[::every]
    z = 1 / view.nearness[rows, columns]
    x = (columns + 0.5 - view.K[0, 2]) / view.K[0, 0] * z
    y = (rows + 0.5 - view.K[1, 2]) / view.K[1, 1] * z
    return np.stack([x, y, z], axis=1) @ view.c2w[:3, :3].T + view.c2w[:3, 3]


def _cell_size(low: np.ndarray, high: np.ndarray, cells: int) -> float:
    size = high - low
    # No more voxels than memory has room for.
    return float(max(size.max() / cells, np.cbrt(size.prod() / MAX_VOXELS)))


# ---------------------------------------------------------------- signed distance


def _signed_distance(
    views: Sequence[_View], low: np.ndarray, high: np.ndarray, cell: float, reach: float, told: Told
) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) float32 distances in cells, positive in front of surfaces, and their weights, 0 where not seen."""
    shape = tuple(int(count) for count in np.ceil((high - low) / cell).astype(int) + 1)
    total, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    near = np.flatnonzero(_near_surfaces(views, shape, low, cell, reach))
    starts = range(0, len(near), VOXELS_AT_ONCE)
    for done, start in enumerate(starts):
        voxels = near[start : start + VOXELS_AT_ONCE]
        points = np.stack(np.unravel_index(voxels, shape), axis=1) * np.float32(cell)
        for number, view in enumerate(views):
            told(0.9 * (done + number / len(views)) / len(starts))
            rows, off, share = _look(view, points, low, cell, reach)
            at = voxels[rows]
            total.reshape(-1)[at] += share * off
            weight.reshape(-1)[at] += share
    return total / np.maximum(weight, 1e-12), weight


def _near_surfaces(
    views: Sequence[_View], shape: tuple[int, ...], low: np.ndarray, cell: float, reach: float
) -> np.ndarray:
    """(X, Y, Z) bool: the voxels in blocks that a view has seen something in, or beside; only there is a surface."""
    blocks = np.zeros([-(-count // BLOCK_VOXELS) + 2 for count in shape], bool)
    for view in views:
        place = np.floor((_seen_points(view, reach, 1) - low) / (BLOCK_VOXELS * cell)).astype(int) + 1
        inside = ((place >= 1) & (place < np.array(blocks.shape) - 1)).all(axis=1)
        blocks[tuple(place[inside].T)] = True
    for axis in range(3):
        blocks |= np.roll(blocks, 1, axis) | np.roll(blocks, -1, axis)
    voxels = blocks[1:-1, 1:-1, 1:-1]
    for axis in range(3):
        voxels = voxels.repeat(BLOCK_VOXELS, axis)
    return np.ascontiguousarray(voxels[tuple(slice(count) for count in shape)])


def _look(
    view: _View, points: np.ndarray, low: np.ndarray, cell: float, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one view says of voxels: the rows it says something of, the distances in cells, and how sure it is.

    Args:
        points: (N, 3) float32 places of the voxels, from `low` on.
    """
    w2c = np.linalg.inv(view.c2w)
    origin = w2c[:3, :3] @ low + w2c[:3, 3]
    x, y, z = (points @ w2c[:3, :3].T.astype(np.float32) + origin.astype(np.float32)).T
    rows = np.flatnonzero((z > 1e-3 * reach) & (z < reach + TRUNCATION_CELLS * cell))
    x, y, z = x[rows], y[rows], z[rows]
    height, width = view.nearness.shape
    u = x / z * np.float32(view.K[0, 0]) + np.float32(view.K[0, 2] - 0.5)
    v = y / z * np.float32(view.K[1, 1]) + np.float32(view.K[1, 2] - 0.5)
    inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    rows, u, v, z = rows[inside], u[inside], v[inside], z[inside]
    nearness, cosine = _between(view, u, v)
    with np.errstate(divide="ignore", invalid="ignore"):
        # In cells, and from the surface, not along the ray.
        off = (1 / nearness - z) * cosine / np.float32(cell)
    says = (cosine > 0) & (nearness * np.float32(reach) >= 1) & (off > -TRUNCATION_CELLS)
    share = cosine[says] / (z[says] * z[says])
    return rows[says], np.minimum(off[says], TRUNCATION_CELLS), share


def _between(view: _View, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearness and cosine at places between pixels: mixed where the surface is one, else of the pixel they fall in."""
    height, width = view.nearness.shape
    left = np.minimum(u.astype(np.int32), width - 2)
    top = np.minimum(v.astype(np.int32), height - 2)
    across, down = u - left, v - top
    first = top * width + left
    flat, cosines = view.nearness.reshape(-1), view.cosine.reshape(-1)
    a, b, c, d = flat[first], flat[first + 1], flat[first + width], flat[first + width + 1]
    mixed = (a * (1 - across) + b * across) * (1 - down) + (c * (1 - across) + d * across) * down
    nearest = first + (across > 0.5) + width * (down > 0.5)
    own = flat[nearest]
    # Four pixels of one plane add up to nothing crosswise.
    whole = (np.abs(a + d - b - c) < EDGE * own) & (np.minimum(np.minimum(a, b), np.minimum(c, d)) > 0)
    return np.where(whole, mixed, own), cosines[nearest]


# ---------------------------------------------------------------- surface nets


_EDGES = [
    # The twelve edges of a cell, as pairs of its corners.
    (corner, tuple(1 if n == axis else corner[n] for n in range(3)))
    for axis in range(3)
    for corner in [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    if corner[axis] == 0
]


def _surface_nets(distance: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(V, 3) float64 vertices in grid units, (Q, 4) quads, facing where distances are positive."""
    shape = np.array(distance.shape)

    def corner(values: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
        return values[tuple(slice(start, start + count - 1) for start, count in zip(place, shape, strict=True))]

    front = distance > 0
    whole = np.ones(shape - 1, bool)
    nearest, farthest = np.full(shape - 1, np.inf, np.float32), np.full(shape - 1, -np.inf, np.float32)
    for place in np.ndindex(2, 2, 2):
        whole &= corner(seen, place)
        np.minimum(nearest, corner(distance, place), out=nearest)
        np.maximum(farthest, corner(distance, place), out=farthest)
    # Where what is seen ends beside something nearer, distances jump: no surface is there.
    whole &= farthest - nearest < JUMP_CELLS
    cells = np.argwhere(whole & (nearest <= 0) & (farthest > 0))
    number = np.full(shape - 1, -1, np.int32)
    number[tuple(cells.T)] = np.arange(len(cells), dtype=np.int32)
    total, count = np.zeros((len(cells), 3)), np.zeros(len(cells))
    for start, end in _EDGES:
        a, b = distance[tuple((cells + start).T)], distance[tuple((cells + end).T)]
        crosses = (a > 0) != (b > 0)
        share = np.where(crosses, a / np.where(crosses, a - b, 1), 0)
        place = np.array(start) + share[:, None] * (np.array(end) - start)
        total += np.where(crosses[:, None], place, 0)
        count += crosses
    vertices = cells + total / np.maximum(count, 1)[:, None]
    return vertices, np.concatenate([_quads_along(axis, front, number) for axis in range(3)])


def _quads_along(axis: int, front: np.ndarray, number: np.ndarray) -> np.ndarray:
    """(Q, 4) quads around the grid's edges along one axis that the surface crosses and all cells around of which do."""
    one, two = (axis + 1) % 3, (axis + 2) % 3
    inner = [slice(None)] * 3
    inner[one] = inner[two] = slice(1, -1)
    before, after = list(inner), list(inner)
    before[axis], after[axis] = slice(0, -1), slice(1, None)
    goes_in, goes_out = front[tuple(before)], front[tuple(after)]

    def cell(back_one: int, back_two: int) -> np.ndarray:
        # The edge from grid point p has the cells p, p - one, p - two and p - both around it.
        place = [slice(None)] * 3
        place[one] = slice(1 - back_one, number.shape[one] - back_one)
        place[two] = slice(1 - back_two, number.shape[two] - back_two)
        return number[tuple(place)]

    around = np.stack([cell(1, 1), cell(0, 1), cell(0, 0), cell(1, 0)], axis=-1)
    crossed = (goes_in != goes_out) & (around.min(axis=-1) >= 0)
    quads, outward = around[crossed], goes_out[crossed]
    return np.where(outward[:, None], quads, quads[:, ::-1])


# ---------------------------------------------------------------- triangles


def _triangles(quads: np.ndarray) -> np.ndarray:
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _without_islands(triangles: np.ndarray, vertices: int) -> np.ndarray:
    """The triangles of pieces that are larger than specks."""
    label = np.arange(vertices)
    while True:
        lowest = label[triangles].min(axis=1)
        later = label.copy()
        for place in range(3):
            np.minimum.at(later, triangles[:, place], lowest)
        # Every label points to a vertex of its piece with a label no higher.
        later = later[later]
        if np.array_equal(later, label):
            break
        label = later
    piece = label[triangles[:, 0]]
    return triangles[np.bincount(piece, minlength=vertices)[piece] >= ISLAND_TRIANGLES]


def _clustered(vertices: np.ndarray, triangles: np.ndarray, block: int, flat: float) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with one vertex for each block of cells whose surface is one flat sheet; open edges stay as they are."""
    vertices, triangles = _used(vertices, triangles)
    if len(triangles) == 0:
        return vertices, triangles
    _, group = np.unique(np.floor(vertices / block).astype(np.int64), axis=0, return_inverse=True)
    group = group.reshape(-1)
    groups = group.max() + 1

    def summed(values: np.ndarray) -> np.ndarray:
        columns = values.reshape(len(vertices), -1).T
        return np.stack([np.bincount(group, column, groups) for column in columns], axis=1)

    count = np.bincount(group, minlength=groups)
    middle = summed(vertices) / count[:, None]
    normals = _vertex_normals(vertices, triangles)
    mean = summed(normals)
    length = np.linalg.norm(mean, axis=1)
    mean /= np.maximum(length, 1e-12)[:, None]
    off = np.abs(((vertices - middle[group]) * mean[group]).sum(axis=1))
    turned = (normals * mean[group]).sum(axis=1) < FLAT_COSINE
    kept = (off > flat) | turned | _on_open_edge(triangles, len(vertices))
    joined = ~(np.bincount(group, kept, groups) > 0) & (count > 1)
    # A joined block's vertices become its first, moved to their middle.
    first = np.full(groups, len(vertices))
    np.minimum.at(first, group, np.arange(len(vertices)))
    before = _face_normals(vertices, triangles)
    while True:
        becomes = np.where(joined[group], first[group], np.arange(len(vertices)))
        moved = vertices.copy()
        moved[first[joined]] = middle[joined]
        later = becomes[triangles]
        lost = (later[:, 0] == later[:, 1]) | (later[:, 1] == later[:, 2]) | (later[:, 2] == later[:, 0])
        folded = ~lost & ((_face_normals(moved, later) * before).sum(axis=1) < FLAT_COSINE)
        if not folded.any():
            return moved, later[~lost]
        # Where triangles would turn over, the blocks that they touch stay as they were.
        spared = np.zeros(groups, bool)
        spared[group[triangles[folded]]] = True
        if not (spared & joined).any():
            return moved, later[~lost]
        joined &= ~spared


def _face_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(F, 3) unit normals; those of triangles without area are 0."""
    a, b, c = (vertices[triangles[:, place]] for place in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    a, b, c = (vertices[triangles[:, place]] for place in range(3))
    faces = np.cross(b - a, c - a)
    normals = np.stack(
        [np.bincount(triangles.reshape(-1), np.repeat(faces[:, axis], 3), len(vertices)) for axis in range(3)],
        axis=1,
    )
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _on_open_edge(triangles: np.ndarray, vertices: int) -> np.ndarray:
    """(V,) bool: the vertices on edges of one triangle alone."""
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    key = edges[:, 0].astype(np.int64) * vertices + edges[:, 1]
    found, count = np.unique(key, return_counts=True)
    lonely = found[count == 1]
    open_edge = np.zeros(vertices, bool)
    open_edge[lonely // vertices] = open_edge[lonely % vertices] = True
    return open_edge


def _used(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh without vertices that no triangle has."""
    used = np.unique(triangles)
    number = np.zeros(len(vertices), np.int64)
    number[used] = np.arange(len(used))
    return vertices[used], number[triangles]


def _nothing() -> WorldWarpError:
    return WorldWarpError(
        "no_surface", "The depth maps show no surface near enough to make a mesh of: allow a longer reach."
    )
