"""The add-on's figures, each measured in a real Blender (`bpy`).

    python tests/benchmarks/bench_addon.py                            everything, into results/addon.json
    python tests/benchmarks/bench_addon.py --only import_splats       one part; its figures replace those in the file
    python tests/benchmarks/bench_addon.py --short                    each part in little, printed only

object_reprojection_px, object_reprojection_of
                       how far a thing placed at a known spot of the scene is from that spot in the generated pictures:
                       markers on surfaces of the demo's courtyard, made into the start frame, are found again in every
                       generated frame (engine `cache`) that does not hide them, to a part of a pixel, and compared with
                       where Blender's own camera sees their places. The 95th percentile of all markers in all frames;
                       beside it the median and the largest, how many were looked for and how many were not found.
object_reprojection_depth_px
                       the same by geometry alone: what the generated depth has at a marker's pixel, seen from the
                       start camera again, against where the marker is there.
import_1m_splats_s, import_1m_splats_cpu_s, import_1m_splats_sh3_s, import_1m_splats_sh3_cpu_s
                       a PLY of a million splats, by the import command: by the clock (median of five), and of the
                       processor alone, which other work on the machine does not change; without view-dependent colour,
                       as the engines here write it, and with degree 3. import_1m_splats_load is how busy the machine
                       was before.
proxy_mesh             the mesh that is fused from the demo shot's depth against the courtyard itself: where a ray of
                       the start camera hits the mesh, the distance to the nearest true surface; and how much of what
                       the start frame shows it covers.
blender_versions       what passed of the add-on's own tests, but for those that compare with the engine, in the
                       Blender of the Python that runs this: one row for each, kept beside the others. Run it once
                       under each; it needs pytest, hypothesis, Pillow, filelock and what the client needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from worldwarp_core.evaluation.provenance import provenance  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "addon.json"
NEEDS_ENGINE = ("local_server", "splat_nodes", "splat_viewport")
"""Tests that compare with the engine, which not every Blender's Python has beside it."""
MARKER_WINDOW_PX = 4
MIN_CONTRAST = 25.0
"""Of the darker to the brighter fields of a marker, in 8-bit values: below, it is not found."""
MARGIN_PX = 9.0


