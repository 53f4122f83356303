"""What a shot gains from the scene's own depth along its path, against exact depth: where the world ends up.

    python tests/benchmarks/bench_blockout.py               into results/blockout.json and blockout_<scene>.jpg
    python tests/benchmarks/bench_blockout.py --only pillar --every 1 4 8

Two scenes, each made by the engine `cache` once without (`free`) and once with the path's depth of every fourth frame,
as the add-on measures it:

courtyard   the demo's flight at 256x144, 93 frames, Blender's own renders and depth.
pillar      a room at 192x128, 49 frames: a pillar that the start camera does not see comes before the wall that it
            does see.

depth_error_new, depth_error_seen
            mean relative error of the world's depth, rendered from its splats, at later frames: in the parts that the
            start frame did not see, and in those it did. Nothing there, or more than 100% off, counts as 1.
valid_elsewhere_percent
            of the pixels marked valid at later frames, those whose depth is over 10% off: they show what is not there.
psnr_valid_db, psnr_whole_db
            the delivered later frames against the truth, over the pixels marked valid and over all. What an engine
            without a model puts into the parts that are new has no truth to match.
splats_on_surfaces_percent
            of all splats but the sky's, those within 2% of a surface, by the exact depth of any frame that has them in
            its picture.
places_percent, box_percent
            all splats but the sky's against the points of five depth maps along the path: the worst difference of
            centroid and 1-99 percentile box of filled places, and of the plain boxes, in percent of the diagonal.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.ground_truth import ground_truth, read_depth, read_rgb
from tests.support import room
from worldwarp_core.api import load_engine, render_splats
from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.evaluation.provenance import provenance
from worldwarp_core.evaluation.visibility import SKY, seen_from, unproject
from worldwarp_core.spec import CacheUpdate, Frame, GenerateSpec, PathDepth
from worldwarp_core.splat_files.cloud import SplatCloud

RESULTS = Path(__file__).resolve().parent / "results"
EVERY = 4
SHOWN = 4
"""Later frames in the picture."""


@dataclass(frozen=True)
class Scene:
    """A flight whose truth is known."""

    cameras: CameraPath
    depth: np.ndarray  # (T, H, W)
    rgb: dict[int, np.ndarray]  # by position in the path, the first and some later ones

    @property
    def later(self) -> list[int]:
        return sorted(self.rgb)[1:]

    def path_depth(self, every: int) -> PathDepth:
        given = sorted({*range(0, len(self.cameras), every), len(self.cameras) - 1})
        return PathDepth.of([int(self.cameras.frames[i]) for i in given], [self.depth[i] for i in given])


@dataclass(frozen=True)
class Outcome:
    """What the engine made of it."""

    frames: list[Frame]
    splats: SplatCloud
    seconds: float


def courtyard() -> Scene:
    every = range(1, 94)
    folder = ground_truth(every[::8], 256, 144, len(every), depth_frames=every)
    rgb = {frame - 1: read_rgb(folder, frame) for frame in every[::8]}
    return Scene(read_cameras(folder / "cameras.json"), np.stack([read_depth(folder, f) for f in every]), rgb)


def pillar() -> Scene:
    steps = np.linspace(0, 1, 49)
    cameras = room.path([room.look((-2.5 + 3.5 * s, -s, 1.5), 0.2 * s) for s in steps], 192, 128)
    seen = [room.render(cameras, index) for index in range(len(cameras))]
    return Scene(cameras, np.stack([depth for _, depth in seen]), {i: seen[i][0] for i in range(0, 49, 6)})


SCENES = {"courtyard": courtyard, "pillar": pillar}


def make(scene: Scene, path_depth: PathDepth | None) -> Outcome:
    began = time.perf_counter()
    spec = GenerateSpec(scene.cameras, scene.rgb[0], scene.depth[0], path_depth=path_depth)
    frames: list[Frame] = []
    splats: SplatCloud | None = None
    for event in load_engine("cache", device="cpu").generate(spec):
        if isinstance(event, Frame):
            frames.append(event)
        elif isinstance(event, CacheUpdate):
            splats = event.splats
    assert splats is not None
    return Outcome(frames, splats, time.perf_counter() - began)


def judge(scene: Scene, made: Outcome) -> dict[str, float]:
    cameras, errors_new, errors_seen, elsewhere, valid_db, whole_db = scene.cameras, [], [], [], [], []
    for index in scene.later:
        truth, picture, frame = scene.depth[index], scene.rgb[index] / 255, made.frames[index]
        solid = truth < SKY
        seen = seen_from(scene.depth[0], cameras.K[0], cameras.c2w[0], truth, cameras.K[index], cameras.c2w[index])
        error = world_error(scene, made, index)
        errors_new.append(error[solid & ~seen].mean())
        errors_seen.append(error[solid & seen].mean())
        valid = frame.validity == 255
        elsewhere.append((np.abs(frame.depth / truth - 1) > 0.1)[valid & solid].mean())
        valid_db.append(psnr(frame.rgb[valid] / 255, picture[valid]))
        whole_db.append(psnr(frame.rgb / 255, picture))
    centres = made.splats.means[~made.splats.sky].astype(np.float64)
    along = np.linspace(0, len(cameras) - 1, 5).round().astype(int)
    points = np.concatenate([unproject(scene.depth[i], cameras.K[i], cameras.c2w[i]) for i in along])
    places, box = alignment(centres, points)
    figures = {
        "depth_error_new": np.mean(errors_new),
        "depth_error_seen": np.mean(errors_seen),
        "valid_elsewhere_percent": 100 * np.mean(elsewhere),
        "psnr_valid_db": np.mean(valid_db),
        "psnr_whole_db": np.mean(whole_db),
        "splats_on_surfaces_percent": 100 * on_surfaces(scene, centres).mean(),
        "places_percent": places,
        "box_percent": box,
        "splats": len(made.splats),
        "seconds": made.seconds,
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def world_error(scene: Scene, made: Outcome, index: int) -> np.ndarray:
    """(H, W) relative error of the world's depth at that position of the path, at most 1."""
    _, alpha, depth = render_splats(made.splats, scene.cameras[index])
    there = np.where(alpha[0] > 0.5, depth[0], np.inf)
    return np.minimum(np.abs(there / scene.depth[index] - 1), 1)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((image - reference) ** 2)))


