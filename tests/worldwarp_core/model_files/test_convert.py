"""Checkpoints to safetensors, bit for bit and without running what is in them."""

import collections
import gc
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.refusals import fails
from tests.support.tiny_wan import original_name, save_tiny_wan, tiny_transformer
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.model_files.convert import convert_checkpoint, diffusers_names
from worldwarp_core.model_files.manifest import MANIFEST, hash_file, read_manifest
from worldwarp_core.model_files.store import verify
from worldwarp_core.wan.weights import load_transformer, resolve_models

SINGLE = "diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def weights():
    """A fine-tuned transformer as it is published: bfloat16."""
    return tiny_transformer(11).to(torch.bfloat16).state_dict()


@pytest.fixture
def config(wan):
    return wan / "transformer" / "config.json"


def saved(value, folder, name="x.ckpt", **settings):
    torch.save(value, folder / name, **settings)
    return folder / name


def prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


# ---------------------------------------------------------------- what is good


SHAPES = {
    "as it is": lambda w: w,
    "module.": lambda w: prefixed(w, "module."),
    "in state_dict": lambda w: {"state_dict": w, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "in state_dict, transformer.": lambda w: {"state_dict": prefixed(w, "transformer."), "args": {"lr": 1e-4}},
    "deep": lambda w: {"a": {"b": {"model": prefixed(w, "_orig_mod.module.")}}},
    "ema": lambda w: {"ema": w, "step": torch.tensor(5)},
    "ordered": lambda w: collections.OrderedDict(w),
    "wrapped blocks": lambda w: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in w.items()},
    "with other parts": lambda w: {"state_dict": {**prefixed(w, "generator.model."), "critic.weight": torch.ones(3)}},
    "original names": lambda w: {original_name(k): v for k, v in w.items()},
    "original, prefixed": lambda w: {"model": {f"diffusion_model.{original_name(k)}": v for k, v in w.items()}},
    "parameters": lambda w: {k: torch.nn.Parameter(v) for k, v in w.items()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_likely_shape_of_a_checkpoint_comes_out_bit_for_bit(tmp_path, config, weights, shape):
    made = convert_checkpoint(saved(SHAPES[shape](weights), tmp_path), tmp_path / "out", config)
    found = load_file(made.folder / SINGLE)
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == torch.bfloat16
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name
    assert (made.tensors, made.bytes) == (len(weights), sum(tensor.nbytes for tensor in weights.values()))


@pytest.mark.parametrize("kind", ["old format", "safetensors", "views of one tensor", "one tensor twice", "transposed"])
def test_other_formats_and_storages_come_out_bit_for_bit(tmp_path, config, weights, kind):
    expected = dict(weights)
    if kind == "safetensors":
        source = tmp_path / "x.safetensors"
        save_file(weights, source)
    elif kind == "old format":
        source = saved(weights, tmp_path, _use_new_zipfile_serialization=False)
    elif kind == "views of one tensor":  # as a trainer that flattens its parameters saves them
        flat = torch.cat([tensor.flatten() for tensor in weights.values()])
        parts = flat.split([tensor.numel() for tensor in weights.values()])
        source = saved({k: p.view(v.shape) for (k, v), p in zip(weights.items(), parts, strict=True)}, tmp_path)
    elif kind == "one tensor twice":
        expected["blocks.1.scale_shift_table"] = expected["blocks.0.scale_shift_table"]
        source = saved(expected, tmp_path)
    else:
        source = saved({k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in weights.items()}, tmp_path)
    convert_checkpoint(source, tmp_path / "out", config)
    found = load_file(tmp_path / "out" / SINGLE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].view(torch.int16), expected[name].view(torch.int16)) for name in expected)


def test_what_is_loaded_converted_and_saved_again_is_the_same_to_the_bit(tmp_path, wan, config, weights):
    convert_checkpoint(saved(prefixed(weights, "module."), tmp_path), tmp_path / "out", config)
    ours = load_transformer(resolve_models(str(wan), str(tmp_path / "out")), torch.bfloat16)
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor.to(torch.bfloat16), weights[name]), name
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    plain = {name: tensor.to(torch.bfloat16) for name, tensor in ours.state_dict().items()}
    convert_checkpoint(saved(plain, tmp_path, "again.ckpt"), tmp_path / "again", config)
    first, second = (load_file(tmp_path / folder / SINGLE) for folder in ("out", "again"))
    assert all(torch.equal(first[name].view(torch.int16), second[name].view(torch.int16)) for name in first)


