"""Takes: kept, named, shown in place of each other, made anew from frame N, taken up again after Blender was closed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import session, takes
from blender_addon.composite import composite_in_use, nodes_of
from blender_addon.sequences import find_sequence
from blender_addon.shot import Left, PreparedShot, ShotSettings, Stop, prepare_shot, resume_shot, run_shot
from blender_addon.splice import frame_of, prepare_splice
from blender_addon.takes import active_take, find_more, folder_of, things_of
from engine_bridge.client import Client
from engine_bridge.messages import FrameEvent
from worldwarp_core.errors import WorldWarpError

from .conftest import ROOT, Held, start_server

pytestmark = pytest.mark.usefixtures("addon")


def generate(out: Path, server: str, prompt: str = "", seed: int = 0) -> None:
    """Presses Generate, as a script does in background."""
    group = bpy.context.scene.worldwarp
    group.prompt, group.seed = prompt, seed
    bpy.ops.worldwarp.generate(address=server, directory=str(out))


def names() -> list[str]:
    return [take.name for take in bpy.context.scene.worldwarp.takes]


def shown_frames(scene: bpy.types.Scene) -> list[str]:
    """Returns the folders whose frames are seen behind the camera."""
    return [
        Path(bpy.path.abspath(shown.image.filepath)).parent.parent.name
        for shown in scene.camera.data.background_images
        if shown.show_background_image
    ]


def number_in(file: Path) -> int:
    return int(file.stem.removeprefix("frame_"))


def test_every_shot_is_a_take_and_only_the_newest_is_shown(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot_001", server)
    generate(tmp_path / "shot_002", server, seed=1)
    assert names() == ["Shot 001", "Shot 002"]
    take = active_take(scene)
    assert (take.name, take.state, take.frames_done, take.first_frame) == ("Shot 002", "done", 8, 11)
    bpy.ops.worldwarp.show_take(index=1)
    assert shown_frames(scene) == ["shot_002"]
    bpy.ops.worldwarp.show_take(index=0)
    assert shown_frames(scene) == ["shot_001"]
    assert active_take(scene).name == "Shot 001"
    first, second = (things_of(scene, tmp_path / name) for name in ("shot_001", "shot_002"))
    worlds = [[thing for thing in things if isinstance(thing, bpy.types.Object)] for things in (first, second)]
    assert worlds[0]
    assert worlds[1]
    assert not any(thing.hide_render for thing in worlds[0])
    assert all(thing.hide_render and thing.hide_viewport for thing in worlds[1])


def test_the_composite_follows_the_take_that_is_shown(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    for name in ("shot_001", "shot_002"):
        generate(tmp_path / name, server)
    bpy.ops.worldwarp.show_take(index=0)
    bpy.ops.worldwarp.composite()
    assert composite_in_use(scene).label == "shot_001 Composite"
    bpy.ops.worldwarp.show_take(index=1)
    assert composite_in_use(scene).label == "shot_002 Composite"
    bpy.ops.worldwarp.remove_take()
    assert composite_in_use(scene) is None
    assert not scene.render.film_transparent


def test_a_take_is_removed_with_or_without_its_files(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    for name in ("shot_001", "shot_002"):
        generate(tmp_path / name, server)
    bpy.ops.worldwarp.remove_take()
    assert names() == ["Shot 001"]
    assert (tmp_path / "shot_002/frames").is_dir()
    bpy.ops.worldwarp.remove_take(delete_files=True)
    assert names() == []
    assert not (tmp_path / "shot_001").exists()
    # What is still on disk is found again.
    assert find_more(scene, tmp_path) == 1
    assert names() == ["Shot 002"]


def test_files_of_another_shot_are_never_deleted(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot_001", server)
    job = json.loads((tmp_path / "shot_001/job.json").read_text())
    (tmp_path / "shot_001/job.json").write_text(json.dumps(job | {"job_id": "f" * 32}))
    with pytest.raises(RuntimeError, match="nothing was deleted"):
        bpy.ops.worldwarp.remove_take(delete_files=True)
    assert (tmp_path / "shot_001/frames").is_dir()
    assert names() == ["Shot 001"]


def test_takes_of_another_scene_are_not_listed(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot_001", server)
    other = bpy.data.scenes.new("Other")
    assert find_more(other, tmp_path) == 0


def test_regenerating_keeps_what_was_before_and_goes_on_from_there(
    scene: bpy.types.Scene, server: str, tmp_path: Path
) -> None:
    generate(tmp_path / "shot_001", server)
    scene.worldwarp.prompt, scene.worldwarp.seed = "progress=1", 5
    scene.camera.keyframe_insert("location", frame=15)
    scene.camera.location.x = 2.0
    scene.camera.keyframe_insert("location", frame=18)
    bpy.ops.worldwarp.regenerate(frame=15, address=server, directory=str(tmp_path / "shot_002"))
    earlier, later = tmp_path / "shot_001", tmp_path / "shot_002"
    for kind in ("frames", "depth", "mask"):
        assert [number_in(file) for file in sorted((later / kind).iterdir())] == list(range(11, 19))
        for number in range(11, 15):
            (file,) = (later / kind).glob(f"frame_{number:04d}.*")
            assert file.read_bytes() == (earlier / kind / file.name).read_bytes()
    take = active_take(scene)
    assert (take.based_on, take.first_frame, take.frames, take.state) == ("shot_001", 15, 4, "done")
    job = json.loads((later / "job.json").read_text())
    assert job["take"] == {"based_on": "shot_001", "from_frame": 15}
    assert job["settings"]["seed"] == 5
    # The earlier take is as it was.
    assert [number_in(file) for file in sorted((earlier / "frames").iterdir())] == list(range(11, 19))
    assert names() == ["Shot 001", "Shot 002"]


def test_the_new_take_begins_with_the_frame_and_its_depth(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot_001", server)
    start = frame_of(tmp_path / "shot_001", 13)
    # The fake engine's frame 2: every pixel 17, its depth half more.
    assert (start.rgb == 17).all()
    np.testing.assert_array_equal(start.depth, np.float32(17.5))
    shot = prepare_splice(bpy.context, ShotSettings(seed=3), tmp_path / "shot_001", 13)
    assert shot.spec.cameras.frames.tolist() == [13, 14, 15, 16, 17, 18]
    assert shot.spec.seed == 3
    np.testing.assert_array_equal(shot.spec.start_frame, start.rgb)
    assert not [image for image in bpy.data.images if image.name.startswith("frame_0013")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scene: setattr(scene.camera.location, "x", 1.0), "moved"),
        (lambda scene: setattr(scene.camera.rotation_euler, "z", 0.1), "turned"),
        (lambda scene: setattr(scene.camera.data, "lens", 60.0), "zoomed"),
        (lambda scene: setattr(scene.render, "resolution_x", 96), "96 x 32"),
        (lambda scene: setattr(scene, "frame_end", 12), "no frame of the scene's range"),
    ],
)
def test_a_take_that_would_not_fit_is_refused(
    scene: bpy.types.Scene, server: str, tmp_path: Path, change: Callable[[bpy.types.Scene], None], words: str
) -> None:
    generate(tmp_path / "shot_001", server)
    change(scene)
    with pytest.raises(RuntimeError, match=words):
        bpy.ops.worldwarp.regenerate(frame=14, address=server, directory=str(tmp_path / "shot_002"))
    assert not (tmp_path / "shot_002").exists()
    assert words in session.status().error


def test_a_frame_that_the_take_lacks_is_refused(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot_001", server)
    with pytest.raises(RuntimeError, match=r"no frame 19 .* it has frames 11 to 18"):
        bpy.ops.worldwarp.regenerate(frame=19, address=server, directory=str(tmp_path / "shot_002"))


def leave_after(frames: int, stop: Stop) -> Callable[[object], None]:
    """Returns a listener that leaves the shot to the server after so many frames."""
    seen: list[object] = []

    def on_event(event: object) -> None:
        seen.extend([event] if isinstance(event, FrameEvent) else [])
        if len(seen) == frames:
            stop.left.set()

    return on_event


def begin_and_leave(server: str, out: Path, prompt: str, frames: int) -> PreparedShot:
    shot = prepare_shot(bpy.context, ShotSettings(prompt=prompt, samples=1), lambda _: None)
    stop = Stop()
    with pytest.raises(Left):
        run_shot(shot, out, server, leave_after(frames, stop), stop)
    return shot


def test_a_shot_that_was_left_is_made_all_the_same_and_fetched_later(
    scene: bpy.types.Scene, server: str, tmp_path: Path, held: Held
) -> None:
    out = tmp_path / "shot_001"
    begin_and_leave(server, out, held.after(2), 2)
    job = json.loads((out / "job.json").read_text())
    assert job["state"] == "running"
    assert job["frames"]["written"] == 2
    # Another day: the file lists the take, and says that it was left.
    assert find_more(scene, tmp_path) == 1
    take = active_take(scene)
    assert take.state == "running"
    assert bpy.ops.worldwarp.resume.poll()
    held.let_go()
    bpy.ops.worldwarp.resume(address=server)
    assert (take.state, take.frames_done) == ("done", 8)
    assert (out / "splats.ply").is_file()
    assert shown_frames(scene) == ["shot_001"]
    assert not bpy.ops.worldwarp.resume.poll()


def test_what_is_fetched_again_comes_after_what_was_had(
    scene: bpy.types.Scene, server: str, tmp_path: Path, held: Held
) -> None:
    out = tmp_path / "shot_001"
    begin_and_leave(server, out, held.after(3), 3)
    had = {number_in(file) for file in (out / "frames").iterdir()}
    fetched: list[int] = []
    held.let_go()
    resume_shot(
        out,
        server,
        lambda event: fetched.append(event.number) if isinstance(event, FrameEvent) else None,
        Stop(),
    )
    assert sorted({*fetched, *had}) == list(range(11, 19))
    assert not had & set(fetched)


def test_a_cancelled_take_goes_on_where_it_stopped(
    scene: bpy.types.Scene, server: str, tmp_path: Path, held: Held
) -> None:
    out = tmp_path / "shot_001"
    settings = ShotSettings(prompt=held.after(6), samples=1, chunk=5, overlap=1)
    shot = prepare_shot(bpy.context, settings, lambda _: None)
    stop, seen = Stop(), []

    def cancel_at_sixth(event: object) -> None:
        seen.extend([event] if isinstance(event, FrameEvent) else [])
        if len(seen) == 6:
            stop.cancelled.set()

    with pytest.raises(WorldWarpError, match="cancelled"):
        run_shot(shot, out, server, cancel_at_sixth, stop)
    held.let_go()
    find_more(scene, tmp_path)
    bpy.ops.worldwarp.resume(address=server)
    assert active_take(scene).state == "done"
    assert len(find_sequence(out / "frames", ".png", "sRGB").files) == 8


def test_a_server_that_forgot_the_take_is_said(scene: bpy.types.Scene, server: str, tmp_path: Path, held: Held) -> None:
    begin_and_leave(server, tmp_path / "shot_001", held.after(1), 1)
    job = json.loads((tmp_path / "shot_001/job.json").read_text())
    (tmp_path / "shot_001/job.json").write_text(json.dumps(job | {"job_id": "e" * 32}))
    find_more(scene, tmp_path)
    with pytest.raises(RuntimeError, match=r"does not have this take.*Regenerate"):
        bpy.ops.worldwarp.resume(address=server)
    assert "does not have this take" in session.status().error


def drain_until(done: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 120
    while not done():
        assert time.perf_counter() < deadline
        session.drain(time.perf_counter() + session.BUDGET_S)
        time.sleep(0.01)


def test_closing_the_file_leaves_the_shot_to_the_server_and_reopening_offers_it(
    scene: bpy.types.Scene, server: str, tmp_path: Path, held: Held
) -> None:
    out, blend = tmp_path / "worldwarp/shot_001", tmp_path / "film.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(blend))
    shot = prepare_shot(bpy.context, ShotSettings(prompt=held.after(3), samples=1), lambda _: None)
    session.start(shot, server, out, show=True)
    bpy.ops.wm.save_mainfile()
    drain_until(lambda: session.status().frames_done >= 2)
    bpy.ops.wm.open_mainfile(filepath=str(blend))
    assert not session.status().running
    take = active_take(bpy.context.scene)
    assert take.directory == "//worldwarp/shot_001"
    assert (take.state, folder_of(take)) == ("running", out)
    # Beside a window the same is done by a thread.
    session.resume(out, server, True, list(range(11, 19)))
    assert session.status().frames_done >= 2
    held.let_go()
    drain_until(lambda: not session.status().running)
    assert session.status().error == ""
    assert (active_take(bpy.context.scene).state, session.status().frames_done) == ("done", 8)


def test_a_file_that_was_moved_with_its_takes_finds_them(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(before / "film.blend"))
    generate(before / "worldwarp/shot_001", server)
    bpy.ops.wm.save_mainfile()
    before.rename(after)
    bpy.ops.wm.open_mainfile(filepath=str(after / "film.blend"))
    take = active_take(bpy.context.scene)
    assert folder_of(take) == after / "worldwarp/shot_001"
    assert (take.state, take.frames_done) == ("done", 8)


# ---------------------------------------------------------------- names, and comparing


def names_of_things(scene: bpy.types.Scene, folder: Path) -> list[str]:
    """Returns what everything that a take brought in is called."""
    named = [
        thing.image.name if isinstance(thing, bpy.types.CameraBackgroundImage) else thing.name
        for thing in things_of(scene, folder)
    ]
    return sorted([*named, *(node.label for node in nodes_of(scene, folder))])


def test_a_take_s_new_name_is_everywhere_and_stays_when_it_is_shown_again(
    scene: bpy.types.Scene, server: str, tmp_path: Path
) -> None:
    generate(tmp_path / "shot_001", server)
    folder = tmp_path / "shot_001"
    before = names_of_things(scene, folder)
    assert [name for name in before if name.startswith("shot_001")] == [
        "shot_001",
        "shot_001",
        "shot_001",
        "shot_001 Composite",
        "shot_001 frames",
    ]
    take = active_take(scene)
    take.name = "Fog"
    wanted = sorted(name.replace("shot_001", "Fog") for name in before)
    assert names_of_things(scene, folder) == wanted
    bpy.ops.worldwarp.show_take(index=0)
    assert names_of_things(scene, folder) == wanted
    # What the artist calls otherwise is left alone.
    world = next(thing for thing in things_of(scene, folder) if isinstance(thing, bpy.types.Object))
    world.name = "My World"
    take.name = "Storm"
    assert world.name == "My World"
    assert "Storm frames" in names_of_things(scene, folder)


def test_two_takes_are_flipped_between_without_being_brought_in_again(
    scene: bpy.types.Scene, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path / "shot_001", server)
    with pytest.raises(RuntimeError, match="Only one take was shown yet"):
        bpy.ops.worldwarp.flip_takes()
    generate(tmp_path / "shot_002", server, seed=1)
    for index in (0, 1):
        bpy.ops.worldwarp.show_take(index=index)
    monkeypatch.setattr(takes, "bring_in_steps", lambda *_: pytest.fail("brought in again"))
    for name in ("shot_001", "shot_002", "shot_001"):
        bpy.ops.worldwarp.flip_takes()
        assert shown_frames(scene) == [name]
        visible = [
            thing.name for thing in scene.objects if not thing.hide_render and thing.type in ("MESH", "POINTCLOUD")
        ]
        assert [other for other in visible if other.startswith("shot_")] == [name]


# ---------------------------------------------------------------- Blender closed, and opened again

SESSION = """
import os, sys, time
from pathlib import Path
import bpy
import blender_addon
from blender_addon import session, takes
from blender_addon.composite import nodes_of
from blender_addon.shot import ShotSettings, prepare_shot
blender_addon.register()
blend, address, prompt = sys.argv[2:5]
def drain_until(done):
    deadline = time.perf_counter() + 120
    while not done():
        assert time.perf_counter() < deadline, session.status()
        session.drain(time.perf_counter() + 0.005)
        time.sleep(0.01)
{body}
sys.stdout.flush()
os._exit(0)
"""
BEGIN = """
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
scene.collection.objects.link(scene.camera)
scene.camera.location.z = 6.0
bpy.ops.mesh.primitive_plane_add(size=100)
scene.render.resolution_x, scene.render.resolution_y = 48, 32
scene.frame_start, scene.frame_end = 11, 18
bpy.ops.wm.save_as_mainfile(filepath=blend)
shot = prepare_shot(bpy.context, ShotSettings(prompt=prompt, samples=1), lambda _: None)
session.start(shot, address, Path(blend).parent / "worldwarp/shot_001", show=True)
drain_until(lambda: session.status().frames_done >= 2)
bpy.ops.wm.save_mainfile()
print("frames", session.status().frames_done)
"""
REOPEN = """
bpy.ops.wm.open_mainfile(filepath=blend)
scene = bpy.context.scene
take = scene.worldwarp.takes[0]
print("left", take.state, take.frames_done)
bpy.ops.worldwarp.fetch_take(index=0, address=address)
print("fetched", take.state, take.frames_done, [thing.name for thing in scene.objects])
"""


def blender(body: str, blend: Path, address: str, prompt: str = "") -> list[str]:
    """Returns the lines that a Blender of its own prints; it ends as if it had been killed."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION.format(body=body), "--", str(blend), address, prompt],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_shot_outlives_the_blender_that_asked_for_it(server: str, tmp_path: Path, held: Held) -> None:
    blend = tmp_path / "film.blend"
    assert 2 <= int(blender(BEGIN, blend, server, held.after(3))[-1].split()[1]) <= 3
    held.let_go()
    printed = [line.split(maxsplit=3) for line in blender(REOPEN, blend, server)]
    left, fetched = (next(line for line in printed if line[0] == word) for word in ("left", "fetched"))
    assert left[1] in ("queued", "running")
    assert int(left[2]) <= 3
    assert fetched[1:3] == ["done", "8"]
    assert "shot_001" in fetched[3]
    assert len(list((tmp_path / "worldwarp/shot_001/frames").iterdir())) == 8


