"""How long rasterising takes: `python -m tests.benchmarks.bench_rasterize [--device cpu|cuda] [--repeats N]`.

A random scene that covers a 256 x 144 image with SH degree 1, for 10,000 and 20,000 Gaussians: one view forward and
backward (RGB, alpha and depth all in the loss), and 48 views forward without gradients. Medians and the range of
the middle half, in milliseconds, after warming up. Writes results/rasterize_<hardware>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.worldwarp_core.splats.scenes import random_gaussians, two_cameras
from worldwarp_core.evaluation.provenance import hardware_name, provenance
from worldwarp_core.splats.prepare import rasterizer_info
from worldwarp_core.splats.rasterize import rasterize

WIDTH, HEIGHT, DEGREE, VIEWS = 256, 144, 1, 48


def bench_rasterize(
    device: str = "cpu", repeats: int = 20, counts: tuple[int, ...] = (10_000, 20_000)
) -> dict[str, Any]:
    """Milliseconds by number of Gaussians: `forward`, `backward`, `views48_forward`, each as median, low and high."""
    w2c, K = (t[:1].to(device) for t in two_cameras(WIDTH, HEIGHT))
    results = {}
    for count in counts:
        scene = random_gaussians(count, DEGREE, seed=0, width=WIDTH, height=HEIGHT)
        gaussians = scene.map(lambda t: t.to(device).requires_grad_())
        forward, backward = [], []
        for _ in range(repeats + 3):
            render, seconds = _timed(lambda: rasterize(gaussians, w2c, K, WIDTH, HEIGHT), device)  # noqa: B023
            forward.append(seconds)
            loss = (render.rgb**2).sum() + (render.alpha**2).sum() + (render.depth**2).sum()
            backward.append(_timed(loss.backward, device)[1])
        fixed = gaussians.map(torch.Tensor.detach)
        many = w2c.expand(VIEWS, -1, -1), K.expand(VIEWS, -1, -1)
        views = [_timed(lambda: rasterize(fixed, *many, WIDTH, HEIGHT), device)[1] for _ in range(max(repeats // 4, 5))]  # noqa: B023
        results[str(count)] = {
            "forward": _spread(forward[3:]),
            "backward": _spread(backward[3:]),
            f"views{VIEWS}_forward": _spread(views[1:]),
        }
    return {"width": WIDTH, "height": HEIGHT, "sh_degree": DEGREE, "milliseconds": results}


def _timed(run: Callable[[], Any], device: str) -> tuple[Any, float]:
    _synchronize(device)
    start = time.perf_counter()
    result = run()
    _synchronize(device)
    return result, time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _spread(seconds: list[float]) -> dict[str, float]:
    low, median, high = (round(1000 * q, 2) for q in statistics.quantiles(seconds, n=4))
    return {"median": median, "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    result = bench_rasterize(arguments.device, arguments.repeats)
    where = provenance()
    record = {**where, "rasterizer": rasterizer_info(arguments.device), "repeats": arguments.repeats, **result}
    hardware = hardware_name(where["gpu"] if arguments.device != "cpu" else None, where["cores"])
    path = arguments.out / f"rasterize_{hardware}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record["milliseconds"], indent=2), path, sep="\n")


if __name__ == "__main__":
    main()
