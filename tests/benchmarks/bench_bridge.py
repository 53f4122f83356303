"""The bridge's figures: deaths, noise, load, faults and speed.

    python tests/benchmarks/bench_bridge.py                      everything, into results/bridge.json
    python tests/benchmarks/bench_bridge.py --only throughput    one part; its figures replace those in the file
    python tests/benchmarks/bench_bridge.py --short              each part for a few seconds, printed only

kills, kills_lost_frames, kills_twice_final
                       server, worker and client killed (SIGKILL) at random moments of jobs of the real loop (engine
                       `cache` on the CPU, one thread), so many times in all, a third each; frames that were lost or are
                       not, to the bit, those of an uninterrupted run, and frames that were final twice.
                       `kills_jobs`: that it took; a kill counts while the job has not ended.
kills_fake_engine, ... the same with the fake engine, whose every frame depends on all before it and is large enough to
                       go through shared memory.
fuzz_messages, fuzz_failures
                       random, mutated and truncated messages at the codec and the server's session; anything but a
                       message or a typed refusal is a failure.
fuzz_coverage_runs     inputs of the coverage-guided fuzzer (atheris) among them.
fuzz_socket_messages, fuzz_socket_failures, fuzz_socket_growth_mib
                       the same at a real server's socket; a failure is a server that is gone, hangs, or answers with
                       anything but a typed refusal.
throughput_gb_s        frames of 1280x720 (RGB, depth, mask: 7.4 MB) from a server to a client on loopback, the events
                       in memory; throughput_store_gb_s: read from the store on disk, checksums and all.
throughput_pushpull_gb_s, throughput_fraction_of_pushpull, throughput_aiohttp_gb_s
                       the same bytes over a plain ZeroMQ PUSH/PULL (the limit), and over aiohttp with aiohttp's own
                       client. Measured in turn, several rounds, so that what else the machine does falls on all of
                       them: the median of each, and of each round's fraction (`throughput_fractions` has them all).
added_latency_ms       from when the engine gives a frame away until the client has it, less the same over PUSH/PULL
                       right after; the median of such pairs, and their quartiles. The engine's last step writes its
                       frames into arrays that it was lent (worldwarp_core.frame_memory), as the project's engines do;
                       that it takes, as any making of a frame, is not counted.
added_latency_own_arrays_ms
                       the same of an engine that makes its own arrays, which the worker copies.
measured_under         of each part that measures speed: the load average when it began, and whether it ran ahead of
                       what else the machine did (a real-time scheduler, `chrt -r 1`).
compression_ratio, compression_mb_s, decompression_mb_s
                       a frame of 1280x720 with depth and mask, of a rendered room with noise of 2 levels of 255 on it,
                       compressed for a slow network: how much smaller, and how much of it a second on one core; median.
live_view_round_trip_ms
                       a look at 640x360 answered without rendering; median.
slow_client_growth_mib
                       the server's memory while a client follows 400 MB of frames with credit for 16 MiB and reads
                       nothing.
endless_message_bytes_kept
                       the server's memory by each byte that a peer sends of a message whose parts never end, by their
                       size: what ZeroMQ sets no limit to (PROTOCOL.md says what that means).
endless_message_wait_ms
                       how long another client waits meanwhile for the list of jobs; the longest.
clients, jobs, clients_s, clients_unfair
                       clients at once and their queued jobs, the seconds until all were served, and the largest
                       difference of turns had between two clients that both still waited: 1 where they take turns.
faults                 for each fault of a proxy on loopback: seconds that the shot took, and frames that were lost.
                       `loss_5_percent` holds a chunk of bytes back for TCP's least retransmission time (200 ms) with
                       that probability: a proxy cannot lose packets.
faults_between_namespaces
                       the same between two network namespaces, whose packets are really lost, late or cut off, both
                       ends with keys; or why this machine cannot do that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import psutil
import zmq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from engine_bridge import codec  # noqa: E402
from engine_bridge import messages as m  # noqa: E402
from engine_bridge.client import Client  # noqa: E402
from engine_bridge.live_view import LiveView  # noqa: E402
from engine_bridge.server import Server, ServerConfig  # noqa: E402
from engine_bridge.store import JobStore  # noqa: E402
from tests.engine_bridge import namespaces  # noqa: E402
from tests.engine_bridge.fake_engine import FakeEngine  # noqa: E402
from tests.engine_bridge.fuzzing import fuzz_codec, fuzz_coverage, fuzz_socket  # noqa: E402
from tests.engine_bridge.proxy import FAULTS, Proxy  # noqa: E402
from tests.engine_bridge.shots import JOB, shot  # noqa: E402
from worldwarp_core.evaluation.provenance import provenance  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "bridge.json"
FAKE = "tests.engine_bridge.fake_engine:load"
VIEWER = "tests.engine_bridge.fake_viewer:open_viewer"
WIDTH, HEIGHT = 1280, 720
SPAWN = multiprocessing.get_context("spawn")


# ---------------------------------------------------------------- servers and clients as processes


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def serve(data_dir: str, address: str, settings: dict[str, Any]) -> None:
    """A server, in a process of its own."""
    logging.disable(logging.CRITICAL)
    config = {"factory": FAKE, "view": False, "max_queued_by_client": 1000, **settings}
    Server(ServerConfig(address=address, data_dir=Path(data_dir), **config)).serve(handle_signals=True)


@contextlib.contextmanager
def running_server(data_dir: Path, **settings: Any) -> Iterator[tuple[str, Any]]:
    """Yields the address and the process of a server."""
    address = free_address()
    process = SPAWN.Process(target=serve, args=(str(data_dir), address, settings))
    process.start()
    try:
        with Client(address, connect_timeout_s=60) as client:
            client.connect()
        yield address, process
    finally:
        process.terminate()
        process.join(10)
        process.kill()


def wait_for_engine(address: str) -> None:
    """Until the worker has started: that takes a core for a second, which is not what is measured."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with Client(address, connect_timeout_s=60) as client:
            if client.connect().engine_info:
                return
        time.sleep(0.1)


