"""FID (Heusel et al. 2017): the Frechet distance of two sets of pictures in the features of the Inception of 2015.

The network is the one that all published FIDs use, TensorFlow's, as pytorch-fid ported it: average pooling leaves the
padding out, and the last block pools by the maximum. Its weights are not shipped: give pytorch-fid's file
(`pt_inception-2015-12-05-6726825d.pth`, about 95 MB), as it is or as safetensors under the same names.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import WorldWarpError

SIDE_PX = 299
FEATURES = 2048
BATCH = 32

Conv = tuple[str, int, tuple[int, int], int]
"""Name, channels out, kernel (padded to keep the size), stride (padded by nothing where it is 2)."""
Chain = tuple[Conv | tuple[Conv, Conv], ...]
"""Convolutions one after the other; a pair is two that both see what came before."""

ONE, THREE, FIVE, WIDE, TALL, FLAT, HIGH = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)


class Inception(nn.Module):
    """(N, 3, H, W) pictures in [0, 1] -> (N, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, THREE, 2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, THREE, 1, padding=(0, 0))
        self.Conv2d_2b_3x3 = _Convolution(32, 64, THREE, 1)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, ONE, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, THREE, 1, padding=(0, 0))
        self.Mixed_5b = _small(192, 32)
        self.Mixed_5c = _small(256, 64)
        self.Mixed_5d = _small(288, 64)
        self.Mixed_6a = _Block(
            288,
            (
                (("branch3x3", 384, THREE, 2),),
                (("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 2)),
            ),
        )
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_middle, (128, 160, 160, 192))
        self.Mixed_7a = _Block(
            768,
            (
                (("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)),
                (
                    ("branch7x7x3_1", 192, ONE, 1),
                    ("branch7x7x3_2", 192, WIDE, 1),
                    ("branch7x7x3_3", 192, TALL, 1),
                    ("branch7x7x3_4", 192, THREE, 2),
                ),
            ),
        )
        self.Mixed_7b = _large(1280, "mean")
        self.Mixed_7c = _large(2048, "max")
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Inception:
        """Reads the weights; a pickle is read by torch's restricted reader, which takes tensors alone.

        Raises:
            WorldWarpError: `no_weights` or `bad_weights`.
        """
        if not path.is_file():
            raise WorldWarpError("no_weights", f"There are no Inception weights at {path}.")
        network = cls()
        try:
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            wanted = {name: values.float() for name, values in found.items() if not name.startswith(("fc.", "Aux"))}
            network.load_state_dict(wanted, strict=True)
        except (RuntimeError, SafetensorError, pickle.UnpicklingError, AttributeError, EOFError) as error:
            raise WorldWarpError(
                "bad_weights", f"{path} does not hold the Inception weights that FID is defined by: {error}"
            ) from error
        return network.to(device).eval()

    def forward(self, pictures: Tensor) -> Tensor:
        x = 2 * F.interpolate(pictures, (SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


@torch.no_grad()
def inception_features(pictures: Tensor, network: Inception) -> Tensor:
    """(N, 2048)."""
    return torch.cat([network(some) for some in pictures.split(BATCH)])


def frechet_distance(made: Tensor, truth: Tensor) -> float:
    """Of two sets of features (N, D) and (M, D), as Gaussians. Biased upwards by few samples: always say how many."""
    (mean, spread), (other_mean, other_spread) = ((x.double().mean(0), x.double().T.cov()) for x in (made, truth))
    # The eigenvalues of a product of two covariances are real and not negative, but for rounding.
    roots = torch.linalg.eigvals(spread @ other_spread).real.clamp_min(0).sqrt().sum()
    return float((mean - other_mean).square().sum() + spread.trace() + other_spread.trace() - 2 * roots)


class _Convolution(nn.Module):
    def __init__(
        self, channels: int, out: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        if padding is None:
            padding = (0, 0) if stride == 2 else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Chains side by side, and a pooling: by two with nothing after it, or in place with a convolution after it."""

    def __init__(self, channels: int, chains: tuple[Chain, ...], pool: str = "", pooled: int = 0) -> None:
        super().__init__()
        self._chains, self._pool = chains, pool
        for chain in chains:
            before = channels
            for step in chain:
                convs = (step,) if isinstance(step[0], str) else step
                for name, out, kernel, stride in convs:  # type: ignore[misc]
                    self.add_module(name, _Convolution(before, out, kernel, stride))  # type: ignore[arg-type]
                before = sum(conv[1] for conv in convs)  # type: ignore[misc]
        if pool:
            self.branch_pool = _Convolution(channels, pooled, ONE, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for chain in self._chains:
            y = x
            for step in chain:
                names = [step[0]] if isinstance(step[0], str) else [conv[0] for conv in step]  # type: ignore[index]
                y = torch.cat([self.get_submodule(str(name))(y) for name in names], 1)
            parts.append(y)
        if not self._pool:
            return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
        same = F.max_pool2d(x, 3, 1, 1) if self._pool == "max" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*parts, self.branch_pool(same)], 1)


def _small(channels: int, pooled: int) -> _Block:
    return _Block(
        channels,
        (
            (("branch1x1", 64, ONE, 1),),
            (("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, FIVE, 1)),
            (("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 1)),
        ),
        "mean",
        pooled,
    )


def _middle(narrow: int) -> _Block:
    return _Block(
        768,
        (
            (("branch1x1", 192, ONE, 1),),
            (("branch7x7_1", narrow, ONE, 1), ("branch7x7_2", narrow, WIDE, 1), ("branch7x7_3", 192, TALL, 1)),
            (
                ("branch7x7dbl_1", narrow, ONE, 1),
                ("branch7x7dbl_2", narrow, TALL, 1),
                ("branch7x7dbl_3", narrow, WIDE, 1),
                ("branch7x7dbl_4", narrow, TALL, 1),
                ("branch7x7dbl_5", 192, WIDE, 1),
            ),
        ),
        "mean",
        192,
    )


def _large(channels: int, pool: str) -> _Block:
    return _Block(
        channels,
        (
            (("branch1x1", 320, ONE, 1),),
            (("branch3x3_1", 384, ONE, 1), (("branch3x3_2a", 384, FLAT, 1), ("branch3x3_2b", 384, HIGH, 1))),
            (
                ("branch3x3dbl_1", 448, ONE, 1),
                ("branch3x3dbl_2", 384, THREE, 1),
                (("branch3x3dbl_3a", 384, FLAT, 1), ("branch3x3dbl_3b", 384, HIGH, 1)),
            ),
        ),
        pool,
        192,
    )
