"""An engine that needs no torch and does what its prompt says, for tests of everything around an engine.

Prompts, each `word` or `word=value`, separated by spaces: `slow=SECONDS` a frame, `crash=N` (the process dies after
frame N), `fail=N` (an unexpected exception after frame N), `refuse` (an error of the user's), `deep` (a summary nested
too deeply), `progress=N` (progress events before every frame), `wait` (no frames until cancelled), `noise` (frames of
noise, each of which depends on all before it), `where` (a notice of the GPUs that it was given), `forgetful` (an engine
that saves no state), `full=N` (no space on the disk after frame N, the first time), `splats=N` (worlds of N splats with
colours that depend on the direction, in place of a row of about a hundred), `hold=N` (each attempt waits when it has
made N frames, until it is cancelled or killed), `go=FILE` (or until there is this file).

What a test does to a job that runs comes in time by `hold`, never by how long the job takes.

A picture to draw takes `slow`, `hold` (after that step), `go`, `crash`, `fail` (both at that step) and `refuse` (as an
engine that cannot draw); every pixel of it is the seed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from worldwarp_core.checkpoint import Checkpoint
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.frame_memory import frame_arrays
from worldwarp_core.spec import (
    CacheUpdate,
    Event,
    Finished,
    FirstFrameSettings,
    Frame,
    GenerateSpec,
    Notice,
    OnDrawStep,
    Progress,
)
from worldwarp_core.splat_files.cloud import SplatCloud


def load(name: str = "cache", **options: Any) -> FakeEngine:
    if options.get("broken"):
        raise ImportError("no module named 'something_heavy'")
    return FakeEngine(cuda=bool(options.get("cuda")))


def pixel_of(index: int) -> int:
    """The value of every pixel of frame `index`: tells frames apart."""
    return (index * 7 + 3) % 256


class FakeEngine:
    def __init__(self, cuda: bool = False) -> None:
        self.cuda = cuda

    def describe(self) -> dict[str, Any]:
        kind = "cuda" if self.cuda else "cpu"
        return {"engine": "fake", "rasterizer": "none", "device_kind": kind, "scale": np.float32(1.5), "draws": True}

    def draw(self, settings: FirstFrameSettings, on_step: OnDrawStep) -> np.ndarray:
        does = dict(word.partition("=")[::2] for word in settings.prompt.split())
        if "refuse" in does:
            raise WorldWarpError("cannot_draw", "The engine 'fake' has no model that draws from words.")
        on_step("text", 0, 1)
        for step in range(settings.steps):
            time.sleep(float(does.get("slow", 0)))
            if does.get("crash") == str(step):
                os._exit(9)
            if does.get("fail") == str(step):
                raise RuntimeError("a secret of the inside")
            on_step("steps", step + 1, settings.steps)
            while _waits(does, step + 1):
                on_step("steps", step + 1, settings.steps)
        on_step("decode", 0, 1)
        return np.full((settings.height, settings.width, 3), settings.seed % 256, np.uint8)

    def generate(self, spec: GenerateSpec, resume: Checkpoint | None = None) -> Iterator[Event]:
        does = dict(word.partition("=")[::2] for word in spec.prompt.split())
        if "refuse" in does:
            raise WorldWarpError("no_depth", "The start frame has no depth. Give one with --depth.")
        count = len(spec.cameras)
        # What the loop carries from chunk to chunk: each frame's noise depends on every one before it.
        rng = np.random.default_rng(spec.seed)
        done, fitted = 0, False
        if resume is not None:
            rng.bit_generator.state = resume.facts["rng"]
            done, fitted = resume.frames, resume.stage == "fitted"
        yield Notice("fake", "This is the fake engine.")
        if "where" in does:
            yield Notice("where", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        yield Progress("geometry", 1, 1, 0, 1, 0.0, None)
        while "wait" in does:
            yield Progress("fill", 1, 2, 0, 1, 0.5, 1.0)
            time.sleep(0.01)
        if "forgetful" not in does and resume is None:
            yield Checkpoint(0, "fitted", 0, facts={"rng": rng.bit_generator.state})
        if resume is not None and not fitted:
            yield from self._fit(done, spec, rng, does)
        for index, number in list(enumerate(spec.cameras.frames))[done:]:
            while _waits(does, index - done):
                yield Progress("fill", 0, 100, 0, 1, index / count, None)
            for step in range(int(does.get("progress", 1))):
                yield Progress("fill", step, 100, 0, 1, index / count, float(count - index))
            time.sleep(float(does.get("slow", 0)))
            size = (spec.cameras.height, spec.cameras.width)
            value = pixel_of(index)
            rgb, depth, validity = frame_arrays(*size)
            rgb[...] = rng.integers(0, 256, (*size, 3), np.uint8) if "noise" in does else value
            depth[...] = value + 0.5
            validity[...] = 255 if index % 2 else 0
            yield Frame(
                index=index, number=int(number), chunk=index // spec.chunk, rgb=rgb, depth=depth, validity=validity
            )
            if does.get("crash") == str(index):
                os._exit(9)
            if does.get("fail") == str(index):
                raise RuntimeError("a secret of the inside")
            if does.get("full") == str(index) and resume is None:
                raise WorldWarpError("disk_full", "No space is left on the disk.")
            if (index + 1) % spec.chunk == 0 or index + 1 == count:
                state = rng.bit_generator.state
                if "forgetful" not in does:
                    yield Checkpoint(index // spec.chunk, "made", index + 1, facts={"rng": state})
                yield from self._fit(index + 1, spec, rng, does)
        if "deep" in does:
            yield Finished({"deep": nested(20)})
        took = {"frames": count, "delivered_size": [spec.cameras.width, spec.cameras.height], "memory_gib": 1.5}
        yield Finished(
            {
                "engine": "fake",
                "seconds": {"fill": np.float64(1.0)},
                "versions": {"fake": "1"},
                "ended_s": time.time(),
                **took,
            }
        )

    def _fit(self, done: int, spec: GenerateSpec, rng: np.random.Generator, does: dict[str, str]) -> Iterator[Event]:
        """The world after `done` frames."""
        chunk = (done - 1) // spec.chunk
        rng.integers(0, 256)
        splats = large_cloud(int(does["splats"])) if "splats" in does else cloud_of(99 + done)
        yield CacheUpdate(chunk=chunk, splats=splats)
        if "forgetful" not in does:
            arrays = {"world": np.arange(done, dtype=np.float32)}
            yield Checkpoint(chunk, "fitted", done, arrays, {"rng": rng.bit_generator.state})


def _waits(does: dict[str, str], made: int) -> bool:
    """Whether to go on waiting where so much is made; waits for a moment then."""
    held = does.get("hold") == str(made) and not ("go" in does and os.path.exists(does["go"]))
    if held:
        time.sleep(0.01)
    return held


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    return [nested(depth - 1)] if depth else 1


def cloud_of(count: int) -> SplatCloud:
    """`count` Gaussians in a row."""
    return SplatCloud(
        means=np.arange(count * 3, dtype=np.float32).reshape(count, 3),
        quats=np.tile(np.float32([1, 0, 0, 0]), (count, 1)),
        scales=np.zeros((count, 3), np.float32),
        opacities=np.zeros(count, np.float32),
        sh0=np.zeros((count, 1, 3), np.float32),
        shN=np.zeros((count, 0, 3), np.float32),
    )


def large_cloud(count: int) -> SplatCloud:
    """`count` Gaussians in a ball in front of the origin, with harmonics of the third degree."""
    rng = np.random.default_rng(0)
    return SplatCloud(
        means=rng.normal(scale=2.0, size=(count, 3)).astype(np.float32),
        quats=rng.normal(size=(count, 4)).astype(np.float32),
        scales=np.full((count, 3), -4, np.float32),
        opacities=np.zeros(count, np.float32),
        sh0=rng.normal(size=(count, 1, 3)).astype(np.float32),
        shN=rng.normal(scale=0.1, size=(count, 15, 3)).astype(np.float32),
    )
