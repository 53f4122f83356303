"""LPIPS v0.1 with AlexNet: how different two pictures look (Zhang et al. 2018), as a loss and as a figure.

Weights come from the package `lpips`, or from one safetensors file: `features.conv{0..4}.weight/bias`, AlexNet's
convolutions, and `lin{0..4}.weight`, the metric's heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
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
PACKAGE = "package lpips"
PACKAGED = ("net.slice1.0", "net.slice2.3", "net.slice3.6", "net.slice4.8", "net.slice5.10")
"""What the package calls the convolutions."""


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
        try:
            return cls.of(load_file(path), device)
        except (RuntimeError, SafetensorError) as error:
            raise WorldWarpError("bad_weights", f"{path} holds no LPIPS weights with AlexNet: {error}") from error

    @classmethod
    def of_package(cls, device: torch.device | str = "cpu") -> Lpips:
        """Takes the weights of the package `lpips`, which fetches AlexNet's at its first use.

        Raises:
            WorldWarpError: `no_weights`.
        """
        if not package_is_here():
            raise WorldWarpError(
                "no_weights",
                "LPIPS needs AlexNet's weights: `pip install -c constraints.txt lpips` on a machine that is online, or "
                "give a safetensors file with features.conv0..4 and lin0..4 (--lpips FILE).",
            )
        try:
            import lpips

            state = lpips.LPIPS(net="alex", verbose=False).state_dict()
        except (OSError, ImportError, RuntimeError) as error:  # no connection, or a torchvision for another torch
            raise WorldWarpError("no_weights", f"The package lpips cannot give its weights: {error}") from error
        found = {f"lin{i}.weight": state[f"lin{i}.model.1.weight"] for i in range(len(CONVOLUTIONS))}
        for i, name in enumerate(PACKAGED):
            found |= {f"features.conv{i}.{part}": state[f"{name}.{part}"] for part in ("weight", "bias")}
        return cls.of(found, device)

    @classmethod
    def of(cls, found: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Lpips:
        """Of tensors under the names that a file has; raises `RuntimeError` where they are not these."""
        metric = cls()
        state = {name.replace("lin", "heads."): values.float() for name, values in found.items()}
        metric.load_state_dict(state | {"shift": metric.shift, "scale": metric.scale})
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


def package_is_here() -> bool:
    """Whether the package `lpips` is installed."""
    return find_spec("lpips") is not None


def find_lpips(path: Path | None, device: torch.device | str = "cpu") -> tuple[Lpips | None, str]:
    """The metric of the file, or of the package where no file is given; None, and why, where that has none.

    Raises:
        WorldWarpError: as `Lpips.load`, where a file was asked for.
    """
    if path is not None:
        return Lpips.load(path, device), ""
    try:
        return Lpips.of_package(device), ""
    except WorldWarpError as error:
        return None, error.message


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
