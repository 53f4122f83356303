"""What CUDA computes in a step of a fit, as far as a CPU can tell."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worldwarp_core.splats.fit_cuda import colours
from worldwarp_core.splats.gaussians import Gaussians
from worldwarp_core.splats.rasterize import rasterize
from worldwarp_core.splats.seed import SeedView, seed_gaussians

ROOT = Path(__file__).parents[3]
HEIGHT, WIDTH = 12, 16
K = torch.tensor([[16.0, 0, 8], [0, 16.0, 6], [0, 0, 1]])


def test_the_triton_kernels_pass_their_tests_under_the_interpreter():
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")
    environment = os.environ | {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib"]
    tests = Path(__file__).with_name("interpreted_triton.py")
    done = subprocess.run([*command, tests], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SPLATS = "means2d *fp32, conics *fp32, opacities *fp32"
LISTS = "splats *i64, ids *i32, offsets *i32"
BOUNDS = "min_alpha fp32, slack fp32, rounding fp32"
INPUTS = "start_means radius start_scales offset scales opacities sh0 shN centre means deviations covers colours"
GRADIENTS = "v_means v_deviations v_covers v_colours v_offset v_scales v_opacities v_sh0 v_shN"
LEASH = "n i32, max_drift fp32, log_growth fp32, max_sh0 fp32"


def floats(names):
    return ", ".join(f"{name} *fp32" for name in names.split())


PICTURE = floats("rgb depth_sum alpha targets disparities weights depth_weights") + ", view *i64"
SIZE = "height i32, width i32"
KERNELS = {
    "_touch": (
        f"{SPLATS}, radii *i32, boxes *i32, counts *i32, n i32, rows i32, columns i32, {BOUNDS}",
        {"TILE": 8, "BLOCK": 128},
    ),
    "_fill_slots": (
        f"{SPLATS}, order *i64, boxes *i32, ends *i32, keys *i16, owners *i32, n i32, columns i32, capacity i32, "
        + BOUNDS,
        {"TILE": 8, "BLOCK": 128},
    ),
    "_activate": (f"{floats(INPUTS)}, {LEASH}", {"BASES": 15, "BLOCK": 128}),
    "_activate_vjp": (f"{floats(INPUTS)}, {floats(GRADIENTS)}, {LEASH}", {"BASES": 15, "BLOCK": 128}),
    "_adam": (
        floats("parameter first second gradient pace")
        + ", go *i1, count i32, rate fp32, toward1 fp32, beta2 fp32, toward2 fp32, eps fp32",
        {"BLOCK": 1024},
    ),
    "_along_rows": (f"{PICTURE}, rows *fp32, sums *fp32, {SIZE}", {"SIDE": 7, "BLOCK": 256}),
    "_windows": (
        f"rows *fp32, weights *fp32, totals *fp32, view *i64, windows *fp32, sums *fp32, {SIZE}, term fp32",
        {"SIDE": 7, "BLOCK": 256},
    ),
    "_total": (
        "sums *fp32, totals *fp32, view *i64, loss *fp32, "
        "share fp32, dissimilarity fp32, disparity fp32, coverage fp32",
        {},
    ),
    "_back_along_rows": (f"windows *fp32, rows *fp32, {SIZE}", {"SIDE": 7, "BLOCK": 256}),
    "_gradient": (
        f"{PICTURE}, {floats('totals rows sums v_loss v_rgb v_depth_sum v_alpha')}, {SIZE}, "
        "share fp32, disparity_term fp32, coverage fp32",
        {"SIDE": 7, "BLOCK": 256},
    ),
    "_pack": (f"{SPLATS}, colours *fp32, depths *fp32, splats *fp32, n i32", {"BLOCK": 128}),
    "_draw_tile": (
        f"{LISTS}, {floats('rgb depth covered through')}, last *i32, width i32, height i32, columns i32",
        {"TILE": 8, "BATCH": 16},
    ),
    "_draw_tile_vjp": (
        f"{LISTS}, through *fp32, last *i32, v_rgb *fp32, v_depth *fp32, v_alpha *fp32, v_means2d *fp32, "
        "v_conics *fp32, v_colours *fp32, v_depths *fp32, v_opacities *fp32, width i32, height i32, columns i32",
        {"TILE": 8, "BATCH": 16},
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_for_a_gpu_without_one(name):
    """The interpreter forgives what the compiler does not."""
    triton = pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worldwarp_core.splats import loss_triton, raster_triton, step_triton

    signature, constants = KERNELS[name]
    arguments = dict(one.split() for one in signature.split(", ")) | dict.fromkeys(constants, "constexpr")
    kernel = next(getattr(home, name) for home in (step_triton, raster_triton, loss_triton) if hasattr(home, name))
    made = triton.compile(ASTSource(kernel, arguments, constants), target=GPUTarget("cuda", 90, 32))
    assert len(made.asm["cubin"]) > 1000


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_colours_are_those_that_the_cpu_draws(degree):
    picture = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    view = SeedView(picture, torch.ones(HEIGHT, WIDTH), everything, torch.eye(4), K)
    seeds, _ = seed_gaussians(view, 60, 50.0, degree)
    centre = torch.tensor([[0.3, -0.2, 0.1]])
    w2c = torch.eye(4)
    w2c[:3, 3] = -centre[0]
    shN = 0.2 * torch.randn(*seeds.shN.shape, generator=torch.Generator().manual_seed(1))
    coloured = Gaussians(**seeds.tensors() | {"shN": shN})
    flat = (colours(coloured.means, coloured.sh0, shN, centre) - 0.5) / (0.5 / math.sqrt(math.pi))
    same = Gaussians(**seeds.tensors() | {"sh0": flat[:, None], "shN": shN[:, :0]})
    drawn, expected = (rasterize(g, w2c[None], K[None], WIDTH, HEIGHT).rgb for g in (same, coloured))
    assert torch.allclose(drawn, expected, atol=1e-5)
