# SPDX-License-Identifier: GPL-3.0-or-later
"""The live view: the selected take's world as it grows, seen from wherever the artist looks in one 3D viewport.

The server renders, a thread fetches (world_watcher.py), a handler of the viewport draws the newest picture over the
scene and says where it is seen from. While the view moves, pictures are as small as it takes to come fast; when it
stands still they are as sharp as the viewport. It belongs to the viewport that it was switched on in, lasts until it is
switched off there, and follows the list of takes.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import blf
import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader

from engine_bridge.keys import ClientKey
from worldwarp_core.errors import WorldWarpError

from .advice import in_words
from .preferences import connection
from .takes import active_take, refresh
from .world_watcher import WorldWatcher

TICK_S = 1 / 30
STILL_S = 0.2
"""A view that has not moved for so long stands still."""
FOLLOW_S = 0.5
"""Between two looks at which take is selected."""
MOVING_MS = 60.0
"""How long a picture may take while the view moves."""
MOVING_SCALE = 0.5
"""Of the viewport, before it is known how long pictures take."""
MIN_PIXELS = 160 * 90
MAX_SIDE_PX = 1920
TEXT_PX = 13
MARGIN_PX = 14


@dataclass(frozen=True)
class Eye:
    """Where a viewport is seen from.

    Attributes:
        projection: (4, 4) as OpenGL has it.
        c2w: (4, 4) camera to world, OpenCV's axes.
        width, height: of the region, in pixels.
    """

    projection: np.ndarray
    c2w: np.ndarray
    width: int
    height: int

    def is_at(self, other: Eye) -> bool:
        """Returns whether both see the same picture."""
        same_size = (self.width, self.height) == (other.width, other.height)
        return same_size and np.array_equal(self.c2w, other.c2w) and np.array_equal(self.projection, other.projection)

    def size(self, most_pixels: float) -> tuple[int, int]:
        """Returns (width, height) of the largest picture of the region's aspect with at most so many pixels."""
        scale = min(1.0, (most_pixels / (self.width * self.height)) ** 0.5, MAX_SIDE_PX / max(self.width, self.height))
        return max(round(self.width * scale), 1), max(round(self.height * scale), 1)

    def K(self, width: int, height: int) -> np.ndarray:
        """Returns fx, fy, cx, cy of a picture of that size: pixels, origin at its top left corner."""
        p = self.projection
        return np.array(
            [p[0, 0] * width / 2, p[1, 1] * height / 2, width / 2 * (1 - p[0, 2]), height / 2 * (1 + p[1, 2])]
        )


@dataclass
class Live:
    """The viewport that shows it, and what is shown. Only the main thread reads and writes it."""

    space: int
    """Of the viewport, as Blender points to it."""
    watcher: WorldWatcher | None = None
    eye: Eye | None = None
    """What was asked for last."""
    asked_size: tuple[int, int] = (0, 0)
    moved_s: float = 0.0
    texture: gpu.types.GPUTexture | None = None
    words: str = ""
    followed_s: float = -float("inf")


_live: Live | None = None
_handle: object | None = None


def is_on(space: bpy.types.Space | None) -> bool:
    """Returns whether this viewport shows the live view."""
    return _live is not None and space is not None and _live.space == space.as_pointer()


def start(context: bpy.types.Context) -> None:
    """Shows the selected take's world in the context's viewport, in place of another that showed it.

    Raises:
        WorldWarpError: `offline`, or `bad_keys`.
    """
    global _live
    close()
    connection(context)
    _live = Live(context.space_data.as_pointer())
    follow(_live, context)
    bpy.app.timers.register(tick, first_interval=TICK_S, persistent=True)


def close() -> None:
    """Ends the live view and its thread; before unregistering, another file and exit."""
    global _live
    if bpy.app.timers.is_registered(tick):
        bpy.app.timers.unregister(tick)
    if _live is not None:
        let_go(_live)
        _live = None


