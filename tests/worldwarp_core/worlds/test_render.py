"""Worlds: what rays hit is where it says, pictures of one place agree, seeds decide everything."""

import itertools
import math

import pytest
import torch

from worldwarp_core.training.warp import forward_warp, unproject
from worldwarp_core.worlds.layout import CAPACITY, KINDS, lay_out
from worldwarp_core.worlds.paths import PathSettings, choose_paths, share_in_sight, visible
from worldwarp_core.worlds.render import (
    SEED_RANGES,
    RenderSettings,
    build_worlds,
    clearance,
    ground_height,
    march,
    render,
    trace_depth,
    world_seed,
)
from worldwarp_core.worlds.textures import build_bank
from worldwarp_core.worlds.trace import (
    ROW,
    distance,
    distance_plainly,
    first_hit,
    first_hit_plainly,
    surface,
)

SIZE = (36, 64)


@pytest.fixture(scope="module")
def bank():
    return build_bank("test", size=64, patterns_each=2)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def flight(bank):
    """One world of every family, a path of five frames through each."""
    kinds = list(KINDS)
    seeds = [world_seed("test", 40 + i) for i in range(len(kinds))]
    worlds = build_worlds(seeds, bank, kinds=kinds)
    paths = choose_paths(worlds, seeds, PathSettings(frames=5, size=SIZE, amount=(0.3, 0.5)))
    return worlds, paths


def row(shape, half, center=(0.0, 0.0, 0.0), hole=(0.0, 0.0, 0.0, 0.0)):
    return shape, [*center, 1, 0, 0, 0, 1, 0, 0, 0, 1, *half, *hole, *([0.0] * 12)]


def table(*rows):
    total = torch.zeros(1, sum(CAPACITY.values()), ROW)
    total[..., 2], total[..., 3], total[..., 7], total[..., 11], total[..., 12:15] = -1e5, 1, 1, 1, 1e-2
    used = dict.fromkeys(CAPACITY, 0)
    for shape, numbers in rows:
        at = sum(CAPACITY[name] for name in list(CAPACITY)[: list(CAPACITY).index(shape)]) + used[shape]
        total[0, at] = torch.tensor(numbers)
        used[shape] += 1
    return total


SOLIDS = {
    "box": table(row("box", (1.0, 0.5, 0.7))),
    "pierced": table(row("pierced", (2.0, 0.4, 1.5), hole=(0.8, -3.0, 0.2, 1.0))),
    "window": table(row("pierced", (2.0, 0.4, 1.5), hole=(0.8, -0.5, 0.6, 0.0))),
    "cylinder": table(row("cylinder", (0.6, 0.6, 1.2))),
    "ellipsoid": table(row("ellipsoid", (1.0, 0.6, 0.4))),
}


@pytest.mark.parametrize("name", sorted(SOLIDS))
def test_a_ray_stops_where_the_distance_to_the_solid_becomes_zero(name):
    solid = SOLIDS[name]
    generator = torch.Generator().manual_seed(0)
    origin = torch.nn.functional.normalize(torch.randn(1, 3000, 3, generator=generator), dim=-1) * 4
    toward = torch.randn(1, 3000, 3, generator=generator) * 0.8 - origin
    direction = torch.nn.functional.normalize(toward, dim=-1)
    time, which = first_hit(origin, direction, solid)
    hit = time.isfinite()
    assert 0.1 < hit.float().mean() < 0.99
    at = origin + torch.where(hit, time, 0.0)[..., None] * direction
    assert distance(at, solid)[hit].abs().max() < 2e-3
    # no surface before the hit, and none at all along rays that miss
    for share in torch.linspace(0.02, 0.98, 25):
        before = origin + share * torch.where(hit, time, 8.0)[..., None] * direction
        assert distance(before, solid).min() > -2e-3
    # the normal points the way in which the distance grows
    rows = solid[torch.zeros_like(which), which]
    normal, _, _ = surface(at, rows, which)
    grown = distance(at + 0.01 * normal, solid)[hit]
    assert (grown > 0).float().mean() > 0.99
    assert ((direction * normal).sum(-1)[hit] < 1e-3).float().mean() > 0.99


def test_the_hole_of_an_arch_lets_rays_through_and_its_wall_stops_them():
    origin = torch.tensor([[[0.0, -3.0, 0.0], [0.0, -3.0, 0.9], [1.2, -3.0, 0.0], [0.7, -3.0, 0.9], [0.0, 0.0, 0.0]]])
    direction = torch.tensor([[0.0, 1.0, 0.0]]).expand(1, 5, 3)
    time, _ = first_hit(origin, direction, SOLIDS["pierced"])
    assert time[0].isfinite().tolist() == [False, False, True, True, False]
    assert distance(origin[:, 4:], SOLIDS["pierced"])[0, 0] > 0.3  # in the doorway is free


