"""Results on disk: whole or not there, of one kind of settings, and medians that leave out what cannot be told."""

import json
import math

import numpy as np
import pytest

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation.judge import Judged
from worldwarp_core.evaluation.results import ResultFolder, busy_note, by_group, summarise, write_json


def judged(name, psnr, stratum="half", **more):
    """A scene whose every frame has one PSNR."""
    frames = {str(n): {"psnr": psnr, "lpips": math.nan} for n in range(1, 56)}
    scene = {"name": name, "kind": "rooms", "stratum": stratum, "in_sight": 0.3, "frames": 55, "size": [48, 32]}
    generator = np.random.default_rng(int(psnr))
    features = {f"alexnet-50-{w}": generator.normal(size=(40, 6)).astype(np.float16) for w in ("made", "truth")}
    figures = {"scene": scene, "frames": frames, "chunk_s": 2.0, "seconds": 3.0, "summary": {}, **more}
    return Judged(figures, features, {"1-made": np.zeros((16, 16, 3), np.uint8)})


@pytest.fixture
def folder(tmp_path):
    kept = ResultFolder(tmp_path, {"size": [48, 32]})
    kept.save("cache", "a", judged("a", 10.0, poses={"50": {"r_dist": 0.1, "t_dist": math.nan, "unregistered": 0.0}}))
    kept.save("cache", "b", judged("b", 20.0, poses={"50": {"r_dist": 0.3, "t_dist": math.nan, "unregistered": 1.0}}))
    kept.save("cache", "c", judged("c", 90.0, "revisit", revisit={"revisit_psnr": 33.0}))
    return kept


def test_what_was_kept_comes_back_and_only_what_is_whole_counts(folder):
    assert [m.scene["name"] for m in folder.load("cache")] == ["a", "b", "c"]
    assert folder.done("cache", "a")
    (folder.out / "runs" / "cache" / "a" / "result.json").unlink()
    assert not folder.done("cache", "a")
    assert [m.scene["name"] for m in folder.load("cache", ["c", "a", "b"])] == ["c", "b"]
    assert folder.load("cache", ["b"])[0].picture("1-made").is_file()
    assert folder.load("cache", ["b"])[0].picture("2-made") is None


def test_other_settings_need_another_folder(folder):
    ResultFolder(folder.out, {"size": [48, 32]})
    with pytest.raises(WorldWarpError, match="size was") as caught:
        ResultFolder(folder.out, {"size": [64, 32]})
    assert caught.value.code == "other_settings"


def test_the_summary_is_the_median_of_what_can_be_told_and_revisits_stand_apart(folder):
    summary = summarise(folder.load("cache"))
    assert summary["50"]["psnr"] == 15.0
    assert math.isnan(summary["50"]["lpips"])
    assert math.isnan(summary["200"]["psnr"])
    assert summary["50"]["r_dist"] == pytest.approx(0.2)
    assert summary["50"]["unregistered"] == pytest.approx(0.5)
    assert (summary["paths"], summary["revisits"], summary["revisit_psnr"]) == (3, 1, 33.0)
    assert summary["50"]["kid_crops"] == 80
    assert summary["50"]["kid_low"] < summary["50"]["kid"] < summary["50"]["kid_high"]
    assert list(by_group(folder.load("cache"), "stratum")) == ["half", "revisit"]


def test_seconds_beside_other_work_are_said_to_be_too_long(folder):
    assert busy_note(folder.load("cache")) is None
    folder.save("cache", "d", judged("d", 30.0, busy=2.5))
    assert busy_note(folder.load("cache")).startswith(
        "The machine had other work beside this (up to 2.5 processes a core)"
    )
    folder.save("cache", "d", judged("d", 30.0, busy=2.5, jobs=8))
    assert busy_note(folder.load("cache")).startswith("Up to 8 shots were made at once, the machine had other work")
    folder.save("cache", "d", judged("d", 30.0, jobs=8))
    assert busy_note(folder.load("cache")) == "Up to 8 shots were made at once: seconds are too long."


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [np.float32(1.5), math.inf], "c": np.int64(3)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None], "c": 3}


def test_a_damaged_result_is_named_with_what_to_do(folder):
    (folder.out / "runs" / "cache" / "a" / "result.json").write_text("{")
    with pytest.raises(WorldWarpError, match="Delete its folder"):
        folder.load("cache")
