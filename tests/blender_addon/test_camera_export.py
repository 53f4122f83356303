"""The exported camera is the rendered camera: against Blender's own projection, and refusals by name."""

from __future__ import annotations

import bpy
import numpy as np
import pytest

from blender_addon.camera_export import export_camera_path, render_size
from tests.benchmarks.bench_cameras import camera_errors_px
from worldwarp_core.errors import WorldWarpError


def linear_move(camera: bpy.types.Object, frames: tuple[int, int], x: tuple[float, float]) -> None:
    """Animates `camera` along x at constant speed."""
    for frame, at in zip(frames, x, strict=True):
        camera.location.x = at
        camera.keyframe_insert("location", frame=frame)
    for curve in curves_of(camera):
        for point in curve.keyframe_points:
            point.interpolation = "LINEAR"


def curves_of(thing: bpy.types.ID) -> list[bpy.types.FCurve]:
    action = thing.animation_data.action
    if hasattr(action, "fcurves"):
        return list(action.fcurves)
    slot = thing.animation_data.action_slot
    return list(action.layers[0].strips[0].channelbag(slot).fcurves)


def refusal(**frames: object) -> WorldWarpError:
    with pytest.raises(WorldWarpError) as caught:
        export_camera_path(bpy.context, **frames)
    return caught.value


def test_random_cameras_of_every_kind_agree_with_blenders_projection() -> None:
    errors = camera_errors_px(512, seed=0)
    cases = [case for _, case in errors]
    assert {case.fit for case in cases} == {"AUTO", "HORIZONTAL", "VERTICAL"}
    for kind in ("portrait", "pixel_aspect", "shift", "parented", "constrained", "percentage", "frame_step", "offset"):
        assert sum(getattr(case, kind) for case in cases) >= 10, kind
    assert max(error for error, _ in errors) < 0.01


def test_the_path_carries_real_frame_numbers_and_fractional_rates(camera: bpy.types.Object) -> None:
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end, scene.frame_step = 10, 21, 5
    scene.render.fps, scene.render.fps_base = 30, 1.001
    path = export_camera_path(bpy.context)
    assert path.frames.tolist() == [10, 15, 20]
    assert path.fps == pytest.approx(29.97, abs=1e-3)


def test_a_border_is_truncated_to_whole_pixels_as_blender_does(camera: bpy.types.Object) -> None:
    render = bpy.context.scene.render
    render.use_border = render.use_crop_to_border = True
    # In float32 these come out as whole numbers, in more digits just below.
    for border, size, cropped in (((0.4, 0.9), 160, 80), ((0.1, 0.7), 60, 36), ((0.0, 0.9), 15, 13)):
        render.resolution_x = render.resolution_y = size
        render.border_min_x, render.border_max_x = border
        render.border_min_y, render.border_max_y = border
        assert render_size(bpy.context.scene) == (cropped, cropped)


def test_the_current_frame_and_camera_are_put_back(camera: bpy.types.Object) -> None:
    bpy.context.scene.frame_set(2, subframe=0.25)
    export_camera_path(bpy.context)
    assert (bpy.context.scene.frame_current, bpy.context.scene.frame_subframe) == (2, pytest.approx(0.25))
    assert bpy.context.scene.camera == camera


def test_time_remapping_exports_the_time_that_is_rendered(camera: bpy.types.Object) -> None:
    linear_move(camera, (0, 100), (0.0, 100.0))
    bpy.context.scene.render.frame_map_old, bpy.context.scene.render.frame_map_new = 100, 200
    path = export_camera_path(bpy.context, frames=[20, 40])
    np.testing.assert_allclose(path.c2w[:, 0, 3], [10.0, 20.0], atol=1e-5)


