import copy
import json

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import LoraConfig
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.transformer.block import AttentionProcessor
from worldwarp_core.transformer.float8 import Float8Linear, multiplies_float8
from worldwarp_core.transformer.prepare import TransformerOptions, prepare_transformer

SHAPE = (1, 16, 3, 8, 10)  # 3 x 4 x 5 tokens
TOKENS = 60

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stock():
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, text_dim=32, freq_dim=32, ffn_dim=64, num_layers=2
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip():
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, *SHAPE[1:], generator=generator),
        "levels": torch.tensor([1000.0, 957.188964, 0.0, 0.0]),
        "index": torch.randint(0, 3, (2, TOKENS), generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, 32, generator=generator),
    }


def ask_stock(model, clip):
    """The stock model with a timestep for each token."""
    timestep = clip["levels"][clip["index"]]
    return model(clip["hidden_states"], timestep, clip["encoder_hidden_states"]).sample


def as_loaded(model, dtype):
    """A copy in half precision but for what diffusers keeps in float32 when it loads one."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if not any(kept in name for kept in model._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    return model


def halved(clip):
    half = {name: clip[name].bfloat16() for name in ("hidden_states", "encoder_hidden_states")}
    return clip | half


def relative(answer, want):
    return ((answer.float() - want.float()).norm() / want.float().norm()).item()


# The stock model's answer


def test_the_answer_is_the_stock_model_s(stock, clip):
    want = ask_stock(stock, clip)
    got = prepare_transformer(copy.deepcopy(stock))(**clip)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_levels_matter(stock, clip):
    model = prepare_transformer(copy.deepcopy(stock))
    other = model(**clip | {"levels": torch.tensor([1000.0, 500.0, 0.0, 0.0])})
    assert (other - model(**clip)).abs().max() > 1e-3


def test_many_levels_are_as_exact_as_three(stock, clip):
    generator = torch.Generator().manual_seed(2)
    many = clip | {
        "levels": 1000 * torch.rand(64, generator=generator),
        "index": torch.randint(0, 64, (2, TOKENS), generator=generator),
    }
    torch.testing.assert_close(
        prepare_transformer(copy.deepcopy(stock))(**many), ask_stock(stock, many), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("cast", [as_loaded, lambda model, dtype: copy.deepcopy(model).to(dtype)])
def test_in_half_precision_it_is_the_stock_model_s_too(stock, clip, cast):
    half = cast(stock, torch.bfloat16)
    want = ask_stock(half, halved(clip))
    got = prepare_transformer(half)(**halved(clip))
    assert got.dtype == torch.bfloat16
    assert relative(got, want) < 1e-3 < relative(want, ask_stock(stock, clip))


def test_compiled_it_is_the_stock_model_s_too(stock, clip, monkeypatch):
    # What torch has kept of another kind of processor it would take as it is, and compute nonsense.
    kept = f"{default_cache_dir()}_{torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", kept)
    model = prepare_transformer(copy.deepcopy(stock), TransformerOptions(compile=True))
    torch.testing.assert_close(model(**clip), ask_stock(stock, clip), rtol=1e-5, atol=1e-5)


def test_the_compiled_block_is_one_graph_for_all_blocks(stock, clip):
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = prepare_transformer(copy.deepcopy(stock))
    for block in model.blocks:
        block.compile(backend=count, fullgraph=True, dynamic=False)
    want = ask_stock(stock, clip)
    torch.testing.assert_close(model(**clip), want, rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


def test_one_word_needs_no_attention_to_choose_among(stock, clip):
    """cuDNN attends to no single key, and the preview is asked with one word."""
    one = clip | {"encoder_hidden_states": clip["encoder_hidden_states"][:, :1]}
    model = prepare_transformer(copy.deepcopy(stock))
    torch.testing.assert_close(model(**one), ask_stock(stock, one), rtol=1e-5, atol=1e-5)
    for block in model.blocks:
        block.attn2.set_processor(AttentionProcessor(AttentionBackendName._NATIVE_CUDNN))  # which no CPU has
    torch.testing.assert_close(model(**one), ask_stock(stock, one), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError):
        model(**clip)


def test_gradients_are_the_stock_model_s(stock, clip):
    both = [copy.deepcopy(stock).requires_grad_(), prepare_transformer(copy.deepcopy(stock).requires_grad_())]
    ask_stock(both[0], clip).square().mean().backward()
    both[1](**clip).square().mean().backward()
    for want, got in zip(both[0].parameters(), both[1].parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)


# What diffusers does with a model


def test_what_is_saved_is_a_stock_model(stock, clip, tmp_path):
    prepare_transformer(copy.deepcopy(stock)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "WanTransformer3DModel"
    again = WanTransformer3DModel.from_pretrained(tmp_path)
    assert type(again) is WanTransformer3DModel
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), stock.parameters(), strict=True))


def test_block_offloading_still_works(stock, clip):
    model = prepare_transformer(copy.deepcopy(stock))
    want = model(**clip)
    model.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    assert torch.equal(model(**clip), want)


def test_float8_storage_still_works(stock, clip):
    both = [as_loaded(stock, torch.bfloat16), prepare_transformer(as_loaded(stock, torch.bfloat16))]
    for model in both:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert both[1].blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert relative(both[1](**halved(clip)), ask_stock(both[0], halved(clip))) < 1e-3


def test_lora_layers_still_work(stock, clip):
    model = copy.deepcopy(stock)
    torch.manual_seed(3)
    model.add_adapter(LoraConfig(target_modules=["to_q", "to_v", "net.0.proj"], init_lora_weights=False))
    want = ask_stock(model, clip)
    assert relative(want, ask_stock(stock, clip)) > 1e-2
    torch.testing.assert_close(prepare_transformer(model)(**clip), want, rtol=1e-5, atol=1e-5)


def test_hooks_before_the_preparation_are_refused(stock):
    model = copy.deepcopy(stock)
    model.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    with pytest.raises(AssertionError, match="before them"):
        prepare_transformer(model)


def test_an_image_to_video_model_is_refused():
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=1,
        image_dim=32,
        added_kv_proj_dim=32,
    )
    with pytest.raises(WorldWarpError, match="text-to-video one, which is needed"):
        prepare_transformer(model)


def test_an_unknown_attention_is_refused():
    with pytest.raises(WorldWarpError, match="attention must be one of"):
        TransformerOptions(attention="fastest")


# float8


def test_float8_layers_are_near_the_real_ones(stock, clip):
    half = as_loaded(stock, torch.bfloat16)
    want = ask_stock(half, halved(clip))
    model = prepare_transformer(half, TransformerOptions(fp8=True))
    kinds = {type(module) for module in model.blocks.modules()}
    assert Float8Linear in kinds
    assert torch.nn.Linear not in kinds
    assert 1e-4 < relative(model(**halved(clip)), want) < 0.05


def test_a_torch_without_the_product_refuses_float8_in_words(stock, monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("Rowwise scaling is not currently supported on your device")

    with monkeypatch.context() as patched:
        multiplies_float8.cache_clear()
        patched.setattr(torch, "_scaled_mm", missing)
        with pytest.raises(WorldWarpError, match="no float8 arithmetic on cpu") as caught:
            prepare_transformer(as_loaded(stock, torch.bfloat16), TransformerOptions(fp8=True))
        multiplies_float8.cache_clear()
    assert caught.value.code == "no_fp8"


def test_float8_weights_take_half_the_memory(stock):
    def size(model):
        tensors = [*model.blocks.parameters(), *model.blocks.buffers()]
        return sum(t.numel() * t.element_size() for t in tensors if t.dim() == 2)

    half = as_loaded(stock, torch.bfloat16)
    before = size(half)
    assert size(prepare_transformer(half, TransformerOptions(fp8=True))) < 0.6 * before


def test_lora_layers_go_with_float8(stock, clip):
    half = as_loaded(stock, torch.bfloat16)
    torch.manual_seed(3)
    half.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False))
    half.to(torch.bfloat16)
    want = ask_stock(half, halved(clip))
    got = prepare_transformer(half, TransformerOptions(fp8=True))(**halved(clip))
    assert 1e-4 < relative(got, want) < 0.05
