"""The panel's words, and what Generate says when it cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import bpy
import pytest

from blender_addon import panel
from blender_addon.panel import duration_in_words, progress_in_words, shot_in_words
from blender_addon.preferences import check_online, server_address
from blender_addon.session import Status
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


def test_progress_names_stage_frames_and_time_left() -> None:
    status = Status(running=True, stage="cache", frames=93, frames_done=44, eta_s=12.0)
    assert progress_in_words(status) == "cache, 44 of 93 frames, 12 s left"


def test_generate_says_why_it_is_grey(camera: bpy.types.Object) -> None:
    camera.data.type = "ORTHO"
    with pytest.raises(RuntimeError, match='"Hero Camera" is no perspective camera'):
        bpy.ops.worldwarp.generate()
    bpy.context.scene.camera = None
    with pytest.raises(RuntimeError, match="has no camera"):
        bpy.ops.worldwarp.generate()


def test_generate_asks_for_a_folder_when_the_file_was_never_saved(camera: bpy.types.Object) -> None:
    with pytest.raises(RuntimeError, match="never saved"):
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


class Recorder:
    """Stands in for a UI layout, which exists only in a window: notes what is drawn and refuses what does not exist."""

    def __init__(self) -> None:
        self.operators: list[str] = []
        self.labels: list[str] = []

    def _same(self, **_: object) -> Recorder:
        return self

    row = column = box = _same

    def prop(self, owner: bpy.types.bpy_struct, name: str, **_: object) -> None:
        assert name in owner.bl_rna.properties, name

    def operator(self, name: str, **_: object) -> None:
        module, _, function = name.partition(".")
        getattr(getattr(bpy.ops, module), function).get_rna_type()
        self.operators.append(name)

    def label(self, text: str, **_: object) -> None:
        self.labels.append(text)

    def progress(self, factor: float, text: str) -> None:
        assert 0 <= factor <= 1
        self.labels.append(text)


@pytest.mark.parametrize("cls", panel.CLASSES)
def test_every_panel_draws_only_what_exists(camera: bpy.types.Object, cls: type) -> None:
    cls.draw(SimpleNamespace(layout=Recorder()), bpy.context)


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
