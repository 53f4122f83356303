"""How training judges pictures: PSNR, LPIPS, the baseline of a prior with its holes inpainted, and a sheet to look at.

Pictures are (N, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from ..loop.fill import INPAINT_RADIUS_PX
from ..loop.priors import VALID


def psnr(made: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Decibels, the mean over pictures; `where` (N, H, W) counts pixels, and pictures without any are left out."""
    error = (made.float().clamp(0, 1) - truth.float()).square().mean(1)
    if where is None:
        mse = error.mean((1, 2))
    else:
        count = where.float().sum((1, 2))
        mse = ((error * where).sum((1, 2)) / count)[count > 0]
    return float((-10 * mse.clamp_min(1e-8).log10()).mean())


def detail(made: Tensor, truth: Tensor, where: Tensor) -> float:
    """How much goes on in made pictures, as a share of what goes on in true ones: differences of neighbouring pixels.

    `where` (N, H, W) counts pixels. 1 is as much; a smear has less.
    """
    across = [((x[..., 1:] - x[..., :-1]).abs().mean(1) * where[..., 1:]).sum() for x in (made.float(), truth.float())]
    return float(across[0] / across[1].clamp_min(1e-9))


def inpainted(prior: Tensor, validity: Tensor) -> Tensor:
    """Priors with what is not valid closed by OpenCV (Telea), as the fill without any model does it."""
    pictures = (prior.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    holes = (validity < VALID).cpu().numpy().astype(np.uint8)
    closed = [
        picture
        if hole.all()
        else cv2.inpaint(np.ascontiguousarray(picture), hole, INPAINT_RADIUS_PX, cv2.INPAINT_TELEA)
        for picture, hole in zip(pictures, holes, strict=True)
    ]
    return torch.from_numpy(np.stack(closed)).permute(0, 3, 1, 2).to(prior.device).float() / 255


def contact_sheet(columns: list[Tensor]) -> np.ndarray:
    """(rows * H, columns * W, 3) uint8: each (N, 3, H, W) a column, one picture a row."""
    rows = torch.cat([column.float().clamp(0, 1).cpu() for column in columns], 3)
    return (torch.cat(list(rows), 1).permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
