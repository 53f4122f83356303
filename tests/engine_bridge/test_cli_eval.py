"""`worldwarp eval`: figures, a report and experiments in one command each, which go on where they stopped."""

import json
import re
import shutil

import pytest

from engine_bridge.cli import app
from tests.support import room
from tests.support.random_lpips import save_random_lpips
from tests.support.re10k import write_re10k
from tests.support.tiny_preview import save_tiny_preview
from tests.support.toy_scenes import ToyScenes
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation import judge, run
from worldwarp_core.evaluation.experiments import EXPERIMENTS
from worldwarp_core.evaluation.judge import Judged
from worldwarp_core.preview.weights import read_network, save_network

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ("--size", "48x32", "--poses-every", 0, "--window-every", 5, "--device", "cpu")


@pytest.fixture
def rooms(monkeypatch):
    """Rooms in the worlds' place, and fits of a few steps: this is about the commands."""
    from worldwarp_core import engine

    cache = engine.CPU.cache
    monkeypatch.setattr(run, "open_scenes", lambda options: ToyScenes(2))
    monkeypatch.setattr(
        engine, "CPU", engine.replace(engine.CPU, cache=engine.replace(cache, first_steps=4, update_steps=2))
    )


@pytest.fixture(scope="module")
def preview(tmp_path_factory):
    return save_tiny_preview(tmp_path_factory.mktemp("preview"))


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    return save_random_lpips(tmp_path_factory.mktemp("lpips"))


def worldwarp(*words):
    app([*map(str, words)], standalone_mode=False)


