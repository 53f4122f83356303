"""Views of worlds that the depth network learns from."""

import pytest
import torch

from worldwarp_core.training.views import ViewSource
from worldwarp_core.worlds.render import RenderSettings
from worldwarp_core.worlds.textures import build_bank

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (16, 32)


@pytest.fixture(scope="module")
def source():
    bank = build_bank("train", size=32, patterns_each=1)
    return ViewSource("train", 3, SIZE, 3, bank=bank, rendering=RenderSettings(supersample=1))


def test_views_of_a_world_are_those_of_its_seed_whatever_is_made_with_them(source):
    both, second = source.batch(2, 7), source.batch(1, 8)
    assert both.rgb.shape == (2, 3, 3, *SIZE)
    assert both.depth.shape == (2, 3, *SIZE)
    assert both.K.shape == (2, 3, 3, 3)
    assert both.kinds[1:] == second.kinds
    torch.testing.assert_close(both.rgb[1:], second.rgb, atol=0.02, rtol=0)
    torch.testing.assert_close(both.depth[1:], second.depth, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(both.c2w[1:], second.c2w, atol=1e-4, rtol=0)
    assert ((both.rgb >= 0) & (both.rgb <= 1)).all()
    assert (both.depth > 0).all()


def test_views_of_a_world_lie_farther_apart_than_frames_of_a_clip(source):
    made = source.batch(8, 0)
    moved = (made.c2w[:, -1, :3, 3] - made.c2w[:, 0, :3, 3]).norm(dim=-1)
    turned = torch.einsum("nij,nij->n", made.c2w[:, 0, :3, :3], made.c2w[:, -1, :3, :3])
    turned = ((turned - 1) / 2).clamp(-1, 1).acos()
    assert moved.mean() > 0.5
    assert turned.mean() > 0.3