# ---------------------------------------------------------------- kills


def follow_to_file(address: str, job_id: str, path: str, shot_args: dict[str, Any]) -> None:
    """A client that can be killed: appends every event of the job to a file, and goes on after the last one in it."""
    spec = make_shot(**shot_args)
    after = 0
    file = Path(path)
    if file.exists():
        # The last one once more: the job may have ended with it, and then nothing comes after.
        records = list(read_records(file))[:-1]
        after = len(records)
        file.write_bytes(b"".join(_framed(record) for record in records))
    with Client(address, connect_timeout_s=60, gone_timeout_s=120) as client, file.open("ab", 0) as out:
        client.submit(spec, job_id=job_id, after_seq=after)
        for event in client.events(job_id):
            if hasattr(event, "seq"):
                out.write(_framed(codec.join(codec.encode(event))))


def _framed(record: bytes) -> bytes:
    return len(record).to_bytes(8, "little") + record


def read_records(path: Path) -> Iterator[bytes]:
    """The whole records of the file; what a killed client left half written is none."""
    content = path.read_bytes()
    at = 0
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 8], "little")
        if at + 8 + size > len(content):
            return
        yield content[at + 8 : at + 8 + size]
        at += 8 + size


def make_shot(frames: int, prompt: str, engine: str) -> Any:
    """A shot of the fake engine's, large enough for shared memory (hot.py), or a small one of the real loop's."""
    if engine == "fake":
        return shot(frames, prompt=prompt, seed=5, width=320, height=180)
    from tests.support import room
    from worldwarp_core.spec import GenerateSpec

    cameras = room.truck(frames, width=64, height=48)
    rgb, depth = room.render(cameras, 0)
    return GenerateSpec(cameras, rgb, depth, chunk=9, overlap=5, cache_steps=40, seed=5)


def uninterrupted(shot_args: dict[str, Any], folder: Path) -> list[bytes]:
    """The bytes of every frame as a run makes them that nothing happens to."""
    spec = make_shot(**shot_args)
    if shot_args["engine"] == "fake":
        made = FakeEngine().generate(dataclasses.replace(spec, prompt="noise"))
        return [e.rgb.tobytes() + e.depth.tobytes() for e in made if hasattr(e, "rgb")]
    real = {"factory": "worldwarp_core.api:load_engine", "options": {"device": "cpu"}}
    with running_server(folder, **real) as (address, _), Client(address) as client:
        events = list(client.events(client.submit(spec)))
    return [e.rgb.tobytes() + e.depth.tobytes() for e in events if isinstance(e, m.FrameEvent)]


