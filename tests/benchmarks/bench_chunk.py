"""Seconds and memory of whole chunks of the learned engine, from history frames to delivered frames.

    python tests/benchmarks/bench_chunk.py              whatever results/chunk_h100.json lacks, on one GPU
    python tests/benchmarks/bench_chunk.py --gpus 2     and what takes two
    python tests/benchmarks/bench_chunk.py --plan       only say what is lacking, in which order, and how long it takes

One command measures what is lacking, the most wanted first, and writes each figure as soon as it is known; started
again it goes on with what is still lacking. `--budget-s` says how many seconds there are: no part is begun that is not
expected to end within them. `--only NAME ...` measures these parts, known or not; `--again` all of them. `--models
FOLDER` keeps the random models from one command to the next.

    budget 12, 8, ...   two chunks under a hard cap of so many GiB, in two steps each: memory does not depend on them
    fast, balanced, reference
                        a shot of several chunks; the first, which compiles, is not counted; medians of the others
    fit                 500 steps of the cache's fit at 250,000 Gaussians and five views, one view a step, alone
    shapes              the same step with its kernels in other shapes (bench_cache_gpu.py --shapes)
    fallback            a job that is promised 12 GB and finds less
    alone, together     with --gpus N: `reference` on one of these GPUs and on all of them

The shot flies through a textured room, 720x480, in chunks of 49 frames (44 new); wan_shot.py says through what models.
A chunk's seconds run from the last frame of the chunk before to its own last: update of the cache with what was just
made, priors, encoding, denoising, decoding. In `reference` and under memory budgets the cache's update has 500 steps,
as in the method's public code; `balanced` and `fast` are run as users get them, with the engine's own. The first fit is
the engine's own in all of them, so that every preset makes its first chunk from the same world. A row of each chunk
says how many graphs were captured and how many kernels Triton compiled in it: in a steady one 1 and 0.

Random weights prove speed, memory and equality. What they say of a preset's deviation from `reference` (PSNR between
the frames of the first chunk, same seed, same cameras) is no more than that it is one: no picture comes of a random
network. `--tiny` runs all of it in miniature on any machine, which proves nothing but that it runs, and needs `--out`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks import bench_cache_gpu
from tests.benchmarks.textured_room import fit_views, seeded
from tests.benchmarks.wan_shot import REAL, TINY, Scale, Shot, open_engine
from worldwarp_core.evaluation.provenance import provenance
from worldwarp_core.splats import fit_cuda
from worldwarp_core.st_diff.presets import PRESETS
from worldwarp_core.wan.budget import GIB, PLANS, limit_memory

BUDGET_STEPS = 2
BUDGETS = ("12", "8", "16", "24", "40", "80")
TOO_LITTLE_GIB = 6.0
"""For the plan of 12 GB: makes a real device run out of memory in the middle of a job."""
LARGEST = str(PLANS[0].gib)
FIT_REPEATS = 5
FIGURES = {
    "reference_s": "reference",
    "balanced_s": "balanced",
    "fast_s": "fast",
    "forward_s": "reference",
    "cache_500_steps_s": "fit",
    "outside_transformer_fraction": "reference",
    "peak_gib": "budget",
    "deviation_db": "fast, balanced, reference",
    "speedup_2_gpus": "alone, together, with --gpus 2",
    "speedup_4_gpus": "alone, together, with --gpus 4",
}
"""What the results file always has, null until measured, and the parts that measure it."""


@dataclass
class Bench:
    """What every part needs: the scale, where models and results are, and how much time there is."""

    scale: Scale
    models: Path
    out: Path
    deadline: float
    where: dict[str, Any] = field(default_factory=provenance)
    _engine: tuple[tuple[str, int], Any] | None = None

    def read(self) -> dict[str, Any]:
        return dict(json.loads(self.out.read_text())) if self.out.is_file() else {}

    def merge(self, found: dict[str, Any]) -> None:
        """Lays `found` over what the file holds, dictionaries one level deep."""
        record = self.read() | self.where
        for key, value in found.items():
            record[key] = {**(record.get(key) or {}), **value} if isinstance(value, dict) else value
        for key in FIGURES:
            record.setdefault(key, None)
        record["not_measured"] = {key: f"parts: {parts}" for key, parts in FIGURES.items() if record[key] is None}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(record, indent=2) + "\n")

    def measured(self) -> dict[str, Any]:
        """Where and when a row was measured: rows of one file may be of several days."""
        return {name: self.where[name] for name in ("date", "commit", "gpu")}

    def engine(self, vram: str, gpus: int = 1) -> Any:
        """The engine in a memory plan; another one is given up for it."""
        if self._engine is None or self._engine[0] != (vram, gpus):
            self.start_afresh()
            options = {"gpus": gpus} if gpus > 1 else {}
            self._engine = (vram, gpus), open_engine(self.scale, self.models, vram=vram, **options)
        return self._engine[1]

    def start_afresh(self) -> None:
        """What was compiled and allocated for the models before is not counted."""
        self._engine = None
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            limit_memory(float("inf"), torch.device("cuda", torch.cuda.current_device()))
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class Part:
    """One piece of the work.

    Attributes:
        guess_s: about how long it takes on an H100, with what it compiles.
        lacks: whether a record has not all of it.
    """

    name: str
    guess_s: float
    lacks: Callable[[dict[str, Any]], bool]
    run: Callable[[Bench], None]


def parts(scale: Scale, gpus: int) -> list[Part]:
    """What there is to measure on so many GPUs, the most wanted first."""
    if gpus > 1:
        group = f"gpus_{gpus}"
        return [
            Part("alone", 110, lambda r: "alone" not in r.get(group, {}), partial(measure_shared, gpus=gpus, on=1)),
            Part(
                "together", 90, lambda r: not r.get(f"speedup_{gpus}_gpus"), partial(measure_shared, gpus=gpus, on=gpus)
            ),
        ]
    return [
        *(Part(f"budget {b}", 70, partial(_lacks_budget, b), partial(measure_budget, vram=b)) for b in BUDGETS),
        Part("fast", 130, partial(_lacks_preset, "fast", scale), partial(measure_preset, name="fast")),
        Part("fit", 40, lambda r: "fit" not in r, measure_fit),
        Part("balanced", 110, partial(_lacks_preset, "balanced", scale), partial(measure_preset, name="balanced")),
        Part("reference", 150, partial(_lacks_preset, "reference", scale), partial(measure_preset, name="reference")),
        Part("shapes", 120, lambda r: "shapes" not in r, measure_shapes),
        Part("fallback", 70, lambda r: "out_of_memory" not in r, measure_fallback),
    ]


def _lacks_budget(vram: str, record: dict[str, Any]) -> bool:
    return vram not in record.get("budgets", {})


def _lacks_preset(name: str, scale: Scale, record: dict[str, Any]) -> bool:
    return len(record.get("presets", {}).get(name, {}).get("chunks", ())) < scale.repeats[name]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, choices=(1, 2, 4))
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="Parts to measure, whether they are lacking or not.")
    parser.add_argument("--again", action="store_true", help="Measure every part again.")
    parser.add_argument("--budget-s", type=float, default=1700.0)
    parser.add_argument("--models", type=Path, help="Where the random models are kept; else a temporary folder.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", help="Of what is measured, where this is no git checkout.")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    scale = TINY if given.tiny else REAL
    if given.tiny and given.out is None:
        parser.error("--tiny measures nothing that belongs among the results: give it a file of its own, --out FILE")
    out = given.out or Path(__file__).parent / "results" / "chunk_h100.json"
    every = parts(scale, given.gpus)
    if unknown := sorted(set(given.only or ()) - {part.name for part in every}):
        parser.error(f"there is no part {unknown[0]!r}; there are: {', '.join(part.name for part in every)}")
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(scale, given.models or Path(temporary), out, began + given.budget_s)
        bench.where["commit"] = given.commit or bench.where["commit"]
        record = bench.read()
        chosen = [p for p in every if (p.name in given.only if given.only else given.again or p.lacks(record))]
        if given.plan:
            for part in chosen:
                print(f"{part.name}: about {part.guess_s:.0f} s")
            print(f"{len(chosen)} parts, about {sum(part.guess_s for part in chosen) / 60:.0f} minutes on an H100")
            return
        assert given.tiny or torch.cuda.is_available(), "this benchmark needs a CUDA device"
        with watching():
            run(bench, chosen)
    print(json.dumps(bench.read(), indent=1))


def run(bench: Bench, chosen: list[Part]) -> None:
    """Measures parts in their order, each where there is time for it; a failure costs no other its figures."""
    for part in chosen:
        left = bench.deadline - time.monotonic()
        if not bench.scale.tiny and left < part.guess_s:
            print(f"not begun, with {left:.0f} s left: {part.name} (about {part.guess_s:.0f} s)", flush=True)
            continue
        began = time.monotonic()
        try:
            part.run(bench)
            print(f"{part.name}: {time.monotonic() - began:.0f} s", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"FAILED: {part.name}", flush=True)
            bench.start_afresh()


COUNTS = {"captures": 0, "kernels_compiled": 0}


@contextmanager
def watching() -> Iterator[None]:
    """Within it `COUNTS` goes up with each graph that is captured and each kernel that Triton compiles here."""
    plain = fit_cuda.capture

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        COUNTS["captures"] += 1
        return plain(step)

    def compiled(**_: Any) -> None:
        COUNTS["kernels_compiled"] += 1

    runtime: Any = importlib.import_module("triton").knobs.runtime if find_spec("triton") else SimpleNamespace()
    before = getattr(runtime, "jit_post_compile_hook", None)
    fit_cuda.capture, runtime.jit_post_compile_hook = capture, compiled
    try:
        yield
    finally:
        fit_cuda.capture, runtime.jit_post_compile_hook = plain, before


def counted() -> dict[str, int]:
    return dict(COUNTS)


# ---------------------------------------------------------------- parts


def measure_preset(bench: Bench, name: str) -> None:
    """A row after every chunk, so that what was measured stays when time runs out."""
    scale, repeats = bench.scale, bench.scale.repeats[name]
    engine = bench.engine(LARGEST)
    cache_steps = scale.cache_steps if name == "reference" else None
    shot = Shot(engine, scale, 1 + repeats, cache_steps, counted, preset=name)

    def after_chunk() -> bool:
        if len(shot.chunks) > 1:
            bench.merge(_preset_figures(bench, name, shot))
        return bench.scale.tiny or time.monotonic() < bench.deadline

    shot.make(after_chunk)
    _keep_first_chunk(bench, name, shot)


def _preset_figures(bench: Bench, name: str, shot: Shot) -> dict[str, Any]:
    preset, row = PRESETS[name], _summary(bench, shot) | {"preset": PRESETS[name].describe()}
    figures: dict[str, Any] = {"presets": {name: row}, f"{name}_s": row["seconds"]}
    if name == "reference":
        steps = bench.scale.steps or preset.steps
        figures["forward_s"] = round(row["stages_s"]["denoise"] / (2 * steps), 4)
        figures["outside_transformer_fraction"] = row["outside_transformer_fraction"]
    return figures


def _summary(bench: Bench, shot: Shot) -> dict[str, Any]:
    """Medians over the chunks after the first."""
    chunks = shot.chunks[1:]
    seconds = statistics.median(c["seconds"] for c in chunks)
    stages = {s: round(statistics.median(c["stages_s"].get(s, 0.0) for c in chunks), 4) for s in chunks[0]["stages_s"]}
    return {
        "seconds": seconds,
        "spread_s": [c["seconds"] for c in chunks],
        "stages_s": stages,
        "outside_transformer_fraction": round(1 - stages["denoise"] / seconds, 4),
        "first_chunk": shot.chunks[0],
        "chunks": chunks,
        "gaussians": shot.gaussians,
        "peak_gib": _peak_gib("allocated"),
        "measured": bench.measured(),
    }


def _keep_first_chunk(bench: Bench, name: str, shot: Shot) -> None:
    """Beside the models, for the presets that are measured later; deviations are of pairs made on one machine."""
    folder = bench.models / "first_chunks"
    folder.mkdir(parents=True, exist_ok=True)
    assert shot.first_chunk is not None
    np.save(folder / f"{name}.npy", shot.first_chunk)
    found = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    reference = found.pop("reference", None)
    if reference is not None:
        bench.merge({"deviation_db": {other: round(_psnr(frames, reference), 2) for other, frames in found.items()}})


def measure_budget(bench: Bench, vram: str) -> None:
    """Two chunks under a hard cap."""
    scale = bench.scale
    bench.start_afresh()
    shot = Shot(bench.engine(vram), scale, 2, scale.cache_steps, counted, preset="reference", steps=BUDGET_STEPS).make()
    last = shot.chunks[-1]
    row = {
        "reserved_gib": _peak_gib("reserved"),
        "allocated_gib": _peak_gib("allocated"),
        "fell_back": [n.message for n in shot.notices if n.code == "out_of_memory"],
        "chunk_s": last["seconds"],
        "denoise_step_s": round(last["stages_s"]["denoise"] / (BUDGET_STEPS + 1), 3),
        "stages_s": last["stages_s"],
        "measured": bench.measured(),
    }
    bench.merge({"peak_gib": {vram: row["reserved_gib"]}, "budgets": {vram: row}})


def measure_fallback(bench: Bench) -> None:
    """It says so and goes on."""
    scale = bench.scale
    bench.start_afresh()
    engine = bench.engine("12")
    if not scale.tiny:
        limit_memory(TOO_LITTLE_GIB, torch.device("cuda", torch.cuda.current_device()))
    shot = Shot(engine, scale, 2, scale.cache_steps, counted, preset="reference", steps=BUDGET_STEPS).make()
    row = {
        "cap_gib": TOO_LITTLE_GIB,
        "reserved_gib": _peak_gib("reserved"),
        "notices": [n.message for n in shot.notices if n.code == "out_of_memory"],
        "chunks_made": len(shot.chunks),
        "measured": bench.measured(),
    }
    bench.start_afresh()
    bench.merge({"out_of_memory": row})


def measure_fit(bench: Bench) -> None:
    scale = bench.scale
    bench.start_afresh()
    views = fit_views(bench_cache_gpu.VIEWS, scale.width, scale.height, "cpu" if scale.tiny else "cuda")
    gaussians = seeded(views, scale.gaussians, bench_cache_gpu.DEGREE)
    bench_cache_gpu.engine_fit(gaussians, views, min(40, scale.cache_steps))  # compiles
    seconds = []
    for _ in range(1 if scale.tiny else FIT_REPEATS):
        began = time.perf_counter()
        bench_cache_gpu.engine_fit(gaussians, views, scale.cache_steps)
        _synchronize()
        seconds.append(round(time.perf_counter() - began, 4))
        row = {"gaussians": len(gaussians), "steps": scale.cache_steps, "spread_s": seconds}
        bench.merge({"cache_500_steps_s": statistics.median(seconds), "fit": row | {"measured": bench.measured()}})
    if not scale.tiny:
        found = {"kernels_us_a_step": bench_cache_gpu.kernel_time(gaussians, views)}
        bench.merge({"fit": found | {"capture_s": bench_cache_gpu.capture_time(gaussians, views)}})


def measure_shapes(bench: Bench) -> None:
    """Kernels are a GPU's alone: in miniature there is nothing to time, and the list of shapes is what is checked."""
    scale = bench.scale
    bench.start_afresh()
    found: dict[str, Any] = {}
    if not scale.tiny:
        views = fit_views(bench_cache_gpu.VIEWS, scale.width, scale.height, "cuda")
        gaussians = seeded(views, scale.gaussians, bench_cache_gpu.DEGREE)
        for name, times in bench_cache_gpu.shapes(gaussians, views):
            found[name] = times
            print(name, times, flush=True)
    bench.merge({"shapes": found | {"measured": bench.measured()}})