@pytest.mark.parametrize("kind", ["rooms", "colonnade", "table"])  # together every shape, and arches
def test_the_kernels_find_what_the_plain_functions_find(bank, kind):
    worlds = build_worlds([5], bank, kinds=[kind])
    generator = torch.Generator().manual_seed(0)
    place = worlds.places.repeat_interleave(40, 1)
    origin = place[..., :3] + place[..., 3:] * (2 * torch.rand(place[..., 3:].shape, generator=generator) - 1)
    direction = torch.randn(origin.shape, generator=generator)
    time, which = first_hit(origin, direction, worlds.table)
    plain, same = first_hit_plainly(origin, direction, worlds.table)
    torch.testing.assert_close(time, plain, rtol=1e-5, atol=1e-6)
    hit = plain.isfinite()
    assert hit.float().mean() > 0.2
    assert torch.equal(which[hit], same[hit])
    torch.testing.assert_close(
        distance(origin, worlds.table), distance_plainly(origin, worlds.table), rtol=1e-5, atol=1e-5
    )


def test_the_terrain_is_met_at_its_height():
    heights = (torch.linspace(0, 6, 256)[:, None] + torch.linspace(0, 3, 256)).sin()[None, None]
    generator = torch.Generator().manual_seed(0)
    origin = torch.cat([torch.rand(200, 2, generator=generator) * 10 - 5, torch.full((200, 1), 3.0)], 1)
    direction = torch.cat([torch.randn(200, 2, generator=generator), -torch.rand(200, 1, generator=generator)], 1)
    time = march(heights[0], origin, direction)
    hit = time.isfinite()
    assert hit.float().mean() > 0.9
    at = (origin + time[:, None] * direction)[hit]
    assert (at[:, 2] - ground_height(heights, at[None])[0]).abs().max() < 2e-3


def test_seed_ranges_of_the_splits_do_not_overlap():
    ranges = sorted(SEED_RANGES.values())
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ranges))
    with pytest.raises(AssertionError):
        world_seed("val", 1 << 33)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_seed_gives_one_world_and_another_seed_another(bank, kind):
    assert lay_out(5, bank.groups, kind) == lay_out(5, bank.groups, kind)
    assert lay_out(5, bank.groups, kind).shapes != lay_out(6, bank.groups, kind).shapes


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_where_things_stand_does_not_depend_on_what_pictures_there_are(bank, kind):
    richer = bank.groups | {"tex": list(range(500, 900)), "photo": list(range(900, 1200))}
    plain, rich = lay_out(9, bank.groups, kind), lay_out(9, richer, kind)
    for shape, rows in plain.shapes.items():
        assert [row[:19] for row in rows] == [row[:19] for row in rich.shapes[shape]]
    assert plain.places == rich.places


