# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist sets for a shot: one property group on the scene, saved with the file."""

from __future__ import annotations

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    FloatVectorProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from . import server_facts, takes
from .preferences import server_address
from .start_frame import DEFAULT_SAMPLES
from .takes import WORLDWARP_PG_take

START_SOURCES = (
    ("RENDER", "Render", "Render the first frame with Cycles: its depth is exact, so the world fits your scene"),
    ("IMAGE", "Image", "A photograph or a painting: the server estimates its depth, and you say how far things are"),
    ("TEXT", "Text", "A picture that the server draws from your words; from there on it is like an image"),
)

LAYOUTS = (
    ("OFF", "Off", "The server estimates how far things are; nothing but the picture says what the world is like"),
    (
        "START",
        "Start Frame",
        "What the first frame shows lies where your scene has it; what the camera finds later is free",
    ),
    (
        "PATH",
        "Whole Path",
        "Blockout to world: along the whole path, what is generated lies on your scene's surfaces, and nothing is seen "
        "through them. Where the scene is empty the world is free",
    ),
)

DEPTH_KINDS = (
    ("NEARNESS", "Nearness", "Bright is near: what most depth estimators give (disparity, Depth Anything, MiDaS)"),
    ("DISTANCE", "Distance", "Bright is far: numbers that grow with the distance, as in a render's depth pass"),
)

FRAME_FORMATS = (
    ("PNG", "PNG", "8-bit sRGB, as the frame was made: nothing is lost"),
    (
        "EXR",
        "PNG and OpenEXR",
        "The PNG, and the same picture as scene-linear light in half floats, for compositing here and in other "
        "programs. It holds no more range than the PNG",
    ),
)

# Blender 4.5 and later want to be told that // is understood; before there was no such option.
KNOWS_RELATIVE = "is_path_supports_blend_relative" in bpy.types.Property.bl_rna.properties
RELATIVE_PATH = {"ANIMATABLE", "PATH_SUPPORTS_BLEND_RELATIVE"} if KNOWS_RELATIVE else {"ANIMATABLE"}


def _whole_chunk(self: bpy.types.PropertyGroup, context: bpy.types.Context) -> None:
    """Moves chunk and overlap to 4k + 1, the lengths that video models take, with the overlap the shorter."""
    for name in ("chunk", "overlap"):
        nearest = 1 + 4 * round((getattr(self, name) - 1) / 4)
        if getattr(self, name) != nearest:
            setattr(self, name, nearest)
    if self.overlap >= self.chunk:
        self.overlap = self.chunk - 4


def _fitting_layout(self: bpy.types.PropertyGroup, context: bpy.types.Context) -> None:
    """A render is of the scene, so its shapes are the scene's; of a picture that is the artist's to say."""
    self.keep_layout = "START" if self.start_source == "RENDER" else "OFF"


def _begin_at_the_server_s(self: bpy.types.PropertyGroup, context: bpy.types.Context) -> None:
    """The slider appears where the server would have set it, unless the artist has moved it before."""
    facts = server_facts.facts_at(server_address(context))
    if self.own_strength and not self.is_property_set("strength") and facts is not None and facts.strength is not None:
        self.strength = facts.strength


def _server_strength(self: bpy.types.PropertyGroup) -> str:
    """What the server takes, as far as it has been asked; as short as the sidebar is narrow."""
    facts = server_facts.facts_at(server_address(bpy.context))
    return f"Server's: {facts.strength:.2f}" if facts is not None and facts.strength is not None else "Server's choice"


def _is_still(self: bpy.types.PropertyGroup, image: bpy.types.Image) -> bool:
    """Offers the pictures that can be read: no render results, no movies."""
    return image.type in ("IMAGE", "UV_TEST") and image.source in ("FILE", "GENERATED", "SEQUENCE")


