"""The Triton kernels of a fit's step, under Triton's interpreter on the CPU, against torch and the CPU's rasteriser.

A process must choose the interpreter before it imports triton, so `test_fit_cuda.py` runs this file in one of its own.
"""

import inspect

import gsplat
import pytest
import torch
from gsplat.cuda import _torch_impl as reference
from triton.backends.compiler import BaseBackend
from triton.runtime import interpreter
from triton.runtime.jit import native_specialize_impl

from worldwarp_core.splats import device_steps, fit_cuda, intersect, step_triton
from worldwarp_core.splats import fit as plain_fit
from worldwarp_core.splats.fit import prepare_fit
from worldwarp_core.splats.fit_cuda import CudaScene, colours, lay_out
from worldwarp_core.splats.fit_settings import FitSettings
from worldwarp_core.splats.loss import FitViews, view_loss
from worldwarp_core.splats.loss_triton import ViewLoss
from worldwarp_core.splats.moving import let_move, within_bounds
from worldwarp_core.splats.raster_triton import TILE, draw
from worldwarp_core.splats.rasterize import rasterize
from worldwarp_core.splats.seed import SeedView, seed_gaussians

WIDTH, HEIGHT, VIEW = 14, 11, 1
K = torch.tensor([[14.0, 0, 7], [0, 14.0, 5.5], [0, 0, 1]])
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


def drawn(values, radii):
    """Images and their gradient for fixed random weights, and those weights."""
    leaves = [t.clone().requires_grad_() for t in values]
    lists = intersect.tile_lists(values[0], values[1], radii, values[3], values[4], WIDTH, HEIGHT, TILE, 4000)
    images = draw(*leaves, lists.ids, lists.offsets, WIDTH, HEIGHT)
    generator = torch.Generator().manual_seed(1)
    towards = [torch.randn(t.shape, generator=generator) for t in images]
    return images, torch.autograd.grad(images, leaves, towards), towards


@pytest.mark.parametrize("count", [50])
def test_pictures_and_gradients_are_those_of_a_slow_loop(count):
    values, radii = splats(count)
    images, gradients, towards = drawn(values, radii)
    leaves = [t.requires_grad_() for t in values]
    expected = slow_draw(*leaves)
    for got, wanted in zip(images, expected, strict=True):
        assert torch.allclose(got, wanted, atol=2e-5), float((got - wanted).abs().max())
    for name, got, wanted in zip(NAMES, gradients, torch.autograd.grad(expected, leaves, towards), strict=True):
        largest = float(wanted.abs().max())
        assert torch.allclose(got, wanted, atol=2e-4 * largest), (name, float((got - wanted).abs().max()), largest)


def test_what_the_camera_does_not_see_is_black_and_learns_nothing():
    values, radii = splats(3)
    images, gradients, _ = drawn(values, radii * 0)
    assert all((t == 0).all() for t in (*images, *gradients))


def test_what_was_never_written_of_gaussians_out_of_sight_changes_nothing():
    values, radii = splats(20)
    images, gradients, _ = drawn(values, radii)
    unwritten = [torch.cat([torch.full_like(t[:1], torch.nan), t]) for t in values]
    again, again_gradients, _ = drawn(unwritten, torch.cat([torch.zeros_like(radii[:1]), radii]))
    for got, wanted in zip(again, images, strict=True):
        assert torch.equal(got, wanted)
    for got, wanted in zip(again_gradients, gradients, strict=True):
        assert (got[0] == 0).all()
        assert torch.allclose(got[1:], wanted, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize(("tile", "capacity"), [(8, 5000), (16, 2000), (8, 100)])
def test_tile_lists_are_those_of_torch(tile, capacity):
    (means2d, conics, _, depths, opacities), radii = splats(60, tile)
    radii[::9] = 0
    scene = 7 * means2d, conics / 7, radii * 3, depths, opacities, 90, 50, tile, capacity
    got, wanted = step_triton.tile_lists(*scene), intersect.tile_lists(*scene)
    used = min(int(wanted.needed), capacity)
    assert int(got.needed) == int(wanted.needed)
    assert torch.equal(got.offsets, wanted.offsets)
    assert torch.equal(got.ids[:used], wanted.ids[:used])


@pytest.mark.parametrize("bases", [0, 3, 8, 15])
def test_activations_and_colours_are_those_of_torch(bases):
    generator = torch.Generator().manual_seed(bases)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    n = 70
    start_means, radius, start_scales = randn(n, 3), randn(n, 1).abs(), 0.3 * randn(n, 3)
    # Some beyond every bound.
    values = randn(n, 3), start_scales + 0.5 * randn(n, 3), randn(n), 1.5 * randn(n, 1, 3), 0.3 * randn(n, bases, 3)
    centre = torch.tensor([[0.3, -0.2, 0.1]])
    leaves, slow_leaves = ([t.clone().requires_grad_() for t in values] for _ in range(2))
    leaves[-1] = step_triton.in_planes(values[-1]).requires_grad_()
    got = step_triton.activate(start_means, radius, start_scales, *leaves, centre)

    offset, scales, opacities, sh0, shN = slow_leaves
    means, scales, sh0 = within_bounds(start_means, radius, start_scales, offset, scales, sh0)
    expected = means, scales.exp(), opacities.sigmoid(), colours(means, sh0, shN, centre)
    towards = [randn(*t.shape) for t in expected]
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    gradients = torch.autograd.grad(got, leaves, towards, materialize_grads=True)
    for a, b in zip(
        gradients, torch.autograd.grad(expected, slow_leaves, towards, materialize_grads=True), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(13, 17), (5, 9)])
