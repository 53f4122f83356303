"""How long one forward of the transformer takes.

    python -m tests.benchmarks.bench_transformer [--repeats N] [--seconds S]

Random weights of the real 1.3 B size in bf16 on a GPU, 49 frames at 720x480: latents (1, 16, 13, 60, 90), 17,550
tokens at three noise levels. The stock model gets a timestep for each token, ours the levels and an index. Median and
range of the times after compilation, in milliseconds; seconds of the first call; peak memory of the device, the bf16
weights included, in float8 too; and by how much the answer differs from the stock model's in bf16 and in float32,
relative to its norm: what differs from float32 no more than the stock model does is rounding.
Variants that would begin after S seconds are left out. Writes results/transformer_<hardware>.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from worldwarp_core.evaluation.provenance import hardware_name, provenance
from worldwarp_core.transformer.prepare import TransformerOptions, prepare_transformer

CONFIG = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}
LATENTS = (16, 13, 60, 90)
TOKENS = 13 * 30 * 45
FLOOR_MS = 137.0
"""The arithmetic at the 780 TFLOP/s that bf16 products reach on an H100."""

VARIANTS: dict[str, TransformerOptions] = {
    "fused, compiled": TransformerOptions(compile=True),
    "fused, compiled, float8": TransformerOptions(compile=True, fp8=True),
    "fused": TransformerOptions(),
    "plain": TransformerOptions(fused=False),
    "plain, compiled": TransformerOptions(compile=True, fused=False),
    "plain, compiled, float8": TransformerOptions(compile=True, fused=False, fp8=True),
    "fused, compiled, FlashAttention": TransformerOptions(compile=True, attention="_native_flash"),
}
TWICE = ("fused, compiled",)
"""Measured with two clips at once too, as guidance may ask."""


def random_wan(dtype: torch.dtype = torch.bfloat16) -> WanTransformer3DModel:
    """The real size with random weights, in the precisions that diffusers loads it in."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = WanTransformer3DModel(**CONFIG).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not any(kept in name for kept in WanTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    return model


def copy_of(model: WanTransformer3DModel) -> WanTransformer3DModel:
    """Another model on the same weights, to be prepared another way."""
    with torch.device("meta"):
        other = WanTransformer3DModel(**CONFIG)
    other.load_state_dict(model.state_dict(), assign=True)
    other.rope = copy.deepcopy(model.rope)  # its buffers are in no state dict
    return other.eval().requires_grad_(False)


def random_clip(batch: int = 1) -> dict[str, Tensor]:
    """A call at a step of the plain method: two latent frames of history, the rest about half valid."""
    generator = torch.Generator("cuda").manual_seed(1)
    index = torch.randint(0, 2, (1, TOKENS), device="cuda", generator=generator)
    index[:, : 2 * TOKENS // 13] = 2
    return {
        "hidden_states": torch.randn(1, *LATENTS, device="cuda", generator=generator)
        .bfloat16()
        .repeat(batch, 1, 1, 1, 1),
        "levels": torch.tensor([1000.0, 957.188964, 0.0, 0.0], device="cuda"),
        "index": index.repeat(batch, 1),
        "encoder_hidden_states": torch.randn(1, 512, 4096, device="cuda", generator=generator)
        .bfloat16()
        .repeat(batch, 1, 1),
    }


@torch.no_grad()
def bench_transformer(repeats: int = 10, seconds: float = math.inf) -> dict[str, dict[str, float]]:
    """What `measure` says, by variant."""
    begun = time.perf_counter()
    stock, clip = random_wan(), random_clip()
    want = ask_stock(stock, clip)
    exact = ask_stock(copy_of(stock).float(), {name: _widened(t) for name, t in clip.items()})
    results = {"stock": measure(lambda: ask_stock(stock, clip), want, exact, repeats)}
    for name, options in VARIANTS.items():
        if time.perf_counter() - begun > seconds:
            break
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        model = prepare_transformer(copy_of(stock), options)
        results[name] = measure(lambda: model(**clip), want, exact, repeats)  # noqa: B023
        if name in TWICE:
            two = random_clip(2)
            results[f"{name}, two clips at once"] = measure(lambda: model(**two), want, exact, repeats)  # noqa: B023
    if time.perf_counter() - begun < seconds:
        compiled = copy_of(stock)
        compiled.compile_repeated_blocks(fullgraph=True, dynamic=False)
        results["stock, compiled"] = measure(lambda: ask_stock(compiled, clip), want, exact, repeats)
    return results


def ask_stock(model: WanTransformer3DModel, clip: dict[str, Tensor]) -> Tensor:
    """The stock model's answer, a timestep given for each token."""
    timestep = clip["levels"][clip["index"]]
    return model(clip["hidden_states"], timestep, clip["encoder_hidden_states"], return_dict=False)[0]


def measure(ask: Callable[[], Tensor], want: Tensor, exact: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds, seconds of the first call, peak memory, and deviation from two answers to the first clip."""
    started = time.perf_counter()
    answer = ask()
    torch.cuda.synchronize()
    first_s = time.perf_counter() - started
    ask()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        ask()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return {
        "median_ms": round(statistics.median(times), 2),
        "low_ms": round(min(times), 2),
        "high_ms": round(max(times), 2),
        "first_s": round(first_s, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "deviation_from_stock": deviation(answer[:1], want),
        "deviation_from_float32": deviation(answer[:1], exact),
    }


def deviation(answer: Tensor, want: Tensor) -> float:
    """Relative to the norm of what is wanted."""
    return float(f"{((answer.float() - want.float()).norm() / want.float().norm()).item():.3g}")


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    variants = bench_transformer(given.repeats, given.seconds)
    where = provenance()
    path = given.out / f"transformer_{hardware_name(where['gpu'], where['cores'])}.json"
    record = {**where, "repeats": given.repeats, "tokens": TOKENS, "floor_ms": FLOOR_MS, "variants": variants}
    path.write_text(json.dumps(record, indent=2) + "\n")
    for name, row in variants.items():
        deviations = f"{row['deviation_from_stock']:.1e} {row['deviation_from_float32']:.1e}"
        print(f"{name:36s} {row['median_ms']:8.1f} ms  {row['peak_gib']:6.2f} GiB  deviation {deviations}")
    print(path)


if __name__ == "__main__":
    main()
