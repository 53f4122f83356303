"""Training the depth network on toy clips."""

import pytest
import torch

from tests.support.toy_clips import ToySource
from worldwarp_core.preview.depth import DepthNetwork, PreviewDepth, load_imagenet
from worldwarp_core.preview.weights import load_state, read_network
from worldwarp_core.training.depth import DepthTask, DepthTraining, _aligned
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.trainer import TrainSettings, train

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr("worldwarp_core.preview.depth.WORKED_AT", 64)


def test_the_loss_falls_and_the_network_loads(tmp_path):
    torch.manual_seed(0)
    source = ToySource(size=(32, 32), frames=5)
    task = DepthTask(
        DepthNetwork(),
        source,
        source.batch(2, 1000),
        None,
        PoolSettings(capacity=12, first=12, batch=4, share=0.0),
        DepthTraining(pictures=4),
    )
    losses = []
    one_batch = torch.Generator().manual_seed(0).get_state()
    for steps in (1, 10):
        settings = TrainSettings(minutes=600, steps=steps, learning_rate=1e-3, warmup=3, log_every=5, average=0.5)
        progress = train(task, tmp_path, settings, CPU)
        with torch.no_grad():
            generator = torch.Generator()
            generator.set_state(one_batch)
            losses.append(float(task.loss(task.draw(generator), generator)[0]))
    assert losses[1] < 0.95 * losses[0]
    assert set(progress.figures) == {"depth_absrel", "depth_within_25", "sky_accuracy"}

    network = DepthNetwork()
    load_state(network, read_network(tmp_path, "depth"), "depth")
    disparity = PreviewDepth(network.eval()).estimate(torch.rand(2, 36, 60, 3))
    assert disparity.shape == (2, 36, 60)
    assert (disparity >= 0).all()


def test_scale_does_not_count():
    truth = torch.rand(2, 8, 8)
    surface = torch.rand(2, 8, 8) > 0.3
    torch.testing.assert_close(_aligned(truth + 3.0, truth, surface), truth, atol=1e-5, rtol=0)


def test_imagenet_weights_find_their_places():
    network, other = DepthNetwork().eval(), DepthNetwork().eval()
    theirs = {f"_conv_stem.{k}": v for k, v in network.stem[0].state_dict().items()}
    theirs |= {f"_bn0.{k}": v for k, v in network.stem[1].state_dict().items()}
    blocks = [block for stage in network.stages for block in stage]
    for number, block in enumerate(blocks):
        named = [("_depthwise_conv", block.depthwise[0]), ("_bn1", block.depthwise[1])]
        named += [("_project_conv", block.project[0]), ("_bn2", block.project[1])]
        if number:  # the first block does not expand
            named += [("_expand_conv", block.expand[0]), ("_bn0", block.expand[1])]
        for name, layer in named:
            theirs |= {f"_blocks.{number}.{name}.{k}": v for k, v in layer.state_dict().items()}
    load_imagenet(other, dict(sorted(theirs.items())))
    x = y = torch.rand(1, 3, 32, 32)
    for ours, taken in zip([network.stem, *network.stages], [other.stem, *other.stages], strict=True):
        x, y = ours(x), taken(y)
    torch.testing.assert_close(x, y)
    del theirs["_blocks.3._bn1.weight"]
    with pytest.raises(ValueError, match=r"_blocks\.3\._bn1\.weight"):
        load_imagenet(other, theirs)
