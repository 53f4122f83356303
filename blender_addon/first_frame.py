# SPDX-License-Identifier: GPL-3.0-or-later
"""A start frame from words: asked of the server, kept as an image, and taken as the picture that the shot begins with.

A thread asks and never touches `bpy`; the main thread's timer takes what has come. In background mode, where timers do
not fire, `draw_on_server` is called and waited for. Every picture is kept: as a file in the output folder, or packed
into the .blend where there is no such folder yet.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import bpy
import numpy as np

from engine_bridge.client import Client, Connected, Disconnected, RequestFailed
from engine_bridge.errors import BridgeError, disk_errors
from engine_bridge.keys import ClientKey
from engine_bridge.messages import FrameEvent, Progress, StateEvent
from engine_bridge.png_writer import encode_png
from engine_bridge.session import FINAL
from worldwarp_core import __version__
from worldwarp_core.atomic_write import atomic_write
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import DRAWN_GRID_PX, FirstFrameSettings

from . import server_facts
from .advice import fault
from .camera_export import render_size
from .server_facts import PROGRAM
from .session import redraw
from .shot import Left, OnEvent, Stop
from .stored_paths import stored_path

PIXELS = 832 * 480
"""What the video model draws best at; the shot enlarges from there anyway."""
SEED = "worldwarp_seed"
"""Custom property of an image that was drawn: the seed it was drawn with."""
FOLDER = "first_frames"
TICK_S = 0.1
JOIN_S = 5.0


@dataclass
class Drawing:
    """What the panel shows of the picture that is being drawn. Only the main thread reads and writes it."""

    running: bool = False
    cancelling: bool = False
    stage: str = ""
    fraction: float = 0.0
    eta_s: float | None = None


def wish_of(scene: bpy.types.Scene) -> FirstFrameSettings:
    """Returns the picture that the artist described, in the aspect of the shot.

    Raises:
        WorldWarpError: `bad_settings` without a prompt.
    """
    group = scene.worldwarp
    prompt = prompt_of(scene)
    if not prompt:
        raise WorldWarpError("bad_settings", "Say what the first frame shows: type a prompt for it, or for the shot.")
    width, height = drawing_size(*render_size(scene))
    return FirstFrameSettings(prompt, group.negative_prompt.strip(), width, height, group.first_seed)


def prompt_of(scene: bpy.types.Scene) -> str:
    """Returns the words for the first frame: its own, or the shot's where it has none."""
    return scene.worldwarp.first_prompt.strip() or scene.worldwarp.prompt.strip()


def drawing_size(width: int, height: int) -> tuple[int, int]:
    """Returns a size that the video model draws at, for a shot of width x height: multiples of 16, of about its aspect.

    What the aspect is off by is cropped when the shot begins.
    """
    aspect = width / height
    ideal = math.sqrt(PIXELS / aspect)
    tall = [max(round(ideal / DRAWN_GRID_PX) + step, 1) * DRAWN_GRID_PX for step in (-1, 0, 1)]
    sizes = [(max(round(side * aspect / DRAWN_GRID_PX), 1) * DRAWN_GRID_PX, side) for side in tall]
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))


def draw_on_server(
    address: str, key: ClientKey | None, wish: FirstFrameSettings, on_event: OnEvent, stop: Callable[[], bool]
) -> np.ndarray:
    """Returns the picture, (H, W, 3) uint8 sRGB; on any thread, never touches Blender.

    Args:
        on_event: hears `Connected` and `Progress`.
        stop: asked a few times a second whether to cancel.

    Raises:
        WorldWarpError: `cancelled`; `cannot_draw` by an engine that draws nothing; what else went wrong.
    """
    picture, cancelling = None, False
    with Client(address, program=PROGRAM, version=__version__, key=key) as client:
        on_event(Connected(client.connect()))
        job_id = client.draw(wish)
        while True:
            if stop() and not cancelling:
                cancelling = True
                client.cancel(job_id)
            event = client.wait(0.1)
            if isinstance(event, Disconnected | RequestFailed):
                raise refusal(address, event)
            if event is None or getattr(event, "job_id", job_id) != job_id:
                continue
            on_event(event)
            if isinstance(event, FrameEvent):
                picture = event.rgb
            if isinstance(event, StateEvent) and event.state in FINAL:
                if event.state == "done" and picture is not None:
                    return picture
                raise BridgeError(event.code or "incomplete", event.message or "The server drew no picture.")


def refusal(address: str, event: Disconnected | RequestFailed) -> BridgeError:
    """Returns why the server draws nothing, in words that say what to do."""
    if event.code == "unknown_message":
        return BridgeError(
            event.code,
            f"The server at {address} is older than this add-on and draws no pictures from words. Update it, or let "
            "the shot begin with a render or an image.",
        )
    return BridgeError(event.code, event.message)


