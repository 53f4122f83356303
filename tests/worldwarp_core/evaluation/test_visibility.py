"""The judge of the masks, judged: on scenes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from worldwarp_core.evaluation.visibility import pixel_rays, seen_from, unproject

H, W = 48, 64
K = np.array([[50.0, 0, W / 2], [0, 50.0, H / 2], [0, 0, 1]])


def moved(x: float = 0.0, y: float = 0.0, z: float = 0.0, turned: float = 0.0) -> np.ndarray:
    """c2w of a camera at that place, turned about its own y (to the right) by so many radians."""
    c2w = np.eye(4)
    c2w[:3, 3] = x, y, z
    c2w[:3, :3] = [[np.cos(turned), 0, np.sin(turned)], [0, 1, 0], [-np.sin(turned), 0, np.cos(turned)]]
    return c2w


def depth_of(c2w: np.ndarray, wall: float = 10.0, ground: float = 1.0, card: bool = False) -> np.ndarray:
    """Planar z of a wall at z = `wall`, ground at y = `ground` and, if asked for, a card 1 x 1 m at z = 4."""
    rays, origin = pixel_rays(K, H, W) @ c2w[:3, :3].T, c2w[:3, 3]
    with np.errstate(divide="ignore"):
        below = np.where(rays[..., 1] > 0, (ground - origin[1]) / rays[..., 1], np.inf)
    depth = np.minimum((wall - origin[2]) / rays[..., 2], below)
    at = (4 - origin[2]) / rays[..., 2]
    hit = origin + rays * at[..., None]
    on_card = (np.abs(hit[..., 0]) < 0.5) & (np.abs(hit[..., 1]) < 0.5)
    return np.where(card & on_card, at, depth)


def seen(start: np.ndarray, target: np.ndarray, **scene: bool) -> np.ndarray:
    return seen_from(depth_of(start, **scene), K, start, depth_of(target, **scene), K, target)


def test_a_view_sees_all_of_itself():
    assert seen(moved(), moved(), card=True).all()


@pytest.mark.parametrize("target", [moved(z=2.0), moved(z=1.0, y=0.3)])
def test_going_forward_uncovers_nothing_even_on_grazing_ground(target):
    # But for the row where ground and wall meet: there the start's nearest pixel may be of the other one.
    crease = H / 2 + 50 * (1 - target[1, 3]) / (10 - target[2, 3])
    rows = np.abs(np.arange(H) + 0.5 - crease) > 2
    assert seen(moved(), target)[rows].all()


def test_turning_uncovers_the_side_that_comes_into_view():
    got = seen(moved(), moved(turned=0.2))[H // 2 - 4 : H // 2 + 4]
    # The start view's right edge stands at tan(a) = 32 / 50; in the turned view it stands at tan(a - 0.2).
    edge = W / 2 + 50 * np.tan(np.arctan(32 / 50) - 0.2)
    assert got[:, : int(edge) - 1].all()
    assert not got[:, int(edge) + 2 :].any()


def test_what_stood_behind_something_was_not_seen():
    got = seen(moved(), moved(x=1.0), card=True)
    depth = depth_of(moved(x=1.0), card=True)
    points = (pixel_rays(K, H, W) * depth[..., None]) + (1.0, 0, 0)
    # The ray from the start camera at the origin to each point crosses the card's plane at 4 / z of the way.
    crossing = points[..., :2] * (4 / points[..., 2:])
    behind = (points[..., 2] > 4.5) & (np.abs(crossing) < 0.5).all(-1)
    within = np.abs(crossing - np.sign(crossing) * 0.5).min(-1) > 0.12
    inside = np.abs(points[..., 0] / points[..., 2]) < 0.62
    assert behind.sum() > 50
    assert not got[behind & within].any()
    assert got[~behind & within & inside].all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("far", [1e10, np.inf])
def test_sky_was_seen_where_the_start_view_has_sky_in_that_direction(far):
    sky = np.full((H, W), far)
    far_away = moved(x=100.0, z=-50.0)
    assert seen_from(sky, K, moved(), sky, K, far_away).all()
    turned = seen_from(sky, K, moved(), sky, K, moved(turned=0.3))
    assert turned[:, 0].all()
    assert not turned[:, -1].any()
    assert not seen_from(np.full((H, W), 5.0), K, moved(), sky, K, far_away).any()


def test_what_is_behind_the_start_camera_was_not_seen():
    near = np.full((H, W), 5.0)
    assert not seen_from(near, K, moved(), near, K, moved(turned=np.pi)).any()


def test_unprojected_pixels_lie_on_their_surfaces():
    c2w = moved(x=0.4, z=1.0, turned=0.1)
    points = unproject(depth_of(c2w), K, c2w)
    assert np.minimum(np.abs(points[:, 2] - 10), np.abs(points[:, 1] - 1)).max() < 1e-9
