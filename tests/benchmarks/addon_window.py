"""How smooth a real Blender window stays while a shot streams in, and how fast a cancel is. Runs inside Blender.

    python -m tests.support.serve_fake /tmp/jobs tcp://127.0.0.1:5577          in a checkout, with the engine's venv
    blender --factory-startup --python tests/benchmarks/addon_window.py -- \
        --address tcp://127.0.0.1:5577 --zip dist/worldwarp-0.1.0-linux_x64.zip \
        --out tests/benchmarks/results/addon.json

Needs a window, but nobody at it; Blender ends when it is done. `--package` takes the add-on that is enabled already, in
place of a zip. The shot is of a fake engine: 93 frames of noise at 1280x720 (nothing compresses worse), then a world of
200,000 splats with harmonics of the third degree. A 3D viewport looks through the camera, an Image Editor is open.

addon_worst_ms        the longest that Blender's main thread was in the add-on's own Python at a stretch while frames
                      came in, addon_worst_cpu_ms the same as the thread's own time, without what other programs took
                      of the processor; addon_worst_where: in which function.
gap_worst_ms          the longest between two beats of a timer that is due every 2 ms, Blender's own drawing included;
                      gap_p99_ms: of 100 gaps the second longest; gap_worst_cpu_ms: the most that the main thread itself
                      worked between two beats.
loop_worst_ms         the longest between two timer events that a modal operator was handed.
idle_gap_worst_ms, idle_gap_worst_cpu_ms
                      the same gap before the shot, with the same editors drawn again as often and nothing else going
                      on: what this machine's drawing costs without the add-on.
end_addon_worst_ms, end_addon_worst_cpu_ms, end_addon_worst_where, end_gap_worst_ms, end_gap_worst_cpu_ms
                      the same once the last frame has come, while the world and the frames are brought in.
scrub_gap_worst_ms, scrub_gap_worst_cpu_ms
                      the same gap when the timeline is moved through the frames afterwards: what Blender itself takes
                      to show a new picture in the same editors.
generate_s            from the click on Generate until Blender answers again: the start frame is rendered then.
cancel_s              from the click on Cancel, in a shot of its own, until the server's word that it is cancelled has
                      come; cancel_shown_s: until the window shows it.
splats_1m_frame_ms    how long the viewport takes to draw a million splats that fill it, of the first degree, over and
                      over; splats_1m_ready_s: from the import until they are seen.
stream_s, frames      how long the stream took, and how many frames came.
load                  of the machine when it began, by its own count: beyond its cores, times by the clock say little.

They go into the file's `window`, a row for each Blender; beside it `worst_main_thread_gap_ms`, the worst
addon_worst_ms of all rows, and `cancel_s`, the worst of theirs (the fake engine looks for a cancel every half second).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bpy
import numpy as np

BEAT_S = 0.002
IDLE_S = 10.0
REDRAW_S = 0.1
"""Between two redraws of the idle window: what a running shot asks for."""
TIMEOUT_S = 600.0


def main() -> None:
    """Reads the options and begins; the rest happens in Blender's own timers."""
    parser = argparse.ArgumentParser(prog="addon_window.py")
    parser.add_argument("--address", required=True, help="of a server with the fake engine")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--zip", type=Path, help="the extension to install")
    parser.add_argument("--package", default="", help="or the package of the add-on that is enabled already")
    parser.add_argument("--frames", type=int, default=93)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--splats", type=int, default=200_000)
    parser.add_argument("--no-image-editor", action="store_true", help="without one, which draws every newest frame")
    options = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :])
    steps = measure(options)

    def step() -> float | None:
        try:
            return next(steps)
        except StopIteration:
            bpy.ops.wm.quit_blender()
        except Exception as error:
            write(options.out, {"error": f"{type(error).__name__}: {error}"})
            bpy.ops.wm.quit_blender()
        return None

    bpy.app.timers.register(step, first_interval=2.0, persistent=True)


