"""The CPU rasteriser against a dense float64 reference, finite differences and gsplat's own CUDA output."""

import math
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from tests.worldwarp_core.splats.dense_reference import rasterize_densely
from tests.worldwarp_core.splats.scenes import HEIGHT, WIDTH, random_gaussians, trainable, two_cameras
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splats.gaussians import Gaussians
from worldwarp_core.splats.raster_cpu import rasterize_cpu
from worldwarp_core.splats.raster_gsplat import load_gsplat
from worldwarp_core.splats.rasterize import Render, rasterize

FIXTURE = Path(__file__).parents[2] / "fixtures" / "gsplat_cuda.npz"
Images = tuple[Tensor, Tensor, Tensor]


def random_loss(images: Images, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for image in images:
        total = total + (image.double() * torch.randn(image.shape, generator=g, dtype=torch.float64)).sum()
    return total


def gradients(loss: Tensor, gaussians: Gaussians) -> dict[str, Tensor]:
    named = {name: t for name, t in gaussians.tensors().items() if t.numel()}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def as_images(render: Render) -> Images:
    return render.rgb, render.alpha, render.depth


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("cutoffs", [True, False])
def test_float64_equals_the_dense_reference_with_its_gradients(degree: int, cutoffs: bool) -> None:
    gaussians = trainable(random_gaussians(60, degree, seed=degree), torch.float64)
    w2c, K = two_cameras()
    got = rasterize_cpu(gaussians, w2c, K, WIDTH, HEIGHT, _cutoffs=cutoffs)
    want = rasterize_densely(gaussians, w2c, K, WIDTH, HEIGHT, cutoffs)
    for name, g, e in zip(("rgb", "alpha", "depth"), got, want, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")
    expected = gradients(random_loss(want), gaussians)
    for name, gradient in gradients(random_loss(got), gaussians).items():
        torch.testing.assert_close(
            gradient,
            expected[name],
            rtol=1e-8,
            atol=1e-9 * expected[name].abs().max().item(),
            msg=f"gradient of {name}",
        )


def test_float32_follows_the_dense_reference_in_a_crowded_scene() -> None:
    gaussians = trainable(random_gaussians(400, degree=3, seed=5, size=2.0))
    w2c, K = two_cameras()
    got = rasterize_cpu(gaussians, w2c, K, WIDTH, HEIGHT)
    want = rasterize_densely(gaussians, w2c, K, WIDTH, HEIGHT)
    assert (want[1] > 0.9995).double().mean() > 0.5, "most pixels should come near the transmittance stop"
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=1e-4, atol=2e-4)
    expected = gradients(random_loss(want), gaussians)
    for name, gradient in gradients(random_loss(got), gaussians).items():
        # A pixel that stops one Gaussian earlier or later by rounding changes a gradient by its last 1e-4 of light.
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 1e-3, (name, error)


@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "sh0", "shN"])
def test_gradients_equal_finite_differences(name: str) -> None:
    gaussians = trainable(random_gaussians(12, degree=2, seed=7), torch.float64)
    w2c, K = two_cameras()

    def loss(scene: Gaussians) -> Tensor:
        return random_loss(rasterize_cpu(scene, w2c, K, WIDTH, HEIGHT, _cutoffs=False))

    gradient = gradients(loss(gaussians), gaussians)[name].flatten()
    tensor = getattr(gaussians, name).detach()
    step = 1e-6
    for index in torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))[:12].tolist():
        values = []
        for sign in (1, -1):
            moved = tensor.clone().flatten()
            moved[index] += sign * step
            scene = Gaussians(**{**gaussians.map(torch.Tensor.detach).tensors(), name: moved.reshape(tensor.shape)})
            values.append(loss(scene))
        difference = ((values[0] - values[1]) / (2 * step)).item()
        assert gradient[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-5 * gradient.abs().max().item())


def test_the_backend_equals_gsplats_cuda_output_and_gradients() -> None:
    data = np.load(FIXTURE)
    gaussians = trainable(Gaussians(**{name: torch.from_numpy(data[name]) for name in Gaussians.__annotations__}))
    height, width = data["rgb"].shape[1:3]
    render = rasterize(gaussians, torch.from_numpy(data["w2c"]), torch.from_numpy(data["K"]), width, height)
    # float32 on both sides, with fast math on the GPU: measured 1e-6 (rgb, alpha), 3e-6 (depth), 2e-5 (gradients).
    for name in ("rgb", "alpha", "depth"):
        np.testing.assert_allclose(getattr(render, name).detach().numpy(), data[name], rtol=0, atol=2e-5, err_msg=name)
    loss = sum(
        (getattr(render, name) * torch.from_numpy(data[f"weight_{name}"])).sum() for name in ("rgb", "alpha", "depth")
    )
    for name, gradient in gradients(loss, gaussians).items():
        want = torch.from_numpy(data[f"v_{name}"])
        error = (gradient - want).norm() / want.norm()
        assert error < 2e-4, (name, error)


