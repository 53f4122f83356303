"""The main job's figures: from the demo's wall time to the memory of a thousand frames.

    python tests/benchmarks/bench_main_job.py                    everything, into results/main_job.json
    python tests/benchmarks/bench_main_job.py --only quality     one part, printed only

demo_s                 wall time of `worldwarp demo`, a process of its own, Blender and all.
camera_worst_px        worst error of the exported cameras against Blender's own projection (bench_cameras.py).
psnr_start_db          the cache rendered back at the start camera against the start frame, over all pixels; the worst
                       of the worlds that the shot's fits left, so that a later fit cannot undo an earlier one unseen.
psnr_20_frames_db      the frame delivered 20 frames later against Blender's own render, over the pixels marked valid.
mask_precision, mask_recall
                       that frame's validity against what the start view really saw (evaluation/visibility.py).
uncovered_percent      of that frame's pixels, those the start view did not see.
splat_alignment_percent
                       the splats imported into the demo's .blend against the geometry in Blender's depth pass: the
                       worst difference of centroid, box and 1-99 percentile box, of the scene's diagonal. Compared
                       is what the start frame shows: the places that the fill invents have no truth.
splat_alignment_raw_centroid_percent
                       the same splats' plain mean against the plain mean of the depth's points, each as dense as it is.
splat_alignment_all_centroid_percent, splat_alignment_all_box_percent
                       plain mean and box of all splats but the sky's, the invented ones too, against the geometry that
                       Blender sees in five frames along the flight.
peak_rss_mib_93_frames, peak_rss_mib_1000_frames
                       largest resident memory of a worker over an orbit at 64x36 that keeps coming back.

The scene is the demo's at 256x144: diffuse, denoised Cycles, Standard view, exact start depth, 93 frames.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from ball_room import orbit, see
from ground_truth import ground_truth, read_depth, read_rgb

from engine_bridge.client import Client, Disconnected, RequestFailed
from engine_bridge.messages import FrameEvent, StateEvent
from engine_bridge.private_server import private_server
from engine_bridge.session import FINAL
from worldwarp_core.api import load_engine, render_splats
from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.evaluation.provenance import provenance
from worldwarp_core.evaluation.visibility import seen_from, unproject
from worldwarp_core.spec import CacheUpdate, Frame, GenerateSpec

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "main_job.json"
WIDTH, HEIGHT, FRAMES = 256, 144, 93
LATER = 20
ALONG = (1, 25, 49, 71, 93)
Figures = dict[str, float]


def measure_demo() -> Figures:
    """How long the demo takes, and where its splats landed."""
    with tempfile.TemporaryDirectory(prefix="worldwarp_demo_") as folder:
        start = time.perf_counter()
        run_python("from engine_bridge.cli import main; main()", "demo", "--out", folder)
        seconds = time.perf_counter() - start
        places = Path(folder) / "places.npz"
        run_python("import bench_main_job as b; b.save_splat_places()", str(Path(folder) / "scene.blend"), str(places))
        with np.load(places) as found:
            every, of_start = found["centres"], found["centres"][found["sources"] == 1]
    truth = ground_truth(ALONG, WIDTH, HEIGHT, FRAMES)
    cameras = read_cameras(truth / "cameras.json")
    views = [unproject(read_depth(truth, frame), cameras.K[frame - 1], cameras.c2w[frame - 1]) for frame in ALONG]
    return {
        "demo_s": seconds,
        "splat_alignment_percent": alignment_percent(of_start, views[0]),
        "splat_alignment_raw_centroid_percent": raw_percent(of_start, views[0])[0],
        "splat_alignment_all_centroid_percent": raw_percent(every, np.concatenate(views))[0],
        "splat_alignment_all_box_percent": raw_percent(every, np.concatenate(views))[1],
    }


def measure_cameras() -> Figures:
    """In a process of its own: Blender and the engine's libraries share one badly."""
    said = run_python("import bench_cameras as b; print('\\nworst', b.worst_camera_error_px())")
    return {"camera_worst_px": float(said.rsplit("worst", 1)[1])}


def measure_quality() -> Figures:
    """One shot through the engine's door, against Blender's own pictures and depths."""
    truth = ground_truth((1, 1 + LATER), WIDTH, HEIGHT, FRAMES)
    cameras = read_cameras(truth / "cameras.json")
    start_frame, start_depth = read_rgb(truth, 1), read_depth(truth, 1)
    psnr_start, later = [], None
    for event in load_engine("cache").generate(GenerateSpec(cameras, start_frame, start_depth)):
        if isinstance(event, CacheUpdate):
            rgb, _, _ = render_splats(event.splats, cameras[:1])
            psnr_start.append(psnr(rgb[0], start_frame / 255))
        elif isinstance(event, Frame) and event.index == LATER:
            later = event
    assert later is not None
    seen = seen_from(
        start_depth, cameras.K[0], cameras.c2w[0], read_depth(truth, 1 + LATER), cameras.K[LATER], cameras.c2w[LATER]
    )
    valid = later.validity == 255
    return {
        "psnr_start_db": min(psnr_start),
        "psnr_20_frames_db": psnr(later.rgb[valid] / 255, read_rgb(truth, 1 + LATER)[valid] / 255),
        "mask_precision": float((valid & seen).sum() / valid.sum()),
        "mask_recall": float((valid & seen).sum() / seen.sum()),
        "uncovered_percent": float(100 * (1 - seen.mean())),
    }


def measure_memory() -> Figures:
    """Two servers with a worker each, one path each, watched from outside."""
    return {f"peak_rss_mib_{frames}_frames": peak_rss_mib(frames) for frames in (FRAMES, 1000)}


