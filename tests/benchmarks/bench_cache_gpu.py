"""How long fitting the cache takes on a GPU: `python -m tests.benchmarks.bench_cache_gpu [--repeats N] [--out DIR]`.

500 steps on five views of 720x480, one view a step, with 250,000 Gaussians of SH degree 3 seeded from exact depth
(textured_room.py), all of them free to move: step by step as on any device, with compiled parts, and as one graph a
step, which is what the engine runs; each with the same order of views. Also other numbers of Gaussians, degree 0, a
world of which a third may move, the sum of the kernels' own times (the floor that no scheduling gets below), and what
is left of the difference between the two ways. Medians and ranges, after compiling. Writes cache_500_<gpu>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.textured_room import fit_views, seeded
from worldwarp_core.evaluation.provenance import hardware_name, provenance
from worldwarp_core.splats import fit_cuda, raster_triton, step_triton
from worldwarp_core.splats.device_steps import DeviceSteps, run
from worldwarp_core.splats.fit import fit, optimise
from worldwarp_core.splats.fit_settings import FitSettings
from worldwarp_core.splats.gaussians import Gaussians
from worldwarp_core.splats.loss import FitViews
from worldwarp_core.splats.moving import let_move
from worldwarp_core.splats.prepare import rasterizer_info
from worldwarp_core.splats.rasterize import rasterize
from worldwarp_core.splats.step_triton import adam_update

WIDTH, HEIGHT, VIEWS = 720, 480, 5
GAUSSIANS, DEGREE, STEPS = 250_000, 3, 500
OTHER_SIZES = (50_000, 125_000, 1_000_000)
SETTINGS = FitSettings()
SHAPES: dict[str, dict[str, int]] = {
    "as they are": {},
    "activations: 512 Gaussians": {"BLOCK": 512},
    "tiles of 4 pixels, 1 warp": {"TILE": 4, "FORWARD_WARPS": 1, "BACKWARD_WARPS": 1},
    "tiles of 16 pixels, 8 warps": {"TILE": 16, "FORWARD_WARPS": 8, "BACKWARD_WARPS": 8},
    "drawing: 1 warp": {"FORWARD_WARPS": 1},
    "gradient of drawing: 168 registers": {"BACKWARD_REGISTERS": 168},
    "gradient of drawing: 1 warp, 255 registers": {"BACKWARD_WARPS": 1, "BACKWARD_REGISTERS": 255},
    "batches of 32, 255 registers": {"BATCH": 32, "BACKWARD_REGISTERS": 255},
}
"""By name, the constants of `step_triton` and `raster_triton` that are changed."""


def in_turn(steps: int) -> list[int]:
    return [step % VIEWS for step in range(steps)]


def step_by_step(gaussians: Gaussians, views: FitViews, steps: int) -> tuple[Gaussians, list[float]]:
    moving = let_move(gaussians, with_shN=True)
    rows = torch.arange(len(gaussians), device=gaussians.means.device)
    losses = list(optimise(moving, gaussians, rows, views, in_turn(steps), SETTINGS))
    return moving.now().map(torch.Tensor.detach), losses


def compiled(gaussians: Gaussians, views: FitViews, steps: int) -> tuple[Gaussians, list[float]]:
    """The parts of the captured step, launched one by one."""
    moving = fit_cuda.lay_out(let_move(gaussians, with_shN=True))
    scene = fit_cuda.CudaScene(moving, gaussians[:0], views, SETTINGS)
    device_steps = DeviceSteps(moving, scene, in_turn(steps), SETTINGS, adam_update)
    losses = list(run(device_steps, lambda step: step))
    return moving.now().map(torch.Tensor.detach), losses


def captured(gaussians: Gaussians, views: FitViews, steps: int) -> tuple[Gaussians, list[float]]:
    moving = fit_cuda.lay_out(let_move(gaussians, with_shN=True))
    losses = list(fit_cuda.optimise_on_cuda(moving, gaussians[:0], views, in_turn(steps), SETTINGS))
    return moving.now().map(torch.Tensor.detach), losses


def engine_fit(gaussians: Gaussians, views: FitViews, steps: int, trainable: torch.Tensor | None = None) -> None:
    """What the engine calls, with the projection of what stays, the capture and the copies in it."""
    trainable = torch.ones_like(gaussians.opacities, dtype=torch.bool) if trainable is None else trainable
    _drain(fit(gaussians, trainable, views, steps, SETTINGS, torch.Generator().manual_seed(0)))


def bench(repeats: int, save: Callable[[dict[str, Any]], None]) -> None:
    """Calls `save` with all figures so far after each stage."""
    views = fit_views(VIEWS, WIDTH, HEIGHT, "cuda")
    gaussians = seeded(views, GAUSSIANS, DEGREE)
    result: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "views": VIEWS, "gaussians": len(gaussians)}
    result["compiling_s"] = round(_timed(lambda: captured(gaussians, views, 40))[1], 2)
    save(result)

    torch.cuda.reset_peak_memory_stats()
    seconds = [_timed(lambda: engine_fit(gaussians, views, STEPS))[1] for _ in range(repeats)]
    result["cache_500_steps_s"] = _spread(seconds)
    result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    save(result)
    result["kernels_us_a_step"] = kernel_time(gaussians, views)
    save(result)

    ways = {"captured": captured, "compiled": compiled, "step by step": step_by_step}
    result["ms_a_step"] = {}
    for name, way in ways.items():
        way(gaussians, views, 20)
        seconds = [_timed(lambda: way(gaussians, views, 100))[1] for _ in range(repeats)]  # noqa: B023
        result["ms_a_step"][name] = _spread([10 * s for s in seconds])
        save(result)
    # Atomic additions come in any order: two runs of one way differ too.
    result["after_500_steps"] = {
        name: _quality(*way(gaussians, views, STEPS), views)
        for name, way in (("captured", captured), ("captured again", captured), ("step by step", step_by_step))
    }
    save(result)

    degree0 = Gaussians(**gaussians.tensors() | {"shN": gaussians.shN[:, :0].contiguous()})
    third = torch.arange(len(gaussians), device="cuda") % 3 == 0
    others: dict[str, tuple[Callable[[], Gaussians], torch.Tensor | None]] = {
        "degree 0": (lambda: degree0, None),
        "a third moves": (lambda: gaussians, third),
    }
    others |= {f"{count}": (lambda count=count: seeded(views, count, DEGREE), None) for count in OTHER_SIZES}  # type: ignore[misc]
    result["other_500_steps_s"] = {}
    for name, (make, trainable) in others.items():
        world = make()
        engine_fit(world, views, 20, trainable)
        seconds = [_timed(lambda: engine_fit(world, views, STEPS, trainable))[1] for _ in range(max(repeats // 2, 1))]  # noqa: B023
        result["other_500_steps_s"][name] = _spread(seconds)
        save(result)


def kernel_time(gaussians: Gaussians, views: FitViews, steps: int = 20) -> dict[str, Any]:
    """Microseconds a captured step spends in each of its longest kernels, and in all."""
    moving = fit_cuda.lay_out(let_move(gaussians, with_shN=True))
    scene = fit_cuda.CudaScene(moving, gaussians[:0], views, SETTINGS)
    device_steps = DeviceSteps(moving, scene, in_turn(10 * steps), SETTINGS, adam_update)
    replay = fit_cuda.capture(device_steps.step)
    replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            replay()
        torch.cuda.synchronize()
    events = [e for e in profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: -e.self_device_time_total)
    longest = {e.key[:80]: round(e.self_device_time_total / steps, 1) for e in events[:12]}
    return {
        "all": round(sum(e.self_device_time_total for e in events) / steps, 1),
        "kernels": round(sum(e.count for e in events) / steps),
        "longest": longest,
    }


def capture_time(gaussians: Gaussians, views: FitViews, cached_gib: int = 8) -> float:
    """Seconds that capturing a step takes where torch holds so much memory in reserve, as beside the video model.

    torch gives it back to the driver before each capture, and host memory that is pinned too: what comes after pays
    for that once more, which is not in these seconds (see the stages of a chunk after the fit).
    """
    moving = fit_cuda.lay_out(let_move(gaussians, with_shN=True))
    scene = fit_cuda.CudaScene(moving, gaussians[:0], views, SETTINGS)
    device_steps = DeviceSteps(moving, scene, in_turn(STEPS), SETTINGS, adam_update)
    reserve = [torch.empty(2**26, dtype=torch.uint8, device="cuda") for _ in range(16 * cached_gib)]
    del reserve
    return round(_timed(lambda: fit_cuda.capture(device_steps.step))[1], 4)


def shapes(gaussians: Gaussians, views: FitViews) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `kernel_time` says of each of `SHAPES`, by its name; of one that does not compile, why."""
    for name, constants in SHAPES.items():
        with _changed(constants):
            try:
                yield name, kernel_time(gaussians, views)
            except Exception as error:  # whatever a compiler or a driver may say
                yield name, {"failed": f"{type(error).__name__}: {error}"[:200]}