def in_blender(task: str, *arguments: object) -> dict[str, Any]:
    """What a task of `in_blender.py` finds, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "tests.benchmarks.in_blender", task, str(report), *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not report.is_file():
            raise RuntimeError(f"{task} in Blender failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return json.loads(report.read_text())


# ---------------------------------------------------------------- splats


def run_import_splats(short: bool) -> dict[str, Any]:
    count, repeats = (20_000, 2) if short else (1_000_000, 5)
    # Other programs' processes that wanted a core, a minute's mean: above the cores, the clock says too much.
    found = {"import_1m_splats_load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, coefficients in (("", 0), ("_sh3", 15)):
            took = in_blender("import_splats", folder, count, coefficients, repeats)
            found[f"import_1m_splats{name}_s"] = round(took["s"], 3)
            found[f"import_1m_splats{name}_cpu_s"] = round(took["cpu_s"], 3)
    return found


# ---------------------------------------------------------------- reprojection


def run_reprojection(short: bool) -> dict[str, Any]:
    from engine_bridge.private_server import private_server

    size = (256, 144, 9) if short else (384, 216, 93)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shot"
        with private_server(Path(folder) / "server", ["--engine", "cache"]) as address:
            shot = in_blender("marked_shot", out, address, *size)
        markers = [{int(frame): np.array(pixel) for frame, pixel in row.items()} for row in shot["markers"]]
        return measure_reprojection(out, markers)


def measure_reprojection(out: Path, markers: list[dict[int, np.ndarray]]) -> dict[str, Any]:
    """The figures of a shot in `out`.

    Args:
        markers: for each marker its exact pixel in each frame where nothing hides it.
    """
    import cv2

    from worldwarp_core.cameras.files import read_cameras
    from worldwarp_core.pictures.exr import read_depth_exr

    path = read_cameras(out / "cameras.json")
    first = int(path.frames[0])
    pictures, depths, looked_for, lost = [], [], 0, 0
    for row, number in enumerate(path.frames.tolist()):
        picture = cv2.imread(str(out / f"frames/frame_{number:04d}.png"), cv2.IMREAD_GRAYSCALE)
        depth = read_depth_exr(out / f"depth/frame_{number:04d}.exr")
        height, width = picture.shape
        for marker in markers:
            # What the start frame did not show, the cache cannot know.
            if first not in marker or number not in marker:
                continue
            x, y = marker[number]
            if not (MARGIN_PX <= x < width - MARGIN_PX and MARGIN_PX <= y < height - MARGIN_PX):
                continue
            looked_for += 1
            found = find_marker(picture, x, y)
            if found is None:
                lost += 1
            else:
                pictures.append(float(np.hypot(found[0] - x, found[1] - y)))
            z = float(depth[int(y), int(x)])
            if z < 1e9:
                back = seen_from(path, 0, lifted(path, row, x, y, z))
                depths.append(float(np.hypot(*(back - marker[first]))))
    return {
        "object_reprojection_px": round(float(np.percentile(pictures, 95)), 3),
        "object_reprojection_of": {
            "median_px": round(float(np.median(pictures)), 3),
            "largest_px": round(max(pictures), 3),
            "share_under_1_px": round(float((np.array(pictures) < 1).mean()), 4),
            "markers": len(markers),
            "looked_for": looked_for,
            "not_found": lost,
            "frames": len(path.frames),
            "size": f"{path.width}x{path.height}",
        },
        "object_reprojection_depth_px": {
            "median_px": round(float(np.median(depths)), 3),
            "p95_px": round(float(np.percentile(depths, 95)), 3),
            "largest_px": round(max(depths), 3),
        },
    }


def find_marker(picture: np.ndarray, x: float, y: float) -> tuple[float, float] | None:
    """The middle of the marker near (x, y) in pixels from the top left corner, or None where there is none.

    Args:
        picture: (H, W) uint8.
    """
    import cv2

    # OpenCV counts from the middle of the first pixel.
    guess = np.array([[[x - 0.5, y - 0.5]]], np.float32)
    size = (MARKER_WINDOW_PX, MARKER_WINDOW_PX)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 60, 1e-3)
    ((u, v),) = cv2.cornerSubPix(picture, guess, size, (-1, -1), stop)[0]
    at = [(u + dx, v + dy) for dx, dy in ((-2.5, -2.5), (2.5, -2.5), (-2.5, 2.5), (2.5, 2.5))]
    fields = cv2.remap(picture, np.array([at], np.float32), None, cv2.INTER_LINEAR).reshape(4).astype(float)
    # Black above left and below right, white at the other two.
    contrast = min(fields[1], fields[2]) - max(fields[0], fields[3])
    return (float(u) + 0.5, float(v) + 0.5) if contrast >= MIN_CONTRAST else None


def lifted(path: Any, row: int, x: float, y: float, z: float) -> np.ndarray:
    """(3,) place in the world of a pixel at planar depth z."""
    ray = np.linalg.inv(path.K[row]) @ (x, y, 1.0)
    return path.c2w[row, :3, :3] @ (ray * z) + path.c2w[row, :3, 3]


def seen_from(path: Any, row: int, place: np.ndarray) -> np.ndarray:
    """(2,) pixel of a place in the world."""
    at = path.K[row] @ (path.c2w[row, :3, :3].T @ (place - path.c2w[row, :3, 3]))
    return at[:2] / at[2]


# ---------------------------------------------------------------- proxy mesh


def run_proxy_mesh(short: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        command = [sys.executable, "-m", "engine_bridge.cli", "demo", "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return {"proxy_mesh": in_blender("proxy_mesh", out)}


# ---------------------------------------------------------------- versions


def run_blender_versions(short: bool) -> dict[str, Any]:
    version = subprocess.run(
        [sys.executable, "-c", "import bpy, os; print(bpy.app.version_string, flush=True); os._exit(0)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()[0]  # fmt: skip
    files = sorted((ROOT / "tests" / "blender_addon").glob("test_*.py"))
    names = [file.stem.removeprefix("test_") for file in files]
    names = [name for name in names if name not in NEEDS_ENGINE][: 2 if short else None]
    row: dict[str, Any] = {"python": platform.python_version(), "passed": {}, "failed": [], "skipped": 0}
    began_s = time.monotonic()
    for name in names:
        file = f"tests/blender_addon/test_{name}.py"
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", file]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = re.findall(r"(\d+) (passed|skipped|failed|errors?)\b", done.stdout)
        counts = {word: int(number) for number, word in said}
        row["passed"][name] = counts.get("passed", 0)
        row["skipped"] += counts.get("skipped", 0)
        told = (line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR ")))
        row["failed"] += told if counts else [f"{file} did not run: {done.stdout[-200:]}{done.stderr[-200:]}"]
        print(f"  {version} {name}: {counts}", flush=True)
    row["seconds"] = round(time.monotonic() - began_s)
    earlier = json.loads(RESULTS.read_text()).get("blender_versions", {}) if RESULTS.exists() else {}
    return {"blender_versions": dict(sorted({**earlier, version: row}.items()))}


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "reprojection": run_reprojection,
    "import_splats": run_import_splats,
    "proxy_mesh": run_proxy_mesh,
    "blender_versions": run_blender_versions,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--short", action="store_true", help="each part in little, printed only")
    chosen = parser.parse_args()
    results: dict[str, Any] = {}
    for name in chosen.only or PARTS:
        began_s = time.monotonic()
        print(f"{name} ...", flush=True)
        results |= PARTS[name](chosen.short)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)
    print(json.dumps(results, indent=2))
    if not chosen.short:
        earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**earlier, **results, "provenance": provenance()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