def test_a_cropped_border_moves_the_principal_point(camera: bpy.types.Object) -> None:
    render = bpy.context.scene.render
    render.resolution_x, render.resolution_y = 101, 77
    render.use_border = render.use_crop_to_border = True
    render.border_min_x, render.border_max_x, render.border_min_y, render.border_max_y = 0.113, 0.787, 0.21, 0.905
    # Blender 4.5 renders this border as 68x53 pixels that start 11 from the left and 8 from the top.
    assert render_size(bpy.context.scene) == (68, 53)
    K = export_camera_path(bpy.context).K[0]
    assert (K[0, 2], K[1, 2]) == (101 / 2 - 11, 77 / 2 - 8)
    assert K[0, 0] == pytest.approx(50.0 * 101 / 36)


def test_a_border_without_crop_keeps_the_whole_frame(camera: bpy.types.Object) -> None:
    bpy.context.scene.render.use_border = True
    bpy.context.scene.render.border_max_x = 0.5
    assert render_size(bpy.context.scene) == (1920, 1080)
    assert export_camera_path(bpy.context).K[0, 0, 2] == 960


@pytest.mark.parametrize(("kind", "word"), [("ORTHO", "orthographic"), ("PANO", "panoramic"), ("CUSTOM", "custom")])
def test_other_projections_are_refused_by_name(camera: bpy.types.Object, kind: str, word: str) -> None:
    if kind not in camera.data.bl_rna.properties["type"].enum_items:
        pytest.skip(f"this Blender has no {kind} camera")
    camera.data.type = kind
    error = refusal()
    assert error.code == "unsupported_camera"
    assert '"Hero Camera"' in error.message
    assert word in error.message


def test_a_sheared_camera_is_refused_with_its_frame(camera: bpy.types.Object) -> None:
    parent = bpy.data.objects.new("Stretched", None)
    bpy.context.scene.collection.objects.link(parent)
    parent.scale = (1.0, 1.0, 3.0)
    camera.parent = parent
    camera.rotation_euler = (0.0, 0.0, 0.0)
    camera.keyframe_insert("rotation_euler", frame=2)
    camera.rotation_euler = (0.7, 0.0, 0.0)
    camera.keyframe_insert("rotation_euler", frame=3)
    error = refusal()
    assert error.code == "unsupported_camera"
    assert '"Hero Camera" is sheared at frame 3' in error.message


def test_a_mirrored_camera_is_refused(camera: bpy.types.Object) -> None:
    camera.scale.x = -1
    assert '"Hero Camera" is mirrored at frame 1' in refusal().message


def test_a_camera_scaled_to_nothing_is_refused(camera: bpy.types.Object) -> None:
    camera.scale = (0, 0, 0)
    assert '"Hero Camera" has no orientation at frame 1' in refusal().message


def test_stereo_is_refused(camera: bpy.types.Object) -> None:
    bpy.context.scene.render.use_multiview = True
    error = refusal()
    assert error.code == "unsupported_camera"
    assert "stereo" in error.message
    assert '"Hero Camera"' in error.message


def test_markers_that_switch_cameras_are_refused_naming_the_frames(camera: bpy.types.Object) -> None:
    other = bpy.data.objects.new("Second Camera", bpy.data.cameras.new("Second Camera"))
    bpy.context.scene.collection.objects.link(other)
    bpy.context.scene.timeline_markers.new("A", frame=0).camera = camera
    bpy.context.scene.timeline_markers.new("B", frame=3).camera = other
    error = refusal()
    assert error.code == "camera_cut"
    assert 'frame 3 (to "Second Camera")' in error.message
    assert bpy.context.scene.camera == camera
    bpy.context.scene.frame_end = 2
    assert len(export_camera_path(bpy.context)) == 2


def test_a_scene_without_a_camera_is_told_what_to_do() -> None:
    error = refusal()
    assert error.code == "no_camera"
    assert "Add one" in error.message


def test_an_empty_range_is_refused(camera: bpy.types.Object) -> None:
    error = refusal(frames=[])
    assert error.code == "bad_camera_path"
