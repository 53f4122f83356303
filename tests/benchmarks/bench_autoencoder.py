"""Seconds and memory to encode and decode one chunk with Wan's autoencoder, by option, beside diffusers' own calls.

    python tests/benchmarks/bench_autoencoder.py [--out FOLDER] [--budget-s SECONDS] [--options NAME ...]

49 frames of 720x480 through an `AutoencoderKLWan` of the real size with random weights: they prove speed, memory and
equality, not quality. Deviations are from diffusers' own `encode` and `decode` in float32. Medians of `REPEATS` after
one warm run, which is reported too, because it holds the kernels' compilation and cuDNN's search. Needs CUDA. Writes
autoencoder_<hardware>.json under results/. Options that the time budget leaves no room for are named as skipped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
from worldwarp_core.evaluation.provenance import hardware_name, provenance
from worldwarp_core.wan.autoencoder import AutoencoderOptions, WanAutoencoder

FRAMES, HEIGHT, WIDTH = 49, 480, 720
REPEATS = 5
OPTIONS = {
    "group 1": AutoencoderOptions(),
    "group 2": AutoencoderOptions(group=2),
    "group 4": AutoencoderOptions(group=4),
    "tiles of 256": AutoencoderOptions(tile=256),
    "group 1, plain PyTorch": AutoencoderOptions(),
}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments.add_argument("--budget-s", type=float, default=600.0)
    arguments.add_argument("--options", nargs="*", choices=list(OPTIONS), default=list(OPTIONS))
    given = arguments.parse_args()
    deadline = time.monotonic() + given.budget_s
    where = provenance()
    assert torch.cuda.is_available(), "this benchmark needs a CUDA device"

    torch.manual_seed(0)
    vae = AutoencoderKLWan().eval().requires_grad_(False).cuda()
    frames = smooth_clip()
    exact_latents, exact_frames = exact(vae, frames)
    shapes = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "repeats": REPEATS}
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out / f"autoencoder_{hardware_name(where['gpu'], where['cores'])}.json"
    rows = [attempt("diffusers, bf16", lambda: diffusers_row(vae.bfloat16(), frames, exact_latents, exact_frames))]
    for name in given.options:
        if time.monotonic() > deadline:
            rows.append({"option": name, "skipped": f"the {given.budget_s:g} s were over"})
            continue
        rows.append(attempt(name, lambda name=name: our_row(vae, name, frames, exact_latents, exact_frames)))
        out.write_text(json.dumps(where | shapes | {"options": rows}, indent=2) + "\n")
    print(f"wrote {out}")


def smooth_clip() -> Tensor:
    """(T, H, W, 3) in [0, 1] with structure at many scales, on the device."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH, device="cuda")
    for coarse in (8, 32, 128):
        small = torch.rand(1, 3, 7, HEIGHT // coarse + 1, WIDTH // coarse + 1, generator=generator).cuda()
        clip += torch.nn.functional.interpolate(small, clip.shape[2:], mode="trilinear") / 3
    return clip[0].movedim(0, -1).contiguous()


@torch.no_grad()
def exact(vae: AutoencoderKLWan, frames: Tensor) -> tuple[Tensor, Tensor]:
    """diffusers' latents and frames in float32."""
    mean, std = normalisation(vae)
    latents = (vae.encode(frames.movedim(-1, 0)[None] * 2 - 1).latent_dist.mode() - mean) / std
    decoded = vae.decode(latents * std + mean).sample[0].movedim(0, -1) / 2 + 0.5
    return latents, decoded.clamp(0, 1)


def normalisation(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    return (
        torch.tensor(vae.config.latents_mean, device="cuda").view(shape),
        torch.tensor(vae.config.latents_std, device="cuda").view(shape),
    )


@torch.no_grad()
def diffusers_row(vae: AutoencoderKLWan, frames: Tensor, exact_latents: Tensor, exact_frames: Tensor) -> dict[str, Any]:
    mean, std = normalisation(vae)

    def encode() -> Tensor:
        pictures = (frames.movedim(-1, 0)[None] * 2 - 1).bfloat16()
        return (vae.encode(pictures).latent_dist.mode().float() - mean) / std

    def decode() -> Tensor:
        decoded = vae.decode((exact_latents * std + mean).bfloat16()).sample[0].movedim(0, -1)
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    return figures(encode, decode, None, exact_latents, exact_frames)


def our_row(
    vae: AutoencoderKLWan,
    name: str,
    frames: Tensor,
    exact_latents: Tensor,
    exact_frames: Tensor,
) -> dict[str, Any]:
    autoencoder = WanAutoencoder(vae, OPTIONS[name], "cuda")
    autoencoder.fused = "plain" not in name
    return figures(
        lambda: autoencoder.encode(frames),
        lambda: torch.stack(list(autoencoder.decode(exact_latents))),
        lambda: next(autoencoder.decode(exact_latents)),
        exact_latents,
        exact_frames,
    )


def figures(
    encode: Callable[[], Tensor],
    decode: Callable[[], Tensor],
    first: Callable[[], Tensor] | None,
    exact_latents: Tensor,
    exact_frames: Tensor,
) -> dict[str, Any]:
    """Seconds, peak memory above what was there, and how far from the exact latents and frames."""
    row: dict[str, Any] = {}
    for name, work, truth in (("encode", encode, exact_latents), ("decode", decode, exact_frames)):
        row[f"{name}_warm_up_s"] = round(seconds(work), 2)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        row[f"{name}_peak_gib"] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)
        row[f"{name}_deviation_rms"] = float(f"{float((result - truth).square().mean().sqrt()):.3g}")
        times = [seconds(work) for _ in range(REPEATS)]
        row[f"{name}_s"] = round(statistics.median(times), 4)
        row[f"{name}_spread_s"] = round(max(times) - min(times), 4)
    if first is not None:
        seconds(first)
        row["first_frame_s"] = round(statistics.median(seconds(first) for _ in range(REPEATS)), 4)
    return row


def seconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def attempt(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One option's row; an option that fails is a row that says how."""
    try:
        row = {"option": name} | measure()
    except (RuntimeError, torch.OutOfMemoryError) as error:
        row = {"option": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
    print(json.dumps(row), flush=True)
    torch.cuda.empty_cache()
    return row


if __name__ == "__main__":
    main()
