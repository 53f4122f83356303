"""The slow, readable twin of the rasteriser: gsplat's own torch projection and harmonics, then every Gaussian over
every pixel in float64, sorted by depth, as an explicit product of transmittances. Differentiable by autograd."""

import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from torch import Tensor

from worldwarp_core.splats.gaussians import Gaussians


def project_with_gsplat(gaussians: Gaussians, w2c: Tensor, K: Tensor, width: int, height: int) -> tuple[Tensor, ...]:
    """radii (C, N, 2), means2d (C, N, 2), depths (C, N), conics (C, N, 3), colours (C, N, 3)."""
    covars, _ = _quat_scale_to_covar_preci(gaussians.quats, gaussians.scales.exp(), compute_preci=False)
    radii, means2d, depths, conics, _ = _fully_fused_projection(gaussians.means, covars, w2c, K, width, height)
    centres = torch.linalg.inv(w2c)[:, :3, 3]
    coefficients = torch.cat([gaussians.sh0, gaussians.shN], dim=1).expand(len(w2c), -1, -1, -1)
    directions = gaussians.means[None] - centres[:, None]
    colours = torch.clamp_min(_spherical_harmonics(gaussians.sh_degree, directions, coefficients) + 0.5, 0)
    return radii, means2d, depths, conics, colours


def rasterize_densely(
    gaussians: Gaussians, w2c: Tensor, K: Tensor, width: int, height: int, cutoffs: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """RGB (C, H, W, 3), alpha (C, H, W), expected depth (C, H, W) in float64."""
    gaussians, w2c, K = gaussians.map(lambda t: t.double()), w2c.double(), K.double()
    _, means2d, depths, conics, colours = project_with_gsplat(gaussians, w2c, K, width, height)
    opacities = gaussians.opacities.sigmoid()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], dim=-1).double()
    views = []
    for c in range(len(w2c)):
        rgb = torch.zeros(height, width, 3, dtype=torch.float64)
        depth = torch.zeros(height, width, dtype=torch.float64)
        T = torch.ones(height, width, dtype=torch.float64)
        done = torch.zeros(height, width, dtype=torch.bool)
        for n in torch.argsort(depths[c], stable=True).tolist():
            if depths[c, n] < 0.01:
                continue
            d = means2d[c, n] - pixels
            a, b, cc = conics[c, n]
            sigma = 0.5 * (a * d[..., 0] ** 2 + cc * d[..., 1] ** 2) + b * d[..., 0] * d[..., 1]
            alpha = torch.clamp_max(opacities[n] * torch.exp(-sigma), 0.999)
            if cutoffs:
                alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
                done = done | (T * (1 - alpha) <= 1e-4)
                alpha = torch.where(done, 0.0, alpha)
            weight = T * alpha
            rgb = rgb + weight[..., None] * colours[c, n]
            depth = depth + weight * depths[c, n]
            T = T * (1 - alpha)
        views.append((rgb, 1 - T, depth / (1 - T).clamp_min(1e-10)))
    rgbs, alphas, expected = zip(*views, strict=True)
    return torch.stack(rgbs), torch.stack(alphas), torch.stack(expected)
