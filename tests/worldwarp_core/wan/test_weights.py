"""Weights by folder and by name on the Hub: what is whole loads bit for bit, what is not is refused with what to do."""

import json
import pickle
import shutil
import sys

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from tests.support.fake_hub import COMMIT, fake_hub, use_hub
from tests.support.tiny_wan import TEXT_DIM, save_tiny_wan, tiny_transformer
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.model_files import store
from worldwarp_core.model_files.store import MANIFEST, HubName, download, hub_name, identity, read_manifest, verify
from worldwarp_core.wan.weights import load_text_encoder, load_transformer, load_vae, resolve_models

WAN, FINE_TUNED = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "imsuperkong/worldwarp"
SINGLE = "diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def wan(whole, tmp_path):
    """A folder of one's own to damage."""
    return shutil.copytree(whole, tmp_path / "wan")


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty cache, and a hub that is not there."""
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hf")


@pytest.fixture
def hub(whole, tmp_path, monkeypatch):
    """A hub with the base model and a fine-tuned checkpoint, and an empty cache."""
    (tmp_path / "published").mkdir()
    torch.save(tiny_transformer(7).to(torch.bfloat16).state_dict(), tmp_path / "published" / "worldwarp_latest.ckpt")
    base = shutil.copytree(whole, tmp_path / "base")
    (base / "README.md").write_text("# Wan")
    (base / "vae" / "old.bin").write_bytes(b"a pickle")
    with fake_hub({WAN: base, FINE_TUNED: tmp_path / "published"}) as served:
        use_hub(monkeypatch, served.url, tmp_path / "hf")
        yield served


def assert_same(model, other):
    found, expected = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fails(code, *says):
    return pytest.raises(WorldWarpError, match="(?s)" + ".*".join(says), check=lambda error: error.code == code)


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


def original_name(name):
    """What the original Wan calls a tensor, written down from its published layout."""
    pairs = (
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1.", "self_attn."), ("attn2.", "cross_attn."), ("to_out.0.", "o."),
        ("to_q.", "q."), ("to_k.", "k."), ("to_v.", "v."),
        ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
        (".norm2.", ".swap."), (".norm3.", ".norm2."), (".swap.", ".norm3."),
        ("proj_out", "head.head"),
    )  # fmt: skip
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name.replace("scale_shift_table", "modulation")


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


# ---------------------------------------------------------------- from the Hub


def test_downloaded_models_are_checked_converted_and_found_without_a_network(hub):
    told = []
    folder = download(hub_name("wan-1.3b"), lambda what, share: told.append((what.split()[0], share)))
    assert not (folder / "README.md").exists()
    assert not (folder / "vae" / "old.bin").exists()
    assert ("fetching", 1.0) in told
    assert ("verifying", 1.0) in told
    assert all(0 <= share <= 1 for _, share in told)
    converted = download(hub_name("worldwarp"))
    assert read_manifest(converted / MANIFEST).source["source"] == "worldwarp_latest.ckpt"
    hub.requests.clear()
    files = resolve_models("wan-1.3b", "worldwarp")
    assert hub.requests == []
    assert (files.base, files.transformer) == (folder, converted)
    assert_same(load_transformer(files, torch.float32), tiny_transformer(7).to(torch.bfloat16).float())
    load_vae(files)
    load_text_encoder(files)
    assert verify(folder).faults == verify(converted).faults == ()


def test_a_second_download_fetches_nothing(hub):
    for name in ("wan-1.3b", "worldwarp"):
        first = download(hub_name(name))
        fetched = len(hub.fetched())
        assert download(hub_name(name)) == first
        assert len(hub.fetched()) == fetched > 0


def test_resolving_downloads_only_when_told_to(hub):
    files = resolve_models("wan-1.3b", "worldwarp", download=True)
    assert files.base.name == COMMIT
    assert (files.transformer / MANIFEST).is_file()


def test_a_file_that_comes_changed_is_fetched_again(hub):
    hub.spoiled[f"vae/{SINGLE}"] = 1
    folder = download(hub_name("wan-1.3b"))
    assert hub.fetched().count(f"vae/{SINGLE}") == 2
    assert verify(folder).faults == ()


def test_a_file_that_always_comes_changed_is_refused(hub):
    hub.spoiled["transformer/config.json"] = 9
    with fails("bad_weights", "transformer/config.json", "hash that the Hub states"):
        download(hub_name("wan-1.3b"))


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_byte_that_changes_on_the_disk_is_found_and_a_download_repairs_it(hub, with_manifest):
    folder = download(hub_name("wan-1.3b"))
    if not with_manifest:  # what another program has fetched: the cache names files by their hashes
        store._manifest_beside_cache(HubName(WAN), COMMIT).unlink()
    assert verify(folder).checked == 16
    broken = (folder / "vae" / SINGLE).resolve()
    data = bytearray(broken.read_bytes())
    data[-9] ^= 4
    broken.write_bytes(data)
    (found,) = verify(folder).faults
    assert found.startswith(f"vae/{SINGLE} hashes to sha256:")
    download(hub_name("wan-1.3b"))
    assert verify(folder).faults == ()


def test_a_converted_folder_that_has_been_damaged_is_converted_again(hub):
    folder = download(hub_name("worldwarp"))
    (folder / SINGLE).write_bytes(b"")
    assert [fault.split()[0] for fault in verify(folder).faults] == [SINGLE]
    assert download(hub_name("worldwarp")) == folder
    assert verify(folder).faults == ()


def test_a_snapshot_with_a_file_missing_is_not_taken_for_whole(hub):
    folder = download(hub_name("wan-1.3b"))
    (folder / "text_encoder" / "model-00002-of-00003.safetensors").unlink()
    with fails("no_weights", "worldwarp models download wan-1.3b"):
        resolve_models("wan-1.3b")


class Planted:
    """A pickle of this writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_published_checkpoint_with_code_in_it_is_refused_and_not_run(hub, tmp_path):
    torch.save({"a": Planted(tmp_path / "was run")}, hub.repos[FINE_TUNED] / "worldwarp_latest.ckpt")
    with fails("unsafe_checkpoint", "nothing of it was run"):
        download(hub_name("worldwarp"))
    assert not (tmp_path / "was run").exists()
    with fails("no_weights", "worldwarp models download worldwarp"):
        store.locate("worldwarp", what="the transformer")


