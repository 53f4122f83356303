"""Jobs on disk: events in order, whole or not at all, whatever happens to who writes them."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from engine_bridge import codec, store
from engine_bridge import messages as m
from engine_bridge.errors import BridgeError
from engine_bridge.store import EventLog, JobStore, StoredJob, StoredState

from .shots import JOB, one_of_each

SUBMIT = one_of_each()[2]
BIG = np.zeros((64, 64, 3), np.uint8)


def notice(seq: int) -> m.NoticeEvent:
    return m.NoticeEvent(job_id=JOB, seq=seq, code="n", message="x" * seq)


def read(log: EventLog, seq: int) -> Any:
    return codec.decode(log.read(seq), m.LoggedEvent)


def fill(log: EventLog, count: int) -> None:
    with log.appending() as append:
        for _ in range(count):
            seq = len(log) + 1
            assert append(codec.encode(notice(seq))) == seq


@pytest.fixture
def job(tmp_path: Path) -> StoredJob:
    return JobStore(tmp_path).create(JOB, codec.encode(SUBMIT), StoredState("queued", 1.0, 3))


def test_a_job_is_found_again_as_it_was_submitted(job: StoredJob, tmp_path: Path) -> None:
    again = JobStore(tmp_path)
    assert again.job_ids() == [JOB]
    assert again.open(JOB).request() == SUBMIT
    assert again.open(JOB).read_state() == StoredState("queued", 1.0, 3)


def test_a_job_without_its_state_was_never_stored(job: StoredJob, tmp_path: Path) -> None:
    (job.folder / "state.json").unlink()
    (tmp_path / "not a job").mkdir()
    assert JobStore(tmp_path).job_ids() == []


def test_events_are_read_in_any_order_while_they_are_written(job: StoredJob) -> None:
    with job.log.appending() as append:
        for seq in range(1, 50):
            append(codec.encode(notice(seq)))
            assert len(job.log) == seq
            assert read(job.log, seq) == notice(seq)
            assert read(job.log, (seq + 1) // 2) == notice((seq + 1) // 2)


@pytest.mark.parametrize("torn", [1, 8, 15])
def test_what_a_dead_writer_left_half_written_is_no_event(job: StoredJob, torn: int) -> None:
    fill(job.log, 3)
    with (job.folder / "events.log").open("ab") as log, (job.folder / "events.index").open("ab") as index:
        log.write(b"half an event")
        index.write(b"\0" * torn)
    assert len(job.log) == 3
    fill(job.log, 2)
    assert len(job.log) == 5
    assert [read(job.log, seq) for seq in range(1, 6)] == [notice(seq) for seq in range(1, 6)]


def test_what_the_disk_did_not_get_when_the_power_went_is_dropped_back_to_the_last_commit(job: StoredJob) -> None:
    commit = m.ChunkCommitted(job_id=JOB, seq=6, chunk=0, attempt=1, frames=5)
    fill(job.log, 5)
    with job.log.appending() as append:
        append(codec.encode(commit))
    fill(job.log, 4)
    assert job.log.mend() == 0
    index = job.folder / "events.index"
    # Sizes that reached the disk, and contents that did not: event 8 is zeros, and 10 an entry of zeros.
    with (job.folder / "events.log").open("r+b") as log:
        log.seek(job.log._entry(8)[0])
        log.write(bytes(job.log.size_of(8)))
    index.write_bytes(index.read_bytes()[:-16] + bytes(16))
    assert job.log.mend() == 3
    assert len(job.log) == 7
    fill(job.log, 1)
    assert [read(job.log, seq).seq for seq in range(1, 9)] == [*range(1, 6), 6, 7, 8]
    with job.log.appending() as append:
        append([b"what another version said"])
    assert job.log.mend() == 0, "whole, whatever it says"


def test_an_event_that_is_not_there_is_named(job: StoredJob) -> None:
    fill(job.log, 2)
    with pytest.raises(BridgeError, match="ends before event 3"):
        job.log.read(3)


def test_a_damaged_event_is_named_not_delivered(job: StoredJob) -> None:
    fill(job.log, 3)
    path = job.folder / "events.log"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert read(job.log, 2) == notice(2)
    with pytest.raises(BridgeError, match=r"Event 3 .* damaged") as caught:
        job.log.read(3)
    assert caught.value.code == "store_damaged"


def test_a_full_disk_keeps_every_event_before_it(job: StoredJob, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(job.log, 2)
    written = 0

    def full(file: Any, *pieces: bytes) -> None:
        nonlocal written
        written += 1
        if written == 4:
            file.write(pieces[0][:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, *pieces)

    write = store._write
    monkeypatch.setattr(store, "_write", full)
    with job.log.appending() as append:
        append(codec.encode(notice(3)))
        with pytest.raises(BridgeError) as caught:
            append(codec.encode(notice(4)))
        assert caught.value.code == "disk_full"
        assert len(job.log) == 3
        append(codec.encode(notice(4)))
    assert [read(job.log, seq) for seq in range(1, 5)] == [notice(seq) for seq in range(1, 5)]


@pytest.mark.parametrize("damage", ["a byte", "cut", "gone"])
def test_small_events_are_had_up_to_the_first_damaged_one(job: StoredJob, damage: str) -> None:
    frame = next(message for message in one_of_each() if isinstance(message, m.FrameEvent))
    with job.log.appending() as append:
        for seq in range(1, 5):
            append(codec.encode(attrs.evolve(notice(seq), message="x" * 500)))
            append(codec.encode(attrs.evolve(frame, rgb=BIG, depth=BIG[..., 0].astype("f4"), validity=BIG[..., 0])))
    assert [event.seq for event in job.log.small_events(10_000)] == [1, 2, 3, 4]
    path = job.folder / "events.log"
    content = bytearray(path.read_bytes())
    start = content.index(b"x" * 500, len(content) // 2)
    content[start] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "a byte" else content[:start])
    assert [event.seq for event in job.log.small_events(10_000)] == ([] if damage == "gone" else [1, 2])


def test_only_the_newest_two_splat_files_are_kept(job: StoredJob) -> None:
    assert job.newest_splats() is None
    for revision in range(1, 5):
        content = bytes([revision]) * revision * 100
        file = job.add_splats(lambda path, content=content: path.write_bytes(content), splats=revision)
        assert (file.revision, file.size_bytes, file.splats) == (revision, revision * 100, revision)
        assert file.sha256 == hashlib.sha256(content).hexdigest()
        assert job.newest_splats() == file
    assert job.splats(2) is None
    older = job.splats(3)
    assert older is not None
    assert job.splats_block(older, 250) == b"\3" * 50
    older.path.unlink()
    assert job.splats_block(older, 0) is None


def test_an_old_splat_file_that_cannot_be_deleted_yet_stays(job: StoredJob, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def unlink_as_windows(path: Path, missing_ok: bool = False) -> None:
        if path.name == "splats_000001.ply":
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_as_windows)
        for revision in range(1, 4):
            assert job.add_splats(lambda path: path.write_bytes(b"splats"), 1).revision == revision
    job.add_splats(lambda path: path.write_bytes(b"splats"), 1)
    assert sorted(path.name for path in job.folder.glob("splats_*.ply")) == ["splats_000003.ply", "splats_000004.ply"]


def test_a_store_that_cannot_be_made_is_an_error_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BridgeError) as caught:
        JobStore(tmp_path / "file" / "jobs")
    assert caught.value.code == "cannot_write"


def test_damaged_settings_are_named(job: StoredJob) -> None:
    (job.folder / "submit.msg").write_bytes(b"\1\2\3")
    with pytest.raises(BridgeError, match=r"settings .* cannot be read") as caught:
        job.request()
    assert caught.value.code == "store_damaged"
