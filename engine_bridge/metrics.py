"""What a server counts, in Prometheus' format, at http://127.0.0.1:PORT/metrics.

On loopback only: whoever collects from elsewhere comes through a tunnel or an agent on this machine, as nothing here
asks who is there. Reading costs the server's loop nothing; the GPU's memory is asked of the driver when somebody reads.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any, Protocol

from .doctor import INSTALL_ENGINE
from .errors import BridgeError

_log = logging.getLogger(__name__)
GPU_TIMEOUT_S = 5.0


class Counted(Protocol):
    """What a server tells of itself as it runs."""

    def frames(self, count: int) -> None:
        """So many frames were made."""

    def job(self, state: str) -> None:
        """A job came into a state."""

    def stages(self, seconds: dict[str, Any]) -> None:
        """A job took so long in each stage."""

    def sent(self, size_bytes: int) -> None:
        """An event was sent."""

    def close(self) -> None:
        """No more is counted."""


class NoMetrics:
    """Counts nothing."""

    def frames(self, count: int) -> None: ...

    def job(self, state: str) -> None: ...

    def stages(self, seconds: dict[str, Any]) -> None: ...

    def sent(self, size_bytes: int) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Counts, and answers on a port.

    Args:
        port: on loopback; 0 takes a free one.
        gauges: name -> (what it is, a function of its value), asked when somebody reads.

    Raises:
        BridgeError: `engine_unavailable` without prometheus_client, `address_in_use`.
    """

    def __init__(self, port: int, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        try:
            import prometheus_client as prometheus
        except ModuleNotFoundError as error:
            raise BridgeError(
                "engine_unavailable",
                f"Metrics need prometheus_client, which is not installed: {INSTALL_ENGINE}",
            ) from error
        registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._frames = prometheus.Counter("worldwarp_frames", "Frames made.", registry=registry)
        self._jobs = prometheus.Counter("worldwarp_jobs", "Jobs that came into a state.", ["state"], registry=registry)
        self._stages = prometheus.Counter(
            "worldwarp_stage_seconds", "Seconds that ended jobs took, by stage.", ["stage"], registry=registry
        )
        self._sent = prometheus.Counter("worldwarp_sent_bytes", "Bytes of events sent.", registry=registry)
        for name, (what, value) in gauges.items():
            prometheus.Gauge(f"worldwarp_{name}", what, registry=registry).set_function(value)
        registry.register(_GpuMemory())
        try:
            self._server, self._thread = prometheus.start_http_server(port, "127.0.0.1", registry)
        except OSError as error:
            raise BridgeError("address_in_use", f"Cannot serve metrics on port {port} ({error.strerror}).") from error
        self.port: int = self._server.server_port
        _log.info("Metrics on http://127.0.0.1:%d/metrics", self.port)

    def frames(self, count: int) -> None:
        self._frames.inc(count)

    def job(self, state: str) -> None:
        self._jobs.labels(state).inc()

    def stages(self, seconds: dict[str, Any]) -> None:
        for stage, value in seconds.items():
            if isinstance(value, int | float) and value >= 0:
                self._stages.labels(stage[:40]).inc(value)

    def sent(self, size_bytes: int) -> None:
        self._sent.inc(size_bytes)

    def close(self) -> None:
        # Its own thread's loop is told, which waits for up to half a second.
        Thread(target=self._server.shutdown, daemon=True).start()
        self._thread.join(2.0)
        self._server.server_close()


class _GpuMemory:
    """Memory of every GPU of this machine, as its driver has it; nothing where there is no driver."""

    def collect(self) -> Iterator[Any]:
        """Called by prometheus_client when somebody reads."""
        from prometheus_client.core import GaugeMetricFamily

        used = GaugeMetricFamily("worldwarp_gpu_memory_bytes", "Memory in use, by GPU.", labels=["gpu"])
        for gpu, mebibytes in gpu_memory_mib().items():
            used.add_metric([gpu], mebibytes * 2**20)
        yield used


def gpu_memory_mib() -> dict[str, float]:
    """MiB in use on each GPU; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)
        return {gpu.strip(): float(used) for gpu, used in (line.split(",") for line in done.stdout.splitlines())}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
