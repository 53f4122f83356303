"""Closing the holes of a disparity map, on scenes whose hidden surfaces are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from worldwarp_core.geometry.inpaint import hole_border, inpaint_disparity, spread

HEIGHT, WIDTH = 144, 256
HORIZON = 60


def street() -> Tensor:
    """(H, W) disparity of a ground plane that meets a far wall."""
    row = torch.arange(HEIGHT)[:, None] + 0.5
    return ((row - HORIZON) * 0.01).clamp_min(0.1).expand(HEIGHT, WIDTH).clone()


def with_box(disparity: Tensor, rows: tuple[int, int], cols: tuple[int, int], value: float) -> Tensor:
    disparity = disparity.clone()
    disparity[rows[0] : rows[1], cols[0] : cols[1]] = value
    return disparity


def hole_at(rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
    return with_box(torch.zeros(HEIGHT, WIDTH), rows, cols, 1) > 0


def relative_error(got: Tensor, truth: Tensor, hole: Tensor) -> Tensor:
    return ((got - truth).abs() / truth)[hole]


def test_what_is_known_is_not_touched() -> None:
    scene, hole = street(), hole_at((50, 90), (100, 150))
    filled = inpaint_disparity(torch.where(hole, torch.nan, scene), ~hole)
    assert torch.equal(filled[~hole], scene[~hole])
    assert torch.isfinite(filled).all()
    assert torch.equal(inpaint_disparity(scene, torch.ones_like(hole)), scene)


@pytest.mark.parametrize("cols", [(140, 160), (70, 90)])
def test_beside_an_object_the_background_goes_on_and_not_the_object(cols: tuple[int, int]) -> None:
    background = street()
    scene = with_box(background, (60, 110), (90, 140), 0.6)
    hole = hole_at((60, 110), cols)
    error = relative_error(inpaint_disparity(scene, ~hole), background, hole)
    assert error.median() < 0.03
    assert error.quantile(0.9) < 0.15
    plain = torch.from_numpy(spread(scene.numpy(), hole_border(~hole.numpy()), hole.numpy()))
    assert relative_error(plain, background, hole).median() > 0.2  # what spreading the object too would give


def test_noise_of_a_percent_does_not_change_that() -> None:
    background = street()
    noise = 1 + 0.01 * torch.randn(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    scene = with_box(background, (60, 110), (90, 140), 0.6) * noise
    hole = hole_at((60, 110), (140, 160))
    assert relative_error(inpaint_disparity(scene, ~hole), background, hole).median() < 0.04


def test_a_hole_in_receding_ground_keeps_receding() -> None:
    # The near border is not "in front of" the far one: they are one plane.
    scene, hole = street(), hole_at((80, 140), (50, 120))
    assert relative_error(inpaint_disparity(scene, ~hole), scene, hole).quantile(0.9) < 0.02


def test_ground_and_wall_go_on_beyond_the_image_edge() -> None:
    scene, hole = street(), hole_at((0, HEIGHT), (220, WIDTH))
    assert relative_error(inpaint_disparity(scene, ~hole), scene, hole).quantile(0.9) < 0.1


def test_an_object_cut_by_the_image_edge_goes_on_beyond_it() -> None:
    scene = with_box(street(), (60, 110), (180, 220), 0.6)
    filled = inpaint_disparity(scene, ~hole_at((0, HEIGHT), (220, WIDTH)))
    assert filled[85, 222] > 0.5


def test_between_a_roof_and_the_sky_there_is_sky() -> None:
    scene = with_box(street().where(street() > 0.1, 0.0), (10, 60), (60, 100), 0.5)
    filled = inpaint_disparity(scene, ~hole_at((10, 50), (100, 120)))
    assert filled[15:45, 101:119].max() < 0.01


def test_the_fill_is_smooth_and_within_the_range_of_its_border() -> None:
    scene, hole = street(), hole_at((70, 130), (60, 200))
    filled = inpaint_disparity(scene, ~hole)
    inside = filled[72:128, 62:198]
    assert (inside[:, 1:] - inside[:, :-1]).abs().max() < 0.01
    assert inside.min() >= scene.min()
    assert inside.max() <= scene.max()


def test_the_solution_is_that_of_the_equation() -> None:
    # Against the exact solution for a linear function, which any Laplacian leaves as it is.
    v, u = np.mgrid[:41, :57].astype(np.float32)
    truth = 0.3 + 0.01 * v + 0.002 * u
    hole = np.zeros(truth.shape, bool)
    hole[8:30, 10:50] = True
    np.testing.assert_allclose(spread(np.where(hole, 9, truth), ~hole, hole)[hole], truth[hole], atol=5e-3)


def test_far_better_than_the_inpainting_of_opencv() -> None:
    background = street()
    scene = with_box(background, (60, 110), (90, 140), 0.6)
    hole = hole_at((60, 110), (140, 160))
    theirs = cv2.inpaint(scene.numpy(), hole.numpy().astype(np.uint8), 3, cv2.INPAINT_NS)
    ours = relative_error(inpaint_disparity(scene, ~hole), background, hole).mean()
    assert ours < 0.3 * relative_error(torch.from_numpy(theirs), background, hole).mean()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (5, 4), (33, 17)])
def test_every_size_and_a_single_known_pixel_do(size: tuple[int, int]) -> None:
    known = torch.zeros(size, dtype=torch.bool)
    known[-1, 0] = True
    filled = inpaint_disparity(torch.full(size, 0.25), known)
    torch.testing.assert_close(filled, torch.full(size, 0.25))
