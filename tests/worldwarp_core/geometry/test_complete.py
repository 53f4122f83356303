"""Complete depth for history frames from what the cache saw, a model, or neither."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from worldwarp_core.geometry.complete import INPAINTED_CONFIDENCE, MONOCULAR_CONFIDENCE, complete_depth

HEIGHT, WIDTH = 72, 128


@dataclass(frozen=True)
class GivenModel:
    """Answers with maps that the test made; the real classes are tested in test_monocular."""

    maps: Tensor
    kind: str
    name: str = "given"

    def disparity(self, rgb: Tensor) -> Tensor:
        assert rgb.shape[:3] == self.maps.shape
        return self.maps


def scene() -> Tensor:
    """(1, H, W) depth: a sloping floor, a box on it, and sky above."""
    row = torch.arange(HEIGHT)[:, None] + 0.5
    disparity = ((row - 20) * 0.02).clamp_min(0).expand(HEIGHT, WIDTH).clone()
    disparity[30:50, 40:60] = 0.7
    return (1 / disparity)[None]


def hole() -> Tensor:
    unseen = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    unseen[:, 10:60, 90:120] = True
    return unseen


def complete(depth: Tensor, seen: Tensor, model: GivenModel | None = None):  # type: ignore[no-untyped-def]
    rgb = torch.rand(*depth.shape, 3)
    return complete_depth(torch.where(seen, depth, 0.0), seen, rgb, model)  # type: ignore[arg-type]


def test_where_the_cache_has_seen_its_depth_stands_with_full_confidence() -> None:
    depth, seen = scene(), ~hole()
    got = complete(depth, seen)
    torch.testing.assert_close(got.depth[seen], depth[seen])
    assert (got.confidence[seen] == 1).all()
    assert (got.confidence[~seen] == INPAINTED_CONFIDENCE).all()
    assert got.depth.dtype == torch.float32


def test_all_seen_needs_no_model() -> None:
    depth = scene()
    got = complete(depth, torch.ones_like(depth, dtype=torch.bool), GivenModel(torch.zeros(9, 9, 9), "disparity"))
    torch.testing.assert_close(got.depth, depth)
    assert (got.confidence == 1).all()


def test_without_a_model_the_hole_continues_floor_and_sky() -> None:
    depth, seen = scene(), ~hole()
    got = complete(depth, seen).depth[0]
    assert torch.isinf(got[12:17, 92:118]).all()  # sky stays sky
    error = (got / depth[0])[32:58, 92:118]
    assert (error - 1).abs().max() < 0.1


def test_a_relative_model_is_aligned_and_joined() -> None:
    depth, seen = scene(), ~hole()
    depth[0, 35:55, 100:110] = 1 / 0.9  # a thing that only the model can know of
    model = GivenModel((1 / depth - 0.03) * 40, "disparity")
    got = complete(depth, seen, model)
    assert (got.confidence[~seen] == MONOCULAR_CONFIDENCE).all()
    below = torch.zeros_like(seen)
    below[:, 25:] = True
    assert ((got.depth / depth)[~seen & below] - 1).abs().max() < 0.02
    assert torch.isinf(got.depth[0, 12:18, 95:115]).all()


def test_a_metric_model_in_other_units_is_scaled() -> None:
    depth, seen = scene(), ~hole()
    got = complete(depth, seen, GivenModel(1 / (depth * 3.7), "depth"))
    below = torch.zeros_like(seen)
    below[:, 25:] = True
    assert ((got.depth / depth)[~seen & below] - 1).abs().max() < 0.01


def test_a_model_that_tells_the_sky_may_see_what_is_far_beyond_the_known() -> None:
    depth, seen = scene(), ~hole()
    far = float(depth[depth.isfinite()].max()) * 8
    depth[0, 20:30, 100:110] = far
    own = complete(depth, seen, GivenModel(0.2 / depth, "inverse_depth")).depth
    assert own[0, 22:28, 103:107].isfinite().all()
    assert own[0, 12:18, 95:115].isinf().all()
    other = complete(depth, seen, GivenModel(0.2 / depth, "disparity")).depth
    assert other[0, 22:28, 103:107].isinf().all()


@pytest.mark.parametrize("kind", ["disparity", "inverse_depth", "depth"])
def test_a_models_bend_is_taken_out_at_the_seam(kind: str) -> None:
    depth, seen = scene(), ~hole()
    tilt = 1 + 0.04 * torch.linspace(-1, 1, WIDTH)
    got = complete(depth, seen, GivenModel(tilt / depth, kind))
    jump = (got.depth[0, 30:60, 89] / got.depth[0, 30:60, 90] - 1).abs()
    assert jump.max() < 0.01


def test_a_models_blurred_outline_is_put_on_one_side() -> None:
    depth, seen = scene(), ~hole()
    depth[0, 35:55, 100:110] = 1 / 3.0
    blurred = torch.nn.functional.avg_pool2d((1 / depth)[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    got = 1 / complete(depth, seen, GivenModel(blurred, "disparity")).depth[0, 40:50, 95:115]
    floor = 1 / depth[0, 40:50, 92:93]
    assert torch.minimum((got - 3.0).abs(), (got - floor).abs()).max() < 0.1


@pytest.mark.parametrize("kind", ["disparity", "inverse_depth"])
def test_a_model_that_contradicts_the_cache_is_not_used(kind: str) -> None:
    depth, seen = scene(), ~hole()
    nonsense = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3)) ** 4
    got = complete(depth, seen, GivenModel(nonsense, kind))
    assert (got.confidence[~seen] == INPAINTED_CONFIDENCE).all()
    torch.testing.assert_close(got.depth, complete(depth, seen).depth)


def test_views_are_aligned_one_by_one() -> None:
    depth = scene().repeat(2, 1, 1)
    seen = ~hole().repeat(2, 1, 1)
    maps = torch.stack([5 / depth[0] + 1, 80 / depth[1]])
    got = complete(depth, seen, GivenModel(maps, "disparity"))
    torch.testing.assert_close(got.depth[0, 30:], got.depth[1, 30:], rtol=0.02, atol=0)


def test_a_view_of_nothing_seen_gets_the_caches_unit_everywhere() -> None:
    depth = scene()
    got = complete(depth, torch.zeros_like(depth, dtype=torch.bool))
    assert (got.depth == 1).all()
    assert (got.confidence == INPAINTED_CONFIDENCE).all()


def test_a_view_of_nothing_but_sky_stays_sky() -> None:
    depth, seen = torch.full((1, HEIGHT, WIDTH), torch.inf), ~hole()
    assert torch.isinf(complete(depth, seen).depth).all()


def test_a_zero_depth_where_the_cache_claims_to_have_seen_is_filled_like_a_hole() -> None:
    depth, seen = scene(), torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    depth[0, 60, 60] = 0
    got = complete(depth, seen)
    assert torch.isfinite(got.depth[0, 60, 60])
    assert got.confidence[0, 60, 60] == INPAINTED_CONFIDENCE
