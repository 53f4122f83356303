"""The structural similarity in a fit's loss."""

import pytest
import torch

from worldwarp_core.splats.loss import SSIM_WINDOW, ssim


def test_ssim_is_that_of_a_slow_loop():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 3, 12, 14, generator=generator)
    got = ssim(a, b)
    assert got.shape == (12 - SSIM_WINDOW + 1, 14 - SSIM_WINDOW + 1)
    for y in range(got.shape[0]):
        for x in range(got.shape[1]):
            values = []
            for c in range(3):
                p, q = (i[c, y : y + SSIM_WINDOW, x : x + SSIM_WINDOW].double() for i in (a, b))
                cov = ((p - p.mean()) * (q - q.mean())).mean()
                top = (2 * p.mean() * q.mean() + 1e-4) * (2 * cov + 9e-4)
                values.append(
                    top / ((p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (p.var(correction=0) + q.var(correction=0) + 9e-4))
                )
            assert float(got[y, x]) == pytest.approx(float(sum(values) / 3), abs=1e-4)


def test_ssim_of_an_image_with_itself_is_one():
    picture = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ssim(picture, picture), torch.ones(()), atol=1e-4)