@contextmanager
def _changed(constants: dict[str, int]) -> Iterator[None]:
    homes = {name: next(m for m in (step_triton, raster_triton) if hasattr(m, name)) for name in constants}
    before = {name: getattr(home, name) for name, home in homes.items()}
    try:
        for name, value in constants.items():
            setattr(homes[name], name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(homes[name], name, value)


@torch.no_grad()
def _quality(gaussians: Gaussians, losses: list[float], views: FitViews) -> dict[str, float]:
    render = rasterize(gaussians, views.w2c, views.K, WIDTH, HEIGHT)
    error = (render.rgb.clamp(0, 1) - views.rgb).square().mean()
    return {"psnr_db": round(float(-10 * error.log10()), 3), "loss_of_last_10": round(sum(losses[-10:]) / 10, 6)}


def _drain(steps: Generator[Any, None, Any]) -> None:
    for _ in steps:
        pass


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return result, time.perf_counter() - start


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 4), "low": round(min(values), 4), "high": round(max(values), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--shapes", action="store_true")
    arguments = parser.parse_args()
    if arguments.shapes:
        views = fit_views(VIEWS, WIDTH, HEIGHT, "cuda")
        for name, times in shapes(seeded(views, GAUSSIANS, DEGREE), views):
            print(name, times, flush=True)
        return
    where = provenance() | {"rasterizer": rasterizer_info("cuda")}
    path = arguments.out / f"cache_500_{hardware_name(where['gpu'], where['cores'])}.json"

    def save(result: dict[str, Any]) -> None:
        path.write_text(json.dumps(where | {"repeats": arguments.repeats} | result, indent=2) + "\n")
        print({k: v for k, v in result.items() if k not in ("width", "height", "views")}, flush=True)

    bench(arguments.repeats, save)
    print(path)


if __name__ == "__main__":
    main()
