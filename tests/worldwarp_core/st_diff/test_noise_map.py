from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import reference_sampler
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.st_diff.noise_map import (
    PUBLIC_RULE,
    REFERENCE_SIGMAS,
    SMALL_PICTURES,
    NoiseSettings,
    build_sigma_map,
    context_latents,
    expand_to_latents,
    sigma_schedule,
    start_sigma,
    token_confidence,
)

START = start_sigma(0.8)
T, H, W = 9, 96, 128  # 3 latent frames of 6x8 tokens
VARIANTS = ("both", "spatial", "temporal", "uniform", "full_noise")

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(seed, frames=T, height=H, width=W):
    """Validity with soft edges, holes, thin parts and values on both sides of the threshold."""
    coarse = torch.rand(1, 1, frames, height // 24, width // 24, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")[0, 0]
    return ((smooth - 0.25) * 3).clamp(0, 1)


def pole(left, width):
    validity = torch.zeros(1, H, W)
    validity[:, :, left : left + width] = 1
    return validity


# The schedule


def test_the_frozen_table_is_what_diffusers_gives():
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5)
    scheduler.set_timesteps(50)
    assert scheduler.sigmas.tolist() == list(REFERENCE_SIGMAS), (
        f"diffusers {diffusers.__version__} spaces its sigmas differently. Do not change REFERENCE_SIGMAS: the "
        "published weights and every measured figure refer to it. Compare with diffusers 0.42 instead (pin it for this "
        "test), and look through everything else that takes sigmas from diffusers."
    )


def test_schedules_of_other_lengths_are_spaced_as_diffusers_spaces_them():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5)
    for steps in range(1, 101):
        scheduler.set_timesteps(steps)
        assert sigma_schedule(steps) == scheduler.sigmas.tolist(), steps


def test_the_table_ends_where_the_double_shift_puts_it():
    assert len(REFERENCE_SIGMAS) == 51
    assert REFERENCE_SIGMAS[-2:] == (pytest.approx(0.0244, abs=5e-5), 0.0)


@pytest.mark.parametrize(
    ("strength", "index", "sigma"),
    [
        (1.0, 0, 1.0),
        (0.9, 4, 0.983),
        (0.8, 9, 0.957),
        (0.7, 15, 0.920),
        (0.6, 20, 0.880),
        (0.5, 25, 0.829),
        (0.35, 32, 0.729),
        (0.0, 49, 0.024),
    ],
)
def test_strength_is_a_truncated_share_of_the_reference_steps(strength, index, sigma):
    assert start_sigma(strength) == REFERENCE_SIGMAS[index]
    assert start_sigma(strength) == pytest.approx(sigma, abs=6e-4)
    assert min(int((1 - strength) * 50), 49) == index


def test_a_strength_from_a_float32_slider_is_the_same_strength():
    for percent in range(101):
        assert start_sigma(float(np.float32(percent / 100))) == start_sigma(percent / 100)


@pytest.mark.parametrize("steps", [1, 3, 4, 8, 25, 49, 50, 51, 99, 148])
@pytest.mark.parametrize("strength", [0.02, 0.35, 0.5, 0.8, 0.9, 1.0])
def test_the_start_of_a_strength_is_a_node_at_any_step_count(steps, strength):
    bare, schedule = sigma_schedule(steps), sigma_schedule(steps, [strength])
    assert schedule[0] == 1.0
    assert schedule[-1] == 0.0
    assert len(bare) == steps + 1
    assert len(schedule) in (len(bare), len(bare) + 1)
    assert start_sigma(strength) in schedule
    assert (np.diff(schedule) < -1e-6).all()  # no node twice, give or take rounding


def test_at_50_steps_the_schedule_is_the_table_whatever_the_strength():
    assert sigma_schedule(50, [0.8, 0.35, 0.123]) == list(REFERENCE_SIGMAS)


def test_four_steps_keep_the_prior():
    assert sigma_schedule(4, [0.8]) == pytest.approx([1, 0.957189, 0.909717, 0.717308, 0.024414, 0], abs=1e-5)


def test_context_frames_fill_latents():
    assert [context_latents(n) for n in (0, 1, 5, 9, 49)] == [0, 1, 2, 3, 13]
    with pytest.raises(AssertionError):
        context_latents(4)


# Mask to tokens


@pytest.mark.parametrize("seed", range(4))
def test_the_public_rule_equals_the_slow_reference(seed):
    validity = blobs(seed)
    tokens = token_confidence(validity, PUBLIC_RULE).numpy()
    assert 0.03 < tokens.mean() < 0.97
    np.testing.assert_array_equal(tokens, reference_sampler.public_tokens(validity.numpy()))