def judge(path: Path, wanted: list[bytes]) -> tuple[int, int]:
    """(frames lost or different, frames final twice) in what a client has on disk."""
    final: dict[int, bytes] = {}
    provisional: dict[int, bytes] = {}
    twice = 0
    done = False
    for record in read_records(path):
        event = codec.decode(codec.split(record), m.LoggedEvent)
        if isinstance(event, m.FrameEvent):
            twice += event.index in final
            provisional[event.index] = event.rgb.tobytes() + event.depth.tobytes()
        elif isinstance(event, m.ChunkCommitted) or (isinstance(event, m.StateEvent) and event.state == "done"):
            done = isinstance(event, m.StateEvent)
            upto = len(wanted) if done else event.frames
            twice += isinstance(event, m.ChunkCommitted) and upto <= len(final)
            final |= {index: frame for index, frame in provisional.items() if index < upto}
            provisional = {index: frame for index, frame in provisional.items() if index >= upto}
    lost = sum(final.get(index) != frame for index, frame in enumerate(wanted))
    return lost if done else max(lost, 1), twice


def kills(count: int, engine: str, folder: Path) -> dict[str, int]:
    """Kills server, worker and client `count` times each, at most once each of a job, before it has ended."""
    rng = random.Random(7)
    shot_args = {"frames": 33, "prompt": "noise slow=0.06", "engine": engine}
    settings: dict[str, Any] = {}
    if engine == "cpu":
        settings = {"factory": "worldwarp_core.api:load_engine", "options": {"device": "cpu"}}
        os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
    wanted = uninterrupted(shot_args, folder / "calm")
    address = free_address()
    left = dict.fromkeys(("server", "worker", "client"), count)
    jobs = lost = twice = 0

    def start_server() -> Any:
        process = SPAWN.Process(target=serve, args=(str(folder / "jobs"), address, settings))
        process.start()
        return process

    server = start_server()
    try:
        while any(left.values()):
            jobs += 1
            job_id, path = f"{jobs:032x}", folder / f"{jobs}.events"

            def start_client(job_id: str = job_id, path: Path = path) -> Any:
                process = SPAWN.Process(target=follow_to_file, args=(address, job_id, str(path), shot_args))
                process.start()
                return process

            client = start_client()
            victims = [victim for victim, times in left.items() if times]
            rng.shuffle(victims)
            for victim in victims:
                # A worker takes a second or two to start, and a job three to run: moments of every kind.
                time.sleep(rng.uniform(0.0, 2.5))
                # A client leaves when its job has ended.
                if not client.is_alive():
                    break
                if victim == "server":
                    server.kill()
                    server.join()
                    server = start_server()
                elif victim == "client":
                    client.kill()
                    client.join()
                    client = start_client()
                else:
                    _kill_worker(server.pid)
                left[victim] -= 1
            client.join(180)
            if client.is_alive():
                client.kill()
            missing, again = judge(path, wanted)
            lost, twice = lost + missing, twice + again
            print(f"  job {jobs}: {missing} frames lost, {again} final twice; kills left: {left}", flush=True)
    finally:
        server.kill()
        server.join()
    return {"": 3 * count, "_jobs": jobs, "_lost_frames": lost, "_twice_final": twice}


