"""Weights by folder and by name: what is whole loads bit for bit, what is not is refused with what to do."""

import json
import pickle
import shutil

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from tests.support.fake_hub import FINE_TUNED, WAN
from tests.support.refusals import fails
from tests.support.tiny_wan import TEXT_DIM, assert_same, original_name, save_tiny_wan, tiny_transformer
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.wan.weights import load_text_encoder, load_transformer, load_vae, resolve_models

SINGLE = "diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def wan(whole, tmp_path):
    """A folder of one's own to damage."""
    return shutil.copytree(whole, tmp_path / "wan")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- what is whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_load_as_diffusers_and_transformers_load_them(whole, dtype):
    files = resolve_models(str(whole))
    assert_same(
        load_transformer(files, dtype), WanTransformer3DModel.from_pretrained(files.transformer, torch_dtype=dtype)
    )
    assert_same(load_vae(files, dtype), AutoencoderKLWan.from_pretrained(files.vae, torch_dtype=dtype))
    tokenizer, encoder = load_text_encoder(files, dtype)
    assert_same(encoder, UMT5EncoderModel.from_pretrained(files.text_encoder, dtype=dtype))
    assert [model.training for model in (encoder, load_transformer(files), load_vae(files))] == [False] * 3
    assert tokenizer("A quiet courtyard", max_length=512, padding="max_length")["attention_mask"].count(1) == 4


def test_a_loaded_transformer_computes_what_the_saved_one_did(whole):
    model, loaded = tiny_transformer(), load_transformer(resolve_models(str(whole)), torch.float32)
    x = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    inputs = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.ones(1, 5, TEXT_DIM)}
    with torch.no_grad():
        assert torch.equal(model(x, **inputs)[0], loaded(x, **inputs)[0])


@pytest.mark.parametrize("layout", ["file", "sharded folder", "one file in a folder", "pipeline", "original names"])
def test_a_fine_tuned_transformer_loads_in_every_layout(whole, tmp_path, layout):
    tuned, place = tiny_transformer(9), tmp_path / "tuned"
    if layout == "file":
        place = place.with_suffix(".safetensors")
        save_file(tuned.state_dict(), place)
    elif layout == "original names":
        place = place.with_suffix(".safetensors")
        save_file({f"model.diffusion_model.{original_name(k)}": v for k, v in tuned.state_dict().items()}, place)
    elif layout == "pipeline":
        save_tiny_wan(place, transformer=tuned)
    else:
        tuned.save_pretrained(place, max_shard_size="100KB" if "sharded" in layout else "10GB")
    files = resolve_models(str(whole), str(place))
    assert_same(load_transformer(files, torch.float32), tuned)
    assert files.base == whole
    assert files.names == (str(whole), str(place))


