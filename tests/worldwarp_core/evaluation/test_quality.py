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
