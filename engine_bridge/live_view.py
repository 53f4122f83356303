"""Looking around in a job's world from the client: cameras go out, newest wins, and pictures come back.

    view = LiveView(client, job_id)
    view.look(K, c2w, 1280, 720)           # as often as the camera moves; never waits
    picture = view.picture()               # the newest that has arrived since the last call, or None

A thread owns the connection. At most 60 looks a second are sent, and always the newest; when the world has grown, the
newest look is answered again. Needs what the client needs; runs inside Blender.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import zmq

from . import codec
from .client import Client
from .errors import BridgeError, ProtocolError
from .keys import parse_address
from .messages import Error, Look, Picture, PictureFormat, Ping, ServerMessage
from .session import ClientSession

LOOKS_PER_S = 60.0
CONNECT_TIMEOUT_S = 10.0
RETRY_S = 1.0
"""A look at a job that has no world yet is sent again after this."""


class LiveView:
    """One view of one job's world; see the top of the module.

    Args:
        client: connected to the server; may be closed while the view goes on.
        format: `raw` pixels, or `jpeg` (of `quality`) where the network is slow.

    Raises:
        BridgeError: `no_view`, where the server has none; why `client` is not connected.
    """

    def __init__(self, client: Client, job_id: str, *, format: PictureFormat = "raw", quality: int = 85) -> None:
        port = client.view_port()
        if not port:
            raise BridgeError("no_view", f"The server at {client.address} shows no live view.")
        host, _ = parse_address(client.address)
        self._address = f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
        self.format: PictureFormat = format
        """Of the looks that come; may be changed at any time."""
        self._job_id, self._quality = job_id, quality
        self._key = client.key
        self._session = ClientSession("worldwarp-view", "1", client.client_id, time.monotonic())
        self._context = zmq.Context()
        self._wake = self._context.socket(zmq.PUSH)
        self._wake.bind("inproc://wake")
        self._state = threading.Condition()
        self._wanted: Look | None = None
        self._newest: Picture | None = None
        self._looks = 0
        self._seen = 0
        self._closed = False
        self._fault: BridgeError | None = None
        self._thread = threading.Thread(target=self._run, name="worldwarp-view", daemon=True)
        self._thread.start()

    def __enter__(self) -> LiveView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self, K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> int:
        """Asks what a camera sees, in place of any look that was not sent yet; returns the look's number.

        Args:
            K: fx, fy, cx, cy in pixels.
            c2w: (4, 4), OpenCV's axes in Blender's world.

        Raises:
            BridgeError: `bad_message` for a camera that is none; why the view has ended, where it has.
        """
        with self._state:
            if self._fault is not None:
                raise self._fault
            try:
                wanted = Look(
                    job_id=self._job_id, look_id=self._looks + 1, seen_id=self._seen, width=int(width),
                    height=int(height), format=self.format, quality=self._quality, K=np.asarray(K, np.float64),
                    c2w=np.asarray(c2w, np.float64),
                )  # fmt: skip
            except ValueError as error:
                raise BridgeError("bad_message", f"This camera cannot be sent: {error}.") from error
            self._looks += 1
            self._wanted = wanted
            with suppress(zmq.Again):
                self._wake.send(b"", zmq.NOBLOCK)
            return self._looks

    def picture(self, timeout_s: float = 0.0) -> Picture | None:
        """The newest picture that has come since the last call; waits for one at most so long.

        Raises:
            BridgeError: the view has ended.
        """
        with self._state:
            self._state.wait_for(lambda: self._newest is not None or self._fault is not None, timeout_s)
            picture, self._newest = self._newest, None
            if picture is None and self._fault is not None:
                raise self._fault
            return picture

    def close(self) -> None:
        """Ends the view. Safe to call twice."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            with suppress(zmq.Again):
                self._wake.send(b"", zmq.NOBLOCK)
        self._thread.join()
        self._wake.close(0)
        self._context.destroy(0)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._converse()
        except BridgeError as error:
            fault = error
        except zmq.ZMQError as error:
            fault = BridgeError("server_gone", f"The live view at {self._address} is gone: {error}.")
        else:
            fault = BridgeError("closed", "The view was closed.")
        with self._state:
            self._fault = fault
            self._state.notify_all()

    def _converse(self) -> None:
        wake = self._context.socket(zmq.PULL)
        wake.connect("inproc://wake")
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        if self._key is not None:
            socket.curve_publickey, socket.curve_secretkey = self._key.public.encode(), self._key.secret.encode()
            socket.curve_serverkey = self._key.server_public.encode()
        socket.connect(self._address)
        poller = zmq.Poller()
        poller.register(wake, zmq.POLLIN)
        poller.register(socket, zmq.POLLIN)
        started_s = time.monotonic()
        self._say(socket, self._session.hello())
        sent: Look | None = None
        next_s = 0.0
        try:
            while not self._closed:
                now_s = time.monotonic()
                poller.poll(max(1, min(250, round((next_s - now_s) * 1000))) if self._wanted is not sent else 250)
                while wake.poll(0):
                    wake.recv()
                seen_before = self._seen
                refused = self._hear(socket)
                now_s = time.monotonic()
                if refused:
                    sent, next_s = None, now_s + RETRY_S
                if not self._session.is_open:
                    if now_s - started_s > CONNECT_TIMEOUT_S:
                        raise BridgeError("server_not_running", f"No live view answers at {self._address}.")
                    continue
                if self._session.is_silent(now_s):
                    raise BridgeError("server_gone", f"The live view at {self._address} says nothing any more.")
                if self._session.ping_due(now_s):
                    self._say(socket, Ping(request_id=0))
                wanted = self._wanted
                if wanted is not None and wanted is not sent and now_s >= next_s:
                    sent, next_s = wanted, now_s + 1 / LOOKS_PER_S
                    self._say(socket, _with_seen(wanted, self._seen))
                elif sent is not None and self._seen != seen_before:
                    # Says what was seen, which makes room for the next picture.
                    self._say(socket, _with_seen(sent, self._seen))
        finally:
            socket.close(0)
            wake.close(0)

    def _hear(self, socket: zmq.Socket) -> bool:
        """Takes what has come; returns whether the look has to be sent again: the job has no world yet, say."""
        refused = False
        while True:
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return refused
            message = self._session.receive(codec.decode(parts, ServerMessage), time.monotonic())
            if isinstance(message, Picture):
                with self._state:
                    self._seen = max(self._seen, message.look_id)
                    if self._newest is None or message.look_id >= self._newest.look_id:
                        self._newest = message
                    self._state.notify_all()
            elif isinstance(message, Error):
                if message.code == "hello_first":
                    # It has forgotten us, or was started again.
                    self._say(socket, self._session.hello())
                elif message.code != "no_splats":
                    raise BridgeError(message.code, message.message)
                refused = True
            elif message is not None:
                raise ProtocolError("bad_message", f"The live view sent {type(message).__name__}.")

    def _say(self, socket: zmq.Socket, message: Any) -> None:
        socket.send_multipart(codec.encode(message), zmq.NOBLOCK)
        self._session.said(time.monotonic())


def _with_seen(look: Look, seen_id: int) -> Look:
    return Look(
        job_id=look.job_id, look_id=look.look_id, seen_id=seen_id, width=look.width, height=look.height,
        format=look.format, quality=look.quality, K=look.K, c2w=look.c2w,
    )  # fmt: skip
