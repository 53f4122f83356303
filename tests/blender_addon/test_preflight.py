"""The check of a shot before it is sent: what it says, of which frames, and that it changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import path_overlay
from blender_addon.camera_export import export_camera_path
from blender_addon.look import add_prompt
from blender_addon.path_overlay import frustum_lines, path_colours
from blender_addon.preflight import (
    Report,
    check_cost,
    check_shot,
    past_seconds,
    share_in_view,
    shares,
    stretches,
    with_cost,
)
from blender_addon.server_facts import ServerFacts, Speed, ask
from tests.blender_addon.test_look import image_of

pytestmark = pytest.mark.usefixtures("addon")


@pytest.fixture
def shot(camera: bpy.types.Object) -> bpy.types.Scene:
    """A camera 5 units above a large plane, looking down, over 25 frames of 64 x 32."""
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 25
    scene.render.resolution_x, scene.render.resolution_y = 64, 32
    scene.worldwarp.prompt = "a plain"
    bpy.ops.mesh.primitive_plane_add(size=1000)
    camera.location.z = 5.0
    return scene


def move(camera: bpy.types.Object, to: float, first: int = 1, last: int = 25) -> None:
    """Keys a straight move along x, in equal steps."""
    for frame in range(first, last + 1):
        camera.location.x = to * (frame - first) / (last - first)
        camera.keyframe_insert("location", frame=frame)


def found(scene: bpy.types.Scene) -> list[tuple[str, int | None, str]]:
    return [(finding.severity, finding.frame, finding.message) for finding in check_shot(bpy.context).findings]


def test_a_calm_path_has_nothing_against_it_and_stays_as_it_was(shot: bpy.types.Scene) -> None:
    move(shot.camera, 1.0)
    shot.frame_set(7)
    assert found(shot) == []
    assert shot.frame_current == 7
    assert bpy.ops.worldwarp.preflight() == {"FINISHED"}
    assert path_overlay.report().path is not None


def test_the_share_of_a_sideways_move_is_what_geometry_says(shot: bpy.types.Scene) -> None:
    # At 5 units a 36 mm sensor behind 50 mm sees 3.6 units: after a move of 0.9 a quarter is new.
    move(shot.camera, 0.9)
    known, shared = shares(bpy.context, export_camera_path(bpy.context))
    assert known[0] == shared[0] == 1
    assert known[-1] == pytest.approx(0.75, abs=0.05)
    assert (shared[1:] > 0.9).all()
    assert (np.diff(known) <= 0).all()


def test_frames_that_are_too_fast_are_named_as_one_stretch(shot: bpy.types.Scene) -> None:
    move(shot.camera, 60.0)
    warnings = [row for row in found(shot) if "Too fast" in row[2]]
    assert len(warnings) == 1
    assert warnings[0][:2] == ("WARNING", 2)
    assert "frames 2 to 25" in warnings[0][2]


def test_the_frame_is_named_from_which_nothing_of_the_start_view_is_left(shot: bpy.types.Scene) -> None:
    # 0.3 units a frame: the view of 3.6 units is left behind after 12 frames.
    move(shot.camera, 7.2)
    (row,) = [row for row in found(shot) if "start view" in row[2]]
    assert row[1] in (12, 13, 14)
    assert f"after {row[1] - 1} frames" in row[2]


def test_turning_in_the_open_is_judged_by_the_turn_alone(shot: bpy.types.Scene) -> None:
    bpy.data.objects.remove(bpy.data.objects["Plane"])
    for frame, angle in ((1, 0.0), (25, math.radians(20))):
        shot.camera.rotation_euler.y = angle
        shot.camera.keyframe_insert("rotation_euler", frame=frame)
    known, _ = shares(bpy.context, export_camera_path(bpy.context))
    assert known[-1] == pytest.approx(0.5, abs=0.06)
    move(shot.camera, 500.0)
    known_moving, _ = shares(bpy.context, export_camera_path(bpy.context))
    np.testing.assert_allclose(known_moving, known)


def test_cuts_are_errors_at_their_frames_and_generate_refuses(shot: bpy.types.Scene, tmp_path: Path) -> None:
    other = bpy.data.objects.new("Second", bpy.data.cameras.new("Second"))
    shot.collection.objects.link(other)
    for frame, camera in ((1, shot.camera), (9, other)):
        shot.timeline_markers.new("cut", frame=frame).camera = camera
    (row,) = found(shot)
    assert row[:2] == ("ERROR", 9)
    assert '"Second"' in row[2]
    with pytest.raises(RuntimeError, match='cuts to "Second" at frame 9'):
        bpy.ops.worldwarp.generate(directory=str(tmp_path / "shot"))
    assert path_overlay.report().errors


def test_a_camera_that_is_refused_from_some_frame_on_is_found_there(shot: bpy.types.Scene) -> None:
    for frame, scale in ((5, 1.0), (6, -1.0)):
        shot.camera.scale.x = scale
        shot.camera.keyframe_insert("scale", frame=frame)
    (row,) = found(shot)
    assert row[:2] == ("ERROR", 6)
    assert "mirrored" in row[2]


def test_a_jump_is_named_once(shot: bpy.types.Scene) -> None:
    move(shot.camera, 0.1, 1, 12)
    shot.camera.location.x = 40.0
    shot.camera.keyframe_insert("location", frame=13)
    warnings = [row for row in found(shot) if row[1] == 13]
    assert any("jumps between frames 12 and 13" in row[2] for row in warnings)
    assert not any("Too fast" in row[2] for row in warnings)


@pytest.mark.parametrize(
    ("size", "words"),
    [((64, 32), ""), ((70, 40), "64 x 48|64 x 32"), ((1920, 1080), "enlarged to 1920 x 1080")],
)
def test_sizes_that_models_do_not_take_are_told(
    shot: bpy.types.Scene, size: tuple[int, int], words: str | None
) -> None:
    shot.render.resolution_x, shot.render.resolution_y = size
    rows = [row[2] for row in found(shot) if row[0] == "INFO"]
    assert (rows == []) if not words else any(word in rows[0] for word in words.split("|"))


def test_a_start_image_of_another_aspect_says_what_is_cropped(shot: bpy.types.Scene) -> None:
    shot.worldwarp.start_source = "IMAGE"
    shot.worldwarp.start_image = image_of(np.zeros((64, 64, 3)))
    assert any("50% of it, top and bottom" in row[2] for row in found(shot))


def test_prompts_that_contradict_are_errors(shot: bpy.types.Scene) -> None:
    add_prompt(shot, 4, "fog")
    shot.timeline_markers.new("ww: sun", frame=4)
    assert found(shot)[0][0] == "ERROR"


def test_the_time_is_told_from_the_newest_finished_shot_of_that_size(shot: bpy.types.Scene, tmp_path: Path) -> None:
    path = export_camera_path(bpy.context)
    assert past_seconds(tmp_path, path) is None
    jobs = {
        "shot_001": {"state": "done", "delivered_size": [64, 32], "seconds": {"fill": 8.0, "cache": 2.0}},
        "shot_002": {"state": "done", "delivered_size": [128, 64], "seconds": {"fill": 900.0}},
        "shot_003": {"state": "failed"},
        "shot_004": {"state": "done", "delivered_size": [64, 32], "seconds": "many"},
    }
    for name, job in jobs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps({"job_id": "0" * 32, "frames": {"asked": 50}, **job}))
    assert past_seconds(tmp_path, path) == pytest.approx(5.0)
    shot.worldwarp.directory = str(tmp_path)
    bpy.ops.worldwarp.preflight()
    assert any("About 5 s" in finding.message for finding in path_overlay.report().findings)


def test_runs_of_frames_follow_the_frame_step() -> None:
    assert stretches([2, 3, 4, 9, 10], 1) == [[2, 3, 4], [9, 10]]
    assert stretches([2, 4, 9], 2) == [[2, 4], [9]]


def test_what_is_drawn_is_the_path(shot: bpy.types.Scene) -> None:
    path = export_camera_path(bpy.context)
    lines = frustum_lines(path)
    assert lines.shape == (16, 3)
    # The picture frame's corners are at the picture's edge.
    assert share_in_view(0.999 * lines[:8] + 0.001 * lines[:8].mean(0), path, 0) == 1.0
    colours = path_colours(np.array([1.0, 0.0]))
    assert colours[0, 1] > colours[0, 0]
    assert colours[1, 0] > colours[1, 1]


def test_another_file_forgets_what_was_found(shot: bpy.types.Scene) -> None:
    bpy.ops.worldwarp.preflight()
    assert isinstance(path_overlay.report(), Report)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    assert path_overlay.report() is None


# ---------------------------------------------------------------- what it costs


def facts_of_a_server(**more: object) -> ServerFacts:
    speeds = (
        Speed("fast", 832, 480, 0.2, 12.3),
        Speed("reference", 832, 480, 2.0, 14.0),
        Speed("reference", 64, 32, 0.5),
    )
    facts = {"device": "NVIDIA H100", "preset": "reference", "device_gib": 79.6, "plan_gib": 24.0, "speeds": speeds}
    return ServerFacts("tcp://127.0.0.1:1", "s", "1", 2, "wan", **(facts | more))


def costs(scene: bpy.types.Scene, preset: str, facts: ServerFacts) -> list[str]:
    path = export_camera_path(bpy.context)
    return [finding.message for finding in check_cost(preset, path, facts, None)]


def test_the_cost_is_told_by_shots_of_the_server_that_were_most_alike(shot: bpy.types.Scene) -> None:
    # 25 frames of 64 x 32; the server's own choice of preset is `reference`.
    assert costs(shot, "", facts_of_a_server()) == [
        "About 12 s on NVIDIA H100 (wan, reference): there, 64 x 32 took 0.5 s a frame.",
        "The server keeps within 24 of the GPU's 80 GiB of memory.",
    ]
    assert costs(shot, "fast", facts_of_a_server()) == [
        "About 5 s on NVIDIA H100 (wan, fast): there, 832 x 480 took 0.2 s a frame.",
        "It takes about 12.3 of the GPU's 80 GiB of memory.",
    ]


def test_a_server_that_has_made_nothing_yet_says_nothing_of_time(shot: bpy.types.Scene) -> None:
    assert costs(shot, "", facts_of_a_server(speeds=(), plan_gib=None)) == []
    assert costs(shot, "", facts_of_a_server(speeds=(), device_gib=None)) == []


def test_what_the_server_says_later_is_added_to_what_was_found(shot: bpy.types.Scene) -> None:
    move(shot.camera, 1.0)
    before = check_shot(bpy.context)
    after = with_cost(before, "", facts_of_a_server(), None)
    assert len(after.findings) == len(before.findings) + 2
    assert after.path is before.path


def test_the_cost_comes_from_a_real_server(shot: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    shot.worldwarp.samples = 1
    bpy.ops.worldwarp.generate(address=server, directory=str(tmp_path / "shot"))
    facts = ask(server)
    assert [(speed.width, speed.height) for speed in facts.speeds if speed.width == 64] == [(64, 32)]
    (said,) = costs(shot, "", facts)
    # The fake engine says that any shot takes a second.
    assert said.startswith("About 1 s on the server (cache)")


def test_what_is_linked_and_what_is_cropped_is_told(shot: bpy.types.Scene, tmp_path: Path) -> None:
    shot.render.use_border = shot.render.use_crop_to_border = True
    shot.render.border_max_x = 0.5
    assert [words for _, _, words in found(shot) if "Only the render region is made" in words]
    shot.render.use_border = False
    bpy.data.libraries.write(str(tmp_path / "set.blend"), {shot.camera})
    with bpy.data.libraries.load(str(tmp_path / "set.blend"), link=True) as (_, linked):
        linked.objects = [shot.camera.name]
    shot.collection.objects.link(linked.objects[0])
    shot.camera = linked.objects[0]
    (warning,) = [words for severity, _, words in found(shot) if severity == "WARNING"]
    assert "is linked from another file: frames behind it are not saved" in warning
