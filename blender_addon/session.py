# SPDX-License-Identifier: GPL-3.0-or-later
"""The shot that is being made while the artist goes on working.

The server keeps making it when Blender closes, or opens another file: the take in the file's list is taken up again.

One worker thread owns the connection and the files, and never touches `bpy`; it leaves small events in a queue. A timer
on Blender's main thread takes them out within a budget of milliseconds, and brings the world in at the end in small
steps, so the window never waits. There is at most one shot at a time. In background mode, where timers do not fire,
`shot.generate_shot` does the same work in one call.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bpy

from engine_bridge.client import Connected, ConnectionLost, Sending
from engine_bridge.keys import ClientKey
from engine_bridge.messages import Accepted, FrameEvent, NoticeEvent, Progress
from engine_bridge.stages import sending_in_words
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.files import read_splats

from . import server_facts
from .advice import fault, in_words
from .image_editors import show_at_timeline, show_newest
from .layout import LayoutMeasurement
from .results import camera_of
from .scenes import scene_with
from .sequences import SRGB, find_sequence, show_behind_camera
from .shot import Left, OnEvent, PreparedShot, SplatsOnDisk, Stop, resume_shot, run_shot, with_layout
from .small_steps import Steps, run_until
from .splats import PreparedSplats, prepare_splats
from .start_frame import is_rendering
from .stored_paths import stored_path
from .takes import add_take, drop_unsent, find_take, refresh, show_take_in_steps

TICK_S = 0.1
BUDGET_S = 0.005
"""Of the main thread, for each tick."""
STEPS_TICK_S = 0.01
"""Between two ticks while results are brought in."""
STATUS_BAR_S = 0.5
"""Between two redraws of the status bar."""
SHOW_EVERY_S = 1.0
"""Between two looks into the frames folder while frames arrive."""
JOIN_S = 5.0
MEASURE_PAUSE_S = 0.01
"""Between two frames of a layout, for Blender to draw and to take the artist's clicks."""
RENDER_PAUSE_S = 0.5
"""Between two looks whether Blender has ended a render of the artist's."""
MEASURING = "measuring the layout"


@dataclass
class Status:
    """What the panel shows. Only the main thread reads and writes it."""

    running: bool = False
    cancelling: bool = False
    stage: str = ""
    step: int = 0
    steps: int = 0
    chunk: int = 0
    chunks: int = 0
    fraction: float = 0.0
    eta_s: float | None = None
    lost: str = ""
    """Why the server does not answer now, while it is tried again."""
    frames: int = 0
    frames_done: int = 0
    notices: list[str] = field(default_factory=list)
    outcome: str = ""
    error: str = ""
    """Stays until the next shot or until it is dismissed."""


@dataclass(frozen=True)
class WorldRead:
    """The world, ready to be brought in."""

    splats: PreparedSplats


@dataclass(frozen=True)
class Ended:
    """The worker thread's last word."""

    error: WorldWarpError | None


Work = Callable[[OnEvent, Stop], None]


class Session:
    """One running shot: its thread, its queue and its wish to stop."""

    def __init__(self, work: Work, address: str, out: Path, show: bool, scene: bpy.types.Scene) -> None:
        self.address = address
        self.out = out
        self.show = show
        self.scene_uid = scene.session_uid
        self.camera = ""
        """Name of the one that frames are shown behind; "" before the first."""
        self.shown_s = 0.0
        self.frame = scene.frame_current
        """Where the timeline was when the shot began; Image Editors follow the newest frame until it is moved."""
        self.numbers: set[int] = set()
        """Of the frames that are on disk; one may come again, better."""
        self.world: PreparedSplats | None = None
        self.bringing_in: Steps[Any] | None = None
        """What is left to do once the server is done."""
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.stop = Stop()
        self.thread = threading.Thread(target=self._run, args=(work,), name="worldwarp", daemon=True)

    def _run(self, work: Work) -> None:
        # Nothing in here may touch bpy.
        try:
            work(self._tell, self.stop)
        except Left:
            self.events.put(Ended(None))
        except WorldWarpError as error:
            self.events.put(Ended(error))
        except Exception as error:
            # The last line of defence: a fault of ours ends the shot in words, never the thread in silence.
            self.events.put(Ended(fault(error)))
        else:
            self.events.put(Ended(None))

    def _tell(self, event: object) -> None:
        """Leaves an event for the main thread; reads the world here, where nobody waits for it."""
        self.events.put(lightened(event))
        if isinstance(event, SplatsOnDisk) and self.show:
            self.events.put(WorldRead(prepare_splats(read_splats(event.path))))