class WORLDWARP_PG_shot(bpy.types.PropertyGroup):
    """Settings of the shot that WorldWarp makes of this scene"""

    # ------------------------------------------------------------ shot

    show_path: BoolProperty(
        name="Show Path",
        description="Draw the checked path in the viewport: green where the start frame has seen what comes into view, "
        "red where all of it is new, with marks where something is wrong",
        default=True,
    )

    # ------------------------------------------------------------ start frame

    start_source: EnumProperty(
        name="Start Frame",
        description="Where the first picture of the shot comes from; everything after it is made to match",
        items=START_SOURCES,
        default="RENDER",
        update=_fitting_layout,
    )
    keep_layout: EnumProperty(
        name="Keep Layout",
        description="How much of your scene's own shapes the generated world keeps",
        items=LAYOUTS,
        default="START",
    )
    leave_out: PointerProperty(
        name="Leave Out",
        description="A collection that is no part of the layout: characters, helpers, whatever should not be in the "
        "generated world. WorldWarp's own objects are always left out",
        type=bpy.types.Collection,
    )
    start_image: PointerProperty(
        name="Image",
        description="What the camera sees on the first frame. It is cropped around its middle to the shot's aspect",
        type=bpy.types.Image,
        poll=_is_still,
    )
    first_prompt: StringProperty(
        name="First Frame",
        description="What the first frame shows. Empty takes the shot's prompt, under Look",
        default="",
    )
    first_seed: IntProperty(
        name="Seed", description="Another number gives another picture from the same words", default=0, min=0
    )
    samples: IntProperty(
        name="Samples",
        description="Cycles samples of the start frame; it is denoised, so few are enough",
        default=DEFAULT_SAMPLES,
        min=1,
        max=4096,
    )
    start_depth: PointerProperty(
        name="Depth Map",
        description="How far everything in the picture is, as a grey picture of the same view from any depth "
        "estimator. Without one the server estimates it",
        type=bpy.types.Image,
        poll=_is_still,
    )
    depth_kind: EnumProperty(
        name="Depth Map Is",
        description="What bright means in the depth map",
        items=DEPTH_KINDS,
        default="NEARNESS",
    )
    scale_point: FloatVectorProperty(
        name="Point",
        description="The place in the picture whose distance is told, from the top left corner (0, 0) to the bottom "
        "right one (1, 1)",
        size=2,
        default=(0.5, 0.5),
        min=0.0,
        max=1.0,
    )
    scene_scale: FloatProperty(
        name="Distance",
        description="How far from the camera the picked point lies, or without a depth map the middle of all that the "
        "picture shows: it sets how large the generated world is beside your scene. 0 takes the camera's focus object, "
        "or the nearest thing in view",
        default=0.0,
        min=0.0,
        soft_max=1000.0,
        subtype="DISTANCE",
    )

    show_cloud: BoolProperty(
        name="Show in Viewport",
        description="Draw the start picture in the scene as points, where its depth puts them, before anything is made",
        default=True,
    )

    # ------------------------------------------------------------ look

    prompt: StringProperty(
        name="Prompt",
        description="What the world looks like where the camera has not looked yet. Prompts for later frames go on the "
        'timeline, as markers named "ww: ..."',
        default="",
    )
    negative_prompt: StringProperty(name="Avoid", description="What should not appear in the shot", default="")
    auto_prompt: BoolProperty(
        name="Describe Automatically",
        description="Let the server look at what each part of the shot begins with, and add a description of it to "
        "your prompt",
        default=False,
    )
    own_strength: BoolProperty(
        name="Own Strength",
        description="Choose how freely known surfaces are repainted. Off, the server takes what suits its engine best",
        default=False,
        update=_begin_at_the_server_s,
    )
    strength: FloatProperty(
        name="Strength",
        description="How freely known surfaces are repainted: low keeps them as they were seen, high invents more",
        default=0.8,
        min=0.05,
        max=1.0,
        subtype="FACTOR",
    )
    server_strength: StringProperty(
        name="Server's Strength",
        description="What the server takes, for its engine. Tick the box on the left to choose yourself",
        get=_server_strength,
    )
    strength_mask: PointerProperty(
        name="Strength Mask",
        description="A painted picture over the frame: where it is white the strength changes by the amount below, "
        "where it is black it stays",
        type=bpy.types.Image,
        poll=_is_still,
    )
    strength_mask_amount: FloatProperty(
        name="Mask Amount",
        description="Added to the strength where the mask is white: negative keeps more of what was seen there, "
        "positive invents more",
        default=-0.3,
        min=-1.0,
        max=1.0,
        subtype="FACTOR",
    )
    style_image: PointerProperty(
        name="Style",
        description="A picture whose look (light, materials, mood) is described into every prompt; what it shows is "
        "not copied",
        type=bpy.types.Image,
        poll=_is_still,
    )
    preset: StringProperty(
        name="Preset",
        description="How fast against how exact. The names come from the server; empty leaves the choice to it",
        default="",
    )
    seed: IntProperty(
        name="Seed", description="Another number gives another world from the same words", default=0, min=0
    )

    # ------------------------------------------------------------ advanced

    guidance: FloatProperty(
        name="Guidance",
        description="How strictly the prompt is followed; too high burns the colours. 0 takes the preset's",
        default=0.0,
        min=0.0,
        max=30.0,
        precision=1,
    )
    steps: IntProperty(
        name="Steps",
        description="Denoising steps: more take longer and give finer detail. 0 takes the preset's",
        default=0,
        min=0,
        max=1000,
    )
    cache_steps: IntProperty(
        name="World Steps",
        description="Steps that fit the splats to what was seen; 0 leaves the choice to the server's engine",
        default=0,
        min=0,
        max=100_000,
    )
    chunk: IntProperty(
        name="Chunk",
        description="Frames that are made at once: more hold together better and take more memory",
        default=49,
        min=5,
        max=201,
        step=4,
        update=_whole_chunk,
    )
    overlap: IntProperty(
        name="Overlap",
        description="Frames that each chunk takes over from the one before it: more make its beginning smoother",
        default=5,
        min=1,
        max=197,
        step=4,
        update=_whole_chunk,
    )
    graded_validity: BoolProperty(
        name="Soft Edges",
        description="Repaint gradually where the world is only partly sure, instead of fully or not at all",
        default=False,
    )

    # ------------------------------------------------------------ results

    directory: StringProperty(
        name="Output",
        description="Every generated shot gets a folder of its own in here",
        default="//worldwarp/",
        subtype="DIR_PATH",
        options=RELATIVE_PATH,
    )
    frame_format: EnumProperty(
        name="Frame Format",
        description="What each generated frame is written as",
        items=FRAME_FORMATS,
        default="PNG",
    )
    show_results: BoolProperty(
        name="Show as They Come",
        description="Put the frames behind the camera while they arrive, and the splats into the scene at the end",
        default=True,
    )
    live_opacity: FloatProperty(
        name="Opacity",
        description="How much the live view covers the scene in its viewport",
        default=1.0,
        min=0.0,
        max=1.0,
        subtype="FACTOR",
    )
    takes: CollectionProperty(
        name="Takes", description="Every shot that was generated of this scene", type=WORLDWARP_PG_take
    )
    active_take: IntProperty(name="Active Take", description="The take that is selected in the list", default=-1)
    shown_take: StringProperty(name="Shown Take", description="The folder of the take that the scene shows")
    earlier_take: StringProperty(name="Earlier Take", description="The folder of the take that it showed before")


CLASSES = (*takes.CLASSES, WORLDWARP_PG_shot)


def add() -> None:
    """Puts the group on every scene."""
    bpy.types.Scene.worldwarp = PointerProperty(type=WORLDWARP_PG_shot)


def remove() -> None:
    """Takes the group off again."""
    if hasattr(bpy.types.Scene, "worldwarp"):
        del bpy.types.Scene.worldwarp
