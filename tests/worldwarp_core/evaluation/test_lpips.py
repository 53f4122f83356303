"""LPIPS: from a file, from the package, or not at all, which is said."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from tests.support.random_lpips import random_lpips, save_random_lpips
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation import lpips
from worldwarp_core.evaluation.lpips import Lpips, find_lpips
from worldwarp_core.evaluation.run import EvalOptions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def file(tmp_path):
    return save_random_lpips(tmp_path)


def pictures():
    return torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_it_is_zero_for_the_same_and_grows_with_the_damage(file):
    metric = Lpips.load(file)
    truth = pictures()
    little, much = (truth.lerp(torch.full_like(truth, 0.5), share) for share in (0.2, 0.8))
    assert metric(truth, truth).abs().max() < 1e-6
    assert (metric(little, truth) > 0).all()
    assert (metric(much, truth) > metric(little, truth)).all()


def test_the_packages_weights_are_those_of_a_file(file, monkeypatch):
    """The names are those of lpips 0.1.4 with torchvision's AlexNet."""
    kept = random_lpips()
    named = {f"lin{i}.model.1.weight": kept[f"lin{i}.weight"] for i in range(5)}
    convolutions = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")
    for i, name in enumerate(convolutions):
        named |= {f"net.{name}.{part}": kept[f"features.conv{i}.{part}"] for part in ("weight", "bias")}

    class Network:
        def __init__(self, net, verbose):
            assert net == "alex"

        def state_dict(self):
            return named

    package = ModuleType("lpips")
    package.LPIPS = Network
    package.__spec__ = ModuleSpec("lpips", None)
    monkeypatch.setitem(sys.modules, "lpips", package)
    found, why = find_lpips(None)
    assert why == ""
    assert torch.equal(found(pictures(), pictures().flip(-1)), Lpips.load(file)(pictures(), pictures().flip(-1)))

    def offline(self):
        raise OSError("no route to the weights")

    monkeypatch.setattr(Network, "state_dict", offline)
    assert find_lpips(None) == (None, "The package lpips cannot give its weights: no route to the weights")


def test_without_weights_it_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(lpips, "find_spec", lambda name: None)
    found, why = find_lpips(None)
    assert found is None
    # Shots that were judged without it are not taken for others.
    assert EvalOptions(tmp_path).settings()["lpips"] is None
    assert "pip install -c constraints.txt lpips" in why
    with pytest.raises(WorldWarpError, match="no LPIPS weights at"):
        find_lpips(tmp_path / "nowhere.safetensors")
