"""How a fit learns: the weights of its loss, and Adam with its learning rates, which fall along a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-15


@dataclass(frozen=True)
class FitSettings:
    """Weights and Adam learning rates of a fit; rates fall to a tenth along a cosine."""

    ssim_weight: float = 0.2
    disparity_weight: float = 0.3
    coverage_weight: float = 0.2
    """Of 1 - alpha where something was seen: keeps surfaces closed between the pixels that made them."""
    offset_lr: float = 0.08
    """Of the means, in units of each Gaussian's own radius."""
    scales_lr: float = 0.01
    quats_lr: float = 0.004
    opacities_lr: float = 0.03
    sh0_lr: float = 0.01
    shN_lr: float = 0.0005

    def rate(self, name: str) -> float:
        """The learning rate at the first step of the parameter called `name`."""
        return float(getattr(self, f"{name}_lr"))


def cosine(t: float) -> float:
    """The share of a learning rate that is left after the share t of the steps."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t))