def test_a_conversion_says_what_it_was_made_from_and_can_be_verified(tmp_path, config, weights):
    source, told = saved(weights, tmp_path, "worldwarp_latest.ckpt"), []
    made = convert_checkpoint(source, tmp_path / "out", config, progress=lambda what, share: told.append((what, share)))
    assert made.source_hash == hash_file(source)
    with safe_open(made.folder / SINGLE, framework="pt") as reader:
        assert reader.metadata()["worldwarp_source_hash"] == made.source_hash
        assert reader.metadata()["format"] == "pt"
    manifest = read_manifest(made.folder / MANIFEST)
    assert manifest.source["source"] == "worldwarp_latest.ckpt"
    assert set(manifest.files) == {"config.json", SINGLE}
    assert verify(made.folder).faults == ()
    assert {share for _, share in told} >= {0.0, 1.0}
    assert len({what for what, _ in told}) == 5
    (made.folder / "config.json").write_text(json.dumps({}))
    assert [fault.split()[0] for fault in verify(made.folder).faults] == ["config.json"]


def test_one_of_several_transformers_is_taken_only_by_name(tmp_path, config, weights):
    other = tiny_transformer(12).to(torch.bfloat16).state_dict()
    both = {"model": weights, "ema": prefixed(other, "module.")}
    source = saved(both | {**prefixed(other, "teacher."), "x": 1}, tmp_path)
    with fails("ambiguous_checkpoint", "'ema.module', 'model', 'teacher'", "--take"):
        convert_checkpoint(source, tmp_path / "out", config)
    with fails("ambiguous_checkpoint", "no 'best'"):
        convert_checkpoint(source, tmp_path / "out", config, take="best")
    assert convert_checkpoint(source, tmp_path / "out", config, take="ema.module").taken == "ema.module"
    name = "blocks.0.attn1.to_q.weight"
    assert torch.equal(load_file(tmp_path / "out" / SINGLE)[name], other[name])


# ---------------------------------------------------------------- what has code in it


