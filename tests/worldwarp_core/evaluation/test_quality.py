"""The document of all figures: what was not measured now is kept from before, or said to be missing."""

import json
from pathlib import Path

import pytest

from worldwarp_core.evaluation import quality as module
from worldwarp_core.evaluation.quality import CHUNK_S, quality, timed
from worldwarp_core.evaluation.results import Measured


def measured(**more):
    scene = {"name": "a", "kind": "rooms", "stratum": "half", "frames": 1, "size": [48, 32]}
    figures = {"scene": scene, "frames": {}, "chunk_s": 12.5, "seconds": 3.0, "variant": {"seed": 0}, **more}
    return [Measured(Path("runs") / "preview" / "a", figures)]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(module, "provenance", lambda: {"gpu": None, "cores": 2})


def test_seconds_of_a_chunk_are_kept_from_before_and_told_of_where_there_are_none(tmp_path):
    document = quality({"preview": measured()}, {}, {})
    assert document["chunk_s_2_cores"] is None
    assert "bench_preview" in document["missing"]["chunk_s_2_cores"]
    (tmp_path / "before.json").write_text(json.dumps({"chunk_s_2_cores": 11.5, "chunk_s_h100": 1.25}))
    document = quality({"preview": measured()}, {}, {}, before=tmp_path / "before.json")
    assert (document["chunk_s_2_cores"], document["chunk_s_h100"]) == (11.5, 1.25)
    assert not any("chunk_s" in name for name in document["missing"])


@pytest.mark.parametrize(
    ("gpu", "cores", "figure"),
    [(None, 2, "chunk_s_2_cores"), ("NVIDIA H100 80GB HBM3", 16, "chunk_s_h100"), (None, 8, ""), ("NVIDIA L4", 2, "")],
)
def test_a_chunk_s_seconds_are_of_the_hardware_that_it_was_timed_on(gpu, cores, figure):
    before = quality({"preview": measured()}, {}, {})
    document = timed(before, {"gpu": gpu, "cores": cores}, 0.75)
    assert {name for name in CHUNK_S if document[name] == 0.75} == {figure} - {""}
    assert before["missing"].keys() - document["missing"].keys() == {figure} - {""}


def path(fill, name, stratum="half", **figures):
    frames = {str(number): figures for number in (50, 200)}
    kept = {"scene": {"name": name, "stratum": stratum}, "frames": frames, "variant": {"seed": 0}, "seconds": 1.0}
    return Measured(Path("runs") / fill / name, kept)


def test_a_fill_is_told_path_by_path_beside_the_cache_and_beside_its_own_prior():
    cache = [path("cache", name, psnr=20.0, psnr_valid=25.0, lpips=0.3) for name in "abcd"]
    fill = [
        path("preview", "a", psnr=21.0, psnr_valid=26.0, psnr_prior=25.0, lpips=0.2),
        path("preview", "b", psnr=18.0, psnr_valid=26.0, psnr_prior=26.0, lpips=0.2),
        path("preview", "c", psnr=20.5, psnr_valid=24.0, psnr_prior=25.5, lpips=0.4),
        path("preview", "d", "revisit", psnr=40.0, psnr_valid=40.0, psnr_prior=20.0, lpips=0.0),
    ]
    told = quality({"preview": fill, "cache": cache}, {}, {})["path_by_path"]["preview"]["50"]
    assert told["psnr"] == {"better": 2, "level": 0, "of": 3, "median_gain": 0.5, "least_gain": -2.0}
    assert told["lpips"] == pytest.approx({"better": 2, "level": 0, "of": 3, "median_gain": 0.1, "least_gain": -0.1})
    assert told["psnr_prior"] == {"better": 1, "level": 1, "of": 3, "median_gain": 0.0, "least_gain": -1.5}
    assert told["psnr_seen"]["of"] == 0
    assert quality({"preview": fill}, {}, {})["path_by_path"] == {}, "there is no cache to stand beside"
