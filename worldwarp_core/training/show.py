"""A sheet of clips to look at: `python -m worldwarp_core.training.show sheet.png`.

Each clip is three rows of frames over time: the truth, the warped prior, and its validity.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .clips import ClipBatch, ClipSource


def sheet(batch: ClipBatch, columns: int = 6) -> Tensor:
    """(3 n H, columns W, 3) uint8: three rows a clip, frames from the first to the last."""
    frames = batch.rgb.shape[1]
    chosen = [round(k * (frames - 1) / max(columns - 1, 1)) for k in range(columns)]
    rows = []
    for i in range(len(batch.rgb)):
        for pictures in (batch.rgb[i], batch.prior[i], batch.validity[i, :, None].expand(-1, 3, -1, -1)):
            rows.append(torch.cat([pictures[t].float().cpu() for t in chosen], 2))
    return (torch.cat(rows, 1).permute(1, 2, 0) * 255).round().to(torch.uint8)


def main() -> None:
    """Writes a sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a .png to write")
    parser.add_argument("--textures", type=Path, help="a texture file (.npz); procedural patterns alone without it")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the first world")
    parser.add_argument("--frames", type=int, default=13)
    parser.add_argument("--size", type=int, nargs=2, default=(72, 128), metavar=("H", "W"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    source = ClipSource(given.split, 0, tuple(given.size), given.frames, device=given.device, textures=given.textures)
    batch = source.batch(given.clips, given.first)
    Image.fromarray(sheet(batch).numpy()).save(given.out)
    for kind, moves, exact in zip(batch.kinds, batch.moves, batch.exact.tolist(), strict=True):
        print(f"{kind:10} {moves}{'' if exact else ' (made wrong)'}")


if __name__ == "__main__":
    main()
