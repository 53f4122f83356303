"""The camera of a frame is Blender's own choice, told without going there."""

from __future__ import annotations

from pathlib import Path

import bpy
import pytest

from blender_addon.scenes import camera_at, collection_for, scene_with, select_alone


@pytest.mark.parametrize("frames", [(), (10,), (10, 20), (20, 10, 30)])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_camera_of_a_frame_is_the_one_that_blender_films_it_with(
    camera: bpy.types.Object, frames: tuple[int, ...], hidden: bool
) -> None:
    scene = bpy.context.scene
    for number, frame in enumerate(frames):
        made = bpy.data.objects.new(f"Camera {number}", bpy.data.cameras.new("Camera"))
        scene.collection.objects.link(made)
        scene.timeline_markers.new(f"To {number}", frame=frame).camera = made
        made.hide_render = hidden and number == 0
    for frame in (1, 10, 15, 20, 25, 30, 40):
        told = camera_at(scene, frame)
        scene.frame_set(frame)
        assert told == scene.camera, frame


def test_a_scene_is_found_whatever_it_is_called_and_after_an_undo(camera: bpy.types.Object) -> None:
    uid = bpy.context.scene.session_uid
    bpy.ops.ed.undo_push(message="Before")
    bpy.context.scene.name = "Harbour"
    bpy.ops.ed.undo_push(message="After")
    assert scene_with(uid) == bpy.context.scene
    bpy.ops.ed.undo()
    assert bpy.context.scene.name == "Scene"
    assert scene_with(uid) == bpy.context.scene
    assert scene_with(-1) is None


def test_new_things_go_into_a_collection_of_this_file(tmp_path: Path) -> None:
    scene = bpy.context.scene
    own = bpy.data.collections.new("Own")
    scene.collection.children.link(own)
    bpy.data.libraries.write(str(tmp_path / "set.blend"), {bpy.data.collections.new("Set")})
    with bpy.data.libraries.load(str(tmp_path / "set.blend"), link=True) as (_, linked):
        linked.collections = ["Set"]
    scene.collection.children.link(linked.collections[0])
    layer = bpy.context.view_layer
    for name, expected in (("Own", own), ("Set", scene.collection)):
        layer.active_layer_collection = layer.layer_collection.children[name]
        assert collection_for(bpy.context) == expected


def test_what_is_not_in_the_view_layer_is_not_selected() -> None:
    bpy.ops.mesh.primitive_cube_add()
    cube = bpy.context.object
    aside = bpy.data.objects.new("Aside", None)
    select_alone(bpy.context, aside)
    assert not cube.select_get()
    select_alone(bpy.context, cube)
    assert bpy.context.selected_objects == [cube]
