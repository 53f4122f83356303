"""`worldwarp train`: a run that can be watched, goes on, and says in a sentence what is wrong."""

import logging
from dataclasses import asdict, replace

import pytest
import torch

from engine_bridge.cli import app
from tests.support.tiny_preview import save_tiny_preview
from tests.support.tiny_wan import save_tiny_wan, tiny_transformer
from tests.support.toy_clips import ToySource
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.preview.autoencoder import PreviewAutoencoder
from worldwarp_core.preview.weights import read_network, save_network
from worldwarp_core.wan.loras import LoraFile, apply_loras

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def toy_worlds(monkeypatch):
    """Toy clips in the worlds' place, and one thread: tiny tensors are slowest on many."""
    from worldwarp_core.training import run

    class Bank:
        groups: dict = {}  # noqa: RUF012

    asked = []

    def toy(split, seed, size, frames, device, bank, warps=None):
        asked.append((split, size, frames, warps))
        return ToySource(size, frames)

    monkeypatch.setattr(run, "ClipSource", toy)
    monkeypatch.setattr(run, "ViewSource", lambda *args, **more: toy(*args, **more, warps="none, views"))
    monkeypatch.setattr(run, "build_bank", lambda *args, **more: Bank())
    monkeypatch.setattr("worldwarp_core.preview.depth.WORKED_AT", 64)
    monkeypatch.setitem(run.DEFAULTS, "depth", replace(run.DEFAULTS["depth"], judged=1))
    return asked


def train(*words):
    app([*map(str, words)], standalone_mode=False)


def test_a_run_of_the_depth_network_goes_on_where_it_stopped(tmp_path, toy_worlds, capfd):
    words = ("train", "depth", "--run", tmp_path, "--steps", 2, "--size", "32x32", "--batch", 2, "--pool", 4)
    train(*words, "--device", "cpu")
    train(*words, "--device", "cpu")
    assert read_network(tmp_path, "depth").progress["steps"] == 4
    assert "4 steps" in capfd.readouterr().err
    assert {warps for *_, warps in toy_worlds} == {"none, views"}


def test_clips_of_several_shapes_are_learned_from_and_one_is_judged(tmp_path, toy_worlds):
    train("train", "vae", "--run", tmp_path, "--also", "48x32x9", "--also", "32x64x5", "--steps", 3, "--size", "32x32",
          "--frames", 9, "--batch", 1, "--pool", 12, "--device", "cpu")  # fmt: skip
    shapes = [(split, size, frames) for split, size, frames, _ in toy_worlds]
    assert shapes.count(("train", (32, 48), 9)) == shapes.count(("train", (64, 32), 5)) == 1
    assert [shape for shape in shapes if shape[0] == "val"] == [("val", (32, 32), 9)]
    assert read_network(tmp_path, "autoencoder").progress["steps"] == 3


def test_a_share_of_the_clips_is_warped_by_the_engine_s_own_cache(tmp_path, toy_worlds, monkeypatch):
    made_ready = []
    monkeypatch.setattr("worldwarp_core.splats.prepare.prepare_rasterizer", made_ready.append)
    train("train", "vae", "--run", tmp_path, "--cached", 0.5, "--steps", 1, "--size", "32x32", "--frames", 5,
          "--batch", 1, "--pool", 2, "--device", "cpu")  # fmt: skip
    assert made_ready == ["cpu"]
    assert [warps.cached for split, *_, warps in toy_worlds if split == "train"] == [0.5]
    assert [warps.cached for split, *_, warps in toy_worlds if split == "val"] == [0.0], "what is judged by stays"