def let_go(live: Live) -> None:
    """Ends the thread, without waiting for it longer than a moment: it touches nothing of Blender's."""
    if live.watcher is not None:
        live.watcher.close(0.2)
    live.watcher, live.texture, live.eye = None, None, None


def follow(live: Live, context: bpy.types.Context) -> None:
    """Watches the world of the take that is selected now."""
    live.followed_s = time.monotonic()
    take = active_take(context.scene)
    if take is not None and not take.job_id:
        refresh(take)
    job_id = take.job_id if take is not None else ""
    if live.watcher is not None and live.watcher.job_id == job_id:
        return
    let_go(live)
    if not job_id:
        live.words = "Live view: no take is selected" if take is None else f"Live view: {take.name} is being sent..."
        return
    try:
        address, key = connection(context)
    except WorldWarpError as error:
        live.words = f"Live view: {in_words(error)}"
        return
    live.watcher = watch(address, key, job_id)


def watch(address: str, key: ClientKey | None, job_id: str) -> WorldWatcher:
    """Returns what looks at the job's world."""
    return WorldWatcher(address, key, job_id)


# ---------------------------------------------------------------- on the main thread, a few times a second


def tick() -> float | None:
    """Has the viewport drawn again when there is news; returns the seconds to the next look, None after the last."""
    if _live is None:
        return None
    area = area_of(_live.space)
    if area is None:
        # The viewport was closed, or became another editor.
        close()
        return None
    now_s = time.monotonic()
    if now_s - _live.followed_s > FOLLOW_S:
        follow(_live, bpy.context)
    if _live.watcher is not None:
        sharpen(_live, now_s)
    words = words_of(_live, bpy.context)
    if words != _live.words or (_live.watcher is not None and _live.watcher.has_news):
        _live.words = words
        area.tag_redraw()
    return TICK_S