@dataclass(frozen=True)
class Measuring:
    """A layout that is measured frame by frame, and the shot that is sent once it is whole."""

    layout: LayoutMeasurement
    send: Callable[[PreparedShot, bpy.types.Scene], None]
    shot: PreparedShot
    scene_uid: int


_session: Session | None = None
_measuring: Measuring | None = None
_status = Status()


def status() -> Status:
    """Returns what is known of the running or the last shot."""
    return _status


def start(
    shot: PreparedShot,
    address: str,
    out: Path,
    show: bool,
    key: ClientKey | None = None,
    layout: LayoutMeasurement | None = None,
    scene: bpy.types.Scene | None = None,
) -> None:
    """Begins to make `shot` in its own thread, writing into the folder `out`.

    Args:
        show: bring frames in while they arrive, and everything at the end.
        key: for a server that asks for one.
        layout: is measured first, a frame each time that Blender has nothing else to do, and sent with the shot.
        scene: that the shot is of; None takes the one in front.

    Raises:
        WorldWarpError: `busy` while another shot is being made.
    """
    global _measuring, _status
    scene = scene or bpy.context.scene
    if layout is not None:
        check_free()
        _status = Status(running=True, stage=MEASURING, frames=layout.total)

        def send(whole: PreparedShot, scene: bpy.types.Scene) -> None:
            start(whole, address, out, show, key, scene=scene)

        _measuring = Measuring(layout, send, shot, scene.session_uid)
        bpy.app.timers.register(_measure, first_interval=MEASURE_PAUSE_S)
        return
    frames = shot.spec.cameras.frames.tolist()
    begin(lambda on_event, stop: run_shot(shot, out, address, on_event, stop, key), address, out, show, frames, scene)
    based_on = shot.goes_on_from.name if shot.goes_on_from is not None else ""
    add_take(scene, out, frames[0], based_on)


def resume(out: Path, address: str, show: bool, frames: list[int], key: ClientKey | None = None) -> None:
    """Takes up the shot in the folder `out` again, in its own thread; like `start`.

    Args:
        frames: the shot's frame numbers.
    """
    begin(lambda on_event, stop: resume_shot(out, address, on_event, stop, key), address, out, show, frames)
    assert _session is not None
    _session.numbers = {number for number in frames if (out / "frames" / f"frame_{number:04d}.png").is_file()}
    _status.frames_done = len(_session.numbers)


def begin(
    work: Work, address: str, out: Path, show: bool, frames: list[int], scene: bpy.types.Scene | None = None
) -> None:
    """Has a thread do `work`, which tells events and asks now and then whether to stop.

    Args:
        scene: that the shot is of; None takes the one in front.

    Raises:
        WorldWarpError: `busy` while another shot is being made.
    """
    global _session, _status
    check_free()
    _status = Status(running=True, stage="connecting", frames=len(frames))
    _session = Session(work, address, out, show, scene or bpy.context.scene)
    _session.thread.start()
    bpy.app.timers.register(_tick, first_interval=TICK_S, persistent=True)


def check_free() -> None:
    """Raises `busy` while another shot is being made."""
    if _status.running:
        raise WorldWarpError("busy", "A shot is being made already. Cancel it first, or wait until it is done.")


def cancel() -> None:
    """Asks the running shot to stop; what was delivered stays on disk."""
    if _session is not None and _session.bringing_in is not None:
        # The shot has ended, and all of it is on disk: only showing it is given up.
        _session.bringing_in.close()
        _status.outcome += ". Not all of it was brought in: show the take under Results"
        _over()
    elif _session is not None:
        _status.cancelling = True
        _session.stop.cancelled.set()
    elif _measuring is not None:
        _status.cancelling = True


def tell_error(message: str) -> None:
    """Shows an error in the panel, where it stays."""
    _status.error = message


def dismiss_error() -> None:
    """Forgets the last error."""
    _status.error = ""