def test_a_batch_equals_its_views_one_by_one() -> None:
    gaussians = trainable(random_gaussians(200, degree=1, seed=3))
    w2c, K = two_cameras()
    batch = rasterize(gaussians, w2c, K, WIDTH, HEIGHT)
    singles = [rasterize(gaussians, w2c[c : c + 1], K[c : c + 1], WIDTH, HEIGHT) for c in range(2)]
    for name in ("rgb", "alpha", "depth"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(s, name) for s in singles]))
    together = gradients(random_loss(as_images(batch)), gaussians)
    apart = gradients(
        random_loss(tuple(torch.cat([getattr(s, n) for s in singles]) for n in ("rgb", "alpha", "depth"))), gaussians
    )
    for name in together:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-4, atol=1e-5)


def test_every_run_gives_the_same_bits_with_any_number_of_threads() -> None:
    w2c, K = two_cameras()
    threads = numba.get_num_threads()
    results = []
    for workers in (threads, threads, 1):
        numba.set_num_threads(workers)
        gaussians = trainable(random_gaussians(500, degree=3, seed=4))
        images = as_images(rasterize(gaussians, w2c, K, WIDTH, HEIGHT))
        results.append([*images, *gradients(random_loss(images), gaussians).values()])
    numba.set_num_threads(threads)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 3), (8, 8), (9, 17), (64, 1)], ids=lambda n: str(n))
def test_any_size_of_image_equals_the_dense_reference(width: int, height: int) -> None:
    gaussians = random_gaussians(40, degree=1, seed=8, width=width, height=height)
    w2c, K = two_cameras(width, height)
    got = as_images(rasterize(gaussians, w2c, K, width, height))
    for g, e in zip(got, rasterize_densely(gaussians, w2c, K, width, height), strict=True):
        assert g.shape[1:3] == (height, width)
        torch.testing.assert_close(g.double(), e, rtol=1e-4, atol=2e-4)


def off_screen(gaussians: Gaussians) -> None:
    gaussians.means[:, 0] += 1e4


def behind(gaussians: Gaussians) -> None:
    gaussians.means[:, 2] *= -1


def far_off_screen(gaussians: Gaussians) -> None:
    gaussians.means[:, :2] = 1e30


def transparent(gaussians: Gaussians) -> None:
    gaussians.opacities[:] = -20.0


@pytest.mark.parametrize("change", [off_screen, behind, far_off_screen, transparent])
def test_nothing_to_see_is_black_with_zero_gradients(change) -> None:  # type: ignore[no-untyped-def]
    gaussians = random_gaussians(30, degree=1, seed=9)
    change(gaussians)
    gaussians = trainable(gaussians)
    w2c, K = two_cameras()
    render = rasterize(gaussians, w2c, K, WIDTH, HEIGHT)
    assert all((image == 0).all() for image in as_images(render))
    assert all((g == 0).all() for g in gradients(random_loss(as_images(render)), gaussians).values())


def test_zero_gaussians_give_black_images_of_the_right_shape() -> None:
    gaussians = trainable(random_gaussians(0, degree=3, seed=0))
    w2c, K = two_cameras()
    render = rasterize(gaussians, w2c, K, WIDTH, HEIGHT)
    assert render.rgb.shape == (2, HEIGHT, WIDTH, 3)
    assert render.depth.shape == render.alpha.shape == (2, HEIGHT, WIDTH)
    assert not render.rgb.any()
    random_loss(as_images(render)).backward()
    assert gaussians.means.grad.shape == (0, 3)


@pytest.mark.parametrize("log_scale", [-40.0, 5.0, 30.0], ids=["points", "larger than the scene", "enormous"])
def test_extreme_scales_stay_finite(log_scale: float) -> None:
    gaussians = random_gaussians(50, degree=1, seed=10)
    gaussians.scales[:] = log_scale
    gaussians = trainable(gaussians)
    w2c, K = two_cameras()
    render = rasterize(gaussians, w2c, K, WIDTH, HEIGHT)
    assert render.alpha.max() > 0.1
    for value in (*as_images(render), *gradients(random_loss(as_images(render)), gaussians).values()):
        assert torch.isfinite(value).all()


