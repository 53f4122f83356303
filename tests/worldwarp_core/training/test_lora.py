"""Training a LoRA of the real classes in miniature: it learns alone, goes on, and loads as any other LoRA."""

import pytest
import torch

from tests.support import room
from tests.support.re10k import write_re10k
from tests.support.tiny_wan import TEXT_DIM, tiny_transformer, tiny_vae
from tests.support.toy_clips import ToySource
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation.folders import RealEstate10k
from worldwarp_core.preview.weights import read_network
from worldwarp_core.training.footage import FootageSource
from worldwarp_core.training.lora import LoraTask, WanLatents, export_lora, with_adapter
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.stdiff import StDiffTraining
from worldwarp_core.training.trainer import TrainSettings, train
from worldwarp_core.wan.autoencoder import WanAutoencoder
from worldwarp_core.wan.loras import LoraFile, apply_loras

CPU = torch.device("cpu")
RANK = 4

pytestmark = pytest.mark.usefixtures("one_thread")


def task():
    torch.manual_seed(0)
    source = ToySource(size=(32, 48), frames=5)
    words = torch.randn(2, 3, TEXT_DIM, generator=torch.Generator().manual_seed(5))
    return LoraTask(
        with_adapter(tiny_transformer(), RANK, CPU),
        RANK,
        WanLatents(WanAutoencoder(tiny_vae())),
        words,
        source,
        source.batch(1, 1000),
        None,
        PoolSettings(capacity=4, first=4, batch=2, share=0.0),
        StDiffTraining(clips=2, steps=2),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("lora")
    torch.set_num_threads(1)
    one = task()
    before = one.validate().figures["validation_loss"]
    frozen = {n: p.clone() for n, p in one._model.named_parameters() if ".lora_" not in n}
    settings = TrainSettings(minutes=600, steps=30, learning_rate=3e-2, warmup=3, log_every=10, average=0.8)
    progress = train(one, run, settings, CPU)
    return run, one, before, frozen, progress


def test_only_the_factors_learn_and_the_loss_falls(trained):
    _, one, before, frozen, progress = trained
    assert progress.figures["validation_loss"] < 0.97 * before
    for name, values in frozen.items():
        assert torch.equal(values, one._model.get_parameter(name)), name
    assert {"made_db", "inpainted_db"} <= set(progress.figures)


def test_what_is_saved_is_small_and_goes_on(trained):
    run, one, *_ = trained
    assert read_network(run, "lora").config == {"rank": RANK}
    assert all(name.startswith("transformer.blocks.") for name in one.network.state_dict())
    again = task()
    settings = TrainSettings(minutes=600, steps=1, learning_rate=1e-6, warmup=0)
    assert train(again, run, settings, CPU).steps == 31
    torch.testing.assert_close(again.network.state_dict(), one.network.state_dict(), atol=1e-3, rtol=0)


def test_it_loads_through_the_door_of_all_loras_and_says_the_same(trained):
    run, *_ = trained
    file = export_lora(run)
    assert file.name == "pytorch_lora_weights.safetensors"
    fused = tiny_transformer()
    apply_loras(fused, [LoraFile(run)])
    plain = tiny_transformer()
    moved = {
        name
        for name, values in fused.state_dict().items()
        if not torch.allclose(values, plain.state_dict()[name], atol=1e-5)
    }
    assert {"blocks.0.attn1.to_q.weight", "blocks.3.ffn.net.2.weight", "blocks.1.attn2.to_out.0.weight"} <= moved
    assert all(name.startswith("blocks.") for name in moved)
    adapted = with_adapter(tiny_transformer(), RANK, CPU)
    state = read_network(run, "lora").state
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.copy_(state[f"transformer.{name}".replace(".default.", ".")])
    for name in ("blocks.0.attn1.to_q", "blocks.2.ffn.net.0.proj"):
        layer = adapted.get_submodule(name)
        wanted = layer.base_layer.weight + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(fused.get_submodule(name).weight, wanted, atol=1e-4, rtol=1e-3)


def test_some_clips_are_learned_without_words_and_judged_with_them():
    one = task()
    drawn = one._text(400, torch.Generator().manual_seed(0))
    without = (drawn == one._words[1]).all(-1).all(-1).float().mean()
    assert 0.05 < without < 0.16
    assert torch.equal(one._text(2), one._words[[0, 0]])


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(WorldWarpError, match="at least 1"):
        with_adapter(tiny_transformer(), 0, CPU)


class RoomDepth:
    """The room's own depth as a model would give it, up to scale."""

    name, kind = "room", "disparity"

    def __init__(self, flight, pictures):
        self.flight, self.pictures = flight, pictures

    def disparity(self, rgb):
        found = []
        for picture in rgb:
            wanted = (picture * 255).round()
            frame = min(range(len(self.pictures)), key=lambda i: float((wanted - self.pictures[i]).abs().mean()))
            found.append(1 / torch.from_numpy(room.render(self.flight, frame)[1]))
        return 7 * torch.stack(found)


def test_footage_becomes_clips_whose_priors_are_the_frames_where_they_are_valid(tmp_path):
    flight = room.truck(52, travel=2.5, width=192, height=128)
    pictures = [room.render(flight, frame)[0] for frame in range(52)]
    write_re10k(tmp_path, flight, pictures)
    scenes = RealEstate10k(tmp_path, (128, 192))
    depth = RoomDepth(flight, [torch.from_numpy(p).float() for p in pictures])
    clips = FootageSource(scenes, depth, 9, CPU).batch(2, 3)
    assert clips.rgb.shape == clips.prior.shape == (2, 9, 3, 128, 192)
    assert clips.validity.float().mean() > 0.5
    off = (clips.prior - clips.rgb).abs().float().mean(2)[clips.validity > 0]
    assert off.mean() < 0.05
    again = FootageSource(scenes, depth, 9, CPU).batch(1, 4)
    assert torch.equal(again.rgb[0], clips.rgb[1])


def test_footage_too_short_for_a_clip_is_refused(tmp_path):
    flight = room.truck(50, width=64, height=48)
    write_re10k(tmp_path, flight, [room.render(flight, frame)[0] for frame in range(50)])
    with pytest.raises(WorldWarpError, match="at least 81 frames"):
        FootageSource(RealEstate10k(tmp_path, (48, 64)), RoomDepth(flight, []), 81, CPU).batch(1, 0)