def test_the_loss_and_its_gradient_are_those_of_torch(height, width):
    generator = torch.Generator().manual_seed(height)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    seen = rand(2, height, width, 3), rand(2, height, width) + 0.1, rand(2, height, width), rand(2, height, width)
    views = FitViews(*seen, torch.eye(4).repeat(2, 1, 1), K.repeat(2, 1, 1))
    rgb, depth_sum, alpha = rand(height, width, 3), 2 * rand(height, width), rand(height, width)
    alpha[0], depth_sum[0] = 0, 0  # nothing was drawn here
    alpha[1, 1], depth_sum[1, 1] = 0.9, 1e-5  # nearer than depth may be
    leaves = [t.requires_grad_() for t in (rgb, depth_sum, alpha)]
    loss = ViewLoss(views, FitSettings())(*leaves, torch.tensor([VIEW]))
    expected = view_loss(rgb, alpha, depth_sum / alpha.clamp_min(1e-10), *(t[VIEW] for t in seen), FitSettings())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    gradients = torch.autograd.grad(2 * loss, leaves)
    for got, wanted in zip(gradients, torch.autograd.grad(2 * expected, leaves), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6 * float(wanted.abs().max()))


def test_adam_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in ((5, 3), (1100,), (40, 3, 3))]
    starts[2] = step_triton.in_planes(starts[2])

    def fresh():
        moments = ([torch.zeros_like(t) for t in starts] for _ in range(2))
        return device_steps.Adam([t.clone() for t in starts], *moments, [0.1, 0.003, 0.01])

    ours, wanted = fresh(), fresh()
    for step, pace in enumerate(device_steps.Adam.pace(12)):
        gradients = [torch.randn(t.shape, generator=generator) for t in starts]
        for update, state in ((step_triton.adam_update, ours), (device_steps.adam_update, wanted)):
            update(state, gradients, pace, torch.tensor(step % 5 != 3))
    for a, b in zip(ours.parameters, wanted.parameters, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


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
    return seed_gaussians(view, 40, 50.0, 3)[0].map(
        lambda t: t + 0.03 * torch.randn(t.shape, generator=generator)  # no two at the same depth
    )


def project(means, covars, quats, scales, viewmats, Ks, width, height, *, opacities, **options):
    """`gsplat.fully_fused_projection` by gsplat's own reference."""
    assert covars is None
    assert opacities.shape == (len(means),)  # they only tighten the radii
    covars, _ = reference._quat_scale_to_covar_preci(quats, scales, True, False)
    return reference._fully_fused_projection(means, covars, viewmats, Ks, width, height, **options)


def test_loss_and_gradients_of_a_step_are_those_of_the_cpu(monkeypatch, seeds, views):
    monkeypatch.setattr(gsplat, "fully_fused_projection", project)
    moving = lay_out(let_move(seeds, with_shN=True))
    scene = CudaScene(moving, seeds[:0], views, FitSettings())
    enough = scene.room
    scene.room = 300  # the interpreter takes its time
    loss, needed = scene.loss(torch.tensor([VIEW]))
    assert 0 < int(needed) <= min(enough, scene.room)
    gradients = torch.autograd.grad(loss, list(moving.learned.values()))

    render = rasterize(moving.now(), views.w2c[VIEW, None], views.K[VIEW, None], WIDTH, HEIGHT)
    seen = views.rgb[VIEW], views.disparity[VIEW], views.weight[VIEW], views.depth_weight[VIEW]
    expected = view_loss(render.rgb[0], render.alpha[0], render.depth[0], *seen, FitSettings())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    wanted = torch.autograd.grad(expected, list(moving.learned.values()))
    for name, a, b in zip(moving.learned, gradients, wanted, strict=True):
        error = (a - b).norm() / b.norm()
        assert error < 1e-5, (name, float(error))
        assert a.stride() == moving.learned[name].stride(), "the update would copy it"


@pytest.fixture
def compiled(monkeypatch):
    """What Triton would compile, by its own account: the kernels that are asked for, with what each is fixed to."""
    kernels = set()

    def ask(kernel, *arguments, grid, warmup, **options):
        facts = []
        for parameter, value in zip(inspect.signature(kernel.fn).parameters.values(), arguments, strict=True):
            if "constexpr" in str(parameter.annotation):
                facts.append(value)
                continue
            by_value, by_alignment = (
                parameter.name not in (kernel.kwargs[name] or ())
                for name in ("do_not_specialize", "do_not_specialize_on_alignment")
            )
            facts.append(native_specialize_impl(BaseBackend, value, False, by_value, by_alignment))
        kernels.add((kernel.__name__, *facts))

    def one_step(moving, gaussians, rows, views, order, settings):
        moving = lay_out(moving)
        stays = torch.ones(len(gaussians), dtype=torch.bool).index_fill(0, rows, False)
        scene = CudaScene(moving, gaussians[stays], views, settings)
        scene.room = 300  # nothing was run that would have said how much is needed
        device_steps.DeviceSteps(moving, scene, order, settings, step_triton.adam_update).step()
        yield 0.0

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", ask)
    monkeypatch.setattr(plain_fit, "optimise", one_step)
    monkeypatch.setattr(gsplat, "fully_fused_projection", project)
    return kernels


@pytest.mark.parametrize("count", [24, 25])
@pytest.mark.parametrize("stay", range(6))
@pytest.mark.parametrize("seen_from", [1, 2], ids=["one view", "two views"])
def test_no_fit_compiles_anything_that_was_not_prepared(compiled, seeds, views, count, stay, seen_from):
    prepare_fit("cpu")
    prepared = set(compiled)
    assert {name for name, *_ in prepared} >= {"_draw_tile", "_draw_tile_vjp", "_activate_vjp", "_adam", "_gradient"}
    compiled.clear()
    some = FitViews(*(getattr(views, name)[:seen_from] for name in views.__dataclass_fields__))
    moves = torch.arange(count) >= stay
    list(plain_fit.fit(seeds[torch.arange(count)], moves, some, 1, FitSettings(), torch.Generator()))
    assert compiled
    assert not compiled - prepared


def test_a_fit_leaves_gaussians_where_that_of_the_cpu_leaves_them(monkeypatch, seeds, views):
    few, moves = seeds[torch.arange(12)], torch.arange(12) >= 3

    def fitted():
        fitting = plain_fit.fit(few, moves, views, 2, FitSettings(), torch.Generator().manual_seed(0))
        losses = []
        while True:
            try:
                losses.append(next(fitting))
            except StopIteration as end:
                return end.value.tensors(), losses

    expected, expected_losses = fitted()
    monkeypatch.setattr(plain_fit, "_is_captured", lambda gaussians: True)
    monkeypatch.setattr(gsplat, "fully_fused_projection", project)
    monkeypatch.setattr(fit_cuda, "load_gsplat", lambda: None)
    monkeypatch.setattr(fit_cuda, "capture", lambda step: step)
    monkeypatch.setattr(CudaScene, "make_room", lambda scene, needed: setattr(scene, "room", 200))
    got, losses = fitted()
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    for name, wanted in expected.items():
        start = few.tensors()[name]
        assert torch.equal(got[name][:3], start[:3])
        assert got[name].is_contiguous()
        moved = (wanted - start).abs().max()
        assert moved > 0
        # Adam's first steps go a whole rate wherever a gradient is not nought, and its sign may be rounding's.
        off = (got[name] - wanted).abs() > 0.02 * moved
        assert off.float().mean() < 0.02, (name, float(off.float().mean()))
