"""Spherical-harmonic colour against gsplat's own torch implementation, forward and backward."""

import numpy as np
import pytest
import torch
from gsplat.cuda._torch_impl import _spherical_harmonics

from tests.worldwarp_core.splats.scenes import arrays, random_gaussians
from worldwarp_core.splats import sh
from worldwarp_core.splats.gaussians import Gaussians

CENTRE = torch.tensor([0.3, -0.2, -0.5], dtype=torch.float64)


def gsplat_colours(gaussians: Gaussians) -> torch.Tensor:
    coefficients = torch.cat([gaussians.sh0, gaussians.shN], dim=1)
    directions = gaussians.means - CENTRE.to(gaussians.means.dtype)
    return torch.clamp_min(_spherical_harmonics(gaussians.sh_degree, directions, coefficients) + 0.5, 0)


def evaluate(gaussians: Gaussians) -> tuple[np.ndarray, np.ndarray]:
    tensors = arrays(gaussians)
    splats = np.zeros((len(gaussians), 3), tensors["means"].dtype)
    boxes = np.tile(np.int32([0, 1, 0, 1]), (len(gaussians), 1))
    sh.evaluate(2, tensors["means"], CENTRE.numpy(), tensors["sh0"], tensors["shN"], boxes, splats, 0)
    return splats, boxes


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_colours_are_gsplats(degree: int, dtype: torch.dtype, tolerance: float) -> None:
    gaussians = random_gaussians(200, degree, seed=degree).map(lambda t: t.to(dtype))
    colours, _ = evaluate(gaussians)
    expected = gsplat_colours(gaussians).numpy()
    assert (expected == 0).any(), "the scene should have clamped colours"
    np.testing.assert_allclose(colours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gradients_are_those_of_gsplats_harmonics(degree: int) -> None:
    gaussians = random_gaussians(200, degree, seed=degree).map(lambda t: t.double().requires_grad_())
    colours, boxes = evaluate(gaussians)
    v_colours = np.random.default_rng(0).standard_normal(colours.shape)
    (gsplat_colours(gaussians) * torch.from_numpy(v_colours)).sum().backward()
    tensors = arrays(gaussians)
    v_means, v_sh0, v_shN = (np.zeros_like(tensors[name]) for name in ("means", "sh0", "shN"))
    sh.evaluate_vjp(
        2, tensors["means"], CENTRE.numpy(), tensors["shN"], boxes, colours, v_colours, 0, v_means, v_sh0, v_shN
    )
    for name, got in (("means", v_means), ("sh0", v_sh0), ("shN", v_shN)):
        want = getattr(gaussians, name).grad
        want = np.zeros_like(got) if want is None else want.numpy()
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10, err_msg=name)


def test_what_the_camera_does_not_see_is_left_alone() -> None:
    gaussians = random_gaussians(4, degree=3, seed=0)
    tensors = arrays(gaussians)
    splats = np.full((4, 3), -7.0, np.float32)
    boxes = np.int32([[0, 1, 0, 1], [0, 0, 0, 0], [3, 5, 0, 2], [0, 0, 0, 0]])
    sh.evaluate(2, tensors["means"], CENTRE.numpy(), tensors["sh0"], tensors["shN"], boxes, splats, 0)
    assert (splats[[1, 3]] == -7).all()
    assert (splats[[0, 2]] >= 0).all()
