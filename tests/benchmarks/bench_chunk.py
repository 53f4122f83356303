"""Seconds and memory of whole chunks of the learned engine, from history frames to delivered frames.

    python tests/benchmarks/bench_chunk.py [--only presets budgets ...] [--presets NAME ...] [--budgets GIB ...]

Wan 2.1's 1.3 B transformer and its autoencoder at real size with random weights, saved in the real layout and loaded
through `load_engine`; the text encoder has real width but two layers, and the prompt's embedding is cached. The shot
flies through a textured room, 720x480, in chunks of 49 frames (44 new). A chunk's seconds run from the last frame of
the chunk before to its own last: update of the cache with what was just made, priors, encoding, denoising, decoding.
The first chunk of each shot, which compiles, is not counted. In `reference` and under memory budgets the cache's update
has 500 steps, as in the method's public code; `balanced` and `fast` are run as users get them, with the engine's own.

Random weights prove speed, memory and equality. What they say of a preset's deviation from `reference` (PSNR between
the frames of the first chunk, same seed) is no more than that it is one: no picture comes of a random network.

Each part merges what it has measured into results/chunk_h100.json (`--out`), so that it can be run in pieces.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.provenance import provenance
from tests.benchmarks.textured_room import flight, see
from tests.support.tiny_wan import VOCABULARY, tiny_tokenizer
from worldwarp_core.api import load_engine
from worldwarp_core.budget import GIB, PLANS, limit_memory
from worldwarp_core.presets import PRESETS
from worldwarp_core.spec import CacheUpdate, Finished, Frame, GenerateSpec, Notice, Progress

WIDTH, HEIGHT, CHUNK, OVERLAP = 720, 480, 49, 5
CACHE_STEPS = 500
DEVICE = "cuda"
GAUSSIANS_PER_PIXEL = 250_000 / (WIDTH * HEIGHT)
PROMPT = "A quiet room of patterned stone with a pillar, sunlight from the left, nothing moves."
REPEATS = {"reference": 3, "balanced": 5, "fast": 7}
QUICK = {"reference": 1, "fast": 2, "balanced": 1}
BUDGET_STEPS = 2
TOO_LITTLE_GIB = 6.0
"""For the plan of 12 GB: makes a real device run out of memory in the middle of a job."""
PARTS = ["presets", "budgets", "fallback"]
FIGURES = {
    "reference_s": "--only presets --presets reference",
    "balanced_s": "--only presets --presets balanced",
    "fast_s": "--only presets --presets fast",
    "forward_s": "--only presets --presets reference",
    "cache_500_steps_s": "--only presets --presets reference",
    "outside_transformer_fraction": "--only presets --presets reference",
    "peak_gib": "--only budgets",
    "deviation_db": "--only presets",
    "speedup_2_gpus": "--only presets --presets reference, then again with --gpus 2",
    "speedup_4_gpus": "--only presets --presets reference, then again with --gpus 4",
}
"""What the results file always has, null until measured, and the part that measures it."""
TRANSFORMER = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "num_layers": 30,
    "text_dim": 4096,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    arguments.add_argument("--presets", nargs="*", choices=list(PRESETS), default=list(PRESETS))
    arguments.add_argument("--budgets", nargs="*", default=[str(p.gib) for p in reversed(PLANS) if p.gib >= 8])
    arguments.add_argument("--quick", action="store_true", help="Fewer chunks, where GPU time is short.")
    arguments.add_argument(
        "--first-chunk",
        action="store_true",
        help="Measure the first chunk (the cache's first fit, 500 steps, in place of its update) after a short shot.",
    )
    arguments.add_argument("--gpus", type=int, default=1)
    arguments.add_argument("--models", type=Path, help="Where the random models are kept; else a temporary folder.")
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "chunk_h100.json")
    arguments.add_argument("--commit", help="Of what is measured, where this is no git checkout.")
    arguments.add_argument("--budget-s", type=float, default=3600.0, help="No part is begun after this many seconds.")
    given = arguments.parse_args()
    deadline = time.monotonic() + given.budget_s
    assert torch.cuda.is_available(), "this benchmark needs a CUDA device"
    where = provenance()
    where["commit"] = given.commit or where["commit"]

    with tempfile.TemporaryDirectory() as temporary:
        models = given.models or Path(temporary)
        if not (models / "wan" / "model_index.json").is_file():
            save_random_wan(models / "wan")
        merge(given.out, where)
        if "presets" in given.only:
            repeats = dict.fromkeys(REPEATS, 0) if given.first_chunk else QUICK if given.quick else REPEATS
            wanted = {name: chunks for name, chunks in repeats.items() if name in given.presets}
            measure_presets(given.out, models, wanted, given.gpus, deadline)
        if "budgets" in given.only:
            for vram in given.budgets:
                if time.monotonic() < deadline:
                    attempt(f"budget {vram}", partial(measure_budget, given.out, models, vram))
        if "fallback" in given.only and time.monotonic() < deadline:
            attempt("fallback", partial(measure_fallback, given.out, models))
    print(json.dumps(json.loads(given.out.read_text()), indent=1))


def attempt(what: str, measure: Any) -> None:
    """One part's failure must not cost the others their figures."""
    began = time.monotonic()
    try:
        measure()
    except Exception:
        traceback.print_exc()
        print(f"FAILED: {what}", flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


# ---------------------------------------------------------------- parts


def measure_presets(out: Path, models: Path, wanted: dict[str, int], gpus: int, deadline: float) -> None:
    options = {"gpus": gpus} if gpus > 1 else {}
    began = time.monotonic()
    engine = open_engine(models, vram="80", **options)
    print(f"engine loaded in {time.monotonic() - began:.1f} s", flush=True)
    first_chunks: dict[str, np.ndarray] = {}
    for name, repeats in wanted.items():
        if time.monotonic() >= deadline:
            print(f"skipped, no time left: {name}")
            continue
        attempt(name, partial(measure_preset, out, engine, name, repeats, gpus, first_chunks))


def measure_preset(
    out: Path, engine: Any, name: str, repeats: int, gpus: int, first_chunks: dict[str, np.ndarray]
) -> None:
    if repeats:
        cache_steps = CACHE_STEPS if name == "reference" else None
        shot = Shot(engine, chunks=1 + repeats, preset=name, cache_steps=cache_steps)
        chunks = shot.chunks[1:]
    else:
        settings = replace(engine.settings.cache, first_steps=CACHE_STEPS, update_steps=1)
        engine = replace(engine, settings=replace(engine.settings, cache=settings))
        Shot(engine, chunks=1, preset=name, cache_steps=None, steps=1)
        shot = Shot(engine, chunks=1, preset=name, cache_steps=None)
        chunks = shot.chunks
    preset = PRESETS[name]
    seconds = statistics.median(sum(c.values()) for c in chunks)
    stages = {stage: round(statistics.median(c.get(stage, 0.0) for c in chunks), 4) for stage in chunks[0]}
    row = {
        "seconds": round(seconds, 3),
        "spread_s": [round(sum(c.values()), 3) for c in chunks],
        "stages_s": stages,
        "outside_transformer_fraction": round(1 - stages["denoise"] / seconds, 4),
        "first_chunk_s": round(sum(shot.chunks[0].values()), 2),
        "cache_update_steps": shot.cache_steps,
        "gaussians": shot.gaussians,
        "preset": preset.describe(),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
    }
    first_chunks[name] = shot.first_chunk
    found: dict[str, Any] = {"presets" if gpus == 1 else f"presets_{gpus}_gpus": {name: row}}
    if name != "reference" and "reference" in first_chunks:
        found["deviation_db"] = {name: round(psnr(shot.first_chunk, first_chunks["reference"]), 2)}
    if gpus == 1:
        found[f"{name}_s"] = row["seconds"]
        if name == "reference":
            found["forward_s"] = round(stages["denoise"] / (2 * preset.steps), 4)
            found["cache_500_steps_s"] = stages["cache"]
            found["outside_transformer_fraction"] = row["outside_transformer_fraction"]
    elif name == "reference":
        alone = json.loads(out.read_text()).get("reference_s")
        # Against one of the same GPUs: run without --gpus into the same file first.
        found[f"speedup_{gpus}_gpus"] = round(alone / seconds, 3) if alone else None
        found["speedup_hardware"] = f"{gpus} x {torch.cuda.get_device_name()}"
    merge(out, found)
    print(name, json.dumps(row), flush=True)


def measure_budget(out: Path, models: Path, vram: str) -> None:
    """Two chunks under a hard cap; memory does not depend on the number of steps."""
    start_afresh()
    engine = open_engine(models, vram=vram)
    shot = Shot(engine, chunks=2, preset="reference", steps=BUDGET_STEPS, cache_steps=CACHE_STEPS)
    row = {
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "fell_back": [n.message for n in shot.notices if n.code == "out_of_memory"],
        "chunk_s": round(sum(shot.chunks[-1].values()), 2),
        "denoise_step_s": round(shot.chunks[-1]["denoise"] / (BUDGET_STEPS + 1), 3),
        "stages_s": {stage: round(value, 3) for stage, value in shot.chunks[-1].items()},
    }
    merge(out, {"peak_gib": {vram: row["reserved_gib"]}, "budgets": {vram: row}})
    print("budget", vram, json.dumps(row), flush=True)


def measure_fallback(out: Path, models: Path) -> None:
    """A job that is promised 12 GB and finds less: it says so and goes on."""
    start_afresh()
    engine = open_engine(models, vram="12")
    limit_memory(TOO_LITTLE_GIB, torch.device("cuda", torch.cuda.current_device()))
    shot = Shot(engine, chunks=2, preset="reference", steps=BUDGET_STEPS, cache_steps=CACHE_STEPS)
    row = {
        "cap_gib": TOO_LITTLE_GIB,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "notices": [n.message for n in shot.notices if n.code == "out_of_memory"],
        "chunks_made": len(shot.chunks),
    }
    merge(out, {"out_of_memory": row})
    print("fallback", json.dumps(row), flush=True)


def start_afresh() -> None:
    """What was compiled and allocated for the models before is not counted."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


# ---------------------------------------------------------------- a shot


class Shot:
    """One shot made through the engine, and where its time went.

    Attributes:
        chunks: of each chunk, seconds by stage from the last frame of the one before to its own last.
        first_chunk: (T, H, W, 3) uint8, its new frames.
    """

    def __init__(self, engine: Any, chunks: int, cache_steps: int | None, **settings: Any) -> None:
        frames = CHUNK + (chunks - 1) * (CHUNK - OVERLAP)
        cameras = flight(frames, WIDTH, HEIGHT)
        rgb, depth = see(cameras, 0)
        # A later fit takes the engine's own share of the first one's steps.
        cache = engine.settings.cache
        first_steps = None if cache_steps is None else round(cache_steps * cache.first_steps / cache.update_steps)
        spec = GenerateSpec(
            cameras,
            (rgb.numpy() * 255).round().astype(np.uint8),
            depth.numpy().astype(np.float32),
            prompt=PROMPT,
            chunk=CHUNK,
            overlap=OVERLAP,
            cache_steps=first_steps,
            **settings,
        )
        self.chunks: list[dict[str, float]] = []
        self.notices: list[Notice] = []
        self.gaussians = 0
        self.cache_steps = 0
        delivered, pictures = 0, []
        seconds: dict[str, float] = defaultdict(float)
        last = time.perf_counter()
        for event in engine.generate(spec):
            now = time.perf_counter()
            seconds[_stage(event)] += now - last
            last = now
            if isinstance(event, Notice):
                self.notices.append(event)
                print("notice:", event.message, flush=True)
            elif isinstance(event, CacheUpdate):
                self.gaussians = len(event.splats)
            elif isinstance(event, Frame):
                delivered += 1
                if 0 < event.index < CHUNK:
                    pictures.append(event.rgb)
                if delivered == CHUNK + len(self.chunks) * (CHUNK - OVERLAP):
                    self.chunks.append(dict(seconds))
                    print(f"chunk {len(self.chunks)}:", {k: round(v, 3) for k, v in seconds.items()}, flush=True)
                    seconds.clear()
            elif isinstance(event, Finished):
                self.cache_steps = event.summary["cache_settings"]["update_steps"]
        self.first_chunk = np.stack(pictures)


def _stage(event: Any) -> str:
    if isinstance(event, Progress):
        return event.stage
    return {Frame: "decode", CacheUpdate: "export"}.get(type(event), "other")


def open_engine(models: Path, **options: Any) -> Any:
    engine = load_engine(
        "wan",
        device=DEVICE,
        weights=str(models / "wan"),
        transformer="base",
        prompt_cache=str(models / "prompts"),
        **options,
    )
    return replace(engine, settings=replace(engine.settings, points_per_pixel=GAUSSIANS_PER_PIXEL))


def save_random_wan(folder: Path) -> None:
    """Random weights of the real size in the real layout; the text encoder has two layers of real width."""
    began = time.monotonic()
    torch.manual_seed(0)
    with torch.device(DEVICE):
        transformer = WanTransformer3DModel(**TRANSFORMER).bfloat16()
        vae = AutoencoderKLWan().bfloat16()
        text = UMT5Config(vocab_size=VOCABULARY, d_model=4096, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        text_encoder = UMT5EncoderModel(text).bfloat16()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    parts = {
        "tokenizer": tiny_tokenizer(),
        "text_encoder": text_encoder,
        "vae": vae,
        "transformer": transformer,
        "scheduler": scheduler,
    }
    WanPipeline(**parts).save_config(folder)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    print(f"random models saved in {time.monotonic() - began:.1f} s", flush=True)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(np.float32) - b.astype(np.float32)) / 255) ** 2
    return float(-10 * np.log10(max(error.mean(), 1e-12)))


def merge(path: Path, found: dict[str, Any]) -> None:
    """Lays `found` over what the file holds, dictionaries one level deep."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    for key, value in found.items():
        before[key] = {**(before.get(key) or {}), **value} if isinstance(value, dict) else value
    for key in FIGURES:
        before.setdefault(key, None)
    before["not_measured"] = {key: f"no GPU time yet: {run}" for key, run in FIGURES.items() if before[key] is None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(before, indent=2) + "\n")


if __name__ == "__main__":
    main()
