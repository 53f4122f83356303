"""A shot that runs beside the artist: events come in without blocking, and nothing outlives its file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import session
from blender_addon.shot import PreparedShot, SplatsOnDisk, Stop
from blender_addon.takes import active_take, add_take
from engine_bridge.client import ConnectionLost, Sending
from engine_bridge.job_folder import JobFolder
from engine_bridge.messages import Accepted, FrameEvent, NoticeEvent, Progress
from engine_bridge.png_writer import encode_png
from tests.engine_bridge.fake_engine import large_cloud
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import GenerateSpec
from worldwarp_core.splat_files.ply import write_ply

pytestmark = pytest.mark.usefixtures("addon")
JOB = "0" * 32
Work = Callable[..., None]


@pytest.fixture
def shot() -> PreparedShot:
    K = np.array([[[60.0, 0, 32], [0, 60.0, 18], [0, 0, 1]]] * 2)
    cameras = CameraPath(np.arange(2), 24.0, 64, 36, K, np.tile(np.eye(4), (2, 1, 1)))
    return PreparedShot(GenerateSpec(cameras, np.zeros((36, 64, 3), np.uint8)), engine="")


def begin(monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, out: Path, work: Work, show: bool = False) -> None:
    """Starts a session whose work is `work` in place of a server's."""
    monkeypatch.setattr(session, "run_shot", work)
    session.start(shot, "tcp://127.0.0.1:1", out, show)


def drain_until(done: Callable[[], bool]) -> None:
    """Does what Blender's timer does with a window, until `done`."""
    deadline = time.perf_counter() + 120
    while not done():
        assert time.perf_counter() < deadline
        session.drain(time.perf_counter() + session.BUDGET_S)
        time.sleep(0.01)


def frame(number: int) -> FrameEvent:
    return FrameEvent(
        job_id=JOB,
        seq=number + 1,
        index=number,
        number=number,
        chunk=0,
        attempt=1,
        rgb=np.zeros((36, 64, 3), np.uint8),
        depth=np.ones((36, 64), np.float32),
        validity=np.zeros((36, 64), np.uint8),
    )


def test_progress_frames_and_notices_reach_the_panel(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path
) -> None:
    def work(_shot: object, _out: Path, _address: str, on_event: Callable, *_: object) -> None:
        on_event(Progress(job_id=JOB, stage="cache", step=3, steps=9, chunk=0, chunks=1, fraction=0.25, eta_s=40.0))
        on_event(frame(0))
        on_event(NoticeEvent(job_id=JOB, seq=2, code="jump", message="The camera jumps at frame 7."))
        on_event(frame(1))

    begin(monkeypatch, shot, tmp_path, work)
    drain_until(lambda: not session.status().running)
    status = session.status()
    assert (status.stage, status.fraction, status.eta_s) == ("cache", 0.25, 40.0)
    assert (status.frames_done, status.frames) == (2, 2)
    assert status.notices == ["The camera jumps at frame 7."]
    assert status.error == ""
    assert "2 of 2 frames" in status.outcome


def test_the_queue_holds_no_pixels(monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path) -> None:
    assert session.lightened(frame(5)) == session.FrameDone(5)


def test_an_error_stays_until_it_is_dismissed(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path
) -> None:
    def work(*_: object) -> None:
        raise WorldWarpError("server_not_running", "No server answers. Start one.")

    begin(monkeypatch, shot, tmp_path, work)
    drain_until(lambda: not session.status().running)
    assert session.status().error.startswith("No server answers. Start one.")
    bpy.ops.worldwarp.dismiss_error()
    assert session.status().error == ""


def test_a_fault_of_ours_is_told_in_words(monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path) -> None:
    def work(*_: object) -> None:
        raise KeyError("frames")

    begin(monkeypatch, shot, tmp_path, work)
    drain_until(lambda: not session.status().running)
    assert "KeyError" in session.status().error