# ---------------------------------------------------------------- a server that is killed


def test_a_killed_server_leaves_the_frames_a_message_and_a_resume_that_completes_the_shot(
    scene: bpy.types.Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    # With two minutes it would be tried for two minutes.
    monkeypatch.setattr(Client.__init__, "__kwdefaults__", Client.__init__.__kwdefaults__ | {"gone_timeout_s": 1.0})
    process = start_server(tmp_path / "jobs")
    address = process.stdout.readline().strip()
    out = tmp_path / "shot_001"
    settings = ShotSettings(prompt=held.after(4), samples=1, chunk=5, overlap=1)
    shot = prepare_shot(bpy.context, settings, lambda _: None)
    said: list[str] = []
    note = session.note

    def noted(status: session.Status, event: object) -> None:
        note(status, event)
        said.append(status.lost)

    monkeypatch.setattr(session, "note", noted)
    session.start(shot, address, out, show=True)
    drain_until(lambda: session.status().frames_done >= 3)
    process.kill()
    process.wait()
    drain_until(lambda: not session.status().running)
    assert any("Trying again" in lost for lost in said)
    assert "worldwarp serve" in session.status().error
    take = active_take(scene)
    delivered = {number_in(file) for file in (out / "frames").iterdir()}
    assert (take.state, take.frames_done) == ("failed", len(delivered))
    assert len(delivered) >= 3
    assert bpy.ops.worldwarp.resume.poll()
    held.let_go()
    # On another port: in the meantime anybody may have taken the first.
    again = start_server(tmp_path / "jobs")
    try:
        bpy.ops.worldwarp.resume(address=again.stdout.readline().strip())
    finally:
        again.terminate()
        again.wait(60)
    assert (take.state, take.frames_done) == ("done", 8)
    assert sorted(number_in(file) for file in (out / "frames").iterdir()) == list(range(11, 19))
    assert (out / "splats.ply").is_file()


def test_a_take_whose_folder_is_gone_is_a_sentence_by_every_way_to_go_on(
    scene: bpy.types.Scene, server: str, tmp_path: Path
) -> None:
    generate(tmp_path / "shot_001", server)
    take = active_take(scene)
    take.state = "cancelled"
    (tmp_path / "shot_001").rename(tmp_path / "moved")
    for command in (
        lambda: bpy.ops.worldwarp.resume(address=server),
        lambda: bpy.ops.worldwarp.fetch_take(index=0, address=server),
    ):
        with pytest.raises(RuntimeError, match="was moved or deleted") as caught:
            command()
        assert "Traceback" not in str(caught.value)
        assert "was moved or deleted" in session.status().error
    with pytest.raises(RuntimeError, match="no such take"):
        bpy.ops.worldwarp.fetch_take(index=7)
    with pytest.raises(RuntimeError, match="was moved or deleted"):
        bpy.ops.worldwarp.show_take(index=0)


def test_a_take_without_a_name_gets_its_first_one_again(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    generate(tmp_path / "shot_001", server)
    take = active_take(scene)
    for name, kept in (("Snow", "Snow"), ("", "Shot 001")):
        take.name = name
        assert take.name == kept
        assert kept in bpy.data.objects


@pytest.mark.parametrize("number", ["1e999", str(10**12), '"many"'])
def test_a_damaged_record_of_one_take_leaves_the_others_alone(
    scene: bpy.types.Scene, server: str, tmp_path: Path, number: str
) -> None:
    generate(tmp_path / "shot_002", server)
    (tmp_path / "shot_001").mkdir()
    frames = f'{{"asked": {number}, "written": 1, "first": {number}}}'
    (tmp_path / "shot_001/job.json").write_text(
        f'{{"job_id": "{"0" * 32}", "state": "done", "message": "", "frames": {frames}}}'
    )
    scene.worldwarp.takes.clear()
    scene.worldwarp.directory = str(tmp_path)
    assert bpy.ops.worldwarp.find_takes() == {"FINISHED"}
    assert [take.frames_done for take in scene.worldwarp.takes if take.name == "Shot 002"] == [8]
