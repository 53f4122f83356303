"""Gaussians as tensors, in the cache's own frame, with gsplat's names and encodings."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians, encoded as they are optimised.

    `scales` are logs and `opacities` logits; rasterisers take the activated values (exp, sigmoid, unit quaternions).
    """

    means: Tensor  # (N, 3)
    quats: Tensor  # (N, 4) wxyz, not necessarily unit length
    scales: Tensor  # (N, 3) natural log of the standard deviations
    opacities: Tensor  # (N,) logits
    sh0: Tensor  # (N, 1, 3)
    shN: Tensor  # (N, K, 3) with K = 0, 3, 8 or 15

    def __post_init__(self) -> None:
        n = len(self.means)
        assert self.means.shape == (n, 3), self.means.shape
        assert self.quats.shape == (n, 4), self.quats.shape
        assert self.scales.shape == (n, 3), self.scales.shape
        assert self.opacities.shape == (n,), self.opacities.shape
        assert self.sh0.shape == (n, 1, 3), self.sh0.shape
        assert self.shN.dim() == 3, self.shN.shape
        assert self.shN.shape[0] == n, self.shN.shape
        assert self.shN.shape[1] in (0, 3, 8, 15), self.shN.shape

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.shN.shape[1]]

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def map(self, fn) -> Gaussians:  # type: ignore[no-untyped-def]
        """The same Gaussians with `fn` applied to every tensor (detach, to, indexing by rows)."""
        return replace(self, **{name: fn(t) for name, t in self.tensors().items()})

    def __getitem__(self, rows: Tensor) -> Gaussians:
        return self.map(lambda t: t[rows])


def concatenate(parts: list[Gaussians]) -> Gaussians:
    return Gaussians(**{name: torch.cat([p.tensors()[name] for p in parts]) for name in parts[0].tensors()})