PUBLISHED = {
    "transformer": {
        "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": None,
        "attention_head_dim": 128, "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": 8960, "freq_dim": 256,
        "image_dim": None, "in_channels": 16, "num_attention_heads": 12, "num_layers": 30, "out_channels": 16,
        "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096,
    },
    "vae": {
        "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.33.0.dev0", "attn_scales": [], "base_dim": 96,
        "dim_mult": [1, 2, 4, 4], "dropout": 0.0, "num_res_blocks": 2, "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
    "text_encoder": {"architectures": ["UMT5EncoderModel"], "d_model": 4096, "model_type": "umt5"},
}  # fmt: skip
"""The configurations of Wan2.1-T2V-1.3B as they are published, written by an older diffusers."""


def test_the_published_configurations_are_taken(wan):
    for part, config in PUBLISHED.items():
        (wan / part / "config.json").write_text(json.dumps(config))
    resolve_models(str(wan))
    with fails("wrong_architecture", "of 825 tensors", "blocks.0.attn1.norm_k.weight is 32, expected 1536"):
        load_transformer(resolve_models(str(wan)))
    with init_empty_weights():
        model = WanTransformer3DModel.from_config(PUBLISHED["transformer"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_418_996_800


# ---------------------------------------------------------------- what is not there


@pytest.mark.parametrize(
    ("base", "transformer", "command"),
    [
        ("wan-1.3b", None, "worldwarp models download wan-1.3b"),
        (WAN, None, "worldwarp models download wan-1.3b"),
        ("someone/else@v2", None, "worldwarp models download someone/else@v2"),
        (None, "worldwarp", "worldwarp models download worldwarp"),
        (None, FINE_TUNED, "worldwarp models download worldwarp"),
    ],
)
def test_a_model_that_is_not_here_is_named_with_the_command_that_brings_it(no_hub, whole, base, transformer, command):
    with fails("no_weights", f"Run: {command}$"):
        resolve_models(base or str(whole), transformer)


@pytest.mark.parametrize(("name", "says"), [("./nowhere", "wan-1.3b"), ("a/b/c", "folder"), ("", "Give a folder")])
def test_what_is_neither_a_folder_nor_a_name_is_said_so(no_hub, name, says):
    with fails("no_weights", says):
        resolve_models(name)


def test_resolving_asks_no_network(hub):
    with fails("no_weights"):
        resolve_models("wan-1.3b", "worldwarp")
    assert hub.requests == []


def test_a_checkpoint_is_sent_to_the_converter(whole, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"PK")
    with fails("bad_weights", f"worldwarp convert {tmp_path / 'x.ckpt'} OUT"):
        resolve_models(str(whole), str(tmp_path / "x.ckpt"))
    with fails("no_weights", "There is no "):
        resolve_models(str(whole), str(tmp_path / "typo.safetensors"))


@pytest.mark.parametrize(
    "gone",
    [
        "model_index.json", "vae/config.json", f"vae/{SINGLE}", "transformer/config.json", "text_encoder/config.json",
        "transformer/diffusion_pytorch_model-00002-of-00003.safetensors",
        "text_encoder/model-00003-of-00003.safetensors",
        "text_encoder/model.safetensors.index.json",
    ],
)  # fmt: skip
def test_a_missing_file_is_named(wan, gone):
    (wan / gone).unlink()
    with fails("no_weights", gone.split("/")[-1].removesuffix(".index.json")):
        resolve_models(str(wan))


# ---------------------------------------------------------------- another architecture


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("transformer", {"in_channels": 36}, "in_channels is 36, expected 16"),
        ("transformer", {"image_dim": 1280}, "image_dim is 1280, expected None"),
        ("transformer", {"patch_size": [1, 1, 1]}, "patch_size"),
        ("transformer", {"text_dim": 4096}, f"text_dim is 4096, expected {TEXT_DIM}"),
        ("transformer", {"_class_name": "HunyuanVideoTransformer3DModel"}, "expected 'WanTransformer3DModel'"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKLWan"),
        ("vae", {"is_residual": True}, "is_residual is True"),
        ("vae", {"temperal_downsample": [True, True, True]}, "temperal_downsample"),
        ("vae", {"dim_mult": [1, 2, 4]}, "expected 4 levels"),
        ("vae", {"z_dim": 48}, "expected 48"),
        ("text_encoder", {"model_type": "t5"}, "'t5', expected 'umt5'"),
        (".", {"_class_name": "WanImageToVideoPipeline"}, "WanPipeline"),
        (".", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "Wan 2.2"),
    ],
)
def test_a_configuration_of_another_architecture_is_refused_naming_what_differs(wan, part, changes, says):
    edit(wan / part / ("model_index.json" if part == "." else "config.json"), **changes)
    with fails("wrong_architecture", says):
        resolve_models(str(wan))


def test_weights_of_another_size_are_refused_naming_tensors(whole, tmp_path):
    save_file(tiny_transformer(num_attention_heads=3).state_dict(), tmp_path / "wide.safetensors")
    with fails("wrong_architecture", "blocks.0.attn1.norm_k.weight is 48, expected 32"):
        load_transformer(resolve_models(str(whole), str(tmp_path / "wide.safetensors")))
    save_file(tiny_transformer(num_layers=5).state_dict(), tmp_path / "deep.safetensors")
    with fails("bad_weights", "27 not of this model: blocks.4"):
        load_transformer(resolve_models(str(whole), str(tmp_path / "deep.safetensors")))


def test_missing_and_foreign_tensors_are_named(wan):
    for part, load in (("vae", load_vae), ("transformer", load_transformer)):
        shard = sorted((wan / part).glob("*.safetensors"))[0]
        whole, name = load_file(shard), sorted(load_file(shard))[0]
        save_file({key: value for key, value in whole.items() if key != name}, shard)
        with fails("bad_weights", f"is not whole.*1 missing: {name}"):
            load(resolve_models(str(wan)))
        save_file(whole | {"ema.decay": torch.ones(1)}, shard)
        with fails("bad_weights", "1 not of this model: ema.decay"):
            load(resolve_models(str(wan)))
        save_file(whole | {name: whole[name].to(torch.int32)}, shard)
        with fails("bad_weights", f"{name}.*torch.int32"):
            load(resolve_models(str(wan)))


@pytest.mark.parametrize("damage", ["drop", "add", "reshape"])
def test_a_text_encoder_that_is_not_its_configuration_s_is_refused(wan, damage):
    shard = wan / "text_encoder" / "model-00002-of-00003.safetensors"
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    changed = {
        "drop": {key: value for key, value in tensors.items() if key != name},
        "add": tensors | {"decoder.weight": torch.ones(2)},
        "reshape": tensors | {name: torch.ones(3, 5)},
    }[damage]
    save_file(changed, shard, metadata={"format": "pt"})
    with pytest.raises(WorldWarpError, match=r"text_encoder|text encoder") as caught:
        load_text_encoder(resolve_models(str(wan)))
    assert caught.value.code in ("wrong_architecture", "bad_weights")


# ---------------------------------------------------------------- damaged files


DAMAGE = {
    "cut short": lambda data: data[: len(data) // 2],
    "cut in the header": lambda data: data[:40],
    "one byte short": lambda data: data[:-1],
    "one byte long": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "noise": lambda data: bytes(range(256)) * 8,
    "a web page": lambda data: b"<!doctype html><title>404</title>" * 20,
    "a pickle": lambda data: pickle.dumps({"a": 1}),
    "a zip": lambda data: b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["vae", "transformer", "text_encoder"])
def test_a_damaged_file_is_refused_by_name(wan, part, damage):
    shard = sorted((wan / part).glob("*.safetensors"))[-1]
    shard.write_bytes(DAMAGE[damage](shard.read_bytes()))
    load = {"vae": load_vae, "transformer": load_transformer, "text_encoder": load_text_encoder}[part]
    expected = "is a pickle" if damage in ("a pickle", "a zip") else "is cut short|is not a safetensors"
    with fails("bad_weights", shard.name, expected):
        load(resolve_models(str(wan)))


@pytest.mark.parametrize("shard", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "a\\b.safetensors", 7])
def test_an_index_that_points_out_of_its_folder_is_refused(wan, shard):
    edit(wan / "transformer" / f"{SINGLE}.index.json", weight_map={"blocks.0.ffn.net.2.bias": shard})
    with fails("bad_weights", "not an index of weight files"):
        resolve_models(str(wan))


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff", "1" * (2**20 + 1)])
def test_a_damaged_configuration_is_refused(wan, content):
    (wan / "transformer" / "config.json").write_text(content, errors="surrogateescape")
    with fails("bad_weights", "config.json is not a model's configuration"):
        resolve_models(str(wan))
