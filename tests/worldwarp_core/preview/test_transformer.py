"""The small transformer is built as the big one is loaded, in whatever precision it runs."""

import logging

import pytest
import torch

from worldwarp_core.preview.transformer import CONFIG, TEXT_DIM, make_transformer, no_text

TINY = {**CONFIG, "num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "num_layers": 2}


def test_in_half_precision_levels_and_norms_stay_whole_and_it_runs_without_a_word(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    half = make_transformer(TINY, dtype=torch.bfloat16)
    precision = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert precision["blocks.0.ffn.net.0.proj.weight"] == precision["patch_embedding.weight"] == torch.bfloat16
    for name in ("scale_shift_table", "blocks.1.scale_shift_table", "condition_embedder.time_embedder.linear_1.weight"):
        assert precision[name] == torch.float32
    latents = torch.randn((1, 16, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    levels, index = torch.tensor([1000.0, 0.0]), torch.zeros((1, 8), dtype=torch.int64)
    with torch.no_grad():
        made = half(latents.bfloat16(), levels, index, no_text(1, TEXT_DIM).bfloat16())
        whole = make_transformer(TINY, state={k: v.float() for k, v in half.state_dict().items()})
        same = whole(latents, levels, index, no_text(1, TEXT_DIM))
    assert made.shape == latents.shape
    assert (made.float() - same).abs().max() < 0.05 * same.abs().max()
    assert caplog.messages == []
