"""PSNR against optimisation steps of the cache on the demo scene, from which the CPU preset's steps are chosen.

    python tests/benchmarks/bench_cache_steps.py

fits the start frame (exact depth) for a number of steps and looks at the start view and, on valid pixels, at two later
ones, against Blender's own renders; then takes the world of the preset, shows it four later frames as a perfect fill
would have made them, and refines for a number of steps. Writes cache_steps_<hardware>.json and .png under results/.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.ground_truth import ground_truth, read_depth, read_rgb
from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.engine import CPU
from worldwarp_core.evaluation.provenance import hardware_name, provenance
from worldwarp_core.geometry.complete import complete_depth
from worldwarp_core.geometry.start import start_depth
from worldwarp_core.history import History
from worldwarp_core.loop.priors import VALID, render_priors
from worldwarp_core.splats.cache import CacheSettings, SplatCache, open_cache, update_cache
from worldwarp_core.splats.space import CacheSpace

FIRST = (1, 25, 50, 100, 200, 300, 500)
UPDATE = (1, 15, 30, 60, 120, 240)
LATER = (20, 48)
KEYS = (12, 24, 36, 48)
WIDTH, HEIGHT = 256, 144


class Scene:
    """The demo's flight in cache units, with Blender's renders of some frames."""

    def __init__(self) -> None:
        folder = ground_truth([1, *(f + 1 for f in {*LATER, *KEYS})], WIDTH, HEIGHT)
        self.path = read_cameras(folder / "cameras.json")
        self.rgb = {f: torch.from_numpy(read_rgb(folder, f + 1).astype(np.float32) / 255) for f in {0, *LATER, *KEYS}}
        self.K = torch.from_numpy(self.path.K.astype(np.float32))
        depth, _ = start_depth(read_depth(folder, 1), self.rgb[0], None, None)
        self.space = CacheSpace(self.path.c2w[0, :3, 3], float(depth[torch.isfinite(depth)].median()))
        self.depth = depth / self.space.unit
        self.w2c = self.space.w2c(self.path.c2w)

    def history(self, frames: tuple[int, ...]) -> History:
        rgb = torch.stack([self.rgb[f] for f in frames])
        rows = list(frames)
        return History([f + 1 for f in frames], rgb, torch.ones(rgb.shape[:3]), self.w2c[rows], self.K[rows])

    def psnr(self, cache: SplatCache, frame: int, everywhere: bool) -> float:
        priors = render_priors(cache, self.w2c[frame, None], self.K[frame, None], WIDTH, HEIGHT)
        pixels = priors.validity[0] >= VALID
        pixels = torch.ones_like(pixels) if everywhere else pixels
        return float(-10 * torch.log10((priors.rgb[0] - self.rgb[frame])[pixels].square().mean()))


def finish(fitting: Generator[Any, None, SplatCache]) -> SplatCache:
    while True:
        try:
            next(fitting)
        except StopIteration as end:
            return end.value


def first_fit(scene: Scene, settings: CacheSettings) -> tuple[SplatCache, float]:
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    cache = finish(open_cache(scene.space, scene.history((0,)), scene.depth, settings, generator))
    return cache, time.perf_counter() - began


def later_fit(scene: Scene, cache: SplatCache, settings: CacheSettings) -> tuple[SplatCache, float]:
    def estimate_depth(rgb, known, seen):  # type: ignore[no-untyped-def]
        geometry = complete_depth(known[None], seen[None], rgb[None], None)
        return geometry.depth[0], geometry.confidence[0]

    began = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    updated = finish(update_cache(cache, scene.history(KEYS), estimate_depth, settings, generator))
    return updated, time.perf_counter() - began


def measure() -> dict[str, Any]:
    scene = Scene()
    settings = replace(CPU.cache, points_per_view=int(WIDTH * HEIGHT * CPU.points_per_pixel))
    first_fit(scene, replace(settings, first_steps=1))  # compiles the kernels
    first = []
    for steps in FIRST:
        cache, seconds = first_fit(scene, replace(settings, first_steps=steps))
        row = {
            "steps": steps,
            "seconds": round(seconds, 2),
            "start_db": round(scene.psnr(cache, 0, everywhere=True), 2),
        }
        first.append(row | {f"plus_{f}_valid_db": round(scene.psnr(cache, f, everywhere=False), 2) for f in LATER})
        print(first[-1], flush=True)
    opened, _ = first_fit(scene, settings)
    update = []
    for steps in UPDATE:
        cache, seconds = later_fit(scene, opened, replace(settings, update_steps=steps))
        seen_db = np.mean([scene.psnr(cache, f, everywhere=True) for f in KEYS])
        update.append(
            {
                "steps": steps,
                "seconds": round(seconds, 2),
                "key_views_db": round(float(seen_db), 2),
                "start_db": round(scene.psnr(cache, 0, everywhere=True), 2),
            }
        )
        print(update[-1], flush=True)
    return {
        "gaussians": len(opened.gaussians),
        "first_fit": first,
        "update": update,
        "chosen": [CPU.cache.first_steps, CPU.cache.update_steps],
    }


def plot(figures: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for axis, rows, chosen, title in zip(
        axes,
        (figures["first_fit"], figures["update"]),
        figures["chosen"],
        ("First fit", "Later fit, warm-started"),
        strict=True,
    ):
        for name in [n for n in rows[0] if n.endswith("_db")]:
            axis.plot(
                [r["steps"] for r in rows], [r[name] for r in rows], marker="o", label=name[:-3].replace("_", " ")
            )
        axis.axvline(chosen, color="grey", linestyle=":", label=f"chosen: {chosen}")
        axis.set(xscale="log", xlabel="steps", ylabel="PSNR (dB)", title=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    fig.savefig(path, dpi=110)


def main() -> None:
    where = provenance()
    figures = measure()
    out = Path(__file__).parent / "results" / f"cache_steps_{hardware_name(None, where['cores'])}"
    out.with_suffix(".json").write_text(json.dumps(where | figures, indent=2) + "\n")
    plot(figures, out.with_suffix(".png"))
    print(f"wrote {out}.json and .png")


if __name__ == "__main__":
    main()
