"""Depth of the start frame: exact and resized, or from a model with a scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.geometry.start import scene_geometry, start_depth, start_depth_from_model
from worldwarp_core.spec import BACKGROUND_DEPTH


@dataclass(frozen=True)
class GivenModel:
    map: Tensor
    kind: str = "disparity"
    name: str = "given"

    def disparity(self, rgb: Tensor) -> Tensor:
        return self.map[None]


def floor(height: int, width: int) -> np.ndarray:
    """Depth of a plane that tilts both ways: its disparity is linear in the pixel."""
    v, u = np.mgrid[:height, :width] + 0.5
    return (1 / (0.2 + 0.5 * v / height + 0.1 * u / width)).astype(np.float32)


@pytest.mark.parametrize("size", [(72, 128), (96, 160), (288, 512), (144, 256), (10, 10)])
def test_a_plane_stays_the_same_plane_at_every_size(size: tuple[int, int]) -> None:
    got = scene_geometry(floor(144, 256), size).numpy()
    expected = floor(*size)
    inside = np.s_[2:-2, 2:-2]  # the outermost pixels of an enlarged map lie beyond the last centres
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-5)


def test_no_depth_appears_between_two_surfaces() -> None:
    depth = np.full((100, 150), 2.0, np.float32)
    depth[20:60, 37:91] = 7.0
    depth[60:, 100:] = BACKGROUND_DEPTH
    for size in ((64, 96), (33, 47), (150, 300)):
        got = scene_geometry(depth, size)
        assert {round(value, 5) for value in got.unique().tolist()} == {2.0, 7.0, float("inf")}


def test_at_its_own_size_depth_is_the_same_to_rounding_and_background_is_infinite() -> None:
    depth = floor(20, 30)
    depth[0, 0], depth[0, 1] = BACKGROUND_DEPTH, np.inf
    got = scene_geometry(depth, (20, 30))
    assert torch.isinf(got[0, :2]).all()
    np.testing.assert_allclose(got[1:].numpy(), depth[1:], rtol=1e-6)


def test_exact_depth_wins_over_a_model() -> None:
    rgb = torch.rand(20, 30, 3)
    got, source = start_depth(floor(20, 30), rgb, GivenModel(torch.ones(20, 30)), 9.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(got.numpy(), floor(20, 30), rtol=1e-6)
    assert "exact" in source


def test_neither_depth_nor_model_says_what_to_give() -> None:
    with pytest.raises(WorldWarpError, match=r"--depth FILE .*--depth-model NAME") as caught:
        start_depth(None, torch.rand(4, 4, 3), None, None)
    assert caught.value.code == "no_depth"


@pytest.mark.parametrize(("scene_scale", "median"), [(None, 5.0), (0.03, 0.03), (1200.0, 1200.0)])
def test_a_models_depth_has_the_median_that_was_asked_for(scene_scale: float | None, median: float) -> None:
    truth = torch.from_numpy(floor(40, 60))
    got, source = start_depth(None, torch.rand(40, 60, 3), GivenModel(31 / truth), scene_scale)  # type: ignore[arg-type]
    assert float(got.median()) == pytest.approx(median, rel=1e-3)
    torch.testing.assert_close(got / got.median(), truth / truth.median(), rtol=1e-3, atol=0)
    assert f"{median:g}" in source


def test_a_metric_models_metres_are_scene_units_unless_a_scale_is_given() -> None:
    truth = torch.from_numpy(floor(40, 60))
    model = GivenModel(1 / truth, kind="depth")
    got, source = start_depth(None, torch.rand(40, 60, 3), model, None)  # type: ignore[arg-type]
    torch.testing.assert_close(got, truth)
    assert "metres" in source
    scaled, _ = start_depth(None, torch.rand(40, 60, 3), model, 9.0)  # type: ignore[arg-type]
    assert float(scaled.median()) == pytest.approx(9.0, rel=1e-3)


def test_what_a_relative_model_calls_infinitely_far_is_sky() -> None:
    disparity = 10 / torch.from_numpy(floor(40, 60))
    disparity[:5] = 0
    got = start_depth_from_model(torch.rand(40, 60, 3), GivenModel(disparity), 5.0)  # type: ignore[arg-type]
    assert torch.isinf(got[:5]).all()
    assert torch.isfinite(got[5:]).all()


def test_negative_disparities_are_shifted_up() -> None:
    disparity = torch.linspace(-3, 9, 40)[:, None].expand(40, 60)
    got = start_depth_from_model(torch.rand(40, 60, 3), GivenModel(disparity), 5.0)  # type: ignore[arg-type]
    assert (got > 0).all()


def test_a_model_that_sees_no_surface_is_an_error() -> None:
    with pytest.raises(WorldWarpError, match="no surface") as caught:
        start_depth_from_model(torch.rand(40, 60, 3), GivenModel(torch.zeros(40, 60)), 5.0)  # type: ignore[arg-type]
    assert caught.value.code == "bad_depth"
