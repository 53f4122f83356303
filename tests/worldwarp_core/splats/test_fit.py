import pytest
import torch

from worldwarp_core.splats import fit as plain_fit
from worldwarp_core.splats.fit import fit, prepare_fit, why_not_captured
from worldwarp_core.splats.fit_settings import FitSettings
from worldwarp_core.splats.gaussians import SH_C0
from worldwarp_core.splats.loss import SSIM_WINDOW, FitViews
from worldwarp_core.splats.moving import MAX_GROWTH
from worldwarp_core.splats.rasterize import rasterize
from worldwarp_core.splats.seed import SeedView, seed_gaussians

HEIGHT, WIDTH = 24, 32
K = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]])


@pytest.fixture
def picture():
    coarse = torch.rand(1, 3, HEIGHT // 4, WIDTH // 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1)


@pytest.fixture
def seeds(picture):
    everything = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    return seed_gaussians(SeedView(picture, torch.ones(HEIGHT, WIDTH), everything, torch.eye(4), K), 400, 50.0, 1)[0]


def views(picture, weight=None):
    ones = torch.ones(1, HEIGHT, WIDTH)
    return FitViews(picture[None], ones, ones if weight is None else weight[None], ones, torch.eye(4)[None], K[None])


def run(seeds, views, steps=25, trainable=None):
    trainable = torch.ones(len(seeds), dtype=torch.bool) if trainable is None else trainable
    fitting = fit(seeds, trainable, views, steps, FitSettings(), torch.Generator().manual_seed(0))
    losses = []
    while True:
        try:
            losses.append(next(fitting))
        except StopIteration as end:
            return end.value, losses


def test_a_fit_lowers_the_loss_and_reports_every_step(seeds, picture):
    _, losses = run(seeds, views(picture))
    assert len(losses) == 25
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_only_the_trainable_gaussians_move(seeds, picture):
    trainable = torch.arange(len(seeds)) % 3 == 0
    fitted, _ = run(seeds, views(picture), trainable=trainable)
    for name, tensor in fitted.tensors().items():
        before = seeds.tensors()[name]
        assert torch.equal(tensor[~trainable], before[~trainable]), name
        assert name == "shN" or not torch.equal(tensor[trainable], before[trainable]), name


def test_only_several_views_teach_colours_that_depend_on_the_direction(seeds, picture):
    one = views(picture)
    two = FitViews(**{name: torch.cat([value, value]) for name, value in vars(one).items()})
    assert torch.equal(run(seeds, one, steps=3)[0].shN, seeds.shN)
    assert not torch.equal(run(seeds, two, steps=3)[0].shN, seeds.shN)


def test_no_gaussian_grows_into_a_needle_or_shines_beyond_white(seeds, picture):
    fitted, _ = run(seeds, views(picture), steps=60)
    assert ((fitted.scales - seeds.scales).exp() <= MAX_GROWTH + 1e-4).all()
    assert (fitted.sh0.abs() * SH_C0 <= 0.5 + 1e-5).all()


def test_pixels_without_weight_teach_nothing(seeds, picture):
    weight = torch.ones(HEIGHT, WIDTH)
    weight[:, WIDTH // 2 :] = 0
    spoiled = picture.clone()
    spoiled[:, WIDTH // 2 + SSIM_WINDOW :] = 1 - spoiled[:, WIDTH // 2 + SSIM_WINDOW :]
    clean, _ = run(seeds, views(picture, weight), steps=5)
    other, _ = run(seeds, views(spoiled, weight), steps=5)
    for name, tensor in clean.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


def test_nothing_to_train_is_nothing_done(seeds, picture):
    fitted, losses = run(seeds, views(picture), trainable=torch.zeros(len(seeds), dtype=torch.bool))
    assert fitted is seeds
    assert losses == []


def test_the_input_is_left_alone(seeds, picture):
    before = {name: t.clone() for name, t in seeds.tensors().items()}
    run(seeds, views(picture), steps=3)
    for name, tensor in seeds.tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_a_fitted_surface_has_no_gaps(seeds, picture):
    fitted, _ = run(seeds, views(picture))
    alpha = rasterize(fitted, torch.eye(4)[None], K[None], WIDTH, HEIGHT).alpha[0]
    assert float(alpha[2:-2, 2:-2].min()) > 0.8


def test_a_machine_that_cannot_capture_a_step_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(plain_fit, "why_no_triton", lambda: None)
    assert why_not_captured() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "Ampere" in why_not_captured()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(plain_fit, "why_no_triton", lambda: "Triton is not installed")
    assert "Triton" in why_not_captured()


def test_what_prepares_a_fit_fits():
    prepare_fit("cpu")
