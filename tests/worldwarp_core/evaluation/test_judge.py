"""Judging a whole shot: figures against a known truth, and nothing where nothing can be told."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.toy_scenes import ToyScenes
from worldwarp_core.engine import make_engine
from worldwarp_core.evaluation.judge import Judges, judge_scene, judged_numbers, returns, window_numbers
from worldwarp_core.evaluation.lpips import Lpips
from worldwarp_core.evaluation.variants import Variant
from worldwarp_core.loop.fill import CacheFill

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = Variant(cache_steps=6)
NO_POSES = Judges(poses_every=0, window_every=5)


@pytest.fixture(scope="module")
def engine():
    return make_engine("cache", "cpu", None, {})


@pytest.fixture(scope="module")
def judged(engine):
    torch.manual_seed(0)
    network = Lpips()
    shares = []
    result = judge_scene(ToyScenes().scene(1), QUICK, engine, replace(NO_POSES, lpips=network), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] <= 1
    return result


def test_the_frames_that_are_judged_hold_the_windows_and_what_is_shown():
    numbers = judged_numbers(200)
    assert set(range(45, 56)) | set(range(190, 201)) | {1, 20, 100, 160} <= set(numbers)
    assert window_numbers(50, 2) == [46, 48, 50, 52, 54]
    assert window_numbers(200, 5) == [190, 195, 200]
    assert judged_numbers(54)[-1] == 54


def test_a_frame_s_figures_are_there_and_the_start_is_the_truth_itself(judged):
    frames = judged.figures["frames"]
    assert frames["1"]["psnr"] == 100
    by_region = {"psnr_seen", "psnr_valid", "psnr_holes", "spectrum_distance", "valid_share"}
    assert by_region | {"ssim", "lpips", "depth_absrel"} <= set(frames["50"])
    assert 15 < frames["50"]["psnr_valid"] < 60
    assert frames["50"]["psnr_prior"] == frames["50"]["psnr_valid"], "the fill `cache` leaves what is valid as it is"
    assert frames["50"]["psnr_seen"] > frames["50"]["psnr"] + 0.5, "what the start shows is known, the rest invented"
    assert 0 < frames["50"]["depth_absrel"] < 0.2
    assert judged.figures["scene"]["stratum"] == "revisit"
    assert judged.figures["seconds"] > 0


def test_a_fill_that_worsens_what_is_valid_is_told_from_its_prior(engine):
    class Darker(CacheFill):
        def fill(self, context, priors, plan, spec):
            yield from (0.9 * frame for frame in super().fill(context, priors, plan, spec))

    darker = replace(engine, models=replace(engine.models, fill=Darker()))
    judged = judge_scene(ToyScenes(frames=50).scene(0), QUICK, darker, NO_POSES)
    assert judged.figures["frames"]["50"]["psnr_prior"] > judged.figures["frames"]["50"]["psnr_valid"] + 1
    prior, made = (judged.pictures[f"50-{which}"].astype(float) for which in ("prior", "made"))
    assert made[prior > 0].mean() == pytest.approx(0.9 * prior[prior > 0].mean(), rel=0.02)


def test_features_and_pictures_are_kept_for_all_scenes_together(judged):
    assert judged.features["alexnet-50-made"].shape == judged.features["alexnet-50-truth"].shape
    assert set(judged.pictures) == {f"{n}-{w}" for n in (1, 50) for w in ("truth", "prior", "made")}
    np.testing.assert_array_equal(judged.pictures["1-made"], judged.pictures["1-truth"])
    np.testing.assert_array_equal(judged.pictures["1-prior"], judged.pictures["1-made"])


def test_a_path_that_comes_back_sees_the_same_again(judged):
    scene = ToyScenes().scene(1)
    pairs = returns(scene, 4.0)
    assert all(abs(i + j - 53) <= 1 for i, j in pairs)
    assert all(j - i >= 40 for i, j in pairs)
    assert judged.figures["revisit"]["pairs"] == len(pairs) > 2
    assert judged.figures["revisit"]["revisit_psnr"] > 20
    assert judged.figures["revisit"]["return_psnr"] > 20
    assert returns(ToyScenes().scene(0), 4.0) == []


def test_poses_are_left_out_as_asked_and_a_path_too_short_has_no_later_window(judged):
    assert "poses" not in judged.figures
    assert "200" not in judged.figures["frames"]


def test_a_wrong_start_depth_shows_in_the_figures(engine):
    scene = ToyScenes(frames=50).scene(0)
    wrong = replace(QUICK, depth_fault="scale", depth_amount=0.3)
    exact, spoiled = (
        judge_scene(scene, variant, engine, NO_POSES).figures["frames"]["50"] for variant in (QUICK, wrong)
    )
    assert spoiled["depth_absrel"] == pytest.approx(0.3, abs=0.05)
    assert exact["depth_absrel"] < 0.1
    assert exact["psnr_valid"] > spoiled["psnr_valid"] + 0.3


def test_holes_that_are_not_there_have_no_figure(engine):
    scene = ToyScenes(count=1, frames=50).scene(0)
    still = replace(scene.cameras, c2w=np.repeat(scene.cameras.c2w[:1], 50, 0))
    pictures, depth = scene.truth([0])
    held = replace(scene, cameras=still, truth=lambda frames: (pictures[[0] * len(frames)], depth[[0] * len(frames)]))
    figures = judge_scene(held, QUICK, engine, NO_POSES).figures
    assert figures["frames"]["50"]["valid_share"] > 0.98
    assert figures["frames"]["50"]["psnr_seen"] == pytest.approx(figures["frames"]["50"]["psnr"]), "it shows all of it"
    assert math.isnan(figures["frames"]["1"]["psnr_holes"])
