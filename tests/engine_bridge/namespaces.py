"""Two network namespaces joined by a wire that loses, delays and cuts packets: real networks' faults on one machine.

    unshare --user --map-root-user --net python -m tests.engine_bridge.namespaces FRAMES FAULT ...

runs a server in one and a client in the other, with keys, as any address but loopback asks for them; has a shot of so
many frames made for each fault (of proxy.FAULTS), and prints {fault: {s, lost, twice, packets_lost}}. Each namespace
has one TUN device, the wire is a thread that carries packets between the two. Linux only, where users may have
namespaces; needs `ip` and `unshare`.
"""

from __future__ import annotations

import array
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine_bridge import keys
from engine_bridge import messages as m
from engine_bridge.client import Client

from .proxy import FAULTS, Fault
from .shots import shot

CLIENT_IP, SERVER_IP, PORT = "10.77.0.1", "10.77.0.2", 5577
MTU = 1500
ENTER = ("unshare", "--user", "--map-root-user", "--net")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def why_not() -> str:
    """Why this machine cannot do it; "" where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "`ip` and `unshare` are needed"
    tried = subprocess.run(
        [*ENTER, sys.executable, "-c", "open('/dev/net/tun', 'r+b', 0)"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"no namespace with a TUN device: {tried.stderr.strip()[-200:]}"


def run_faults(frames: int, names: list[str]) -> dict[str, dict[str, float]]:
    """{fault: {s, lost, twice, packets_lost}} of a shot of so many frames for each: seconds, frames, packets."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*ENTER, sys.executable, "-m", "tests.engine_bridge.namespaces", str(frames), *names],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


class Wire:
    """Carries packets between two TUN devices until it is closed; `fault` may be changed at any time."""

    def __init__(self, near: int, far: int) -> None:
        self._ends = {near: far, far: near}
        self._fault = Fault()
        self._began_s = time.monotonic()
        self._random = random.Random(1)
        self._late: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()
        self.lost = 0
        threading.Thread(target=self._carry, daemon=True).start()

    def begin(self, fault: Fault) -> None:
        """From now on this fault."""
        self._fault, self._began_s = fault, time.monotonic()

    def _passes(self) -> bool:
        since_s = time.monotonic() - self._began_s - self._fault.after_s
        # What a proxy has to tell apart is one on a wire: nothing passes, and nobody says so.
        if 0 <= since_s < max(self._fault.cut_s, self._fault.half_open_s):
            return False
        return self._random.random() >= self._fault.loss

    def _carry(self) -> None:
        while True:
            wait_s = max(self._late[0][0] - time.monotonic(), 0) if self._late else 0.05
            readable, _, _ = select.select(list(self._ends), [], [], wait_s)
            for end in readable:
                packet = os.read(end, MTU + 100)
                if self._passes():
                    due_s = time.monotonic() + self._fault.delay_s
                    heapq.heappush(self._late, (due_s, next(self._numbers), self._ends[end], packet))
                else:
                    self.lost += 1
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(self._late)
                # An end that is gone loses what is sent to it, as networks do.
                with suppress(OSError):
                    os.write(target, packet)


def _make_tun(own_ip: str) -> int:
    """A TUN device of this namespace with that address; its file descriptor."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
    for words in (f"addr add {own_ip}/24 dev wire", f"link set wire mtu {MTU} up", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True)
    return tun


def _serve(send_tun: int, folder: Path) -> None:
    """The other namespace: hands its end of the wire over and serves."""
    from engine_bridge.server import Server, ServerConfig

    from .conftest import FAKE_ENGINE

    tun = _make_tun(SERVER_IP)
    with socket.socket(fileno=send_tun) as pair:
        pair.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tun]))])
    config = ServerConfig(
        address=f"tcp://{SERVER_IP}:{PORT}", data_dir=folder / "jobs", factory=FAKE_ENGINE, view=False,
        keys_dir=folder / "keys",
    )  # fmt: skip
    Server(config).serve(handle_signals=True)


def _main(frames: int, names: list[str]) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
        folder = Path(text)
        server_key = keys.make_server_key(folder / "keys")
        key, _ = keys.make_client_key(folder / "keys", "anna", server_key.public)
        keys.allow_client(folder / "keys", "anna", key.public)
        here = _make_tun(CLIENT_IP)
        ours, theirs = socket.socketpair()
        command = ["unshare", "--net", sys.executable, "-m", __spec__.name, "--serve", str(theirs.fileno()), text]
        server = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        try:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            wire = Wire(here, descriptors[0])
            results: dict[str, Any] = {name: _one(wire, FAULTS[name], key, frames) for name in names}
        finally:
            server.terminate()
            server.wait(60)
    print(json.dumps(results))


def _one(wire: Wire, fault: Fault, key: keys.ClientKey, frames: int) -> dict[str, float]:
    wire.begin(Fault())
    wire.lost = 0
    began_s = time.monotonic()
    address = f"tcp://{SERVER_IP}:{PORT}"
    with Client(address, key=key, connect_timeout_s=60, gone_timeout_s=300) as client:
        client.connect()
        wire.begin(fault)
        spec = shot(frames, prompt="slow=0.1", width=320, height=180)
        got = [event.index for event in client.events(client.submit(spec)) if isinstance(event, m.FrameEvent)]
    return {
        "s": round(time.monotonic() - began_s, 1),
        "lost": frames - len(set(got)),
        "twice": len(got) - len(set(got)),
        "packets_lost": wire.lost,
    }


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        _main(int(sys.argv[1]), sys.argv[2:])