def test_depth_is_the_plane_that_was_put_there_and_rgb_is_premultiplied() -> None:
    gaussians = random_gaussians(400, degree=0, seed=11, size=2.0)
    gaussians.means[:] *= 3.0 / gaussians.means[:, 2:]
    w2c, K = (t[:1] for t in two_cameras())
    render = rasterize(gaussians, w2c, K, WIDTH, HEIGHT)
    torch.testing.assert_close(render.depth, torch.full_like(render.depth, 3.0), rtol=1e-5, atol=0)
    white = Gaussians(**{**gaussians.tensors(), "sh0": torch.full_like(gaussians.sh0, 0.5 / 0.28209479177387814)})
    rgb = rasterize(white, w2c, K, WIDTH, HEIGHT).rgb
    torch.testing.assert_close(rgb, render.alpha[..., None].expand(-1, -1, -1, 3), rtol=1e-5, atol=1e-5)


def test_without_gradients_nothing_is_kept() -> None:
    gaussians = trainable(random_gaussians(50, degree=0, seed=12))
    w2c, K = two_cameras()
    with torch.no_grad():
        render = rasterize(gaussians, w2c, K, WIDTH, HEIGHT)
    assert not render.rgb.requires_grad
    assert not rasterize(gaussians.map(torch.Tensor.detach), w2c, K, WIDTH, HEIGHT).rgb.requires_grad


def test_gradients_flow_to_some_tensors_when_others_are_fixed() -> None:
    gaussians = random_gaussians(50, degree=1, seed=13)
    gaussians.sh0.requires_grad_()
    w2c, K = two_cameras()
    rasterize(gaussians, w2c, K, WIDTH, HEIGHT).rgb.sum().backward()
    assert gaussians.sh0.grad.abs().sum() > 0
    assert gaussians.means.grad is None


def test_tensors_that_are_not_contiguous_are_fine() -> None:
    gaussians = random_gaussians(50, degree=1, seed=14)
    strided = gaussians.map(lambda t: torch.stack([t, t], dim=-1)[..., 0].requires_grad_())
    w2c, K = two_cameras()
    a, b = (rasterize(g, w2c, K, WIDTH, HEIGHT).rgb for g in (gaussians, strided))
    assert torch.equal(a, b)
    b.sum().backward()


def test_two_threads_may_render_at_once() -> None:
    gaussians = random_gaussians(300, degree=1, seed=15)
    w2c, K = two_cameras()
    alone = rasterize(gaussians, w2c, K, WIDTH, HEIGHT).rgb
    same = []

    def render() -> None:
        same.append(all(torch.equal(alone, rasterize(gaussians, w2c, K, WIDTH, HEIGHT).rgb) for _ in range(20)))

    threads = [threading.Thread(target=render) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 3


def test_what_the_caller_does_to_the_images_does_not_reach_the_gradient() -> None:
    w2c, K = two_cameras()
    results = []
    for spoil in (False, True):
        gaussians = trainable(random_gaussians(50, degree=0, seed=18))
        render = rasterize(gaussians, w2c, K, WIDTH, HEIGHT)
        loss = random_loss(as_images(render))
        if spoil:
            with torch.no_grad():
                for image in as_images(render):
                    image.fill_(7.0)
        results.append(gradients(loss, gaussians)["means"])
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", [{"_C": None}, {}], ids=["no CUDA toolkit", "kernels do not load"])
def test_missing_cuda_kernels_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, backend: dict) -> None:
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", SimpleNamespace(**backend))
    with pytest.raises(WorldWarpError) as caught:
        load_gsplat()
    assert caught.value.code == "no_cuda_rasterizer"
    assert "nvcc" in caught.value.message
    assert "CPU" in caught.value.message


def test_a_second_process_waits_until_the_first_has_built_the_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """gsplat's import deletes what another process is building."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    (tmp_path / "extensions").mkdir()
    imported = threading.Event()

    class Backend:
        @property
        def _C(self) -> object:
            imported.set()
            return object()

    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", Backend())
    with FileLock(tmp_path / "extensions" / "gsplat_worldwarp.lock"):
        second = threading.Thread(target=load_gsplat.__wrapped__)
        second.start()
        assert not imported.wait(0.3)
    assert imported.wait(10)
    second.join()


def test_where_nothing_can_be_written_gsplat_is_loaded_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "extensions"))
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", SimpleNamespace(_C=object()))
    assert callable(load_gsplat.__wrapped__())


def test_a_mean_straight_on_the_camera_is_culled() -> None:
    gaussians = random_gaussians(2, degree=3, seed=16)
    gaussians.means[0] = 0.0
    w2c, K = two_cameras()
    image = rasterize(gaussians, w2c[:1], K[:1], WIDTH, HEIGHT).rgb
    assert torch.isfinite(image).all()
    assert math.isclose(image.sum(), rasterize(gaussians[torch.tensor([1])], w2c[:1], K[:1], WIDTH, HEIGHT).rgb.sum())
