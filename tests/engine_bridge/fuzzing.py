"""Messages that nobody should send: random, mutated and truncated, at the codec, the session and a socket.

What may come of each is a message, or a refusal with one of a few codes; anything else is a failure. What once was one
is kept in fuzz_corpus/, a file each (`codec.join` of its parts), and tried again by the tests.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import zmq

from engine_bridge import codec
from engine_bridge import messages as m
from engine_bridge.errors import BridgeError, ProtocolError
from engine_bridge.session import ServerFacts, ServerSession

from .shots import JOB, one_of_each

CORPUS = Path(__file__).parent / "fuzz_corpus"
CODES = {"bad_message", "too_large", "unknown_message", "wrong_protocol_version"}
FACTS = ServerFacts("worldwarp", "1", "cache", {}, 1000)

Parts = list[bytes]


def examples() -> list[Parts]:
    """One of every message, as parts."""
    return [[bytes(part) for part in codec.encode(message)] for message in one_of_each()]


def corpus() -> list[Parts]:
    """What once went wrong."""
    return [[bytes(part) for part in codec.split(path.read_bytes())] for path in sorted(CORPUS.glob("*.msg"))]


def noise(seed: int) -> Iterator[Parts]:
    """Without end: random bytes, examples with a few bytes changed, cut, doubled or mixed, and headers of nonsense."""
    rng = random.Random(seed)
    known = examples() + corpus()
    while True:
        kind = rng.random()
        if kind < 0.1:
            yield [rng.randbytes(rng.randrange(80)) for _ in range(rng.randrange(6))]
        elif kind < 0.3:
            yield [
                msgpack.packb(_nonsense(rng, 0)),
                *(rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(3))),
            ]
        else:
            parts = list(rng.choice(known))
            for _ in range(rng.randint(1, 3)):
                _mutate(parts, rng)
            yield parts


def try_message(parts: Parts) -> str:
    """What goes wrong with a message at the codec, in every direction, and at a fresh and an open session; or ""."""
    for direction in (m.ClientMessage, m.ServerMessage, m.WorkerCommand, m.WorkerReport, m.LoggedEvent):
        try:
            message = codec.decode(parts, direction)
        except ProtocolError as error:
            if error.code not in CODES:
                return f"code {error.code}"
            continue
        except Exception as error:  # anything else is what we look for
            return f"{type(error).__name__}: {error}"
        if direction is m.ClientMessage:
            for opened in (False, True):
                fault = _say_to_session(message, opened)
                if fault:
                    return fault
    try:
        codec.split(b"".join(parts))
    except ProtocolError:
        pass
    except Exception as error:
        return f"split: {type(error).__name__}: {error}"
    return ""


def fuzz_codec(count: int, seed: int) -> list[tuple[Parts, str]]:
    """The failures among `count` messages."""
    failures = []
    for parts, _ in zip(noise(seed), range(count), strict=False):
        fault = try_message(parts)
        if fault:
            failures.append((parts, fault))
    return failures


def fuzz_coverage(seconds: int, count: int = -1) -> tuple[int, int]:
    """(inputs tried, failures) by the coverage-guided fuzzer, in a process of its own.

    Args:
        seconds, count: it ends after so long, or so many inputs; a count below 0 is no limit.
    """
    import resource  # not on Windows, where the fuzzer is not either

    # A new process's peak memory starts at its parent's on Linux, and that is what the fuzzer holds to its limit.
    limit_mb = 2048 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with tempfile.TemporaryDirectory() as folder:
        for number, parts in enumerate(examples() + corpus()):
            (Path(folder) / str(number)).write_bytes(codec.join(parts))
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.engine_bridge.fuzz_coverage", folder,
                f"-max_total_time={seconds}", f"-runs={count}", f"-rss_limit_mb={limit_mb}",
                f"-artifact_prefix={folder}/",
            ],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
    runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
    if not runs:
        print(done.stderr[-3000:], file=sys.stderr)
        return 0, 1
    return int(runs[-1].split()[1]), int(done.returncode != 0)


def fuzz_socket(address: str, count: int, seed: int, timeout_s: float = 30.0) -> int:
    """Sends `count` messages to a server, a few hundred at a time; returns how many it outlived.

    Raises:
        AssertionError: it is gone, hangs, or answered with something else than a refusal or an answer.
    """
    context = zmq.Context()
    sent = 0
    source = noise(seed)
    try:
        while sent < count:
            stranger = context.socket(zmq.DEALER)
            stranger.linger, stranger.sndhwm, stranger.rcvhwm = 0, 0, 0
            stranger.connect(address)
            hello = m.Hello(request_id=1, protocol_version=m.PROTOCOL_VERSION, client="f", client_id=JOB, version="1")
            if sent % 1000 < 500:
                stranger.send_multipart(codec.encode(hello))
            batch = min(500, count - sent)
            for _ in range(batch):
                # A DEALER cannot send a message of no parts.
                stranger.send_multipart(next(source) or [b""])
            ping = codec.encode(m.Hello(**{**_fields(hello), "request_id": 424242}))
            stranger.send_multipart(ping)
            deadline = time.monotonic() + timeout_s
            while True:
                left_ms = int((deadline - time.monotonic()) * 1000)
                assert left_ms > 0, "the server hangs"
                assert stranger.poll(left_ms), "the server is gone"
                answer = codec.decode(stranger.recv_multipart(), m.ServerMessage)
                if isinstance(answer, m.Welcome) and answer.request_id == 424242:
                    break
            sent += batch
            stranger.close(0)
    finally:
        context.destroy(0)
    return sent


def _fields(message: m.Hello) -> dict[str, object]:
    return {name: getattr(message, name) for name in ("protocol_version", "client", "client_id", "version")}


def _say_to_session(message: m.ClientMessage, opened: bool) -> str:
    session = ServerSession(0.0)
    if opened:
        hello = m.Hello(request_id=0, protocol_version=m.PROTOCOL_VERSION, client="f", client_id=JOB, version="1")
        session.receive(hello, FACTS, 0.0)
    try:
        reply, request = session.receive(message, FACTS, 1.0)
        if isinstance(request, m.Subscribe):
            session.subscribe(request)
        if reply is not None:
            codec.decode(codec.encode(reply), m.ServerMessage)
    except BridgeError as error:
        return "" if error.code in ("credit_exceeded", "over_limit") else f"session: {error.code}"
    except Exception as error:
        return f"session: {type(error).__name__}: {error}"
    return ""


def _mutate(parts: Parts, rng: random.Random) -> None:
    kind = rng.random()
    if not parts or kind < 0.05:
        parts.append(rng.randbytes(rng.randrange(30)))
        return
    index = rng.randrange(len(parts)) if rng.random() < 0.4 else 0
    part = bytearray(parts[index])
    if kind < 0.45 and part:
        for _ in range(rng.randint(1, 4)):
            part[rng.randrange(len(part))] = rng.randrange(256)
    elif kind < 0.65:
        part = part[: rng.randrange(len(part) + 1)]
    elif kind < 0.8:
        at = rng.randrange(len(part) + 1)
        part[at:at] = rng.choice(
            (b"\xc0", b"\xff" * 9, b"\x93", b"\xdd\xff\xff\xff\xff", b"\xcb\x7f\xf8" + bytes(6), b"\xa0")
        )
    elif kind < 0.9:
        del parts[index]
        return
    else:
        parts.insert(rng.randrange(len(parts) + 1), bytes(part))
        return
    parts[index] = bytes(part)


def _nonsense(rng: random.Random, depth: int) -> object:
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice((0, 1, -1, 2**53, 2**63, -(2**63), rng.randrange(1000)))
    if kind == 2:
        return rng.choice((0.0, -1.5, float("nan"), float("inf"), 1e308))
    if kind in (3, 4):
        return rng.choice(
            ("", "x" * rng.randrange(300), "job_id", JOB, "submit", "hello", "../..", "\0", "uint8", "request_id")
        )
    if kind == 5:
        return rng.randbytes(rng.randrange(20))
    if kind == 6:
        return {str(_nonsense(rng, 9)): _nonsense(rng, depth + 1) for _ in range(rng.randrange(5))}
    return [_nonsense(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 3, 3, 8)))]
