"""A whole shot from the scene through a real server process and back, and what is left when it ends early."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import session
from blender_addon.camera_export import export_camera_path
from blender_addon.shot import ShotSettings, Stop, generate_shot, prepare_shot
from engine_bridge.messages import FrameEvent, Progress
from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures.exr import read_depth_exr

from .conftest import Held

pytestmark = pytest.mark.usefixtures("addon")


def generate(out: Path, server: str, prompt: str = "", **hooks: object) -> object:
    """Runs the shot as a script would."""
    settings = ShotSettings(prompt=prompt, samples=1)
    return generate_shot(bpy.context, out, server, settings, hooks.pop("on_event", lambda _: None), **hooks)


def frames_in(out: Path) -> list[int]:
    numbers = [int(file.stem.removeprefix("frame_")) for file in sorted((out / "frames").glob("*.png"))]
    for kind in ("depth", "mask"):
        assert len(list((out / kind).iterdir())) == len(numbers)
    return numbers


def test_generate_in_background_leaves_everything_and_brings_it_in(
    scene: bpy.types.Scene, server: str, tmp_path: Path
) -> None:
    scene.worldwarp.directory = str(tmp_path)
    scene.worldwarp.seed = 7
    assert bpy.ops.worldwarp.generate(address=server) == {"FINISHED"}
    out = tmp_path / "shot_001"
    assert frames_in(out) == list(range(11, 19))
    job = json.loads((out / "job.json").read_text())
    assert job["state"] == "done"
    assert job["settings"]["seed"] == 7
    assert job["start_frame"]["view_transform"] == scene.view_settings.view_transform
    assert job["camera"] == "Hero Camera"
    assert job["server"]["engine"] == "cache"
    # In the scene: behind the camera, in the sequencer, in the compositor, as splats.
    (background,) = scene.camera.data.background_images
    assert Path(background.image.filepath).parent == out / "frames"
    assert scene.sequence_editor is not None
    assert bpy.context.view_layer.objects.active.name == "shot_001"


def test_frames_are_written_as_exr_too_where_that_is_chosen(
    scene: bpy.types.Scene, server: str, tmp_path: Path
) -> None:
    scene.worldwarp.frame_format = "EXR"
    bpy.ops.worldwarp.generate(address=server, directory=str(tmp_path / "shot"))
    assert len(list((tmp_path / "shot/frames_exr").glob("frame_*.exr"))) == len(frames_in(tmp_path / "shot")) == 8
    assert "frames_exr" in json.loads((tmp_path / "shot/job.json").read_text())["formats"]
    # A take that goes on from it has all frames in that form too.
    bpy.ops.worldwarp.regenerate(address=server, directory=str(tmp_path / "more"), frame=14)
    assert len(list((tmp_path / "more/frames_exr").glob("frame_*.exr"))) == 8


def test_what_was_sent_is_kept_beside_what_came_back(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot", server)
    sent, exported = read_cameras(tmp_path / "shot/cameras.json"), export_camera_path(bpy.context)
    np.testing.assert_array_equal(sent.c2w, exported.c2w)
    np.testing.assert_allclose(read_depth_exr(tmp_path / "shot/start_depth.exr"), 6.0, rtol=1e-5)
    assert (tmp_path / "shot/start_frame.png").is_file()


def test_a_cancelled_shot_keeps_and_shows_its_frames(
    scene: bpy.types.Scene, server: str, tmp_path: Path, held: Held
) -> None:
    stop = Stop()

    def stop_at_third_frame(event: object) -> None:
        if isinstance(event, FrameEvent) and event.number == 13:
            stop.cancelled.set()

    # Without the cancel the shot would never end.
    with pytest.raises(WorldWarpError) as caught:
        generate(tmp_path / "shot", server, held.after(3), stop=stop, on_event=stop_at_third_frame)
    assert caught.value.code == "cancelled"
    assert frames_in(tmp_path / "shot") == [11, 12, 13]
    assert json.loads((tmp_path / "shot/job.json").read_text())["state"] == "cancelled"
    assert len(scene.camera.data.background_images) == 1


def test_a_crash_of_the_engine_keeps_what_was_delivered(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    with pytest.raises(WorldWarpError) as caught:
        generate(tmp_path / "shot", server, "crash=3")
    assert caught.value.code == "worker_died"
    assert frames_in(tmp_path / "shot") == [11, 12, 13, 14]
    assert json.loads((tmp_path / "shot/job.json").read_text())["state"] == "failed"


def test_a_refusal_of_the_engine_reaches_the_artist(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    scene.worldwarp.prompt = "refuse"
    with pytest.raises(RuntimeError, match="Error: The start picture has no depth"):
        bpy.ops.worldwarp.generate(address=server, directory=str(tmp_path / "shot"))


def test_a_folder_with_another_shot_is_not_touched(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot", server)
    before = (tmp_path / "shot/job.json").read_text()
    with pytest.raises(WorldWarpError) as caught:
        generate(tmp_path / "shot", server)
    assert caught.value.code == "folder_in_use"
    assert (tmp_path / "shot/job.json").read_text() == before


def test_a_server_that_is_not_there_is_said_before_anything_is_rendered(
    scene: bpy.types.Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blender_addon.shot.render_start_frame", pytest.fail)
    with pytest.raises(RuntimeError, match=r"Error: .*worldwarp serve"):
        bpy.ops.worldwarp.generate(address="tcp://127.0.0.1:9", directory=str(tmp_path / "shot"))
    assert not (tmp_path / "shot").exists()
    # The report is gone soon; the panel keeps the sentence.
    assert "worldwarp serve" in session.status().error


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_rendered(
    scene: bpy.types.Scene, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blender_addon.shot.render_start_frame", pytest.fail)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RuntimeError, match=r"Cannot write .*Choose another Output"):
        bpy.ops.worldwarp.generate(address=server, directory=str(tmp_path / "file/shot"))


def test_the_session_beside_a_window_does_the_same(
    scene: bpy.types.Scene, server: str, tmp_path: Path, held: Held
) -> None:
    prompt = f"slow=0.02 progress=3 {held.after(4)}"
    shot = prepare_shot(bpy.context, ShotSettings(prompt=prompt, samples=1), lambda _: None)
    # The artist goes on modelling meanwhile.
    modelled = bpy.context.view_layer.objects.active
    bpy.ops.object.mode_set(mode="EDIT")
    session.start(shot, server, tmp_path / "shot", show=True)
    longest_s = drained(lambda: (session.status().frames_done, session.status().stage) == (4, "fill"))
    held.let_go()
    longest_s = max(longest_s, drained(lambda: not session.status().running))
    assert session.status().error == ""
    assert session.status().frames_done == 8
    assert frames_in(tmp_path / "shot") == list(range(11, 19))
    assert "shot" in scene.objects
    assert (bpy.context.view_layer.objects.active, bpy.context.mode) == (modelled, "EDIT_MESH")
    # The last tick brings everything in; none of those before may hold the window up, on a slow machine either.
    assert longest_s < 0.2


def drained(done: Callable[[], bool]) -> float:
    """Ticks as Blender's timer does until `done`; returns the longest tick but the last, in seconds of this thread.

    Of this thread alone: what other programs take of the processor is not the add-on's.
    """
    ticks = [0.0]
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        began = time.thread_time()
        session.drain(time.perf_counter() + session.BUDGET_S)
        ticks.append(time.thread_time() - began)
        time.sleep(0.01)
    return max(ticks[:-1])


def test_progress_is_heard_while_it_runs(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    heard: list[object] = []
    generate(tmp_path / "shot", server, "progress=2 slow=0.05", on_event=heard.append)
    assert any(isinstance(event, Progress) for event in heard)
    assert sum(isinstance(event, FrameEvent) for event in heard) == 8
