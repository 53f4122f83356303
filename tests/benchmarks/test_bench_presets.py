"""The benchmark of the presets in miniature: every preset makes the same chunk, and its change is told as it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks import bench_presets
from tests.benchmarks.bench_presets import STRENGTHS, Measured, open_fill, summarise
from tests.benchmarks.first_chunk import given_first, make
from tests.support.random_lpips import save_random_lpips
from tests.support.tiny_preview import save_tiny_preview
from tests.support.toy_scenes import ToyScenes
from worldwarp_core.engine import make_engine
from worldwarp_core.evaluation.variants import Variant
from worldwarp_core.transformer.float8 import multiplies_float8

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES = 9


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_tiny_preview(tmp_path_factory.mktemp("weights"))


def test_it_measures_every_preset_on_every_path_and_writes_figures_and_pictures(weights, tmp_path, monkeypatch):
    lpips = save_random_lpips(tmp_path)
    monkeypatch.setattr(bench_presets, "HeldOutWorlds", lambda *args, **more: ToyScenes(frames=FRAMES))
    bench_presets.main(["--lpips", str(lpips), "--weights", str(weights), "--out", str(tmp_path)])
    (file,) = tmp_path.glob("presets_*.json")
    found = json.loads(file.read_text())
    assert {"commit", "versions", "cores"} <= set(found)
    assert [path["name"] for path in found["paths"]] == ["room-0", "room-1"]
    assert list(found["strengths"]) == ["0.8", "0.2"]
    for rows in found["strengths"].values():
        passes = {name: row["passes"] for name, row in rows.items()}
        assert passes == {"reference": 50, "balanced": 27, "fast": 9, "fast_without_fp8": 9, "preview": 8}
        assert rows["reference"]["from_reference_psnr"] == 100
        assert "within_bound" not in rows["reference"]
        assert "within_bound" not in rows["preview"]
        assert 5 < rows["fast"]["from_reference_psnr"] < 100
        assert (rows["balanced"]["bound_percent"], rows["fast"]["bound_percent"]) == (5, 15)
    with Image.open(file.with_suffix(".jpg")) as sheet:
        assert sheet.width > 1000
    assert file.with_suffix(".jpg").stat().st_size < 200_000


def test_presets_differ_by_what_they_say_alone_and_float8_is_one_such_thing(weights):
    fill, scene = open_fill("cpu", weights), ToyScenes(frames=FRAMES).scene(0)
    given = given_first(make_engine("cache", "cpu", None, {}), Variant(seed=3).shot(scene))
    assert given.plan.new == range(1, FRAMES)
    assert given.spec.seed == 3

    def by(preset):
        return make(fill, given, replace(given.spec, preset=preset, strength=STRENGTHS[0], guidance=1.0))

    np.testing.assert_array_equal(by("fast"), by("fast"))
    alike = np.array_equal(by("fast"), by("fast_without_fp8"))
    assert alike != multiplies_float8(torch.device("cpu"))


def test_a_preset_is_within_its_bound_by_the_median_of_what_each_path_changes():
    def path(reference, balanced, fast):
        rows = zip(("reference", "balanced", "fast"), (reference, balanced, fast), strict=True)
        figures = {name: {"lpips": lpips, "psnr_valid": 20 - lpips, "passes": 3} for name, lpips in rows}
        return Measured({"strengths": {"0.8": figures}}, np.zeros(0), {})

    rows = summarise([path(0.1, 0.11, 0.11), path(0.2, 0.202, 0.24), path(1.0, 1.06, 1.1)])["0.8"]
    assert rows["balanced"]["lpips_change_percent"] == {"median": 6.0, "quartiles": [3.5, 8.0]}
    assert rows["balanced"]["lpips_mean_change_percent"] == pytest.approx(5.538, abs=1e-3)
    assert (rows["balanced"]["within_bound"], rows["balanced"]["paths_within_bound"]) == (False, 1)
    assert (rows["fast"]["within_bound"], rows["fast"]["paths_within_bound"]) == (True, 2)
    assert rows["balanced"]["psnr_valid_change_db"]["median"] == pytest.approx(-0.01)
