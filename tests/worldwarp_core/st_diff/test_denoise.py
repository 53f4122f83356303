import copy
import math

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from tests.support import reference_sampler
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.st_diff.denoise import SamplerSettings, compose_latents, denoise, draw_noise
from worldwarp_core.st_diff.noise_map import (
    MASK_RULES,
    REFERENCE_SIGMAS,
    NoiseSettings,
    build_sigma_map,
    expand_to_latents,
    sigma_schedule,
    start_sigma,
)
from worldwarp_core.transformer.prepare import prepare_transformer

T, H, W = 9, 64, 80  # 3 latent frames of 4x5 tokens
SHAPE = (1, 16, 3, H // 8, W // 8)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stock():
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=24, freq_dim=32, ffn_dim=48, num_layers=2
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wan(stock):
    return prepare_transformer(copy.deepcopy(stock))


@pytest.fixture(scope="module")
def clip():
    """Prior, history, noise, prompts and a validity with holes: one hole's edges cut tokens."""
    generator = torch.Generator().manual_seed(1)
    validity = torch.ones(T, H, W)
    validity[:, 22:50, 41:] = 0
    return {
        "prior": draw_noise(SHAPE, generator),
        "history": draw_noise((1, 16, 1, *SHAPE[3:]), generator),
        "noise": draw_noise(SHAPE, generator),
        "prompt": draw_noise((1, 7, 24), generator),
        "negative_prompt": draw_noise((1, 7, 24), generator),
        "validity": validity,
    }


def run(model, clip, steps=4, strength=0.8, context=1, settings=None, even=False, offset=None, **noise_settings):
    sigma_map = build_sigma_map(clip["validity"], strength, context, NoiseSettings(**noise_settings), offset)[None]
    latents = compose_latents(clip["prior"], clip["history"][:, :, :context], clip["noise"], sigma_map)
    sigmas = sigma_schedule(steps, [strength])
    if even:  # the schedule's own last step is as long at 1000 steps as at 10
        sigmas = sorted({start_sigma(strength), *torch.linspace(0, 1, steps).tolist()}, reverse=True)
    prompts = (clip["prompt"], clip["negative_prompt"])
    return list(denoise(model, latents, sigma_map, sigmas, *prompts, settings or SamplerSettings()))


def slow_run(model, clip, levels, steps, guidance):
    tensors = clip["prior"], clip["history"], clip["noise"]
    sigmas = sigma_schedule(steps, [0.8])
    return reference_sampler.sample(model, *tensors, levels, sigmas, clip["prompt"], clip["negative_prompt"], guidance)


def slow_levels(validity, variant="both", rule="ours", graded=False, offset=None):
    trust = reference_sampler.confidence(validity.numpy(), rule, graded)
    offset = None if offset is None else offset.numpy()
    return reference_sampler.start_levels(trust, 0.8, 1, variant, list(REFERENCE_SIGMAS), offset)


class Oracle(torch.nn.Module):
    """Knows the answer: the velocity is eps - z everywhere; writes down the timestep of each token it was asked for."""

    dtype = torch.float64

    def __init__(self, noise, clean):
        super().__init__()
        self.velocity = noise - clean
        self.timesteps = []

    def forward(self, hidden_states, levels, index, encoder_hidden_states):
        self.timesteps.append(levels[index])
        return self.velocity.repeat(len(hidden_states), 1, 1, 1, 1)


# Against the slow reference and diffusers


@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("batched", [True, False])
def test_the_sampler_equals_the_slow_reference(stock, wan, clip, steps, batched):
    fast = run(wan, clip, steps, settings=SamplerSettings(guidance=5.0, batched=batched))[-1]
    slow = slow_run(stock, clip, slow_levels(clip["validity"]), steps, 5.0)
    assert (slow - clip["noise"]).abs().max() > 0.1
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def test_fifty_steps_equal_the_slow_reference(stock, wan, clip):
    fast = run(wan, clip, 50, settings=SamplerSettings(guidance=2.0))[-1]
    slow = slow_run(stock, clip, slow_levels(clip["validity"]), 50, 2.0)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["both", "spatial", "temporal", "uniform", "full_noise"])
