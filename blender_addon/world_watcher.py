# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks at one job's world on the server, for the live view: cameras go out, pictures come back ready for the GPU.

    watcher = WorldWatcher(address, key, job_id)
    watcher.look(K, c2w, 1280, 720)        # as often as the view moves; never waits
    texels = watcher.take()                # the newest picture that came since the last call, or None

A thread connects, decodes, and connects again where the server was lost. Never touches `bpy`.
"""

from __future__ import annotations

import importlib
import io
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from engine_bridge.client import Client
from engine_bridge.keys import ClientKey, is_loopback, parse_address
from engine_bridge.live_view import LiveView
from engine_bridge.messages import Picture
from worldwarp_core import __version__
from worldwarp_core.errors import WorldWarpError

from .advice import in_words

PROGRAM = "worldwarp-blender"
RETRY_S = 3.0
"""Between two tries to reach a server."""
SLOW_MS = 100.0
"""On the way, beside rendering: from there on pixels are sent as JPEG where this Blender reads it."""
PATIENCE = 3
"""Pictures in a row that were slow."""
QUALITY = 90
"""Of a JPEG."""

Decoder = Callable[[bytes, int, int], np.ndarray]
"""(the file, width, height) -> (height, width, 3) uint8; raises where the file is another picture than that."""


class WorldWatcher:
    """One view of one job's world; see the top of the module."""

    def __init__(self, address: str, key: ClientKey | None, job_id: str) -> None:
        self.address, self.job_id = address, job_id
        self.words = "Connecting..."
        """Why there is no picture, or nothing."""
        self.cost_ms = 0.0
        """From look to picture, for each million pixels; 0 before the first."""
        self.pictures = 0
        """How many have come."""
        self._key = key
        self._decode = jpeg_decoder()
        self._slow = 0 if is_loopback(parse_address(address)[0]) else PATIENCE
        self._wanted: tuple[np.ndarray, np.ndarray, int, int] | None = None
        self._asked: deque[tuple[int, float]] = deque(maxlen=64)
        """(look, when) of those that may still be answered."""
        self._view: LiveView | None = None
        self._ready: np.ndarray | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worldwarp-watch", daemon=True)
        self._thread.start()

    def look(self, K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> None:
        """Asks what a camera sees, in place of what was asked before; never waits.

        Args:
            K: fx, fy, cx, cy in pixels.
            c2w: (4, 4), OpenCV's axes in Blender's world.
        """
        with self._lock:
            self._wanted = (K, c2w, width, height)
            self._send()

    def take(self) -> np.ndarray | None:
        """Returns the newest picture since the last call, as `texels_of` makes it; None where there is none."""
        ready, self._ready = self._ready, None
        return ready

    @property
    def has_news(self) -> bool:
        """Whether `take` would return a picture."""
        return self._ready is not None

    def close(self, wait_s: float = 5.0) -> None:
        """Ends the thread. Safe to call twice."""
        self._closed.set()
        self._thread.join(wait_s)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._watch()
            except WorldWarpError as error:
                self.words = in_words(error)
            except Exception as error:
                # The last line of defence: a fault of ours ends in words, never in silence.
                self.words = f"The live view failed: {type(error).__name__}: {error}"
            self._closed.wait(RETRY_S)

    def _watch(self) -> None:
        """Takes pictures until the watcher is closed.

        Raises:
            WorldWarpError: the server is not there, is gone, or does not have the job.
        """
        with Client(self.address, program=PROGRAM, version=__version__, key=self._key) as client:
            client.connect()
            if self.job_id not in {job.job_id for job in client.list_jobs()}:
                raise WorldWarpError("unknown_job", f"The server at {self.address} does not have this take.")
            view = LiveView(client, self.job_id, quality=QUALITY)
        with view:
            self.words = "The take has no world yet..."
            with self._lock:
                self._view = view
                self._asked.clear()
                self._send()
            try:
                while not self._closed.is_set():
                    if (picture := view.picture(0.1)) is not None:
                        self._note(picture)
                        texels = texels_of(picture, self._decode)
                        self.words = ""
                        self.pictures += 1
                        # Last: who takes the picture finds that all is well.
                        self._ready = texels
            finally:
                with self._lock:
                    self._view = None

    def _send(self) -> None:
        """Sends what is wanted; where the view has ended meanwhile, the thread says why."""
        if self._view is None or self._wanted is None:
            return
        self._view.format = "jpeg" if self._slow >= PATIENCE and self._decode is not None else "raw"
        with suppress(WorldWarpError):
            self._asked.append((self._view.look(*self._wanted), time.monotonic()))

    def _note(self, picture: Picture) -> None:
        """Books how long the picture took. One that came again, because the world has grown, tells nothing."""
        now_s = time.monotonic()
        with self._lock:
            asked_s = next((at_s for look, at_s in self._asked if look == picture.look_id), None)
            while self._asked and self._asked[0][0] <= picture.look_id:
                self._asked.popleft()
        if asked_s is None:
            return
        trip_ms = (now_s - asked_s) * 1000
        cost_ms = trip_ms / (picture.width * picture.height / 1e6)
        self.cost_ms = cost_ms if not self.cost_ms else 0.5 * (self.cost_ms + cost_ms)
        if self._slow < PATIENCE:
            self._slow = self._slow + 1 if trip_ms - picture.render_ms > SLOW_MS else 0


# ---------------------------------------------------------------- pictures


def texels_of(picture: Picture, decode: Decoder | None) -> np.ndarray:
    """Returns the picture as a GPU takes it: (height, width, 4) float32, sRGB in [0, 1], bottom row first.

    Raises:
        WorldWarpError: `bad_message` for a file that is no picture of the size that it should have.
    """
    if picture.format == "raw":
        pixels = picture.data.reshape(picture.height, picture.width, 3)
    else:
        try:
            assert decode is not None, "a JPEG that was not asked for"
            pixels = decode(picture.data.tobytes(), picture.width, picture.height)
        except Exception as error:
            raise WorldWarpError("bad_message", f"A picture of the live view cannot be read: {error}") from error
    texels = np.ones((picture.height, picture.width, 4), np.float32)
    np.multiply(pixels[::-1], np.float32(1 / 255), out=texels[..., :3])
    return texels


def jpeg_decoder() -> Decoder | None:
    """Returns what reads JPEG outside of Blender's main thread; None where nothing does.

    Blender's own builds bring OpenImageIO's Python module; builds of others may not, but other extensions may bring
    Pillow.
    """
    for name, make in (("PIL.Image", _by_pillow), ("OpenImageIO", _by_openimageio)):
        with suppress(ImportError):
            return make(importlib.import_module(name))
    return None


def _by_pillow(pillow: Any) -> Decoder:
    def decode(file: bytes, width: int, height: int) -> np.ndarray:
        with pillow.open(io.BytesIO(file), formats=("JPEG",)) as image:
            _check_size(image.size, width, height)
            return np.asarray(image.convert("RGB"))

    return decode


def _by_openimageio(oiio: Any) -> Decoder:
    def decode(file: bytes, width: int, height: int) -> np.ndarray:
        # Its Python module reads files only.
        with tempfile.TemporaryDirectory(prefix="worldwarp_") as folder:
            path = Path(folder) / "view.jpg"
            path.write_bytes(file)
            image = oiio.ImageInput.open(str(path))
            if image is None:
                raise ValueError(oiio.geterror())
            try:
                _check_size((image.spec().width, image.spec().height), width, height)
                pixels = image.read_image(0, 0, 0, 3, "uint8")
            finally:
                image.close()
        return np.asarray(pixels).reshape(height, width, 3)

    return decode


def _check_size(size: tuple[int, int], width: int, height: int) -> None:
    """Raises before anything is decoded: a small file may hold a huge picture."""
    if size != (width, height):
        raise ValueError(f"it is {size[0]}x{size[1]}, not {width}x{height}")
