"""A proxy on loopback that does to a connection what networks do."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What happens, seconds after the first connection; 0 is never or nothing.

    Attributes:
        cut_s: how long connections are cut and none is accepted, from `after_s` on.
        half_open_s: how long nothing passes while every connection stays open.
        delay_s: by which every byte is late.
        bytes_per_s: how much passes each way of each connection.
        loss: probability that a piece of up to 64 KiB is held back for `retransmit_s`.
    """

    after_s: float = 1.5
    cut_s: float = 0.0
    half_open_s: float = 0.0
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    loss: float = 0.0
    retransmit_s: float = 0.2


FAULTS = {
    "cut_1_s": Fault(cut_s=1.0),
    "cut_10_s": Fault(cut_s=10.0),
    "cut_60_s": Fault(cut_s=60.0),
    "delay_200_ms": Fault(delay_s=0.2),
    "loss_5_percent": Fault(loss=0.05),
    "half_open_30_s": Fault(half_open_s=30.0),
}


class Proxy:
    """Listens on `port` and passes everything on to the server's, with a fault."""

    def __init__(self, server_port: int, fault: Fault) -> None:
        self._server_port, self._fault = server_port, fault
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._began_s: float | None = None
        self._pipes: list[socket.socket] = []
        self._closed = False
        self._random = random.Random(1)
        for work in (self._accept, self._cut):
            threading.Thread(target=work, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()
        self._drop()

    def _within(self, length_s: float) -> bool:
        if self._began_s is None or not length_s:
            return False
        return 0 <= time.monotonic() - self._began_s - self._fault.after_s < length_s

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                near, _ = self._listener.accept()
                if self._began_s is None:
                    self._began_s = time.monotonic()
                if self._within(self._fault.cut_s):
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._server_port))
                self._pipes += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _cut(self) -> None:
        while not self._closed:
            if self._within(self._fault.cut_s):
                self._drop()
            time.sleep(0.02)

    def _drop(self) -> None:
        pipes, self._pipes = self._pipes, []
        for pipe in pipes:
            with contextlib.suppress(OSError):
                pipe.shutdown(socket.SHUT_RDWR)
            pipe.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        late: list[tuple[float, bytes]] = []
        fault = self._fault
        with contextlib.suppress(OSError):
            source.settimeout(0.005 if fault.delay_s else None)
            while True:
                if self._within(fault.half_open_s):
                    time.sleep(0.05)
                    continue
                try:
                    data = source.recv(65536)
                    if not data:
                        break
                    late.append((time.monotonic() + fault.delay_s, data))
                except TimeoutError:
                    pass
                while late and late[0][0] <= time.monotonic():
                    if fault.loss and self._random.random() < fault.loss:
                        time.sleep(fault.retransmit_s)
                    data = late.pop(0)[1]
                    if fault.bytes_per_s:
                        time.sleep(len(data) / fault.bytes_per_s)
                    target.sendall(data)
        for pipe in (source, target):
            with contextlib.suppress(OSError):
                pipe.close()