@pytest.mark.parametrize("wish", ["plain", "graded", "masked", "graded and masked"])
@pytest.mark.parametrize("rule", MASK_RULES)
def test_every_variant_rule_and_wish_equals_the_slow_reference(stock, wan, clip, variant, wish, rule):
    generator = torch.Generator().manual_seed(3)
    doubt = torch.nn.functional.interpolate(torch.rand(1, 1, 3, 3, 4, generator=generator), (T, H, W), mode="trilinear")
    clip = clip | {"validity": clip["validity"] * (0.6 + 0.4 * doubt[0, 0])}
    offset = None
    if "masked" in wish:  # by region and by frame
        offset = torch.zeros(T, H, W)
        offset[5:, :32, :40] = -0.3
        offset[:, 40:, 20:60] = 0.13
    graded = "graded" in wish
    settings = MASK_RULES[rule]
    fast = run(
        wan, clip, 3, settings=SamplerSettings(guidance=2.0), variant=variant, graded=graded, offset=offset,
        frames=settings.frames, erosion=settings.erosion,
    )[-1]  # fmt: skip
    levels = slow_levels(clip["validity"], variant, rule, graded, offset)
    assert len(np.unique(levels)) >= {"uniform": 1, "full_noise": 2, "temporal": 2}.get(variant, 2)
    slow = slow_run(stock, clip, levels, 3, 2.0)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def test_full_noise_without_context_is_diffusers_own_sampling(stock, wan, clip):
    ours = run(wan, clip, 8, strength=1.0, context=0, variant="full_noise")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5)
    scheduler.set_timesteps(8)
    latents = clip["noise"]
    for t in scheduler.timesteps:
        wanted = stock(latents, t[None], clip["prompt"]).sample
        unwanted = stock(latents, t[None], clip["negative_prompt"]).sample
        latents = scheduler.step(unwanted + 5.0 * (wanted - unwanted), t, latents).prev_sample
    assert len(ours) == 8
    torch.testing.assert_close(ours[-1], latents, rtol=1e-5, atol=1e-5)


def test_clips_of_a_batch_do_not_mix(wan, clip):
    other = torch.flip(clip["validity"], (2,))
    maps = torch.stack([build_sigma_map(v, 0.8, 1) for v in (clip["validity"], other)])
    assert not torch.equal(maps[0], maps[1])
    latents = torch.cat([clip["prior"], clip["noise"]])
    sigmas = sigma_schedule(3, [0.8])
    prompts = [torch.cat([clip["prompt"], clip["negative_prompt"]]), torch.zeros(2, 7, 24)]
    *_, together = denoise(wan, latents, maps, sigmas, *prompts)
    for b in range(2):
        *_, alone = denoise(wan, latents[b : b + 1], maps[b : b + 1], sigmas, *(p[b : b + 1] for p in prompts))
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-5, atol=1e-5)


# Schedule and hold


@pytest.mark.parametrize("variant", ["both", "spatial", "temporal", "uniform", "full_noise"])
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_with_a_perfect_model_every_token_arrives_whatever_its_start(clip, variant, graded, steps):
    """Straight lines are what Euler follows exactly, so a step missed or taken twice would show."""
    clean, noise = clip["prior"].double(), clip["noise"].double()
    doubtful = {**clip, "validity": clip["validity"] * torch.linspace(0.4, 1, W)}
    tensors = {**doubtful, "prior": clean, "noise": noise, "history": clean[:, :, :1]}
    states = run(Oracle(noise, clean), tensors, steps, variant=variant, graded=graded)
    torch.testing.assert_close(states[-1], clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [4, 50])
