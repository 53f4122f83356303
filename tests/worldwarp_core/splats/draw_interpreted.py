"""Draws with the Triton kernels under Triton's interpreter, which a process must choose before it imports triton.

    TRITON_INTERPRET=1 python draw_interpreted.py CASES RESULTS

CASES is a torch file: a list of dicts with `splats` (five tensors), `radii`, `towards` (gradients of what is drawn),
`width` and `height`. RESULTS gets, for each, what was drawn and the gradients of the splats.
"""

import sys

import torch

from worldwarp_core.splats.intersect import tile_lists
from worldwarp_core.splats.raster_triton import TILE, draw


def drawn(case):
    leaves = [t.requires_grad_() for t in case["splats"]]
    width, height = case["width"], case["height"]
    with torch.no_grad():
        lists = tile_lists(leaves[0], case["radii"], leaves[3], width, height, TILE, 4000)
    images = draw(*leaves, lists.ids, lists.offsets, width, height)
    sum((t * w).sum() for t, w in zip(images, case["towards"], strict=True)).backward()
    return {"images": [t.detach() for t in images], "gradients": [t.grad for t in leaves]}


if __name__ == "__main__":
    torch.save([drawn(case) for case in torch.load(sys.argv[1])], sys.argv[2])