def measure(options: argparse.Namespace) -> Iterator[float]:
    """Does everything, yielding the seconds to wait before it goes on."""
    package = options.package or install(options.zip)
    session = importlib.import_module(f"{package}.session")
    folder = Path(tempfile.mkdtemp(prefix="worldwarp_window_"))
    scene = set_up(folder, options)
    yield 3.0
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "gpu": gpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "shot": f"{options.frames} frames of {options.size}, {options.splats} splats",
    }
    watch = Watch(str(Path(importlib.import_module(package).__file__).parent))
    watch.start()
    until = time.perf_counter() + IDLE_S
    while time.perf_counter() < until:
        redraw()
        yield REDRAW_S
    idle = watch.cut()
    found |= {"idle_gap_worst_ms": idle.gap_worst_ms, "idle_gap_worst_cpu_ms": idle.gap_worst_cpu_ms}

    began = time.perf_counter()
    scene.worldwarp.prompt = "noise slow=0.5 progress=5"
    click_generate(options.address, folder / "shot_001")
    while session.status().frames_done < 2:
        check_time(began, session)
        yield 0.05
    told = note_end(session)
    clicked = time.perf_counter()
    bpy.ops.worldwarp.cancel()
    while session.status().running:
        check_time(began, session)
        yield 0.005
    found["cancel_s"] = round(told[0] - clicked, 2)
    found["cancel_shown_s"] = round(time.perf_counter() - clicked, 2)
    yield 1.0

    scene.worldwarp.prompt = f"noise slow=0.05 progress=5 splats={options.splats}"
    found["generate_s"] = click_generate(options.address, folder / "shot_002")
    watch.cut()
    began = time.perf_counter()
    while session.status().running and session.status().frames_done < options.frames:
        check_time(began, session)
        yield 0.05
    streamed = watch.cut()
    found |= {
        "frames": session.status().frames_done,
        "stream_s": round(time.perf_counter() - began, 1),
        "addon_worst_ms": streamed.addon_worst_ms,
        "addon_worst_cpu_ms": streamed.addon_worst_cpu_ms,
        "addon_worst_where": streamed.addon_worst_where,
        "gap_worst_ms": streamed.gap_worst_ms,
        "gap_worst_cpu_ms": streamed.gap_worst_cpu_ms,
        "gap_p99_ms": streamed.gap_p99_ms,
        "loop_worst_ms": streamed.loop_worst_ms,
    }
    while session.status().running:
        check_time(began, session)
        yield 0.05
    yield 3.0
    end = watch.cut()
    found |= {
        "end_addon_worst_ms": end.addon_worst_ms,
        "end_addon_worst_cpu_ms": end.addon_worst_cpu_ms,
        "end_addon_worst_where": end.addon_worst_where,
        "end_gap_worst_ms": end.gap_worst_ms,
        "end_gap_worst_cpu_ms": end.gap_worst_cpu_ms,
        "error": session.status().error,
    }
    for frame in range(1, 16):
        scene.frame_set(frame)
        redraw()
        yield 0.2
    scrubbed = watch.cut()
    found |= {"scrub_gap_worst_ms": scrubbed.gap_worst_ms, "scrub_gap_worst_cpu_ms": scrubbed.gap_worst_cpu_ms}
    watch.stop()
    yield from draw_a_million(package, found)
    write(options.out, found)
    print(json.dumps(found, indent=2), flush=True)
    yield 0.5


def write(out: Path, found: dict[str, Any]) -> None:
    """Puts what was found into the file beside what other Blenders have, by their versions."""
    document = json.loads(out.read_text()) if out.is_file() else {}
    rows = document.get("window", {}) | {bpy.app.version_string: found}
    whole = [row for row in rows.values() if "addon_worst_ms" in row]
    document["window"] = rows
    document["worst_main_thread_gap_ms"] = max((row["addon_worst_ms"] for row in whole), default=None)
    document["cancel_s"] = max((row["cancel_s"] for row in whole), default=None)
    out.write_text(json.dumps(document, indent=2) + "\n")


