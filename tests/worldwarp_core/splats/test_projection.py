"""Projection to the splat table against gsplat's own torch implementation, forward and backward."""

import math

import numpy as np
import pytest
import torch

from tests.worldwarp_core.splats.dense_reference import project_with_gsplat
from tests.worldwarp_core.splats.scenes import HEIGHT, WIDTH, arrays, random_gaussians, two_cameras
from worldwarp_core.splats import projection
from worldwarp_core.splats.gaussians import Gaussians


def project(gaussians: Gaussians, w2c: torch.Tensor, K: torch.Tensor, bounded: bool = True) -> tuple[np.ndarray, ...]:
    tensors = arrays(gaussians)
    splats = np.zeros((len(gaussians), projection.COLUMNS), tensors["means"].dtype)
    boxes = np.zeros((len(gaussians), 4), np.int32)
    projection.project(
        2, tensors["means"], tensors["quats"], tensors["scales"], tensors["opacities"],
        w2c.numpy(), K.numpy(), WIDTH, HEIGHT, bounded, splats, boxes,
    )  # fmt: skip
    return splats, boxes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_splat_table_is_gsplats_projection(dtype: torch.dtype) -> None:
    gaussians = random_gaussians(500, degree=0, seed=1, spread=1.6).map(lambda t: t.to(dtype))
    w2c, K = two_cameras()
    radii, means2d, depths, conics, _ = project_with_gsplat(gaussians.map(lambda t: t.double()), w2c, K, WIDTH, HEIGHT)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for c in range(2):
        splats, boxes = project(gaussians, w2c[c], K[c])
        seen = boxes[:, 1] > boxes[:, 0]
        # gsplat's torch projection knows no opacity, so it keeps more; what we keep it must keep.
        assert (radii[c].numpy()[seen] > 0).all()
        assert 50 < seen.sum() < 450, "the scene should have Gaussians inside and outside the image"
        for columns, expected in (((0, 1), means2d), ((2, 3, 4), conics), ((6,), depths[..., None])):
            got = splats[seen][:, columns]
            want = expected[c].numpy()[seen]
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def test_a_box_holds_exactly_the_pixels_where_alpha_reaches_one_255th() -> None:
    gaussians = random_gaussians(300, degree=0, seed=2, spread=1.3)
    w2c, K = two_cameras()
    _, means2d, depths, conics, _ = project_with_gsplat(gaussians.map(lambda t: t.double()), w2c, K, WIDTH, HEIGHT)
    _, boxes = project(gaussians, w2c[0], K[0])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for n in range(len(gaussians)):
        dx, dy = means2d[0, n, 0].item() - x, means2d[0, n, 1].item() - y
        a, b, c = conics[0, n].tolist()
        alpha = gaussians.opacities[n].sigmoid().item() * np.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)
        rows, columns = np.nonzero((alpha >= 1 / 255) & (depths[0, n].item() > 0.01))
        x0, x1, y0, y1 = boxes[n]
        if rows.size:
            assert x0 <= columns.min() <= columns.max() < x1
            assert y0 <= rows.min() <= rows.max() < y1


@pytest.mark.parametrize("spread", [0.8, 2.5], ids=["in view", "past the edge, where the Jacobian is held"])
def test_gradients_are_those_of_gsplats_projection(spread: float) -> None:
    gaussians = random_gaussians(80, degree=0, seed=3, spread=spread).map(lambda t: t.double().requires_grad_())
    w2c, K = two_cameras()
    splats, boxes = project(gaussians, w2c[0], K[0], bounded=False)
    seen = boxes[:, 1] > 0
    assert seen.sum() > 40
    v_splats = np.random.default_rng(0).standard_normal(splats.shape)

    _, means2d, depths, conics, _ = project_with_gsplat(gaussians, w2c, K, WIDTH, HEIGHT)
    opacities = gaussians.opacities.sigmoid()
    table = torch.cat([means2d[0], conics[0], opacities[:, None], depths[0, :, None]], dim=-1)
    (table * torch.from_numpy(v_splats[:, :7]))[torch.from_numpy(seen)].sum().backward()

    tensors = arrays(gaussians)
    v_means, v_quats, v_scales, v_opacities = (
        np.zeros_like(tensors[name]) for name in ("means", "quats", "scales", "opacities")
    )
    projection.project_vjp(
        2, tensors["means"], tensors["quats"], tensors["scales"], w2c[0].numpy(), K[0].numpy(), WIDTH, HEIGHT,
        splats, boxes, v_splats, v_means, v_quats, v_scales, v_opacities,
    )  # fmt: skip
    for name, got in (("means", v_means), ("quats", v_quats), ("scales", v_scales), ("opacities", v_opacities)):
        want = getattr(gaussians, name).grad.numpy()
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize(
    ("z", "kept"), [(0.0099, False), (0.0101, True), (-1.0, False), (0.99e10, True), (1.01e10, False)]
)
def test_gaussians_outside_near_and_far_are_culled(z: float, kept: bool) -> None:
    gaussians = random_gaussians(1, degree=0, seed=0).map(lambda t: t.double())
    gaussians.means[:] = torch.tensor([0.0, 0.0, z])
    gaussians.scales[:] = math.log(abs(z) * 0.1)
    _, boxes = project(gaussians, torch.eye(4, dtype=torch.float64), two_cameras()[1][0])
    assert (boxes[0, 1] > 0) == kept


def test_scales_that_overflow_are_culled_not_drawn_as_nan() -> None:
    gaussians = random_gaussians(3, degree=0, seed=0)
    gaussians.scales[0] = 80.0
    gaussians.scales[1] = 400.0
    gaussians.scales[2] = float("nan")
    splats, boxes = project(gaussians, two_cameras()[0][0], two_cameras()[1][0])
    assert (boxes[1:] == 0).all()
    assert np.isfinite(splats[0]).all()
