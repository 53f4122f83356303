"""The panel's words, and what Generate says when it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import bpy
import pytest

from blender_addon import panel, registration, server_facts, session
from blender_addon.look import add_prompt
from blender_addon.panel import progress_in_words, shot_in_words
from blender_addon.preferences import check_online, server_address
from blender_addon.server_facts import ServerFacts
from blender_addon.session import Status
from blender_addon.takes import add_take
from blender_addon.words import duration_in_words
from tests.support.ui_recorder import Recorder
from worldwarp_core.errors import WorldWarpError

pytestmark = pytest.mark.usefixtures("addon")


def test_a_shot_is_described_as_it_will_be(camera: bpy.types.Object) -> None:
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end, scene.frame_step = 1, 96, 2
    scene.render.resolution_percentage = 50
    assert shot_in_words(scene) == "48 frames (2.0 s) at 960 x 540"


@pytest.mark.parametrize(("seconds", "words"), [(39.6, "40 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_are_read_at_a_glance(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words


def test_progress_names_frames_and_time_left() -> None:
    status = Status(running=True, stage="cache", frames=93, frames_done=44, eta_s=12.0)
    assert progress_in_words(status) == "44 of 93 frames, 12 s left"


def test_the_status_bar_tells_chunk_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status(
        running=True, stage="denoise", step=14, steps=50, chunk=1, chunks=3, fraction=0.46, frames=93, frames_done=44
    )
    monkeypatch.setattr(session, "_status", status)
    drawn = Recorder()
    panel.draw_status_bar(SimpleNamespace(layout=drawn), bpy.context)
    assert drawn.labels == ["WorldWarp 46%: 44 of 93 frames, filling in, chunk 2/3, step 14/50"]
    panel.draw_status(drawn, status)
    assert "Filling in, chunk 2/3, step 14/50" in drawn.labels
    monkeypatch.setattr(session, "_status", Status())
    quiet = Recorder()
    panel.draw_status_bar(SimpleNamespace(layout=quiet), bpy.context)
    assert quiet.labels == []


def test_generate_says_why_it_is_grey(camera: bpy.types.Object) -> None:
    camera.data.type = "ORTHO"
    with pytest.raises(RuntimeError, match='"Hero Camera" is no perspective camera'):
        bpy.ops.worldwarp.generate()
    bpy.context.scene.camera = None
    with pytest.raises(RuntimeError, match="has no camera"):
        bpy.ops.worldwarp.generate()


def test_generate_asks_for_a_folder_when_the_file_was_never_saved(camera: bpy.types.Object) -> None:
    with pytest.raises(RuntimeError, match="Save the file first"):
        bpy.ops.worldwarp.generate()


def test_every_shot_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    from blender_addon.shot_operators import new_folder

    bpy.context.scene.worldwarp.directory = str(tmp_path)
    assert new_folder(bpy.context.scene) == tmp_path / "shot_001"
    (tmp_path / "shot_001").mkdir()
    assert new_folder(bpy.context.scene) == tmp_path / "shot_002"


def test_an_address_elsewhere_needs_leave_to_go_online() -> None:
    check_online(server_address(bpy.context))
    if bpy.app.online_access:
        pytest.skip("this Blender is allowed to go online")
    with pytest.raises(WorldWarpError, match="Allow Online Access"):
        check_online("tcp://render.example.com:5577")


def test_chunk_lengths_settle_on_what_models_take() -> None:
    group = bpy.context.scene.worldwarp
    group.chunk, group.overlap = 50, 7
    assert (group.chunk, group.overlap) == (49, 9)
    group.chunk = 5
    assert group.overlap < group.chunk
    assert group.overlap % 4 == 1


@pytest.mark.parametrize("source", ["RENDER", "IMAGE", "TEXT"])
@pytest.mark.parametrize("cls", [cls for cls in panel.CLASSES if not issubclass(cls, bpy.types.UIList)])
def test_every_panel_draws_only_what_exists(camera: bpy.types.Object, cls: type, source: str) -> None:
    group = bpy.context.scene.worldwarp
    group.start_source, group.strength_mask = source, bpy.data.images.new("Mask", 4, 4)
    add_prompt(bpy.context.scene, 7, "fog")
    cls.draw(SimpleNamespace(layout=Recorder()), bpy.context)


def test_the_panel_greys_the_server_s_strength_and_says_it_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    group = bpy.context.scene.worldwarp

    def drawn() -> tuple[list[str], bool]:
        layout = Recorder()
        panel.draw_strength(layout, bpy.context)
        return layout.props, layout.enabled

    monkeypatch.setattr(server_facts.known(), "facts", None)
    assert drawn() == (["own_strength", "server_strength"], False)
    assert group.server_strength == "Server's choice"
    elsewhere = ServerFacts("tcp://127.0.0.1:1", "render-1", "0.1.0", 4, "preview", strength=0.2)
    monkeypatch.setattr(server_facts.known(), "facts", elsewhere)
    assert group.server_strength == "Server's choice", "what another server takes is not shown"
    here = replace(elsewhere, address=server_address(bpy.context))
    monkeypatch.setattr(server_facts.known(), "facts", here)
    assert group.server_strength == "Server's: 0.20"
    group.own_strength = True
    assert drawn() == (["own_strength", "strength"], True)


def test_a_take_is_drawn_with_its_name_and_how_far_it_is(camera: bpy.types.Object, tmp_path: Path) -> None:
    scene = bpy.context.scene
    take = add_take(scene, tmp_path / "shot_001", 15, based_on="shot_000")
    take.frames, take.frames_done, take.state, take.job_id = 8, 3, "running", "0" * 32
    drawn = Recorder()
    panel.WORLDWARP_UL_takes.draw_item(None, bpy.context, drawn, None, take, 0, None, "", 0)
    assert drawn.labels == ["from 15, 3 of 8"]
    assert drawn.operators == ["worldwarp.show_take"]
    going_on = Recorder()
    panel.draw_going_on(going_on, scene)
    assert "left to the server" in " ".join(going_on.labels)
    assert going_on.operators == ["worldwarp.fetch_take", "worldwarp.resume", "worldwarp.regenerate"]


def test_a_take_whose_frames_come_is_no_longer_drawn_as_one_that_waits(
    camera: bpy.types.Object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = add_take(bpy.context.scene, tmp_path / "shot_001", 1)
    monkeypatch.setattr(session, "running_folder", lambda: tmp_path / "shot_001")

    def drawn() -> tuple[list[str], list[object]]:
        layout = Recorder()
        panel.WORLDWARP_UL_takes.draw_item(None, bpy.context, layout, None, take, 0, None, "", 0)
        return layout.labels, layout.icons

    monkeypatch.setattr(session, "_status", Status(running=True, frames=93))
    assert drawn() == (["0 of 93"], ["TIME"])
    monkeypatch.setattr(session, "_status", Status(running=True, frames=93, frames_done=49))
    assert drawn() == (["49 of 93"], ["PLAY"])


def test_every_setting_is_explained() -> None:
    group = bpy.types.Scene.bl_rna.properties["worldwarp"].fixed_type
    silent = [prop.identifier for prop in group.properties if not prop.is_readonly and len(prop.description) < 20]
    assert silent == []


def test_an_unsaved_file_greys_generate_and_says_why(camera: bpy.types.Object) -> None:
    drawn = Recorder()
    panel.WORLDWARP_PT_generate.draw(SimpleNamespace(layout=drawn), bpy.context)
    assert any("Save the file first" in label for label in drawn.labels)
    bpy.context.scene.worldwarp.directory = ""
    drawn = Recorder()
    panel.WORLDWARP_PT_generate.draw(SimpleNamespace(layout=drawn), bpy.context)
    assert any("Set an Output folder" in label for label in drawn.labels)
    with pytest.raises(RuntimeError, match="Set an Output folder"):
        bpy.ops.worldwarp.generate()


def test_the_timeline_s_prompts_are_listed_with_a_way_to_their_frames(camera: bpy.types.Object) -> None:
    scene = bpy.context.scene
    scene.frame_set(24)
    bpy.ops.worldwarp.add_prompt(prompt="fog rolls in")
    drawn = Recorder()
    panel.draw_timeline_prompts(drawn, scene)
    assert drawn.labels == ["fog rolls in"]
    assert drawn.operators == ["worldwarp.go_to_frame", "worldwarp.add_prompt"]
    scene.frame_set(1)
    bpy.ops.worldwarp.go_to_frame(frame=24)
    assert scene.frame_current == 24


def test_presets_are_those_of_the_server_that_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    address = server_address(bpy.context)
    facts = ServerFacts(address, "render-1", "0.1", 2, "wan", presets=("reference", "fast"))
    monkeypatch.setattr(server_facts._known, "facts", facts)
    drawn = Recorder()
    panel.WORLDWARP_MT_preset.draw(SimpleNamespace(layout=drawn), bpy.context)
    assert len(drawn.operators) == 3
    bpy.ops.worldwarp.set_preset(name="fast")
    assert bpy.context.scene.worldwarp.preset == "fast"
    # Another address may be another server.
    assert server_facts.presets_at("tcp://127.0.0.1:1") == ()


def test_the_menus_draw_only_what_exists() -> None:
    for _, draw in panel.menus():
        draw(SimpleNamespace(layout=Recorder()), bpy.context)


def test_a_running_shot_shows_progress_and_cancel_and_an_ended_one_its_error() -> None:
    running = Recorder()
    panel.draw_status(running, Status(running=True, stage="cache", fraction=0.5))
    assert running.operators == ["worldwarp.cancel"]
    ended = Recorder()
    panel.draw_status(ended, Status(error="No server answers at tcp://127.0.0.1:5577. Start one with: worldwarp serve"))
    assert ended.operators == ["worldwarp.generate", "worldwarp.copy_error", "worldwarp.dismiss_error"]
    # A long message is wrapped, whole.
    assert " ".join(ended.labels).endswith("Start one with: worldwarp serve")
    assert max(len(label) for label in ended.labels) < 48


def test_match_view_shows_pictures_as_they_are() -> None:
    bpy.context.scene.view_settings.view_transform = "AgX"
    bpy.ops.worldwarp.match_view()
    assert bpy.context.scene.view_settings.view_transform == "Standard"


def test_every_button_that_is_grey_says_why() -> None:
    bpy.context.scene.worldwarp.first_prompt = ""
    silent, grey = [], 0
    for cls in registration.CLASSES:
        if not issubclass(cls, bpy.types.Operator):
            continue
        operator = getattr(bpy.ops.worldwarp, cls.bl_idname.removeprefix("worldwarp."))
        if operator.poll():
            continue
        grey += 1
        with pytest.raises(RuntimeError) as caught:
            operator("EXEC_DEFAULT")
        # Where an operator gives no reason Blender says no more than this.
        if str(caught.value).strip().endswith("failed, context is incorrect"):
            silent.append(cls.bl_idname)
    assert silent == []
    assert grey > 10
