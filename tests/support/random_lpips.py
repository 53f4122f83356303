"""LPIPS with random weights: a distance all the same, whose figures mean nothing."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from worldwarp_core.evaluation.lpips import Lpips


def random_lpips() -> dict[str, Tensor]:
    """The tensors of such a file, under the names that the evaluation reads."""
    torch.manual_seed(0)
    return {
        name.replace("heads.", "lin"): values.abs() if "heads" in name else values
        for name, values in Lpips().state_dict().items()
        if name not in ("shift", "scale")
    }


def save_random_lpips(folder: Path) -> Path:
    """Writes the file, and returns it."""
    save_file(random_lpips(), folder / "lpips.safetensors")
    return folder / "lpips.safetensors"
