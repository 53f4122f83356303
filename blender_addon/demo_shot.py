# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's part inside Blender: builds the courtyard, makes the shot through the add-on, saves the .blend.

    python -m blender_addon.demo_shot --out DIR --address tcp://127.0.0.1:PORT --report FILE

Whoever started this reads `--report` while it grows: one JSON object a line, {"kind": "step" | "progress" | "frame" |
"notice" | "done" | "error", ...}. It is a file of its own because Cycles prints on the C level, over anything that
standard output could carry.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bpy

from engine_bridge.messages import CacheEvent, FrameEvent, NoticeEvent, Progress
from worldwarp_core.errors import WorldWarpError

from . import register, unregister
from .demo_scene import build_demo_scene
from .shot import ShotSettings, Step, generate_shot

BLEND_NAME = "scene.blend"

Report = Callable[..., None]


def make_demo_shot(
    out: Path, address: str, width: int, height: int, frames: int, cache_steps: int | None, report: Report
) -> None:
    """Leaves the shot and the .blend with everything imported in `out`, which exists.

    Raises:
        WorldWarpError: what stood in the way; what was delivered before is in `out`.
    """
    report("step", what="building the courtyard")
    bpy.ops.wm.read_factory_settings(use_empty=True)
    # The second save replaces the first: no scene.blend1 beside it.
    bpy.context.preferences.filepaths.save_version = 0
    register()
    try:
        scene = bpy.context.scene
        build_demo_scene(scene, width, height, frames)
        # Saved before anything is brought in, so that the .blend finds its files by relative paths.
        bpy.ops.wm.save_as_mainfile(filepath=str(out / BLEND_NAME), compress=True)
        settings = ShotSettings(cache_steps=cache_steps, samples=scene.cycles.samples)
        outcome = generate_shot(bpy.context, out, address, settings, lambda event: report_event(event, report))
        report("step", what="saving the .blend")
        bpy.ops.wm.save_mainfile(compress=True)
    finally:
        unregister()
    report("done", frames=outcome.frames, brought_in=outcome.brought_in)


def report_event(event: object, report: Report) -> None:
    """Passes on the small part of an event that a progress bar needs."""
    match event:
        case Step():
            report("step", what=event.what)
        case Progress():
            report("progress", stage=event.stage, fraction=event.fraction, eta_s=event.eta_s)
        case FrameEvent():
            report("frame", number=event.number)
        case CacheEvent():
            report("splats", count=event.splats)
        case NoticeEvent():
            report("notice", message=event.message)


def main(arguments: Sequence[str]) -> int:
    """Makes the shot; 0 when it is whole, 1 with an `error` in the report when not."""
    parser = argparse.ArgumentParser(prog="demo_shot", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--frames", type=int, default=93)
    parser.add_argument("--cache-steps", type=int)
    options = parser.parse_args(arguments)
    with options.report.open("a", encoding="utf-8") as lines:

        def report(kind: str, **values: Any) -> None:
            lines.write(json.dumps({"kind": kind, **values}) + "\n")
            lines.flush()

        size = (options.width, options.height, options.frames)
        try:
            make_demo_shot(options.out.resolve(), options.address, *size, options.cache_steps, report)
        except WorldWarpError as error:
            report("error", code=error.code, message=error.message)
            return 1
        except Exception as error:
            # Whoever started this must hear of a fault of ours too; the traceback goes to the log.
            traceback.print_exc()
            report("error", code="internal", message=f"{type(error).__name__}: {error}")
            return 1
    return 0


if __name__ == "__main__":
    # Blender's own executable passes everything on; what is ours follows the two dashes.
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else sys.argv[1:]))
