"""Prompts on the timeline, pictures and masks as arrays, and all of it in what is sent."""

from __future__ import annotations

from pathlib import Path

import bpy
import numpy as np
import pytest

from blender_addon import server_facts
from blender_addon.look import add_prompt, prompt_keys, strength_mask, style_picture
from blender_addon.pictures import cropped_to_aspect, picture_of, reduced
from blender_addon.preferences import server_address
from blender_addon.scale import FALLBACK_DISTANCE, default_distance
from blender_addon.server_facts import ServerFacts
from blender_addon.shot import ShotSettings, prepare_shot, settings_of, write_inputs
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import PromptKey

pytestmark = pytest.mark.usefixtures("addon")


def image_of(pixels: np.ndarray, name: str = "Picture", **options: bool) -> bpy.types.Image:
    """Returns an image data-block that holds (H, W, 3) `pixels`, top row first."""
    height, width = pixels.shape[:2]
    image = bpy.data.images.new(name, width, height, **options)
    rgba = np.concatenate([pixels, np.ones((height, width, 1))], axis=2)
    image.pixels.foreach_set(rgba[::-1].astype(np.float32).ravel())
    return image


def ramp(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 1, height * width * 3).reshape(height, width, 3)


def test_markers_are_prompts_in_the_order_of_their_frames() -> None:
    scene = bpy.context.scene
    for frame, name in ((40, "WW: a storm"), (12, "ww:fog"), (20, "just a marker"), (9000, "ww: after the shot")):
        scene.timeline_markers.new(name, frame=frame)
    assert prompt_keys(scene) == (PromptKey(12, "fog"), PromptKey(40, "a storm"))


def test_a_long_prompt_is_kept_whole_in_a_text() -> None:
    scene = bpy.context.scene
    words = "a street after rain, " * 20
    marker = add_prompt(scene, 12, words)
    assert len(marker.name) < 64
    assert prompt_keys(scene) == (PromptKey(12, words.strip()),)
    add_prompt(scene, 12, "sun")
    assert prompt_keys(scene) == (PromptKey(12, "sun"),)


@pytest.mark.parametrize(("names", "message"), [(("ww:",), "says nothing"), (("ww: a", "ww: b"), "Two markers")])
def test_markers_that_say_nothing_or_contradict_are_refused(names: tuple[str, ...], message: str) -> None:
    for name in names:
        bpy.context.scene.timeline_markers.new(name, frame=3)
    with pytest.raises(WorldWarpError, match=f"{message}|frame 3"):
        prompt_keys(bpy.context.scene)


def test_a_picture_comes_out_as_it_went_in() -> None:
    rgb = np.rint(ramp(6, 9) * 255) / 255
    np.testing.assert_array_equal(picture_of(image_of(rgb)), np.rint(rgb * 255))


def test_linear_light_is_encoded_as_it_looks() -> None:
    linear = image_of(np.full((4, 4, 3), 0.2140), float_buffer=True)
    assert np.abs(picture_of(linear).astype(int) - 128).max() <= 1


def test_an_image_without_its_file_is_named(tmp_path: Path) -> None:
    gone = bpy.data.images.new("Gone", 4, 4)
    gone.source, gone.filepath = "FILE", str(tmp_path / "gone.png")
    with pytest.raises(WorldWarpError, match='"Gone" has no pixels'):
        picture_of(gone)


def test_white_of_the_mask_changes_the_strength_by_the_amount() -> None:
    painted = np.zeros((4, 8, 3))
    painted[0, :4] = 1.0
    mask = strength_mask(image_of(painted), -0.25)
    assert mask.shape == (1, 4, 8)
    assert mask.dtype == np.float32
    np.testing.assert_allclose(mask[0, 0], [-0.25] * 4 + [0.0] * 4)
    assert not mask[0, 1:].any()
    assert strength_mask(None, 0.5) is None