def on_surfaces(scene: Scene, centres: np.ndarray) -> np.ndarray:
    """(N,) bool: within 2% of the exact depth of a frame that has the centre in its picture."""
    near = np.zeros(len(centres), bool)
    for index in range(len(scene.cameras)):
        camera = (centres - scene.cameras.c2w[index, :3, 3]) @ scene.cameras.c2w[index, :3, :3]
        z = camera[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            uv = (camera @ scene.cameras.K[index].T)[:, :2] / z[:, None]
        inside = (z > 1e-6) & (uv >= 0).all(1) & (uv < (scene.cameras.width, scene.cameras.height)).all(1)
        u, v = uv[inside].astype(int).T
        near[inside] |= np.abs(z[inside] / scene.depth[index, v, u] - 1) < 0.02
    return near


def alignment(splats: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Worst difference of filled places' centroid and 1-99 percentile box, and of plain boxes, in percent."""
    diagonal = np.linalg.norm(np.ptp(points, axis=0))
    a, b = (filled_places(p, 0.02 * diagonal) for p in (splats, points))
    places = max(
        np.linalg.norm(a.mean(0) - b.mean(0)), np.abs(np.percentile(a, (1, 99), 0) - np.percentile(b, (1, 99), 0)).max()
    )
    box = max(np.abs(splats.min(0) - points.min(0)).max(), np.abs(splats.max(0) - points.max(0)).max())
    return float(100 * places / diagonal), float(100 * box / diagonal)


def filled_places(points: np.ndarray, size: float) -> np.ndarray:
    """(M, 3) mean of the points in each cell of a grid that holds any."""
    _, cell = np.unique(np.floor(points / size), axis=0, return_inverse=True)
    count = np.bincount(cell.ravel())
    return np.stack([np.bincount(cell.ravel(), points[:, axis]) / count for axis in range(3)], -1)


def picture(scene: Scene, outcomes: list[Outcome]) -> np.ndarray:
    """Later frames side by side: the truth; then of each outcome the frames and, white is 20%, the world's errors."""
    shown = [scene.later[i] for i in np.linspace(0, len(scene.later) - 1, SHOWN).round().astype(int)]
    rows = [np.concatenate([scene.rgb[i] for i in shown], 1)]
    for made in outcomes:
        rows.append(np.concatenate([made.frames[i].rgb for i in shown], 1))
        errors = np.concatenate([np.where(scene.depth[i] < SKY, world_error(scene, made, i), 0) for i in shown], 1)
        rows.append(np.repeat(np.rint(255 * np.minimum(errors / 0.2, 1))[..., None], 3, 2).astype(np.uint8))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what the path's depth is worth.")
    parser.add_argument("--only", nargs="+", choices=SCENES, help="measure these scenes; the other results stay")
    parser.add_argument("--every", type=int, nargs="+", default=[EVERY], help="give the depth of every so many frames")
    options = parser.parse_args()
    for name in options.only or SCENES:
        scene = SCENES[name]()
        given = {"free": None} | {f"every_{every}": scene.path_depth(every) for every in options.every}
        figures: dict[str, Any] = {}
        outcomes = []
        for label, path_depth in given.items():
            outcomes.append(make(scene, path_depth))
            figures[label] = judge(scene, outcomes[-1])
            print(name, label, json.dumps(figures[label], indent=2), flush=True)
        Image.fromarray(picture(scene, outcomes)).save(RESULTS / f"blockout_{name}.jpg", quality=88)
        file = RESULTS / "blockout.json"
        others = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**others, name: {**figures, "provenance": provenance()}}, indent=2) + "\n")


if __name__ == "__main__":
    main()
