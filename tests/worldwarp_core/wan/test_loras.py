"""LoRA files in every naming give the same transformer; what is not for it leaves it as it was."""

import json
import math

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import save_file

from tests.support.refusals import fails
from tests.support.tiny_wan import TEXT_DIM, original_name, tiny_transformer
from worldwarp_core.wan.loras import LoraFile, apply_loras

RANK = 3

pytestmark = pytest.mark.usefixtures("one_thread")


def adapted(model):
    """Names of the layers that a usual LoRA adapts."""
    parts = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ffn.net.0.proj", ".ffn.net.2")
    return [name for name, _ in model.named_modules() if name.endswith(parts)]


def factors(model, seed=0, rank=RANK):
    """By layer, its two factors: (rank, in) and (out, rank)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, model.get_submodule(name).in_features, generator=generator) / 4,
            torch.randn(model.get_submodule(name).out_features, rank, generator=generator) / 4,
        )
        for name in adapted(model)
    }


def expected(model, *loras):
    """The weights that (factors, scale) pairs make, by the definition of a LoRA."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for found, scale in loras:
        for name, (down, up) in found.items():
            weights[f"{name}.weight"] += scale * up @ down
    return weights


def save(found, path, naming):
    """Writes a LoRA as one of the programs that make them does; returns the scale that its settings ask for."""
    tensors, scale = {}, 1.0
    for name, (down, up) in found.items():
        theirs = original_name(name + ".").removesuffix(".")
        if naming in ("diffusers", "diffusers with settings"):
            keys = f"transformer.{name}.lora_A.weight", f"transformer.{name}.lora_B.weight"
        elif naming in ("peft", "peft rslora"):
            keys = f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"
        elif naming == "comfy":
            keys = f"diffusion_model.{theirs}.lora_A.weight", f"diffusion_model.{theirs}.lora_B.weight"
        elif naming == "comfy down and up":
            keys = f"diffusion_model.{theirs}.lora_down.weight", f"diffusion_model.{theirs}.lora_up.weight"
            tensors[f"diffusion_model.{theirs}.alpha"] = torch.tensor(RANK / 2)
            scale = 0.5
        elif naming == "kohya":
            flat = f"lora_unet_{theirs.replace('.', '_')}"
            keys = f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"
            tensors[f"{flat}.alpha"] = torch.tensor(RANK * 2.0)
            scale = 2.0
        else:
            keys = f"{theirs}.lora_A.default.weight", f"{theirs}.lora_B.default.weight"
        tensors |= dict(zip(keys, (down, up), strict=True))
    settings = {"r": RANK, "lora_alpha": 6.0, "use_rslora": naming == "peft rslora", "alpha_pattern": {}}
    header = {"format": "pt"}
    if naming == "diffusers with settings":
        header["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        scale = 2.0
    if naming.startswith("peft"):
        (path.parent / "adapter_config.json").write_text(json.dumps(settings))
        scale = 6 / math.sqrt(RANK) if settings["use_rslora"] else 2.0
    save_file(tensors, path, metadata=header)
    return scale


NAMINGS = (
    "diffusers", "diffusers with settings", "peft", "peft rslora", "comfy", "comfy down and up", "kohya", "diffsynth",
)  # fmt: skip


def assert_weights(model, weights):
    found = model.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}"
        )


# ---------------------------------------------------------------- what fits


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_of_every_naming_adds_what_its_factors_say(tmp_path, naming):
    model = tiny_transformer()
    found = factors(model)
    scale = save(found, tmp_path / "x.safetensors", naming)
    weights = expected(model, (found, 0.7 * scale))
    apply_loras(model, [LoraFile(tmp_path / "x.safetensors", 0.7)])
    assert_weights(model, weights)


def test_several_loras_add_up_each_with_its_scale(tmp_path):
    model = tiny_transformer()
    first, second = factors(model, 1), factors(model, 2, rank=5)
    save(first, tmp_path / "a.safetensors", "diffusers")
    save(second, tmp_path / "b.safetensors", "comfy")
    weights = expected(model, (first, 0.5), (second, -1.25))
    apply_loras(model, [LoraFile(tmp_path / "a.safetensors", 0.5), LoraFile(tmp_path / "b.safetensors", -1.25)])
    assert_weights(model, weights)


