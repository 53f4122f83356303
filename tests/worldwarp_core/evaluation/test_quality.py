"""The document of all figures: seconds of a chunk count only where nothing else ran beside it."""

import json
from pathlib import Path

import pytest

from worldwarp_core.evaluation import quality as module
from worldwarp_core.evaluation.quality import quality
from worldwarp_core.evaluation.results import Measured


def measured(**more):
    scene = {"name": "a", "kind": "rooms", "stratum": "half", "frames": 1, "size": [48, 32]}
    figures = {"scene": scene, "frames": {}, "chunk_s": 12.5, "seconds": 3.0, "variant": {"seed": 0}, **more}
    return [Measured(Path("runs") / "preview" / "a", figures)]


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(module, "provenance", lambda: {"gpu": None, "cores": 2})


def test_a_chunk_is_timed_on_a_machine_that_is_free():
    document = quality({"preview": measured(busy=0.9)}, {}, {})
    assert document["chunk_s_2_cores"] == 12.5
    assert "chunk_s_2_cores" not in document["missing"]
    assert "chunk_s_h100" in document["missing"]


def test_beside_other_work_the_seconds_of_before_are_kept(tmp_path):
    busy = {"preview": measured(busy=3.0)}
    document = quality(busy, {}, {})
    assert document["chunk_s_2_cores"] is None
    assert "nothing beside it" in document["missing"]["chunk_s_2_cores"]
    (tmp_path / "before.json").write_text(json.dumps({"chunk_s_2_cores": 11.5, "chunk_s_h100": 1.25}))
    document = quality(busy, {}, {}, before=tmp_path / "before.json")
    assert (document["chunk_s_2_cores"], document["chunk_s_h100"]) == (11.5, 1.25)
