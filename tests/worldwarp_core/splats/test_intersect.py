"""The tile lists against a loop over every tile, Gaussian and pixel."""

import itertools
import math

import pytest
import torch

from worldwarp_core.splats.constants import MIN_ALPHA
from worldwarp_core.splats.intersect import tile_lists

WIDTH, HEIGHT, TILE = 90, 50, 16
COLUMNS, ROWS = math.ceil(WIDTH / TILE), math.ceil(HEIGHT / TILE)
FURTHEST = 3.4
"""Deviations at which a Gaussian of full opacity ends."""


def scattered(count, seed=0):
    """Gaussians in, across and outside the image, round ones and needles, some unseen, some at the same depth."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    means2d = rand(count, 2) * torch.tensor([WIDTH + 40.0, HEIGHT + 40.0]) - 20
    sigma, turn = 0.6 + 9 * rand(count, 2) ** 3, 3.14 * rand(count)
    axes = torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()], 1).view(count, 2, 2)
    covariance = axes.mT @ torch.diag_embed(sigma.square()) @ axes
    inverse = torch.linalg.inv(covariance)
    conics = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], 1)
    radii = (FURTHEST * covariance.diagonal(dim1=1, dim2=2).sqrt()).ceil().int()
    radii[rand(count) < 0.1] = 0
    depths = (rand(count) * 8).round() / 4 + 0.1
    depths[radii.eq(0).any(1)] = torch.nan  # gsplat leaves what it culls unwritten
    return means2d, conics, radii, depths, rand(count)


def coverage(scene, n, x, y):
    """Of Gaussian n at points."""
    means2d, conics, _, _, opacities = scene
    dx, dy = x - means2d[n, 0], y - means2d[n, 1]
    a, b, c = conics[n]
    return opacities[n] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)


def centres(tile, spacing=1.0):
    """Points over a tile, from the centre of its first pixel to that of its last."""
    steps = torch.arange(0, TILE - 1 + spacing / 2, spacing, dtype=torch.float64) + 0.5
    row, column = divmod(tile, COLUMNS)
    return column * TILE + steps, (row * TILE + steps)[:, None]


def lists_of(scene, capacity):
    return tile_lists(*scene, WIDTH, HEIGHT, TILE, capacity)


def as_lists(tiles):
    offsets = tiles.offsets.tolist()
    assert len(offsets) == ROWS * COLUMNS + 1
    return [tiles.ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("seed", range(3))
def test_a_tile_lists_whatever_any_of_its_pixels_shows(seed):
    scene = scattered(60, seed)
    seen = (scene[2] > 0).all(1)
    exact = tuple(t.double() for t in scene)
    shown = 0
    for tile, listed in enumerate(as_lists(lists_of(scene, 4000))):
        for n in range(60):
            if seen[n] and (coverage(exact, n, *centres(tile)) >= MIN_ALPHA).any():
                assert n in listed, (tile, n)
                shown += 1
    assert shown > 50


@pytest.mark.parametrize("seed", range(3))
def test_a_tile_lists_nothing_that_ends_before_it(seed):
    """What is listed is a fiftieth of a deviation away at most, looking between the pixels too."""
    scene = scattered(60, seed)
    exact = tuple(t.double() for t in scene)
    for tile, listed in enumerate(as_lists(lists_of(scene, 4000))):
        for n in listed:
            assert coverage(exact, n, *centres(tile, 0.25)).max() >= 0.97 * MIN_ALPHA, (tile, n)


@pytest.mark.parametrize("seed", range(3))
def test_a_list_runs_from_the_nearest_to_the_farthest(seed):
    scene = scattered(60, seed)
    tiles = lists_of(scene, 4000)
    assert int(tiles.needed) == sum(map(len, as_lists(tiles)))
    for listed in as_lists(tiles):
        assert listed == sorted(listed, key=lambda n: (float(scene[3][n]), n))


def test_small_gaussians_are_in_a_quarter_fewer_tiles_than_their_boxes():
    generator = torch.Generator().manual_seed(0)
    count = 4000
    means2d = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    conics = torch.tensor([[0.7, 0.3, 0.7]]).repeat(count, 1)
    radii = torch.full((count, 2), 5, dtype=torch.int32)  # of a deviation of 1.32
    scene = means2d, conics, radii, torch.ones(count), torch.full((count,), 0.95)
    low, high = ((means2d - radii) / 8).floor(), ((means2d + radii) / 8).ceil()
    size = torch.tensor([math.ceil(WIDTH / 8), math.ceil(HEIGHT / 8)])
    boxed = (high.clamp_min(0).minimum(size) - low.clamp_min(0)).prod(1).sum()
    assert int(tile_lists(*scene, WIDTH, HEIGHT, 8, 2**16).needed) < 0.75 * boxed


def test_room_to_spare_changes_nothing():
    scene = scattered(40)
    exact = int(lists_of(scene, 4000).needed)
    assert as_lists(lists_of(scene, exact)) == as_lists(lists_of(scene, 4000))


def test_too_little_room_loses_the_farthest_and_tells():
    scene = scattered(60)
    expected = as_lists(lists_of(scene, 4000))
    needed = sum(map(len, expected))
    tiles = lists_of(scene, needed // 2)
    assert int(tiles.needed) == needed
    got = as_lists(tiles)
    assert all(found == wanted[: len(found)] for found, wanted in zip(got, expected, strict=True))
    assert sum(len(found) for found in got) == needed // 2


def test_nothing_in_view_is_an_empty_list():
    means2d, conics, radii, depths, opacities = scattered(5)
    tiles = lists_of((means2d, conics, torch.zeros_like(radii), depths, opacities), 16)
    assert int(tiles.needed) == 0
    assert as_lists(tiles) == [[]] * (ROWS * COLUMNS)
