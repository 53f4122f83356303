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
    """What happens, seconds after the first connection or after it was begun; 0 is never or nothing.

    Attributes:
        cut_s: how long connections are cut and none is accepted, from `after_s` on.
        half_open_s: how long nothing passes while every connection stays open.
        delay_s: by which every byte is late.
        bytes_per_s: how much passes each way of each connection.
        loss: probability that a piece of up to 64 KiB is held back for `retransmit_s`.
        stuck_bytes: after which each way of each connection stands still, until another fault is begun.
    """

    after_s: float = 1.5
    cut_s: float = 0.0
    half_open_s: float = 0.0
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    loss: float = 0.0
    retransmit_s: float = 0.2
    stuck_bytes: int = 0


FAULTS = {
    "cut_1_s": Fault(cut_s=1.0),
    "cut_10_s": Fault(cut_s=10.0),
    "cut_60_s": Fault(cut_s=60.0),
    "delay_200_ms": Fault(delay_s=0.2),
    "loss_5_percent": Fault(loss=0.05),
    "half_open_30_s": Fault(half_open_s=30.0),
}


class Proxy:
    """Listens on `port` and passes everything on to the server's, with a fault.

    A test that needs a fault at one moment of a job has it by `cut` and `hold`, which last until `mend`.
    """

    def __init__(self, server_port: int, fault: Fault = Fault()) -> None:
        self._server_port, self._fault = server_port, fault
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connected = threading.Event()
        self._pipes: list[socket.socket] = []
        self._lock = threading.Lock()
        self._is_cut = False
        self._passing = threading.Event()
        self._passing.set()
        self._closed = threading.Event()
        self._random = random.Random(1)
        for work in (self._accept, self._happen):
            threading.Thread(target=work, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._connected.set()
        self._passing.set()
        self._listener.close()
        self.cut()

    def begin(self, fault: Fault) -> None:
        """From now on this fault: of those that last."""
        self._fault = fault

    def cut(self) -> None:
        """Cuts every connection, and takes none."""
        with self._lock:
            self._is_cut = True
            pipes, self._pipes = self._pipes, []
            _end(*pipes)

    def hold(self) -> None:
        """Lets nothing pass, while every connection stays open."""
        self._passing.clear()

    def mend(self) -> None:
        """Ends what `cut` and `hold` have begun."""
        self._is_cut = False
        self._passing.set()

    def _happen(self) -> None:
        """The fault that comes and goes by itself."""
        fault = self._fault
        self._connected.wait()
        if not (fault.cut_s or fault.half_open_s) or self._closed.wait(fault.after_s):
            return
        if fault.cut_s:
            self.cut()
        else:
            self.hold()
        if not self._closed.wait(fault.cut_s or fault.half_open_s):
            self.mend()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._connected.set()
                with self._lock:
                    if self._is_cut:
                        near.close()
                        continue
                    far = socket.create_connection(("127.0.0.1", self._server_port))
                    self._pipes += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        late: list[tuple[float, bytes]] = []
        passed = 0
        with contextlib.suppress(OSError):
            source.settimeout(0.005 if self._fault.delay_s else None)
            while True:
                try:
                    data = source.recv(65536)
                    if not data:
                        break
                    late.append((time.monotonic() + self._fault.delay_s, data))
                except TimeoutError:
                    pass
                while late and late[0][0] <= time.monotonic():
                    fault = self._fault
                    if fault.loss and self._random.random() < fault.loss:
                        time.sleep(fault.retransmit_s)
                    data = late.pop(0)[1]
                    if fault.bytes_per_s:
                        time.sleep(len(data) / fault.bytes_per_s)
                    self._passing.wait()
                    while self._fault.stuck_bytes and passed > self._fault.stuck_bytes and not self._closed.is_set():
                        time.sleep(0.01)
                    passed += len(data)
                    target.sendall(data)
        _end(source, target)


def _end(*pipes: socket.socket) -> None:
    """Ends connections, also those from which another thread is just reading: closing alone would wait for it."""
    for pipe in pipes:
        with contextlib.suppress(OSError):
            pipe.shutdown(socket.SHUT_RDWR)
        pipe.close()
