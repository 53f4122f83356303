"""Loss and gradients of a fit's step as CUDA computes them, on the CPU: gsplat's own reference projects, Triton's
interpreter draws, and nothing is compiled.

    TRITON_INTERPRET=1 TORCHDYNAMO_DISABLE=1 python scene_interpreted.py CASES RESULTS

CASES is a torch file: a list of dicts with the six tensors of `gaussians`, the rows that may move, those of `views`,
and the number of the `view`. RESULTS gets, for each, the loss, the room needed and the gradients by name.
"""

import sys

import gsplat
import torch
from gsplat.cuda import _torch_impl as reference

from worldwarp_core.splats.fit import FitSettings, FitViews, let_move
from worldwarp_core.splats.fit_cuda import CudaScene
from worldwarp_core.splats.gaussians import Gaussians


def project(means, covars, quats, scales, viewmats, Ks, width, height, *, opacities, **options):
    assert covars is None
    assert opacities.shape == (len(means),)  # they only tighten the radii
    covars, _ = reference._quat_scale_to_covar_preci(quats, scales, True, False)
    return reference._fully_fused_projection(means, covars, viewmats, Ks, width, height, **options)


def stepped(case):
    gaussians = Gaussians(**case["gaussians"])
    moves = torch.zeros(len(gaussians), dtype=torch.bool)
    moves[case["rows"]] = True
    moving = let_move(gaussians[case["rows"]], with_shN=True)
    scene = CudaScene(moving, gaussians[torch.nonzero(~moves).squeeze(1)], FitViews(**case["views"]), FitSettings())
    enough = scene.room
    scene.room = 500
    loss, needed = scene.loss(torch.tensor([case["view"]]))
    gradients = torch.autograd.grad(loss, list(moving.learned.values()))
    named = dict(zip(moving.learned, gradients, strict=True))
    return {"loss": loss.detach(), "needed": needed, "room": enough, "gradients": named}


if __name__ == "__main__":
    gsplat.fully_fused_projection = project
    torch.save([stepped(case) for case in torch.load(sys.argv[1])], sys.argv[2])
