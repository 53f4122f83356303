"""Clips that go on from what a transformer made, in miniature and through the engine's own sampler."""

import pytest
import torch

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from worldwarp_core.preview.transformer import CONFIG, make_transformer
from worldwarp_core.training.clips import ClipSource, WarpSettings
from worldwarp_core.training.continued import ContinuedSource
from worldwarp_core.training.imagine import Imagination
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.stdiff import StDiffTask, StDiffTraining

TINY = CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2}
FRAMES = 9

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    autoencoder = PreviewAutoencoder(AutoencoderConfig(encoder=(8, 8, 8), decoder=(8, 8, 8), guide=(8, 8))).eval()
    return Imagination(autoencoder, make_transformer(TINY), steps=2)


@pytest.fixture(scope="module")
def clips():
    return ClipSource("train", size=(32, 48), frames=FRAMES, warps=WarpSettings(exact=1.0))


def test_a_clip_that_goes_on_is_walked_back_from_the_last_frame_that_was_made(engine, clips):
    plain = clips.batch(2, 0)
    found = ContinuedSource(clips, engine, WarpSettings(exact=1.0), share=1.0).batch(2, 0)
    for name in ("rgb", "depth", "K", "c2w"):
        assert torch.equal(getattr(found, name), getattr(plain, name).flip(1)), name
    made = engine.decode(engine.make(plain.rgb, plain.prior, plain.validity, 1, 0)).half()
    assert torch.equal(found.history, made.flip(1))
    assert not torch.equal(found.history, found.rgb), "what was made is not the truth"
    known = found.validity[:, :1, None] > 0
    assert known.float().mean() > 0.9, "it sees itself from where it stands"
    difference = (found.prior[:, :1] - found.history[:, :1]).abs() * known
    assert float(difference.mean()) < 0.02, "what is warped is what was made"
    assert (found.sources == 0).all()


def test_a_share_of_the_clips_goes_on_and_the_others_are_as_they_were(engine, clips):
    some = ContinuedSource(clips, engine, share=0.5)
    plain, found = clips.batch(6, 8), some.batch(6, 8)
    alike = [torch.equal(found.rgb[row], plain.rgb[row]) for row in range(6)]
    assert True in alike
    assert False in alike
    for row in range(6):
        assert torch.equal(found.history[row], plain.rgb[row]) == alike[row]
        assert torch.equal(found.prior[row], plain.prior[row]) == alike[row]
    assert torch.equal(some.batch(6, 8).prior, found.prior), "the same ones whenever asked"
    assert ContinuedSource(clips, engine, share=0.0).batch(2, 0).history.equal(clips.batch(2, 0).rgb)


def test_the_transformer_learns_the_truth_beside_the_history_that_was_made(engine, clips):
    source = ContinuedSource(clips, engine, share=1.0)
    task = StDiffTask(
        make_transformer(TINY),
        engine.autoencoder,
        source,
        clips.batch(1, 50),
        None,
        PoolSettings(capacity=4, first=4, batch=2, share=0.0),
        StDiffTraining(clips=2, steps=2),
    )
    batch = source.batch(1, 0)
    found = task._encode(batch, torch.tensor([5]))
    begun = batch.rgb.clone()
    begun[:, :5] = batch.history[:, :5]
    torch.testing.assert_close(found["truth"], engine.encode(begun).half())
    torch.testing.assert_close(found["prior"][:, :, :2], found["truth"][:, :, :2])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_share(engine, clips, share):
    with pytest.raises(WorldWarpError, match="share of clips") as caught:
        ContinuedSource(clips, engine, share=share)
    assert caught.value.code == "bad_settings"
