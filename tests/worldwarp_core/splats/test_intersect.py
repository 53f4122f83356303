"""The tile lists against a loop over every tile and Gaussian."""

import itertools
import math

import pytest
import torch

from worldwarp_core.splats.intersect import tile_lists

WIDTH, HEIGHT, TILE = 90, 50, 16
TILES = 6 * 4


def scattered(count, seed=0):
    """Gaussians in, across and outside the image, some unseen, some at the same depth."""
    generator = torch.Generator().manual_seed(seed)
    means2d = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH + 40.0, HEIGHT + 40.0]) - 20
    radii = torch.randint(0, 30, (count, 2), generator=generator, dtype=torch.int32)
    depths = (torch.rand(count, generator=generator) * 8).round() / 4 + 0.1
    depths[radii.eq(0).any(1)] = torch.nan  # gsplat leaves what it culls unwritten
    return means2d, radii, depths


def slow_lists(means2d, radii, depths):
    """For each tile in row order: Gaussians whose boxes touch it, by depth, then by index."""
    rows, columns = math.ceil(HEIGHT / TILE), math.ceil(WIDTH / TILE)
    lists = []
    for row in range(rows):
        for column in range(columns):
            found = []
            for n, ((x, y), (rx, ry)) in enumerate(zip(means2d.tolist(), radii.tolist(), strict=True)):
                if rx <= 0 or ry <= 0:
                    continue
                if math.floor((x - rx) / TILE) <= column < math.ceil((x + rx) / TILE) and (
                    math.floor((y - ry) / TILE) <= row < math.ceil((y + ry) / TILE)
                ):
                    found.append((float(depths[n]), n))
            lists.append([n for _, n in sorted(found)])
    return lists


def lists_of(scene, capacity):
    return tile_lists(*scene, WIDTH, HEIGHT, TILE, capacity)


def as_lists(tiles):
    offsets = tiles.offsets.tolist()
    assert len(offsets) == TILES + 1
    return [tiles.ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("seed", range(3))
def test_the_lists_are_those_of_a_slow_loop(seed):
    scene = scattered(60, seed)
    expected = slow_lists(*scene)
    tiles = lists_of(scene, 2000)
    assert as_lists(tiles) == expected
    assert int(tiles.needed) == sum(len(found) for found in expected)


def test_room_to_spare_changes_nothing():
    scene = scattered(40)
    exact = int(lists_of(scene, 4000).needed)
    assert as_lists(lists_of(scene, exact)) == as_lists(lists_of(scene, 4000))


def test_too_little_room_loses_the_farthest_and_tells():
    scene = scattered(60)
    expected = slow_lists(*scene)
    needed = sum(len(found) for found in expected)
    tiles = lists_of(scene, needed // 2)
    assert int(tiles.needed) == needed
    got = as_lists(tiles)
    assert all(found == wanted[: len(found)] for found, wanted in zip(got, expected, strict=True))
    assert sum(len(found) for found in got) == needed // 2


def test_nothing_in_view_is_an_empty_list():
    means2d, radii, depths = scattered(5)
    tiles = lists_of((means2d, torch.zeros_like(radii), depths), 16)
    assert int(tiles.needed) == 0
    assert as_lists(tiles) == [[]] * TILES
