import math

import pytest
import torch

from worldwarp_core.splats.gaussians import SH_C0
from worldwarp_core.splats.seed import DISC_SIGMA, SeedView, seed_gaussians

K = torch.tensor([[60.0, 0, 32], [0, 60.0, 18], [0, 0, 1]])
HEIGHT, WIDTH = 36, 64


def rays():
    v, u = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    return torch.stack([(u - 32) / 60, (v - 18) / 60, torch.ones_like(u)], -1)


def plane_depth(normal, offset):
    """Planar z where camera rays meet the plane normal . p = offset."""
    return offset / (rays() @ normal)


def view(depth, rgb=None, wanted=None, w2c=None):
    rgb = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0)) if rgb is None else rgb
    wanted = torch.ones(HEIGHT, WIDTH, dtype=torch.bool) if wanted is None else wanted
    return SeedView(rgb, depth, wanted, torch.eye(4) if w2c is None else w2c, K)


def rotations(quats):
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    return torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        1,
    )


@pytest.mark.parametrize("budget", [200, 700, 3000])
def test_discs_lie_on_the_surface_and_along_it(budget):
    normal = torch.nn.functional.normalize(torch.tensor([0.4, -0.5, 1.0]), dim=0)
    gaussians, sky = seed_gaussians(view(plane_depth(normal, 2.0)), budget, sky_depth=100.0, sh_degree=0)
    assert not sky.any()
    assert torch.allclose(gaussians.means @ normal, torch.full((len(gaussians),), 2.0), atol=1e-4)
    thin_axis = rotations(gaussians.quats)[:, :, 2]
    assert ((thin_axis @ normal).abs() > 0.9999).all()
    scales = gaussians.scales.exp()
    assert (scales[:, 2] < scales[:, 1]).all()
    assert (scales[:, 1] <= scales[:, 0]).all()


def test_a_disc_facing_the_camera_is_as_wide_as_its_pixels():
    gaussians, _ = seed_gaussians(view(torch.full((HEIGHT, WIDTH), 3.0)), HEIGHT * WIDTH, sky_depth=100.0, sh_degree=0)
    pixel = 3.0 / 60
    sizes = gaussians.scales.exp()[:, 0] / (DISC_SIGMA * pixel)
    assert torch.isin(sizes.round(), torch.tensor([1.0, 2.0, 4.0])).all()
    assert torch.allclose(sizes, sizes.round(), atol=1e-3)


def test_the_camera_s_pose_carries_over():
    depth = plane_depth(torch.tensor([0.0, -0.3, 1.0]), 2.0)
    angle = torch.tensor(0.7)
    w2c = torch.eye(4)
    w2c[:3, :3] = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    w2c[:3, 3] = torch.tensor([0.5, -1.0, 2.0])
    at_origin, _ = seed_gaussians(view(depth), 700, 100.0, 0)
    posed, _ = seed_gaussians(view(depth, w2c=w2c), 700, 100.0, 0)
    assert torch.allclose(posed.means @ w2c[:3, :3].T + w2c[:3, 3], at_origin.means, atol=1e-5)
    assert torch.allclose(w2c[:3, :3] @ rotations(posed.quats), rotations(at_origin.quats), atol=1e-4)


@pytest.mark.parametrize("budget", [200, 700, 3000])
def test_the_budget_is_kept_and_every_wanted_pixel_is_covered_once(budget):
    wanted = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    wanted[:, 21:] = True
    gaussians, _ = seed_gaussians(view(torch.full((HEIGHT, WIDTH), 1.0), wanted=wanted), budget, 100.0, 0)
    area = ((gaussians.scales.exp()[:, 0] / (DISC_SIGMA / 60)).round() ** 2).sum()
    assert len(gaussians) <= max(budget, math.ceil(wanted.sum() / 16) + HEIGHT // 4) + 3
    # A block at the border of what is wanted may reach over it while the budget is small.
    assert wanted.sum() <= area <= wanted.sum() + 4 * 3 * HEIGHT
    assert (gaussians.means[:, 0] * 60 + 32 > 20).all()


def test_detail_gets_more_discs_than_flat_colour():
    rgb = torch.full((HEIGHT, WIDTH, 3), 0.5)
    rgb[:, WIDTH // 2 :] = torch.rand(HEIGHT, WIDTH // 2, 3, generator=torch.Generator().manual_seed(1))
    gaussians, _ = seed_gaussians(view(torch.full((HEIGHT, WIDTH), 1.0), rgb=rgb), 600, 100.0, 0)
    right = gaussians.means[:, 0] > 0
    assert right.sum() > 3 * (~right).sum()


def test_colours_are_the_blocks_means():
    rgb = torch.zeros(HEIGHT, WIDTH, 3)
    rgb[..., 0], rgb[..., 2] = 0.25, 1.0
    gaussians, _ = seed_gaussians(view(torch.full((HEIGHT, WIDTH), 1.0), rgb=rgb), 300, 100.0, sh_degree=2)
    colour = 0.5 + SH_C0 * gaussians.sh0[:, 0]
    assert torch.allclose(colour, torch.tensor([0.25, 0, 1.0]).expand_as(colour), atol=1e-5)
    assert gaussians.shN.shape == (len(gaussians), 8, 3)


def test_sky_pixels_become_far_discs_that_are_told_apart():
    depth = torch.full((HEIGHT, WIDTH), 1.0)
    depth[:10] = torch.inf
    gaussians, sky = seed_gaussians(view(depth), 900, sky_depth=50.0, sh_degree=0)
    assert torch.allclose(gaussians.means[sky, 2], torch.tensor(50.0))
    assert torch.allclose(gaussians.means[~sky, 2], torch.tensor(1.0))


def test_no_disc_bridges_a_depth_edge():
    depth = torch.full((HEIGHT, WIDTH), 1.0)
    depth[:, 31:] = 4.0
    gaussians, _ = seed_gaussians(view(depth), 2000, 100.0, 0)
    z = gaussians.means[:, 2]
    assert ((z - 1).abs().minimum((z - 4).abs()) < 1e-4).all()


def test_a_smeared_depth_edge_grows_no_wires():
    """As of estimated depth: from near to far within three pixels."""
    across = torch.full((WIDTH,), 2.0)
    across[30:33], across[33:] = torch.tensor([2.8, 4.0, 5.7]), 8.0
    gaussians, _ = seed_gaussians(view(across.expand(HEIGHT, WIDTH).contiguous()), 3000, sky_depth=100.0, sh_degree=0)
    longest, shorter, _ = gaussians.scales.exp().sort(-1, descending=True).values.unbind(-1)
    assert (longest / shorter).max() < 8
