"""Training the autoencoder in miniature: it learns, it goes on where it stopped, and its weights load."""

import json

import pytest
import torch

from tests.support.toy_clips import ToySource
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from worldwarp_core.preview.weights import load_state, read_network
from worldwarp_core.training.autoencoder import AutoencoderTask, AutoencoderTraining, pan_over
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.trainer import TrainSettings, _Session, read_progress, train

TINY = AutoencoderConfig(latents=8, encoder=(8, 16, 16), decoder=(8, 16, 16), guide=(8, 8))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def task(seed=0, **settings):
    torch.manual_seed(seed)
    source = ToySource()
    photos = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    return AutoencoderTask(
        PreviewAutoencoder(TINY),
        source,
        photos,
        source.batch(2, 1000),
        photos[:1],
        None,
        PoolSettings(capacity=8, first=4, batch=4, share=0.0),
        AutoencoderTraining(clips=4, frames=5, **settings),
    )


def settings(steps, learning_rate=2e-3, **more):
    return TrainSettings(
        minutes=600, steps=steps, learning_rate=learning_rate, warmup=5, log_every=5, log_at_least_every_s=1e9, **more
    )


def test_it_learns_and_the_weights_load(tmp_path):
    one = task(guided=0.2, photos=0.0)
    before = one.validate().figures
    progress = train(one, tmp_path, settings(40, average=0.5, learning_rate=5e-3), CPU)
    after = progress.figures
    assert after["autoencoder_world_db"] > before["autoencoder_world_db"] + 0.5
    assert after["guided_db"] > before["guided_db"] + 0.5
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 45, 5))
    assert (tmp_path / "samples.png").stat().st_size > 0

    found = read_network(tmp_path, "autoencoder")
    network = PreviewAutoencoder(AutoencoderConfig(**found.config))
    load_state(network, found, "autoencoder")
    assert found.progress["steps"] == 40
    assert (network.std != 1).all()


def test_a_run_goes_on_exactly_where_it_stopped(tmp_path):
    first = task()
    train(first, tmp_path, settings(6), CPU)
    again = task(seed=99)
    session = _Session(again, settings(6), CPU)
    assert session.resume(tmp_path).steps == 6
    for name, values in first.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], values)
    moments = [session.optimiser.state[p] for p in again.network.parameters()]
    assert all(float(m["step"]) == 6 for m in moments)
    assert any(m["exp_avg_sq"].any() for m in moments)
    for parameter, moment in zip(again.network.parameters(), moments, strict=True):
        assert moment["exp_avg"].stride() == parameter.stride(), "the fused optimiser of a GPU takes no other"
    assert train(again, tmp_path, settings(1), CPU).steps == 7


def test_the_time_limit_holds_between_two_lines_of_the_log(tmp_path):
    limit = TrainSettings(minutes=1e-9, log_every=10_000)
    assert train(task(), tmp_path, limit, CPU).steps == 1
    assert read_network(tmp_path, "autoencoder").progress["steps"] == 1


def test_a_slow_run_is_logged_all_the_same(tmp_path):
    train(task(), tmp_path, TrainSettings(steps=3, log_every=10_000, log_at_least_every_s=0), CPU)
    assert len([line for line in (tmp_path / "log.jsonl").read_text().splitlines() if '"loss"' in line]) == 3


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path):
    train(task(), tmp_path, settings(1), CPU)
    file = tmp_path / "resume.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WorldWarpError, match="Delete it"):
        read_progress(tmp_path, "autoencoder")
    file.unlink()
    assert read_progress(tmp_path, "autoencoder").steps == 1


def test_a_loss_that_is_not_finite_falls_back_to_the_average(tmp_path):
    one = task()
    session = _Session(one, settings(6), CPU)
    before = {name: values.clone() for name, values in session.average.items()}
    with torch.no_grad():
        next(one.network.parameters()).fill_(torch.nan)
    session.recover(one)
    assert all(torch.equal(p, before[name]) for name, p in session.learned.items())
    next(iter(session.average.values())).fill_(torch.nan)
    with pytest.raises(WorldWarpError, match="diverged"):
        session.recover(one)


def test_a_run_goes_on_from_the_shipped_weights_alone(tmp_path):
    train(task(), tmp_path, settings(6), CPU)
    shipped = read_network(tmp_path, "autoencoder").state
    (tmp_path / "resume.safetensors").unlink()
    warm = task(seed=3)
    progress = train(warm, tmp_path, TrainSettings(minutes=600, steps=1, learning_rate=1e-9, warmup=0), CPU)
    assert progress.steps == 7
    for name, values in warm.network.state_dict().items():
        if name not in ("mean", "std"):
            torch.testing.assert_close(values, shipped[name], atol=1e-6, rtol=0)


def test_a_frozen_encoder_stays_as_it_is(tmp_path):
    one = task(freeze_encoder=True)
    before = {name: values.clone() for name, values in one.network.state_dict().items()}
    train(one, tmp_path, settings(3), CPU)
    after = one.network.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("encoder.") or name in ("mean", "std")} <= same
    assert any(name.startswith("decoder.") for name in before.keys() - same)


def test_a_run_goes_on_with_its_encoder_frozen_at_the_average(tmp_path):
    train(task(), tmp_path, settings(4), CPU)
    given = read_network(tmp_path, "autoencoder").state
    later = task(seed=2, freeze_encoder=True)
    train(later, tmp_path, settings(2), CPU)
    now = read_network(tmp_path, "autoencoder").state
    frozen = [name for name in given if name.startswith("encoder.") or name in ("mean", "std")]
    assert all(torch.equal(given[name], now[name]) for name in frozen)
    assert any(not torch.equal(given[name], now[name]) for name in given if name.startswith("decoder."))
    # And back again, with all of it learned.
    assert train(task(seed=3), tmp_path, settings(1), CPU).steps == 7


def test_photographs_are_panned_over_within_their_range():
    photos = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    clips = pan_over(photos, 6, 5, (32, 48), torch.Generator().manual_seed(0))
    assert clips.shape == (6, 5, 3, 32, 48)
    assert clips.min() >= 0
    assert clips.max() <= 1
    still = (clips[:, 0] == clips[:, -1]).all(-1).all(-1).all(-1)
    assert still.any()
    assert not still.all()
