"""Wan's autoencoder in steps: the same numbers as diffusers' own, frame by frame, from a tiny real model."""

from itertools import islice

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.autoencoders import autoencoder_kl_wan

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.wan import streaming
from worldwarp_core.wan.autoencoder import AutoencoderOptions, WanAutoencoder

HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1).eval()
    for name, parameter in vae.named_parameters():  # biases and gains that begin as 0 and 1 would hide a mistake
        if name.endswith(("gamma", "bias")):
            parameter.data += 0.2 * torch.randn_like(parameter)
    return vae


pytestmark = pytest.mark.usefixtures("one_thread")


def clip(length, height=HEIGHT, width=WIDTH):
    generator = torch.Generator().manual_seed(length)
    coarse = torch.rand(1, 3, length, height // 4, width // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (length, height, width), mode="trilinear")
    return smooth[0].movedim(0, -1)


def latents_of(count, height=HEIGHT, width=WIDTH):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(1, 16, count, height // 8, width // 8, generator=generator)


def normalisation(vae):
    shape = (1, -1, 1, 1, 1)
    return torch.tensor(vae.config.latents_mean).view(shape), torch.tensor(vae.config.latents_std).view(shape)


@torch.no_grad()
def reference_encode(vae, frames):
    """diffusers' encoder on the whole clip, normalised as the transformer expects it."""
    mean, std = normalisation(vae)
    posterior = vae.encode(frames.movedim(-1, 0)[None] * 2 - 1).latent_dist
    return (posterior.mode() - mean) / std


@torch.no_grad()
def reference_decode(vae, latents):
    mean, std = normalisation(vae)
    picture = vae.decode(latents * std + mean).sample
    return (picture[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("length", [1, 5, 9, 21])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_encoding_in_steps_equals_diffusers_on_the_whole_clip(vae, length, group):
    frames = clip(length)
    latents = WanAutoencoder(vae, AutoencoderOptions(group=group)).encode(frames)
    assert latents.shape == (1, 16, (length - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, reference_encode(vae, frames), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_decoding_in_steps_equals_diffusers_on_the_whole_clip(vae, count, group):
    latents = latents_of(count)
    frames = torch.stack(list(WanAutoencoder(vae, AutoencoderOptions(group=group)).decode(latents)))
    assert frames.shape == (4 * (count - 1) + 1, HEIGHT, WIDTH, 3)
    torch.testing.assert_close(frames, reference_decode(vae, latents), atol=2e-5, rtol=1e-5)


def test_latents_are_normalised_as_diffusers_own_pipeline_reads_them(vae):
    """WanPipeline, given our latents and a transformer that changes nothing, shows the frames that went in."""
    still = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=8, num_layers=1
    )
    torch.nn.init.zeros_(still.proj_out.weight)
    torch.nn.init.zeros_(still.proj_out.bias)
    pipeline = WanPipeline(None, None, vae, FlowMatchEulerDiscreteScheduler(), still)
    pipeline.set_progress_bar_config(disable=True)
    autoencoder = WanAutoencoder(vae)
    latents = autoencoder.encode(clip(5))
    shown = pipeline(
        prompt_embeds=torch.zeros(1, 4, 8),
        latents=latents,
        height=HEIGHT,
        width=WIDTH,
        num_frames=5,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="pt",
    ).frames[0]
    ours = torch.stack(list(autoencoder.decode(latents)))
    torch.testing.assert_close(ours, shown.movedim(1, -1), atol=2e-5, rtol=1e-5)
    assert ours.std() > 0.01, "a picture without content would agree with anything"


def test_a_frame_leaves_before_the_latents_after_it_are_decoded(vae, monkeypatch):
    steps = []

    def counted(model, latents, memory, fused):
        steps.append(latents.shape[2])
        return streaming.decode_step(model, latents, memory, fused)

    monkeypatch.setattr("worldwarp_core.wan.autoencoder.decode_step", counted)
    decoding = WanAutoencoder(vae).decode(latents_of(6))
    next(decoding)
    assert steps == [1]
    list(islice(decoding, 4))
    assert steps == [1, 1]
    decoding.close()
    assert steps == [1, 1]


def test_encoding_holds_one_group_of_frames_at_a_time(vae, monkeypatch):
    lengths = []

    def counted(model, pictures, memory, fused):
        lengths.append(pictures.shape[2])
        return streaming.encode_step(model, pictures, memory, fused)

    monkeypatch.setattr("worldwarp_core.wan.autoencoder.encode_step", counted)
    WanAutoencoder(vae, AutoencoderOptions(group=2)).encode(clip(13))
    assert lengths == [1, 8, 8]


@pytest.mark.parametrize("step", [streaming.encode_step, streaming.decode_step])
def test_memory_does_not_grow_with_the_clip(vae, step):
    encodes = step is streaming.encode_step
    first, more = (clip(1), clip(4)) if encodes else (latents_of(1), latents_of(1))
    first, more = (v.movedim(-1, 0)[None] if encodes else v for v in (first, more))
    _, memory = step(vae, first, None)
    shapes = [m.shape for m in memory]
    for _ in range(3):
        assert [m.shape for m in memory] == shapes
        assert all(m.untyped_storage().nbytes() == m.nbytes for m in memory), "a view keeps a step's activations alive"
        _, memory = step(vae, more, memory)


def test_encoding_is_deterministic(vae):
    frames = clip(5)
    autoencoder = WanAutoencoder(vae)
    assert torch.equal(autoencoder.encode(frames), autoencoder.encode(frames))


@pytest.mark.parametrize(("height", "width"), [(96, 160), (64, 144)])
def test_tiles_are_diffusers_own(vae, height, width):
    autoencoder = WanAutoencoder(vae, AutoencoderOptions(tile=64))
    frames, latents = clip(5, height, width), latents_of(3, height, width)
    vae.enable_tiling(64, 64, 48, 48)
    try:
        torch.testing.assert_close(autoencoder.encode(frames), reference_encode(vae, frames), atol=2e-5, rtol=1e-5)
        shown = torch.stack(list(autoencoder.decode(latents)))
        torch.testing.assert_close(shown, reference_decode(vae, latents), atol=2e-5, rtol=1e-5)
    finally:
        vae.disable_tiling()


def test_a_tile_as_large_as_the_frame_is_the_frame(vae):
    latents = latents_of(2)
    whole = torch.stack(list(WanAutoencoder(vae).decode(latents)))
    tiled = torch.stack(list(WanAutoencoder(vae, AutoencoderOptions(tile=64)).decode(latents)))
    assert torch.equal(whole, tiled)


def test_tiled_frames_leave_as_early_as_whole_ones(vae):
    decoding = WanAutoencoder(vae, AutoencoderOptions(tile=64)).decode(latents_of(4, 96, 96))
    first = next(decoding)
    assert first.shape == (96, 96, 3)


@pytest.mark.parametrize("options", [{"group": 0}, {"tile": 48}, {"tile": 100}], ids=lambda o: str(o))
def test_impossible_options_are_refused(options):
    with pytest.raises(WorldWarpError) as caught:
        AutoencoderOptions(**options)
    assert caught.value.code == "bad_settings"


def test_another_architecture_is_refused_by_name():
    residual = AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1, is_residual=True)
    with pytest.raises(WorldWarpError, match="is_residual=True") as caught:
        WanAutoencoder(residual)
    assert caught.value.code == "bad_weights"


def test_the_layers_are_those_this_project_walks(vae):
    """A layer that a later diffusers adds would be passed over in silence."""
    known = {
        *("AutoencoderKLWan", "WanEncoder3d", "WanDecoder3d", "WanCausalConv3d", "WanResidualBlock", "WanRMS_norm"),
        *("WanResample", "WanMidBlock", "WanAttentionBlock", "WanUpBlock", "WanUpsample"),
        *("ModuleList", "Sequential", "Conv2d", "ZeroPad2d", "SiLU", "Dropout", "Identity"),
    }
    assert {type(module).__name__ for module in vae.modules()} == known
    assert autoencoder_kl_wan.CACHE_T == 2
