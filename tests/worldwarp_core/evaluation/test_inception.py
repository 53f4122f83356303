"""FID: the network is Inception's in names and shapes, and the distance is the known one of two Gaussians."""

import pytest
import torch
from safetensors.torch import save_file

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation.inception import FEATURES, Inception, frechet_distance, inception_features

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_network_reads_pytorch_fid_s_names_and_gives_its_features(tmp_path):
    torch.manual_seed(0)
    network = Inception().eval()
    # what pytorch-fid's file has beside: the classifier, which FID does not need
    state = network.state_dict() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    assert sum(p.numel() for p in network.parameters()) == 21_785_568
    assert {"Mixed_5b.branch5x5_2.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var"} <= set(state)
    torch.save(state, tmp_path / "inception.pth")
    loaded = Inception.load(tmp_path / "inception.pth")
    pictures = torch.rand(1, 3, 64, 64)
    features = inception_features(pictures, loaded)
    assert features.shape == (1, FEATURES)
    torch.testing.assert_close(features, inception_features(pictures, network))


def test_other_weights_and_pickles_with_code_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    torch.save({"x": Bomb()}, tmp_path / "bomb.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("bomb.pth", "other.safetensors"):
        with pytest.raises(WorldWarpError) as caught:
            Inception.load(tmp_path / name)
        assert caught.value.code == "bad_weights"
    with pytest.raises(WorldWarpError) as caught:
        Inception.load(tmp_path / "none.pth")
    assert caught.value.code == "no_weights"


def test_the_frechet_distance_of_two_gaussians_is_the_known_one():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(20_000, 3, generator=generator) * torch.tensor([1.0, 2.0, 3.0])
    other = torch.randn(20_000, 3, generator=generator) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([1.0, 0.0, 0.0])
    # |mean|^2 + sum of squared differences of the deviations
    assert frechet_distance(one, other) == pytest.approx(1 + 1 + 0 + 4, abs=0.15)
    assert abs(frechet_distance(one, one)) < 1e-6
