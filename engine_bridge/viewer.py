"""The live view's end at the server: a process that shows any job's newest world to whoever looks at it.

It has a socket of its own, so that frames and control never wait for pictures nor pictures for them, and reads worlds
from the job store, as the worker leaves them there. A world stays on the device while it is looked at; a newer one is
loaded beside it and takes its place. One picture is rendered at a time, connections in turn, the newest look of each.
"""

from __future__ import annotations

import importlib
import io
import logging
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.ply import read_ply

from . import codec
from .errors import BridgeError, ProtocolError
from .keys import parse_address
from .logs import add_log_file
from .messages import ClientMessage, Error, Look, Picture, ServerMessage
from .security import Gate, bind_address, lock_for
from .session import ServerFacts, ServerSession
from .store import JobStore, SplatsFile
from .version import package_version

_log = logging.getLogger(__name__)

ON_THE_WAY = 2
"""Pictures that a connection may be sent ahead of what it has seen."""
LOOK_FOR_NEWER_S = 0.5
KEPT_WORLDS = 2
MAX_CONNECTIONS = 256
MAX_LOOKED_AT = 8
"""Jobs that one connection looks at: each one's world takes memory of the device."""
TICK_MS = 100


@dataclass(frozen=True)
class ViewConfig:
    """What the server tells its view at the start."""

    address: str
    """Where to listen; another free port is taken where this one is not."""
    store_root: str
    engine: str
    device: str = "auto"
    gpus: str = ""
    """As CUDA_VISIBLE_DEVICES names them; "" leaves that to the system."""
    keys_dir: str = ""
    factory: str = "worldwarp_core.api:open_viewer"
    """`module:function` that makes a viewer of a cloud."""
    log_path: str = ""


class ViewProcess:
    """The process, as the server sees it."""

    RESTART_EVERY_S = 10.0

    def __init__(self, config: ViewConfig) -> None:
        self._config = config
        self.port = 0
        """Where it listens; 0 while it does not."""
        self._process: Any = None
        self._connection: Connection | None = None
        self._started_s = -float("inf")

    def keep_up(self) -> None:
        """Starts it where it does not run, not too often, and learns its port; cheap, to be called now and then."""
        if self._process is not None and not self._process.is_alive():
            _log.error("The live view's process has ended (exit code %s).", self._process.exitcode)
            self.port, self._process = 0, None
        if self._process is None and time.monotonic() - self._started_s > self.RESTART_EVERY_S:
            self._started_s = time.monotonic()
            spawn = multiprocessing.get_context("spawn")
            self._connection, theirs = spawn.Pipe()
            self._process = spawn.Process(target=run_view, args=(theirs, self._config), name="worldwarp-view")
            self._process.start()
            theirs.close()
        if not self.port and self._connection is not None and self._connection.poll():
            try:
                self.port = int.from_bytes(self._connection.recv_bytes(8), "little")
                # Started again, it listens where those who look ask for it, also where that was not its first choice.
                host = self._config.address.rpartition(":")[0]
                self._config = replace(self._config, address=f"{host}:{self.port}")
            except (EOFError, OSError):
                self.port = 0

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.terminate()
            self._process.join(2.0)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None


def run_view(connection: Connection, config: ViewConfig) -> None:
    """The process: listens until the server, at the other end of the pipe, is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s view %(levelname)s %(message)s")
    if config.log_path:
        add_log_file(Path(config.log_path), "view")
    if config.gpus:
        # Read when torch is loaded, with the first world.
        os.environ["CUDA_VISIBLE_DEVICES"] = config.gpus
    view = View(config)
    connection.send_bytes(view.port.to_bytes(8, "little"))
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    view.serve()


def _end_with(connection: Connection) -> None:
    try:
        connection.recv_bytes(1)
    except (EOFError, OSError):
        os._exit(0)


@dataclass
class _World:
    """One job's world: the one that is shown, and the one that is being loaded."""

    revision: int = 0
    viewer: Any = None
    loading: Future[Any] | None = None
    loading_revision: int = 0
    checked_s: float = -float("inf")
    looked_s: float = 0.0


