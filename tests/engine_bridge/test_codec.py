"""Messages to bytes and back, and everything that bytes can be instead."""

from __future__ import annotations

import random
import tracemalloc
import typing
import zlib
from typing import Any

import attrs
import msgpack
import numpy as np
import pytest

from engine_bridge import codec
from engine_bridge import messages as m
from engine_bridge.errors import ProtocolError

from .shots import JOB, one_of_each

BLOCK = next(message for message in one_of_each() if isinstance(message, m.SplatsBlock))
DIRECTIONS = (m.ClientMessage, m.ServerMessage, m.WorkerCommand, m.WorkerReport)


def direction_of(message: Any) -> Any:
    return next(direction for direction in DIRECTIONS if isinstance(message, direction))


def as_bytes(parts: list[Any]) -> list[bytes]:
    return [bytes(part) for part in parts]


def refusal(parts: list[Any], direction: Any = m.ClientMessage, limits: codec.Limits = codec.LIMITS) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        codec.decode(parts, direction, limits)
    return caught.value


def header(tag: str, fields: dict[str, Any], arrays: list[Any] | None = None) -> bytes:
    return msgpack.packb([tag, fields, arrays or []])


def test_there_is_an_example_of_every_message() -> None:
    known = {kind for direction in DIRECTIONS for kind in typing.get_args(direction)}
    assert {type(message) for message in one_of_each()} == known


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: type(message).__name__)
def test_every_message_comes_back_as_it_went(message: Any) -> None:
    back = codec.decode(as_bytes(codec.encode(message)), direction_of(message))
    assert back == message
    for attribute in attrs.fields(type(message)):
        sent, came = getattr(message, attribute.name), getattr(back, attribute.name)
        assert type(came) is type(sent)
        assert getattr(came, "dtype", None) == getattr(sent, "dtype", None)


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: type(message).__name__)
def test_a_message_joined_to_one_string_comes_apart_again(message: Any) -> None:
    parts = as_bytes(codec.encode(message))
    assert as_bytes(codec.split(codec.join(parts))) == parts


def test_arrays_are_raw_parts_and_not_copied() -> None:
    picture = np.zeros((100, 100), np.uint8)
    frame = m.FrameEvent(
        job_id=JOB, seq=1, index=0, number=0, chunk=0, attempt=1, rgb=np.zeros((100, 100, 3), np.uint8),
        depth=np.zeros((100, 100), np.float32), validity=picture,
    )  # fmt: skip
    parts = codec.encode(frame)
    assert [len(part) for part in parts[1:]] == [30_000, 40_000, 10_000]
    assert len(parts[0]) < 300
    assert np.shares_memory(np.frombuffer(parts[3], np.uint8), picture)