PARTS: dict[str, Callable[[], Figures]] = {
    "quality": measure_quality,
    "cameras": measure_cameras,
    "memory": measure_memory,
    "demo": measure_demo,
}


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Of values in [0, 1], in dB."""
    return float(-10 * np.log10(np.mean((image.astype(np.float64) - reference) ** 2)))


def alignment_percent(splats: np.ndarray, points: np.ndarray) -> float:
    """Worst difference between splats and scene, in percent of the scene's diagonal.

    Centroids and 1-99 percentile boxes are of the places that are filled (cells of 2% of the diagonal, each counted
    once): splats are dense where there is detail and depth pixels where the camera is near, which is not where the
    geometry is. Plain boxes are of the points themselves. Boxes count by the side that is furthest off.
    """
    diagonal = np.linalg.norm(np.ptp(points, axis=0))
    a, b = filled_places(splats, 0.02 * diagonal), filled_places(points, 0.02 * diagonal)
    off = {
        "centroid": np.linalg.norm(a.mean(0) - b.mean(0)),
        "1-99 percentile box": np.abs(np.percentile(a, (1, 99), 0) - np.percentile(b, (1, 99), 0)).max(),
        "box": max(np.abs(splats.min(0) - points.min(0)).max(), np.abs(splats.max(0) - points.max(0)).max()),
    }
    for name, distance in off.items():
        print(f"splat alignment, {name}: {100 * distance / diagonal:.2f}%", file=sys.stderr)
    return float(100 * max(off.values()) / diagonal)


def raw_percent(splats: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Difference of the plain centroids, and of the plain boxes by their worst side, in percent of the diagonal."""
    scale = 100 / np.linalg.norm(np.ptp(points, axis=0))
    sides = np.abs(splats.min(0) - points.min(0)).max(), np.abs(splats.max(0) - points.max(0)).max()
    return float(np.linalg.norm(splats.mean(0) - points.mean(0)) * scale), float(max(sides) * scale)


def filled_places(points: np.ndarray, size: float) -> np.ndarray:
    """(M, 3) mean of the points in each cell of a grid that holds any."""
    _, cell = np.unique(np.floor(points / size), axis=0, return_inverse=True)
    count = np.bincount(cell.ravel())
    return np.stack([np.bincount(cell.ravel(), points[:, axis]) / count for axis in range(3)], -1)


def save_splat_places() -> None:
    """Saves world positions and source frames of a .blend's splats without the sky; runs where `bpy` is."""
    import bpy

    blend, out = sys.argv[1:]
    bpy.ops.wm.open_mainfile(filepath=blend)
    centres, sources = [], []
    for thing in bpy.context.scene.objects:
        attributes = getattr(thing.data, "attributes", {})
        if "radiance:base" not in attributes:
            continue

        def values(name: str, field: str, width: int, attributes=attributes) -> np.ndarray:  # type: ignore[no-untyped-def]
            data = np.empty(len(attributes[name].data) * width, np.float32)
            attributes[name].data.foreach_get(field, data)
            return data.reshape(-1, width)

        near = values("sky", "value", 1)[:, 0] == 0
        matrix = np.array(thing.matrix_world)
        centres.append((values("position", "vector", 3) @ matrix[:3, :3].T + matrix[:3, 3])[near])
        sources.append(values("source_frame", "value", 1)[near, 0].astype(int))
    np.savez(out, centres=np.concatenate(centres), sources=np.concatenate(sources))


def peak_rss_mib(frames: int) -> float:
    """Largest resident memory, in MiB, of a server's worker over one shot that a client drops as it comes."""
    cameras = orbit(frames, 64, 36)
    rgb, depth = see(cameras.K[0], cameras.c2w[0], 64, 36)
    peak, arrived = 0, 0
    with (
        tempfile.TemporaryDirectory(prefix="worldwarp_memory_") as folder,
        private_server(Path(folder)) as address,
        Client(address, program="bench_main_job") as client,
    ):
        client.connect()
        job_id = client.submit(GenerateSpec(cameras, rgb, depth, cache_steps=10))
        state = ""
        while state not in FINAL:
            event = client.wait(0.02)
            if isinstance(event, StateEvent):
                state = event.state
            elif isinstance(event, Disconnected | RequestFailed):
                raise RuntimeError(event.message)
            arrived += isinstance(event, FrameEvent)
            peak = max(peak, largest_rss(psutil.Process().children(recursive=True)))
    if state != "done" or arrived != frames:
        raise RuntimeError(f"the job {job_id} over {frames} frames ended {state} with {arrived} frames")
    return peak / 2**20


def largest_rss(processes: list[psutil.Process]) -> int:
    """Bytes of the largest of them: of a server and its worker, that is the worker."""
    sizes = [0]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            sizes.append(process.memory_info().rss)
    return max(sizes)


def run_python(code: str, *arguments: str) -> str:
    """What another Python prints, run beside this file.

    Raises:
        RuntimeError: it failed; the message holds the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{code} {' '.join(arguments)} failed with exit code {done.returncode}:\n{done.stdout[-3000:]}"
        )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the main job.")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts and print them")
    only = parser.parse_args().only
    figures: Figures = {}
    for name in only or PARTS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        figures |= {key: round(value, 4) for key, value in PARTS[name]().items()}
    print(json.dumps(figures, indent=2))
    if not only:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({**figures, "provenance": provenance()}, indent=2) + "\n")
        print(f"written to {RESULT}", file=sys.stderr)


if __name__ == "__main__":
    main()
