"""Training as GPUs do it, in half precision, on the CPU: nothing breaks on a mixture of types, and it learns."""

import math

import pytest
import torch

from tests.support.toy_clips import ToySource
from worldwarp_core.evaluation.lpips import Lpips
from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from worldwarp_core.preview.depth import DepthNetwork
from worldwarp_core.preview.transformer import CONFIG, make_transformer
from worldwarp_core.training import precision
from worldwarp_core.training.autoencoder import AutoencoderTask, AutoencoderTraining
from worldwarp_core.training.decoder import DecoderTask, DecoderTraining
from worldwarp_core.training.depth import DepthTask, DepthTraining
from worldwarp_core.training.distill import DistillTask, DistillTraining, Teacher
from worldwarp_core.training.levels import make_trainable
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.stdiff import StDiffTask, StDiffTraining
from worldwarp_core.training.trainer import TrainSettings, train

CPU = torch.device("cpu")
POOL = PoolSettings(capacity=4, first=4, batch=2, share=0.5)
TINY = CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2}
SOURCE = ToySource(size=(32, 48), frames=9)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _in_half(monkeypatch):
    monkeypatch.setattr(precision, "HALF_ON", frozenset({"cpu"}))
    monkeypatch.setattr("worldwarp_core.preview.depth.WORKED_AT", 64)


def autoencoder():
    return PreviewAutoencoder(AutoencoderConfig(encoder=(8, 8, 8), decoder=(8, 8, 8), guide=(8, 8)))


def autoencoder_task():
    photos = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    return AutoencoderTask(
        autoencoder(),
        SOURCE,
        photos,
        SOURCE.batch(1, 99),
        photos,
        Lpips(),
        POOL,
        AutoencoderTraining(clips=4, frames=5, freeze_encoder=True),
    )


def decoder_task():
    photos = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    training = DecoderTraining(clips=4, frames=5, critic_widths=(8,))
    given = (SOURCE, photos, SOURCE.batch(1, 99), photos, Lpips(), POOL)
    return DecoderTask(autoencoder(), make_transformer(TINY), *given, training)


def stdiff_task():
    network = make_trainable(make_transformer(TINY))
    return StDiffTask(network, autoencoder(), SOURCE, SOURCE.batch(1, 99), None, POOL, StDiffTraining(clips=2, steps=2))


def distill_task():
    network, teacher = make_trainable(make_transformer(TINY)), Teacher(make_transformer(TINY), make_transformer(TINY))
    training = DistillTraining(clips=2, steps=2, substeps=2)
    return DistillTask(network, teacher, autoencoder(), SOURCE, SOURCE.batch(1, 99), None, POOL, training)


def depth_task():
    return DepthTask(DepthNetwork(), SOURCE, SOURCE.batch(1, 99), None, POOL, DepthTraining(pictures=2))


@pytest.mark.parametrize("make", [autoencoder_task, decoder_task, stdiff_task, distill_task, depth_task])
def test_every_network_trains_in_half_precision(make, tmp_path):
    torch.manual_seed(0)
    task = make()
    kinds = set()
    for module in task.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, output: kinds.add(output.dtype))
    progress = train(task, tmp_path, TrainSettings(steps=2, log_every=1), CPU)
    assert torch.bfloat16 in kinds
    assert all(math.isfinite(value) for value in progress.figures.values())
    assert all(p.dtype == torch.float32 for p in task.network.parameters())