def test_a_fault_while_events_are_shown_ends_the_shot_in_words(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("takes")

    begin(monkeypatch, shot, tmp_path, wait_for_stop)
    thread = session._session.thread if session._session else None
    monkeypatch.setattr(session, "note", broken)
    deadline = time.perf_counter() + 120
    while session._tick() is not None:
        assert time.perf_counter() < deadline
        time.sleep(0.01)
    assert not session.status().running
    assert "KeyError" in session.status().error
    assert "in broken" in capsys.readouterr().err
    assert thread is not None
    thread.join(120)
    assert not thread.is_alive(), "the thread is asked to leave too"


def wait_for_stop(_shot: object, _out: Path, _address: str, on_event: Callable, stop: Stop, *_: object) -> None:
    on_event(frame(0))
    for _ in range(12_000):
        if stop.asked():
            raise WorldWarpError("cancelled", "The job was cancelled.")
        time.sleep(0.01)


def test_cancel_stops_the_work_and_is_no_error(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path
) -> None:
    assert not bpy.ops.worldwarp.cancel.poll()
    begin(monkeypatch, shot, tmp_path, wait_for_stop)
    drain_until(lambda: session.status().frames_done == 1)
    assert bpy.ops.worldwarp.cancel() == {"FINISHED"}
    assert session.status().cancelling
    drain_until(lambda: not session.status().running)
    assert session.status().error == ""
    assert session.status().outcome.startswith("Cancelled: 1 of 2 frames")


def test_there_is_one_shot_at_a_time(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    begin(monkeypatch, shot, tmp_path, wait_for_stop)
    with pytest.raises(WorldWarpError, match="already"):
        session.start(shot, "tcp://127.0.0.1:1", tmp_path, show=False)
    with pytest.raises(RuntimeError, match="already"):
        bpy.ops.worldwarp.generate()
    session.close()


def test_opening_another_file_ends_the_work(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path
) -> None:
    monkeypatch.setattr(session, "JOIN_S", 120.0)
    begin(monkeypatch, shot, tmp_path, wait_for_stop)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    assert not session.status().running
    assert not [thread for thread in threading.enumerate() if thread.name == "worldwarp"]
    assert not bpy.app.timers.is_registered(session._tick)


def test_frames_appear_behind_the_camera_while_they_arrive(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    (tmp_path / "frames").mkdir()
    image = bpy.data.images.new("tmp", 8, 8)
    image.file_format, image.filepath_raw = "PNG", str(tmp_path / "frames/frame_0001.png")
    image.save()
    begin(monkeypatch, shot, tmp_path, wait_for_stop, show=True)
    drain_until(lambda: len(camera.data.background_images) == 1)
    session.close()


# ---------------------------------------------------------------- the end of a shot


def write_shot(out: Path, splats: int = 300) -> None:
    """Writes what a shot of two frames leaves in its folder."""
    folder = JobFolder(out, job_id=JOB, frames=[0, 1], settings={})
    for number in (0, 1):
        folder.write(frame(number))
    write_ply(out / "splats.ply", large_cloud(splats))


def finish(_shot: object, out: Path, _address: str, on_event: Callable, *_: object) -> None:
    """Does what a shot does that is done."""
    write_shot(out)
    on_event(frame(0))
    on_event(frame(1))
    on_event(SplatsOnDisk(out / "splats.ply"))


def begin_the_end(monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, out: Path) -> None:
    """Brings a session to where its results are brought in, without having done any of that."""
    begin(monkeypatch, shot, out, finish, show=True)
    drain_until(lambda: session._session is None or session._session.bringing_in is not None)


def test_results_are_brought_in_a_little_at_a_time(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    begin_the_end(monkeypatch, shot, tmp_path / "shot_001")
    rounds = 0
    while session.status().running:
        made = bpy.data.objects.get("shot_001")
        assert made is None or "radiance:sh_14" in made.data.attributes, "it is seen when it is whole"
        session.drain(0.0)
        rounds += 1
    assert rounds > 20
    assert len(bpy.data.objects["shot_001"].data.attributes["position"].data) == 300
    assert session.status().error == ""
    assert "2 of 2 frames" in session.status().outcome


def test_an_undo_in_between_finds_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    begin_the_end(monkeypatch, shot, tmp_path / "shot_001")
    session.drain(0.0)
    for handler in bpy.app.handlers.undo_pre:
        handler(bpy.context.scene)
    assert not session.status().running
    assert bpy.data.objects.get("shot_001")


def test_results_wait_while_another_scene_is_in_front(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    begin_the_end(monkeypatch, shot, tmp_path / "shot_001")
    asked = session._session
    monkeypatch.setattr(session, "_scene", lambda _: None)
    for _ in range(50):
        session.drain(0.0)
    assert session._session is asked
    monkeypatch.undo()
    drain_until(lambda: not session.status().running)
    assert bpy.data.objects.get("shot_001") in list(bpy.context.scene.objects)


def test_a_scene_that_is_renamed_meanwhile_gets_its_results(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    begin_the_end(monkeypatch, shot, tmp_path / "shot_001")
    bpy.context.scene.name = "Harbour"
    drain_until(lambda: not session.status().running)
    assert bpy.data.objects.get("shot_001")


def test_a_shot_that_ends_while_another_scene_is_in_front_is_booked_in_its_own(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    scene, other = bpy.context.scene, bpy.data.scenes.new("Other")
    begin(monkeypatch, shot, tmp_path / "shot_001", finish, show=True)
    bpy.context.window.scene = other
    drain_until(lambda: not session.status().running)
    assert (len(other.worldwarp.takes), len(scene.worldwarp.takes)) == (0, 1)
    assert scene.worldwarp.takes[0].job_id == JOB
    assert 'a take of the scene "Scene": show it there' in session.status().notices[-1]


def test_a_scene_that_is_removed_meanwhile_ends_the_shot(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    begin_the_end(monkeypatch, shot, tmp_path / "shot_001")
    scene = bpy.context.scene
    bpy.context.window.scene = bpy.data.scenes.new("Other")
    bpy.data.scenes.remove(scene)
    session.drain(0.0)
    assert not session.status().running


def test_a_cancel_while_results_are_brought_in_ends_that_at_once(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    begin_the_end(monkeypatch, shot, tmp_path / "shot_001")
    session.drain(0.0)
    assert bpy.ops.worldwarp.cancel() == {"FINISHED"}
    status = session.status()
    assert (status.running, status.cancelling, status.error) == (False, False, "")
    assert "2 of 2 frames" in status.outcome
    assert "show the take under Results" in status.outcome
    assert bpy.data.objects.get("shot_001") is None
    bpy.ops.worldwarp.show_take(index=0)
    assert bpy.data.objects.get("shot_001")


def test_a_shot_that_was_never_sent_leaves_no_take(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path
) -> None:
    def refused(*_: object) -> None:
        raise WorldWarpError("server_not_running", "No server answers. Start one.")

    kept = add_take(bpy.context.scene, tmp_path / "shot_001", 1)
    kept.job_id = JOB
    begin(monkeypatch, shot, tmp_path / "shot_002", refused)
    assert [take.name for take in bpy.context.scene.worldwarp.takes] == ["Shot 001", "Shot 002"]
    drain_until(lambda: not session.status().running)
    assert [take.name for take in bpy.context.scene.worldwarp.takes] == ["Shot 001"]
    assert active_take(bpy.context.scene).name == "Shot 001"


def test_frames_appear_behind_the_camera_that_films_the_shot(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    scene = bpy.context.scene
    other = camera.copy()
    other.data = camera.data.copy()
    scene.collection.objects.link(other)
    for frame_number, filming in ((0, camera), (50, other)):
        scene.timeline_markers.new(filming.name, frame=frame_number).camera = filming
    # The timeline is in another shot, of another camera.
    scene.frame_set(60)
    assert scene.camera == other
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames/frame_0001.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    begin(monkeypatch, shot, tmp_path, wait_for_stop, show=True)
    drain_until(lambda: len(camera.data.background_images) + len(other.data.background_images) == 1)
    session.close()
    assert len(camera.data.background_images) == 1


def test_it_is_shown_how_much_of_the_shot_has_been_sent() -> None:
    status = session.Status(running=True, frames=2)
    session.note(status, Sending("0" * 32, 2_500_000, 10_000_000))
    assert (status.stage, status.fraction) == ("sending, 2.5 of 10.0 MB", 0.25)
    session.note(status, Accepted(request_id=1, job_id="0" * 32, position=0))
    assert (status.stage, status.fraction) == ("waiting for the engine", 0.0)


def test_splats_that_cannot_be_read_leave_the_frames_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path, camera: bpy.types.Object
) -> None:
    def broken(_shot: object, out: Path, _address: str, on_event: Callable, *_: object) -> None:
        write_shot(out)
        on_event(frame(0))
        (out / "splats.ply").write_bytes(b"no splats at all")
        on_event(SplatsOnDisk(out / "splats.ply"))

    begin(monkeypatch, shot, tmp_path / "shot_001", broken, show=True)
    drain_until(lambda: not session.status().running)
    assert "splats.ply" in session.status().error
    assert len(camera.data.background_images) == 1


def test_a_lost_connection_is_told_and_a_cancel_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, shot: PreparedShot, tmp_path: Path
) -> None:
    def lose(_shot: object, _out: Path, _address: str, on_event: Callable, stop: Stop, *_: object) -> None:
        lost = ConnectionLost("The connection to tcp://127.0.0.1:1 was lost. Trying again.")
        stop.hear(lost)
        on_event(lost)
        while not stop.asked():
            time.sleep(0.01)

    begin(monkeypatch, shot, tmp_path, lose)
    drain_until(lambda: session.status().lost != "")
    assert "Trying again" in session.status().lost
    session.cancel()
    drain_until(lambda: not session.status().running)
    assert "Resume fetches the rest" in session.status().error
    assert session.status().lost == ""
