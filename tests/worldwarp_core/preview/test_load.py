"""The engine's parts from weights on disk: they make a chunk, say what they ignore, and nothing stands in for them."""

import re

import numpy as np
import pytest
import torch

from tests.support.tiny_preview import TINY, save_tiny_preview
from worldwarp_core.api import default_engine
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.history import History
from worldwarp_core.loop.chunks import split_chunks
from worldwarp_core.loop.fill import FillStep
from worldwarp_core.loop.priors import Priors
from worldwarp_core.preview.load import PRESETS, load_autoencoder, load_depth, load_fill
from worldwarp_core.preview.shipped import is_shipped
from worldwarp_core.preview.weights import save_network
from worldwarp_core.spec import GenerateSpec

SIZE = (32, 48)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A folder as the package has it, of tiny networks."""
    return save_tiny_preview(tmp_path_factory.mktemp("weights"))


def spec(frames, **more):
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    K = np.tile(np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]), (frames, 1, 1))
    path = CameraPath(width=SIZE[1], height=SIZE[0], fps=24.0, frames=np.arange(1, frames + 1), c2w=c2w, K=K)
    return GenerateSpec(path, np.zeros((*SIZE, 3), np.uint8), np.ones(SIZE, np.float32), chunk=9, overlap=5, **more)


def make(fill, frames=9, **more):
    shot = spec(frames, **more)
    plan = next(plan for plan in split_chunks(frames, 9, 5) if plan.new)
    g = torch.Generator().manual_seed(1)
    rgb = torch.rand((len(plan.new), *SIZE, 3), generator=g)
    validity = torch.rand((len(plan.new), *SIZE), generator=g).round()
    ones = torch.ones_like(validity)
    count = len(plan.context)
    history = History(
        list(range(count)),
        torch.rand((count, *SIZE, 3), generator=g),
        torch.ones(count, *SIZE),
        torch.eye(4).expand(count, 4, 4),
        torch.eye(3).expand(count, 3, 3),
    )
    return list(fill.fill(history, Priors(rgb, validity, ones, validity), plan, shot)), plan


def test_the_shipped_networks_make_a_chunk_in_eight_passes_and_the_same_twice(shipped):
    assert is_shipped(shipped)
    made, plan = make(load_fill(folder=shipped), seed=4)
    frames = torch.stack([step for step in made if isinstance(step, torch.Tensor)])
    assert frames.shape == (len(plan.new), *SIZE, 3)
    assert frames.min() >= 0
    assert frames.max() <= 1
    passes = [step for step in made if isinstance(step, FillStep) and step.stage == "denoise"]
    assert len(passes) == 8
    again, _ = make(load_fill(folder=shipped), seed=4)
    assert torch.equal(frames, torch.stack([step for step in again if isinstance(step, torch.Tensor)]))
    other, _ = make(load_fill(folder=shipped), seed=5)
    assert not torch.equal(frames, torch.stack([step for step in other if isinstance(step, torch.Tensor)]))


def test_words_are_named_as_without_effect(shipped):
    fill = load_fill(folder=shipped)
    plans = split_chunks(9, 9, 5)
    quiet = [notice.message for notice in fill.prepare(spec(9), plans) if notice.code == "no_effect"]
    assert quiet == []
    shot = spec(9, prompt="a cave", guidance=4.0)
    said = " ".join(notice.message for notice in fill.prepare(shot, plans) if notice.code == "no_effect")
    assert "prompt, guidance change nothing" in said


def test_a_strength_that_loses_what_is_known_is_named_and_one_that_keeps_it_needs_no_word(shipped):
    fill = load_fill(folder=shipped)
    plans = split_chunks(9, 9, 5)
    assert list(fill.prepare(spec(9), plans)) == []
    assert list(fill.prepare(spec(9, strength=0.2), plans)) == []
    (said,) = fill.prepare(spec(9, strength=0.8), plans)
    assert said.code == "high_strength"
    assert "0.2 to 0.35" in said.message


@pytest.mark.parametrize(("steps", "word"), [(24, "overdrawn"), (3, "soft")])
def test_steps_that_were_not_learned_are_named(shipped, steps, word):
    plans = split_chunks(9, 9, 5)
    fill = load_fill(folder=shipped)
    assert list(fill.prepare(spec(9, steps=steps), plans)) == [], "any number of steps will do for this one"
    fill.learned_steps = 7
    assert list(fill.prepare(spec(9), plans)) == []
    (said,) = fill.prepare(spec(9, steps=steps), plans)
    assert said.code == "other_steps"
    assert word in said.message
    assert "7 steps" in said.message


def test_what_ships_was_distilled_for_the_preset_s_steps():
    assert load_fill().learned_steps == PRESETS["preview"].steps


def test_the_default_asks_the_transformer_at_most_eight_times():
    preset = PRESETS["preview"]
    assert preset.steps + 1 <= 8
    assert preset.sampler.guidance == 1.0


def test_what_was_trained_is_told_and_one_training_from_another(shipped, tmp_path):
    told = load_fill(folder=shipped).describe()["models"]
    assert re.fullmatch(r"trained for 5 steps \([0-9a-f]{6}\)", told)
    other = save_tiny_preview(tmp_path, autoencoder_steps=9)
    assert load_fill(folder=other).describe()["models"] != told, "its decoder was trained for longer"


def test_the_depth_model_gives_disparity(shipped):
    depth = load_depth(folder=shipped)
    disparity = depth.disparity(torch.rand(1, *SIZE, 3))
    assert disparity.shape == (1, *SIZE)
    assert depth.kind == "inverse_depth"


def test_the_preview_is_the_default_wherever_its_networks_are(monkeypatch, shipped):
    assert default_engine() == "preview", "they are in this checkout"
    monkeypatch.setattr("worldwarp_core.api.is_shipped", lambda: is_shipped(shipped))
    assert default_engine() == "preview"
    monkeypatch.setattr("worldwarp_core.api.is_shipped", lambda: is_shipped(shipped / "none"))
    assert default_engine() == "cache"


@pytest.mark.parametrize("load", [load_fill, load_autoencoder, load_depth])
def test_without_weights_nothing_stands_in_for_them(load, tmp_path):
    assert not is_shipped(tmp_path)
    with pytest.raises(WorldWarpError, match="came without") as caught:
        load(folder=tmp_path)
    assert caught.value.code == "no_weights"


def test_weights_of_another_build_are_refused(tmp_path):
    save_network(tmp_path, "transformer", {"x": torch.zeros(1)}, TINY, {})
    with pytest.raises(WorldWarpError, match="cannot be built"):
        load_fill(folder=tmp_path)
