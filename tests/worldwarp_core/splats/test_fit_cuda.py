"""What CUDA computes in a step of a fit against the CPU's loop, and what is compiled against what is not."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldwarp_core.splats.fit import FitSettings, FitViews, let_move, view_loss
from worldwarp_core.splats.fit_cuda import _loss_at, colours
from worldwarp_core.splats.gaussians import Gaussians
from worldwarp_core.splats.rasterize import rasterize
from worldwarp_core.splats.seed import SeedView, seed_gaussians

ROOT = Path(__file__).parents[3]
HEIGHT, WIDTH, VIEW = 12, 16, 1
K = torch.tensor([[16.0, 0, 8], [0, 16.0, 6], [0, 0, 1]])
EVERY, HALF = slice(None), slice(None, None, 2)


@pytest.fixture(scope="module")
def views():
    coarse = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    rgb = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic").permute(0, 2, 3, 1).clamp(0, 1)
    slope = 1 + 0.03 * torch.arange(HEIGHT)[:, None] + 0.021 * torch.arange(WIDTH)
    ones = torch.ones(2, HEIGHT, WIDTH)
    w2c = torch.eye(4).repeat(2, 1, 1)
    w2c[1, 0, 3] = 0.05
    return FitViews(rgb, (1 / slope).repeat(2, 1, 1), ones, ones, w2c, K.repeat(2, 1, 1))


@pytest.fixture(scope="module")
def seeds(views):
    everything = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    view = SeedView(views.rgb[0], 1 / views.disparity[0], everything, views.w2c[0], K)
    generator = torch.Generator().manual_seed(5)
    return seed_gaussians(view, 60, 50.0, 3)[0].map(
        lambda t: t + 0.03 * torch.randn(t.shape, generator=generator)  # no two at the same depth
    )


@pytest.fixture(scope="module")
def interpreted(seeds, views, tmp_path_factory):
    """Loss and gradients of a step in which all Gaussians may move, and of one in which every other one may."""
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")
    folder = tmp_path_factory.mktemp("scene")
    rows = [torch.arange(len(seeds))[part] for part in (EVERY, HALF)]
    cases = [{"gaussians": seeds.tensors(), "rows": r, "views": vars(views), "view": VIEW} for r in rows]
    torch.save(cases, folder / "cases.pt")
    script = Path(__file__).with_name("scene_interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, folder / "cases.pt", folder / "results.pt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("case", [0, 1], ids=["all move", "every other one moves"])
def test_loss_and_gradients_are_those_of_the_cpu(interpreted, seeds, views, case):
    rows = torch.arange(len(seeds))[(EVERY, HALF)[case]]
    moving = let_move(seeds[rows], with_shN=True)
    now = Gaussians(**{k: t.index_copy(0, rows, moving.now().tensors()[k]) for k, t in seeds.tensors().items()})
    render = rasterize(now, views.w2c[VIEW, None], views.K[VIEW, None], WIDTH, HEIGHT)
    seen = views.rgb[VIEW], views.disparity[VIEW], views.weight[VIEW], views.depth_weight[VIEW]
    loss = view_loss(render.rgb[0], render.alpha[0], render.depth[0], *seen, FitSettings())
    gradients = torch.autograd.grad(loss, list(moving.learned.values()))

    got = interpreted[case]
    assert float(got["loss"]) == pytest.approx(float(loss.detach()), abs=1e-6)
    for name, expected in zip(moving.learned, gradients, strict=True):
        error = (got["gradients"][name] - expected).norm() / expected.norm()
        assert error < 1e-5, (name, float(error))


def test_there_is_room_for_every_view_from_the_start(interpreted):
    for case in interpreted:
        assert 0 < int(case["needed"]) <= case["room"]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours_are_those_that_the_cpu_draws(seeds, degree):
    centre = torch.tensor([[0.3, -0.2, 0.1]])
    w2c = torch.eye(4)
    w2c[:3, 3] = -centre[0]
    shN = 0.2 * torch.randn(len(seeds), (degree + 1) ** 2 - 1, 3, generator=torch.Generator().manual_seed(1))
    coloured = Gaussians(**seeds.tensors() | {"shN": shN})
    flat = (colours(coloured.means, coloured.sh0, shN, centre) - 0.5) / (0.5 / math.sqrt(math.pi))
    same = Gaussians(**seeds.tensors() | {"sh0": flat[:, None], "shN": shN[:, :0]})
    drawn, expected = (rasterize(g, w2c[None], K[None], WIDTH, HEIGHT).rgb for g in (same, coloured))
    assert torch.allclose(drawn, expected, atol=1e-5)


def test_what_the_compiler_makes_of_the_loss_is_the_loss():
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    images = [t.requires_grad_() for t in (rand(HEIGHT, WIDTH, 3), rand(HEIGHT, WIDTH), rand(HEIGHT, WIDTH))]
    seen = rand(2, HEIGHT, WIDTH, 3), rand(2, HEIGHT, WIDTH), rand(2, HEIGHT, WIDTH), rand(2, HEIGHT, WIDTH)
    results = []
    # The back end that only traces and differentiates: generating code is for the GPU, and takes a CPU minutes.
    for loss_at in (_loss_at, torch.compile(_loss_at, backend="aot_eager")):
        loss = loss_at(*images, *seen, torch.tensor([VIEW]), FitSettings())
        results.append([loss.detach(), *torch.autograd.grad(loss, images)])
    for eager, traced in zip(*results, strict=True):
        assert torch.allclose(eager, traced, rtol=1e-5, atol=1e-7)
