"""Distilling in miniature: few steps learn the way of many guided ones."""

import math
from itertools import pairwise

import pytest
import torch

from tests.support.toy_clips import ToySource
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from worldwarp_core.preview.transformer import CONFIG, make_transformer
from worldwarp_core.preview.weights import read_network
from worldwarp_core.st_diff.noise_map import sigma_schedule, start_sigma
from worldwarp_core.training.distill import DistillTask, DistillTraining, Teacher, refine
from worldwarp_core.training.objective import ObjectiveSettings, velocity_loss
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.run import TrainOptions
from worldwarp_core.training.trainer import TrainSettings, train

TINY = CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2}
TINY_AUTOENCODER = AutoencoderConfig(encoder=(8, 8, 8), decoder=(8, 8, 8), guide=(8, 8))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


class Constant:
    """Everywhere the same velocity, and a list of what it was asked."""

    dtype = torch.float32

    def __init__(self, velocity):
        self.velocity, self.asked = velocity, []

    def __call__(self, latents, levels, index, text):
        self.asked.append(levels)
        return torch.full_like(latents, self.velocity)


def task(teacher=None, **settings):
    torch.manual_seed(0)
    autoencoder = PreviewAutoencoder(TINY_AUTOENCODER).eval()
    autoencoder.std.fill_(0.3)
    source = ToySource(frames=9)
    student = make_transformer(TINY)
    if teacher is None:
        torch.manual_seed(1)
        teacher = Teacher(make_transformer(TINY), Constant(0.0))
        with torch.no_grad():  # untrained transformers answer with next to nothing
            teacher.better.proj_out.weight.mul_(20)
    return DistillTask(
        student,
        teacher,
        autoencoder,
        source,
        source.batch(2, 1000),
        None,
        PoolSettings(capacity=16, first=8, batch=4, share=0.0),
        DistillTraining(**{"clips": 8, "steps": 2, "substeps": 3} | settings),
    )


def test_levels_are_refined_evenly_in_the_time_before_the_shift():
    fine = refine(sigma_schedule(7, [0.2]), 4)
    assert len(fine) == 8 * 4 + 1
    assert fine[::4] == sigma_schedule(7, [0.2])
    assert all(a > b for a, b in pairwise(fine))
    times = [sigma / (5 - 4 * sigma) for sigma in fine]
    steps = [a - b for a, b in pairwise(times)]
    assert all(math.isclose(steps[4 * k], step, abs_tol=1e-6) for k in range(8) for step in steps[4 * k : 4 * k + 4])


def test_the_teacher_is_led_away_from_its_weaker_state_where_tokens_are_blank():
    better, weaker = Constant(1.0), Constant(0.5)
    one = task(Teacher(better, weaker), guidance=3.0)
    better.asked.clear()
    clips = one._source.batch(2, 0)
    examples = one._encode(clips, torch.tensor([1, 5]))
    made = one._lead(examples, 0.2, 7)
    assert len(better.asked) == 3 * 3, "two steps and the start's own, three of the teacher's for each"
    assert made["states"].shape == (2, 4, 16, 3, 4, 6)
    assert made["schedule"][0].tolist() == pytest.approx(sigma_schedule(2, [0.2]))
    start = made["start"].repeat_interleave(2, -2).repeat_interleave(2, -1)[:, None]
    assert set(made["start"].unique().tolist()) == {0.0, start_sigma(0.2), 1.0}
    went = made["states"][:, 0] - made["states"][:, -1]
    velocity = torch.where(start == 1.0, 1.0 + 2.0 * 0.5, 1.0)
    torch.testing.assert_close(went, (velocity * start).expand_as(went), atol=1e-5, rtol=1e-5)
    for row, history in enumerate((1, 2)):
        assert torch.equal(made["states"][row, 0, :, :history], examples["prior"][row, :, :history].float())


def test_what_is_learned_is_the_way_from_each_state_to_the_next():
    one = task()
    found = one._pool.draw(8, torch.Generator().manual_seed(0))
    steps = set()
    for seed in range(3):
        drawn = one._noisy(found, torch.Generator().manual_seed(seed))
        assert velocity_loss(drawn.target, drawn) == 0
        level = drawn.levels[drawn.index].view_as(found["start"])
        for row in range(8):
            states, schedule = found["states"][row], found["schedule"][row]
            step = next(k for k in range(3) if torch.equal(states[k], drawn.latents[row]))
            steps.add(step)
            torch.testing.assert_close(level[row], found["start"][row].clamp_max(schedule[step]))
            there = found["start"][row].clamp_max(schedule[step + 1])
            gap = (there - level[row]).repeat_interleave(2, -2).repeat_interleave(2, -1)
            arrived = drawn.latents[row] + gap * drawn.target[row]
            torch.testing.assert_close(arrived, states[step + 1], atol=1e-5, rtol=0)
            assert torch.equal(drawn.learned[row, 0] > 0, gap < 0), "what holds and what is history teaches nothing"
    assert steps == {0, 1, 2}


