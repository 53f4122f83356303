"""What each process of a parallel test does; started by `torch.multiprocessing`, so it is importable."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from worldwarp_core.transformer.parallel import join_ranks, share_transformer
from worldwarp_core.transformer.prepare import prepare_transformer


def tiny_wan() -> WanTransformer3DModel:
    """Four heads, so that they divide by 2 and by 4."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, text_dim=24, freq_dim=32, ffn_dim=48, num_layers=2
    )
    return model.eval().requires_grad_(False)


def clip(batch: int, width: int) -> dict[str, torch.Tensor]:
    """A call of the transformer: 3 x 3 x `width` tokens."""
    generator = torch.Generator().manual_seed(batch)
    return {
        "hidden_states": torch.randn(batch, 16, 3, 6, 2 * width, generator=generator),
        "levels": torch.tensor([1000.0, 957.188964, 0.0, 0.0]),
        "index": torch.randint(0, 3, (batch, 9 * width), generator=generator),
        "encoder_hidden_states": torch.randn(batch, 7, 24, generator=generator),
    }


def run_rank(rank: int, size: int, port: int, split_guidance: bool, out: Path) -> None:
    """Shares the tiny model with the other ranks; the leader saves its answers to clips(), the others follow."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # as under torchrun: who started the ranks has a store at that port
    }
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # what diffusers divides by
    ranks = join_ranks("cpu", split_guidance=split_guidance)
    shared = share_transformer(prepare_transformer(tiny_wan()), ranks)
    if rank > 0:
        shared.follow()
        return
    with torch.no_grad():
        answers = [shared(**call) for call in calls()]
    shared.close()
    torch.save(answers, out)


def calls() -> list[dict[str, torch.Tensor]]:
    """Guided, not guided, and another size."""
    return [clip(2, 4), clip(1, 4), clip(2, 6)]
