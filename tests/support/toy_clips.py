"""Clips of drifting checkers, made in no time: what the training code is tested on."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ToyBatch:
    rgb: torch.Tensor
    depth: torch.Tensor
    prior: torch.Tensor
    validity: torch.Tensor

    @property
    def history(self):
        return self.rgb


class ToySource:
    """Each seed a colour, a direction and a hole; the prior is the clip, dimmer, without the hole."""

    def __init__(self, size=(32, 48), frames=9):
        self.size, self.frames = size, frames

    def batch(self, n, first_seed):
        assert not torch.is_autocast_enabled("cpu"), "worlds are made in full precision"
        return ToyBatch(
            *(torch.stack(parts) for parts in zip(*(self._clip(first_seed + i) for i in range(n)), strict=True))
        )

    def _clip(self, seed):
        g = torch.Generator().manual_seed(seed)
        height, width = self.size
        t, y, x = torch.meshgrid(torch.arange(self.frames), torch.arange(height), torch.arange(width), indexing="ij")
        drift = torch.randint(-1, 2, (2,), generator=g)
        checker = (((y + drift[0] * t) // 8 + (x + drift[1] * t) // 8) % 2).float()
        colour = torch.rand((3, 1, 1), generator=g)
        rgb = colour * (1 - 0.3 * checker[:, None])
        validity = torch.ones(self.frames, height, width)
        validity[1:, :, width // 2 :] = 0
        depth = 2 + checker
        depth[:, :4] = torch.inf
        return rgb.half(), depth, (0.9 * rgb * validity[:, None]).half(), validity
