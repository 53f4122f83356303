"""A viewer shows what `render_splats` renders, from anywhere, and keeps its world."""

from __future__ import annotations

import numpy as np

from tests.support import room
from worldwarp_core.api import load_engine, open_viewer, render_splats
from worldwarp_core.spec import CacheUpdate, GenerateSpec


def test_it_sees_what_a_path_through_the_same_cloud_sees():
    cameras = room.truck(3, width=64, height=48)
    rgb, depth = room.render(cameras, 0)
    events = load_engine("cache", device="cpu").generate(GenerateSpec(cameras, rgb, depth, cache_steps=20))
    cloud = next(event.splats for event in events if isinstance(event, CacheUpdate))
    viewer = open_viewer(cloud)
    expected = render_splats(cloud, cameras)[0]
    for index in (2, 0, 1):
        seen = viewer.look(cameras.K[index], cameras.c2w[index], 64, 48)
        assert seen.dtype == np.uint8
        # Another unit of length rounds depths differently: a pixel here and there may be one step off.
        assert np.abs(seen / 255 - expected[index]).mean() < 2e-3
    assert viewer.look(cameras.K[0], cameras.c2w[0], 32, 24).shape == (24, 32, 3)
