"""The critic in miniature: it learns what looks true, and pulls what is made there, where nothing is known alone."""

import pytest
import torch

from worldwarp_core.training.critic import Judgement

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(n, seed):
    """(n, 3, 3, 32, 48): three like frames of upright stripes of random colours."""
    colours = torch.rand((n, 1, 3, 1, 1), generator=torch.Generator().manual_seed(seed))
    return (colours * (torch.arange(48) // 4 % 2)).expand(n, 3, 3, 32, 48)


def test_what_is_smeared_is_pulled_towards_what_looks_true():
    judgement = Judgement(CPU, (16, 32))
    holes = torch.zeros(8, 3, 32, 48, dtype=torch.bool)
    holes[..., 24:] = True
    for step in range(60):
        truth = stripes(8, step)
        _, figures = judgement.pull(truth.mean(-1, keepdim=True).expand_as(truth), truth, holes)
    assert figures["critic"] < 0.5, "it tells them apart: a critic that guesses has 2"

    truth = stripes(8, 1000)
    made = truth.mean(-1, keepdim=True).expand_as(truth).clone()
    for _ in range(20):
        way, _ = judgement.pull(made, truth, holes)
        assert not way[..., :24].any()
        assert way[..., 24:].abs().mean() == pytest.approx(1, rel=1e-4)
        made -= 0.02 * way
    assert torch.equal(made[..., :24], truth.mean(-1, keepdim=True).expand_as(truth)[..., :24])
    assert made[..., 24:].std(-1).mean() > 0.05, "stripes, or something like them"


def test_frames_that_flicker_give_themselves_away():
    judgement = Judgement(CPU, (16, 32))
    everything = torch.ones(8, 3, 32, 48, dtype=torch.bool)
    for step in range(80):
        truth = stripes(8, step)
        flicker = truth.clone()
        flicker[:, 1] = stripes(8, step + 5000)[:, 1]  # each frame on its own is as good as the true ones
        _, figures = judgement.pull(flicker, truth, everything)
    assert figures["critic"] < 1.3, "a critic that guesses has 2"


def test_where_all_is_known_nothing_is_pulled():
    truth = stripes(2, 0)
    way, figures = Judgement(CPU, (8,)).pull(truth, truth, torch.zeros(2, 3, 32, 48, dtype=torch.bool))
    assert not way.any()
    assert all(torch.isfinite(value) for value in figures.values())


def test_every_process_starts_with_the_same_critic():
    torch.manual_seed(1)
    one = Judgement(CPU, (8,)).critic.state_dict()
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    other = Judgement(CPU, (8,)).critic.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.rand(1), expected), "and draws nothing from the others' randomness"
