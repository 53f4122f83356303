"""Message <-> parts of bytes, and every size limit of the protocol (PROTOCOL.md, "On the wire").

Part 0 is MessagePack: `[tag, fields, arrays]`. Each array is one raw trailing part, C order and little-endian; part 0
only declares it: `[name, dtype, shape]`, with "deflate" after it where a frame's array is compressed. Nothing that
arrives is trusted: sizes are checked before anything is allocated, types by cattrs without coercion, ranges by the
messages themselves.
"""

from __future__ import annotations

import functools
import math
import operator
import struct
import typing
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, TypeVar

import attrs
import cattrs
import msgpack
import numpy as np

from . import messages
from .errors import ProtocolError

ARRAY_DTYPES = {"uint8": "|u1", "int64": "<i8", "float16": "<f2", "float32": "<f4", "float64": "<f8"}
"""The only dtypes that cross the wire, little-endian."""

_PLAIN = frozenset({str, int, float, bool, type(None)})
"""Types that MessagePack takes as they are; most fields are of these."""
DEFLATE = "deflate"
COMPRESSION_LEVEL = 1
"""More takes twice the time for a twentieth of the size."""
_COMPRESSED = frozenset({"frame_event"})
"""Messages whose arrays may be compressed."""

Part = bytes | bytearray | memoryview
M = TypeVar("M")


@dataclass(frozen=True)
class Limits:
    """What a receiver accepts."""

    message_bytes: int = 512 * 2**20
    """All parts together."""
    header_bytes: int = 2**20
    """Part 0."""
    parts: int = 10
    string_chars: int = messages.MAX_TEXT_CHARS
    rank: int = 4
    side: int = 2**28
    """Of any array axis; a message's own fields are narrower."""


LIMITS = Limits()


def encode(message: Any) -> list[Part]:
    """The parts of `message`: bytes, then one memoryview per array (not copied)."""
    fields: dict[str, Any] = {}
    arrays: list[tuple[str, str, list[int]]] = []
    parts: list[Part] = [b""]
    for attribute in attrs.fields(type(message)):
        value = getattr(message, attribute.name)
        if isinstance(value, np.ndarray):
            dtype = value.dtype.name
            assert dtype in ARRAY_DTYPES, dtype
            raw = np.ascontiguousarray(value, ARRAY_DTYPES[dtype])
            arrays.append((attribute.name, dtype, list(value.shape)))
            parts.append(raw.reshape(-1).view(np.uint8).data)
        else:
            fields[attribute.name] = value if type(value) in _PLAIN else _CONVERTER.unstructure(value)
    parts[0] = msgpack.packb([_TAG_OF[type(message)], fields, arrays], use_bin_type=True)
    return parts


def decode(parts: Sequence[Part], direction: UnionType, limits: Limits = LIMITS) -> Any:
    """The message in `parts`, one of the classes of `direction`. Its arrays are read-only views of the parts.

    Raises:
        ProtocolError: `too_large`, `unknown_message`, `bad_message` or `wrong_protocol_version`.
    """
    check_sizes(parts, limits)
    tag, fields, declared = _open_header(parts[0], limits)
    request_id = _request_id(fields)
    if tag in ("hello", "welcome"):
        _check_version(tag, fields, request_id)
    kind = _kinds(direction).get(tag)
    if kind is None:
        known = f"protocol {messages.PROTOCOL_VERSION} has no message {tag[:80]!r} in this direction"
        raise ProtocolError("unknown_message", f"A message cannot be read: {known}.", request_id)
    try:
        values = dict(fields)
        if len(declared) != len(parts) - 1:
            raise ValueError(f"{len(declared)} arrays are declared but {len(parts) - 1} parts follow the header")
        left = limits.message_bytes
        for entry, part in zip(declared, parts[1:], strict=True):
            name, array = _open_array(entry, part, limits, left if tag in _COMPRESSED else None)
            if name in values:
                raise ValueError(f"the field {name[:80]!r} comes twice")
            values[name] = array
            left -= array.nbytes
        return _CONVERTER.structure(values, kind)
    except ProtocolError:
        raise
    except cattrs.BaseValidationError as error:
        faults = "; ".join(cattrs.transform_error(error, format_exception=_fault))
        raise ProtocolError("bad_message", f"{tag}: {faults}"[:1000], request_id) from error
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise ProtocolError("bad_message", f"{tag}: {error}"[:1000], request_id) from error


def size_of(parts: Sequence[Part]) -> int:
    """Bytes of all parts."""
    return sum(len(part) for part in parts)


def cost_of(parts: Sequence[Part], message: Any) -> int:
    """What a message that came in these parts costs in credit: their bytes, of compressed arrays the unpacked ones."""
    values = (getattr(message, attribute.name) for attribute in attrs.fields(type(message)))
    return len(parts[0]) + sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def compress(parts: Sequence[Part]) -> list[Part]:
    """The parts of an encoded frame with its arrays compressed, where that makes them smaller."""
    tag, fields, declared = msgpack.unpackb(parts[0])
    assert tag in _COMPRESSED, tag
    out: list[Part] = [b""]
    for entry, part in zip(declared, parts[1:], strict=True):
        _, dtype, shape = entry
        packed = zlib.compress(_planes(part, _pixel_bytes(dtype, shape)).data, COMPRESSION_LEVEL)
        smaller = len(packed) < len(part)
        out.append(packed if smaller else part)
        entry += [DEFLATE] * smaller
    out[0] = msgpack.packb([tag, fields, declared], use_bin_type=True)
    return out