def test_without_a_connection_a_download_says_what_to_do(no_hub):
    with fails("download_failed", "ConnectError", "worldwarp models download wan-1.3b", "copy the model's folder"):
        download(hub_name("wan-1.3b"))


def test_offline_mode_is_named(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with fails("download_failed", "HF_HUB_OFFLINE is set"):
        download(hub_name("wan-1.3b"))


def test_a_name_that_the_hub_does_not_know_is_said_so(hub):
    with fails("download_failed", "The Hub knows no someone/else"):
        download(hub_name("someone/else"))


def test_a_model_that_does_not_fit_the_disk_is_not_begun(hub, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with fails("disk_full", "HF_HOME"):
        download(hub_name("wan-1.3b"))
    assert hub.fetched() == []


def test_names_on_the_hub():
    assert hub_name("wan-1.3b") == HubName(WAN)
    assert hub_name("worldwarp@0123abc") == HubName(FINE_TUNED, "0123abc")
    assert str(hub_name("a/b@refs/pr/1")) == "a/b@refs/pr/1"
    assert [hub_name(name) for name in ("a", "a/b/c", "../b", "./b", "/b", "", "a/b@../c", "a/b@-x")] == [None] * 8


# ---------------------------------------------------------------- manifests and identity


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "C:\\x", ""])
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(tmp_path, name):
    entry = {"size": 1, "hash": "sha256:" + "0" * 64}
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 1, "source": {}, "files": {name: entry}}))
    with fails("bad_manifest", "not in its folder"):
        verify(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "source": {}, "files": {"a": 1}}'])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with fails("bad_manifest", "is not a manifest"):
        verify(tmp_path)


def test_a_folder_of_which_nothing_is_known_cannot_be_verified(whole):
    with fails("no_manifest", MANIFEST):
        verify(whole)


def test_the_identity_of_a_folder_changes_with_its_files_and_not_with_a_manifest(wan):
    before = identity(wan / "vae")
    assert resolve_models(str(wan)).text_identity == resolve_models(str(wan)).text_identity
    (wan / "vae" / MANIFEST).write_text("{}")
    assert identity(wan / "vae") == before
    (wan / "vae" / "config.json").write_bytes((wan / "vae" / "config.json").read_bytes() + b"\n")
    assert identity(wan / "vae") != before


def test_the_registry_needs_no_torch():
    import subprocess

    code = "import sys, worldwarp_core.model_files.store; assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
