"""The benchmark of completed depth in miniature: every source completes the same views."""

import json

import pytest
import torch
from PIL import Image

from tests.benchmarks import bench_completion
from tests.benchmarks.bench_completion import errors, summarise
from tests.support.tiny_preview import save_tiny_preview

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_compares_the_sources_and_shows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_completion, "SIZE", (36, 64))
    weights = save_tiny_preview(tmp_path / "weights")
    bench_completion.main(["--weights", str(weights), "--worlds", "3", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("completion_*.json")
    found = json.loads(file.read_text())
    assert set(found["sources"]) == {"inpainted", "scale_alone", "scale_and_shift"}
    assert found["pictures"] > 0
    assert 0 < found["sources"]["inpainted"]["absrel"] < 1
    assert Image.open(file.with_suffix(".jpg")).width == 6 * 64


def test_only_surfaces_that_are_not_known_count_and_sky_is_all_wrong():
    depth = torch.tensor([[[1.0, 2.0, 4.0, torch.inf]]])
    known = torch.tensor([[[True, False, False, False]]])
    (of_one,) = errors(torch.tensor([[[9.0, 3.0, torch.inf, 5.0]]]), depth, known)
    assert of_one.tolist() == [0.5, 1.0]


def test_pixels_are_pooled_and_pictures_counted_apart():
    found = summarise([torch.tensor([0.1]), torch.tensor([0.2, 0.2]), torch.tensor([0.6])])
    assert found == {"absrel": 0.275, "mean": 0.3, "median": 0.2}
