"""The live view: a viewport's own camera, pictures from a real server, and nothing that waits or outlives its file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import bpy
import numpy as np
import pytest
from mathutils import Matrix

from blender_addon import live_view, world_watcher
from blender_addon.camera_export import export_camera_path
from blender_addon.live_view import Eye, Live, eye_of, moving_pixels, sharpen, want
from blender_addon.takes import active_take
from blender_addon.world_watcher import WorldWatcher, jpeg_decoder, texels_of
from engine_bridge.messages import Picture
from worldwarp_core.errors import WorldWarpError

pytestmark = pytest.mark.usefixtures("addon")
JOB = "0" * 32


# ---------------------------------------------------------------- where a viewport is seen from


def region_view(camera: bpy.types.Object, width: int, height: int) -> SimpleNamespace:
    """Returns what a viewport that looks through `camera` says of itself."""
    depsgraph = bpy.context.evaluated_depsgraph_get()
    projection = camera.calc_matrix_camera(depsgraph, x=width, y=height)
    return SimpleNamespace(view_matrix=camera.matrix_world.inverted(), window_matrix=projection)


def test_a_viewport_that_looks_through_a_camera_sees_what_the_camera_exports(camera: bpy.types.Object) -> None:
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = 640, 360
    camera.matrix_world = Matrix.Translation((1, -2, 3)) @ Matrix.Rotation(0.7, 4, "X") @ Matrix.Rotation(0.3, 4, "Y")
    camera.data.shift_x, camera.data.shift_y, camera.data.lens = 0.12, -0.07, 38.0
    bpy.context.view_layer.update()
    exported = export_camera_path(bpy.context, [1])
    eye = eye_of(region_view(camera, 640, 360), 640, 360)
    np.testing.assert_allclose(eye.c2w, exported.c2w[0], atol=1e-6)
    K = exported.K[0]
    np.testing.assert_allclose(eye.K(640, 360), [K[0, 0], K[1, 1], K[0, 2], K[1, 2]], rtol=1e-5)


def test_smaller_pictures_see_the_same(camera: bpy.types.Object) -> None:
    eye = eye_of(region_view(camera, 800, 600), 800, 600)
    width, height = eye.size(120_000)
    assert (width, height) == (400, 300)
    np.testing.assert_allclose(eye.K(width, height), eye.K(800, 600) / 2, rtol=1e-6)
    assert eye.size(np.inf) == (800, 600)
    # A viewport of an 8K screen is no reason to send 8K.
    assert max(Eye(eye.projection, eye.c2w, 7680, 4320).size(np.inf)) == live_view.MAX_SIDE_PX


# ---------------------------------------------------------------- what is asked for


class Noted(SimpleNamespace):
    """Stands for a watcher whose looks are noted instead of sent."""

    def __init__(self, cost_ms: float) -> None:
        super().__init__(cost_ms=cost_ms, looks=[])

    def look(self, K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> None:
        self.looks.append((width, height))


def eye_at(x: float) -> Eye:
    c2w = np.eye(4)
    c2w[0, 3] = x
    return Eye(np.eye(4), c2w, 1280, 720)


def test_a_view_is_small_while_it_moves_and_sharp_when_it_stands() -> None:
    # A million pixels take 600 ms: in 60 ms come a tenth.
    watcher = Noted(cost_ms=600.0)
    live = Live(space=1, watcher=watcher)
    want(live, eye_at(0), 10.0)
    want(live, eye_at(1), 11.0)
    want(live, eye_at(1), 11.05)
    sharpen(live, 11.1)
    sharpen(live, 11.4)
    sharpen(live, 12.0)
    assert watcher.looks[0] == (1280, 720)
    assert len(watcher.looks) == 3, "the same view is asked for once small and once sharp"
    assert watcher.looks[1][0] * watcher.looks[1][1] == pytest.approx(100_000, rel=0.01)
    assert watcher.looks[2] == (1280, 720)


def test_a_fast_server_is_asked_for_all_pixels_and_a_slow_one_for_a_few() -> None:
    assert moving_pixels(Noted(cost_ms=20.0), eye_at(0)) > 1280 * 720
    assert moving_pixels(Noted(cost_ms=1e6), eye_at(0)) == live_view.MIN_PIXELS
    assert moving_pixels(Noted(cost_ms=0.0), eye_at(0)) == 640 * 360


# ---------------------------------------------------------------- pictures of a real server


def until(done: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.perf_counter() + timeout_s
    while not done():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


@pytest.fixture
def take(scene: bpy.types.Scene, server: str, tmp_path: Path) -> bpy.types.PropertyGroup:
    """Returns a take of eight frames that the server has made."""
    bpy.ops.worldwarp.generate(address=server, directory=str(tmp_path / "shot_001"))
    return active_take(scene)


@pytest.fixture
def watch() -> Iterator[Callable[[str, str], WorldWatcher]]:
    """Makes watchers that end with the test."""
    made: list[WorldWatcher] = []

    def make(address: str, job_id: str) -> WorldWatcher:
        made.append(WorldWatcher(address, None, job_id))
        return made[-1]

    yield make
    for watcher in made:
        watcher.close()


@pytest.mark.parametrize("format", ["raw", "jpeg"])
def test_a_look_comes_back_as_a_picture_for_the_gpu(
    take: bpy.types.PropertyGroup, server: str, watch: Callable[[str, str], WorldWatcher], format: str
) -> None:
    watcher = watch(server, take.job_id)
    if format == "jpeg":
        watcher._slow = world_watcher.PATIENCE
    c2w = np.eye(4)
    c2w[0, 3] = 7
    watcher.look(np.array([50.0, 50.0, 24.0, 16.0]), c2w, 64, 48)
    until(lambda: watcher.has_news)
    texels = watcher.take()
    assert (texels.shape, texels.dtype) == ((48, 64, 4), np.float32)
    # The fake viewer's pixels say how many splats there are, cx, and where the camera is.
    wanted = np.array([107, 24, 7], np.float32) / 255
    np.testing.assert_allclose(
        texels[..., :3], np.broadcast_to(wanted, (48, 64, 3)), atol=1e-7 if format == "raw" else 0.02
    )
    assert (texels[..., 3] == 1).all()
    assert watcher.words == ""
    assert watcher.cost_ms > 0
    assert watcher.take() is None


def test_a_take_that_the_server_does_not_have_is_said(server: str, watch: Callable[[str, str], WorldWatcher]) -> None:
    watcher = watch(server, "e" * 32)
    until(lambda: "does not have this take" in watcher.words)


def test_nobody_there_is_said_and_tried_again(
    watch: Callable[[str, str], WorldWatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_watcher, "RETRY_S", 0.05)
    tries: list[float] = []

    def nobody(self: WorldWatcher) -> None:
        tries.append(time.perf_counter())
        raise WorldWarpError("server_not_running", "No WorldWarp server answers.")

    monkeypatch.setattr(WorldWatcher, "_watch", nobody)
    watcher = watch("tcp://127.0.0.1:1", JOB)
    until(lambda: len(tries) >= 3)
    assert watcher.words.startswith("No WorldWarp server answers.")


def picture(data: bytes, format: str, width: int = 2, height: int = 2) -> Picture:
    array = np.frombuffer(data, np.uint8)
    return Picture(
        job_id=JOB, look_id=1, revision=1, width=width, height=height, format=format, render_ms=1.0, data=array
    )  # fmt: skip


def test_the_bottom_row_comes_first() -> None:
    texels = texels_of(picture(bytes([255, 255, 255] * 2 + [0, 188, 0] * 2), "raw"), None)
    np.testing.assert_allclose(texels[0, 0], [0, 188 / 255, 0, 1], atol=1e-4)
    np.testing.assert_allclose(texels[1, 0], [1, 1, 1, 1])


def test_a_jpeg_of_another_size_or_none_at_all_is_refused_undecoded() -> None:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(file, "JPEG")
    decode = jpeg_decoder()
    assert decode is not None
    for content in (file.getvalue(), b"no picture at all"):
        with pytest.raises(WorldWarpError, match="cannot be read"):
            texels_of(picture(content, "jpeg"), decode)


# ---------------------------------------------------------------- in Blender


class Space(SimpleNamespace):
    """Stands for a 3D viewport, which a Blender without windows has none of."""

    type = "VIEW_3D"

    def as_pointer(self) -> int:
        return 4711


def context_of(scene: bpy.types.Scene) -> SimpleNamespace:
    return SimpleNamespace(scene=scene, space_data=Space(), preferences=bpy.context.preferences)


def test_the_view_follows_the_selected_take_and_ends_with_its_file(
    take: bpy.types.PropertyGroup, scene: bpy.types.Scene, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_view, "connection", lambda context: (server, None))
    context = context_of(scene)
    live_view.start(context)
    assert live_view.is_on(context.space_data)
    watcher = live_view._live.watcher
    assert watcher.job_id == take.job_id
    live_view.follow(live_view._live, context)
    assert live_view._live.watcher is watcher
    assert live_view.words_of(live_view._live, context).startswith("Live view of Shot 001")
    scene.worldwarp.active_take = -1
    live_view.follow(live_view._live, context)
    assert live_view._live.watcher is None
    assert "no take is selected" in live_view.words_of(live_view._live, context)
    scene.worldwarp.active_take = 0
    live_view.follow(live_view._live, context)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    assert not live_view.is_on(context.space_data)
    assert not bpy.app.timers.is_registered(live_view.tick)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "worldwarp-watch"])


def test_a_viewport_that_was_closed_ends_the_view(
    take: bpy.types.PropertyGroup, scene: bpy.types.Scene, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_view, "connection", lambda context: (server, None))
    live_view.start(context_of(scene))
    # Without a window no area shows it.
    assert live_view.tick() is None
    assert live_view._live is None


def test_the_switch_says_why_it_is_grey(scene: bpy.types.Scene) -> None:
    with pytest.raises(RuntimeError, match="shown in a 3D viewport"):
        bpy.ops.worldwarp.live_view()
