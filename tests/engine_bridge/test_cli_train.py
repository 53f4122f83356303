"""`worldwarp train`: a run that can be watched, goes on, and says in a sentence what is wrong."""

from dataclasses import replace

import pytest

from engine_bridge.cli import app
from tests.support.toy_clips import ToySource
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.preview.weights import read_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def toy_worlds(monkeypatch):
    """Toy clips in the worlds' place, and one thread: tiny tensors are slowest on many."""
    from worldwarp_core.training import run

    class Bank:
        groups: dict = {}  # noqa: RUF012

    monkeypatch.setattr(run, "ClipSource", lambda split, seed, size, frames, device, bank: ToySource(size, frames))
    monkeypatch.setattr(run, "build_bank", lambda *args, **more: Bank())
    monkeypatch.setattr("worldwarp_core.preview.depth.WORKED_AT", 64)
    monkeypatch.setitem(run.DEFAULTS, "depth", replace(run.DEFAULTS["depth"], judged=1))


def train(*words):
    app([*map(str, words)], standalone_mode=False)


def test_a_run_of_the_depth_network_goes_on_where_it_stopped(tmp_path, toy_worlds, capfd):
    words = ("train", "depth", "--run", tmp_path, "--steps", 2, "--size", "32x32", "--batch", 2, "--pool", 4)
    train(*words, "--device", "cpu")
    train(*words, "--device", "cpu")
    assert read_network(tmp_path, "depth").progress["steps"] == 4
    assert "4 steps" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("depth", "--size", "wide"), "WIDTHxHEIGHT"),
        (("depth", "--size", "100x60"), "multiples of 16"),
        (("depth", "--frames", 7), "4k"),
        (("depth", "--minutes", 0), "above 0"),
        (("depth", "--schedule", "linear"), "constant or cosine"),
        (("stdiff", "--autoencoder", "nowhere", "--size", "32x32", "--frames", 5), "no weights"),
        (("stdiff", "--autoencoder", "nowhere", "--gpus", 64), "64 devices"),
    ],
)
def test_mistakes_are_named(tmp_path, toy_worlds, words, said):
    with pytest.raises(WorldWarpError, match=said):
        train("train", *words, "--run", tmp_path, "--device", "cpu")