def test_the_model_is_told_each_token_s_own_noise_level(clip, steps):
    clean, noise = clip["prior"].double(), clip["noise"].double()
    oracle = Oracle(noise, clean)
    run(oracle, {**clip, "prior": clean, "noise": noise, "history": clean[:, :, :1]}, steps)
    sigma_map = build_sigma_map(clip["validity"], 0.8, 1).flatten()
    sigmas = sigma_schedule(steps, [0.8])
    assert len(oracle.timesteps) == len(sigmas) - 1
    for sigma, asked in zip(sigmas, oracle.timesteps, strict=False):
        assert asked.shape == (2, 3 * 4 * 5)
        for token, start in enumerate(sigma_map.tolist()):
            want = {0.0: 0.0, 1.0: 1000 * sigma}.get(start, 1000 * min(sigma, start_sigma(0.8)))
            assert asked[:, token].tolist() == pytest.approx([want, want], abs=1e-4)
        assert len(asked.unique()) <= 3


def test_valid_tokens_hold_until_the_schedule_comes_down_to_them(wan, clip):
    sigma_map = build_sigma_map(clip["validity"], 0.8, 1)[None]
    start = expand_to_latents(sigma_map)[:, None].expand(SHAPE)
    first = compose_latents(clip["prior"], clip["history"], clip["noise"], sigma_map)
    states = run(wan, clip, 50)
    valid, blank, context = start == start_sigma(0.8), start == 1, start == 0
    assert valid.any()
    assert blank.any()
    assert torch.equal(states[8][valid], first[valid])  # down to sigma[9], where they start
    assert (states[9][valid] != first[valid]).any()
    assert (states[0][blank] != first[blank]).any()
    assert torch.equal(states[-1][context], clip["history"].flatten())


def test_no_variant_moves_the_frames_it_calls_clean(wan, clip):
    for variant in ("both", "temporal", "full_noise"):
        assert torch.equal(run(wan, clip, 2, variant=variant)[-1][:, :, :1], clip["history"])
    for variant in ("spatial", "uniform"):
        assert not torch.equal(run(wan, clip, 2, variant=variant)[-1][:, :, :1], clip["history"])


# Composite