def test_one_command_leaves_every_figure_and_a_report_that_stands_alone(tmp_path, rooms, lpips, capfd):
    worldwarp("eval", "--out", tmp_path, "--lpips", lpips, "--weights", tmp_path / "none", *QUICK)
    said = capfd.readouterr()
    assert "preview is left out" in said.err
    assert "fid cannot be measured" in said.err
    quality = json.loads((tmp_path / "preview_quality.json").read_text())
    assert quality["preview"] is None
    assert "came without" in quality["missing"]["preview"]
    assert quality["missing"].keys() >= {"fid", "r_dist", "chunk_s_h100"}
    at_50 = quality["cache"]["50"]
    assert at_50["psnr"] > 10
    assert at_50["lpips"] > 0
    assert at_50["kid_crops"] > 0
    assert quality["cache"]["200"]["psnr"] is None  # the rooms are 54 frames long
    assert quality["cache"]["revisit_psnr"] > 15
    assert quality["cache"]["seeds"] == [0]
    assert set(quality["cache"]["strata"]) == {"half", "revisit"}
    assert {"commit", "versions", "cpu", "gpu", "date", "settings"} <= set(quality)
    page = (tmp_path / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "room-0" in page
    assert "came without" in page


def test_a_run_that_was_stopped_goes_on_and_makes_nothing_again(tmp_path, rooms, monkeypatch, capfd):
    made, real = [], judge.judge_scene

    def stopped(scene, *rest):
        if len(made) == 1:
            raise MemoryError
        made.append(scene.name)
        return real(scene, *rest)

    monkeypatch.setattr(run, "judge_scene", stopped)
    words = ("eval", "--out", tmp_path, "--engine", "cache", *QUICK)
    with pytest.raises(MemoryError):
        worldwarp(*words)
    monkeypatch.setattr(run, "judge_scene", lambda scene, *rest: made.append(scene.name) or real(scene, *rest))
    worldwarp(*words)
    assert made == ["room-0", "room-1"]
    assert json.loads((tmp_path / "preview_quality.json").read_text())["cache"]["paths"] == 2
    with pytest.raises(WorldWarpError, match="window_every was 5 and is 1"):
        worldwarp("eval", "--out", tmp_path, "--engine", "cache", *QUICK[:4], "--device", "cpu")


def test_experiments_about_the_cache_leave_tables_plots_and_places_in_the_report(tmp_path, rooms, capfd):
    results = tmp_path / "results"
    worldwarp("eval", "--out", tmp_path, "--engine", "cache", *QUICK)
    worldwarp("eval", "experiment", "persistence", "cache", "--out", tmp_path, "--results", results, *QUICK)
    table = json.loads((results / "experiment_persistence.json").read_text())
    assert [row["arm"] for row in table["rows"]] == ["persistent", "rebuilt each chunk"]
    assert all(row["revisit_psnr"] > 10 for row in table["rows"])
    assert table["paths"] == ["room-1"]
    assert (results / "experiment_persistence.png").read_bytes()[1:4] == b"PNG"
    table = json.loads((results / "experiment_cache.json").read_text())
    assert [row["arm"] for row in table["rows"]] == ["online 3DGS", "point cloud"]
    assert table["paths"] == ["room-0"]
    assert any("none is left out" in note for note in table["notes"])
    assert table["curves"]["psnr"]["point cloud"]["40"] > 5
    worldwarp("eval", "report", tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert table["question"] in page
    assert "point cloud" in page


def test_an_experiment_about_noise_is_refused_without_a_learned_fill(tmp_path, rooms):
    with pytest.raises(WorldWarpError, match="came without the preview's trained") as caught:
        worldwarp("eval", "experiment", "noise", "--out", tmp_path, "--weights", tmp_path / "none", *QUICK)
    assert caught.value.code == "no_weights"
    with pytest.raises(WorldWarpError, match="no learned fill"):
        worldwarp("eval", "experiment", "strength", "--engine", "cache", "--out", tmp_path, *QUICK)
    assert not (tmp_path / "runs").exists()


def test_all_experiments_are_run_in_one_command(tmp_path, rooms, preview, monkeypatch):
    done = []

    def judged(scene, variant, *rest):
        done.append((scene.name, variant))
        facts = {"name": scene.name, "kind": scene.kind, "stratum": scene.stratum, "frames": 54}
        return Judged({"scene": facts, "frames": {"50": {"psnr": 20.0}}, "summary": {}})

    monkeypatch.setattr(run, "judge_scene", judged)
    worldwarp("eval", "experiment", "all", "--engine", "preview", "--weights", preview, "--out", tmp_path, *QUICK)
    tables = {p.stem for p in (tmp_path / "experiments").glob("*.json")}
    assert tables == {f"experiment_{name.replace('-', '_')}" for name in EXPERIMENTS}
    assert len(done) == len(set(done)), "what several experiments compare with is made once"


@pytest.mark.parametrize("name", ["noise", "cache"])
def test_experiments_run_with_a_learned_fill(tmp_path, rooms, preview, lpips, name):
    words = ("--engine", "preview", "--weights", preview, "--lpips", lpips, *QUICK)
    worldwarp("eval", "experiment", name, "--out", tmp_path, *words)
    table = json.loads((tmp_path / "experiments" / f"experiment_{name}.json").read_text())
    assert table["learned_fill"] is True
    figures = [row["psnr@50"] for row in table["rows"]]
    assert len(figures) == {"noise": 4, "cache": 3}[name]
    assert len(set(figures)) == len(figures)  # every arm made other pictures


def test_shots_of_other_weights_are_not_taken_for_these(tmp_path, rooms, preview):
    weights = shutil.copytree(preview, tmp_path / "weights")
    words = ("eval", "--out", tmp_path / "out", "--engine", "preview", "--weights", weights, *QUICK)
    worldwarp(*words)
    network = read_network(weights, "transformer")
    save_network(weights, "transformer", network.state, network.config, {"steps": 6, "clips": 8})
    with pytest.raises(WorldWarpError, match="other weights"):
        worldwarp(*words)


def test_footage_is_measured_by_the_preview_in_a_process_of_its_own(tmp_path, preview, lpips):
    flight = room.truck(50, width=64, height=48)
    write_re10k(tmp_path / "footage", flight, [room.render(flight, frame)[0] for frame in range(50)])
    words = ("--data", "re10k", "--footage", tmp_path / "footage", "--depth", "estimated", "--jobs", 2)
    words += ("--engine", "preview", "--weights", preview, "--lpips", lpips)
    worldwarp("eval", "--out", tmp_path / "out", *words, *QUICK)
    quality = json.loads((tmp_path / "out" / "preview_quality.json").read_text())
    assert quality["preview"]["scenes"] == ["0a1b2c3d4e5f6789"]
    assert quality["preview"]["50"]["psnr"] > 3
    assert (quality["autoencoder_photo_db"], quality["depth_absrel"]) == (12.5, 0.5)
    assert quality["cache"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "wide"), "WIDTHxHEIGHT"),
        (("--size", "100x60"), "multiples of 16"),
        (("--data", "films"), "worlds, re10k, dl3dv"),
        (("--data", "re10k"), "--footage"),
        (("--jobs", 0), "at least 1"),
        (("--engine", "magic"), "no engine called"),
        (("--engine", "cache", "--depth", "estimated"), "--depth-model"),
        (("--engine", "cache", "--depth", "guessed"), "given, estimated"),
        (("--engine", "cache", "--lpips", "nowhere"), "no LPIPS weights"),
        (("experiment", "magic"), "no experiment called"),
    ],
)
def test_mistakes_are_named(tmp_path, rooms, words, said):
    with pytest.raises(WorldWarpError, match=said):
        worldwarp("eval", *words, "--out", tmp_path, *([] if "--size" in words else ["--size", "48x32"]))


def test_a_report_of_nothing_says_what_to_run(tmp_path):
    with pytest.raises(WorldWarpError, match="worldwarp eval --out"):
        worldwarp("eval", "report", tmp_path)
