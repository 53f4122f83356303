"""A shot through the learned engine at a given scale, and where its time went: what bench_chunk.py measures.

Wan 2.1's 1.3 B transformer and its autoencoder at real size with random weights, saved in the real layout and loaded
through `load_engine`; the text encoder has real width but two layers, and the prompt's embedding is cached. Or all of
it in miniature, which shows on any machine that a benchmark runs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from tests.benchmarks.textured_room import see, steady_flight
from tests.support.tiny_wan import VOCABULARY, save_tiny_wan, tiny_tokenizer
from worldwarp_core.api import load_engine
from worldwarp_core.spec import CacheUpdate, Finished, Frame, GenerateSpec, Notice, Progress

PROMPT = "A quiet room of patterned stone with a pillar, sunlight from the left, nothing moves."
TRANSFORMER = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
    "num_layers": 30,
    "text_dim": 4096,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        gaussians: of an uncovered view, and of the world of the cache's own benchmark.
        cache_steps: of the cache's update where the method's public code has 500.
        steps: of denoising in every preset; None leaves each its own.
        own_cache_steps: of first fit and update where an engine's own are asked for; None leaves them.
        repeats: chunks measured by preset, after the first.
        tiny: the miniature models, uncompiled.
    """

    width: int
    height: int
    chunk: int
    overlap: int
    gaussians: int
    cache_steps: int
    repeats: dict[str, int]
    steps: int | None = None
    own_cache_steps: tuple[int, int] | None = None
    tiny: bool = False


REAL = Scale(720, 480, 49, 5, 250_000, 500, {"fast": 7, "balanced": 5, "reference": 3})
TINY = Scale(32, 16, 9, 5, 100, 4, {"fast": 2, "balanced": 1, "reference": 1}, 2, (4, 2), tiny=True)


class Shot:
    """One shot made through the engine.

    Attributes:
        chunks: of each chunk that was made whole, a row of `_chunk`.
        first_chunk: (T, H, W, 3) uint8, the new frames of the first.
        notices: what the engine said.
    """

    def __init__(
        self,
        engine: Any,
        scale: Scale,
        chunks: int,
        cache_steps: int | None,
        count: Callable[[], dict[str, int]],
        **settings: Any,
    ) -> None:
        """Makes nothing yet.

        Args:
            cache_steps: of the cache's update; None leaves the engine its own. The first fit is the engine's own either
                way: all presets make their first chunk from the same world.
            count: events in this process so far, by name: each chunk's row says how many there were in it.
            settings: of the `GenerateSpec`.
        """
        if cache_steps is not None:
            cache = replace(engine.settings.cache, update_steps=cache_steps)
            engine = replace(engine, settings=replace(engine.settings, cache=cache))
        self._engine, self._scale, self._count = engine, scale, count
        cameras = steady_flight(scale.chunk + (chunks - 1) * (scale.chunk - scale.overlap), scale.width, scale.height)
        rgb, depth = see(cameras, 0)
        self._spec = GenerateSpec(
            cameras,
            (rgb.numpy() * 255).round().astype(np.uint8),
            depth.numpy().astype(np.float32),
            prompt=PROMPT,
            chunk=scale.chunk,
            overlap=scale.overlap,
            **({"steps": scale.steps} | settings),
        )
        self.chunks: list[dict[str, Any]] = []
        self.notices: list[Notice] = []
        self.first_chunk: np.ndarray | None = None
        self.gaussians = 0

    def make(self, after_chunk: Callable[[], bool] = lambda: True) -> Shot:
        """Makes the shot; `after_chunk` is called after each chunk and says whether to go on."""
        scale, pictures, delivered = self._scale, [], 0
        seconds: dict[str, float] = defaultdict(float)
        cache_first_s: float | None = None
        before = self._count()
        last = time.perf_counter()
        for event in self._engine.generate(self._spec):
            now = time.perf_counter()
            seconds[_stage(event)] += now - last
            last = now
            if isinstance(event, Notice):
                self.notices.append(event)
                print("notice:", event.message, flush=True)
            elif isinstance(event, Progress) and event.stage == "cache" and cache_first_s is None:
                cache_first_s = seconds["cache"]
            elif isinstance(event, CacheUpdate):
                self.gaussians = len(event.splats)
            elif isinstance(event, Frame):
                delivered += 1
                if 0 < event.index < scale.chunk:
                    pictures.append(event.rgb)
                if delivered == scale.chunk + len(self.chunks) * (scale.chunk - scale.overlap):
                    after = self._count()
                    events = {name: after[name] - before[name] for name in after}
                    self.chunks.append(_chunk(seconds, cache_first_s, events))
                    print(f"chunk {len(self.chunks)}:", self.chunks[-1], flush=True)
                    if self.first_chunk is None:
                        self.first_chunk = np.stack(pictures)
                    if not after_chunk():
                        return self
                    seconds.clear()
                    cache_first_s, before, last = None, self._count(), time.perf_counter()
            elif isinstance(event, Finished):
                self.summary = event.summary
        return self


def _chunk(seconds: dict[str, float], cache_first_s: float | None, events: dict[str, int]) -> dict[str, Any]:
    """Seconds from the last frame of the chunk before to the chunk's own last, in all and by stage.

    `cache_first_s` are those until the cache's first steps were done: seeding, and whatever was compiled or captured.
    """
    return {
        "seconds": round(sum(seconds.values()), 3),
        "stages_s": {stage: round(value, 4) for stage, value in seconds.items()},
        "cache_first_s": round(cache_first_s or 0.0, 4),
        **events,
    }


def _stage(event: Any) -> str:
    if isinstance(event, Progress):
        return event.stage
    return {Frame: "decode", CacheUpdate: "export"}.get(type(event), "other")


def open_engine(scale: Scale, models: Path, **options: Any) -> Any:
    """The engine `wan` over the models in a folder, which are made where they are not there."""
    device = "cpu" if scale.tiny else "cuda"
    if not (models / "wan" / "model_index.json").is_file():
        began = time.monotonic()
        save_tiny_wan(models / "wan") if scale.tiny else save_random_wan(models / "wan")
        if device == "cuda":
            torch.cuda.empty_cache()  # what making them took would count as the engine's
        print(f"random models saved in {time.monotonic() - began:.1f} s", flush=True)
    began = time.monotonic()
    engine = load_engine(
        "wan",
        device=device,
        weights=str(models / "wan"),
        transformer="base",
        prompt_cache=str(models / "prompts"),
        compile=not scale.tiny,
        **options,
    )
    print(f"engine loaded in {time.monotonic() - began:.1f} s", flush=True)
    settings = replace(engine.settings, points_per_pixel=scale.gaussians / (scale.width * scale.height))
    if scale.own_cache_steps is not None:
        first, update = scale.own_cache_steps
        settings = replace(settings, cache=replace(settings.cache, first_steps=first, update_steps=update))
    return replace(engine, settings=settings)


def save_random_wan(folder: Path) -> None:
    """Random weights of the real size in the real layout; the text encoder has two layers of real width."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        transformer = WanTransformer3DModel(**TRANSFORMER).bfloat16()
        vae = AutoencoderKLWan().bfloat16()
        text = UMT5Config(vocab_size=VOCABULARY, d_model=4096, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        text_encoder = UMT5EncoderModel(text).bfloat16()
    parts = {
        "tokenizer": tiny_tokenizer(),
        "text_encoder": text_encoder,
        "vae": vae,
        "transformer": transformer,
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    }
    WanPipeline(**parts).save_config(folder)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
