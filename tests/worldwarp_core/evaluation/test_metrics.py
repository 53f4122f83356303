"""Metrics: known values, the right order of good and bad, and nothing counted outside the region asked for."""

import math

import pytest
import torch

from worldwarp_core.evaluation.lpips import Lpips
from worldwarp_core.evaluation.metrics import (
    alexnet_features,
    crops,
    gradient_spectrum,
    kid,
    psnr,
    spectrum_distance,
    ssim,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(count=4, height=64, width=96, seed=0):
    """Pictures with detail at every scale."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, height, width)
    for cells in (4, 8, 16, 32, 64):
        coarse = torch.rand(count, 3, cells, cells, generator=generator) - 0.5
        total += torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear") * 4 / cells**0.5
    return (0.5 + 0.2 * total).clamp(0, 1)


def blurred(x, radius=2):
    return torch.nn.functional.avg_pool2d(x, 2 * radius + 1, 1, radius, count_include_pad=False)


def test_psnr_of_a_known_error_is_the_known_figure():
    truth = torch.full((2, 3, 8, 8), 0.5)
    made = truth.clone()
    made[0] += 0.1
    made[1] += 0.01
    torch.testing.assert_close(psnr(made, truth), torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)
    assert psnr(truth, truth).tolist() == [100.0, 100.0]


def test_psnr_over_a_region_knows_nothing_of_the_rest_and_is_nan_without_any():
    truth = torch.full((2, 3, 8, 8), 0.5)
    made = truth + 0.1
    made[:, :, :4] = 0.9
    where = torch.zeros(2, 8, 8, dtype=torch.bool)
    where[0, 4:] = True
    figures = psnr(made, truth, where)
    assert abs(float(figures[0]) - 20.0) < 1e-3
    assert math.isnan(float(figures[1]))


def slow_ssim(x, y):
    """SSIM of one grey picture at one place after the other."""
    taps = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    weight = torch.tensor([[a * b for a in taps] for b in taps])
    weight /= weight.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            p, q = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            m, n = (weight * p).sum(), (weight * q).sum()
            v, w = (weight * (p - m) ** 2).sum(), (weight * (q - n) ** 2).sum()
            c = (weight * (p - m) * (q - n)).sum()
            values.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m * m + n * n + 1e-4) * (v + w + 9e-4)))
    return torch.stack(values).mean()


def test_ssim_is_what_a_loop_over_windows_gives():
    truth = pictures(1, 16, 18)[:, :1].expand(-1, 3, -1, -1).contiguous()
    made = (truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    made[:] = made[:, :1]
    torch.testing.assert_close(ssim(made, truth)[0], slow_ssim(made[0, 0], truth[0, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim(truth, truth), torch.ones(1))


def test_the_spectrum_tells_blur_and_noise_from_the_truth_and_not_a_shift():
    truth = pictures()
    same_kind = pictures(seed=1)
    noisy = (truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    shifted = truth.roll((5, 7), (2, 3))
    bad = min(float(spectrum_distance(x, truth).min()) for x in (blurred(truth), noisy))
    good = max(float(spectrum_distance(x, truth).max()) for x in (same_kind, shifted))
    assert bad > 2 * good
    # the blur lacks the fine levels, the noise has too much there
    assert (gradient_spectrum(blurred(truth)) - gradient_spectrum(truth))[:, 0].max() < -1
    assert (gradient_spectrum(noisy) - gradient_spectrum(truth))[:, 0].min() > 0.3


def test_twice_the_contrast_is_a_spectrum_distance_of_log_four():
    truth = 0.5 + 0.4 * (pictures() - 0.5)
    made = 0.5 + 0.8 * (pictures() - 0.5)
    torch.testing.assert_close(spectrum_distance(made, truth), torch.full((4,), math.log(4)), atol=0.02, rtol=0)


def test_the_spectrum_of_a_region_does_not_change_with_what_is_outside():
    truth, made = pictures(), pictures(seed=2)
    where = torch.zeros(4, 64, 96, dtype=torch.bool)
    where[:3, 16:48, 24:72] = True
    other = made.clone()
    other[:, :, ~where[0]] = 0.0
    first, second = spectrum_distance(made, truth, where), spectrum_distance(other, truth, where)
    torch.testing.assert_close(first, second, equal_nan=True)
    assert first[:3].isfinite().all()
    assert math.isnan(float(first[3]))


def test_kid_of_one_distribution_is_about_zero_and_its_interval_holds_it():
    generator = torch.Generator().manual_seed(0)
    truth, same = torch.randn(400, 32, generator=generator), torch.randn(400, 32, generator=generator)
    moved = torch.randn(400, 32, generator=generator) + 0.5
    near, far = kid(same, truth, generator), kid(moved, truth, generator)
    assert near.low < 0 < near.high
    assert far.low > near.high
    assert far.low < far.value < far.high


def test_a_feature_that_the_truth_never_shows_does_not_outweigh_all_others():
    generator = torch.Generator().manual_seed(0)
    truth, made = torch.randn(200, 32, generator=generator), torch.randn(200, 32, generator=generator)
    plain = kid(made, truth, generator)
    truth[:, 0], made[:, 0] = 0.0, 0.0
    made[0, 0] = 1.0
    odd = kid(made, truth, generator)
    assert abs(odd.value - plain.value) < 0.5
    assert odd.low < 0.5


def test_kid_is_unbiased_at_small_sizes():
    generator = torch.Generator().manual_seed(1)
    values = [
        kid(torch.randn(40, 16, generator=generator), torch.randn(40, 16, generator=generator), generator).value
        for _ in range(40)
    ]
    spread = torch.tensor(values)
    assert abs(float(spread.mean())) < 3 * float(spread.std()) / 40**0.5


def test_crops_are_places_of_the_pictures_and_the_same_for_the_same_seed():
    some = pictures(3)
    first = crops(some, 10, 32, torch.Generator().manual_seed(0))
    again = crops(some, 10, 32, torch.Generator().manual_seed(0))
    assert first.shape == (10, 3, 32, 32)
    assert torch.equal(first, again)
    windows = some[1].unfold(1, 32, 1).unfold(2, 32, 1)  # crop 1 is of picture 1
    assert (windows == first[1][:, None, None]).flatten(3).all(-1).all(0).any()


def test_features_do_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    network = Lpips()
    some = pictures(5, 64, 64)
    features = alexnet_features(some, network, batch=2)
    assert features.shape == (5, 1152)
    torch.testing.assert_close(features, alexnet_features(some, network, batch=5), atol=1e-5, rtol=1e-4)