def test_the_transformer_is_the_stock_one_afterwards_and_takes_more(tmp_path):
    model, plain = tiny_transformer(), tiny_transformer()
    found = factors(model)
    save(found, tmp_path / "x.safetensors", "diffusers")
    apply_loras(model, [LoraFile(tmp_path / "x.safetensors")])
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in plain.modules()]
    assert not getattr(model, "peft_config", None)
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apply_loras(model, [LoraFile(tmp_path / "x.safetensors", -1.0)])
    assert_weights(model, plain.state_dict())
    plain.load_state_dict(once)
    x, text = torch.ones(1, 16, 1, 4, 4), torch.ones(1, 3, TEXT_DIM)
    apply_loras(model, [LoraFile(tmp_path / "x.safetensors")])
    with torch.no_grad():
        ours, same = (m(x, torch.tensor([9.0]), text)[0] for m in (model, plain))
    torch.testing.assert_close(ours, same)


def test_a_scale_of_nought_and_no_lora_change_nothing(tmp_path):
    model = tiny_transformer()
    save(factors(model), tmp_path / "x.safetensors", "kohya")
    apply_loras(model, [])
    apply_loras(model, [LoraFile(tmp_path / "x.safetensors", 0.0)])
    assert_weights(model, tiny_transformer().state_dict())


def test_what_peft_and_diffusers_themselves_save_is_read(tmp_path):
    model = tiny_transformer()
    wrapped = get_peft_model(tiny_transformer(), LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "ffn.net.2"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 4)
    wrapped.save_pretrained(tmp_path / "peft")
    merged = {name: tensor.clone() for name, tensor in wrapped.merge_and_unload().state_dict().items()}
    apply_loras(model, [LoraFile(tmp_path / "peft")])
    assert_weights(model, merged)
    assert not torch.equal(model.blocks[0].attn1.to_q.weight, tiny_transformer().blocks[0].attn1.to_q.weight)

    other = tiny_transformer()
    other.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["to_v"], init_lora_weights=False))
    other.save_lora_adapter(tmp_path / "diffusers", weight_name="pytorch_lora_weights.safetensors")
    other.fuse_lora()
    other.unload_lora()
    model = tiny_transformer()
    apply_loras(model, [LoraFile(tmp_path / "diffusers")])
    assert_weights(model, other.state_dict())


def test_a_bfloat16_transformer_takes_a_float32_lora_and_stays_bfloat16(tmp_path):
    model = tiny_transformer().to(torch.bfloat16)
    found = factors(model)
    save(found, tmp_path / "x.safetensors", "diffusers")
    weights = expected(tiny_transformer(), (found, 1.0))
    apply_loras(model, [LoraFile(tmp_path / "x.safetensors")])
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), weights[name], rtol=2**-6, atol=1e-2)


# ---------------------------------------------------------------- what does not


def sdxl():
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    return {
        f"{name}.lora_down.weight": torch.ones(4, 640), f"{name}.lora_up.weight": torch.ones(640, 4),
        f"{name}.alpha": torch.tensor(4.0),
    }  # fmt: skip


def flux():
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    return {f"{name}.lora_A.weight": torch.ones(4, 3072), f"{name}.lora_B.weight": torch.ones(3072, 4)}


def wide():
    found = factors(tiny_transformer(num_attention_heads=4))
    return {
        f"transformer.{name}.lora_{part}.weight": tensor
        for name, pair in found.items()
        for part, tensor in zip("AB", pair, strict=True)
    }


def fitting():
    return {
        f"transformer.{name}.lora_{part}.weight": tensor
        for name, pair in factors(tiny_transformer()).items()
        for part, tensor in zip("AB", pair, strict=True)
    }


