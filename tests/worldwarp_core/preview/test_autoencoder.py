"""The preview autoencoder: Wan's layout, the same piece by piece as whole, and a decoder that keeps the prior."""

from dataclasses import replace

import pytest
import torch

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.loop.priors import Priors
from worldwarp_core.preview.autoencoder import AutoencoderConfig, Block, PreviewAutoencoder, join_guide
from worldwarp_core.preview.weights import load_state, read_network, save_network

TINY = AutoencoderConfig(latents=8, encoder=(8, 16, 16), decoder=(8, 16, 16), guide=(8, 8))


def network(seed=0):
    torch.manual_seed(seed)
    made = PreviewAutoencoder(TINY).eval()
    for block in made.modules():
        if isinstance(block, Block):
            torch.nn.init.normal_(block.second.weight, std=0.1)
    made.mean.uniform_(-1, 1)
    made.std.uniform_(0.5, 2)
    return made


def clip(frames, seed=0):
    g = torch.Generator().manual_seed(seed)
    rgb = torch.rand((frames, 32, 48, 3), generator=g)
    validity = torch.rand((frames, 32, 48), generator=g)
    return rgb, Priors(rgb * 0.9, validity, torch.ones_like(validity), validity)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_latents_and_frames_have_wan_s_layout(frames):
    made = network()
    rgb, priors = clip(frames)
    latents = made.encode(rgb)
    assert latents.shape == (1, 8, (frames - 1) // 4 + 1, 4, 6)
    assert latents.dtype == torch.float32
    for given in (None, priors):
        decoded = list(made.decode(latents, given))
        assert [frame.shape for frame in decoded] == [(32, 48, 3)] * frames
        assert all(frame.min() >= 0 and frame.max() <= 1 for frame in decoded)


def test_piece_by_piece_is_the_same_as_whole():
    made = network()
    rgb, priors = clip(13)
    pictures = rgb.permute(0, 3, 1, 2)[None]
    with torch.no_grad():
        whole = made.normalise(made.to_latents(pictures))
        guide = join_guide(priors.rgb.permute(0, 3, 1, 2), priors.validity)[None]
        frames = made.to_frames(made.denormalise(whole), guide)[0].clamp(0, 1).permute(0, 2, 3, 1)
    latents = made.encode(rgb)
    torch.testing.assert_close(latents, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(list(made.decode(latents, priors))), frames, atol=1e-5, rtol=1e-5)


def test_nothing_later_changes_what_came_before():
    made = network()
    rgb, _ = clip(13)
    changed = rgb.clone()
    changed[9:] = 1 - changed[9:]
    one, other = made.encode(rgb), made.encode(changed)
    torch.testing.assert_close(one[:, :, :3], other[:, :, :3], atol=0, rtol=0)
    assert (one[:, :, 3] != other[:, :, 3]).any()


def test_memory_reaches_from_one_latent_into_the_next():
    made = network()
    latents = made.encode(clip(9)[0])
    changed = latents.clone()
    changed[:, :, 0] += 1
    one, other = list(made.decode(latents)), list(made.decode(changed))
    assert (one[1] != other[1]).any()


def test_a_prior_that_is_nowhere_valid_is_no_prior():
    made = network()
    rgb, priors = clip(5)
    nothing = torch.zeros_like(priors.validity)
    latents = made.encode(rgb)
    guided = list(made.decode(latents, Priors(priors.rgb, nothing, priors.depth, nothing)))
    torch.testing.assert_close(torch.stack(guided), torch.stack(list(made.decode(latents))), atol=0, rtol=0)


def test_where_the_network_says_keep_the_prior_comes_through_to_the_pixel():
    made = network()
    with torch.no_grad():
        made.decoder.head.weight.zero_()
        made.decoder.head.bias[12:] = 100.0
    rgb, _ = clip(5)
    sharp = torch.ones(5, 32, 48)
    decoded = list(made.decode(made.encode(rgb), Priors(rgb, sharp, sharp, sharp)))
    torch.testing.assert_close(torch.stack(decoded), rgb, atol=1e-6, rtol=0)


def test_a_prior_that_is_half_valid_counts_half_and_darkens_nothing():
    made = network()
    with torch.no_grad():
        made.decoder.head.weight.zero_()
        made.decoder.head.bias[12:] = 100.0
    one, half = torch.rand(5, 32, 48, 3), torch.full((5, 32, 48), 0.5)
    other, latents = one.roll(1, 0), made.encode(torch.rand(5, 32, 48, 3))
    decoded = [torch.stack(list(made.decode(latents, Priors(rgb, half, half, half)))) for rgb in (one, other)]
    inside = ((decoded[0] > 0) & (decoded[0] < 1) & (decoded[1] > 0) & (decoded[1] < 1)).nonzero(as_tuple=True)
    assert len(inside[0]) > 1000, "what is clamped tells nothing"
    difference = (decoded[0] - decoded[1])[inside]
    torch.testing.assert_close(difference, 0.5 * (one - other)[inside], atol=1e-5, rtol=0)


def test_trust_in_the_prior_keeps_more_of_it_and_only_where_it_is_valid(tmp_path):
    rgb, _ = clip(5)
    torch.manual_seed(3)
    plain = network()
    trusting = PreviewAutoencoder(replace(TINY, trust=4.0)).eval()
    trusting.load_state_dict(plain.state_dict())
    latents = plain.encode(torch.rand(5, 32, 48, 3))
    half = torch.ones(5, 32, 48)
    half[:, :, 24:] = 0
    guide = Priors(rgb, half, half, half)
    one, other = (torch.stack(list(made.decode(latents, guide))) for made in (plain, trusting))
    assert (other - rgb)[:, :, :24].abs().mean() < 0.5 * (one - rgb)[:, :, :24].abs().mean()
    torch.testing.assert_close(one[:, :, 24:], other[:, :, 24:])


def test_weights_come_back_in_half_precision_and_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("worldwarp_core.preview.weights.FILE_BYTES", 20_000)
    made = network()
    paths = save_network(tmp_path, "autoencoder", made.state_dict(), {"a": 1}, {"steps": 3})
    assert len(paths) > 2
    found = read_network(tmp_path, "autoencoder")
    assert (found.config, found.progress) == ({"a": 1}, {"steps": 3})
    other = network(seed=1)
    load_state(other, found, "autoencoder")
    for name, values in made.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], values, atol=1e-3, rtol=1e-3)
    paths[1].unlink()
    with pytest.raises(WorldWarpError, match="expected"):
        read_network(tmp_path, "autoencoder")


def test_what_is_not_ours_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(WorldWarpError, match="no weights") as caught:
        read_network(tmp_path, "autoencoder")
    assert caught.value.code == "no_weights"
    (tmp_path / "autoencoder.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WorldWarpError) as caught:
        read_network(tmp_path, "autoencoder")
    assert caught.value.code == "bad_weights"
    made = network()
    save_network(tmp_path, "autoencoder", {"x": torch.zeros(2)}, {}, {})
    with pytest.raises(WorldWarpError, match="do not fit"):
        load_state(made, read_network(tmp_path, "autoencoder"), "autoencoder")
