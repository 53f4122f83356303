"""Textures: patterns repeat, mips average, splits share nothing, a bad file is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.worlds.patterns import PATTERNS, make_patterns
from worldwarp_core.worlds.textures import GUARD, build_bank, choose, load_images, usable


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_a_pattern_repeats_without_a_seam(name):
    pictures = make_patterns(name, 4, 64, torch.Generator().manual_seed(1), "cpu")
    assert pictures.shape == (4, 3, 64, 64)
    assert pictures.isfinite().all()
    across = (pictures[..., 0] - pictures[..., -1]).abs().mean()
    inside = (pictures[..., 1:] - pictures[..., :-1]).abs().mean((0, 1, 2)).amax()
    assert across < 1.3 * inside + 0.01  # a joint or stripe may end on the border as elsewhere, no more


def test_sampling_at_texel_centres_gives_the_texels_and_the_last_mip_is_the_mean():
    bank = build_bank("train", size=16, patterns_each=1)
    picture = torch.tensor(bank.groups["brick"][0])
    texels = bank.texels[picture * bank.stride :][:256, :3].float().view(16, 16, 3) / 255
    centres = (torch.arange(16) + 0.5) / 16
    v, u = torch.meshgrid(centres, centres, indexing="ij")
    got = bank.sample(picture.expand(16, 16), torch.stack([u, v], -1) - 3, torch.zeros(16, 16))
    torch.testing.assert_close(got, texels, atol=1e-5, rtol=0)
    coarsest = bank.sample(picture, torch.tensor([0.3, 0.7]), torch.tensor(9.0))
    torch.testing.assert_close(coarsest, texels.mean((0, 1)), atol=0.01, rtol=0)


def test_the_splits_have_other_patterns_and_the_same_split_has_the_same():
    train, again, test = (build_bank(split, size=16, patterns_each=1) for split in ("train", "train", "test"))
    assert torch.equal(train.texels, again.texels)
    assert not torch.equal(train.texels, test.texels)


def noisy_images(count, seed=0):
    return np.random.default_rng(seed).integers(60, 200, (count, 16, 16, 3)).astype(np.uint8)


def test_the_splits_of_a_file_share_no_image_no_neighbour_and_no_look_alike():
    images = np.repeat(np.repeat(noisy_images(400)[:, ::4, ::4], 4, 1), 4, 2)
    kinds = np.array(["photo"] * 400)
    images[200] = images[20]  # the same photograph far away in the list: 20 is for testing, so 200 may not train
    sets = {split: set(choose(images, kinds, "photo", split).tolist()) for split in ("train", "val", "test")}
    assert all(len(chosen) > 10 for chosen in sets.values())
    assert 20 in sets["test"]
    assert 200 not in sets["train"]
    for i in sets["train"]:
        assert all(abs(i - j) > GUARD for j in sets["test"] | sets["val"])


def test_a_logo_on_a_flat_ground_is_not_usable_and_a_rough_wall_is():
    logo = np.full((64, 64, 3), 250, np.uint8)
    logo[20:40, 10:50] = (200, 20, 20)
    assert not usable(logo, "tex")
    assert usable(noisy_images(1)[0], "tex")


def write(path, count=3, **changes):
    data = []
    for image in noisy_images(count):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        data.append(buffer.getvalue())
    fields = {
        "data": np.frombuffer(b"".join(data), np.uint8),
        "ends": np.cumsum([len(one) for one in data]),
        "kinds": np.array(["tex"] * count),
    } | changes
    np.savez(path, **fields)
    return path


def test_a_file_comes_back_as_its_images(tmp_path):
    images, kinds = load_images(write(tmp_path / "some.npz"))
    assert images.shape == (3, 16, 16, 3)
    assert kinds.tolist() == ["tex"] * 3


@pytest.mark.parametrize(
    "changes",
    [{"ends": np.array([1, 2, 3])}, {"data": np.zeros(9, np.uint8), "ends": np.array([3, 6, 9])},
     {"kinds": np.array(["tex"])}, {"ends": np.array([], np.int64), "kinds": np.array([], str)}],
)  # fmt: skip
def test_a_file_of_another_layout_is_refused(tmp_path, changes):
    with pytest.raises(WorldWarpError, match="no texture file") as caught:
        load_images(write(tmp_path / "bad.npz", **changes))
    assert caught.value.code == "bad_textures"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WorldWarpError, match=r"nothing\.npz"):
        load_images(tmp_path / "nothing.npz")
