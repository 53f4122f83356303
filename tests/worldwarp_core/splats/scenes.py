"""Small random scenes and cameras for the tests of the rasteriser."""

import math

import numpy as np
import torch
from torch import Tensor

from worldwarp_core.splats.gaussians import Gaussians

WIDTH, HEIGHT = 37, 21  # odd, and no multiple of the tile


def random_gaussians(
    count: int, degree: int, seed: int, width: int = WIDTH, height: int = HEIGHT, spread: float = 1.1, size: float = 1.0
) -> Gaussians:
    """`count` Gaussians, 1 to 2.5 in front of a camera at the origin, over `spread` times its image, that cover it."""
    g = torch.Generator().manual_seed(seed)
    focal = float(width)
    z = 1 + 1.5 * torch.rand(count, generator=g)
    x = (torch.rand(count, generator=g) - 0.5) * spread * width / focal * z
    y = (torch.rand(count, generator=g) - 0.5) * spread * height / focal * z
    spacing = math.sqrt(width * height / max(count, 1)) * size
    scales = torch.log(spacing * z / focal)[:, None] + 0.5 * torch.randn(count, 3, generator=g)
    return Gaussians(
        means=torch.stack([x, y, z], dim=-1),
        quats=torch.randn(count, 4, generator=g),
        scales=scales,
        opacities=0.5 + 1.5 * torch.randn(count, generator=g),
        sh0=0.7 * torch.randn(count, 1, 3, generator=g),
        shN=0.2 * torch.randn(count, (degree + 1) ** 2 - 1, 3, generator=g),
    )


def trainable(gaussians: Gaussians, dtype: torch.dtype = torch.float32) -> Gaussians:
    return gaussians.map(lambda t: t.to(dtype).detach().requires_grad_())


def two_cameras(width: int = WIDTH, height: int = HEIGHT) -> tuple[Tensor, Tensor]:
    """`w2c` (2, 4, 4) and `K` (2, 3, 3) in float64: one at the origin, one moved, turned and off-centre."""
    w2c = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    turn, roll = 0.2, 0.1
    c, s = math.cos(turn), math.sin(turn)
    R_turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
    c, s = math.cos(roll), math.sin(roll)
    R_roll = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    w2c[1, :3, :3] = R_turn @ R_roll
    w2c[1, :3, 3] = torch.tensor([0.1, -0.05, 0.3])
    K = torch.zeros(2, 3, 3, dtype=torch.float64)
    K[:, 0, 0] = torch.tensor([1.0, 0.9]) * width
    K[:, 1, 1] = torch.tensor([1.0, 1.1]) * width
    K[:, 0, 2] = torch.tensor([0.5, 0.47]) * width
    K[:, 1, 2] = torch.tensor([0.5, 0.55]) * height
    K[:, 2, 2] = 1
    return w2c, K


def arrays(gaussians: Gaussians) -> dict[str, np.ndarray]:
    return {name: t.detach().contiguous().numpy() for name, t in gaussians.tensors().items()}