def test_a_large_style_is_reduced_to_its_means() -> None:
    picture = style_picture(image_of(ramp(10, 2100)))
    assert picture.shape == (3, 700, 3)
    np.testing.assert_array_equal(reduced(np.arange(16.0).reshape(4, 4), 2), [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize(("size", "kept"), [((100, 50), (28, 50)), ((20, 90), (20, 36))])
def test_a_picture_is_cropped_around_its_middle(size: tuple[int, int], kept: tuple[int, int]) -> None:
    assert cropped_to_aspect(np.zeros((*size, 3)), 16, 9).shape == (*kept, 3)


@pytest.fixture
def image_shot(camera: bpy.types.Object) -> bpy.types.Scene:
    """A scene whose shot begins with a picture."""
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = 64, 32
    scene.worldwarp.start_source = "IMAGE"
    scene.worldwarp.start_image = image_of(ramp(40, 64))
    return scene


def test_everything_that_the_artist_sets_is_in_what_is_sent(image_shot: bpy.types.Scene, tmp_path: Path) -> None:
    group = image_shot.worldwarp
    group.prompt, group.preset, group.guidance, group.strength = "a street", "fast", 4.5, 0.6
    group.auto_prompt = group.graded_validity = group.own_strength = True
    group.style_image, group.strength_mask = image_of(ramp(8, 8)), image_of(np.ones((4, 4, 3)))
    group.strength_mask_amount, group.scene_scale = 0.2, 7.5
    add_prompt(image_shot, 3, "fog")
    shot = prepare_shot(bpy.context, ShotSettings.of(bpy.context), lambda _: None)
    spec = shot.spec
    assert (spec.prompt, spec.preset, spec.guidance, spec.strength) == ("a street", "fast", 4.5, 0.6)
    assert spec.auto_prompt
    assert spec.graded_validity
    assert spec.prompt_keys == (PromptKey(3, "fog"),)
    assert spec.style_image.shape == (8, 8, 3)
    np.testing.assert_allclose(spec.strength_mask, 0.2)
    # A picture has no depth but the artist's word for how far it is.
    assert spec.depth is None
    assert spec.scene_scale == 7.5
    assert spec.start_frame.shape == (32, 64, 3)
    assert shot.records["start_frame"]["cropped_to"] == [64, 32]
    assert settings_of(shot)["prompt_keys"] == [{"frame": 3, "prompt": "fog"}]
    write_inputs(tmp_path, spec)
    assert {file.name for file in tmp_path.iterdir()} == {
        "cameras.json",
        "start_frame.png",
        "style_image.png",
        "strength_mask.exr",
    }


def test_strength_is_the_server_s_until_the_artist_takes_it(
    image_shot: bpy.types.Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = image_shot.worldwarp
    assert ShotSettings.of(bpy.context).strength is None
    facts = ServerFacts(server_address(bpy.context), "render-1", "0.1.0", 4, "preview", strength=0.2)
    monkeypatch.setattr(server_facts.known(), "facts", facts)
    group.own_strength = True
    assert ShotSettings.of(bpy.context).strength == 0.2, "the slider appears where the server had it"
    group.strength, group.own_strength = 0.6, False
    assert ShotSettings.of(bpy.context).strength is None
    group.own_strength = True
    assert ShotSettings.of(bpy.context).strength == 0.6, "and stays where the artist left it"


def test_generate_is_grey_until_the_picture_is_picked(image_shot: bpy.types.Scene) -> None:
    image_shot.worldwarp.start_image = None
    with pytest.raises(RuntimeError, match="pick one under Start Frame"):
        bpy.ops.worldwarp.generate()


def test_distance_is_that_of_the_focus_object_then_the_nearest_in_view(image_shot: bpy.types.Scene) -> None:
    assert default_distance(bpy.context)[0] == FALLBACK_DISTANCE
    bpy.ops.mesh.primitive_plane_add(size=100, location=(0, 0, -8))
    distance, reason = default_distance(bpy.context)
    assert distance == pytest.approx(8, rel=1e-4)
    assert "nearest" in reason
    focus = bpy.data.objects.new("Face", None)
    image_shot.collection.objects.link(focus)
    focus.location = (1, 0, -3)
    image_shot.camera.data.dof.focus_object = focus
    bpy.context.view_layer.update()
    assert default_distance(bpy.context) == (pytest.approx(3), 'the focus object "Face"')
