"""A start frame from words: drawn by a server, kept with the file, and what the shot then begins with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import first_frame, server_facts, session
from blender_addon.first_frame import SEED, Drawn, drawing_size, keep, wish_of
from blender_addon.first_frame_operators import take
from blender_addon.pictures import picture_of
from blender_addon.preferences import server_address
from blender_addon.server_facts import ServerFacts
from blender_addon.shot import ShotSettings
from engine_bridge.client import RequestFailed
from engine_bridge.messages import PROTOCOL_VERSION
from worldwarp_core.spec import FirstFrameSettings

from .conftest import Held

pytestmark = pytest.mark.usefixtures("addon")


@pytest.fixture
def group(scene: bpy.types.Scene, tmp_path: Path) -> bpy.types.PropertyGroup:
    scene.worldwarp.start_source = "TEXT"
    scene.worldwarp.directory = str(tmp_path)
    return scene.worldwarp


@pytest.mark.parametrize("size", [(1920, 1080), (832, 480), (1080, 1920), (1000, 1000), (2048, 858), (4, 3)])
def test_pictures_are_drawn_in_the_aspect_of_the_shot(size: tuple[int, int]) -> None:
    width, height = drawing_size(*size)
    assert width % 16 == height % 16 == 0
    assert abs(width / height * size[1] / size[0] - 1) < 0.02
    assert 0.85 < width * height / (832 * 480) < 1.15
    FirstFrameSettings("stone", width=width, height=height)


def test_the_picture_becomes_the_start_image_and_lies_beside_the_shots(
    group: bpy.types.PropertyGroup, server: str, tmp_path: Path
) -> None:
    group.first_prompt, group.first_seed = "an abbey in the snow", 77
    bpy.ops.worldwarp.draw_first_frame(address=server)
    image = group.start_image
    assert (image[SEED], image.name) == ("77", "First Frame 77")
    # The fake engine's picture: every pixel is the seed.
    assert (picture_of(image) == 77).all()
    assert tuple(image.size) == drawing_size(48, 32)
    file = tmp_path / "first_frames/seed_77.png"
    assert Path(bpy.path.abspath(image.filepath)) == file
    assert b"an abbey in the snow" in file.read_bytes()
    settings = ShotSettings.of(bpy.context)
    assert settings.start_picture is not None
    assert (settings.start_picture == 77).all()


def test_another_seed_gives_another_picture_and_keeps_the_first(group: bpy.types.PropertyGroup, server: str) -> None:
    group.prompt, group.first_seed = "an abbey", 77
    bpy.ops.worldwarp.draw_first_frame(address=server)
    first = group.start_image
    bpy.ops.worldwarp.draw_first_frame(address=server, another=True)
    assert group.start_image != first
    assert group.start_image[SEED] == str(group.first_seed) != "77"
    assert first.use_fake_user


def test_in_a_file_that_was_never_saved_the_picture_is_packed(scene: bpy.types.Scene, tmp_path: Path) -> None:
    picture = np.arange(32 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 48, 3)
    image = keep(scene, picture, FirstFrameSettings("stone", width=48, height=32, seed=5), None)
    np.testing.assert_array_equal(picture_of(image), picture)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "film.blend"))
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "film.blend"))
    np.testing.assert_array_equal(picture_of(bpy.context.scene.worldwarp.start_image), picture)


def test_a_shot_cannot_begin_before_the_picture_is_there(group: bpy.types.PropertyGroup) -> None:
    with pytest.raises(RuntimeError, match="draw one under Start Frame"):
        bpy.ops.worldwarp.generate()
    with pytest.raises(RuntimeError, match="type a prompt"):
        bpy.ops.worldwarp.draw_first_frame()


def test_an_engine_that_cannot_draw_greys_the_button_and_says_why(
    group: bpy.types.PropertyGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    group.prompt = "stone"
    facts = ServerFacts(server_address(bpy.context), "s", "1", PROTOCOL_VERSION, "cache", draws=False)
    monkeypatch.setattr(server_facts._known, "facts", facts)
    with pytest.raises(RuntimeError, match='"cache" has no model that draws'):
        bpy.ops.worldwarp.draw_first_frame()


def test_a_refusal_of_the_engine_is_told_and_stays(group: bpy.types.PropertyGroup, server: str) -> None:
    group.prompt = "refuse"
    with pytest.raises(RuntimeError, match="no model that draws"):
        bpy.ops.worldwarp.draw_first_frame(address=server)
    assert "no model that draws" in session.status().error
    assert group.start_image is None


def test_a_server_that_is_too_old_says_what_to_update() -> None:
    error = first_frame.refusal("tcp://127.0.0.1:1", RequestFailed("unknown_message", "?", ""))
    assert "older than this add-on" in error.message
    assert "Update it" in error.message


def drain_until(done: Callable[[], bool]) -> None:
    """Does what Blender's timer does with a window, until `done`."""
    deadline = time.perf_counter() + 120
    while not done():
        assert time.perf_counter() < deadline
        first_frame.look()
        time.sleep(0.01)


def test_beside_a_window_the_picture_comes_while_the_artist_goes_on(
    group: bpy.types.PropertyGroup, scene: bpy.types.Scene, server: str, held: Held
) -> None:
    group.prompt, group.first_seed = held.after(2), 9
    wish = wish_of(scene)
    first_frame.begin(server, None, wish, lambda drawn: take(scene.session_uid, wish, drawn))
    # The picture is not there before it is let go: nobody has waited for it.
    scene.name = "Renamed meanwhile"
    assert not bpy.ops.worldwarp.draw_first_frame.poll()
    drain_until(lambda: 0 < first_frame.drawing().fraction < 1)
    held.let_go()
    drain_until(lambda: not first_frame.drawing().running)
    assert group.start_image[SEED] == "9"


def test_cancel_leaves_no_picture_and_is_no_error(
    group: bpy.types.PropertyGroup, scene: bpy.types.Scene, server: str, held: Held
) -> None:
    group.prompt = held.after(2)
    session.dismiss_error()
    wish = wish_of(scene)
    first_frame.begin(server, None, wish, lambda drawn: take(scene.name, wish, drawn))
    drain_until(lambda: first_frame.drawing().fraction > 0)
    bpy.ops.worldwarp.cancel_first_frame()
    drain_until(lambda: not first_frame.drawing().running)
    assert session.status().error == ""
    assert group.start_image is None


def test_another_file_ends_it(group: bpy.types.PropertyGroup, scene: bpy.types.Scene, server: str, held: Held) -> None:
    group.prompt = held.after(2)
    first_frame.begin(server, None, wish_of(scene), lambda drawn: None)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    assert not first_frame.drawing().running
    assert not bpy.app.timers.is_registered(first_frame.look)


def test_a_picture_that_cannot_be_written_is_kept_within_the_file(
    group: bpy.types.PropertyGroup, scene: bpy.types.Scene, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    group.prompt, group.directory = "an abbey", str(tmp_path / "file/shots")
    take(scene.session_uid, wish_of(scene), Drawn(np.zeros((32, 48, 3), np.uint8)))
    assert group.start_image.packed_file is not None
    assert "kept within this file" in session.status().error
    take(-1, wish_of(scene), Drawn(np.zeros((32, 48, 3), np.uint8)))
    assert "was removed meanwhile" in session.status().error