def test_a_lora_of_wan_is_trained_by_one_command_and_is_a_lora_like_others(tmp_path, toy_worlds):
    wan = save_tiny_wan(tmp_path / "wan")
    words = ("--weights", wan, "--transformer", "base", "--rank", 2, "--prompt", "a courtyard of warm stone")
    size = ("--size", "48x32", "--frames", 5, "--pool", 2, "--steps", 2, "--device", "cpu")
    train("train", "lora", "--run", tmp_path / "run", *words, *size)
    transformer = tiny_transformer()
    before = transformer.blocks[0].attn1.to_q.weight.clone()
    apply_loras(transformer, [LoraFile(tmp_path / "run")])
    assert not torch.equal(transformer.blocks[0].attn1.to_q.weight, before)


def test_a_transformer_learns_few_steps_from_a_teacher_and_the_decoder_from_what_it_makes(tmp_path, toy_worlds):
    trained, weaker = save_tiny_preview(tmp_path / "trained"), save_tiny_preview(tmp_path / "weaker")
    earlier = read_network(weaker, "transformer")
    earlier.state["proj_out.weight"] *= 0.5
    save_network(weaker, "transformer", earlier.state, earlier.config, {})
    small = ("--size", "48x32", "--steps", 1, "--batch", 2, "--pool", 16, "--device", "cpu")
    folders = ("--autoencoder", trained, "--teacher", trained, "--weaker", weaker)
    train("train", "stdiff", "--run", tmp_path / "few", *folders, "--frames", 9, *small)
    student, teacher = (read_network(tmp_path / name, "transformer") for name in ("few", "trained"))
    assert student.progress["steps"] == 1
    assert student.config.items() >= teacher.config.items()
    change = max(float((values - teacher.state[name]).abs().max()) for name, values in student.state.items())
    assert 0 < change < 0.01, "it starts as the teacher"

    moved = ("--student", tmp_path / "few", "--before", trained, "--teacher", trained, "--run", tmp_path / "on")
    train("train", "move", *moved)
    on = read_network(tmp_path / "on", "transformer")
    assert all(torch.equal(values, student.state[name]) for name, values in on.state.items()), "its teacher stood still"

    network = PreviewAutoencoder()
    save_network(tmp_path / "decoder", "autoencoder", network.state_dict(), asdict(network.config), {"steps": 3})
    decoder = ("vae", "--run", tmp_path / "decoder", "--freeze-encoder", "--transformer", tmp_path / "few")
    toy_worlds.clear()
    train("train", *decoder, *small)
    assert {frames for _, _, frames, _ in toy_worlds} == {49}, "whole chunks, as the engine samples them"
    progress = read_network(tmp_path / "decoder", "autoencoder").progress
    assert progress["steps"] == 4
    assert "made_detail" in progress["figures"]


def test_a_transformer_is_not_led_away_from_itself_nor_a_decoder_taught_beside_no_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr("worldwarp_core.training.run.build_bank", None)  # before any clip is made
    trained = save_tiny_preview(tmp_path / "trained")
    folders = ("--autoencoder", trained, "--teacher", trained, "--weaker", trained)
    with pytest.raises(WorldWarpError, match="are the same"):
        train("train", "stdiff", "--run", tmp_path / "few", *folders, "--device", "cpu")
    with pytest.raises(WorldWarpError, match="Guidance must be"):
        train("train", "stdiff", "--run", tmp_path / "few", *folders, "--guidance", 0.5, "--device", "cpu")
    with pytest.raises(WorldWarpError, match="1 step"):
        train("train", "stdiff", "--run", tmp_path, "--autoencoder", trained, "--for-steps", 0, "--device", "cpu")
    words = ("--run", tmp_path / "decoder", "--freeze-encoder", "--transformer", trained, "--device", "cpu")
    with pytest.raises(WorldWarpError, match="autoencoder's run"):
        train("train", "vae", *words)


