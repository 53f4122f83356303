"""How close generated pictures are to true ones: PSNR, SSIM, LPIPS, the gradient spectrum, and KID.

Pictures are (N, 3, H, W) float in [0, 1]; figures are per picture, (N,), unless said otherwise. `where` (N, H, W) bool
counts pixels; a picture without enough of them gets nan, so that `torch.nanmedian` leaves it out.
PSNR rewards blur where nothing is known: in holes, judge by the spectrum and by KID.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .lpips import Lpips

LUMA = (0.299, 0.587, 0.114)
SPECTRUM_LEVELS = 4
"""Octaves of the gradient spectrum: steps over 1, 2, 4 and 8 pixels."""
LEAST_PIXELS = 64
"""Pixels below which a figure over a region says nothing."""
NOISE_FLOOR = (0.5 / 255) ** 2
"""Gradient energy of 8-bit rounding: below it, no detail can be told from none."""
KID_SUBSET = 500
"""Crops of a KID subset, at most: the estimate is unbiased at any size."""
KID_SUBSETS = 100
KID_FLOOR = 0.1
"""Least scale of a feature, over the median of all."""


def psnr(made: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """(N,) decibels, at most 100; over the pixels of `where` only."""
    _check(made, truth, where)
    error = (made.float() - truth.float()).square().mean(1)
    if where is None:
        mse = error.mean((1, 2))
    else:
        count = where.sum((1, 2))
        mse = torch.where(count > 0, (error * where).sum((1, 2)) / count.clamp_min(1), torch.nan)
    return -10 * mse.clamp_min(1e-10).log10()


def ssim(made: Tensor, truth: Tensor) -> Tensor:
    """(N,) structural similarity (Wang et al. 2004): 11x11 Gaussian of sigma 1.5, each colour, borders left out."""
    _check(made, truth, None)
    assert min(made.shape[-2:]) >= 11, made.shape
    taps = torch.arange(-5, 6, dtype=torch.float32, device=made.device)
    window = (-(taps**2) / (2 * 1.5**2)).exp()
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        rows = F.conv2d(x, window.view(1, 1, 11, 1).expand(3, 1, 11, 1), groups=3)
        return F.conv2d(rows, window.view(1, 1, 1, 11).expand(3, 1, 1, 11), groups=3)

    x, y = made.float(), truth.float()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))


def gradient_spectrum(pictures: Tensor, where: Tensor | None = None) -> Tensor:
    """(N, SPECTRUM_LEVELS) log of the mean squared step in brightness over 1, 2, 4 ... pixels, as averaged so far."""
    weights = torch.tensor(LUMA, device=pictures.device)
    now = torch.einsum("nchw,c->nhw", pictures.float(), weights)[:, None]
    count = torch.ones_like(now) if where is None else where[:, None].float()
    levels = []
    for level in range(SPECTRUM_LEVELS):
        if level:
            now, count = F.avg_pool2d(now, 2), F.avg_pool2d(count, 2)
        inside = (count > 0.999).float()
        across = inside[..., 1:] * inside[..., :-1]
        down = inside[..., 1:, :] * inside[..., :-1, :]
        energy = (now.diff(dim=-1).square() * across).sum((1, 2, 3)) + (now.diff(dim=-2).square() * down).sum((1, 2, 3))
        pixels = across.sum((1, 2, 3)) + down.sum((1, 2, 3))
        enough = pixels >= max(LEAST_PIXELS >> (2 * level), 4)
        levels.append(torch.where(enough, (energy / pixels.clamp_min(1) + NOISE_FLOOR).log(), torch.nan))
    return torch.stack(levels, 1)


def spectrum_distance(made: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """(N,) mean difference of the gradient spectra, natural log units: 0.7 is twice, or half, the energy.

    A blur lacks the fine levels, noise has too much of them; where the details lie does not matter.
    """
    _check(made, truth, where)
    return (gradient_spectrum(made, where) - gradient_spectrum(truth, where)).abs().nanmean(1)


def crops(pictures: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, 3, size, size) random crops, as many from each picture as from any other; a CPU generator.

    The same seed crops the same places of another set of the same shape, which makes their comparison steadier.
    """
    n, _, height, width = pictures.shape
    assert size <= min(height, width), (size, pictures.shape)
    picture = torch.arange(count) % n
    top = (torch.rand(count, generator=generator) * (height - size + 1)).long()
    left = (torch.rand(count, generator=generator) * (width - size + 1)).long()
    chosen = zip(picture.tolist(), top.tolist(), left.tolist(), strict=True)
    return torch.stack([pictures[i, :, t : t + size, l : l + size] for i, t, l in chosen])


@torch.no_grad()
def alexnet_features(pictures: Tensor, network: Lpips, batch: int = 64) -> Tensor:
    """(N, 1152) means over each picture of all five layers of LPIPS's AlexNet."""
    parts = [
        torch.cat([layer.mean((2, 3)) for layer in network.layers(some.float())], 1) for some in pictures.split(batch)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Kid:
    """A kernel inception distance, here on AlexNet's features, and where it lies with 95% confidence."""

    value: float
    low: float
    high: float


def kid(made: Tensor, truth: Tensor, generator: torch.Generator) -> Kid:
    """The squared maximum mean discrepancy of two sets of features (N, D) and (M, D), kernel (x . y / D + 1)^3.

    Unbiased, so that two draws of one distribution give about 0, below as often as above (Binkowski et al. 2018).
    The value uses all features; the interval comes from `KID_SUBSETS` random subsets. Feature means and scales are
    taken from the truth, so that no layer outweighs the others; a feature that the truth hardly ever shows counts by
    `KID_FLOOR` of the median scale, or one crop that shows it would outweigh everything. `generator` is a CPU one.
    """
    assert made.ndim == truth.ndim == 2, (made.shape, truth.shape)
    assert min(len(made), len(truth)) >= 4, (made.shape, truth.shape)
    mean, scale = truth.double().mean(0), truth.double().std(0)
    scale = scale.clamp_min(max(KID_FLOOR * float(scale.median()), 1e-6))
    x, y = ((features.double() - mean) / scale for features in (made, truth))
    dim = x.shape[1]
    kernels = [(a @ b.T / dim + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    size = min(KID_SUBSET, len(x) // 2, len(y) // 2)
    drawn = []
    for _ in range(KID_SUBSETS):
        i = torch.randperm(len(x), generator=generator)[:size].to(x.device)
        j = torch.randperm(len(y), generator=generator)[:size].to(x.device)
        drawn.append(_mmd(kernels[0][i][:, i], kernels[1][j][:, j], kernels[2][i][:, j]))
    spread = torch.tensor(drawn, dtype=torch.float64).std()
    # a subset's spread, less by the root of how many times more features the value has
    error = 1.96 * float(spread) * (size / min(len(x), len(y))) ** 0.5
    value = _mmd(*kernels)
    return Kid(value, value - error, value + error)


def _mmd(xx: Tensor, yy: Tensor, xy: Tensor) -> float:
    n, m = len(xx), len(yy)
    within_x = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    within_y = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def _check(made: Tensor, truth: Tensor, where: Tensor | None) -> None:
    assert made.ndim == 4, made.shape
    assert made.shape[1] == 3, made.shape
    assert made.shape == truth.shape, (made.shape, truth.shape)
    assert where is None or where.shape == (made.shape[0], *made.shape[2:]), where.shape