class Call:
    """A pickle of this calls `function(*arguments)` when it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    command = f"touch {marker}"
    return {
        "os.system": Call(os.system, command),
        "subprocess": Call(subprocess.check_call, ["touch", str(marker)]),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
        "Path.touch": Call(Path.touch, marker),
        "torch.load": Call(torch.load, str(marker)),
        "shutil": Call(shutil.copyfile, __file__, str(marker)),
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
@pytest.mark.parametrize("wrapping", ["new", "old", "raw", "named .safetensors"])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_is_run(tmp_path, config, weights, attack, wrapping):
    marker = tmp_path / "was run"
    attack = attacks(marker)[attack]
    if wrapping == "raw":
        source = tmp_path / "x.ckpt"
        source.write_bytes(pickle.dumps(attack, protocol=2))
    else:
        source = saved(weights | {"extra": attack}, tmp_path, _use_new_zipfile_serialization=wrapping != "old")
    if wrapping == "named .safetensors":
        source = source.rename(tmp_path / "x.safetensors")
    with pytest.raises(WorldWarpError) as caught:
        convert_checkpoint(source, tmp_path / "out", config)
    assert caught.value.code == ("bad_weights" if wrapping == "named .safetensors" else "unsafe_checkpoint")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_the_attacks_are_real(tmp_path):
    """What the refusals refuse does happen where a pickle is read plainly."""
    source = saved({"a": Call(open, str(tmp_path / "was run"), "w")}, tmp_path)
    torch.load(source, weights_only=False)
    assert (tmp_path / "was run").exists()


def test_a_refusal_names_what_the_file_wanted_to_call(tmp_path, config):
    with fails("unsafe_checkpoint", "system", "nothing of it was run"):
        convert_checkpoint(saved({"a": Call(os.system, "true")}, tmp_path), tmp_path / "out", config)
    with fails("unsafe_checkpoint", "WanTransformer3DModel"):
        convert_checkpoint(saved(tiny_transformer(), tmp_path), tmp_path / "out", config)


# ---------------------------------------------------------------- what does not fit, is damaged or is none


def test_missing_foreign_and_misshapen_tensors_are_named_and_nothing_is_written(tmp_path, config, weights):
    name = "blocks.3.attn2.to_v.weight"
    less = {key: value for key, value in weights.items() if key != name}
    cases = {
        "bad_weights": (less, f"is not whole.*1 missing: {name}"),
        "bad_weights ": (
            weights | {"blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 32)},
            "1 not of this model: .*lora",
        ),
        "wrong_architecture": (weights | {name: torch.ones(32, 31)}, f"{name} is 32x31, expected 32x32"),
        "wrong_architecture ": (tiny_transformer(attention_head_dim=12).state_dict(), "of another shape"),
        "bad_checkpoint": (weights | {name: weights[name].to(torch.int8)}, f"{name}.*int8"),
        "bad_checkpoint ": (weights | {name: torch.full((32, 32), torch.nan)}, f"{name}.*not finite"),
    }
    for code, (tensors, says) in cases.items():
        with fails(code.strip(), says):
            convert_checkpoint(saved(tensors, tmp_path), tmp_path / "out", config)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_checkpoint_of_the_larger_wan_is_told_from_the_smaller(tmp_path, config):
    larger = {original_name(k): v for k, v in tiny_transformer(num_layers=6, ffn_dim=96).state_dict().items()}
    with fails("wrong_architecture", "is of another architecture", "ffn", "blocks.4"):
        convert_checkpoint(saved(larger, tmp_path), tmp_path / "out", config)


@pytest.mark.parametrize(
    ("value", "says"),
    [({}, "no Wan transformer"), ({"a": torch.ones(1)}, "no Wan transformer"), ([torch.ones(1)], "holds a list"),
     (torch.ones(3), "holds a Tensor"), ({"state_dict": {"vae.conv_in.weight": torch.ones(1)}}, "patch_embedding")],
)  # fmt: skip
def test_a_file_without_a_transformer_is_said_to_be_that(tmp_path, config, value, says):
    with fails("bad_checkpoint", says):
        convert_checkpoint(saved(value, tmp_path), tmp_path / "out", config)


@pytest.mark.parametrize("share", [0, 1, 9, 100, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("new", [True, False])
def test_a_checkpoint_that_is_cut_short_is_refused(tmp_path, config, weights, share, new):
    source = saved(weights, tmp_path, _use_new_zipfile_serialization=new)
    data = source.read_bytes()
    source.write_bytes(data[: share if isinstance(share, int) else int(share * len(data))])
    with fails("bad_checkpoint", "cut short|damaged|no checkpoint"):
        convert_checkpoint(source, tmp_path / "out", config)


@pytest.mark.parametrize(
    "content", [b"<!doctype html>" * 99, bytes(range(256)) * 40, b"PK\x03\x04" + bytes(900), b"\0" * 64]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, config, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with fails("bad_checkpoint", "x.ckpt"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", config)


def test_two_tensors_of_one_name_are_refused(weights):
    with fails("bad_weights", "both blocks.0.attn1.to_q.bias"):
        diffusers_names([*weights, "blocks.0._orig_mod.attn1.to_q.bias"])


def test_names_of_wan_animate_are_left_for_the_check(weights):
    names = diffusers_names([*map(original_name, weights), "face_adapter.fuser_blocks.0.linear1_kv.weight"])
    assert names["face_adapter.fuser_blocks.0.linear1_kv.weight"] == "face_adapter.fuser_blocks.0.linear1_kv.weight"


# ---------------------------------------------------------------- where it goes


def test_a_folder_that_holds_something_is_left_alone_and_an_empty_one_is_taken(tmp_path, config, weights):
    source, out = saved(weights, tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    with fails("folder_in_use", "is there already"):
        convert_checkpoint(source, out, config)
    assert (out / "mine").read_text() == "keep"
    (out / "mine").unlink()
    convert_checkpoint(source, out, config)
    assert verify(out).checked == 2


def test_a_conversion_that_fails_while_it_writes_leaves_nothing(tmp_path, config, weights, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with fails("disk_full", "0.0 GB are free"):
        convert_checkpoint(saved(weights, tmp_path), tmp_path / "out", config)
    monkeypatch.undo()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", full)
    with fails("disk_full", "No space left"):
        convert_checkpoint(tmp_path / "x.ckpt", tmp_path / "out", config)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_what_is_missing_is_said(tmp_path, config, weights):
    with fails("no_checkpoint", "There is no file"):
        convert_checkpoint(tmp_path / "nowhere.ckpt", tmp_path / "out", config)
    source = saved(weights, tmp_path)
    with fails("no_weights", "There is no"):
        convert_checkpoint(source, tmp_path / "out", tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1]")
    with fails("bad_weights", "no configuration of a Wan transformer"):
        convert_checkpoint(source, tmp_path / "out", tmp_path / "config.json")


def own_memory():
    """Bytes of this process that are of no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process's memory")
def test_a_checkpoint_is_mapped_and_not_read_into_memory(tmp_path):
    with init_empty_weights():
        model = WanTransformer3DModel(num_attention_heads=4, attention_head_dim=128, ffn_dim=8192, num_layers=4)
    model.save_config(tmp_path)
    weights = {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in model.state_dict().items()}
    size = sum(tensor.nbytes for tensor in weights.values())
    source = saved(weights, tmp_path)
    del weights
    gc.collect()
    before, samples = own_memory(), []
    convert_checkpoint(
        source, tmp_path / "out", tmp_path / "config.json", progress=lambda *_: samples.append(own_memory())
    )
    assert size > 80e6
    assert len(samples) > 100
    assert max(samples) - before < 0.3 * size