def close() -> None:
    """Leaves the running shot to the server and joins the thread; before unregistering, another file and exit."""
    global _session, _measuring
    for timer in (_tick, _measure):
        if bpy.app.timers.is_registered(timer):
            bpy.app.timers.unregister(timer)
    _measuring = None
    if _session is not None:
        _session.stop.left.set()
        _session.thread.join(JOIN_S)
        _session = None
    _status.running = _status.cancelling = False
    redraw_status_bar()


def finish_steps() -> None:
    """Does what is left of bringing results in, in one go: before an undo, which would take away what it works on."""
    if _session is not None and _session.bringing_in is not None:
        _bring_in(_session, float("inf"))


def _measure() -> float | None:
    """Measures one frame of a layout, and sends the shot after the last; returns the seconds to the next frame."""
    global _measuring
    if _measuring is None:
        return None
    measuring, layout = _measuring, _measuring.layout
    redraw()
    whole, failed = None, ""
    if not _status.cancelling:
        if is_rendering():
            # The artist's own render comes first, and its scene must stand still meanwhile.
            _status.stage = "waiting for Blender's render"
            return RENDER_PAUSE_S
        _status.stage = MEASURING
        try:
            layout.step()
            _status.frames_done, _status.fraction = layout.done, layout.done / layout.total
            if layout.done < layout.total:
                return MEASURE_PAUSE_S
            whole = with_layout(measuring.shot, layout.result())
        except WorldWarpError as error:
            failed = in_words(error)
        except Exception as error:
            # As for the thread: a fault of ours ends it in words, not with a panel that says forever that it runs.
            failed = fault(error).message
    _measuring, _status.running = None, False
    scene = scene_with(measuring.scene_uid)
    if whole is not None and scene is not None:
        measuring.send(whole, scene)
        if layout.notice:
            _status.notices.append(layout.notice)
    elif failed:
        _status.error = failed
    else:
        _status.cancelling, _status.outcome = False, "Cancelled before anything was sent."
    return None


def _tick() -> float | None:
    """Takes events out of the queue within the budget; returns the seconds to the next tick, None after the last."""
    global _bar_s
    before = dataclasses.replace(_status, notices=list(_status.notices))
    try:
        drain(time.perf_counter() + BUDGET_S)
    except Exception as error:
        # As for the thread. What was delivered is on disk, and what is still to come the server keeps: Resume.
        if _session is not None:
            _session.stop.left.set()
        _status.error = fault(error).message
        _over()
    if _status != before:
        redraw()
    if time.perf_counter() - _bar_s > STATUS_BAR_S or not _status.running:
        _bar_s = time.perf_counter()
        redraw_status_bar()
    if not _status.running:
        return None
    return STEPS_TICK_S if _session is not None and _session.bringing_in is not None else TICK_S


_bar_s = 0.0


def drain(until_s: float) -> None:
    """Brings the status up to date with the events in the queue, until the queue is empty or the time is up.

    After the last event results are brought in, for as long.
    """
    if _session is not None and _session.bringing_in is not None:
        if scene_with(_session.scene_uid) is None:
            _over()
        else:
            _bring_in(_session, until_s)
        return
    while _session is not None and time.perf_counter() < until_s:
        try:
            event = _session.events.get_nowait()
        except queue.Empty:
            break
        if isinstance(event, Ended):
            session = _session
            _end(session, event)
            _book(session)
            return
        if isinstance(event, FrameDone):
            _session.numbers.add(event.number)
            _status.frames_done = len(_session.numbers)
        elif isinstance(event, WorldRead):
            _session.world = event.splats
        elif isinstance(event, Connected):
            server_facts.note(server_facts.facts_of(_session.address, event.welcome))
        note(_status, event)
    if _session is not None and _session.show and time.perf_counter() - _session.shown_s > SHOW_EVERY_S:
        _session.shown_s = time.perf_counter()
        _show_frames(_session)


