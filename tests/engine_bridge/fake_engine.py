"""An engine that needs no torch and does what its prompt says, for tests of everything around an engine.

Prompts, each `word` or `word=value`, separated by spaces: `slow=SECONDS` a frame, `crash=N` (the process dies after
frame N), `fail=N` (an unexpected exception after frame N), `refuse` (an error of the user's), `deep` (a summary nested
too deeply), `progress=N` (progress events before every frame), `wait` (no frames until cancelled).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import CacheUpdate, Event, Finished, Frame, GenerateSpec, Notice, Progress
from worldwarp_core.splat_files.cloud import SplatCloud


def load(name: str = "cache", **options: Any) -> FakeEngine:
    if options.get("broken"):
        raise ImportError("no module named 'something_heavy'")
    return FakeEngine()


def pixel_of(index: int) -> int:
    """The value of every pixel of frame `index`: tells frames apart."""
    return (index * 7 + 3) % 256


class FakeEngine:
    def describe(self) -> dict[str, Any]:
        return {"engine": "fake", "rasterizer": "none", "scale": np.float32(1.5)}

    def generate(self, spec: GenerateSpec) -> Iterator[Event]:
        does = dict(word.partition("=")[::2] for word in spec.prompt.split())
        if "refuse" in does:
            raise WorldWarpError("no_depth", "The start frame has no depth. Give one with --depth.")
        count = len(spec.cameras)
        yield Notice("fake", "This is the fake engine.")
        yield Progress("geometry", 1, 1, 0, 1, 0.0, None)
        while "wait" in does:
            yield Progress("fill", 1, 2, 0, 1, 0.5, 1.0)
            time.sleep(0.01)
        for index, number in enumerate(spec.cameras.frames):
            for step in range(int(does.get("progress", 1))):
                yield Progress("fill", step, 100, 0, 1, index / count, float(count - index))
            time.sleep(float(does.get("slow", 0)))
            size = (spec.cameras.height, spec.cameras.width)
            value = pixel_of(index)
            yield Frame(
                index=index,
                number=int(number),
                chunk=index // spec.chunk,
                rgb=np.full((*size, 3), value, np.uint8),
                depth=np.full(size, value + 0.5, np.float32),
                validity=np.full(size, 255 if index % 2 else 0, np.uint8),
            )
            if does.get("crash") == str(index):
                os._exit(9)
            if does.get("fail") == str(index):
                raise RuntimeError("a secret of the inside")
            if (index + 1) % spec.chunk == 0 or index + 1 == count:
                yield CacheUpdate(chunk=index // spec.chunk, splats=cloud_of(100 + index))
        if "deep" in does:
            yield Finished({"deep": nested(20)})
        yield Finished({"engine": "fake", "seconds": {"fill": np.float64(1.0)}, "versions": {"fake": "1"}})


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
