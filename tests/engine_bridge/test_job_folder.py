"""The folder that a job leaves: right at every moment, whatever happens to the disk or the job."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import OpenEXR
import pytest
from PIL import Image

from engine_bridge import messages as m
from engine_bridge.errors import BridgeError
from engine_bridge.job_folder import JobFolder, read_job
from engine_bridge.png_writer import encode_png, is_whole_png
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures.exr import read_depth_exr

from .shots import JOB

OTHER = "f" * 32


def folder_in(out: Path, job_id: str = JOB, frames: Any = (-1, 0, 1), **more: Any) -> JobFolder:
    return JobFolder(out, job_id=job_id, frames=frames, settings={"prompt": "a yard", "steps": None}, **more)


def frame(seq: int, number: int, size: tuple[int, int] = (9, 13)) -> m.FrameEvent:
    rng = np.random.default_rng(number + 100)
    return m.FrameEvent(
        job_id=JOB,
        seq=seq,
        index=seq,
        number=number,
        chunk=0,
        attempt=1,
        rgb=rng.integers(0, 256, (*size, 3), np.uint8),
        depth=rng.random(size, np.float32) * 10,
        validity=rng.integers(0, 256, size, np.uint8),
    )


def state(seq: int, name: m.JobState, **more: Any) -> m.StateEvent:
    return m.StateEvent(job_id=JOB, seq=seq, state=name, **more)


def splats(folder: JobFolder, size: int = 50) -> None:
    folder.splats_path.write_bytes(b"x" * size)


@pytest.mark.parametrize("size", [(9, 13), (1, 1), (720, 1280)])
def test_pngs_say_srgb_and_come_back_bit_exact(size: tuple[int, int], tmp_path: Path) -> None:
    event = frame(1, 1, size)
    folder = folder_in(tmp_path)
    folder.write(event)
    picture, depth, mask = folder.paths(1)
    with Image.open(picture) as image:
        assert (np.asarray(image) == event.rgb).all()
        assert image.info["srgb"] == 0
        assert image.text["worldwarp:frame"] == "1"  # type: ignore[attr-defined]
        assert image.text["worldwarp:job"] == JOB  # type: ignore[attr-defined]
    with Image.open(mask) as image:
        assert image.mode == "L"
        assert (np.asarray(image) == event.validity).all()
    assert (read_depth_exr(depth) == event.depth).all()


def test_linear_copies_hold_the_light_of_every_srgb_value(tmp_path: Path) -> None:
    event = attrs.evolve(frame(1, 1, (16, 16)), rgb=np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    folder = folder_in(tmp_path, linear_copies=True)
    folder.write(event)
    with OpenEXR.File(str(tmp_path / "frames_exr/frame_0001.exr")) as file:
        light = file.channels()["RGB"].pixels.astype(np.float64)
        assert "Scene-linear" in file.header()["comments"]
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert (np.rint(encoded * 255) == event.rgb).all()
    assert np.abs(encoded * 255 - event.rgb).max() < 0.1
    assert "scene-linear" in read_job(tmp_path)["formats"]["frames_exr"]


def test_linear_copies_are_asked_for_once_and_kept_by_a_folder_that_is_continued(tmp_path: Path) -> None:
    folder_in(tmp_path, linear_copies=True).write(frame(1, -1))
    folder = folder_in(tmp_path)
    folder.write(frame(2, 0))
    assert (tmp_path / "frames_exr/frame_0000.exr").is_file()
    (tmp_path / "frames_exr/frame_0000.exr").unlink()
    faults = folder.missing()
    assert f"{Path('frames_exr/frame_0000.exr')} is missing" in faults
    assert f"{Path('frames_exr/frame_-001.exr')} is missing" not in faults
    # A frame without its copy is not whole.
    folder_in(tmp_path)
    assert read_job(tmp_path)["frames"]["written"] == 1
    folder_in(tmp_path, job_id=OTHER, overwrite=True)
    assert not list((tmp_path / "frames_exr").iterdir())
    assert "frames_exr" not in read_job(tmp_path)["formats"]


def test_files_are_named_by_the_paths_own_frame_numbers(tmp_path: Path) -> None:
    folder = folder_in(tmp_path, frames=[-12, 0, 7, 12345])
    for seq, number in enumerate((-12, 0, 7, 12345), 1):
        folder.write(frame(seq, number))
    names = {path.name for path in (tmp_path / "frames").iterdir()}
    assert names == {"frame_-012.png", "frame_0000.png", "frame_0007.png", "frame_12345.png"}
    assert {path.stem for path in (tmp_path / "depth").iterdir()} == {name[:-4] for name in names}
    assert {path.name for path in (tmp_path / "mask").iterdir()} == names


def test_job_json_tells_what_was_asked_done_and_noticed(tmp_path: Path) -> None:
    folder = folder_in(tmp_path, records={"blender": "4.5"})
    for event in (
        state(1, "queued"),
        m.NoticeEvent(job_id=JOB, seq=2, code="jump", message="The path jumps."),
        frame(3, -1),
        frame(4, 1),
        m.CacheEvent(job_id=JOB, seq=5, chunk=0, revision=1, splats=7, size_bytes=50),
        m.Progress(job_id=JOB, stage="fill", step=1, steps=2, chunk=0, chunks=1, fraction=0.5, eta_s=1.0),
        state(
            6,
            "done",
            summary={
                "seconds": {"cache": 2.5},
                "settings": {"prompt": "?", "steps": 50, "sh_degree": 1},
                "engine": {"engine": "cache", "versions": {"torch": "2"}},
                "job_id": "not mine to say",
            },
        ),
    ):
        folder.write(event)
    job = read_job(tmp_path)
    assert (job["state"], job["last_seq"], job["job_id"], job["blender"]) == ("done", 6, JOB, "4.5")
    assert job["settings"] == {"prompt": "a yard", "steps": 50, "sh_degree": 1}
    assert job["seconds"] == {"cache": 2.5}
    assert job["versions"] == {"torch": "2"}
    assert job["notices"] == [{"code": "jump", "message": "The path jumps."}]
    assert job["frames"] == {"asked": 3, "written": 2, "first": -1, "last": 1, "written_ranges": [[-1, -1], [1, 1]]}
    assert job["splats"] == {"count": 7, "chunk": 0, "size_bytes": 50}
    assert job["ended"] >= job["started"]


def test_what_is_not_there_or_not_whole_is_named(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    for seq, number in enumerate((-1, 0, 1), 1):
        folder.write(frame(seq, number))
    folder.write(m.CacheEvent(job_id=JOB, seq=4, chunk=0, revision=1, splats=7, size_bytes=50))
    assert folder.missing() == ["splats.ply is missing"]
    splats(folder, 49)
    assert folder.missing() == ["splats.ply is not the 50 bytes that it should be"]
    splats(folder)
    assert folder.missing() == []
    picture, depth, mask = folder.paths(0)
    depth.unlink()
    content = bytearray(picture.read_bytes())
    content[60] ^= 1
    picture.write_bytes(content)
    mask.write_bytes(mask.read_bytes()[:-5])
    for number, start in ((-1, b""), (1, b"no depth at all")):
        folder.paths(number)[1].write_bytes(start)
    assert sorted(folder.missing()) == [
        str(Path("depth/frame_-001.exr")) + " is damaged",
        str(Path("depth/frame_0000.exr")) + " is missing",
        str(Path("depth/frame_0001.exr")) + " is damaged",
        str(Path("frames/frame_0000.png")) + " is damaged",
        str(Path("mask/frame_0000.png")) + " is damaged",
    ]


def test_every_flip_of_a_byte_or_cut_is_no_whole_png() -> None:
    content = encode_png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert is_whole_png(content)
    for i in range(len(content)):
        changed = bytearray(content)
        changed[i] ^= 0x10
        assert not is_whole_png(bytes(changed)), i
        assert not is_whole_png(content[:i])
    assert not is_whole_png(content + b"x")


def test_a_folder_of_the_same_job_is_continued(tmp_path: Path) -> None:
    first = folder_in(tmp_path)
    first.write(state(1, "queued"))
    first.write(frame(2, -1))
    first.save()
    again = folder_in(tmp_path)
    assert again.last_seq == 2
    again.write(frame(3, 0))
    again.write(frame(4, 1))
    again.write(state(5, "done"))
    assert read_job(tmp_path)["frames"]["written_ranges"] == [[-1, 1]]


def test_a_folder_of_another_job_is_refused_or_emptied_of_that_job(tmp_path: Path) -> None:
    first = folder_in(tmp_path)
    first.write(frame(1, -1))
    splats(first)
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(BridgeError, match="--overwrite") as caught:
        folder_in(tmp_path, OTHER)
    assert caught.value.code == "folder_in_use"
    assert first.paths(-1)[0].is_file()
    folder_in(tmp_path, OTHER, overwrite=True)
    assert not first.paths(-1)[0].exists()
    assert not first.splats_path.exists()
    assert (tmp_path / "frames" / "notes.txt").read_text() == "mine"
    assert read_job(tmp_path)["job_id"] == OTHER


def test_a_job_that_came_to_nothing_is_in_nobodys_way(tmp_path: Path) -> None:
    first = folder_in(tmp_path)
    with pytest.raises(BridgeError, match="--overwrite"):
        # It may be waiting for its first frame at this moment.
        folder_in(tmp_path, OTHER)
    first.fail("server_gone", "The server has not come back.")
    (tmp_path / "notes.txt").write_text("mine")
    second = folder_in(tmp_path, OTHER)
    assert read_job(tmp_path)["job_id"] == OTHER
    second.write(frame(1, -1))
    second.fail("server_gone", "The server has not come back.")
    with pytest.raises(BridgeError, match="--overwrite"):
        folder_in(tmp_path)
    second.paths(-1)[0].unlink()
    with pytest.raises(BridgeError, match="--overwrite"):
        folder_in(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("blocked", [".", "frames"])
def test_a_file_in_the_way_cannot_be_written_into(tmp_path: Path, blocked: str) -> None:
    out = tmp_path / "out"
    (out / blocked).parent.mkdir(parents=True, exist_ok=True)
    if blocked == ".":
        out.write_text("a file") if not out.is_dir() else (out.rmdir(), out.write_text("a file"))
    else:
        (out / blocked).write_text("a file")
    with pytest.raises(WorldWarpError, match="Cannot write") as caught:
        folder_in(out)
    assert caught.value.code == "cannot_write"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom file modes keep out")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WorldWarpError, match="Cannot write") as caught:
        folder_in(tmp_path / "out")
    assert caught.value.code == "cannot_write"


def test_a_full_disk_has_its_own_code_and_keeps_everything_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_in(tmp_path)
    folder.write(frame(1, -1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write_bytes(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BridgeError, match="No space is left") as caught:
        folder.write(frame(2, 0))
    assert caught.value.code == "disk_full"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    folder.write(frame(2, 0))
    folder.write(state(3, "cancelled"))
    assert read_job(tmp_path)["frames"]["written"] == 2


def test_the_reason_of_an_end_here_is_recorded(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    folder.fail("server_gone", "The server has not come back.")
    job = read_job(tmp_path)
    assert (job["state"], job["code"], job["message"]) == ("failed", "server_gone", "The server has not come back.")


@pytest.mark.parametrize("content", [None, "not json", "[]", json.dumps({"version": 1})])
def test_a_folder_without_a_job_says_so(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    with pytest.raises(WorldWarpError) as caught:
        read_job(tmp_path)
    assert caught.value.code == "no_job"