def test_the_student_comes_to_make_what_the_teacher_makes(tmp_path):
    one = task(objective=ObjectiveSettings(usual=1.0, usual_strength=0.2))
    goal = one._judged_latents["states"][:, -1]

    def alike():  # the same noise as the judged clips were led from
        states, start = one._judged_latents["states"], one._judged_latents["start"]
        state = states[:, 0]
        schedule = one._judged_latents["schedule"][0]
        for k in range(3):
            here, there = (start.clamp_max(schedule[at]) for at in (k, k + 1))
            levels, index = here.flatten(1).unique(return_inverse=True)
            with torch.no_grad():
                velocity = one._model(state, 1000 * levels, index, one._text(2))
            gap = (there - here).repeat_interleave(2, -2).repeat_interleave(2, -1)[:, None]
            state = state + gap * velocity
        return float((state - goal).square().mean())

    before = alike()
    settings = TrainSettings(minutes=600, steps=150, learning_rate=3e-3, warmup=5, average=0.9)
    progress = train(one, tmp_path, settings, CPU)
    assert alike() < 0.7 * before
    assert set(progress.figures) >= {"validation_loss", "made_db", "made_detail"}
    assert read_network(tmp_path, "transformer").progress["sampler_steps"] == 2


def test_a_start_that_is_a_node_of_the_schedule_already_makes_examples_of_the_same_shape():
    assert len(sigma_schedule(8, [0.16])) == len(sigma_schedule(8, [0.2])) - 1
    one = task(steps=8, substeps=1)
    examples = one._encode(one._source.batch(2, 0), torch.tensor([1, 5]))
    short, usual = (one._lead(examples, strength, 0) for strength in (0.16, 0.2))
    assert {name: values.shape for name, values in short.items()} == {name: v.shape for name, v in usual.items()}
    assert torch.equal(short["states"][:, -1], short["states"][:, -2])
    for seed in range(8):  # and the step that goes nowhere is not drawn
        assert one._noisy(short, torch.Generator().manual_seed(seed)).learned.flatten(1).any(1).all()


def test_what_is_blank_counts_as_much_as_the_objective_says():
    one = task(objective=ObjectiveSettings(blank_weight=3.0))
    found = one._pool.draw(8, torch.Generator().manual_seed(0))
    drawn = one._noisy(found, torch.Generator().manual_seed(0))
    blank = (found["start"] == 1.0).repeat_interleave(2, -2).repeat_interleave(2, -1)
    counted = drawn.learned[:, 0]
    assert set(counted[blank].unique().tolist()) == {3.0}
    assert set(counted[~blank].unique().tolist()) == {0.0, 1.0}


def test_where_nothing_moves_nothing_is_learned():
    one = task()
    examples = one._encode(one._source.batch(2, 0), torch.tensor([5, 5]))
    led = one._lead(examples | {"context": torch.tensor([3, 3])}, 0.2, 0)
    drawn = one._noisy(led, torch.Generator().manual_seed(0))
    assert velocity_loss(drawn.target, drawn) == 0
    # A clip that is known whole begins to move when the schedule has come down to it, and is asked from there on.
    led = one._lead(examples | {"confidence": torch.ones(2, 3, 2, 3)}, 0.2, 0)
    for seed in range(8):
        assert one._noisy(led, torch.Generator().manual_seed(seed)).learned.any()


def test_strengths_do_not_follow_from_the_histories_of_the_clips():
    one = task(steps=1, substeps=1, objective=ObjectiveSettings(usual=0.5, usual_strength=0.2))
    usual = [len({*one._make(seed)["start"].unique().tolist()} & {start_sigma(0.2)}) == 1 for seed in range(0, 64, 4)]
    assert 3 <= sum(usual) <= 13


def test_a_teacher_needs_its_weaker_state(tmp_path):
    with pytest.raises(WorldWarpError, match="--weaker"):
        TrainOptions(run=tmp_path, teacher=tmp_path)
    with pytest.raises(WorldWarpError, match="--guidance"):
        TrainOptions(run=tmp_path, guidance=2.0)
    with pytest.raises(WorldWarpError, match="--target"):
        TrainOptions(run=tmp_path, teacher=tmp_path, weaker=tmp_path, target="paper")
    for wrong in ({"guidance": 0.5}, {"substeps": 0}, {"steps": 0}):
        with pytest.raises(WorldWarpError):
            DistillTraining(**wrong)
