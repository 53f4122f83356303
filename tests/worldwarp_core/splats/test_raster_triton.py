"""The Triton kernels, run by Triton's interpreter on the CPU, against every pixel meeting every Gaussian."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

ROOT = Path(__file__).parents[3]
WIDTH, HEIGHT = 21, 13
COUNTS = (1, 40, 150)
NAMES = ("means2d", "conics", "colours", "depths", "opacities")


def splats(count, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    means2d = rand(count, 2) * torch.tensor([WIDTH + 6.0, HEIGHT + 6.0]) - 3
    sigma, turn = 0.8 + 2 * rand(count, 2), 3.14 * rand(count)
    c, s = turn.cos(), turn.sin()
    inverse = 1 / sigma.square()
    conics = torch.stack(
        [
            c * c * inverse[:, 0] + s * s * inverse[:, 1],
            c * s * (inverse[:, 0] - inverse[:, 1]),
            s * s * inverse[:, 0] + c * c * inverse[:, 1],
        ],
        1,
    )
    radii = (3.4 * sigma.amax(1, keepdim=True)).ceil().int().expand(-1, 2).contiguous()
    opacities = rand(count)
    opacities[::7] = 0.9999  # some reach the largest alpha, and end what is seen behind them
    return [means2d, conics, rand(count, 3), 1 + rand(count), opacities], radii


def slow_draw(means2d, conics, colours, depths, opacities):
    """By gsplat's rules, with every pixel looking at every Gaussian, nearest first."""
    order = depths.argsort(stable=True)
    means2d, conics, colours, depths, opacities = (t[order] for t in (means2d, conics, colours, depths, opacities))
    ys, xs = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    dx, dy = (means2d[:, i, None, None] - axis for i, axis in enumerate((xs, ys)))
    a, b, c = (conics[:, i, None, None] for i in range(3))
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities[:, None, None] * torch.exp(-sigma)).clamp(max=0.999)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0)
    after = (1 - alpha).cumprod(0)
    drawn = after > 1e-4
    alpha = torch.where(drawn, alpha, 0)
    before = torch.cat([torch.ones_like(after[:1]), (1 - alpha).cumprod(0)[:-1]])
    weight = alpha * before
    rgb = torch.einsum("nhw,nc->hwc", weight, colours)
    return rgb, torch.einsum("nhw,n->hw", weight, depths), weight.sum(0)


def case(count, seen=True):
    values, radii = splats(count)
    generator = torch.Generator().manual_seed(1)
    towards = [torch.randn(HEIGHT, WIDTH, *c, generator=generator) for c in ((3,), (), ())]
    return {"splats": values, "radii": radii * seen, "towards": towards, "width": WIDTH, "height": HEIGHT}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernels make of some splats, by their number; 0 are three splats that the camera does not see."""
    folder = tmp_path_factory.mktemp("triton")
    torch.save([case(3, seen=False), *map(case, COUNTS)], folder / "cases.pt")
    script = Path(__file__).with_name("draw_interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, folder / "cases.pt", folder / "results.pt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip((0, *COUNTS), torch.load(folder / "results.pt"), strict=True))


@pytest.mark.parametrize("count", COUNTS)
def test_pictures_and_gradients_are_those_of_a_slow_loop(interpreted, count):
    made = case(count)
    leaves = [t.requires_grad_() for t in made["splats"]]
    expected = slow_draw(*leaves)
    for got, wanted in zip(interpreted[count]["images"], expected, strict=True):
        assert torch.allclose(got, wanted, atol=2e-5), float((got - wanted).abs().max())
    sum((t * w).sum() for t, w in zip(expected, made["towards"], strict=True)).backward()
    for name, got, leaf in zip(NAMES, interpreted[count]["gradients"], leaves, strict=True):
        largest = float(leaf.grad.abs().max())
        assert torch.allclose(got, leaf.grad, atol=2e-4 * largest), (
            name,
            float((got - leaf.grad).abs().max()),
            largest,
        )


def test_what_the_camera_does_not_see_is_black_and_learns_nothing(interpreted):
    assert all((t == 0).all() for t in interpreted[0]["images"])
    assert all((t == 0).all() for t in interpreted[0]["gradients"])