@dataclass
class _Eye:
    """One connection's look at one job."""

    look: Look
    sent: list[int] = field(default_factory=list)
    """Looks whose pictures are on their way."""
    shown: tuple[int, int] = (0, 0)
    """(look, revision) of the newest picture that was sent."""


class View:
    """Listens from the moment it is made; `serve` shows."""

    def __init__(self, config: ViewConfig) -> None:
        self._config = config
        self._store = JobStore(Path(config.store_root))
        module, _, function = config.factory.partition(":")
        self._open: Callable[..., Any] = getattr(importlib.import_module(module), function)
        self._context = zmq.Context()
        lock = lock_for(config.address, Path(config.keys_dir) if config.keys_dir else None)
        self._gate = Gate(self._context, lock) if lock else None
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 8),
            (zmq.RCVHWM, 1000),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, codec.LIMITS.header_bytes),
        ):
            self._socket.setsockopt(option, value)
        if self._gate is not None:
            self._gate.guard(self._socket)
        self._bind()
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._sessions: dict[bytes, ServerSession] = {}
        self._eyes: dict[tuple[bytes, str], _Eye] = {}
        self._worlds: dict[str, _World] = {}
        self._loader = ThreadPoolExecutor(1, "world")

    def serve(self) -> None:
        """Shows until the process ends."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        while True:
            poller.poll(0 if self._due() else TICK_MS if not self._eyes else 10)
            self._hear()
            self._keep_worlds()
            if (turn := self._due()) is not None:
                self._show(*turn)
            self._forget()

    def _bind(self) -> None:
        try:
            self._socket.bind(bind_address(self._config.address))
        except zmq.ZMQError:
            host, _ = parse_address(self._config.address)
            self._socket.bind(bind_address(f"tcp://{f'[{host}]' if ':' in host else host}:*"))

    # ------------------------------------------------------------ who looks

    def _hear(self) -> None:
        for _ in range(1000):
            try:
                identity, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if identity not in self._sessions and len(self._sessions) >= MAX_CONNECTIONS:
                full = f"{MAX_CONNECTIONS} look already."
                self._send(identity, Error(request_id=0, code="over_limit", message=full))
                continue
            now_s = time.monotonic()
            session = self._sessions.setdefault(identity, ServerSession(now_s))
            try:
                message = codec.decode(parts, ClientMessage)
            except ProtocolError as error:
                self._send(identity, session.receive_fault(error, now_s))
                continue
            reply, request = session.receive(message, self._facts(), now_s)
            if reply is not None:
                self._send(identity, reply)
            if isinstance(request, Look):
                self._look(identity, request)
            elif request is not None:
                wrong = "This port is for the live view; ask the server's own."
                request_id = getattr(request, "request_id", 0)
                self._send(identity, Error(request_id=request_id, code="no_view", message=wrong))

    def _look(self, identity: bytes, look: Look) -> None:
        eye = self._eyes.get((identity, look.job_id))
        if eye is None:
            if sum(who == identity for who, _ in self._eyes) >= MAX_LOOKED_AT:
                message = f"A connection may look at {MAX_LOOKED_AT} jobs. Open another for more."
                self._send(identity, Error(request_id=0, code="over_limit", message=message, job_id=look.job_id))
                return
            if self._newest(look.job_id) is None:
                message = "The job has no world to look at yet."
                self._send(identity, Error(request_id=0, code="no_splats", message=message, job_id=look.job_id))
                return
            eye = self._eyes[identity, look.job_id] = _Eye(look)
        eye.sent = [look_id for look_id in eye.sent if look_id > look.seen_id]
        if look.look_id >= eye.look.look_id:
            eye.look = look

    def _forget(self) -> None:
        now_s = time.monotonic()
        for identity, session in list(self._sessions.items()):
            if session.is_silent(now_s):
                self._drop(identity)

    def _drop(self, identity: bytes) -> None:
        self._sessions.pop(identity, None)
        for key in [key for key in self._eyes if key[0] == identity]:
            del self._eyes[key]

    # ------------------------------------------------------------ what is seen

    def _due(self) -> tuple[tuple[bytes, str], _Eye, _World] | None:
        """The next picture to make: that of the eye that was served longest ago, of those that want one."""
        for key, eye in self._eyes.items():
            world = self._worlds.get(key[1])
            if world is None or world.viewer is None or len(eye.sent) >= ON_THE_WAY:
                continue
            if eye.shown != (eye.look.look_id, world.revision):
                return key, eye, world
        return None

    def _show(self, key: tuple[bytes, str], eye: _Eye, world: _World) -> None:
        look = eye.look
        eye.shown = (look.look_id, world.revision)
        # To the end of the line.
        self._eyes[key] = self._eyes.pop(key)
        started_s = time.perf_counter()
        K = np.array([[look.K[0], 0, look.K[2]], [0, look.K[1], look.K[3]], [0, 0, 1]])
        try:
            pixels = world.viewer.look(K, look.c2w, look.width, look.height)
        except Exception:
            # A camera that the rasteriser trips over is one look lost, not the view.
            _log.exception("A look at job %s failed", look.job_id, extra={"job_id": look.job_id})
            return
        data = _jpeg(pixels, look.quality) if look.format == "jpeg" else np.ascontiguousarray(pixels).reshape(-1)
        picture = Picture(
            job_id=look.job_id,
            look_id=look.look_id,
            revision=world.revision,
            width=look.width,
            height=look.height,
            format=look.format,
            render_ms=(time.perf_counter() - started_s) * 1000,
            data=data,
        )
        if self._send(key[0], picture):
            eye.sent.append(look.look_id)

    def _send(self, identity: bytes, message: ServerMessage) -> bool:
        try:
            self._socket.send_multipart([identity, *codec.encode(message)], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._drop(identity)
            return False
        return True

    # ------------------------------------------------------------ worlds

    def _keep_worlds(self) -> None:
        """Loads what is looked at and has grown, and lets go of what nobody looks at."""
        now_s = time.monotonic()
        for _, job_id in self._eyes:
            world = self._worlds.setdefault(job_id, _World())
            world.looked_s = now_s
        for job_id, world in list(self._worlds.items()):
            if world.loading is not None:
                self._take_loaded(job_id, world)
            elif world.looked_s == now_s and now_s - world.checked_s > LOOK_FOR_NEWER_S:
                world.checked_s = now_s
                newest = self._newest(job_id)
                if newest is not None and newest.revision > world.revision:
                    world.loading_revision = newest.revision
                    world.loading = self._loader.submit(self._load, newest)
        idle = sorted((w.looked_s, job_id) for job_id, w in self._worlds.items() if w.looked_s < now_s)
        for _, job_id in idle[: max(len(self._worlds) - KEPT_WORLDS, 0)]:
            del self._worlds[job_id]

    def _take_loaded(self, job_id: str, world: _World) -> None:
        assert world.loading is not None
        if not world.loading.done():
            return
        loading, world.loading = world.loading, None
        try:
            world.viewer = loading.result()
            world.revision = world.loading_revision
        except (OSError, WorldWarpError) as error:
            # Replaced while it was read, say: the next look finds the one that took its place.
            _log.warning("A world of job %s could not be read: %s", job_id, error, extra={"job_id": job_id})
        except Exception as error:
            # No memory left on the device, say: who looks at this one is told, the others look on.
            log_id = uuid.uuid4().hex[:8]
            _log.exception("[%s] showing job %s", log_id, job_id, extra={"job_id": job_id, "log_id": log_id})
            what = f"The world cannot be shown ({type(error).__name__})"
            message = f"{what}. The server's log has the details under {log_id}."
            for identity, _ in [key for key in self._eyes if key[1] == job_id]:
                del self._eyes[identity, job_id]
                self._send(identity, Error(request_id=0, code="engine_failed", message=message, job_id=job_id))

    def _load(self, file: SplatsFile) -> Any:
        return self._open(read_ply(file.path), device=self._config.device)

    def _newest(self, job_id: str) -> SplatsFile | None:
        job = self._store.open(job_id)
        try:
            return job.newest_splats() if job.folder.is_dir() else None
        except (BridgeError, OSError, ValueError, KeyError):
            return None

    def _facts(self) -> ServerFacts:
        return ServerFacts(
            "worldwarp", package_version(), self._config.engine, {}, codec.LIMITS.header_bytes, view_port=self.port
        )


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.frombuffer(file.getvalue(), np.uint8)