LAST = "transformer.blocks.3.ffn.net.2"
MISFITS = {
    "Stable Diffusion XL's": (sdxl, "another architecture"),
    "FLUX's": (flux, "another architecture"),
    "the 14B model's": (wide, "for 64 inputs and 64 outputs, the transformer's layer has 32 and 32"),
    "deeper": (
        lambda: {k.replace("blocks.3", "blocks.39"): v for k, v in fitting().items()},
        "no linear layer for .*39",
    ),
    "image to video's": (
        lambda: {k.replace("attn2.to_k", "attn2.add_k_proj"): v for k, v in fitting().items()},
        "add_k",
    ),
    "half": (lambda: {k: v for k, v in fitting().items() if k != f"{LAST}.lora_B.weight"}, "is not whole.*ffn.net.2"),
    "of two ranks": (lambda: fitting() | {f"{LAST}.lora_B.weight": torch.ones(32, 9)}, "another architecture"),
    "not finite": (lambda: fitting() | {f"{LAST}.lora_B.weight": torch.full((32, 3), torch.inf)}, "finite"),
    "integers": (lambda: fitting() | {f"{LAST}.lora_B.weight": torch.ones(32, 3, dtype=torch.int8)}, "finite"),
    "DoRA": (lambda: fitting() | {f"{LAST}.lora_magnitude_vector": torch.ones(32)}, "DoRA"),
    "LoKr": (lambda: {f"{LAST}.lokr_w1": torch.ones(2, 2)}, "LoKr"),
    "a whole model": (lambda: tiny_transformer().state_dict(), "no LoRA"),
    "empty": (dict, "no LoRA"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_lora_that_does_not_fit_is_refused_and_the_transformer_untouched(tmp_path, kind):
    make, says = MISFITS[kind]
    model = tiny_transformer()
    save_file(make(), tmp_path / "bad.safetensors")
    save(factors(model), tmp_path / "good.safetensors", "diffusers")
    with fails("bad_lora", "bad.safetensors", says):
        apply_loras(model, [LoraFile(tmp_path / "good.safetensors"), LoraFile(tmp_path / "bad.safetensors")])
    untouched = tiny_transformer()
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in untouched.modules()]


def test_a_lora_that_fails_half_way_leaves_the_transformer_as_it_was(tmp_path, monkeypatch):
    model, applied = tiny_transformer(), []
    save(factors(model), tmp_path / "x.safetensors", "diffusers")
    load = type(model).load_lora_adapter

    def fail_second(self, *arguments, **settings):
        load(self, *arguments, **settings)
        applied.append(1)
        if len(applied) == 2:
            raise MemoryError

    monkeypatch.setattr(type(model), "load_lora_adapter", fail_second)
    with pytest.raises(MemoryError):
        apply_loras(model, [LoraFile(tmp_path / "x.safetensors")] * 2)
    assert_weights(model, tiny_transformer().state_dict())


def test_a_lora_that_fails_while_it_is_fused_is_taken_out_again(tmp_path, monkeypatch):
    model, merged = tiny_transformer(), []
    save(factors(model), tmp_path / "x.safetensors", "diffusers")
    merge = Linear.merge

    def fail_fifth(self, safe_merge=False, adapter_names=None):
        merged.append(self)
        if len(merged) == 5:
            raise MemoryError
        merge(self, safe_merge=safe_merge, adapter_names=adapter_names)

    monkeypatch.setattr(Linear, "merge", fail_fifth)
    with pytest.raises(MemoryError):
        apply_loras(model, [LoraFile(tmp_path / "x.safetensors")])
    assert_weights(model, tiny_transformer().state_dict())


@pytest.mark.parametrize("damage", ["cut", "pickle", "gone", "a folder without one"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    save(factors(tiny_transformer()), path, "diffusers")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "pickle":
        torch.save({"lora": torch.ones(1)}, path)
    elif damage == "gone":
        path.unlink()
    else:
        path = tmp_path / "empty"
        path.mkdir()
    code = "no_weights" if damage in ("gone", "a folder without one") else "bad_weights"
    with fails(code, path.name):
        apply_loras(tiny_transformer(), [LoraFile(path)])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_alpha": "8"}, "no number"),
        ({"r": 3}, "no number"),
        ({"lora_alpha": math.nan}, "no number"),
        ([1], "cannot be read"),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 4}}, "alpha of its own"),
        ({"lora_alpha": 8, "use_dora": True}, "DoRA"),
    ],
)
def test_settings_that_are_not_read_are_refused(tmp_path, settings, says):
    save(factors(tiny_transformer()), tmp_path / "x.safetensors", "peft")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with fails("bad_lora", says):
        apply_loras(tiny_transformer(), [LoraFile(tmp_path / "x.safetensors")])


@pytest.mark.parametrize("scale", [math.nan, math.inf, 11, -10.5])
def test_a_scale_out_of_range_is_refused(tmp_path, scale):
    with fails("bad_settings", "from -10 to 10"):
        LoraFile(tmp_path / "x.safetensors", scale)


def test_the_library_s_own_door_agrees(tmp_path):
    """diffusers' pipeline, given the same file, computes with the same weights."""
    model, theirs = tiny_transformer(), tiny_transformer()
    save(factors(model), tmp_path / "x.safetensors", "kohya")
    state = WanPipeline.lora_state_dict(str(tmp_path / "x.safetensors"))
    WanPipeline.load_lora_into_transformer(state, theirs, adapter_name="x")
    apply_loras(model, [LoraFile(tmp_path / "x.safetensors")])
    x, text = torch.ones(1, 16, 1, 4, 4), torch.ones(1, 3, TEXT_DIM)
    with torch.no_grad():
        ours, same = (m(x, torch.tensor([9.0]), text)[0] for m in (model, theirs))
    torch.testing.assert_close(ours, same, rtol=1e-4, atol=1e-5)