def draw_a_million(package: str, found: dict[str, Any]) -> Iterator[float]:
    """A world of a million splats in the viewport."""
    splats, viewport = (importlib.import_module(f"{package}.{name}") for name in ("splats", "splat_viewport"))
    rng = np.random.default_rng(0)
    count = 1_000_000
    cloud = splats.SplatCloud(
        means=rng.uniform(-2, 2, (count, 3)).astype(np.float32),
        quats=rng.normal(size=(count, 4)).astype(np.float32),
        scales=np.full((count, 3), -5, np.float32),
        opacities=np.ones(count, np.float32),
        sh0=rng.normal(size=(count, 1, 3)).astype(np.float32),
        shN=rng.normal(scale=0.1, size=(count, 3, 3)).astype(np.float32),
    )
    for thing in bpy.context.scene.objects:
        thing.hide_set(True)
    window = bpy.context.window_manager.windows[0]
    area = next(area for area in window.screen.areas if area.type == "VIEW_3D")
    began = time.perf_counter()
    with bpy.context.temp_override(window=window, area=area):
        splats.add_splat_objects(bpy.context, "Million", cloud)
        area.spaces.active.region_3d.view_perspective = "PERSP"
    area.spaces.active.region_3d.view_distance = 6.0
    area.tag_redraw()
    yield 0.1
    while viewport._drawings is None or viewport._drawings.busy:
        if time.perf_counter() - began > TIMEOUT_S:
            raise TimeoutError("the splats were never ready")
        yield 0.1
    found["splats_1m_ready_s"] = round(time.perf_counter() - began, 1)
    took = []
    for _ in range(3):
        area.tag_redraw()
        began = time.perf_counter()
        bpy.ops.wm.redraw_timer(type="DRAW_WIN", iterations=1)
        took.append(time.perf_counter() - began)
        yield 0.1
    found["splats_1m_frame_ms"] = in_ms(sorted(took)[1])


# ---------------------------------------------------------------- the window


def install(archive: Path) -> str:
    """Returns the package of the extension that was installed from its zip."""
    bpy.ops.extensions.package_install_files(
        filepath=str(archive.resolve()), repo="user_default", enable_on_install=True
    )
    return "bl_ext.user_default.worldwarp"


def set_up(folder: Path, options: argparse.Namespace) -> bpy.types.Scene:
    """Returns the scene that is filmed: saved, seen through its camera, with an Image Editor beside it."""
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = map(int, options.size.split("x"))
    scene.frame_start, scene.frame_end = 1, options.frames
    scene.worldwarp.samples, scene.worldwarp.chunk, scene.worldwarp.overlap = 1, 49, 5
    camera = scene.camera
    for frame in (1, options.frames):
        camera.location.x += 0.5
        camera.keyframe_insert("location", frame=frame)
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / "window.blend"))
    for area in bpy.context.window_manager.windows[0].screen.areas:
        if area.type == "PROPERTIES" and not options.no_image_editor:
            area.type = "IMAGE_EDITOR"
        elif area.type == "VIEW_3D":
            area.spaces.active.show_region_ui = True
            area.spaces.active.region_3d.view_perspective = "CAMERA"
    return scene


def click_generate(address: str, out: Path) -> float:
    """Presses Generate as a user does, in the viewport; returns the seconds until Blender answers again."""
    window = bpy.context.window_manager.windows[0]
    area = next(area for area in window.screen.areas if area.type == "VIEW_3D")
    region = next(region for region in area.regions if region.type == "WINDOW")
    began = time.perf_counter()
    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.worldwarp.generate("EXEC_DEFAULT", address=address, directory=str(out))
    return round(time.perf_counter() - began, 2)


def note_end(session: Any) -> list[float]:
    """Returns a list that gets the time at which the running shot's last state comes from the server."""
    told: list[float] = []
    lightened = session.lightened

    def noting(event: Any) -> Any:
        # Called by the thread for everything that comes.
        if getattr(event, "state", "") == "cancelled":
            told.append(time.perf_counter())
        return lightened(event)

    session.lightened = noting
    return told


def redraw() -> None:
    """Asks for what a running shot has drawn again."""
    for area in bpy.context.window_manager.windows[0].screen.areas:
        if area.type in ("VIEW_3D", "IMAGE_EDITOR"):
            area.tag_redraw()


def gpu_name() -> str:
    """Returns what draws the window; software drawing is no measure of a user's."""
    import gpu

    return f"{gpu.platform.vendor_get()}: {gpu.platform.renderer_get()}"


def check_time(began: float, session: Any) -> None:
    """Raises when it takes too long."""
    if time.perf_counter() - began > TIMEOUT_S:
        raise TimeoutError(f"nothing more came: {session.status()}")


