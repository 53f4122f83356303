"""Training the decoder in miniature: on what a transformer makes of whole clips, as the engine would ask it."""

import pytest
import torch

from tests.support.toy_clips import ToySource
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder, _in_fours
from worldwarp_core.training.decoder import DecoderTask, DecoderTraining
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.trainer import TrainSettings, train

TINY = AutoencoderConfig(latents=8, encoder=(8, 16, 16), decoder=(8, 16, 16), guide=(8, 8))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


class Knower:
    """Gives the velocity towards latents of nothing but ones, from wherever it is asked."""

    config = {"text_dim": 8}  # noqa: RUF012
    dtype = torch.float32

    def __call__(self, latents, levels, index, text):
        sigma = (levels[index] / 1000).reshape(len(latents), latents.shape[2], *(s // 2 for s in latents.shape[3:]))
        sigma = sigma.repeat_interleave(2, -2).repeat_interleave(2, -1)[:, None]
        return (latents - 1) / sigma.clamp_min(1e-6)


def task(seed=0, **settings):
    torch.manual_seed(seed)
    source = ToySource(frames=13)
    photos = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    network = PreviewAutoencoder(TINY)
    network.mean.uniform_(-1, 1)
    network.std.uniform_(0.5, 2)
    return DecoderTask(
        network,
        Knower(),
        source,
        photos,
        source.batch(2, 1000),
        photos[:1],
        None,
        PoolSettings(capacity=8, first=4, batch=4, share=0.0),
        DecoderTraining(**{"clips": 6, "frames": 5, "critic_widths": (8,)} | settings),
    )


def test_latents_are_what_the_transformer_makes_beside_the_history():
    one = task()
    clips = one._source.batch(2, 0)
    found = one._imagine(clips.rgb, clips.prior, clips.validity, context=5, seed=0)
    torch.testing.assert_close(found["made"][:, :, :2], found["true"][:, :, :2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["made"][:, :, 2:], torch.ones_like(found["made"][:, :, 2:]), atol=1e-3, rtol=0)
    assert torch.equal(found["prior"][:, :5], clips.rgb[:, :5].float()), "history is known"
    assert (found["validity"][:, :5] == 1).all()
    assert torch.equal(found["prior"][:, 5:], clips.prior[:, 5:].float())


def test_latents_and_frames_of_a_batch_belong_together():
    one = task(photos=0.0)
    batch = one.draw(torch.Generator().manual_seed(3))
    assert batch.guided.any()
    assert batch.imagined.any()
    assert (batch.imagined <= batch.guided).all()
    assert not batch.guide[~batch.guided].any()
    made, clips = one._make(0), one._source.batch(4, 0)
    mirrored = torch.equal(made["rgb"], (clips.rgb.flip(-1) * 255).round().to(torch.uint8))
    history = 1 if not made["validity"][:, 1].all() else 2  # latents
    every = (clips.rgb.flip(-1) if mirrored else clips.rgb).float()
    starts = set()
    for row in range(6):
        clip, first = next(
            (clip, k)
            for clip in range(4)
            for k in range(3)
            if torch.allclose(_in_fours(every[clip][None])[0, k : k + 2].flatten(0, 1), batch.truth[row], atol=0.01)
        )
        starts.add(first)
        expected = one.network.to_latents(every[clip][None])[0, :, first : first + 2]
        if batch.imagined[row]:
            known = max(history - first, 0)
            assert torch.allclose(batch.raw[row, :, :known], expected[:, :known], atol=0.02)
            ones = one.network.denormalise(torch.ones(1, 8, 2 - known, 4, 6))[0]
            assert torch.allclose(batch.raw[row, :, known:], ones, atol=0.02)
        else:
            assert torch.allclose(batch.raw[row], expected, atol=0.02)
    assert len(starts) > 1, "clips are learned from all over their length"


def test_clips_are_learned_from_both_ways_and_with_short_and_long_histories():
    one = task()
    kinds = set()
    for seed in range(0, 32, 4):
        made, clips = one._make(seed), one._source.batch(4, seed)
        assert made["rgb"].shape == (4, 13, 3, 32, 48)
        mirrored = torch.equal(made["rgb"], (clips.rgb.flip(-1) * 255).round().to(torch.uint8))
        assert mirrored or torch.equal(made["rgb"], (clips.rgb * 255).round().to(torch.uint8))
        known = (made["validity"] == 255).flatten(2).all(2).sum(1)
        assert len(known.unique()) == 1
        kinds.add((mirrored, int(known[0])))
    assert kinds == {(False, 1), (False, 5), (True, 1), (True, 5)}


def test_the_critic_s_pull_rises_from_nothing():
    one, plain = task(critic_first=4, photos=0.0), task(critic=0.0, photos=0.0)
    batch = one.draw(torch.Generator().manual_seed(0))
    losses = [one.loss(batch, torch.Generator().manual_seed(0))[0] for _ in range(2)]
    without, _ = plain.loss(batch, torch.Generator().manual_seed(0))
    pulls = [float((loss - without).detach().abs()) for loss in losses]
    assert 0 < pulls[0] < pulls[1]


@pytest.mark.parametrize("wrong", [{"imagined": 2}, {"steps": 0}, {"critic": -1.0}, {"critic_first": 0}])
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(WorldWarpError):
        DecoderTraining(**wrong)


def test_photographs_come_with_latents_of_their_own():
    one = task(photos=0.5)
    batch = one.draw(torch.Generator().manual_seed(0))
    assert not batch.guided[:3].any()
    assert torch.equal(batch.truth[:3, 0], batch.truth[:3, 3]), "the first frame stands for a latent"
    torch.testing.assert_close(batch.raw[:3], one.network.to_latents(batch.truth[:3, 3:]).detach(), atol=1e-4, rtol=0)


def test_the_decoder_learns_and_the_encoder_stays(tmp_path):
    one = task()
    before = {name: values.clone() for name, values in one.network.state_dict().items()}
    settings = TrainSettings(minutes=600, steps=30, learning_rate=5e-3, warmup=5, average=0.5, log_every=5)
    start = one.validate().figures["guided_db"]
    progress = train(one, tmp_path, settings, CPU)
    assert progress.figures["guided_db"] > start + 0.5
    assert progress.figures["made_detail"] > 0
    after = one.network.state_dict()
    for name, values in before.items():
        if name.startswith("encoder.") or name in ("mean", "std"):
            assert torch.equal(values, after[name]), name
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_the_critic_pulls_where_latents_are_imagined_alone():
    one = task(imagined=0.0, photos=0.0)
    batch = one.draw(torch.Generator().manual_seed(0))
    loss, parts = one.loss(batch, torch.Generator().manual_seed(0))
    plain, _ = task(imagined=0.0, photos=0.0, critic=0.0).loss(batch, torch.Generator().manual_seed(0))
    assert loss == plain
    assert "critic" in parts
    one = task(imagined=1.0, photos=0.0)
    batch = one.draw(torch.Generator().manual_seed(0))
    loss, _ = one.loss(batch, torch.Generator().manual_seed(0))
    plain, _ = task(imagined=1.0, photos=0.0, critic=0.0).loss(batch, torch.Generator().manual_seed(0))
    assert loss != plain
