"""Takes: kept, named, shown in place of each other, made anew from frame N, taken up again after Blender was closed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import session
from blender_addon.composite import composite_in_use
from blender_addon.sequences import find_sequence
from blender_addon.shot import Left, PreparedShot, ShotSettings, Stop, prepare_shot, resume_shot, run_shot
from blender_addon.splice import frame_of, prepare_splice
from blender_addon.takes import active_take, find_more, folder_of, things_of
from engine_bridge.messages import FrameEvent
from worldwarp_core.errors import WorldWarpError

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
    scene: bpy.types.Scene, server: str, tmp_path: Path
) -> None:
    out = tmp_path / "shot_001"
    begin_and_leave(server, out, "slow=0.05", 2)
    job = json.loads((out / "job.json").read_text())
    assert job["state"] == "running"
    assert 2 <= job["frames"]["written"] < 8
    # Another day: the file lists the take, and says that it was left.
    assert find_more(scene, tmp_path) == 1
    take = active_take(scene)
    assert take.state == "running"
    assert bpy.ops.worldwarp.resume.poll()
    bpy.ops.worldwarp.resume(address=server)
    assert (take.state, take.frames_done) == ("done", 8)
    assert (out / "splats.ply").is_file()
    assert shown_frames(scene) == ["shot_001"]
    assert not bpy.ops.worldwarp.resume.poll()


def test_what_is_fetched_again_comes_after_what_was_had(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    out = tmp_path / "shot_001"
    begin_and_leave(server, out, "slow=0.05", 3)
    had = {number_in(file) for file in (out / "frames").iterdir()}
    fetched: list[int] = []
    resume_shot(
        out,
        server,
        lambda event: fetched.append(event.number) if isinstance(event, FrameEvent) else None,
        Stop(),
    )
    assert sorted({*fetched, *had}) == list(range(11, 19))
    assert not had & set(fetched)


def test_a_cancelled_take_goes_on_where_it_stopped(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    out = tmp_path / "shot_001"
    shot = prepare_shot(bpy.context, ShotSettings(prompt="slow=0.05", samples=1, chunk=5, overlap=1), lambda _: None)
    stop, seen = Stop(), []

    def cancel_at_sixth(event: object) -> None:
        seen.extend([event] if isinstance(event, FrameEvent) else [])
        if len(seen) == 6:
            stop.cancelled.set()

    with pytest.raises(WorldWarpError, match="cancelled"):
        run_shot(shot, out, server, cancel_at_sixth, stop)
    find_more(scene, tmp_path)
    bpy.ops.worldwarp.resume(address=server)
    assert active_take(scene).state == "done"
    assert len(find_sequence(out / "frames", ".png", "sRGB").files) == 8


def test_a_server_that_forgot_the_take_is_said(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    begin_and_leave(server, tmp_path / "shot_001", "slow=0.02", 1)
    job = json.loads((tmp_path / "shot_001/job.json").read_text())
    (tmp_path / "shot_001/job.json").write_text(json.dumps(job | {"job_id": "e" * 32}))
    find_more(scene, tmp_path)
    with pytest.raises(RuntimeError, match=r"does not have this take.*Regenerate"):
        bpy.ops.worldwarp.resume(address=server)
    assert "does not have this take" in session.status().error


def drain_until(done: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 30
    while not done():
        assert time.perf_counter() < deadline
        session.drain(time.perf_counter() + session.BUDGET_S)
        time.sleep(0.01)


def test_closing_the_file_leaves_the_shot_to_the_server_and_reopening_offers_it(
    scene: bpy.types.Scene, server: str, tmp_path: Path
) -> None:
    out, blend = tmp_path / "worldwarp/shot_001", tmp_path / "film.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(blend))
    shot = prepare_shot(bpy.context, ShotSettings(prompt="slow=0.1", samples=1), lambda _: None)
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
