import numpy as np
import pytest
import torch

from tests.support import room
from worldwarp_core.geometry.blockout import Blockout, hidden_by, in_front_of, start_of
from worldwarp_core.spec import BACKGROUND_DEPTH, PathDepth

WIDTH, HEIGHT = 160, 96
INF = float("inf")


def truths(path):
    return [room.render(path, frame)[1] for frame in range(len(path))]


def blockout(path, given, size=None, unit=1.0):
    """What the room's own depth says, given at some positions of the path and reduced to `size`."""
    small = path if size is None else path.resized(*size)
    maps = [room.render(small, index)[1] for index in given]
    kept = PathDepth.of([int(path.frames[index]) for index in given], maps)
    return Blockout(kept, path, torch.device("cpu"), unit)


@pytest.fixture(scope="module")
def path():
    return room.truck(13, travel=1.2, turn_rad=0.25, width=WIDTH, height=HEIGHT)


def errors(depth, truth):
    """Of the pixels that are known: relative errors, and their share of the picture."""
    known = torch.isfinite(depth).numpy()
    return np.abs(depth.numpy()[known] / truth[known] - 1), known.mean()


def test_a_frame_that_was_given_comes_back_in_the_units_wanted(path):
    depth = blockout(path, range(13), unit=2.5).depth(5)
    np.testing.assert_allclose(depth.numpy() * 2.5, room.render(path, 4)[1], rtol=6e-4)


def test_maps_of_a_smaller_size_are_enlarged_without_mixing_near_and_far(path):
    error, known = errors(blockout(path, range(13), size=(80, 48)).depth(7), room.render(path, 6)[1])
    assert known == 1.0
    assert np.median(error) < 1e-3
    assert (error > 0.1).mean() < 0.02  # a pixel beside the pillar's edges, on the wrong side of it


@pytest.mark.parametrize("index", [1, 3, 5])
def test_a_frame_between_two_given_ones_is_exact_where_they_show_its_places(path, index):
    error, known = errors(blockout(path, [0, 6, 12]).depth(index + 1), room.render(path, index)[1])
    assert known > 0.97
    assert np.median(error) < 1e-3
    assert (error > 0.02).mean() < 0.01  # a pixel beside the pillar


def test_what_no_given_frame_shows_stays_unknown(path):
    depth, truth = blockout(path, [0]).depth(13), room.render(path, 12)[1]
    seen = room.visible_from(path, 12, 0)
    error, _ = errors(depth, truth)
    assert (error > 0.05).mean() < 0.01
    known = torch.isfinite(depth).numpy()
    assert known[seen].mean() > 0.95
    assert known[~seen].mean() < 0.1


def test_a_path_far_from_the_origin_loses_nothing(path):
    far = room.path(list(path.c2w), WIDTH, HEIGHT)
    far.c2w[:, :3, 3] += 1e6
    given = PathDepth.of([1, 13], [room.render(path, 0)[1], room.render(path, 12)[1]])
    near, moved = (Blockout(given, p, torch.device("cpu")).depth(7) for p in (path, far))
    assert (torch.isfinite(near) == torch.isfinite(moved)).float().mean() > 0.999
    both = torch.isfinite(near) & torch.isfinite(moved)
    torch.testing.assert_close(near[both], moved[both], rtol=1e-4, atol=0)


def test_background_in_a_map_is_unknown_in_every_frame(path):
    depth = room.render(path, 6)[1]
    depth[: HEIGHT // 3] = BACKGROUND_DEPTH
    around = Blockout(PathDepth.of([7], [depth]), path, torch.device("cpu"))
    assert torch.isinf(around.depth(7)[: HEIGHT // 3]).all()
    assert torch.isinf(around.depth(8)[: HEIGHT // 3 - 4]).all()
    assert torch.isfinite(around.depth(8)[HEIGHT // 2 :]).float().mean() > 0.95


def test_a_surface_hides_what_lies_well_behind_it_and_nothing_else():
    scene = torch.full((5, 5), 2.0)
    for depth, hidden, in_front in ((1.5, False, True), (2.1, False, False), (2.3, True, False), (INF, True, False)):
        other = torch.full((5, 5), depth)
        assert hidden_by(scene, other).all() == hidden
        assert in_front_of(scene, other).all() == in_front


def test_the_unknown_hides_nothing_and_an_edge_belongs_to_both_sides():
    scene = torch.full((3, 9), 2.0)
    scene[:, 5:] = INF
    assert hidden_by(scene, torch.full((3, 9), 5.0))[1].tolist() == [True] * 4 + [False] * 5
    assert in_front_of(scene, torch.full((3, 9), 1.0))[1].tolist() == [True] * 6 + [False] * 3


class Flat:
    """A depth model that sees everything four times as near as what is known, and agrees with it otherwise."""

    name, kind = "flat", "depth"

    def __init__(self, depth):
        self.values = 4 / depth[None]

    def disparity(self, rgb):
        return self.values


def test_a_start_frame_takes_its_depth_from_the_blockout_and_the_rest_from_a_model(path):
    truth = torch.from_numpy(room.render(path, 0)[1])
    scene = truth.clone()
    scene[:, WIDTH // 2 :] = INF
    rgb = torch.zeros(HEIGHT, WIDTH, 3)
    depth, source = start_of(scene, rgb, Flat(truth))
    # A wall seen from along it is an edge to whoever sharpens a model's edges.
    assert ((depth / truth - 1).abs() < 1e-3).float().mean() > 0.99
    assert "flat aligned" in source
    depth, source = start_of(scene, rgb, None)
    assert torch.isinf(depth[:, WIDTH // 2 :]).all()
    assert source == "exact (the path's depth)"
