"""The kernels by Triton's interpreter, which needs no GPU: in float32, as it rounds bfloat16 another way.

A process must choose the interpreter before it imports triton: test_fused.py starts one for what is here.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from worldwarp_core.transformer import fused
from worldwarp_core.transformer.block import modulate, rotate
from worldwarp_core.transformer.float8 import Float8Linear, quantise_rows
from worldwarp_core.transformer.prepare import TransformerOptions, prepare_transformer

BATCH, TOKENS, WIDTH, HEADS = 2, 5, 48, 3


@pytest.fixture
def rows():
    """Tokens, an answer to add to them, modulation of four levels, and an index into those."""
    generator = torch.Generator().manual_seed(0)
    tokens, answer = torch.randn(2, BATCH, TOKENS, WIDTH, generator=generator)
    return (
        tokens,
        answer,
        torch.randn(4, 6, WIDTH, generator=generator),
        torch.tensor([[0, 1, 2, 3, 0], [1, 1, 0, 2, 3]]),
    )


def test_a_norm_by_level_is_the_plain_one(rows):
    tokens, _, modulation, index = rows
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
    total, normed = fused.add_and_norm(tokens, None, modulation, index, None, norm, (3, 4), False)
    assert total is tokens
    torch.testing.assert_close(normed, modulate(tokens, norm, modulation[:, 3], modulation[:, 4], index))


def test_an_answer_is_added_before_the_norm(rows):
    tokens, answer, modulation, index = rows
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
    total, normed = fused.add_and_norm(tokens, answer, modulation, index, None, norm, (0, 1), False)
    torch.testing.assert_close(total, tokens + answer)
    torch.testing.assert_close(normed, modulate(total, norm, modulation[:, 0], modulation[:, 1], index))


def test_one_answer_for_all_tokens_is_added_to_each(rows):
    tokens, answer, modulation, index = rows
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
    one = answer[:, :1].expand_as(answer)
    total, _ = fused.add_and_norm(tokens, one, modulation, index, None, norm, (0, 1), False)
    torch.testing.assert_close(total, tokens + one)


def test_an_answer_passes_its_level_s_gate_and_the_norm_s_own_weights(rows):
    tokens, answer, modulation, index = rows
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    total, normed = fused.add_and_norm(tokens, answer, modulation, index, 2, norm, None, False)
    torch.testing.assert_close(total, tokens + answer * modulation[:, 2][index])
    torch.testing.assert_close(normed, norm(total))


def test_a_norm_may_leave_in_float8(rows):
    tokens, answer, modulation, index = rows
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-6, elementwise_affine=False)
    _, want = fused.add_and_norm(tokens, answer, modulation, index, None, norm, (0, 1), False)
    _, got = fused.add_and_norm(tokens, answer, modulation, index, None, norm, (0, 1), True)
    check_float8(got, want)


def test_queries_are_normalised_and_rotated():
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(BATCH, TOKENS, WIDTH, generator=generator)
    norm = torch.nn.RMSNorm(WIDTH, eps=1e-6)
    torch.nn.init.normal_(norm.weight, generator=generator)
    angle = torch.randn(1, TOKENS, 1, WIDTH // HEADS // 2, generator=generator).repeat_interleave(2, -1)
    cos, sin = angle.cos(), angle.sin()
    want = rotate(norm(query).unflatten(-1, (HEADS, -1)), cos, sin)
    torch.testing.assert_close(fused.rms_norm_and_rotate(query, norm.weight, 1e-6, HEADS, cos, sin), want)


def test_the_activation_may_leave_in_float8():
    hidden = 3 * torch.randn(BATCH, TOKENS, 80, generator=torch.Generator().manual_seed(2))
    check_float8(fused.gelu_to_float8(hidden), F.gelu(hidden, approximate="tanh"))


def check_float8(got, want):
    """Scales are the plain quantisation's, and values but for one in fifty: the interpreter loses float8's carries."""
    plain = quantise_rows(want)
    assert (got.shape, got.dtype) == (plain.shape, plain.dtype)
    torch.testing.assert_close(got.scale, plain.scale)
    assert (got.rows.float() == plain.rows.float()).float().mean() > 0.95


@pytest.fixture(scope="module")
def stock():
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, text_dim=32, freq_dim=32, ffn_dim=80, num_layers=1
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip():
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 16, 2, 4, 6, generator=generator),
        "levels": torch.tensor([1000.0, 957.188964, 0.0, 0.0]),
        "index": torch.randint(0, 3, (2, 12), generator=generator),
        "encoder_hidden_states": torch.randn(2, 7, 32, generator=generator),
    }


def fuse(model):
    """What preparing a model on CUDA does."""
    for block in model.blocks:
        block.__class__ = fused.FusedBlock
        for attn in (block.attn1, block.attn2):
            attn.set_processor(fused.FusedAttentionProcessor(attn.processor._attention_backend))
    return model


@pytest.fixture
def launches(monkeypatch):
    """How often one of the kernels that norm was asked for."""
    count = []
    plain = fused.add_and_norm
    monkeypatch.setattr(fused, "add_and_norm", lambda *arguments: count.append(1) or plain(*arguments))
    return count


@pytest.mark.parametrize("words", [None, 1], ids=["words", "one word, as the preview is asked"])
def test_the_fused_model_answers_as_the_stock_one(stock, clip, launches, words):
    clip = clip | {"encoder_hidden_states": clip["encoder_hidden_states"][:, :words]}
    want = stock(clip["hidden_states"], clip["levels"][clip["index"]], clip["encoder_hidden_states"]).sample
    model = fuse(prepare_transformer(copy.deepcopy(stock)))
    with torch.no_grad():
        torch.testing.assert_close(model(**clip), want, rtol=1e-5, atol=1e-5)
    assert len(launches) == 3


def test_where_gradients_are_wanted_it_is_the_plain_model(stock, clip, launches):
    plain, ours = (prepare_transformer(copy.deepcopy(stock).requires_grad_()) for _ in range(2))
    for model in (plain, fuse(ours)):
        model(**clip).square().mean().backward()
    assert not launches
    for want, got in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(got.grad, want.grad)


@torch.no_grad()
def test_the_fused_model_in_float8_answers_as_the_plain_one_in_float8(stock, clip):
    half = {name: t.bfloat16() if name != "levels" and t.is_floating_point() else t for name, t in clip.items()}
    plain, ours = (prepare_transformer(copy.deepcopy(stock).bfloat16(), TransformerOptions(fp8=True)) for _ in range(2))
    assert type(fuse(ours).blocks[0].ffn.net[2]) is Float8Linear
    want = plain(**half).float()
    assert (ours(**half).float() - want).norm() < 0.03 * want.norm()
