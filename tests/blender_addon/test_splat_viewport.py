"""The viewport draws what the core's rasteriser draws, hidden by what is nearer, and in order however it is turned."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import bpy
import gpu
import numpy as np
import pytest
from mathutils import Matrix

from blender_addon import splat_viewport as viewport
from blender_addon.camera_export import export_camera_path
from blender_addon.small_steps import run_through
from blender_addon.splats import add_splat_objects, select, sky_of
from worldwarp_core.api import render_splats
from worldwarp_core.splat_files.axes import sh_basis
from worldwarp_core.splat_files.cloud import SplatCloud

WIDTH, HEIGHT = 240, 136


def cloud_before_the_camera(count: int, bands: int, seed: int = 0) -> SplatCloud:
    """Long and flat splats of every opacity from 2 to 9 units along y, a hundredth of them a sky."""
    rng = np.random.default_rng(seed)
    y = rng.uniform(2, 9, (count, 1))
    quats = rng.normal(size=(count, 4))
    sky = np.arange(count) >= count - count // 100
    means = np.concatenate([y * rng.uniform(-0.7, 0.7, (count, 1)), y, y * rng.uniform(-0.4, 0.4, (count, 1))], axis=1)
    size = 1.2 * count**-0.5
    return SplatCloud(
        means=np.where(sky[:, None], means * 500, means).astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=np.log(np.where(sky[:, None], 500, 1) * rng.uniform(0.1, 4, (count, 3)) * size).astype(np.float32),
        opacities=rng.uniform(-3, 4, count).astype(np.float32),
        sh0=rng.uniform(-1.5, 1.5, (count, 1, 3)).astype(np.float32),
        shN=rng.normal(scale=0.2, size=(count, bands, 3)).astype(np.float32),
        sky=sky,
    )


@pytest.fixture
def film(camera: bpy.types.Object) -> bpy.types.Object:
    camera.matrix_world = Matrix.Rotation(0.1, 4, "Z") @ Matrix.Rotation(np.pi / 2, 4, "X")
    camera.data.lens, camera.data.shift_x = 28.0, 0.03
    scene = bpy.context.scene
    scene.frame_end = 1
    scene.render.resolution_x, scene.render.resolution_y = WIDTH, HEIGHT
    return camera


def on_a_gpu(work: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns what `work` does where Blender lets Python draw; in background that is inside of a render."""
    if hasattr(gpu, "init"):
        gpu.init()
        return work()
    found: list = []

    class Engine(bpy.types.RenderEngine):
        bl_idname, bl_label, bl_use_gpu_context = "WORLDWARP_TEST", "Test", True

        def render(self, depsgraph: bpy.types.Depsgraph) -> None:
            try:
                found.append(work())
            except Exception as error:
                found.append(error)

    bpy.utils.register_class(Engine)
    try:
        bpy.context.scene.render.engine = Engine.bl_idname
        bpy.ops.render.render()
    finally:
        bpy.utils.unregister_class(Engine)
    if not found:
        pytest.skip("Blender finds no OpenGL here")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def drawn(thing: bpy.types.Object, camera: bpy.types.Object, nearest: float | None = None) -> np.ndarray:
    """Returns (H, W, 3) over black from the scene's camera, with a wall at depth `nearest`, if any."""
    projection = camera.calc_matrix_camera(bpy.context.evaluated_depsgraph_get(), x=WIDTH, y=HEIGHT)
    model_view = camera.matrix_world.inverted() @ thing.matrix_world
    wall = 1.0
    if nearest is not None:
        clip = projection @ Matrix.Translation((0, 0, -nearest)).col[3]
        wall = 0.5 + 0.5 * clip.z / clip.w

    def work() -> np.ndarray:
        eye = viewport.eye_of(model_view)
        gaussians = viewport.gaussians_of(run_through(viewport.parts_of(thing, next(iter(sky_of(thing)), None))))
        viewport.upload(gaussians)
        sight = viewport.Sight(gaussians, eye, eye)
        viewport.bring_up_to_date(sight, eye)
        viewport.take_over(sight)
        canvas = gpu.types.GPUOffScreen(WIDTH, HEIGHT, format="RGBA32F")
        with canvas.bind():
            framebuffer = gpu.state.active_framebuffer_get()
            framebuffer.clear(color=(0, 0, 0, 0), depth=wall)
            gpu.state.viewport_set(0, 0, WIDTH, HEIGHT)
            viewport.paint(sight, model_view, projection, WIDTH, HEIGHT, as_light=False)
            pixels = framebuffer.read_color(0, 0, WIDTH, HEIGHT, 4, 0, "FLOAT")
        viewport.splat_shader.cache_clear()
        viewport.quad.cache_clear()
        return np.array(pixels.to_list(), np.float32)[::-1, :, :3]

    return on_a_gpu(work)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def rasterised(cloud: SplatCloud) -> np.ndarray:
    return render_splats(cloud, export_camera_path(bpy.context))[0][0]


