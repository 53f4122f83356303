# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands around a start frame from words: draw it, draw another, stop.

With a window the picture comes while the artist goes on working; in background the command returns when it is there.
"""

from __future__ import annotations

import random
from typing import ClassVar

import bpy
import numpy as np
from bpy.props import BoolProperty, StringProperty

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import FirstFrameSettings

from . import first_frame, session
from .advice import in_words
from .first_frame import Drawn, draw_on_server, keep, prompt_of, wish_of
from .operators import reported
from .preferences import connection
from .scenes import scene_with
from .shot import Stop, printed
from .shot_operators import facts_of_server, output_folder, told_in_panel

MAX_SEED = 2**31 - 1


def why_not_draw(context: bpy.types.Context) -> str:
    """Returns why no picture can be drawn now, or nothing."""
    if first_frame.drawing().running:
        return "A picture is being drawn already: cancel it, or wait until it is done"
    if not prompt_of(context.scene):
        return "Say what the first frame shows: type a prompt"
    facts = facts_of_server(context)
    if facts is not None and facts.draws is False:
        return f'The server\'s engine "{facts.engine}" has no model that draws from words: it needs --engine wan'
    return ""


class WORLDWARP_OT_draw_first_frame(bpy.types.Operator):
    """Have the server draw what the shot begins with from the prompt"""

    bl_idname = "worldwarp.draw_first_frame"
    bl_label = "Draw First Frame"
    # Not to be adjusted afterwards: that would draw it again.
    bl_options: ClassVar = {"UNDO"}

    another: BoolProperty(
        name="With Another Seed",
        description="Draw another picture from the same words; the earlier one stays in the list of images",
        default=False,
        options={"SKIP_SAVE"},
    )
    address: StringProperty(
        name="Server", description="Empty takes the address of the preferences", options={"SKIP_SAVE"}
    )

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        reason = why_not_draw(context)
        if reason:
            cls.poll_message_set(reason)
        return not reason

    @reported
    @told_in_panel
    def execute(self, context: bpy.types.Context) -> set[str]:
        scene = context.scene
        address, key = connection(context, self.address)
        if self.another:
            scene.worldwarp.first_seed = random.randrange(MAX_SEED)
        wish = wish_of(scene)
        if bpy.app.background:
            picture = draw_on_server(address, key, wish, printed, Stop().asked)
            self.report({"INFO"}, f'Drawn: "{keep_somewhere(scene, picture, wish).name}"')
        else:
            uid = scene.session_uid
            first_frame.begin(address, key, wish, lambda drawn: take(uid, wish, drawn))
        return {"FINISHED"}


class WORLDWARP_OT_cancel_first_frame(bpy.types.Operator):
    """Stop drawing the picture"""

    bl_idname = "worldwarp.cancel_first_frame"
    bl_label = "Cancel"
    bl_options: ClassVar = {"INTERNAL"}

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        drawing = first_frame.drawing()
        if not drawing.running:
            cls.poll_message_set("No picture is being drawn")
        elif drawing.cancelling:
            cls.poll_message_set("The picture is being cancelled already")
        return drawing.running and not drawing.cancelling

    def execute(self, context: bpy.types.Context) -> set[str]:
        first_frame.cancel()
        return {"FINISHED"}


CLASSES = (WORLDWARP_OT_draw_first_frame, WORLDWARP_OT_cancel_first_frame)


def take(scene_uid: int, wish: FirstFrameSettings, drawn: Drawn) -> None:
    """Makes a picture that has come the start image of its scene; tells in the panel why none has."""
    scene = scene_with(scene_uid)
    if drawn.error is not None and drawn.error.code != "cancelled":
        session.tell_error(in_words(drawn.error))
    if drawn.picture is None:
        return
    if scene is None:
        session.tell_error("The scene that a first frame was drawn for was removed meanwhile: the picture is gone.")
        return
    keep_somewhere(scene, drawn.picture, wish)
    # No operator is running, so nobody else makes this a step that can be undone.
    if not bpy.app.background:
        bpy.ops.ed.undo_push(message="WorldWarp First Frame")


def keep_somewhere(scene: bpy.types.Scene, picture: np.ndarray, wish: FirstFrameSettings) -> bpy.types.Image:
    """Returns the picture as its scene's start image: a file, or where none can be written, packed into the .blend."""
    try:
        return keep(scene, picture, wish, output_folder(scene))
    except WorldWarpError as error:
        session.tell_error(f"{in_words(error)} Until then the picture is kept within this file.")
        return keep(scene, picture, wish, None)