def test_a_path_does_not_depend_on_what_it_is_batched_with(bank):
    seeds = [world_seed("train", i) for i in range(4)]
    settings = PathSettings(frames=5, size=SIZE)
    together = choose_paths(build_worlds(seeds, bank), seeds, settings)
    alone = choose_paths(build_worlds(seeds[2:3], bank), seeds[2:3], settings)
    assert alone.moves[0] == together.moves[2]
    torch.testing.assert_close(alone.c2w[0], together.c2w[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.K[0], together.K[2])


def test_paths_stay_in_free_space_and_start_with_a_view(bank):
    seeds = [world_seed("train", 100 + i) for i in range(12)]
    worlds = build_worlds(seeds, bank)
    paths = choose_paths(worlds, seeds, PathSettings(frames=49, size=SIZE))
    away = clearance(worlds, paths.c2w[..., :3, 3])
    assert away.min() > 0.12
    rotation = paths.c2w[..., :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(-1, -2), torch.eye(3).expand_as(rotation), atol=1e-4, rtol=0
    )
    assert (torch.linalg.det(rotation) > 0.99).all()
    steps = (paths.c2w[:, 1:, :3, 3] - paths.c2w[:, :-1, :3, 3]).norm(dim=-1)
    assert steps.max() < 0.6  # smooth: no frame jumps
    turns = (rotation[:, 1:] * rotation[:, :-1]).sum((-1, -2)).clamp(-1, 3)
    assert turns.min() > 1 + 2 * math.cos(math.radians(12))


def test_a_path_out_and_back_ends_where_it_began(bank):
    seeds = [world_seed("train", 7), world_seed("train", 8)]
    settings = PathSettings(frames=21, size=SIZE, out_and_back=1.0, handheld=0.0)
    paths = choose_paths(build_worlds(seeds, bank), seeds, settings)
    torch.testing.assert_close(paths.c2w[:, -1], paths.c2w[:, 0], atol=1e-3, rtol=0)
    assert (paths.c2w[:, 10] - paths.c2w[:, 0]).abs().amax((1, 2)).min() > 0.05


def test_everything_stays_in_sight_of_a_camera_that_stays_and_nothing_behind_one_that_turns(flight):
    worlds, paths = flight
    first = (paths.K[:, 0], paths.c2w[:, 0])
    assert share_in_sight(worlds, first, first, SIZE).min() > 0.98
    behind = paths.c2w[:, 0].clone()
    behind[:, :3, 0] *= -1
    behind[:, :3, 2] *= -1
    assert share_in_sight(worlds, first, (paths.K[:, 0], behind), SIZE).max() < 0.1


def test_what_one_camera_sees_has_its_place_and_colour_from_another(bank, flight):
    worlds, paths = flight
    n = len(worlds)
    which = torch.arange(n).repeat_interleave(2)
    frames = torch.tensor([0, 2])
    K, c2w = paths.K[:, frames], paths.c2w[:, frames]
    rgb, depth = render(worlds, bank, which, K.flatten(0, 1), c2w.flatten(0, 1), SIZE, RenderSettings(group=2))
    rgb, depth = rgb.float().unflatten(0, (n, 2)), depth.unflatten(0, (n, 2))
    prior, there = forward_warp(
        rgb[:, :1],
        depth[:, :1],
        torch.ones_like(depth[:, :1], dtype=torch.bool),
        K[:, :1],
        c2w[:, :1],
        K[:, 1:],
        c2w[:, 1:],
    )
    points = torch.stack([unproject(depth[i, 1:].nan_to_num(posinf=1e4), K[i, 1:], c2w[i, 1:])[0] for i in range(n)])
    truths = visible(worlds, points.flatten(1, 2), K[:, 0], c2w[:, 0], SIZE).unflatten(1, SIZE)
    precisions, recalls = [], []
    for i, kind in enumerate(worlds.kinds):
        mask, truth = there[i, 0], truths[i]
        right = (mask & truth).sum()
        precisions.append(float(right / mask.sum()))
        # what was behind something that now shows a side nobody saw is drawn through that side, by any warp
        assert precisions[-1] > 0.92, kind
        recalls.append(float(right / truth.sum()))
        assert recalls[-1] > 0.95, kind
        error = (prior[i, 0] - rgb[i, 1]).square().mean(0)[mask & truth].mean()
        assert -10 * error.log10() > 25, kind
    assert sorted(recalls)[len(recalls) // 2] > 0.97
    assert sorted(precisions)[len(precisions) // 2] > 0.97


def test_depth_is_what_the_rays_of_the_picture_met_and_the_same_twice(bank, flight):
    worlds, paths = flight
    which = torch.arange(len(worlds))
    settings = RenderSettings(group=3, supersample=1)
    rgb, depth = render(worlds, bank, which, paths.K[:, 0], paths.c2w[:, 0], SIZE, settings)
    again, depth_again = render(worlds, bank, which, paths.K[:, 0], paths.c2w[:, 0], SIZE, settings)
    assert torch.equal(rgb, again)
    assert torch.equal(depth, depth_again)
    assert torch.equal(depth, trace_depth(worlds, which, paths.K[:, 0], paths.c2w[:, 0], SIZE))
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    assert (depth > 0).all()
    # every family shows things: neither black, nor blown out, nor flat
    assert (rgb.float().mean((1, 2, 3)) > 0.08).all()
    assert (rgb.float().mean((1, 2, 3)) < 0.92).all()
    assert (rgb.float().std((2, 3)).mean(1) > 0.04).all()


def test_supersampling_comes_nearer_to_many_samples(bank, flight):
    worlds, paths = flight
    some = torch.tensor([0, 2])
    pictures = [
        render(
            worlds, bank, some, paths.K[some, 0], paths.c2w[some, 0], (18, 32), RenderSettings(group=2, supersample=s)
        )[0]
        for s in (1, 2, 4)
    ]
    one, two, many = (picture.float() for picture in pictures)
    assert (two - many).square().mean() < 0.6 * (one - many).square().mean()
