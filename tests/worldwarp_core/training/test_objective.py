"""The training objective against the sampler: what is drawn is what is visited, and the target leads to the truth."""

import pytest
import torch

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.st_diff.denoise import SamplerSettings, compose_latents, denoise
from worldwarp_core.st_diff.noise_map import (
    REFERENCE_SIGMAS,
    build_sigma_map,
    expand_to_latents,
    sigma_schedule,
    start_sigma,
)
from worldwarp_core.training.objective import (
    ObjectiveSettings,
    draw_levels,
    draw_states,
    velocity_loss,
)

FRAMES, ROWS, COLS = 4, 4, 6  # latents


def clips(count=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(count, 16, FRAMES, ROWS, COLS, generator=g)
    prior = truth + 0.5 * torch.randn(truth.shape, generator=g)
    confidence = torch.rand(count, FRAMES, ROWS // 2, COLS // 2, generator=g)
    confidence[confidence < 0.4] = 0
    return truth, prior, confidence, torch.tensor([0, 1, 2])[:count]


class Oracle:
    """Knows z, and answers with the velocity that the target asks for at each token's level."""

    dtype = torch.float32

    def __init__(self, truth, rule):
        self.truth, self.rule = truth, rule

    def __call__(self, latents, levels, index, encoder_hidden_states):
        sigma = levels[index].reshape(len(latents), FRAMES, ROWS // 2, COLS // 2) / 1000
        return self.rule(latents, expand_to_latents(sigma)[:, None], self.truth)


def sample(oracle, prior, truth, sigma_map, eps, sigmas):
    start = compose_latents(prior, truth[:, :, :1], eps, sigma_map)
    text = torch.zeros(1, 1, 8)
    for latents in denoise(oracle, start, sigma_map, sigmas, text, None, SamplerSettings(guidance=1.0)):
        last = latents
    return last


@pytest.mark.parametrize(("steps", "strength"), [(50, 0.8), (6, 0.8), (4, 0.35), (50, 0.35)])
def test_a_model_that_learned_the_consistent_target_ends_the_sampler_at_the_truth(steps, strength):
    truth, prior, _, _ = clips(1)
    validity = torch.rand(4 * FRAMES - 3, 8 * ROWS, 8 * COLS).round()
    validity[:, :, :16] = 1
    sigma_map = build_sigma_map(validity, strength, context=1)[None]
    assert 0 < (sigma_map == 1).sum() < sigma_map.numel() - 1
    eps = torch.randn(truth.shape, generator=torch.Generator().manual_seed(5))
    oracle = Oracle(truth, lambda x, sigma, z: (x - z) / sigma.clamp_min(1e-6))
    end = sample(oracle, prior, truth, sigma_map, eps, sigma_schedule(steps, [strength]))
    torch.testing.assert_close(end, truth, atol=2e-5, rtol=0)


def test_a_model_that_learned_the_paper_s_target_keeps_a_part_of_the_prior():
    truth, prior, _, _ = clips(1)
    sigma_map = build_sigma_map(torch.ones(4 * FRAMES - 3, 8 * ROWS, 8 * COLS), 0.35, context=1)[None]
    eps = torch.randn(truth.shape, generator=torch.Generator().manual_seed(5))
    oracle = Oracle(truth, lambda x, sigma, z: eps - z)
    end = sample(oracle, prior, truth, sigma_map, eps, sigma_schedule(50))
    start = sigma_map.max()
    torch.testing.assert_close(end[:, :, 1:], ((1 - start) * prior + start * truth)[:, :, 1:], atol=2e-5, rtol=0)


def test_the_states_drawn_are_those_that_the_sampler_visits():
    """With a perfect model the sampler walks through the very latents that `draw_states` gives for its eps."""
    truth, prior, confidence, _ = clips(1)
    settings = ObjectiveSettings(strengths=(0.6, 0.6), graded=0.0, independent=0.0, erased=0.0, jitter=False)
    drawn = draw_states(truth, prior, confidence, torch.tensor([1]), torch.Generator().manual_seed(3), settings)
    eps = torch.where(  # the target at a blank token is eps - z; at a valid one it holds the prior's error too
        drawn.learned > 0, _noise_of(drawn, truth, prior, confidence, 0.6), torch.zeros_like(truth)
    )
    sigma_map = torch.where(confidence > 0, REFERENCE_SIGMAS[20], 1.0)
    sigma_map[:, 0] = 0
    step = int(drawn.index.reshape(1, FRAMES, -1)[0, 1:].min())
    oracle = Oracle(truth, lambda x, sigma, z: (x - z) / sigma.clamp_min(1e-6))
    start = compose_latents(prior, truth[:, :, :1], eps, sigma_map)
    visited = [start]
    visited += denoise(
        oracle, start, sigma_map, list(REFERENCE_SIGMAS), torch.zeros(1, 1, 8), None, SamplerSettings(guidance=1.0)
    )
    torch.testing.assert_close(visited[step], drawn.latents, atol=2e-5, rtol=0)


def _noise_of(drawn, truth, prior, confidence, strength):
    begin = expand_to_latents(torch.where(confidence > 0, REFERENCE_SIGMAS[round((1 - strength) * 50)], 1.0))[:, None]
    return drawn.target + truth - (1 - begin) / begin * (prior - truth)


def test_context_is_clean_at_level_zero_and_outside_the_loss():
    truth, prior, confidence, context = clips()
    for target in ("consistent", "paper"):
        drawn = draw_states(
            truth, prior, confidence, context, torch.Generator().manual_seed(0), ObjectiveSettings(target=target)
        )
        index = drawn.index.reshape(len(truth), FRAMES, -1)
        for row, count in enumerate(context.tolist()):
            torch.testing.assert_close(drawn.latents[row, :, :count], truth[row, :, :count])
            assert (drawn.levels[index[row, :count]] == 0).all()
            assert (drawn.levels[index[row, count:]] > 0).all()
            assert not drawn.learned[row, :, :count].any()
        wrong_in_context = drawn.target + 100 * (1 - drawn.learned)
        assert velocity_loss(wrong_in_context, drawn) == 0
        assert velocity_loss(drawn.target + 2, drawn) == pytest.approx(4, rel=1e-5)


def test_valid_tokens_hold_at_their_start_until_the_schedule_is_there():
    truth, prior, confidence, _ = clips(3)
    none = torch.zeros(3, dtype=torch.int64)
    settings = ObjectiveSettings(strengths=(0.5, 0.5), graded=0.0, independent=0.0, erased=0.0, jitter=False)
    seen = set()
    for seed in range(40):
        drawn = draw_states(truth, prior, confidence, none, torch.Generator().manual_seed(seed), settings)
        levels = drawn.levels[drawn.index].reshape(confidence.shape)
        for clip in range(3):
            blank, valid = levels[clip][confidence[clip] == 0], levels[clip][confidence[clip] > 0]
            assert (blank == blank[0]).all()
            torch.testing.assert_close(valid, blank[0].clamp(max=REFERENCE_SIGMAS[25]).expand_as(valid))
            seen.add(bool(blank[0] > REFERENCE_SIGMAS[25]))
    assert seen == {True, False}


def test_graded_starts_are_the_noise_map_s():
    """Confidence c acts as strength 1 - c (1 - strength), on the same table."""
    truth, prior, confidence, _ = clips(1)
    confidence = (confidence * 8).round() / 8
    settings = ObjectiveSettings(strengths=(0.5, 0.5), graded=1.0, independent=0.0, erased=0.0, jitter=False)
    none = torch.zeros(1, dtype=torch.int64)
    highest = torch.zeros_like(confidence)
    for seed in range(400):  # the first step is the one at which every token stands at its start
        drawn = draw_states(truth, prior, confidence, none, torch.Generator().manual_seed(seed), settings)
        highest = torch.maximum(highest, drawn.levels[drawn.index].reshape(confidence.shape))
    wanted = torch.tensor(REFERENCE_SIGMAS)[(confidence * 0.5 * 50).long()]
    torch.testing.assert_close(highest, wanted)


def test_levels_fall_from_one_to_zero_and_stay_between_their_neighbours():
    reference = torch.tensor(REFERENCE_SIGMAS)
    assert torch.equal(draw_levels(torch.Generator(), jitter=False), reference)
    drawn = torch.stack([draw_levels(torch.Generator().manual_seed(s)) for s in range(50)])
    assert (drawn[:, 0] == 1).all()
    assert (drawn[:, -1] == 0).all()
    assert (drawn.diff(dim=1) <= 0).all()
    assert (drawn[:, 1:-1].std(0) > 0).all()


def test_frames_at_steps_of_their_own_happen_when_asked_for():
    truth, prior, confidence, _ = clips(1)
    none = torch.zeros(1, dtype=torch.int64)
    settings = ObjectiveSettings(independent=1.0, erased=1.0)
    drawn = draw_states(truth, prior, confidence, none, torch.Generator().manual_seed(1), settings)
    frames = drawn.index.reshape(FRAMES, -1)
    assert (frames == frames[:, :1]).all()
    assert len(frames[:, 0].unique()) > 1


def test_the_usual_strength_is_drawn_as_often_as_asked():
    truth, prior = torch.zeros(400, 1, 1, 4, 4), torch.ones(400, 1, 1, 4, 4)

    def above(usual):
        """Clips of valid tokens that stand higher than any at the usual strength can."""
        settings = ObjectiveSettings(strengths=(0.9, 0.9), usual=usual, usual_strength=0.2, graded=0.0, erased=0.0)
        drawn = draw_states(
            truth, prior, torch.ones(400, 1, 2, 2), torch.zeros(400, dtype=torch.int64), torch.Generator(), settings
        )
        return int((drawn.levels[drawn.index[:, 0]] > start_sigma(0.25)).sum())

    assert above(1.0) == 0
    assert 0.35 * above(0.0) < above(0.5) < 0.65 * above(0.0)


def test_what_is_blank_counts_as_much_as_asked():
    confidence = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    truth, prior = torch.zeros(1, 1, 1, 4, 4), torch.ones(1, 1, 1, 4, 4)
    settings = ObjectiveSettings(graded=0.0, erased=0.0, blank_weight=4.0)
    drawn = draw_states(truth, prior, confidence, torch.zeros(1, dtype=torch.int64), torch.Generator(), settings)
    expected = torch.tensor([[1.0, 4.0], [4.0, 1.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(drawn.learned[0, 0, 0], expected)
    off = drawn.target.clone()
    off[..., :2, 2:] += 1.0  # a blank token, of 4 + 4 + 1 + 1
    torch.testing.assert_close(velocity_loss(off, drawn), torch.tensor(0.4))


FEW = ObjectiveSettings(strengths=(0.6, 0.6), graded=0.0, independent=0.0, erased=0.0, steps=7)


def test_a_sampler_of_few_steps_meets_every_state_that_is_drawn_for_it_and_no_others():
    truth, prior, confidence, _ = clips(3)
    none = torch.zeros(3, dtype=torch.int64)
    schedule = torch.tensor(sigma_schedule(7, [0.6]))
    start = REFERENCE_SIGMAS[20]
    seen = set()
    for seed in range(60):
        drawn = draw_states(truth, prior, confidence, none, torch.Generator().manual_seed(seed), FEW)
        now = drawn.levels[drawn.index].reshape(confidence.shape)
        for clip in range(3):
            blank = now[clip][confidence[clip] == 0][0]
            (at,) = torch.nonzero((schedule - blank).abs() < 1e-6).flatten().tolist()
            seen.add(at)
            valid = confidence[clip] > 0
            torch.testing.assert_close(now[clip], torch.where(valid, blank.clamp(max=start), blank))
    assert seen == set(range(len(schedule) - 1))
    assert len(schedule) - 1 == 8


def test_the_states_of_few_steps_are_those_the_sampler_walks_through():
    truth, prior, confidence, _ = clips(1)
    drawn = draw_states(truth, prior, confidence, torch.tensor([1]), torch.Generator().manual_seed(4), FEW)
    eps = torch.where(drawn.learned > 0, _noise_of(drawn, truth, prior, confidence, 0.6), torch.zeros_like(truth))
    sigma_map = torch.where(confidence > 0, REFERENCE_SIGMAS[20], 1.0)
    sigma_map[:, 0] = 0
    oracle = Oracle(truth, lambda x, sigma, z: (x - z) / sigma.clamp_min(1e-6))
    outset = compose_latents(prior, truth[:, :, :1], eps, sigma_map)
    text, settings = torch.zeros(1, 1, 8), SamplerSettings(guidance=1.0)
    visited = [outset, *denoise(oracle, outset, sigma_map, sigma_schedule(7, [0.6]), text, None, settings)]
    assert min(float((state - drawn.latents).abs().max()) for state in visited) < 2e-5


def test_a_sampler_of_no_steps_is_refused():
    with pytest.raises(WorldWarpError, match="at least 1 step"):
        ObjectiveSettings(steps=0)