def test_what_arrives_cannot_be_written_to() -> None:
    block = codec.decode([bytearray(p) for p in codec.encode(BLOCK)], m.ServerMessage)
    with pytest.raises(ValueError, match="read-only"):
        block.data[0] = 1


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: type(message).__name__)
def test_every_truncation_is_refused(message: Any) -> None:
    parts = as_bytes(codec.encode(message))
    for index, part in enumerate(parts):
        step = max(1, len(part) // 40)
        for length in range(0, len(part), step):
            cut = [*parts[:index], part[:length], *parts[index + 1 :]]
            assert refusal(cut, direction_of(message)).code == "bad_message"
    for count in range(len(parts)):
        assert refusal(parts[:count], direction_of(message)).code == "bad_message"


@pytest.mark.parametrize("seed", range(20))
def test_random_and_mutated_bytes_are_messages_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    examples = [as_bytes(codec.encode(message)) for message in one_of_each()]
    codes = []
    for _ in range(500):
        if rng.random() < 0.3:
            parts = [rng.randbytes(rng.randrange(60)) for _ in range(rng.randrange(5))]
        else:
            parts = list(rng.choice(examples))
            index = rng.randrange(len(parts))
            part = bytearray(parts[index] or b"\0")
            for _ in range(rng.randint(1, 4)):
                part[rng.randrange(len(part))] = rng.randrange(256)
            parts[index] = bytes(part)
        for direction in DIRECTIONS:
            try:
                codec.decode(parts, direction)
            except ProtocolError as error:
                codes.append(error.code)
    assert len(codes) > 500
    assert set(codes) <= {"bad_message", "too_large", "unknown_message", "wrong_protocol_version"}


def test_the_other_direction_is_unknown() -> None:
    assert refusal(codec.encode(m.Pong(request_id=8))).code == "unknown_message"
    assert refusal([header("run_job", {"job_id": JOB})]).code == "unknown_message"


def test_a_refusal_names_the_request_it_answers() -> None:
    assert refusal([header("cancel", {"request_id": 77, "job_id": 5})]).request_id == 77
    assert refusal([header("cancel", {"request_id": "x"})]).request_id == 0


@pytest.mark.parametrize(
    ("tag", "fields", "says"),
    [
        ("ping", {"request_id": "1"}, "expected int, got str"),
        ("ping", {"request_id": True}, "expected int, got bool"),
        ("ping", {"request_id": 1.0}, "expected int, got float"),
        ("ping", {"request_id": -1}, "between 0 and"),
        ("ping", {}, "required field missing"),
        ("ping", {"request_id": 1, "more": 2}, "extra fields found"),
        ("cancel", {"request_id": 1, "job_id": "../../etc/passwd"}, "32 lower-case hexadecimal digits"),
        ("submit", {"request_id": 1, "auto_prompt": 1}, "expected bool, got int"),
        ("submit", {"request_id": 1, "prompt_keys": [{"frame": 1}]}, "required field missing"),
        ("submit", {"request_id": 1, "prompt_keys": {"frame": 1}}, "expected a list"),
        ("cancel", {"request_id": 1, "job_id": "A" * 32}, "32 lower-case hexadecimal digits"),
        (
            "hello",
            {"request_id": 1, "protocol_version": m.PROTOCOL_VERSION, "client": "x" * 201, "version": ""},
            "client",
        ),
    ],
)
def test_a_wrong_field_is_named(tag: str, fields: dict[str, Any], says: str) -> None:
    error = refusal([header(tag, fields)])
    assert error.code == "bad_message"
    assert says in error.message
    assert tag in error.message


@pytest.mark.parametrize(
    ("declared", "part", "says"),
    [
        (["data", "object", [1]], b"\0" * 8, "dtype"),
        (["data", "complex64", [1]], b"\0" * 8, "dtype"),
        (["data", "uint8", [-1]], b"", "shape"),
        (["data", "uint8", [2**40]], b"", "shape"),
        (["data", "uint8", [1] * 5], b"\0", "shape"),
        (["data", "uint8", [True]], b"\0", "shape"),
        (["data", "uint8", [3]], b"\0\0", "takes 3 bytes but its part has 2"),
        (["data", "float32", [2]], b"\0" * 8, "data must be uint8"),
        (["data", "uint8", [1, 1]], b"\0", "data must be uint8"),
        (["sha256", "uint8", [1]], b"\0", "comes twice"),
        (["other", "uint8", [1]], b"\0", "extra fields"),
        ("data", b"\0", "not declared"),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(declared: Any, part: bytes, says: str) -> None:
    fields = {"request_id": 1, "job_id": JOB, "revision": 1, "offset": 0, "size_bytes": 1, "sha256": "0" * 64}
    error = refusal([header("splats_block", fields, [declared]), part], m.ServerMessage)
    assert error.code == "bad_message"
    assert says in error.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path_depth": None}, "one map for each of path_depth_frames"),
        ({"path_depth_frames": None}, "one map for each of path_depth_frames"),
        ({"path_depth": np.ones((2, 3, 2), np.float16)}, "one map for each of path_depth_frames"),
        ({"path_depth": np.ones((1, 3, 2))}, "path_depth must be float16 or float32 .F, H, W.; got float64"),
        ({"path_depth": np.ones((3, 2), np.float16)}, "must be float16 or float32 .F, H, W.; got float16 .3, 2."),
        ({"path_depth": np.ones((1, 3, 20_000), np.float16)}, "at most 16384 pixels a side"),
        ({"path_depth": np.ones((4, 1, 1), np.float16), "path_depth_frames": np.arange(4)}, "1 to 3 maps"),
    ],
)
def test_a_paths_depth_that_breaks_the_protocol_cannot_be_said(change: dict[str, Any], says: str) -> None:
    (submit,) = [message for message in one_of_each() if getattr(message, "path_depth", None) is not None][1:]
    with pytest.raises(ValueError, match=says):
        attrs.evolve(submit, **change)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", None, True])
def test_a_float_must_be_a_finite_number(value: Any) -> None:
    fields = {"job_id": JOB, "stage": "fill", "step": 0, "steps": 1, "chunk": 0, "chunks": 1, "fraction": value}
    error = refusal([header("progress", {**fields, "eta_s": None})], m.ServerMessage)
    assert "fraction" in error.message


@pytest.mark.parametrize(
    "limits", [codec.Limits(message_bytes=100), codec.Limits(header_bytes=50), codec.Limits(parts=2)]
)
def test_over_a_limit_is_too_large(limits: codec.Limits) -> None:
    assert refusal(codec.encode(one_of_each()[1]), m.ClientMessage, limits).code == "too_large"


def test_a_long_text_is_refused_before_it_is_read() -> None:
    error = refusal([header("cancel", {"request_id": 1, "job_id": "0" * 50_000})])
    assert error.code == "bad_message"


def test_deep_nesting_is_refused() -> None:
    deep = b"\x93\xa4ping\x81\xa1x" + b"\x91" * 5000 + b"\xc0" + b"\x90"
    assert refusal([deep]).code == "bad_message"
    nested: Any = 1
    for _ in range(20):
        nested = [nested]
    assert refusal([header("ready", {"engine_info": {"a": nested}})], m.WorkerReport).code == "bad_message"


def test_binary_and_extension_types_are_refused() -> None:
    for odd in (b"bytes", msgpack.ExtType(1, b"x"), msgpack.Timestamp(1)):
        assert refusal([header("ping", {"request_id": 1, "x": odd})]).code == "bad_message"


@pytest.mark.parametrize(("version", "older"), [(0, "client"), (2, "client"), (99, "server")])
def test_another_protocol_version_says_which_side_to_update(version: int, older: str) -> None:
    # With fields that this version does not know: the version is what is wrong, not they.
    error = refusal([header("hello", {"request_id": 3, "protocol_version": version, "keys": "curve"})])
    assert error.code == "wrong_protocol_version"
    assert f"update the {older}" in error.message
    assert error.request_id == 3


@pytest.mark.parametrize(
    "hello",
    [
        {"request_id": 0, "protocol_version": 1, "client": "worldwarp-blender", "version": "0.1.0"},
        {
            "request_id": 0, "protocol_version": 2, "client": "worldwarp-blender",
            "client_id": "0123456789abcdef0123456789abcdef", "version": "0.1.0",
        },
    ],
)  # fmt: skip
def test_earlier_versions_of_the_extension_are_told_to_update(hello: dict[str, object]) -> None:
    # As they sent it, byte for byte.
    error = refusal([msgpack.packb(["hello", hello, []])])
    assert error.message == (
        f"The client speaks protocol {hello['protocol_version']} and the server protocol {m.PROTOCOL_VERSION}: "
        "update the client (in Blender: the WorldWarp extension)."
    )


def test_a_welcome_of_another_version_says_it_too() -> None:
    error = refusal([header("welcome", {"request_id": 3, "protocol_version": m.PROTOCOL_VERSION + 1})], m.ServerMessage)
    assert error.code == "wrong_protocol_version"
    assert "update the client" in error.message


@pytest.mark.parametrize("record", [b"", b"\0\0", b"\1\0\0\0", b"\xff" * 40, b"\2\0\0\0" + b"\xff" * 16 + b"abc"])
def test_a_record_that_is_not_whole_is_refused(record: bytes) -> None:
    with pytest.raises(ProtocolError):
        codec.split(record)


def test_our_own_mistakes_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="uint8"):
        m.SplatsBlock(
            request_id=1, job_id=JOB, revision=1, offset=0, size_bytes=1, sha256="0" * 64, data=np.zeros(3, np.float32)
        )
    with pytest.raises(ValueError, match="differ in size"):
        m.FrameEvent(
            job_id=JOB, seq=1, index=0, number=0, chunk=0, attempt=1, rgb=np.zeros((2, 2, 3), np.uint8),
            depth=np.zeros((2, 3), np.float32), validity=np.zeros((2, 2), np.uint8),
        )  # fmt: skip