def test_the_composite_is_history_then_prior_mixed_token_by_token(clip):
    sigma_map = build_sigma_map(clip["validity"], 0.8, 1)[None]
    latents = compose_latents(clip["prior"], clip["history"], clip["noise"], sigma_map)
    assert torch.equal(latents[:, :, :1], clip["history"])
    for t in (1, 2):
        for i in range(H // 8):
            for j in range(W // 8):
                sigma = sigma_map[0, t, i // 2, j // 2].item()
                want = (1 - sigma) * clip["prior"][0, :, t, i, j] + sigma * clip["noise"][0, :, t, i, j]
                torch.testing.assert_close(latents[0, :, t, i, j], want)


def test_a_map_of_another_size_is_refused(clip):
    with pytest.raises(AssertionError):
        compose_latents(clip["prior"], clip["history"], clip["noise"], torch.ones(1, 3, 4, 4))


# Guidance, precision, randomness, cancelling


def test_guidance_of_one_is_the_prompt_alone(wan, clip):
    alone = run(wan, {**clip, "negative_prompt": None}, settings=SamplerSettings(guidance=1.0))[-1]
    almost = run(wan, clip, settings=SamplerSettings(guidance=1.0 + 1e-9))[-1]
    guided = run(wan, clip, settings=SamplerSettings(guidance=5.0))[-1]
    torch.testing.assert_close(alone, almost, rtol=1e-5, atol=1e-5)
    assert (alone - guided).abs().max() > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"guidance": 0.5},
        {"guidance": math.nan},
        {"guidance_interval": (0.8, 0.2)},
        {"guidance_interval": (0.0, 1.5)},
        {"guidance_every": 0},
        {"solver": "heun"},
        {"reuse": 1.0},
        {"reuse": math.nan},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(WorldWarpError):
        SamplerSettings(**wrong)


def test_a_half_precision_model_still_steps_in_float32(stock, wan, clip):
    half = prepare_transformer(copy.deepcopy(stock).to(torch.bfloat16))
    states = run(half, clip)
    assert {s.dtype for s in states} == {torch.float32}
    error = (states[-1] - run(wan, clip)[-1]).abs().mean()
    assert 0 < error < 0.1


def test_noise_is_the_generator_s_alone():
    torch.manual_seed(0)
    one = draw_noise((2, 3), torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    assert torch.equal(one, draw_noise((2, 3), torch.Generator().manual_seed(5)))
    assert not torch.equal(one, draw_noise((2, 3), torch.Generator().manual_seed(6)))


def test_the_work_stops_where_the_asking_stops(clip):
    oracle = Oracle(clip["noise"].double(), clip["prior"].double())
    sigma_map = build_sigma_map(clip["validity"], 0.8, 1)[None]
    prompts = (clip["prompt"], clip["negative_prompt"])
    steps = denoise(oracle, clip["noise"].double(), sigma_map, sigma_schedule(50), *prompts)
    assert oracle.timesteps == []
    next(steps)
    next(steps)
    assert len(oracle.timesteps) == 2
    steps.close()
    assert list(steps) == []
    assert len(oracle.timesteps) == 2


def test_between_steps_the_caller_s_gradients_are_as_it_left_them(clip):
    oracle = Oracle(clip["noise"].double(), clip["prior"].double())
    oracle.velocity.requires_grad_()
    sigma_map = build_sigma_map(clip["validity"], 0.8, 1)[None]
    prompts = (clip["prompt"], clip["negative_prompt"])
    for latents in denoise(oracle, clip["noise"].double(), sigma_map, [1.0, 0.5, 0.0], *prompts):
        assert torch.is_grad_enabled()
        assert not latents.requires_grad


# What is faster and not the same


class Field(torch.nn.Module):
    """A velocity by formula; writes down how many clips it was asked for at once."""

    dtype = torch.float64

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity
        self.batches = []

    def forward(self, hidden_states, levels, index, encoder_hidden_states):
        self.batches.append(len(hidden_states))
        sigma = expand_to_latents((levels[index] / 1000).unflatten(1, (3, 4, 5)))[:, None]
        return self.velocity(hidden_states, sigma, encoder_hidden_states[:, :1, :1, None, None])


def walk(field, clip, steps=12, settings=None, even=False, **noise_settings):
    """All states in float64, the prompt all ones and the negative prompt all zeros, context at 0."""
    tensors = {name: clip[name].double() for name in ("prior", "noise", "history")}
    prompts = {"prompt": torch.ones(1, 7, 24).double(), "negative_prompt": torch.zeros(1, 7, 24).double()}
    return run(field, {**clip, **tensors, **prompts}, steps, settings=settings, even=even, **noise_settings)


PLAIN = SamplerSettings(guidance=1.0)


def growth(x, sigma, text):
    return x.cos() + 2 * sigma


@pytest.mark.parametrize("graded", [False, True])
def test_adams_is_of_second_order_for_tokens_that_held_too(clip, graded):
    doubtful = {**clip, "validity": clip["validity"] * torch.linspace(0.4, 1, W)}
    sigma_map = build_sigma_map(doubtful["validity"], 0.8, 1, NoiseSettings(graded=graded))[None]
    held = (expand_to_latents(sigma_map)[:, None] < 1).expand(SHAPE)
    assert held.float().mean() > 0.4

    def error(steps, solver, tokens):
        settings = SamplerSettings(guidance=1.0, solver=solver)
        return (walk(Field(growth), doubtful, steps, settings, even=True, graded=graded)[-1] - exact)[tokens].norm()

    fine = SamplerSettings(guidance=1.0, solver="adams")
    exact = walk(Field(growth), doubtful, 1600, fine, even=True, graded=graded)[-1]
    for tokens in (held, ~held):
        assert 1.7 < error(100, "euler", tokens) / error(200, "euler", tokens) < 2.5
        assert 3.0 < error(100, "adams", tokens) / error(200, "adams", tokens) < 5.5
        assert error(25, "adams", tokens) < 0.3 * error(25, "euler", tokens)


def test_a_token_s_first_step_with_adams_is_euler_s(clip):
    sigma_map = build_sigma_map(clip["validity"], 0.8, 1)[None]
    valid = (expand_to_latents(sigma_map)[:, None] == start_sigma(0.8)).expand(SHAPE)
    adams = walk(Field(growth), clip, 50, SamplerSettings(guidance=1.0, solver="adams"))
    euler = walk(Field(growth), clip, 50, PLAIN)
    assert torch.equal(adams[9][valid], euler[9][valid])
    assert not torch.equal(adams[10][valid], euler[10][valid])
    assert torch.equal(adams[-1][:, :, :1], clip["history"].double())


def test_between_nodes_that_nearly_coincide_adams_keeps_its_head(clip):
    sigmas = [1.0, 0.7, 0.7 - 1e-6, 0.3, 0.0]
    jitter = iter([0.0, 0.0, 1.0, 0.0])
    field = Field(lambda x, sigma, text: torch.ones_like(x) + next(jitter))
    ones = torch.ones(1, 3, 4, 5)
    settings = SamplerSettings(guidance=1.0, solver="adams")
    *_, last = denoise(field, clip["noise"].double(), ones, sigmas, torch.ones(1, 7, 24), None, settings)
    assert (last - (clip["noise"].double() - 1)).abs().max() < 2


def test_guidance_may_be_confined_to_a_range_of_noise_levels(clip):
    def towards(x, sigma, text):
        return growth(x, sigma, text) * (1 + text)

    field, sigmas = Field(towards), sigma_schedule(12, [0.8])
    settings = SamplerSettings(guidance=3.0, guidance_interval=(0.5, 0.96))
    states = walk(field, clip, settings=settings)
    assert field.batches == [2 if 0.5 <= sigma <= 0.96 else 1 for sigma in sigmas[:-1]]
    assert 1 in field.batches[:2]
    assert 2 in field.batches
    unguided = walk(Field(towards), clip, settings=PLAIN)
    assert torch.equal(states[0], unguided[0])
    assert not torch.equal(states[-1], unguided[-1])
    everywhere = walk(Field(towards), clip, settings=SamplerSettings(guidance=3.0, guidance_interval=(0.0, 1.0)))
    assert torch.equal(everywhere[-1], walk(Field(towards), clip, settings=SamplerSettings(guidance=3.0))[-1])


@pytest.mark.parametrize("batched", [True, False])
def test_the_negative_prompt_may_be_asked_at_every_nth_step(clip, batched):
    """Where what it would say does not change, nothing is lost."""

    def shifted(x, sigma, text):
        return growth(x, sigma, text) + text

    field = Field(shifted)
    sparse = walk(field, clip, settings=SamplerSettings(guidance=3.0, guidance_every=3, batched=batched))
    both = [2] if batched else [1, 1]
    assert field.batches == [*both, 1, 1] * 4 + both  # 12 steps and the start of valid tokens
    full = walk(Field(shifted), clip, settings=SamplerSettings(guidance=3.0))
    torch.testing.assert_close(sparse[-1], full[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["euler", "adams"])
def test_a_velocity_that_does_not_change_is_asked_for_twice(clip, solver):
    clean, noise = clip["prior"].double(), clip["noise"].double()
    oracle = Oracle(noise, clean)
    tensors = {**clip, "prior": clean, "noise": noise, "history": clean[:, :, :1]}
    states = run(oracle, tensors, 50, settings=SamplerSettings(guidance=1.0, solver=solver, reuse=0.01))
    assert len(states) == 50
    assert len(oracle.timesteps) == 2
    torch.testing.assert_close(states[-1], clean, rtol=0, atol=1e-6)


def test_the_more_change_is_allowed_the_fewer_velocities_are_asked_for(clip):
    exact = walk(Field(growth), clip, 1600, SamplerSettings(guidance=1.0, solver="adams"), even=True)[-1]
    asked, errors = [], []
    for reuse in (0.0, 0.05, 0.2):
        field = Field(growth)
        got = walk(field, clip, 50, SamplerSettings(guidance=1.0, solver="adams", reuse=reuse), even=True)[-1]
        asked.append(len(field.batches))
        errors.append((got - exact).norm().item())
    assert 50 == asked[0] > asked[1] > asked[2] > 5
    assert errors == sorted(errors)
    few = walk(Field(growth), clip, asked[2], PLAIN, even=True)[-1]
    assert errors[2] < (few - exact).norm()  # better than as many Euler steps