# ---------------------------------------------------------------- the watch


class Cut:
    """What was seen between two cuts."""

    def __init__(
        self, gaps: list[tuple[float, float]], loops: list[float], calls: list[tuple[float, float, str]]
    ) -> None:
        ordered = sorted(wall for wall, _ in gaps)
        self.gap_worst_cpu_ms = in_ms(max((cpu for _, cpu in gaps), default=0.0))
        self.gap_worst_ms = in_ms(ordered[-1] if ordered else 0.0)
        self.gap_p99_ms = in_ms(ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0.0)
        self.loop_worst_ms = in_ms(max(loops, default=0.0))
        longest = max(calls, key=lambda call: call[1], default=(0.0, 0.0, ""))
        self.addon_worst_ms = in_ms(max((wall for wall, _, _ in calls), default=0.0))
        self.addon_worst_cpu_ms, self.addon_worst_where = in_ms(longest[1]), longest[2]


class Watch:
    """Beats of a timer, events of a modal operator, and every stretch of the add-on's Python on the main thread.

    Args:
        folder: of the add-on's sources.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.gaps: list[tuple[float, float]] = []
        """(seconds, seconds of the main thread) between two beats."""
        self.loops: list[float] = []
        self.calls: list[tuple[float, float, str]] = []
        """(seconds, seconds of the thread, function) of each stretch."""
        self._beat_s = self._loop_s = time.perf_counter()
        self._beat_cpu_s = time.thread_time()
        self._depth, self._began_s, self._began_cpu_s, self._name = 0, 0.0, 0.0, ""

    def start(self) -> None:
        bpy.utils.register_class(WINDOW_OT_watch_events)
        WINDOW_OT_watch_events.watch = self
        window = bpy.context.window_manager.windows[0]
        with bpy.context.temp_override(window=window):
            bpy.ops.window.watch_events("INVOKE_DEFAULT")
        self._beat_s = self._loop_s = time.perf_counter()
        # Of a bound method there is a new one each time; a timer is known by the one that it was given.
        self._timer = self.beat
        bpy.app.timers.register(self._timer, persistent=True)
        sys.setprofile(self.profile)

    def stop(self) -> None:
        sys.setprofile(None)
        bpy.app.timers.unregister(self._timer)
        WINDOW_OT_watch_events.watch = None

    def cut(self) -> Cut:
        """Returns what was seen since the last cut. What is going on in this very moment belongs to the next."""
        made = Cut(self.gaps, self.loops, self.calls)
        self.gaps, self.loops, self.calls = [], [], []
        # The caller may have blocked the window itself.
        self._beat_s = self._loop_s = time.perf_counter()
        self._beat_cpu_s = time.thread_time()
        return made

    def beat(self) -> float:
        now, cpu = time.perf_counter(), time.thread_time()
        self.gaps.append((now - self._beat_s, cpu - self._beat_cpu_s))
        self._beat_s, self._beat_cpu_s = now, cpu
        return BEAT_S

    def event(self) -> None:
        now = time.perf_counter()
        self.loops.append(now - self._loop_s)
        self._loop_s = now

    def profile(self, frame: Any, kind: str, _: Any) -> None:
        """Measures calls from Blender into the add-on, not those within it."""
        if kind == "call" and (self._depth or frame.f_code.co_filename.startswith(self.folder)):
            if not self._depth:
                self._began_s, self._began_cpu_s = time.perf_counter(), time.thread_time()
                self._name = f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_qualname}"
            self._depth += 1
        elif kind == "return" and self._depth:
            self._depth -= 1
            if not self._depth:
                cpu_s = time.thread_time() - self._began_cpu_s
                self.calls.append((time.perf_counter() - self._began_s, cpu_s, self._name))


class WINDOW_OT_watch_events(bpy.types.Operator):
    """Notes when it is handed timer events"""

    bl_idname = "window.watch_events"
    bl_label = "Watch Events"

    watch: Watch | None = None

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        self._timer = context.window_manager.event_timer_add(0.005, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if self.watch is None:
            context.window_manager.event_timer_remove(self._timer)
            return {"FINISHED"}
        if event.type == "TIMER":
            self.watch.event()
        return {"PASS_THROUGH"}


def in_ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


if __name__ == "__main__":
    main()
