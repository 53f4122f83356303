"""Variants: what they change arrives in the engine and in the shot, and what changes nothing is refused."""

import numpy as np
import pytest

from tests.support.toy_scenes import ToyScenes
from worldwarp_core.engine import make_engine
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation.experiments import EXPERIMENTS, variant_of
from worldwarp_core.evaluation.variants import Variant, spoil_depth


@pytest.fixture(scope="module")
def engine():
    return make_engine("cache", "cpu", None, {})


def test_every_variant_of_every_experiment_has_a_name_of_its_own():
    for experiment in EXPERIMENTS.values():
        names = [variant_of(arm, Variant()).name for arm in experiment.arms]
        assert len(set(names)) == len(names)
        assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=,.+-") for name in names)
    assert Variant().name == "cache"
    assert Variant(depth_fault="warp", depth_amount=0.05, seed=3).name == "cache,depth_fault=warp+0.05,seed=3"


def test_the_cache_s_parts_arrive_in_the_engine(engine):
    changed = Variant(representation="points", persistent=False).adapt(engine)
    assert (changed.settings.cache.representation, changed.settings.cache.persistent) == ("points", False)
    assert Variant().adapt(engine).settings == engine.settings


def test_the_shot_is_the_scene_s_with_the_settings(engine):
    shot = Variant(cache_steps=7, seed=5).shot(ToyScenes().scene(0))
    assert (shot.cache_steps, shot.seed, shot.strength) == (7, 5, None)
    assert shot.depth is not None
    assert shot.scene_scale is None


def test_estimated_depth_gives_the_true_median_and_no_map():
    scene = ToyScenes().scene(0)
    shot = Variant(depth="estimated").shot(scene)
    assert shot.depth is None
    assert shot.scene_scale == pytest.approx(float(np.median(scene.truth([0])[1])))
    assert Variant(depth="estimated").shot(ToyScenes(with_depth=False).scene(0)).scene_scale == 4.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"noise": "spatial"}, "no learned fill"),
        ({"strength": 0.5}, "no learned fill"),
        ({"representation": "none"}, "nothing to show"),
        ({"depth": "estimated"}, "--depth-model"),
    ],
)
def test_what_an_engine_cannot_show_is_refused_with_what_to_do(engine, change, said):
    with pytest.raises(WorldWarpError, match=said):
        Variant(**change).check(engine)


def test_footage_without_depth_cannot_be_given_it():
    with pytest.raises(WorldWarpError, match="--depth estimated"):
        Variant().shot(ToyScenes(with_depth=False).scene(0))


def test_depth_faults_are_as_large_as_they_say_and_leave_the_sky():
    depth = np.full((36, 64), 4.0, np.float32)
    depth[:5] = np.inf
    there = np.isfinite(depth)
    np.testing.assert_allclose(spoil_depth(depth, "scale", -0.1)[there], 3.6, rtol=1e-6)
    np.testing.assert_allclose(spoil_depth(depth, "shift", 0.1)[there], 4.4, rtol=1e-6)
    for fault in ("noise", "warp"):
        off = np.log(spoil_depth(depth, fault, 0.05)[there] / 4.0)
        assert 0.035 < off.std() < 0.065
        assert np.array_equal(spoil_depth(depth, fault, 0.05, seed=1), spoil_depth(depth, fault, 0.05, seed=1))
        assert not np.array_equal(spoil_depth(depth, fault, 0.05, seed=1), spoil_depth(depth, fault, 0.05, seed=2))
    warp = np.log(np.where(there, spoil_depth(depth, "warp", 0.05), 4.0) / 4.0)
    assert np.abs(np.diff(warp[6:], axis=1)).max() < 0.03  # smooth, unlike noise
    for fault in ("none", "scale", "shift", "noise", "warp"):
        assert np.isinf(spoil_depth(depth, fault, 0.2)[:5]).all()
    assert (spoil_depth(depth, "shift", -3.0)[there] > 0).all()