@pytest.mark.parametrize("seed", range(4))
def test_our_rule_equals_the_slow_reference(seed):
    validity = blobs(seed)
    tokens = token_confidence(validity, NoiseSettings()).numpy()
    assert 0.03 < tokens.mean() < 0.97
    np.testing.assert_array_equal(tokens, reference_sampler.sparing_tokens(validity.numpy()))


@pytest.mark.parametrize("settings", [NoiseSettings(), PUBLIC_RULE])
@pytest.mark.parametrize("edge", [48, 49, 52, 55, 56, 57, 60, 63])
def test_a_token_cut_by_the_mask_s_edge_is_blank_as_a_whole(settings, edge):
    validity = torch.ones(1, H, W)
    validity[:, :, edge:] = 0
    sigma_map = build_sigma_map(validity, 0.8, 0, settings)
    assert (sigma_map[..., -(-(edge + 1) // 16) - 1 :] == 1).all()
    latents = expand_to_latents(sigma_map)
    assert latents.shape == (1, H // 8, W // 8)
    in_token = latents.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    assert (in_token.amin(-1) == in_token.amax(-1)).all()
    assert set(sigma_map.unique().tolist()) == {START, 1.0}


def test_one_bad_frame_of_four_blanks_the_latent_in_our_rule_only():
    for frame in (1, 2, 3):
        validity = torch.ones(5, H, W)
        validity[frame] = 0
        assert token_confidence(validity, NoiseSettings()).mean((1, 2)).tolist() == [1, 0]
        assert token_confidence(validity, PUBLIC_RULE)[:, 1:, 1:].mean((1, 2)).tolist() == [1, 1]


def test_the_first_latent_is_the_first_frame_alone():
    validity = torch.zeros(5, H, W)
    validity[0] = 1
    assert token_confidence(validity, NoiseSettings()).mean((1, 2)).tolist() == [1, 0]


def test_thin_structures_survive_where_the_public_erosion_eats_them():
    for left in range(32, 48):
        for width in (16, 19):
            ours = token_confidence(pole(left, width), NoiseSettings()).bool()
            fits = -(-left // 16) * 16 + 16 <= left + width
            assert ours.any().item() == fits
            assert not token_confidence(pole(left, width), PUBLIC_RULE).any()


def test_wide_structures_keep_their_distance_from_the_edge():
    validity = torch.zeros(1, H, W)
    validity[:, :, 32:] = 1
    valid_columns = token_confidence(validity, NoiseSettings())[0].amin(0)
    assert valid_columns.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_the_image_s_border_is_no_edge_in_our_rule_only():
    assert token_confidence(torch.ones(1, H, W), NoiseSettings()).all()
    public = token_confidence(torch.ones(1, H, W), PUBLIC_RULE)[0]
    assert not public[0].any()
    assert not public[:, 0].any()
    assert public[1:, 1:].all()


def test_a_token_of_small_pictures_needs_most_of_its_pixels_and_no_guard():
    validity = torch.ones(5, H, W)
    validity[:, ::2, ::2] = 0  # cracks: three quarters are left
    validity[1:, :, 32:] = 0
    validity[1:3, :, 32:48] = 1  # half of the frames of the second latent
    tokens = token_confidence(validity, SMALL_PICTURES)
    assert tokens[0].all()
    assert tokens[1].amin(0).tolist() == tokens[1].amax(0).tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert not token_confidence(validity, NoiseSettings()).any()


def test_a_graded_token_of_small_pictures_is_as_sure_as_its_valid_pixels():
    validity = torch.full((1, H, W), 0.75)
    validity[:, :4] = 0
    graded = token_confidence(validity, replace(SMALL_PICTURES, graded=True))
    torch.testing.assert_close(graded, torch.full_like(graded, 0.5))


def test_the_threshold_is_where_validity_begins():
    settings = NoiseSettings(threshold=0.7)
    assert token_confidence(torch.full((1, H, W), 0.7), settings).all()
    assert not token_confidence(torch.full((1, H, W), 0.69), settings).any()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"threshold": 1.0}, "above 0 and below 1; got 1.0"),
        ({"threshold": float("nan")}, "above 0 and below 1; got nan"),
        ({"variant": "neither"}, "variant must be one of both, spatial, temporal, uniform, full_noise; got 'neither'"),
        ({"frames": "first"}, "frames must be one of all, last; got 'first'"),
        ({"erosion": ""}, "erosion must be one of spare_thin, box, majority; got ''"),
    ],
)
def test_settings_off_the_list_are_refused(wrong, said):
    with pytest.raises(WorldWarpError, match=said) as caught:
        NoiseSettings(**wrong)
    assert caught.value.code == "bad_settings"


# The map


def test_the_method_has_three_levels():
    sigma_map = build_sigma_map(blobs(0), 0.8, context=5)
    assert sigma_map.shape == (3, H // 16, W // 16)
    assert sigma_map.dtype == torch.float32
    assert (sigma_map[:2] == 0).all()
    tokens = torch.from_numpy(reference_sampler.sparing_tokens(blobs(0).numpy()))[2]
    assert torch.equal(sigma_map[2], torch.where(tokens, START, 1.0))


def test_what_validity_says_of_context_is_ignored():
    validity = blobs(1)
    other = validity.clone()
    other[:5] = 1 - other[:5]
    for variant in VARIANTS:
        settings = NoiseSettings(variant=variant)
        assert torch.equal(build_sigma_map(validity, 0.8, 5, settings), build_sigma_map(other, 0.8, 5, settings))


def test_the_ablations_switch_space_and_time():
    validity = blobs(2)
    validity[1:5] = 1
    validity[5:, :, 48:] = 1
    maps = {v: build_sigma_map(validity, 0.8, 1, NoiseSettings(variant=v)) for v in ("both", "spatial", "temporal")}
    both, spatial, temporal = maps.values()
    assert (both[0] == 0).all()
    assert (spatial[0] == START).all()
    assert torch.equal(spatial[1:], both[1:])
    assert (temporal[0] == 0).all()
    assert (temporal[1] == START).all()
    share = (both[2] == START).double().mean().item()
    assert 0 < share < 1
    assert (temporal[2] == start_sigma(1 - 0.2 * share)).all()
    assert START < temporal[2, 0, 0] < 1

    assert (build_sigma_map(validity, 0.8, 1, NoiseSettings(variant="uniform")) == START).all()
    full = build_sigma_map(validity, 0.8, 1, NoiseSettings(variant="full_noise"))
    assert (full[0] == 0).all()
    assert (full[1:] == 1).all()


def test_graded_validity_lies_between_start_and_full_and_rises_as_confidence_falls():
    graded = NoiseSettings(graded=True)
    levels = [
        build_sigma_map(torch.full((1, 16, 16), v), 0.5, 0, graded).item() for v in np.linspace(0, 1, 21).tolist()
    ]
    assert levels[:11] == [1.0] * 11
    assert levels[-1] == start_sigma(0.5)
    assert levels[15] == start_sigma(0.75)
    assert (np.diff(levels[10:]) < 0).all()
    assert set(levels) <= set(REFERENCE_SIGMAS)


@pytest.mark.parametrize("erosion", ["spare_thin", "box"])
def test_where_nothing_is_doubtful_grading_changes_nothing(erosion):
    validity = (blobs(3) >= 0.5).float()
    plain, graded = (build_sigma_map(validity, 0.8, 1, NoiseSettings(erosion=erosion, graded=g)) for g in (False, True))
    assert torch.equal(plain, graded)


def test_grading_takes_the_least_sure_pixel_of_a_token():
    validity = torch.ones(5, 32, 32)
    validity[2, 20, 20] = 0.75
    sigma_map = build_sigma_map(validity, 0.8, 0, NoiseSettings(graded=True))
    assert (sigma_map[0] == START).all()
    assert sigma_map[1, 1, 1] == start_sigma(0.9)


def test_a_user_s_mask_raises_and_lowers_strength_by_region_and_frame():
    validity = torch.ones(9, 32, 48)
    validity[:, :, 32:] = 0
    offset = torch.zeros(9, 32, 48)
    offset[5:, :16, :16] = -0.3
    offset[5:, 16:, :16] = 0.1
    sigma_map = build_sigma_map(validity, 0.8, 1, NoiseSettings(erosion="spare_thin"), offset)
    plain = build_sigma_map(validity, 0.8, 1)
    assert torch.equal(sigma_map[:2], plain[:2])
    assert sigma_map[2, :, 0].tolist() == [start_sigma(0.5), start_sigma(0.9)]
    assert torch.equal(sigma_map[2, :, 1:], plain[2, :, 1:])
    assert (sigma_map[2, :, 2] == 1).all()


@pytest.mark.parametrize("offset", [-1.0, -0.45, -0.1, 0.0, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("variant", ["both", "spatial", "temporal"])
def test_an_even_mask_is_another_strength(offset, variant):
    settings = NoiseSettings(variant=variant)
    masked = build_sigma_map(torch.ones(T, H, W), 0.8, 1, settings, torch.full((T, H, W), offset))
    plain = build_sigma_map(torch.ones(T, H, W), min(max(round(0.8 + offset, 6), 0), 1), 1, settings)
    assert torch.equal(masked, plain)


def test_shapes_off_the_grid_are_refused():
    for shape in ((8, 32, 32), (9, 40, 32), (9, 32, 24)):
        with pytest.raises(AssertionError):
            token_confidence(torch.ones(shape), NoiseSettings())
    with pytest.raises(AssertionError):
        build_sigma_map(torch.ones(5, 32, 32), 0.8, context=9)
    with pytest.raises(AssertionError):
        build_sigma_map(torch.ones(5, 32, 32), 1.1, context=1)