def area_of(space: int) -> bpy.types.Area | None:
    """Returns the area that shows the viewport, or None where none does."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D" and area.spaces.active.as_pointer() == space:
                return area
    return None


def want(live: Live, eye: Eye, now_s: float) -> None:
    """Asks for what `eye` sees, small as long as it moves, unless that was asked for already."""
    if live.watcher is None or (live.eye is not None and live.eye.is_at(eye)):
        return
    first = live.eye is None
    live.eye, live.moved_s = eye, now_s
    ask(live, eye, eye.size(moving_pixels(live.watcher, eye)) if not first else eye.size(np.inf))


def sharpen(live: Live, now_s: float) -> None:
    """Asks for a sharp picture of a view that has come to stand."""
    if live.eye is not None and now_s - live.moved_s > STILL_S and live.asked_size != live.eye.size(np.inf):
        ask(live, live.eye, live.eye.size(np.inf))


def ask(live: Live, eye: Eye, size: tuple[int, int]) -> None:
    assert live.watcher is not None
    live.asked_size = size
    live.watcher.look(eye.K(*size), eye.c2w, *size)


def moving_pixels(watcher: WorldWatcher, eye: Eye) -> float:
    """Returns how many pixels a picture may have to come in time."""
    if not watcher.cost_ms:
        return eye.width * eye.height * MOVING_SCALE**2
    return max(MOVING_MS / watcher.cost_ms * 1e6, MIN_PIXELS)


def words_of(live: Live, context: bpy.types.Context) -> str:
    """Returns what is written over the view."""
    if live.watcher is None:
        return live.words
    take = active_take(context.scene)
    name = take.name if take is not None else ""
    return f"Live view of {name}: {live.watcher.words}" if live.watcher.words else f"Live view of {name}"


# ---------------------------------------------------------------- in the viewport


def eye_of(view: Any, width: int, height: int) -> Eye:
    """Returns where a viewport (its `RegionView3D`) of that many pixels is seen from."""
    c2w = np.array(view.view_matrix.inverted(), np.float64)
    c2w[:3, :3] /= np.linalg.norm(c2w[:3, :3], axis=0)
    # Blender's cameras look along -z with y up, OpenCV's along z with y down.
    c2w[:3, 1:3] *= -1
    return Eye(np.array(view.window_matrix, np.float64), c2w, width, height)


def add() -> None:
    """Has viewports call us; safe to call again."""
    global _handle
    if _handle is None:
        _handle = bpy.types.SpaceView3D.draw_handler_add(draw, (), "WINDOW", "POST_PIXEL")


def remove() -> None:
    """Takes that back."""
    global _handle
    close()
    if _handle is not None:
        bpy.types.SpaceView3D.draw_handler_remove(_handle, "WINDOW")
        _handle = None


def draw() -> None:
    """Draws the newest picture over the viewport that the live view belongs to, and asks for the next."""
    context = bpy.context
    live, region, view = _live, context.region, context.region_data
    # Of a viewport in four parts only the free one is meant.
    if live is None or live.space != context.space_data.as_pointer() or view != context.space_data.region_3d:
        return
    if not view.is_perspective:
        draw_words(context, "Live view: orthographic views are not supported. Numpad 5 changes to perspective")
        return
    want(live, eye_of(view, region.width, region.height), time.monotonic())
    texels = live.watcher.take() if live.watcher is not None else None
    if texels is not None:
        height, width = texels.shape[:2]
        data = gpu.types.Buffer("FLOAT", texels.size, texels.reshape(-1))
        # Marked as sRGB it is read as light, which is what a viewport takes from a shader of one's own.
        live.texture = gpu.types.GPUTexture((width, height), format="SRGB8_A8", data=data)
    if live.texture is not None:
        draw_picture(live.texture, context.scene.worldwarp.live_opacity)
    draw_words(context, live.words)


@functools.cache
def picture_shader() -> gpu.types.GPUShader:
    """Returns the shader that draws a texture over all of a region.

    Not Blender's own, which hands on what it reads up to 4.3 and takes it for sRGB by 5.2.
    """
    info = gpu.types.GPUShaderCreateInfo()
    info.sampler(0, "FLOAT_2D", "picture")
    info.push_constant("FLOAT", "opacity")
    info.vertex_in(0, "VEC2", "corner")
    passed = gpu.types.GPUStageInterfaceInfo("live_view_passed")
    passed.smooth("VEC2", "place")
    info.vertex_out(passed)
    info.fragment_out(0, "VEC4", "colour")
    info.vertex_source("void main() { place = corner; gl_Position = vec4(2.0 * corner - 1.0, 0.0, 1.0); }")
    info.fragment_source("void main() { colour = vec4(texture(picture, place).rgb, opacity); }")
    return gpu.shader.create_from_info(info)


def draw_picture(texture: gpu.types.GPUTexture, opacity: float) -> None:
    """Draws a picture over all of a region."""
    shader = picture_shader()
    batch = batch_for_shader(shader, "TRI_FAN", {"corner": ((0, 0), (1, 0), (1, 1), (0, 1))})
    gpu.state.blend_set("ALPHA")
    shader.bind()
    shader.uniform_sampler("picture", texture)
    shader.uniform_float("opacity", opacity)
    batch.draw(shader)
    gpu.state.blend_set("NONE")


def draw_words(context: bpy.types.Context, words: str) -> None:
    """Writes a line at the bottom of the viewport."""
    scale = context.preferences.system.ui_scale
    blf.size(0, TEXT_PX * scale)
    blf.enable(0, blf.SHADOW)
    blf.shadow(0, 3, 0.0, 0.0, 0.0, 0.9)
    blf.color(0, 1.0, 1.0, 1.0, 1.0)
    blf.position(0, MARGIN_PX * scale, MARGIN_PX * scale, 0)
    blf.draw(0, words)
    blf.disable(0, blf.SHADOW)