def note(status: Status, event: object) -> None:
    """Brings `status` up to date with one event."""
    if isinstance(event, Progress):
        status.stage, status.fraction, status.eta_s = event.stage, event.fraction, event.eta_s
        status.step, status.steps, status.chunk, status.chunks = event.step, event.steps, event.chunk, event.chunks
    elif isinstance(event, Connected):
        status.lost = ""
    elif isinstance(event, Sending):
        status.stage = sending_in_words(event.received_bytes, event.size_bytes)
        status.fraction = event.received_bytes / event.size_bytes
    elif isinstance(event, Accepted):
        status.stage, status.fraction = "waiting for the engine", 0.0
    elif isinstance(event, NoticeEvent):
        status.notices.append(event.message)
    elif isinstance(event, SplatsOnDisk):
        status.stage, status.steps, status.chunks, status.eta_s = "bringing the world in", 0, 0, None
    elif isinstance(event, ConnectionLost):
        status.stage, status.eta_s, status.lost = "connection lost, trying again", None, event.message


@dataclass(frozen=True)
class FrameDone:
    """A frame that is on disk; what the queue carries instead of its pixels."""

    number: int


def lightened(event: object) -> object:
    """Returns the event without pixels, so that a queue that is not drained holds no frames."""
    return FrameDone(event.number) if isinstance(event, FrameEvent) else event


def _scene(session: Session) -> bpy.types.Scene | None:
    """Returns the scene that the shot is of, unless it was removed or is not in front."""
    scene = bpy.context.scene
    return scene if scene is not None and scene.session_uid == session.scene_uid else None


def _show_frames(session: Session) -> None:
    scene = _scene(session)
    frames = find_sequence(session.out / "frames", ".png", SRGB)
    if scene is None or frames is None:
        return
    # The record is not read each time: on Windows the thread could not write it meanwhile.
    camera = scene.objects.get(session.camera) or camera_of(scene, session.out, frames.first)
    if camera is not None:
        session.camera = camera.name
        show_behind_camera(camera, frames)
    if scene.frame_current == session.frame:
        show_newest(frames)
    else:
        show_at_timeline(frames)


def _end(session: Session, ended: Ended) -> None:
    """Takes the thread's last word, and begins to bring in what has come."""
    session.thread.join(JOIN_S)
    _status.lost = ""
    if ended.error is not None and ended.error.code != "cancelled":
        _status.error = in_words(ended.error)
    done = f"{_status.frames_done} of {_status.frames} frames in {stored_path(session.out)}"
    _status.outcome = f"Cancelled: {done}" if _status.cancelling else done
    _status.cancelling = False
    scene = _scene(session)
    if scene is not None:
        take = add_take(scene, session.out, min(session.numbers, default=scene.frame_start))
        refresh(take)
        if session.show and _status.frames_done:
            session.bringing_in = show_take_in_steps(bpy.context, session.out, session.world)
    if session.bringing_in is None:
        _over()


def _book(session: Session) -> None:
    """Brings the list of takes up to date, also where another scene is in front."""
    scene = scene_with(session.scene_uid)
    if scene is None:
        return
    drop_unsent(scene, session.out)
    take = find_take(scene, session.out)
    if take is not None and _scene(session) is None:
        refresh(take)
        _status.notices.append(f'"{take.name}" is a take of the scene "{scene.name}": show it there, under Results.')


def _bring_in(session: Session, until_s: float) -> None:
    """Goes on bringing results in until the time is up; waits while another scene is in front."""
    assert session.bringing_in is not None
    if _scene(session) is None:
        return
    try:
        if not run_until(session.bringing_in, until_s):
            return
        # No operator is running, so nobody else makes this a step that can be undone.
        if not bpy.app.background:
            bpy.ops.ed.undo_push(message="WorldWarp Results")
    except WorldWarpError as error:
        _status.error = _status.error or in_words(error)
    except ReferenceError:
        _status.error = "The results were removed while they were brought in. Show the take again, under Results."
    _over()


def _over() -> None:
    global _session
    _session = None
    _status.running = False


def running_folder() -> Path | None:
    """Returns the folder of the shot that is being made now, or None."""
    return _session.out if _session is not None else None


def redraw() -> None:
    """Asks for the sidebars to be drawn again; only they show the status, and the viewports beside them cost more."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()


def redraw_status_bar() -> None:
    """Asks for the status bar to be drawn again, unless a tool is using it."""
    for window in bpy.context.window_manager.windows:
        if not len(getattr(window, "modal_operators", ())):
            # There is no area to tag; what clears the text draws the bar again.
            window.workspace.status_text_set_internal(None)


def redraw_viewports() -> None:
    """Asks for all of every 3D viewport to be drawn again; for what changes rarely."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()
