"""A critic: a small network that learns to tell made pictures from true ones, patch by patch, where nothing is known.

What nobody has seen cannot be made right, only likely. Absolute errors reward the mean of all that is likely, which is
a smear. The critic knows no truth for a place; it knows what worlds look like, and pulls what is made there towards it.

It sees three frames that follow each other at once, so that detail which flickers gives itself away, and judges patches
of 16 pixels that hold something unknown, each by the 93 pixels around. Spectral norms and hinge losses, as inpainting
uses them (Yu et al. 2019, arXiv 1806.03589, section 3.3).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .precision import full
from .trainer import average_gradients

TOGETHER = 3
"""Frames in a row."""
WIDTHS = (64, 128, 256, 256)
"""Of its convolutions, each at half the size of the one before."""
LEARNING_RATE = 4e-4
BETAS = (0.5, 0.9)


class Critic(nn.Module):
    """(N, 9, H, W), three pictures in [0, 1] -> (N, 1, H/16, W/16): above 0 looks true."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3 * TOGETHER
        for width in widths:
            layers += [spectral_norm(nn.Conv2d(inputs, width, 5, 2, 2)), nn.LeakyReLU(0.2)]
            inputs = width
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(inputs, 1, 3, padding=1)))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures * 2 - 1)


class Judgement:
    """The critic with what it learns by. It starts anew with every run: it is no part of what ships."""

    def __init__(self, device: torch.device, widths: tuple[int, ...] = WIDTHS) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # the same in all processes
            self.critic = Critic(widths).to(device)
        self._optimiser = torch.optim.Adam(self.critic.parameters(), LEARNING_RATE, BETAS)
        self._device = device

    def pull(self, made: Tensor, truth: Tensor, unknown: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Which way each value of `made` should go to look true, and figures for the log; the critic learns meanwhile.

        Args:
            made, truth: (N, 3, 3, H, W) in [0, 1], three frames that follow each other.
            unknown: (N, 3, H, W) bool, where `made` had nothing to go by: pulled are these pixels alone.

        Returns:
            Like `made`: to be subtracted; at mean 1 over the unknown pixels, 0 elsewhere.
        """
        assert made.shape == truth.shape, (made.shape, truth.shape)
        assert made.shape[1:3] == (TOGETHER, 3), made.shape
        assert unknown.shape == made.shape[:2] + made.shape[3:], (unknown.shape, made.shape)
        with full(self._device):
            own = made.detach().float().requires_grad_(True)
            share = unknown.float().mean(1, keepdim=True)
            of_made, of_truth = (self.critic(x.flatten(1, 2)) for x in (own.detach(), truth.float()))
            weight = F.adaptive_avg_pool2d(share, of_made.shape[-2:])
            weight = weight / weight.sum().clamp_min(1e-6)
            loss = (weight * (F.relu(1 + of_made) + F.relu(1 - of_truth))).sum()
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if dist.is_initialized():
                average_gradients(list(self.critic.parameters()), dist.get_world_size())
            self._optimiser.step()

            liked = (weight * self.critic(own.flatten(1, 2))).sum()
            (way,) = torch.autograd.grad(-liked, own)
            way = way * unknown[:, :, None]
            size = way.abs().sum() / (3 * unknown.sum()).clamp_min(1)
        figures = {"critic": loss.detach(), "liked": liked.detach()}
        return way / size.clamp_min(1e-12), figures
