"""Wan in miniature: the real classes with random weights of a fixed seed, in the real layout of a Wan 2.1 T2V folder.

What is small: widths, depths, vocabulary. What is real: classes, file names, sharding, the 16 latent channels with
their mean and deviation, x4 in time and x8 in space, 1x2x2 patches, 512 text tokens, the scheduler. A clip of 9 frames
at 64x48 goes through the whole of it in about a second on one core.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

TEXT_DIM = 32
VOCABULARY = 256

# The published values of Wan2.1-T2V-1.3B, but for the sizes.
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 4,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "rope_max_seq_len": 1024,
}
YOUNGER = (
    "decoder_base_dim", "in_channels", "is_residual", "out_channels", "patch_size", "scale_factor_spatial",
    "scale_factor_temporal",
)  # fmt: skip
"""What the autoencoder's class has come to take since Wan 2.1 was published: its configuration does not have them."""

CORPUS = (
    "A quiet courtyard of warm stone, arches on every side, long shadows of the late afternoon sun.",
    "The camera flies slowly forward over a snowy forest; nothing moves, no person is seen.",
    "Beyond the frame the wall goes on with windows, a wooden door and a fountain of grey marble.",
    "blurry, low quality, static, overexposed, watermark, 0123456789",
)


def tiny_transformer(seed: int = 0, **changes: object) -> WanTransformer3DModel:
    """A float32 Wan transformer of 4 layers; `changes` go over its configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**(TRANSFORMER | changes)).eval()


def tiny_vae(seed: int = 1) -> AutoencoderKLWan:
    """A float32 Wan autoencoder of base width 8, one residual block a level."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval()


def tiny_text_encoder(seed: int = 2) -> UMT5EncoderModel:
    """A float32 UMT5 encoder of 2 layers, `TEXT_DIM` wide."""
    config = UMT5Config(
        vocab_size=VOCABULARY, d_model=TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(config).eval()


def tiny_tokenizer() -> T5Tokenizer:
    """A real unigram tokenizer of T5's kind: the words of four sentences and every character."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -5.0) for word in sorted({word for line in CORPUS for word in re.findall(r"\w+", line)})]
    characters = [(character, -10.0) for character in ("▁", *map(chr, range(33, 127)))]
    return T5Tokenizer(vocab=special + words + characters, extra_ids=0, model_max_length=512)


def save_tiny_wan(folder: str | Path, *, transformer: WanTransformer3DModel | None = None) -> Path:
    """Returns `folder`, filled as the published Wan folder is: transformer and text encoder in several shards.

    Args:
        folder: made where it is missing.
        transformer: instead of `tiny_transformer()`.
    """
    folder = Path(folder)
    pipeline = WanPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(),
        transformer=transformer or tiny_transformer(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    pipeline.save_config(folder)
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="100KB")
    pipeline.vae.save_pretrained(folder / "vae")
    config = json.loads((folder / "vae" / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in YOUNGER}
    (folder / "vae" / "config.json").write_text(json.dumps(kept, indent=2))
    pipeline.text_encoder.save_pretrained(folder / "text_encoder", max_shard_size="50KB")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    return folder


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


def assert_same(model, other):
    found, expected = model.state_dict(), other.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
