import copy
import math

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from tests.support import reference_sampler
from worldwarp_core.denoise import SamplerSettings, compose_latents, denoise, draw_noise
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.noise_map import NoiseSettings, build_sigma_map, expand_to_latents, sigma_schedule, start_sigma
from worldwarp_core.transformer import prepare_transformer

T, H, W = 9, 64, 80  # 3 latent frames of 4x5 tokens
SHAPE = (1, 16, 3, H // 8, W // 8)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For a model this small, threads that wait for each other take ten times the work's own time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def run(model, clip, steps=4, strength=0.8, context=1, settings=None, **noise_settings):
    sigma_map = build_sigma_map(clip["validity"], strength, context, NoiseSettings(**noise_settings))[None]
    latents = compose_latents(clip["prior"], clip["history"][:, :, :context], clip["noise"], sigma_map)
    sigmas = sigma_schedule(steps, [strength])
    prompts = (clip["prompt"], clip["negative_prompt"])
    return list(denoise(model, latents, sigma_map, sigmas, *prompts, settings or SamplerSettings()))


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
    slow = reference_sampler.sample(
        stock,
        clip["prior"],
        clip["history"],
        clip["noise"],
        reference_sampler.sparing_tokens(clip["validity"].numpy()),
        sigma_schedule(steps, [0.8]),
        start_sigma(0.8),
        clip["prompt"],
        clip["negative_prompt"],
        5.0,
    )
    assert (slow - clip["noise"]).abs().max() > 0.1
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


def test_fifty_steps_equal_the_slow_reference(stock, wan, clip):
    fast = run(wan, clip, 50, settings=SamplerSettings(guidance=2.0))[-1]
    valid = reference_sampler.sparing_tokens(clip["validity"].numpy())
    tensors = (clip["prior"], clip["history"], clip["noise"])
    prompts = (clip["prompt"], clip["negative_prompt"])
    slow = reference_sampler.sample(stock, *tensors, valid, sigma_schedule(50), start_sigma(0.8), *prompts, 2.0)
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


def test_guidance_below_one_is_refused():
    for guidance in (0.5, math.nan):
        with pytest.raises(WorldWarpError, match="Guidance must be at least 1"):
            SamplerSettings(guidance=guidance)


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
