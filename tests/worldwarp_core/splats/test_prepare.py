"""Kernels are compiled when that is asked for, and what runs is what was reported."""

import subprocess
import sys

import torch

from tests.worldwarp_core.splats.scenes import HEIGHT, WIDTH, random_gaussians, trainable, two_cameras
from worldwarp_core.splats import projection, raster_cpu, sh
from worldwarp_core.splats.prepare import prepare_rasterizer, rasterizer_info
from worldwarp_core.splats.rasterize import rasterize


def test_the_thread_layer_is_chosen_on_purpose_and_reported() -> None:
    info = rasterizer_info("cpu")
    assert info["backend"] == "numba"
    assert info["thread_layer"] in ("omp", "tbb", "workqueue")
    assert info["threads"] >= 1
    rasterize(random_gaussians(5, 0, 0), *two_cameras(), WIDTH, HEIGHT)
    assert rasterizer_info("cpu") == info, "what was promised before the first kernel is what runs"


def test_after_preparing_a_render_compiles_nothing_more() -> None:
    prepare_rasterizer("cpu")
    kernels = [v for module in (raster_cpu, projection, sh) for v in vars(module).values() if hasattr(v, "signatures")]
    before = [list(kernel.signatures) for kernel in kernels]
    assert any(before)
    w2c, K = two_cameras()
    for degree in (0, 3):
        gaussians = trainable(random_gaussians(50, degree, seed=17))
        rasterize(gaussians, w2c.float(), K.float(), WIDTH, HEIGHT).rgb.sum().backward()
        rasterize(gaussians.map(torch.Tensor.detach), w2c[:1], K[:1], WIDTH, HEIGHT)
    assert [list(kernel.signatures) for kernel in kernels] == before


def test_the_report_compiles_nothing() -> None:
    code = (
        "from worldwarp_core.splats.prepare import rasterizer_info; info = rasterizer_info(); "
        "import sys; assert 'worldwarp_core.splats.raster_cpu' not in sys.modules; print(info['thread_layer'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("omp", "tbb", "workqueue")