def keep(scene: bpy.types.Scene, picture: np.ndarray, wish: FirstFrameSettings, below: Path | None) -> bpy.types.Image:
    """Returns the picture as an image, which is now the scene's start image.

    Args:
        below: the scene's output folder; None packs the picture into the .blend.

    Raises:
        WorldWarpError: `disk_full` or `cannot_write`.
    """
    made_of = {f"worldwarp {name}": str(value) for name, value in asdict(wish).items()}
    content = encode_png(picture, made_of)
    if below is None:
        image = bpy.data.images.new(f"First Frame {wish.seed}", picture.shape[1], picture.shape[0])
        image.source = "FILE"
        image.pack(data=content, data_len=len(content))
    else:
        file = free_name(below / FOLDER, wish.seed)
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as partial:
                partial.write_bytes(content)
        image = bpy.data.images.load(str(file))
        image.name, image.filepath = f"First Frame {wish.seed}", stored_path(file)
    # The artist may come back to it after another was drawn.
    image.use_fake_user = True
    # Blender's own integers are shorter than a seed may be.
    image[SEED] = str(wish.seed)
    scene.worldwarp.start_image = image
    return image


def free_name(folder: Path, seed: int) -> Path:
    """Returns a file of `folder` that does not exist yet and says the seed."""
    names = (f"seed_{seed}{f'_{again}' if again else ''}.png" for again in range(1_000_000))
    return next(file for name in names if not (file := folder / name).exists())


# ---------------------------------------------------------------- beside the artist


@dataclass(frozen=True)
class Drawn:
    """The worker thread's last word: the picture, or why there is none."""

    picture: np.ndarray | None = None
    error: WorldWarpError | None = None


class Asking:
    """One picture that is being asked for: its thread, its queue, its wish to stop, and who waits for it."""

    def __init__(
        self, address: str, key: ClientKey | None, wish: FirstFrameSettings, then: Callable[[Drawn], None]
    ) -> None:
        self.address, self.then = address, then
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.stop = Stop()
        self.thread = threading.Thread(target=self._run, args=(key, wish), name="worldwarp-draw", daemon=True)

    def _run(self, key: ClientKey | None, wish: FirstFrameSettings) -> None:
        # Nothing in here may touch bpy.
        try:
            drawn = Drawn(draw_on_server(self.address, key, wish, self.events.put, self.stop.asked))
        except Left:
            return
        except WorldWarpError as error:
            drawn = Drawn(error=error)
        except Exception as error:
            drawn = Drawn(error=fault(error))
        self.events.put(drawn)


_drawing = Drawing()
_asking: Asking | None = None


def drawing() -> Drawing:
    """Returns what is known of the picture that is being drawn."""
    return _drawing


def begin(address: str, key: ClientKey | None, wish: FirstFrameSettings, then: Callable[[Drawn], None]) -> None:
    """Has a thread ask for the picture; `then` is called with it on the main thread.

    Raises:
        WorldWarpError: `busy` while another is being drawn.
    """
    global _drawing, _asking
    if _drawing.running:
        raise WorldWarpError("busy", "A picture is being drawn already. Cancel it first, or wait until it is done.")
    _drawing = Drawing(running=True, stage="connecting")
    _asking = Asking(address, key, wish, then)
    _asking.thread.start()
    bpy.app.timers.register(look, first_interval=TICK_S, persistent=True)


def cancel() -> None:
    """Asks for the picture not to be drawn any further."""
    if _asking is not None:
        _drawing.cancelling = True
        _asking.stop.cancelled.set()


def look() -> float | None:
    """Takes what the thread has told; returns the seconds to the next look, None after the last."""
    global _asking
    while _asking is not None:
        try:
            event = _asking.events.get_nowait()
        except queue.Empty:
            return TICK_S
        if isinstance(event, Connected):
            server_facts.note(server_facts.facts_of(_asking.address, event.welcome))
        elif isinstance(event, Progress):
            _drawing.stage, _drawing.fraction, _drawing.eta_s = event.stage, event.fraction, event.eta_s
            redraw()
        elif isinstance(event, Drawn):
            then, _asking = _asking.then, None
            _drawing.running = _drawing.cancelling = False
            then(event)
            redraw()
    return None


def close() -> None:
    """Leaves the picture to the server and joins the thread; before unregistering, another file and exit."""
    global _asking
    if bpy.app.timers.is_registered(look):
        bpy.app.timers.unregister(look)
    if _asking is not None:
        _asking.stop.left.set()
        _asking.thread.join(JOIN_S)
        _asking = None
    _drawing.running = _drawing.cancelling = False