def _kill_worker(server_pid: int) -> None:
    """Kills the server's worker, waiting for one where there is none just now."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(server_pid).children():
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()
                    return
        time.sleep(0.05)


def run_kills(short: bool) -> dict[str, Any]:
    results = {}
    for engine, prefix in (("cpu", "kills"), ("fake", "kills_fake_engine")):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            counts = kills(1 if short else 30, engine, Path(folder))
        results |= {f"{prefix}{name}": count for name, count in counts.items()}
    return results


# ---------------------------------------------------------------- fuzzing


def run_fuzz(short: bool) -> dict[str, Any]:
    messages = 10_000 if short else 1_000_000
    failures = fuzz_codec(messages, seed=1)
    guided, guided_failures = fuzz_coverage(5 if short else 60)
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as (address, process):
        before = psutil.Process(process.pid).memory_info().rss
        sent = 1000 if short else 100_000
        refused = fuzz_socket(address, sent, seed=2)
        growth = psutil.Process(process.pid).memory_info().rss - before
    return {
        "fuzz_messages": messages + guided,
        "fuzz_failures": len(failures) + guided_failures,
        "fuzz_coverage_runs": guided,
        "fuzz_socket_messages": sent,
        "fuzz_socket_failures": sent - refused,
        "fuzz_socket_growth_mib": round(growth / 2**20, 1),
    }


# ---------------------------------------------------------------- throughput


def frame_event(seq: int) -> m.FrameEvent:
    size = (HEIGHT, WIDTH)
    rng = np.random.default_rng(seq)
    return m.FrameEvent(
        job_id=JOB, seq=seq, index=seq, number=seq, chunk=0, attempt=1,
        rgb=rng.integers(0, 256, (*size, 3), np.uint8), depth=rng.random(size, np.float32),
        validity=rng.integers(0, 256, size, np.uint8),
    )  # fmt: skip


def stored_frames(folder: Path, count: int) -> None:
    """A job that is done, of `count` frames of 1280x720 (8 different ones)."""
    from engine_bridge.store import StoredState
    from tests.engine_bridge.shots import one_of_each

    submit = next(message for message in one_of_each() if isinstance(message, m.Submit))
    job = JobStore(folder).create(JOB, codec.encode(submit), StoredState("done", 1.0, count, count))
    frames = [frame_event(seq) for seq in range(1, 9)]
    with job.log.appending() as append:
        for seq in range(1, count + 1):
            append(codec.encode(attrs.evolve(frames[seq % 8], seq=seq)))
        append(codec.encode(m.StateEvent(job_id=JOB, seq=count + 1, state="done")))


class _MemoryStore:
    """Stands in for the store: the events of one job in memory."""

    def __init__(self, store: JobStore, count: int) -> None:
        self._store = store
        parts = [codec.encode(frame_event(seq)) for seq in range(1, 9)]
        headers = [codec.encode(attrs.evolve(frame_event(1), seq=seq))[0] for seq in range(1, count + 1)]
        self._events = [[header, *parts[n % 8][1:]] for n, header in enumerate(headers)]
        self._events.append(codec.encode(m.StateEvent(job_id=JOB, seq=count + 1, state="done")))
        self.log = self

    def open(self, job_id: str) -> Any:
        return self

    def read(self, seq: int) -> list[codec.Part]:
        return self._events[seq - 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def serve_stored(data_dir: str, address: str, memory_count: int) -> None:
    logging.disable(logging.CRITICAL)
    server = Server(ServerConfig(address=address, data_dir=Path(data_dir), factory=FAKE, view=False))
    if memory_count:
        server._store = _MemoryStore(server._store, memory_count)  # type: ignore[assignment]
    server.serve(handle_signals=True)


def bridge_speed(folder: Path, count: int, *, in_memory: bool) -> float:
    """GB/s from the first frame's arrival to the last's."""
    address = free_address()
    process = SPAWN.Process(target=serve_stored, args=(str(folder), address, count if in_memory else 0))
    process.start()
    try:
        wait_for_engine(address)
        with Client(address, connect_timeout_s=60, credit_bytes=128 * 2**20) as client:
            client.connect()
            client.subscribe(JOB)
            began_s, size = 0.0, 0
            for event in client.events(JOB):
                if isinstance(event, m.FrameEvent):
                    if not began_s:
                        began_s = time.perf_counter()
                    else:
                        size += event.rgb.nbytes + event.depth.nbytes + event.validity.nbytes
            return size / (time.perf_counter() - began_s) / 1e9
    finally:
        process.terminate()
        process.join()


def push(address: str, count: int) -> None:
    context = zmq.Context()
    pusher = context.socket(zmq.PUSH)
    pusher.sndhwm = 20
    pusher.connect(address)
    frames = [[bytes(part) for part in codec.encode(frame_event(seq))] for seq in range(1, 9)]
    for n in range(count):
        pusher.send_multipart(frames[n % 8], copy=False)
    pusher.close(60_000)
    context.term()


def pushpull_speed(count: int) -> float:
    address = free_address()
    context = zmq.Context()
    puller = context.socket(zmq.PULL)
    puller.rcvhwm = 20
    puller.bind(address)
    process = SPAWN.Process(target=push, args=(address, count))
    process.start()
    began_s, size = 0.0, 0
    for _ in range(count):
        parts = puller.recv_multipart(copy=False)
        if not began_s:
            began_s = time.perf_counter()
        else:
            size += sum(len(part) for part in parts[1:])
    took_s = time.perf_counter() - began_s
    process.join()
    context.destroy(0)
    return size / took_s / 1e9


def serve_http(port: int, count: int) -> None:
    from aiohttp import web

    frames = [b"".join(bytes(part) for part in codec.encode(frame_event(seq))) for seq in range(1, 9)]

    async def shot_of(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.content_length = sum(len(frames[n % 8]) for n in range(count))
        await answer.prepare(request)
        for n in range(count):
            await answer.write(frames[n % 8])
        await answer.write_eof()
        return answer

    app = web.Application()
    app.router.add_get("/", shot_of)
    web.run_app(app, host="127.0.0.1", port=port, print=None, handle_signals=True)


def http_speed(count: int) -> float:
    import aiohttp

    port = int(free_address().rpartition(":")[2])
    process = SPAWN.Process(target=serve_http, args=(port, count))
    process.start()
    frame_bytes = len(b"".join(bytes(part) for part in codec.encode(frame_event(1))))

    async def fetch() -> float:
        deadline = time.monotonic() + 60
        async with aiohttp.ClientSession(read_bufsize=2**22) as session:
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/") as answer:
                        await answer.content.readexactly(frame_bytes)
                        began_s, size = time.perf_counter(), 0
                        # The fastest way to have each frame whole, as the others have it: into one buffer for each.
                        frame, filled = memoryview(bytearray(frame_bytes)), 0
                        async for piece in answer.content.iter_any():
                            left = memoryview(piece)
                            while left:
                                part = left[: frame_bytes - filled]
                                frame[filled : filled + len(part)] = part
                                filled, left = filled + len(part), left[len(part) :]
                                if filled == frame_bytes:
                                    frame, filled, size = memoryview(bytearray(frame_bytes)), 0, size + frame_bytes
                        return size / (time.perf_counter() - began_s) / 1e9
                except aiohttp.ClientConnectorError:
                    if time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.1)

    try:
        return asyncio.run(fetch())
    finally:
        process.terminate()
        process.join()


def run_throughput(short: bool) -> dict[str, Any]:
    count, rounds = (60, 1) if short else (300, 9)
    speeds: dict[str, list[float]] = {"pushpull": [], "bridge": [], "store": [], "aiohttp": []}
    with tempfile.TemporaryDirectory() as folder:
        stored_frames(Path(folder), count)
        for _ in range(rounds):
            speeds["pushpull"].append(pushpull_speed(count))
            speeds["bridge"].append(bridge_speed(Path(folder), count, in_memory=True))
            speeds["store"].append(bridge_speed(Path(folder), count, in_memory=False))
            speeds["aiohttp"].append(http_speed(count))
    middle = {name: round(statistics.median(values), 2) for name, values in speeds.items()}
    of_pushpull, of_aiohttp = (
        [ours / theirs for ours, theirs in zip(speeds["bridge"], speeds[other], strict=True)]
        for other in ("pushpull", "aiohttp")
    )
    return {
        "throughput_gb_s": middle["bridge"],
        "throughput_store_gb_s": middle["store"],
        "throughput_pushpull_gb_s": middle["pushpull"],
        "throughput_fraction_of_pushpull": round(statistics.median(of_pushpull), 3),
        "throughput_fractions": sorted(round(fraction, 2) for fraction in of_pushpull),
        "throughput_aiohttp_gb_s": middle["aiohttp"],
        "throughput_fraction_of_aiohttp": round(statistics.median(of_aiohttp), 3),
        "throughput_rounds": {name: [round(value, 2) for value in values] for name, values in speeds.items()},
    }


# ---------------------------------------------------------------- latency


class StampedEngine:
    """Frames of 1280x720, a few a second, and after each the same bytes over PUSH: both in the same weather.

    The first depth pixels say when each was given away. The prompt is where to push to, and whether frames are written
    into arrays that were "lent" or are the engine's "own"; what goes over PUSH always lies in its own.
    """

    def describe(self) -> dict[str, Any]:
        return {"engine": "stamped"}

    def generate(self, spec: Any, resume: Any = None) -> Iterator[Any]:
        from worldwarp_core.frame_memory import frame_arrays
        from worldwarp_core.spec import Finished, Frame

        pusher = zmq.Context.instance().socket(zmq.PUSH)
        address, arrays = spec.prompt.split()
        pusher.connect(address)
        rgb, validity = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)

        def stamped(arrays: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            time.sleep(0.05)
            if arrays == "lent":
                frame = frame_arrays(HEIGHT, WIDTH)
                frame[0][...], frame[2][...] = rgb, validity
            else:
                frame = rgb, np.empty((HEIGHT, WIDTH), np.float32), validity
            frame[1][...] = 1
            frame[1][0, :2] = np.array([time.monotonic()]).view(np.float32)
            return frame

        for index, number in enumerate(spec.cameras.frames):
            yield Frame(index, int(number), 0, *stamped(arrays))
            pusher.send_multipart([b"", *(array.data for array in stamped("own"))], copy=False)
        pusher.close(60_000)
        yield Finished({})


def load_stamped(name: str = "", **options: Any) -> StampedEngine:
    return StampedEngine()


def latencies_s(count: int, arrays: str, folder: Path) -> tuple[list[float], list[float]]:
    """What each frame took from the engine to the client, and what it took over PUSH/PULL right after.

    Args:
        arrays: see `StampedEngine`.
    """
    bridge: list[float] = []
    plain: list[float] = []

    def since(depth: Any) -> float:
        return time.monotonic() - float(np.frombuffer(depth, np.float64, 1)[0])

    context = zmq.Context()
    puller = context.socket(zmq.PULL)
    port = puller.bind_to_random_port("tcp://127.0.0.1")

    def pull() -> None:
        for _ in range(count):
            plain.append(since(puller.recv_multipart(copy=False)[2].buffer))

    pulling = threading.Thread(target=pull)
    pulling.start()
    factory = "tests.benchmarks.bench_bridge:load_stamped"
    with running_server(folder, factory=factory) as (address, _), Client(address) as client:
        chunk = count // 4 * 4 + 1
        prompt = f"tcp://127.0.0.1:{port} {arrays}"
        job_id = client.submit(shot(count, prompt=prompt, width=WIDTH, height=HEIGHT, chunk=chunk))
        for event in client.events(job_id):
            if isinstance(event, m.FrameEvent):
                bridge.append(since(event.depth))
        pulling.join()
    context.destroy(0)
    return bridge[5:], plain[5:]


def run_latency(short: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for arrays, suffix in (("lent", ""), ("own", "_own_arrays")):
        bridge: list[float] = []
        plain: list[float] = []
        # Each with a server of its own: some of it is how its memory happens to lie.
        for _ in range(1 if short else 5):
            with tempfile.TemporaryDirectory() as folder:
                ours, theirs = latencies_s(21 if short else 61, arrays, Path(folder))
            bridge, plain = bridge + ours, plain + theirs
        added = statistics.quantiles([a - b for a, b in zip(bridge, plain, strict=True)], n=4)
        figures |= {
            f"added_latency{suffix}_ms": round(added[1] * 1000, 2),
            f"added_latency{suffix}_quartiles_ms": [round(added[0] * 1000, 2), round(added[2] * 1000, 2)],
            f"latency{suffix}_ms": round(statistics.median(bridge) * 1000, 2),
            f"latency{suffix}_pushpull_ms": round(statistics.median(plain) * 1000, 2),
        }
    return figures


def run_compression(short: bool) -> dict[str, Any]:
    from tests.support import room

    rgb, depth = room.render(room.truck(1, width=WIDTH, height=HEIGHT), 0)
    noisy = rgb + np.random.default_rng(1).normal(0, 2, rgb.shape)
    event = attrs.evolve(
        frame_event(1),
        rgb=noisy.clip(0, 255).astype(np.uint8),
        depth=depth.astype(np.float32),
        validity=np.where(depth > np.median(depth), 255, 0).astype(np.uint8),
    )
    parts = codec.encode(event)
    packed = codec.compress(parts)
    assert codec.decode(packed, m.ServerMessage) == event
    took: dict[str, list[float]] = {"compression": [], "decompression": []}
    for _ in range(3 if short else 20):
        for name, work in (
            ("compression", lambda: codec.compress(parts)),
            ("decompression", lambda: codec.decode(packed, m.ServerMessage)),
        ):
            began_s = time.perf_counter()
            work()
            took[name].append(time.perf_counter() - began_s)
    size = codec.size_of(parts)
    speeds = {f"{name}_mb_s": round(size / statistics.median(times) / 1e6) for name, times in took.items()}
    return {"compression_ratio": round(size / codec.size_of(packed), 2), **speeds}


def run_view(short: bool) -> dict[str, Any]:
    K, c2w = np.array([500.0, 500.0, 320.0, 180.0]), np.eye(4)
    trips = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), view=True, view_factory=VIEWER) as (address, _),
        Client(address) as client,
    ):
        job_id = client.submit(shot(5))
        list(client.events(job_id))
        with LiveView(client, job_id) as view:
            for n in range(50 if short else 500):
                began_s = time.perf_counter()
                wanted = view.look(K, c2w, 640, 360)
                while (picture := view.picture(10.0)) is None or picture.look_id != wanted:
                    assert time.perf_counter() - began_s < 30
                if n >= 10:
                    trips.append(time.perf_counter() - began_s)
                time.sleep(1 / 60)
    return {"live_view_round_trip_ms": round(statistics.median(trips) * 1000, 2)}


# ---------------------------------------------------------------- load


def run_slow_client(short: bool) -> dict[str, Any]:
    count = 20 if short else 60
    with tempfile.TemporaryDirectory() as folder:
        stored_frames(Path(folder), count)
        with running_server(Path(folder)) as (address, process):
            server = psutil.Process(process.pid)
            with Client(address, credit_bytes=2**24) as client:
                client.connect()
                time.sleep(1.0)
                before = server.memory_info().rss
                client.subscribe(JOB)
                worst = before
                for _ in range(20 if short else 60):
                    time.sleep(0.05)
                    worst = max(worst, server.memory_info().rss)
    return {
        "slow_client_growth_mib": round((worst - before) / 2**20, 1),
        "slow_client_credit_mib": 16,
    }


def run_endless_message(short: bool) -> dict[str, Any]:
    kept, waits_ms = {}, []
    for part_bytes, mebibytes in ((0, 20), (1, 30), (1000, 500), (2**20, 1000)):
        with (
            tempfile.TemporaryDirectory() as folder,
            running_server(Path(folder)) as (address, process),
            Client(address) as client,
        ):
            wait_for_engine(address)
            server = psutil.Process(process.pid)
            before = server.memory_info().rss
            with zmtp_peer(address) as peer:
                size = bytes([1, part_bytes]) if part_bytes < 256 else b"\x03" + part_bytes.to_bytes(8, "big")
                part = size + bytes(part_bytes)
                block = part * max(2**20 // len(part), 1)
                blocks = max(mebibytes * 2**20 // (4 if short else 1) // len(block), 1)
                flood = threading.Thread(target=send_often, args=(peer, block, blocks))
                flood.start()
                while flood.is_alive():
                    asked_s = time.monotonic()
                    client.list_jobs()
                    waits_ms.append((time.monotonic() - asked_s) * 1000)
                time.sleep(1.0)
                sent = blocks * len(block)
                kept[str(part_bytes)] = round((server.memory_info().rss - before) / sent, 1)
    return {"endless_message_bytes_kept": kept, "endless_message_wait_ms": round(max(waits_ms), 1)}


def send_often(peer: socket.socket, block: bytes, times: int) -> None:
    for _ in range(times):
        peer.sendall(block)


@contextlib.contextmanager
def zmtp_peer(address: str) -> Iterator[socket.socket]:
    """Yields a bare TCP connection that a server takes for a DEALER's: ZMTP 3.0's greeting and READY are said."""
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        ready = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER"
        peer.sendall(bytes([4, len(ready)]) + ready)
        heard = b""
        while b"READY" not in heard:  # before that nothing else may be said
            heard += peer.recv(1000)
        yield peer


def run_clients(short: bool) -> dict[str, Any]:
    clients, jobs = (8, 40) if short else (64, 1000)
    owners: dict[str, str] = {}
    spec = shot(1, width=16, height=16)
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as (address, _):
        began_s = time.monotonic()
        everyone = [Client(address, connect_timeout_s=60) for _ in range(clients)]
        first = everyone[0].submit(shot(1, prompt="wait", width=16, height=16))
        for number in range(jobs):
            client = everyone[number % clients]
            owners[client.submit(spec)] = client.client_id
        deadline = time.monotonic() + (60 if short else 600)
        accepted, ended, released = 0, 0, False
        ends: list[tuple[float, str]] = []
        while ended < jobs and time.monotonic() < deadline:
            for client in everyone:
                for event in client.poll():
                    if isinstance(event, m.Accepted):
                        accepted += 1
                    elif isinstance(event, m.StateEvent) and event.job_id in owners:
                        ended += event.state in ("done", "failed", "cancelled")
                        if event.state == "done":
                            # By the engine's own clock, which does one after the other.
                            ends.append((event.summary["ended_s"], owners[event.job_id]))
            if accepted > jobs and not released:
                released = True
                everyone[0].cancel(first)
            time.sleep(0.01)
        took_s = time.monotonic() - began_s
        for client in everyone:
            client.close()
    return {
        "clients": clients,
        "jobs": ended,
        "clients_s": round(took_s, 1),
        "clients_unfair": unfairness([client for _, client in sorted(ends)]),
    }


def unfairness(turns: list[str]) -> int:
    """The largest difference of turns had between two clients that both still waited for another."""
    left = {client: turns.count(client) for client in set(turns)}
    had = dict.fromkeys(left, 0)
    worst = 0
    for client in turns:
        had[client] += 1
        left[client] -= 1
        waiting = [had[other] for other, more in left.items() if more]
        if len(waiting) > 1:
            worst = max(worst, max(waiting) - min(waiting))
    return worst


# ---------------------------------------------------------------- faults


def run_faults(short: bool) -> dict[str, Any]:
    results = {}
    chosen = {name: fault for name, fault in FAULTS.items() if not short or name in ("cut_1_s", "delay_200_ms")}
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder)) as (address, _):
        for name, fault in chosen.items():
            spec = shot(60, prompt="slow=0.1", width=320, height=180)
            began_s = time.monotonic()
            with (
                Proxy(int(address.rpartition(":")[2]), fault) as proxy,
                Client(f"tcp://127.0.0.1:{proxy.port}", connect_timeout_s=60, gone_timeout_s=300) as client,
            ):
                events = list(client.events(client.submit(spec)))
            got = [event.index for event in events if isinstance(event, m.FrameEvent)]
            results[name] = {
                "s": round(time.monotonic() - began_s, 1),
                "lost": 60 - len(set(got)),
                "twice": len(got) - 60,
            }
            print(f"  {name}: {results[name]}", flush=True)
    why_not = namespaces.why_not()
    between: Any = why_not or namespaces.run_faults(20 if short else 60, list(chosen))
    all_results = [*results.values(), *(() if why_not else between.values())]
    return {
        "faults": results,
        "faults_between_namespaces": between,
        "faults_lost_frames": sum(r["lost"] + max(r["twice"], 0) for r in all_results),
    }


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "fuzz": run_fuzz,
    "throughput": run_throughput,
    "latency": run_latency,
    "compression": run_compression,
    "view": run_view,
    "slow_client": run_slow_client,
    "endless_message": run_endless_message,
    "clients": run_clients,
    "faults": run_faults,
    "kills": run_kills,
}


SPEED = ("throughput", "latency", "compression", "view")


def circumstances() -> dict[str, Any]:
    """What else the machine does, and whether we run ahead of it."""
    ahead = hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER
    return {"load_average": round(psutil.getloadavg()[0], 1), "real_time": ahead}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="one part; may be repeated")
    parser.add_argument("--short", action="store_true", help="each part for a few seconds, printed only")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    # A terminal's Ctrl-C ends this process; servers and clients are ended by it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, Any] = {}
    under: dict[str, Any] = {}
    for name in chosen.only or PARTS:
        began_s = time.monotonic()
        print(f"{name} ...", flush=True)
        if name in SPEED:
            under[name] = circumstances()
        results |= PARTS[name](chosen.short)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)
    print(json.dumps(results, indent=2))
    if not chosen.short:
        earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results["measured_under"] = {**earlier.get("measured_under", {}), **under}
        RESULTS.write_text(json.dumps({**earlier, **results, "provenance": provenance()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