@pytest.mark.parametrize(("count", "bands"), [(100_000, 0), (3_000, 15)])
def test_the_viewport_draws_what_the_core_draws(film: bpy.types.Object, count: int, bands: int) -> None:
    cloud = cloud_before_the_camera(count, bands)
    made = add_splat_objects(bpy.context, "World", cloud)
    bpy.context.view_layer.update()
    assert psnr_db(drawn(made, film).clip(0, 1), rasterised(cloud)) > 40


def test_what_stands_nearer_hides_the_splats_behind_it(film: bpy.types.Object) -> None:
    cloud = cloud_before_the_camera(3_000, 0)
    made = add_splat_objects(bpy.context, "World", cloud)
    bpy.context.view_layer.update()
    forward = -np.array(film.matrix_world)[:3, 2]
    before = select(cloud, cloud.means @ forward < 5.0)
    assert 500 < len(before) < 2500
    assert psnr_db(drawn(made, film, nearest=5.0).clip(0, 1), rasterised(before)) > 40


def test_the_farthest_come_first_wherever_one_looks() -> None:
    rng = np.random.default_rng(0)
    means = (rng.normal(size=(20_000, 3)) * 10.0 ** rng.uniform(-4, 4, (20_000, 1))).astype(np.float32)
    for forward in rng.normal(size=(5, 3)):
        depth = means @ forward.astype(np.float32)
        assert (np.diff(depth[viewport.farthest_first(means, forward)]) <= 0).all()
    assert len(viewport.farthest_first(means[:0], np.ones(3))) == 0


@pytest.mark.parametrize("bands", [0, 3, 8, 15])
def test_colours_are_the_harmonics_seen_from_the_eye(bands: int) -> None:
    cloud = cloud_before_the_camera(20_000, bands)
    gaussians = viewport.Gaussians(cloud.means, 0.5 + 0.2820948 * cloud.sh0[:, 0], cloud.shN, {}, np.zeros(3), 1.0)
    place = np.array([0.3, -0.2, 0.1])
    away = cloud.means - place
    basis = sh_basis(away / np.linalg.norm(away, axis=1, keepdims=True), cloud.sh_degree)
    wanted = 0.5 + np.einsum("nk,nkc->nc", basis, np.concatenate([cloud.sh0, cloud.shN], axis=1))
    np.testing.assert_allclose(viewport.seen_colours(gaussians, place), wanted.clip(0), atol=1e-4)


def a_sight(bands: int = 3) -> viewport.Sight:
    cloud = cloud_before_the_camera(500, bands)
    gaussians = viewport.Gaussians(cloud.means, cloud.sh0[:, 0], cloud.shN, {}, np.zeros(3), 1.0)
    eye = viewport.Eye(np.zeros(3), np.array([0.0, 1, 0]))
    return viewport.Sight(gaussians, eye, eye)


def test_colours_are_worked_out_only_where_the_eye_has_moved() -> None:
    sight = a_sight()
    viewport.bring_up_to_date(sight, sight.eye)
    assert sight.ready is not None
    assert sight.ready[2] is not None
    sight.textures["order"] = SimpleNamespace()
    viewport.bring_up_to_date(sight, replace(sight.eye, forward=np.array([1.0, 0, 0])))
    assert sight.ready[2] is None
    viewport.bring_up_to_date(sight, replace(sight.eye, place=np.array([1.0, 0, 0])))
    assert sight.ready[2] is not None


def test_of_many_views_the_newest_is_sorted_and_those_between_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    served: list[viewport.Eye] = []

    def slowly(sight: viewport.Sight, eye: viewport.Eye) -> None:
        served.append(eye)
        begun.set()
        assert go.wait(120)
        if len(served) == 2:
            done.set()

    monkeypatch.setattr(viewport, "bring_up_to_date", slowly)
    sight, sorter = a_sight(), viewport.Sorter()
    eyes = [viewport.Eye(np.full(3, float(i)), np.array([0.0, 1, 0])) for i in range(5)]
    sorter.want(sight, eyes[0])
    assert begun.wait(120)
    for eye in eyes[1:]:
        sorter.want(sight, eye)
    go.set()
    assert done.wait(120)
    sorter.close()
    assert served == [eyes[0], eyes[4]]
    assert sight.wanted is eyes[4]


def test_an_object_that_cannot_be_gone_through_does_not_hold_up_the_others(capsys: pytest.CaptureFixture) -> None:
    sorter, broken = viewport.Sorter(), viewport.Coming(parts=[])
    sorter.prepare(broken)
    sight = a_sight()
    sorter.want(sight, viewport.Eye(np.zeros(3), np.array([0.0, 1, 0])))
    deadline = time.monotonic() + 120
    while sight.ready is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sorter.close()
    assert broken.ready is None
    assert "Traceback" in capsys.readouterr().err


def test_in_background_nothing_is_hung_into_blender(addon: None) -> None:
    assert viewport.follow_edits not in bpy.app.handlers.depsgraph_update_post