def check_sizes(parts: Sequence[Part], limits: Limits = LIMITS) -> None:
    """Raises `too_large` (ProtocolError) where a receiver with these limits would refuse the message for its sizes."""
    if not parts:
        raise ProtocolError("bad_message", "An empty message.")
    for what, got, limit in (
        ("parts", len(parts), limits.parts),
        ("bytes in its header", len(parts[0]), limits.header_bytes),
        ("bytes", size_of(parts), limits.message_bytes),
    ):
        if got > limit:
            raise ProtocolError("too_large", f"The message has {got} {what}; at most {limit} are allowed.")


def joined(parts: Sequence[Part]) -> list[Part]:
    """Pieces that, one after the other, are a record that `split` opens again; the parts themselves are not copied."""
    return [struct.pack(f"<I{len(parts)}Q", len(parts), *(len(part) for part in parts)), *parts]


def join(parts: Sequence[Part]) -> bytes:
    """One byte string that `split` opens again: for a pipe or a file, which know no parts."""
    return b"".join(joined(parts))


def split(joined: Part, limits: Limits = LIMITS) -> list[Part]:
    """The parts in a record that `join` made, as views.

    Raises:
        ProtocolError: `bad_message` where it is cut short or no such thing, `too_large` over the limits.
    """
    view = memoryview(joined)
    if len(view) < 4:
        raise ProtocolError("bad_message", f"A record of {len(view)} bytes is cut short.")
    (count,) = struct.unpack_from("<I", view)
    if count > limits.parts:
        raise ProtocolError("too_large", f"A record says it has {count} parts; at most {limits.parts} are allowed.")
    start = 4 + 8 * count
    if len(view) < start:
        raise ProtocolError("bad_message", f"A record of {len(view)} bytes is cut short.")
    sizes = struct.unpack_from(f"<{count}Q", view, 4)
    if start + sum(sizes) != len(view):
        raise ProtocolError("bad_message", f"A record is {len(view)} bytes long but says {start + sum(sizes)}.")
    parts: list[Part] = []
    for size in sizes:
        parts.append(view[start : start + size])
        start += size
    return parts


# ---------------------------------------------------------------- opening what arrived


def _open_header(part: Part, limits: Limits) -> tuple[str, dict[str, Any], list[Any]]:
    try:
        header = msgpack.unpackb(
            part,
            raw=False,
            strict_map_key=True,
            max_str_len=4 * limits.string_chars,
            max_bin_len=0,
            max_ext_len=0,
            max_array_len=10_000,
            max_map_len=10_000,
        )
    # msgpack raises ValueError and its subclasses for anything it cannot read, RecursionError for deep nesting.
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        why = f"The message's header is not the MessagePack of this protocol: {error}"
        raise ProtocolError("bad_message", why[:500]) from error
    if not (isinstance(header, list) and len(header) == 3):
        raise ProtocolError("bad_message", "The message's header is not [tag, fields, arrays].")
    tag, fields, arrays = header
    if not (isinstance(tag, str) and isinstance(fields, dict) and isinstance(arrays, list)):
        raise ProtocolError("bad_message", "The message's header is not [text, map, list].")
    return tag, fields, arrays


def _request_id(fields: dict[str, Any]) -> int:
    value = fields.get("request_id")
    return value if type(value) is int and 0 <= value <= messages.MAX_INT else 0


def _check_version(tag: str, fields: dict[str, Any], request_id: int) -> None:
    """Looks at the version first, so that a message of another version is not called malformed for its other fields."""
    version, ours = fields.get("protocol_version"), messages.PROTOCOL_VERSION
    if type(version) is int and version != ours:
        client, server = (version, ours) if tag == "hello" else (ours, version)
        older = "client (in Blender: the WorldWarp extension)" if client < server else "server"
        raise ProtocolError(
            "wrong_protocol_version",
            f"The client speaks protocol {client} and the server protocol {server}: update the {older}.",
            request_id,
        )


