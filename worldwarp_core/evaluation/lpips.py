"""LPIPS v0.1 with AlexNet: how different two pictures look (Zhang et al. 2018), as a loss and as a figure.

Weights come from one safetensors file: `features.conv{0..4}.weight/bias`, AlexNet's convolutions, and
`lin{0..4}.weight`, the metric's heads.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import WorldWarpError

CONVOLUTIONS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
"""Channels in and out, kernel, stride, padding."""
POOLED = (1, 2)
"""Convolutions that follow a max-pooling."""


class Lpips(nn.Module):
    """Called with two batches of pictures, (N, 3, H, W) in [0, 1], gives (N,) distances."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {f"conv{i}": nn.Conv2d(c, d, k, s, p) for i, (c, d, k, s, p) in enumerate(CONVOLUTIONS)}
        )
        self.heads = nn.ModuleList(nn.Conv2d(c[1], 1, 1, bias=False) for c in CONVOLUTIONS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Lpips:
        """Reads the weights.

        Raises:
            WorldWarpError: `no_weights` or `bad_weights`.
        """
        if not path.is_file():
            raise WorldWarpError(
                "no_weights",
                f"There are no LPIPS weights at {path}: a safetensors file with features.conv0..4 and lin0..4 is "
                "needed.",
            )
        metric = cls()
        try:
            found = {name.replace("lin", "heads."): values.float() for name, values in load_file(path).items()}
            metric.load_state_dict(found | {"shift": metric.shift, "scale": metric.scale})
        except (RuntimeError, SafetensorError) as error:
            raise WorldWarpError("bad_weights", f"{path} holds no LPIPS weights with AlexNet: {error}") from error
        return metric.to(device).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        distance = first.new_zeros(len(first), dtype=torch.float32)
        pairs = zip(self.layers(first), self.layers(second), self.heads, strict=True)
        for one, other, head in pairs:
            difference = (_unit(one) - _unit(other)).square()
            distance = distance + head(difference)[:, 0].mean((1, 2))
        return distance

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """AlexNet's five convolutions after their ReLU, (N, C, h, w) each."""
        x = (pictures * 2 - 1 - self.shift) / self.scale
        layers = []
        for i in range(len(CONVOLUTIONS)):
            if i in POOLED:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(self.features[f"conv{i}"](x))
            layers.append(x)
        return layers


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