def test_a_share_of_the_clips_goes_on_from_what_a_trained_transformer_made(tmp_path, toy_worlds, monkeypatch):
    trained, continued = save_tiny_preview(tmp_path / "trained"), []

    def go_on(source, engine, warps):
        continued.append((engine, warps.cached))
        return source

    monkeypatch.setattr("worldwarp_core.training.run.ContinuedSource", go_on)
    words = ("train", "stdiff", "--run", tmp_path / "run", "--autoencoder", trained, "--size", "48x32", "--frames", 9,
             "--steps", 1, "--batch", 2, "--pool", 16, "--cached", 0.25, "--device", "cpu")  # fmt: skip
    train(*words, "--maker", trained)
    ((engine, cached),) = continued
    assert cached == 0.25
    assert engine.steps == 7
    weights = read_network(trained, "transformer").state
    torch.testing.assert_close(
        dict(engine.transformer.named_parameters())["proj_out.weight"], weights["proj_out.weight"]
    )
    with pytest.raises(WorldWarpError, match="no weights of the preview network 'transformer'"):
        train(*words, "--maker", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("depth", "--size", "wide"), "WIDTHxHEIGHT"),
        (("depth", "--size", "100x60"), "multiples of 16"),
        (("depth", "--frames", 7), "4k"),
        (("depth", "--minutes", 0), "above 0"),
        (("depth", "--schedule", "linear"), "constant or cosine"),
        (("vae", "--cached", 2), "cached clips"),
        (("vae", "--also", "wide"), "WIDTHxHEIGHTxFRAMES"),
        (("vae", "--also", "32x40x5"), "multiples of 16"),
        (("vae", "--also", "32x32x6"), "4k"),
        (("vae", "--also", "32x32x5", "--pool", 1, "--size", "32x32"), "at least 2 batches"),
        (("vae", "--also", "32x32x17", "--size", "32x32"), "shapes to learn from are the same"),
        (("depth", "--also", "32x32x9", "--size", "32x32"), "sides of the pictures to learn from are the same"),
        (("stdiff", "--autoencoder", "nowhere", "--size", "32x32", "--frames", 5), "no weights"),
        (("stdiff", "--autoencoder", "nowhere", "--gpus", 64), "64 devices"),
        (("stdiff", "--autoencoder", "nowhere", "--teacher", "nowhere"), "both --teacher and --weaker"),
        (("lora", "--footage", "nowhere"), "--depth-model"),
        (("lora", "--layout", "films"), "re10k or dl3dv"),
        (("lora", "--rank", 0), "at least 1"),
    ],
)
def test_mistakes_are_named(tmp_path, toy_worlds, words, said):
    with pytest.raises(WorldWarpError, match=said):
        train("train", *words, "--run", tmp_path, "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stdiff", "--autoencoder", "nowhere"), "no weights of the preview network 'autoencoder'"),
        (("vae", "--freeze-encoder", "--transformer", "nowhere"), "no weights of the preview network 'transformer'"),
        (("vae", "--lpips", "nowhere.safetensors"), "no LPIPS weights at nowhere"),
        (("depth", "--imagenet", "nowhere.safetensors"), "nowhere.safetensors holds no EfficientNet"),
        (("depth", "--minutes", 0), "above 0"),
        (("lora", "--weights", "nowhere/models"), "nowhere/models"),
    ],
)
def test_mistakes_are_named_before_any_clip_is_made(tmp_path, monkeypatch, words, said):
    def too_late(*args, **more):
        raise AssertionError("clips are being made")

    monkeypatch.setattr("worldwarp_core.training.run.build_bank", too_late)
    with pytest.raises(WorldWarpError, match=said):
        train("train", *words, "--run", tmp_path, "--device", "cpu")


def test_what_is_being_done_and_left_out_is_said(tmp_path, toy_worlds, monkeypatch, capfd):
    monkeypatch.setattr("worldwarp_core.evaluation.lpips.find_spec", lambda name: None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a terminal, where no test listens
    train(
        "train", "vae", "--run", tmp_path, "--steps", 1, "--size", "32x32", "--batch", 2, "--pool", 4, "--device", "cpu"
    )
    said = capfd.readouterr().err
    assert "LPIPS is left out" in said
    assert "making clips to judge by" in said