def _open_array(entry: Any, part: Part, limits: Limits, room: int | None) -> tuple[str, np.ndarray]:
    """Args: room: bytes that a compressed array may unpack to; None where none may come."""
    if not (isinstance(entry, list) and (len(entry) == 3 or (len(entry) == 4 and entry[3] == DEFLATE))):
        raise ValueError("an array is not declared as [name, dtype, shape]")
    name, dtype, shape = entry[:3]
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
        raise ValueError("an array is not declared as [text, text, list]")
    if dtype not in ARRAY_DTYPES:
        raise ValueError(f"{name[:80]}: dtype {dtype[:20]!r} is not one of {', '.join(ARRAY_DTYPES)}")
    if len(shape) > limits.rank or not all(type(side) is int and 0 <= side <= limits.side for side in shape):
        allowed = f"at most {limits.rank} sides up to {limits.side}"
        raise ValueError(f"{name[:80]}: the shape {str(shape)[:80]} is not allowed ({allowed})")
    wire = np.dtype(ARRAY_DTYPES[dtype])
    wanted = math.prod(shape) * wire.itemsize
    if len(entry) == 4:
        if room is None or wanted > room:
            raise ValueError(f"{name[:80]}: {wanted} bytes may not come compressed in this message")
        part = _unpacked(part, wanted, _pixel_bytes(dtype, shape))
    if wanted != len(part):
        raise ValueError(f"{name[:80]}: {dtype} {shape} takes {wanted} bytes but its part has {len(part)}")
    array = np.frombuffer(part, wire).reshape(shape).astype(dtype, copy=False)
    array.flags.writeable = False
    return name, array


# ---------------------------------------------------------------- compression


def _pixel_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a pixel: neighbours are alike in each of them."""
    return np.dtype(ARRAY_DTYPES[dtype]).itemsize * (3 if len(shape) == 3 and shape[2] == 3 else 1)


def _planes(part: Part, pixel_bytes: int) -> np.ndarray:
    """(pixel_bytes, n) of a part's bytes, each less the one a pixel before it."""
    pixels = np.frombuffer(part, np.uint8).reshape(-1, pixel_bytes)
    planes = np.empty((pixel_bytes, len(pixels)), np.uint8)
    for plane, values in zip(planes, pixels.T, strict=True):
        plane[:1] = values[:1]
        np.subtract(values[1:], values[:-1], out=plane[1:])
    return planes


def _unpacked(part: Part, wanted: int, pixel_bytes: int) -> memoryview:
    """The `wanted` bytes that were compressed; never unpacks more.

    Raises:
        ValueError: it is no such stream, or one of another length.
    """
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(part, wanted + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed array cannot be read: {error}") from error
    if len(content) != wanted or not stream.eof or stream.unused_data:
        raise ValueError(f"a compressed array does not unpack to the {wanted} bytes that it is declared with")
    planes = np.frombuffer(content, np.uint8).reshape(pixel_bytes, -1)
    pixels = np.empty((planes.shape[1], pixel_bytes), np.uint8)
    for plane, values in zip(planes, pixels.T, strict=True):
        np.cumsum(plane, dtype=np.uint8, out=values)
    return pixels.reshape(-1).data


# ---------------------------------------------------------------- tags and strict types


def _tag(kind: type) -> str:
    """The class's name in snake case: FrameEvent -> frame_event."""
    name = kind.__name__
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


_DIRECTIONS = (messages.ClientMessage, messages.ServerMessage, messages.WorkerCommand, messages.WorkerReport)
_TAG_OF: dict[type, str] = {kind: _tag(kind) for direction in _DIRECTIONS for kind in typing.get_args(direction)}
_KINDS = {direction: {_TAG_OF[kind]: kind for kind in typing.get_args(direction)} for direction in _DIRECTIONS}
_KINDS[messages.LoggedEvent] = {_TAG_OF[kind]: kind for kind in typing.get_args(messages.LoggedEvent)}


def _kinds(direction: UnionType) -> dict[str, type]:
    return _KINDS[direction]


def _exactly(*kinds: type) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError(f"expected {kinds[0].__name__}, got {type(value).__name__}")
        return value

    return structure


def _finite(value: Any, _: Any) -> float:
    if type(value) not in (float, int) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, got {str(value)[:40]} ({type(value).__name__})")
    return float(value)


def _optional(strict: Any) -> Any:
    return lambda value, kind: None if value is None else strict(value, kind)


def _array_value(value: Any, _: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"expected an array part, got {type(value).__name__}")
    return value


def _list_of(kind: type) -> Any:
    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise TypeError(f"expected a list, got {type(value).__name__}")
        return tuple(_CONVERTER.structure(item, kind) for item in value)

    return structure


def _fault(error: BaseException, kind: type | None) -> str:
    """What is wrong, in the words of our own checks where they raised it."""
    return str(error) if isinstance(error, ValueError | TypeError) else str(cattrs.v.format_exception(error, kind))


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, strict in (
        (bool, _exactly(bool)),
        (int, _exactly(int)),
        (float, _finite),
        (str, _exactly(str)),
        (np.ndarray, _array_value),
    ):
        converter.register_structure_hook(kind, strict)
        converter.register_structure_hook_func(functools.partial(operator.eq, kind | None), _optional(strict))
    converter.register_structure_hook_func(lambda t: t == dict[str, Any], _exactly(dict))
    for item, listed in (
        (messages.JobInfo, tuple[messages.JobInfo, ...]),
        (messages.PromptKey, tuple[messages.PromptKey, ...]),
    ):
        converter.register_structure_hook_func(functools.partial(operator.eq, listed), _list_of(item))
    return converter


_CONVERTER = _make_converter()
