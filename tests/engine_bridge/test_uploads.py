"""A large job in pieces: its two ends joined in memory, on lines of every speed, with a clock that we move."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

from engine_bridge import codec, uploads
from engine_bridge import messages as m
from engine_bridge.errors import BridgeError
from engine_bridge.uploads import (
    KEPT_S,
    MAX_UPLOADS,
    MAX_UPLOADS_OF_ONE,
    MIN_PIECE_BYTES,
    Outgoing,
    OutOfStep,
    Uploads,
)

from .shots import JOB, one_of_each


def job(size: int = 700, job_id: str = JOB, shade: int = 90) -> m.Submit:
    """A job with a start frame of `size` x `size` pixels."""
    small = next(message for message in one_of_each() if isinstance(message, m.Submit))
    picture = np.random.default_rng(shade).integers(0, 256, (size, size, 3), np.uint8)
    return attrs.evolve(small, request_id=7, job_id=job_id, start_frame=picture)


@pytest.fixture
def server(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, codec.LIMITS)


def send(outgoing: Outgoing, server: Uploads, bytes_per_s: float, most: int = 10**6) -> tuple[bytes | None, list[int]]:
    """(the record where it came whole, the sizes of the pieces), by a line that takes one piece after the other."""
    now_s, sizes, on_way = 0.0, [], [outgoing.ask()]
    while on_way and len(sizes) < most:
        piece = on_way.pop(0)
        sizes.append(len(piece.data))
        now_s += sizes[-1] / bytes_per_s
        received_bytes, record = server.take("anna", piece, now_s)
        if record is not None:
            return record, sizes
        answer = m.Uploaded(request_id=piece.request_id, job_id=piece.job_id, received_bytes=received_bytes)
        on_way += outgoing.answered(answer, now_s)
        assert len(on_way) <= 2
    return None, sizes


def refused(server: Uploads, piece: m.Upload, owner: str = "anna") -> str:
    with pytest.raises(BridgeError) as caught:
        server.take(owner, piece, 0.0)
    return caught.value.code


@pytest.mark.parametrize(
    ("bytes_per_s", "least", "most"),
    [(2e3, MIN_PIECE_BYTES, MIN_PIECE_BYTES), (125e3, 2**15, 2**17), (1e9, m.MAX_PIECE_BYTES, m.MAX_PIECE_BYTES)],
)
def test_pieces_are_as_large_as_the_line_takes_in_good_time(
    server: Uploads, bytes_per_s: float, least: int, most: int
) -> None:
    sent = job(1500)
    record, sizes = send(Outgoing(sent), server, bytes_per_s)
    assert record is not None
    assert codec.decode(codec.split(record), m.ClientMessage) == attrs.evolve(sent, request_id=0)
    assert least <= sizes[-2] <= most


def test_a_new_connection_goes_on_where_the_last_one_broke(server: Uploads) -> None:
    outgoing = Outgoing(job())
    _, before = send(outgoing, server, 125e3, most=6)
    record, after = send(outgoing, server, 125e3)
    assert record is not None
    assert after[0] == 0, "the question how much is there"
    assert sum(before) + sum(after) == outgoing.size_bytes, "nothing is sent twice"


def test_a_piece_out_of_place_is_not_taken(server: Uploads) -> None:
    outgoing = Outgoing(job())
    send(outgoing, server, 125e3, most=3)
    there, _ = server.take("anna", outgoing.ask(), 0.0)
    piece = outgoing._piece(there + 1, there + 10)
    assert server.take("anna", piece, 0.0) == (there, None)
    assert server.take("anna", outgoing._piece(0, 10), 0.0) == (there, None)
    assert server.take("bert", piece, 0.0) == (0, None)
    assert server.take("bert", outgoing._piece(0, 10), 0.0) == (10, None), "each client has its own"
    assert send(outgoing, server, 125e3)[0] is not None


def test_other_contents_under_the_same_id_begin_anew(server: Uploads) -> None:
    send(Outgoing(job()), server, 125e3, most=4)
    other = job(shade=91)
    record, _ = send(Outgoing(other), server, 125e3)
    assert record is not None
    assert codec.decode(codec.split(record), m.ClientMessage) == attrs.evolve(other, request_id=0)


def test_what_is_not_what_was_announced_is_refused_and_forgotten(server: Uploads) -> None:
    piece = Outgoing(job(10))._piece(0, 20)
    wrong = attrs.evolve(piece, size_bytes=20)
    assert refused(server, wrong) == "bad_message"
    assert not server.drop("anna", JOB)
    with pytest.raises(ValueError, match="more than a piece"):
        attrs.evolve(piece, size_bytes=19)
    with pytest.raises(ValueError, match="more than a piece"):
        attrs.evolve(piece, size_bytes=2**30, data=np.zeros(m.MAX_PIECE_BYTES + 1, np.uint8))


def test_what_the_server_has_lost_is_noticed(server: Uploads) -> None:
    outgoing = Outgoing(job())
    send(outgoing, server, 125e3, most=3)
    assert server.drop("anna", JOB)
    with pytest.raises(OutOfStep):
        send_on(outgoing, server)
    assert send(outgoing, server, 125e3)[0] is not None


def send_on(outgoing: Outgoing, server: Uploads) -> None:
    """One more answer, to a piece that is on its way."""
    received_bytes, _ = server.take("anna", outgoing._piece(100_000, 100_001), 0.0)
    outgoing.answered(m.Uploaded(request_id=7, job_id=JOB, received_bytes=received_bytes), 0.0)


def test_there_is_a_limit_to_what_is_kept_and_for_how_long(server: Uploads) -> None:
    piece = Outgoing(job(10))._piece(0, 20)
    assert refused(server, attrs.evolve(piece, size_bytes=codec.LIMITS.message_bytes + 1000)) == "too_large"
    for number in range(MAX_UPLOADS):
        assert server.take(f"client {number % 8}", attrs.evolve(piece, job_id=f"{number:032x}"), 0.0) == (20, None)
    assert MAX_UPLOADS // 8 == MAX_UPLOADS_OF_ONE
    assert refused(server, piece, "client 1") == "over_limit"
    assert refused(server, piece, "somebody else") == "queue_full"
    server.take("client 0", attrs.evolve(piece, job_id=f"{0:032x}"), KEPT_S)
    server.tidy(KEPT_S + 1)
    assert server.drop("client 0", f"{0:032x}")
    assert not server.drop("client 1", f"{1:032x}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_told_and_nothing_half_written_stays(server: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads.tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b", 0))  # noqa: SIM115
    assert refused(server, Outgoing(job(10))._piece(0, 20)) == "disk_full"
    assert not server.drop("anna", JOB)