# ---------------------------------------------------------------- compression


def frame_of(rgb: np.ndarray, depth: np.ndarray, validity: np.ndarray) -> m.FrameEvent:
    return m.FrameEvent(
        job_id=JOB, seq=1, index=0, number=1, chunk=0, attempt=1, rgb=rgb, depth=depth, validity=validity
    )


def smooth_frame(height: int = 60, width: int = 80) -> m.FrameEvent:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x, y, x + y], 2).astype(np.uint8)
    return frame_of(rgb, (1 + x * y / 50).astype(np.float32), np.where(x > y, 255, 0).astype(np.uint8))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (0, 0), (1, 7), (33, 2), (60, 80)])
@pytest.mark.parametrize("smooth", [True, False])
def test_a_compressed_frame_comes_back_to_the_bit(height: int, width: int, smooth: bool) -> None:
    rng = np.random.default_rng(1)
    frame = smooth_frame(height, width)
    if not smooth:
        size = (height, width)
        bits = rng.integers(0, 2**32, size, np.uint32).view(np.float32)
        frame = frame_of(rng.integers(0, 256, (*size, 3), np.uint8), bits, rng.integers(0, 256, size, np.uint8))
    plain = as_bytes(codec.encode(frame))
    packed = as_bytes(codec.compress(plain))
    assert codec.size_of(packed) <= codec.size_of(plain)
    for direction in (m.ServerMessage, m.LoggedEvent):
        back = codec.decode(packed, direction)
        assert as_bytes(codec.encode(back)) == plain
        assert codec.cost_of(packed, back) == len(packed[0]) + codec.size_of(plain[1:])
    if height == 60:
        assert (codec.size_of(packed) * 3 < codec.size_of(plain)) == smooth
        entries = msgpack.unpackb(packed[0])[2]
        assert all(len(entry) == (4 if smooth else 3) for entry in entries), "what would grow goes as it is"


def test_a_compressed_array_unpacks_to_what_it_declares_and_never_to_more() -> None:
    packed = as_bytes(codec.compress(codec.encode(smooth_frame())))
    bomb = zlib.compress(bytes(50_000_000), 9)
    for wrong in (bomb, b"", b"nonsense", packed[1][:-5], packed[1] + b"x", zlib.compress(b"short")):
        tracemalloc.start()
        error = refusal([packed[0], wrong, *packed[2:]], m.ServerMessage)
        assert error.code == "bad_message"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()
    # Several that are each within the limit, together beyond it.
    limits = codec.Limits(message_bytes=20_000)
    assert "may not come compressed" in refusal(packed, m.ServerMessage, limits).message


def test_only_frames_come_compressed() -> None:
    tag, fields, arrays = msgpack.unpackb(codec.encode(BLOCK)[0])
    arrays[0].append("deflate")
    error = refusal([msgpack.packb([tag, fields, arrays]), zlib.compress(bytes(9))], m.ServerMessage)
    assert "may not come compressed" in error.message
    arrays[0][3] = "lzma"
    assert "declared as" in refusal([msgpack.packb([tag, fields, arrays]), bytes(9)], m.ServerMessage).message