def measure_shared(bench: Bench, gpus: int, on: int) -> None:
    """`reference`, on one of the GPUs or on all of them."""
    scale = bench.scale
    chunks = 1 + min(scale.repeats["reference"], 2)
    shot = Shot(bench.engine(LARGEST, on), scale, chunks, scale.cache_steps, counted, preset="reference").make()
    bench.merge({f"gpus_{gpus}": {"alone" if on == 1 else "together": _summary(bench, shot)}})
    rows = bench.read()[f"gpus_{gpus}"]
    alike = {(row["measured"]["gpu"], row["measured"]["commit"]) for row in rows.values()}
    if len(rows) == 2 and len(alike) == 1:
        speedup = rows["alone"]["seconds"] / rows["together"]["seconds"]
        bench.merge({f"speedup_{gpus}_gpus": round(speedup, 3)})
    elif len(rows) == 2:
        print(f"no speed-up, as these were measured on different GPUs or commits: {alike}", flush=True)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gib(kind: str) -> float:
    """Of the device's memory since the engine was opened; 0 where there is none."""
    if not torch.cuda.is_available():
        return 0.0
    return round(getattr(torch.cuda, f"max_memory_{kind}")() / GIB, 2)


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(np.float32) - b.astype(np.float32)) / 255) ** 2
    return float(-10 * np.log10(max(error.mean(), 1e-12)))


if __name__ == "__main__":
    main()
