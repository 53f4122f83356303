"""The fused surface lies on the true one, covers what was seen, faces who saw it, and is made of few triangles."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.room import PILLAR, ROOM, look, path, render
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.geometry.fusion import DepthView, Surface, fuse_depth
from worldwarp_core.spec import BACKGROUND_DEPTH

POSES = [
    (0, -3, 0, 0), (1.5, -3, 0.4, 0), (-1.5, -3, -0.4, -0.2), (3, 0, 1.2, 0),
    (-3, 0, -1.2, -0.3), (0, 5, 3.1, 0), (2, 4, 2.4, -0.3), (-2, 4, -2.4, 0),
]  # fmt: skip


def views_of_room(noise: float = 0.0) -> list[DepthView]:
    cameras = path([look((x, y, 1.5), yaw, pitch) for x, y, yaw, pitch in POSES], 160, 96)
    rng = np.random.default_rng(0)
    made = []
    for i in range(len(cameras)):
        _, depth = render(cameras, i)
        made.append(DepthView(depth * (1 + noise * rng.normal(size=depth.shape)), cameras.K[i], cameras.c2w[i]))
    return made


def off_the_truth(points: np.ndarray) -> np.ndarray:
    """(N,) distances to the nearest surface of the room or of its pillar."""

    def to_box(box: np.ndarray) -> np.ndarray:
        beyond = np.abs(points - box.mean(axis=0)) - (box[1] - box[0]) / 2
        return np.abs(np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0))

    return np.minimum(to_box(ROOM), to_box(PILLAR))


def spread_over(surface: Surface, count: int = 20_000) -> np.ndarray:
    """(count, 3) points spread evenly over the triangles."""
    rng = np.random.default_rng(1)
    corners = surface.vertices[surface.triangles].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen = corners[rng.choice(len(corners), count, p=area / area.sum())]
    return (chosen * rng.dirichlet([1, 1, 1], count)[:, :, None]).sum(axis=1)


def points_seen(views: list[DepthView]) -> np.ndarray:
    """(N, 3) places of every thirteenth pixel."""
    found = []
    for view in views:
        v, u = np.mgrid[6 : view.depth.shape[0] : 13, 6 : view.depth.shape[1] : 13].reshape(2, -1)
        rays = np.linalg.inv(view.K) @ np.stack([u + 0.5, v + 0.5, np.ones(len(u))])
        found.append((rays * view.depth[v, u]).T @ view.c2w[:3, :3].T + view.c2w[:3, 3])
    return np.concatenate(found)


def to_nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) distances from each point to the nearest of the others."""
    return np.concatenate(
        [np.linalg.norm(part[:, None] - others, axis=2).min(axis=1) for part in np.array_split(points, 40)]
    )


@pytest.mark.parametrize("simplify", [0.0, 0.15])
def test_the_surface_is_within_a_fraction_of_a_cell_of_the_truth(simplify: float) -> None:
    surface = fuse_depth(views_of_room(), cells=96, simplify=simplify)
    off = off_the_truth(spread_over(surface)) / surface.cell
    assert np.median(off) < 0.05
    assert np.percentile(off, 95) < 0.35
    assert off.max() < 2


def test_noise_of_single_views_is_averaged_away() -> None:
    surface = fuse_depth(views_of_room(noise=0.01), cells=96)
    off = off_the_truth(spread_over(surface))
    # One percent of the 4 m to a wall, as a single depth map has it, is 0.04.
    assert np.median(off) < 0.02
    assert np.percentile(off, 95) < 0.08


def test_all_that_was_seen_is_covered() -> None:
    views = views_of_room()
    surface = fuse_depth(views, cells=96)
    off = to_nearest(points_seen(views), spread_over(surface, 15_000))
    # What is left out is at the pictures' edges and seen at a slant.
    assert (off < 2 * surface.cell).mean() > 0.95
    assert np.percentile(off, 99) < 4 * surface.cell


def test_flat_walls_are_made_of_few_triangles_that_leave_no_gaps() -> None:
    views = views_of_room()
    fine, coarse = fuse_depth(views, cells=96, simplify=0), fuse_depth(views, cells=96)
    assert len(coarse.triangles) < len(fine.triangles) / 3

    def area(surface: Surface) -> float:
        a, b, c = (surface.vertices[surface.triangles[:, i]] for i in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    assert area(coarse) == pytest.approx(area(fine), rel=0.01)
    assert to_nearest(spread_over(fine, 800), spread_over(coarse, 15_000)).max() < 2.5 * fine.cell


def test_triangles_face_those_who_saw_them() -> None:
    surface = fuse_depth(views_of_room(), cells=96)
    a, b, c = (surface.vertices[surface.triangles[:, i]].astype(np.float64) for i in range(3))
    normals, middle = np.cross(b - a, c - a), (a + b + c) / 3
    area = np.linalg.norm(normals, axis=1)
    floor = middle[:, 2] < 0.5 * surface.cell
    assert floor.sum() > 20
    assert (normals[floor, 2] > 0).mean() > 0.99
    eyes = np.array([view.c2w[:3, 3] for view in views_of_room()])
    sees = np.einsum("nk,nek->ne", normals, eyes - middle[:, None])
    assert area[(sees > 0).any(axis=1)].sum() > 0.99 * area.sum()


def test_nothing_is_made_up_where_nothing_was_seen() -> None:
    view = views_of_room()[0]
    surface = fuse_depth([view], cells=96)
    # Behind the pillar, as this camera sees it, the far wall has no surface.
    behind = spread_over(surface)
    behind = behind[(behind[:, 1] > 5.8) & (behind[:, 2] > 0.5) & (behind[:, 2] < 2.5)]
    assert len(behind) > 100
    shadow = 0.4 * (6.0 + 3.0) / (1.5 + 3.0)  # the pillar's half width, cast on the wall from (0, -3)
    assert not (np.abs(behind[:, 0]) < shadow - 0.25).any()


def test_sky_and_holes_in_depth_are_no_surface() -> None:
    views = []
    for view in views_of_room():
        depth = view.depth.copy()
        depth[:20], depth[20:24], depth[24:28] = BACKGROUND_DEPTH, np.nan, 0.0
        views.append(DepthView(depth, view.K, view.c2w))
    off = off_the_truth(spread_over(fuse_depth(views, cells=64)))
    assert np.percentile(off, 99) < 0.2


def test_a_shorter_reach_leaves_out_what_is_farther() -> None:
    views = views_of_room()[:1]
    surface = fuse_depth(views, cells=96, reach=5.0)
    assert surface.vertices[:, 1].max() < 2.3  # the camera is at y = -3
    assert surface.cell < fuse_depth(views, cells=96).cell


@pytest.mark.parametrize("depth", [BACKGROUND_DEPTH, np.nan, -1.0])
def test_views_of_nothing_are_refused_by_a_sentence(depth: float) -> None:
    view = views_of_room()[0]
    with pytest.raises(WorldWarpError, match="no surface near enough") as caught:
        fuse_depth([DepthView(np.full((8, 8), depth), view.K, view.c2w)])
    assert caught.value.code == "no_surface"


def test_the_work_is_told_and_ends_when_that_raises() -> None:
    told: list[float] = []

    def stop(share: float) -> None:
        told.append(share)
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuse_depth(views_of_room(), cells=96, told=stop)
    assert told == sorted(told)
    assert told[-1] < 0.5