def test_splats_are_shown_with_their_sky_unless_hidden(film: bpy.types.Object) -> None:
    made = add_splat_objects(bpy.context, "World", cloud_before_the_camera(500, 0))
    bpy.ops.mesh.primitive_cube_add()
    (sky,) = sky_of(made)
    space = next(area.spaces[0] for area in bpy.data.screens[0].areas if area.type == "VIEW_3D")
    context = SimpleNamespace(view_layer=bpy.context.view_layer, space_data=space)
    assert viewport.splats_shown(context) == [(made, sky)]
    sky.hide_set(True)
    assert viewport.splats_shown(context) == [(made, None)]
    made.hide_set(True)
    assert viewport.splats_shown(context) == []


def test_all_objects_are_looked_at_only_after_a_change(film: bpy.types.Object, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bpy.types.Object] = []
    is_splat_object = viewport.is_splat_object
    monkeypatch.setattr(viewport, "is_splat_object", lambda thing: looked_at.append(thing) or is_splat_object(thing))
    for number in range(20):
        bpy.context.scene.collection.objects.link(bpy.data.objects.new(f"Prop {number}", None))
    layer = bpy.context.view_layer
    bpy.app.handlers.depsgraph_update_post.append(viewport.follow_edits)
    try:
        assert viewport.splats_in(layer) == []
        looked_at.clear()
        bpy.context.scene.frame_set(2)
        assert viewport.splats_in(layer) == []
        assert looked_at == []
        made = add_splat_objects(bpy.context, "World", cloud_before_the_camera(500, 0))
        splats = [made, *sky_of(made)]
        assert viewport.splats_in(layer) == splats
        made.name = "Another name"
        assert viewport.splats_in(layer) == splats
        looked_at.clear()
        assert viewport.splats_in(layer) == splats
        assert looked_at == splats
        bpy.data.objects.remove(made)
        layer.update()
        assert viewport.splats_in(layer) == splats[1:]
    finally:
        bpy.app.handlers.depsgraph_update_post.remove(viewport.follow_edits)


def test_a_large_object_is_gone_through_beside_the_viewport(
    film: bpy.types.Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = cloud_before_the_camera(viewport.AT_ONCE + 5_000, 3)
    made = add_splat_objects(bpy.context, "World", cloud)
    (sky,) = sky_of(made)
    bpy.context.view_layer.update()
    monkeypatch.setattr(viewport, "upload", lambda gaussians: None)
    region, eye = SimpleNamespace(as_pointer=lambda: 1), viewport.Eye(np.zeros(3), np.array([0.0, 1, 0]))
    drawings = viewport.Drawings()
    try:
        assert drawings.sight(region, made, sky, eye) is None
        rounds = 0
        while (sight := drawings.sight(region, made, sky, eye)) is None:
            assert drawings.busy
            drawings.go_on(0.0)
            rounds += 1
            time.sleep(0.001)
        assert rounds > 5
        deadline = time.perf_counter() + 120
        while sight.ready is None:
            assert time.perf_counter() < deadline
            time.sleep(0.001)
        _, order, colours = sight.ready
        assert sorted(order.tolist()) == list(range(len(cloud)))
        np.testing.assert_allclose(colours, viewport.seen_colours(sight.gaussians, eye.place))
    finally:
        drawings.sorter.close()


def test_a_world_that_is_hidden_before_it_was_drawn_is_asked_to_be_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings, redraws = viewport.Drawings(), []
    monkeypatch.setattr(viewport, "_drawings", drawings)
    monkeypatch.setattr(viewport, "redraw", lambda: redraws.append(1))
    sight = drawings.sights[(1, 2)] = a_sight()
    assert viewport.poll() is not None
    assert redraws == []
    # What the thread does; nobody takes it over, as nothing is drawn of what is hidden.
    viewport.bring_up_to_date(sight, viewport.Eye(np.zeros(3), np.array([0.0, 1, 0])))
    assert [viewport.poll() for _ in range(3)] == [None] * 3
    assert redraws == [1]
    viewport.bring_up_to_date(sight, viewport.Eye(np.ones(3), np.array([0.0, 1, 0])))
    viewport.poll()
    assert redraws == [1, 1]


def test_an_object_that_is_removed_while_it_is_read_is_forgotten(film: bpy.types.Object) -> None:
    made = add_splat_objects(bpy.context, "World", cloud_before_the_camera(viewport.AT_ONCE + 5_000, 0))
    drawings = viewport.Drawings()
    try:
        region, eye = SimpleNamespace(as_pointer=lambda: 1), viewport.Eye(np.zeros(3), np.array([0.0, 1, 0]))
        assert drawings.sight(region, made, None, eye) is None
        drawings.go_on(0.0)
        bpy.data.objects.remove(made)
        drawings.go_on(float("inf"))
        assert not drawings.coming
    finally:
        drawings.sorter.close()
