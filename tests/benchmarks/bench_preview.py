"""How long a shot of the engine `preview` takes, and how fast a cancel is: `python -m tests.benchmarks.bench_preview`.

Networks of the real size with random weights, which do the same work as trained ones and whose pictures show nothing.
A chunk of 49 frames at 256x144 of a room, by a server with a worker process, as a user has it:

chunk_s                from the start frame to the last frame and the world, with the engine loaded; seconds by stage
                       beside it. The median of --repeats shots.
cancel_s               from a cancel at a random moment of a shot until the server's word that it is cancelled has come:
                       the longest of --cancels, and their median beside it. step_s: a denoising step's median.

Writes results/preview_<hardware>.json, and chunk_s into results/preview_quality.json beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from engine_bridge.client import Client
from engine_bridge.messages import Progress, StateEvent
from engine_bridge.private_server import private_server
from tests.support import room
from worldwarp_core.evaluation.provenance import hardware_name, provenance
from worldwarp_core.evaluation.quality import timed
from worldwarp_core.preview.autoencoder import PreviewAutoencoder
from worldwarp_core.preview.depth import DepthNetwork
from worldwarp_core.preview.transformer import CONFIG, make_transformer
from worldwarp_core.preview.weights import save_network
from worldwarp_core.spec import GenerateSpec

RESULTS = Path(__file__).parent / "results"
QUALITY = RESULTS / "preview_quality.json"
FRAMES, WIDTH, HEIGHT = 49, 256, 144


def bench_preview(
    device: str = "cpu", repeats: int = 3, cancels: int = 9, frames: int = FRAMES, size: Sequence[int] = (WIDTH, HEIGHT)
) -> dict[str, Any]:
    """The figures of this machine; see above."""
    cameras = room.truck(frames, width=size[0], height=size[1])
    rgb, depth = room.render(cameras)
    spec = GenerateSpec(cameras, rgb, depth, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        weights = write_random_weights(Path(folder) / "weights")
        options = ["--engine", "preview", "--weights", str(weights), "--device", device]
        with private_server(Path(folder) / "server", options) as address, Client(address) as client:
            follow(client, client.submit(spec))  # the engine is loaded, and what is compiled is compiled
            shots = [follow(client, client.submit(spec)) for _ in range(repeats)]
            moments = random.Random(0)
            most_s = 0.8 * min(shot["after_first_step_s"] for shot in shots)
            waits = cancel_often(client, spec, cancels, lambda: moments.uniform(0, most_s))
    steps = [step for shot in shots for step in shot["steps"]]
    return {
        "frames": frames,
        "size": list(size),
        "chunk_s": round(statistics.median(shot["seconds"] for shot in shots), 2),
        "chunk_s_all": [round(shot["seconds"], 2) for shot in shots],
        "seconds": shots[-1]["summary"].get("seconds"),
        "step_s": round(statistics.median(steps), 3),
        "cancel_s": round(max(waits), 3),
        "cancel_median_s": round(statistics.median(waits), 3),
        "cancels": cancels,
    }


def write_random_weights(folder: Path) -> Path:
    """Networks as they are before training, in the files that the engine reads."""
    folder.mkdir()
    torch.manual_seed(0)
    autoencoder = PreviewAutoencoder()
    said = {"steps": 0, "clips": 0}
    save_network(folder, "autoencoder", autoencoder.state_dict(), asdict(autoencoder.config), said)
    save_network(folder, "transformer", make_transformer().state_dict(), CONFIG, said)
    save_network(folder, "depth", DepthNetwork().state_dict(), {}, said)
    return folder


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """A shot to its end: its seconds, those of each denoising step, and what the engine said of it."""
    began = first = time.perf_counter()
    steps, last = [], None
    summary: dict[str, Any] = {}
    for event in client.events(job_id):
        if isinstance(event, Progress):
            now = time.perf_counter()
            if event.stage == "denoise" and last is not None:
                first = first if steps else now
                steps.append(now - last)
            last = now if event.stage == "denoise" else None
        elif isinstance(event, StateEvent) and event.state in ("done", "failed"):
            assert event.state == "done", event.message
            summary = dict(event.summary)
    end = time.perf_counter()
    return {"seconds": end - began, "after_first_step_s": end - first, "steps": steps, "summary": summary}


def cancel_often(client: Client, spec: GenerateSpec, cancels: int, moment: Callable[[], float]) -> list[float]:
    """So many cancels' seconds. A shot that was done before its own came is no cancel: another takes its place."""
    waits: list[float] = []
    for _ in range(3 * cancels):
        waited = cancel(client, client.submit(spec), moment())
        waits += [] if waited is None else [waited]
        if len(waits) == cancels:
            return waits
    raise RuntimeError(f"Only {len(waits)} of {3 * cancels} shots went on for as long as those that were timed.")


def cancel(client: Client, job_id: str, after_s: float) -> float | None:
    """Seconds from a cancel, so long after the first denoising step, until the word that it is cancelled.

    None where the shot was done before: an H100's takes a second, and no two take the same.
    """
    due, clicked = math.inf, 0.0
    while True:
        event = client.wait(0.01)
        if isinstance(event, Progress) and event.stage == "denoise" and due == math.inf:
            due = time.perf_counter() + after_s
        if time.perf_counter() >= due and not clicked:
            client.cancel(job_id)
            clicked = time.perf_counter()
        if isinstance(event, StateEvent) and event.state == "cancelled":
            return time.perf_counter() - clicked
        if isinstance(event, StateEvent) and event.state == "done":
            return None
        if isinstance(event, StateEvent) and event.state == "failed":
            raise RuntimeError(f"The shot failed before its cancel came. {event.message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cancels", type=int, default=9)
    options = parser.parse_args()
    made = provenance()
    found = {**made, **bench_preview(options.device, options.repeats, options.cancels)}
    gpu = made["gpu"] if options.device != "cpu" else None
    path = RESULTS / f"preview_{hardware_name(gpu, made['cores'])}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    document = json.loads(QUALITY.read_text())
    QUALITY.write_text(json.dumps(timed(document, {**made, "gpu": gpu}, found["chunk_s"]), indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
