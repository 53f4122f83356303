"""Training ST-Diff in miniature, through the sampler that it is trained for."""

import json

import pytest
import torch

from tests.support.toy_clips import ToySource
from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from worldwarp_core.preview.transformer import CONFIG, make_transformer
from worldwarp_core.preview.weights import load_state, read_network
from worldwarp_core.st_diff.close_holes import close_holes
from worldwarp_core.st_diff.noise_map import SMALL_PICTURES
from worldwarp_core.training.objective import ObjectiveSettings
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.stdiff import StDiffTask, StDiffTraining
from worldwarp_core.training.trainer import TrainSettings, train

TINY = CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2}
TINY_AUTOENCODER = AutoencoderConfig(encoder=(8, 8, 8), decoder=(8, 8, 8), guide=(8, 8))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def task(seed=0, objective=None, **settings):
    torch.manual_seed(seed)
    autoencoder = PreviewAutoencoder(TINY_AUTOENCODER).eval()
    autoencoder.std.fill_(0.3)
    source = ToySource(frames=9)
    return StDiffTask(
        make_transformer(TINY),
        autoencoder,
        source,
        source.batch(2, 1000),
        None,
        PoolSettings(capacity=8, first=8, batch=4, share=0.0),
        StDiffTraining(clips=4, objective=objective or ObjectiveSettings(), steps=2, **settings),
    )


def test_the_loss_falls_and_the_transformer_loads(tmp_path):
    settings = TrainSettings(minutes=600, steps=60, learning_rate=3e-3, warmup=5, log_every=10, average=0.9)
    one = task()
    before = one.validate().figures["validation_loss"]
    progress = train(one, tmp_path, settings, CPU)
    assert progress.figures["validation_loss"] < 0.9 * before
    assert (progress.steps, progress.clips) == (60, 4)  # eight examples: each clip both ways
    assert set(progress.figures) >= {"made_db", "made_holes_db", "inpainted_db"}
    assert any("validation" in json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())

    found = read_network(tmp_path, "transformer")
    again = make_transformer(found.config)
    load_state(again, found, "transformer")
    assert again.config.num_layers == 2


def test_training_for_few_steps_brings_what_they_sample_nearer_to_the_truth(tmp_path):
    few = ObjectiveSettings(strengths=(0.8, 0.8), graded=0.0, independent=0.0, erased=0.0, steps=2)
    one = task(objective=few)

    def error():
        with torch.no_grad():
            truth = one._judged_latents["truth"].float()
            return sum(float((one.sample(row)[0] - truth[row]).square().mean()) for row in range(2)) / 2

    before = error()
    train(one, tmp_path, TrainSettings(minutes=600, steps=60, learning_rate=3e-3, warmup=5, average=0.9), CPU)
    assert error() < 0.9 * before


def test_history_is_in_place_before_a_prior_is_encoded():
    one = task()
    clips = ToySource(frames=9).batch(3, 0)
    made = one._encode(clips, torch.tensor([0, 1, 5]))
    assert made["context"].tolist() == [0, 1, 2]
    assert made["truth"].shape == made["prior"].shape == (3, 16, 3, 4, 6)
    assert made["confidence"].shape == (3, 3, 2, 3)
    # The autoencoder is causal: latents of the history are the truth's own, and those after it are not.
    torch.testing.assert_close(made["prior"][2, :, :2], made["truth"][2, :, :2])
    assert (made["prior"][2, :, 2] != made["truth"][2, :, 2]).any()
    assert (made["confidence"][2, :2] == 1).all()


def test_a_prior_s_holes_are_closed_and_its_tokens_counted_as_the_engine_will():
    clips = ToySource(frames=9).batch(3, 0)
    clips.validity[:, 1:, ::4, ::4] = 0  # cracks
    context = torch.tensor([0, 1, 5])
    plain = task()._encode(clips, context)
    one = task(noise=SMALL_PICTURES)
    made = one._encode(clips, context)
    assert torch.equal(made["truth"], plain["truth"])
    assert not torch.equal(made["prior"], plain["prior"])
    assert (made["confidence"] > 0).float().mean() > (plain["confidence"] > 0).float().mean()
    rows = torch.arange(9)[:, None, None]
    closed = close_holes(clips.prior[1].float(), torch.where(rows < 1, 1.0, clips.validity[1].float()))
    closed[0] = clips.rgb[1, 0]
    torch.testing.assert_close(made["prior"][1], one._autoencoder.encode_clips(closed[None])[0].half())


def test_a_mirrored_clip_is_mirrored_as_a_whole():
    one = task()
    clips = ToySource(frames=9).batch(2, 0)
    context = torch.tensor([1, 5])
    made, plain = one._encode(clips, context, mirrored=True), one._encode(clips, context)
    torch.testing.assert_close(made["confidence"], plain["confidence"].flip(-1))
    assert (made["truth"] != plain["truth"]).any()
