# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats in the 3D viewport, below Blender 5.3: drawn over the scene, hidden by what stands before them.

Every splat object is drawn with its sky as one list, by the rules of the core's rasteriser: anisotropic, blended back
to front, with colours from the direction of view. The Gaussians rest in textures; for each viewport there is one more
texture with their order, and one with their colours, which may depend on the place of the eye. A thread works both out
anew when the view has turned or moved (the newest view wins), while the earlier ones are still shown; a timer asks for
a redraw when they are there. A large object is not seen before the thread has gone through it once. Depth is that of
the plane of each centre: the order changes when the view turns, not when it moves. Where a viewport takes light, light
is blended, as renders do.
"""

from __future__ import annotations

import functools
import threading
import time
import traceback
from dataclasses import dataclass, field

import bpy
import gpu
import numpy as np
from mathutils import Matrix, Vector

from worldwarp_core.splat_files.axes import sh_basis

from .small_steps import Steps, run_through, run_until
from .splat_nodes import C0, MAX_ALPHA, MIN_ALPHA
from .splats import BASE, ROTATION, SCALE, harmonics_in, is_native, is_splat_object, sky_of, values_of

WIDTH = 4096
"""Of all textures, in texels; every GPU has as much."""
BLUR_PX2 = 0.3
"""Added to the covariance in the picture, as the core's rasteriser does it: pixels are sampled at their centres."""
TURNED, MOVED = 1e-4, 1e-3
"""Of the direction of view (a unit vector), and of the eye in units of the splats' spread: less is nothing."""
POLL_S = 1 / 60
BUDGET_S = 0.005
"""Of the main thread, for each poll."""
DEGREES = {0: 0, 3: 1, 8: 2, 15: 3}
"""Coefficients beyond the first -> degree of the harmonics."""
AT_ONCE = 20_000
"""So many Gaussians are worked out while the viewport is drawn: that takes no longer than a glance."""
VIEWPORTS = 8
"""Orders are kept for so many; the longest unused goes first."""

VERTEX = """
vec4 of_splat(sampler2D table, int row)
{
  return texelFetch(table, ivec2(row % WIDTH, row / WIDTH), 0);
}

void main()
{
  int row = int(of_splat(order, gl_InstanceID).x);
  vec4 place = of_splat(places, row);
  vec4 q = normalize(of_splat(turns, row));
  vec3 size = of_splat(sizes, row).xyz;
  vec4 centre = view.model_view * vec4(place.xyz, 1.0);
  float opacity = place.w;
  bool perspective = view.projection[3][3] == 0.0;
  float depth = perspective ? -centre.z : 1.0;
  shade = vec4(of_splat(colours, row).rgb, opacity);
  inside = corner;
  if (depth <= 0.0 || opacity < MIN_ALPHA) {
    gl_Position = vec4(0.0, 0.0, -2.0, 1.0);
    return;
  }
  mat3 turn = mat3(
      1.0 - 2.0 * (q.z * q.z + q.w * q.w), 2.0 * (q.y * q.z + q.x * q.w), 2.0 * (q.y * q.w - q.x * q.z),
      2.0 * (q.y * q.z - q.x * q.w), 1.0 - 2.0 * (q.y * q.y + q.w * q.w), 2.0 * (q.z * q.w + q.x * q.y),
      2.0 * (q.y * q.w + q.x * q.z), 2.0 * (q.z * q.w - q.x * q.y), 1.0 - 2.0 * (q.y * q.y + q.z * q.z));
  mat3 axes = mat3(view.model_view) * turn;
  vec2 half_frame = vec2(1.0 / view.projection[0][0], 1.0 / view.projection[1][1]);
  /* Beside the picture the Jacobian is that of its edge. */
  vec2 shift = abs(vec2(view.projection[2][0], view.projection[2][1])) * half_frame;
  vec2 held = 1.3 * half_frame + shift;
  vec2 tangent = perspective ? clamp(centre.xy / depth, -held, held) : vec2(0.0);
  vec2 pixel = 2.0 * half_frame * depth / view.size.xy;
  float xx = BLUR_PX2 * pixel.x * pixel.x;
  float yy = BLUR_PX2 * pixel.y * pixel.y;
  float xy = 0.0;
  for (int k = 0; k < 3; k++) {
    vec3 along = axes[k] * size[k];
    vec2 across = along.xy + tangent * along.z;
    xx += across.x * across.x;
    xy += across.x * across.y;
    yy += across.y * across.y;
  }
  float middle = 0.5 * (xx + yy);
  float spread = length(vec2(0.5 * (xx - yy), xy));
  float angle = 0.5 * atan(xy, 0.5 * (xx - yy));
  if (spread == 0.0) {
    angle = 0.0;
  }
  float reach = sqrt(2.0 * log(opacity / MIN_ALPHA));
  vec2 long_axis = vec2(cos(angle), sin(angle));
  vec2 step_out = corner.x * sqrt(middle + spread) * long_axis
                  + corner.y * sqrt(max(middle - spread, 0.0)) * vec2(-long_axis.y, long_axis.x);
  gl_Position = view.projection * vec4(centre.xy + reach * step_out, centre.z, 1.0);
  /* A sky is farther than views are set to see. */
  gl_Position.z = min(gl_Position.z, gl_Position.w * 0.999999);
}
"""

FRAGMENT = """
void main()
{
  float square = dot(inside, inside);
  if (square > 1.0) {
    discard;
  }
  float alpha = min(shade.a * pow(shade.a / MIN_ALPHA, -square), MAX_ALPHA);
  vec3 light = mix(pow((shade.rgb + 0.055) / 1.055, vec3(2.4)), shade.rgb / 12.92, lessThan(shade.rgb, vec3(0.04045)));
  colour = vec4(view.size.z > 0.5 ? light : shade.rgb, alpha);
}
"""


@dataclass(frozen=True)
class Part:
    """The attributes of a splat object, or of its sky, as Blender has them."""

    means: np.ndarray
    turns: np.ndarray
    sizes: np.ndarray
    base: np.ndarray
    harmonics: list[np.ndarray]
    """(N, 3) for each coefficient beyond the first."""
    matrix: np.ndarray
    """(4, 4) from its own space into the object's."""


@dataclass(frozen=True)
class Gaussians:
    """A splat object and its sky in the object's own space, as they are drawn."""

    means: np.ndarray
    """(N, 3) float32."""
    base: np.ndarray
    """(N, 3) float32: what the colour is without direction, in the picture's own (sRGB) values."""
    shN: np.ndarray
    """(N, 0 | 3 | 8 | 15, 3) float32."""
    textures: dict[str, gpu.types.GPUTexture]
    middle: np.ndarray
    """(3,) median of the centres."""
    size: float
    """Median distance of the Gaussians from their middle along an axis: what moving is measured by."""
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    """What the textures are made of, until they are."""

    def __len__(self) -> int:
        return len(self.means)


@dataclass(frozen=True)
class Eye:
    """Where a view is seen from, in the object's space."""

    place: np.ndarray
    """(3,) of the eye."""
    forward: np.ndarray
    """(3,) unit vector into the picture."""


class Awaited:
    """What the thread leaves in `ready` for a redraw to take; a hidden object takes nothing."""

    ready: object
    told: object
    """What was ready when a redraw was asked for."""

    @property
    def is_news(self) -> bool:
        """Whether the thread has left what no redraw was asked for yet."""
        return self.ready is not None and self.ready is not self.told


@dataclass
class Sight(Awaited):
    """What is known of one object in one viewport: the newest order and colours, and those that are on the way."""

    gaussians: Gaussians
    eye: Eye
    """What the textures are for."""
    wanted: Eye
    """What was asked for last."""
    textures: dict[str, gpu.types.GPUTexture] = field(default_factory=dict)
    ready: tuple[Eye, np.ndarray, np.ndarray | None] | None = None
    """Set by the thread: the eye, the order (N,), and the colours (N, 3) where they changed."""
    told: object = None

    @property
    def is_coming(self) -> bool:
        """Whether the thread is still to leave something."""
        return self.ready is None and (self.eye is not self.wanted or not self.textures)


@dataclass
class Coming(Awaited):
    """A splat object whose Gaussians the thread works out."""

    reading: Steps[None] | None = None
    """What is left to read on the main thread; None when the thread has it."""
    parts: list[Part] = field(default_factory=list)
    ready: Gaussians | None = None
    """Set by the thread."""
    told: object = None

    @property
    def is_coming(self) -> bool:
        """As that of a sight."""
        return self.ready is None

    def read(self, thing: bpy.types.Object, sky: bpy.types.Object | None) -> Steps[None]:
        """Reads the object, in small steps."""
        self.parts = yield from parts_of(thing, sky)


# --- numbers, in the thread


def gaussians_of(parts: list[Part]) -> Gaussians:
    """Returns a splat object as it is drawn, with its sky as the second part; still without textures."""
    bands = min(len(part.harmonics) for part in parts)
    whole = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("means", "turns", "sizes", "base")
    }
    means, first = whole["means"], 0
    for part in parts:
        rows = slice(first, first + len(part.means))
        # The sky is a child at the very place of its parent, unless the artist moved it.
        if not np.array_equal(part.matrix, np.eye(4)):
            means[rows] = means[rows] @ part.matrix[:3, :3].T + part.matrix[:3, 3]
        first = rows.stop
    shN = np.empty((len(means), bands, 3), np.float32)
    for band in range(bands):
        np.concatenate([part.harmonics[band] for part in parts], out=shN[:, band])
    some = means[:: max(1, len(means) // 10_000)]
    middle = np.median(some, axis=0) if len(some) else np.zeros(3, np.float32)
    return Gaussians(
        means=means,
        base=0.5 + np.float32(C0) * whole["base"][:, :3],
        shN=shN,
        textures={},
        middle=middle,
        size=float(np.median(np.abs(some - middle))) if len(some) else 1.0,
        rows={
            "places": np.concatenate([means, whole["base"][:, 3:]], axis=1),
            "turns": whole["turns"],
            "sizes": whole["sizes"],
        },
    )


def farthest_first(means: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Returns (N,) rows in the order in which they are drawn.

    NumPy sorts 16 bits by counting, in a sixth of the time: so it is done twice, for the lower and the upper half of
    numbers that rise as the depths fall.
    """
    bits = (means @ -forward.astype(np.float32)).view(np.uint32)
    # IEEE floats read as integers: negative ones fall where they should rise, and come after the positive ones.
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    lower = np.argsort((bits & 0xFFFF).astype(np.uint16), kind="stable")
    return lower[np.argsort((bits >> 16).astype(np.uint16)[lower], kind="stable")]


def seen_colours(gaussians: Gaussians, place: np.ndarray) -> np.ndarray:
    """Returns (N, 3) float32 of the colours as they look from `place`, in the picture's own (sRGB) values."""
    colours = gaussians.base.copy()
    bands = gaussians.shN.shape[1]
    # In pieces that stay in the processor's cache.
    for start in range(0, len(gaussians) if bands else 0, 16_384):
        rows = slice(start, start + 16_384)
        away: np.ndarray = gaussians.means[rows] - place.astype(np.float32)
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
        basis = sh_basis(away, DEGREES[bands])[:, 1:].astype(np.float32)
        colours[rows] += np.matmul(basis[:, None], gaussians.shN[rows])[:, 0]
    return np.maximum(colours, 0, out=colours)


class Sorter:
    """One thread that brings sights up to date, the one that was wanted last first."""

    def __init__(self) -> None:
        self._waiting: list[Sight] = []
        self._coming: list[Coming] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="worldwarp splats", daemon=True)
        self._thread.start()

    def want(self, sight: Sight, eye: Eye) -> None:
        """Asks for a sight from `eye`; what was wanted of it before and is not begun is forgotten."""
        with self._wake:
            sight.wanted = eye
            self._waiting = [*(other for other in self._waiting if other is not sight), sight]
            self._wake.notify()

    def prepare(self, coming: Coming) -> None:
        """Asks for the Gaussians of an object, before any sight."""
        with self._wake:
            self._coming.append(coming)
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread, after what it is at."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _work(self) -> None:
        # Nothing in here may touch bpy or gpu.
        while True:
            with self._wake:
                while not (self._waiting or self._coming or self._closed):
                    self._wake.wait()
                if self._closed:
                    return
                coming = self._coming.pop(0) if self._coming else None
                if coming is None:
                    sight = self._waiting.pop()
                    eye = sight.wanted
            try:
                if coming is not None:
                    coming.ready = gaussians_of(coming.parts)
                else:
                    bring_up_to_date(sight, eye)
            except Exception:
                # An object that was edited while it was read is read anew; the others must not wait for ever.
                traceback.print_exc()


def bring_up_to_date(sight: Sight, eye: Eye) -> None:
    """Leaves in `sight.ready` what it takes to draw it from `eye`."""
    order = farthest_first(sight.gaussians.means, eye.forward)
    bands = sight.gaussians.shN.shape[1]
    coloured = not sight.textures or (bands > 0 and not np.array_equal(sight.eye.place, eye.place))
    sight.ready = (eye, order, seen_colours(sight.gaussians, eye.place) if coloured else None)


def has_turned(before: Eye, now: Eye) -> bool:
    """Returns whether splats come in another order."""
    return bool(np.abs(before.forward - now.forward).max() > TURNED)


def has_moved(gaussians: Gaussians, before: Eye, now: Eye) -> bool:
    """Returns whether splats have other colours."""
    return bool(gaussians.shN.shape[1] and np.abs(before.place - now.place).max() > MOVED * gaussians.size)


# --- on the GPU


def table(values: np.ndarray, precision: str = "RGBA32F") -> gpu.types.GPUTexture:
    """Returns a texture that holds the rows of `values` (N, up to 4), or of (N,) in its first channel."""
    rows = max(1, -(-len(values) // WIDTH))
    channels = 1 if precision == "R32F" else 4
    texels = np.zeros((rows * WIDTH, channels), np.float32)
    texels[: len(values), : values.shape[1] if values.ndim == 2 else 1] = values.reshape(len(values), -1)
    # The array is handed over whole; a list of a million numbers takes seconds.
    buffer = gpu.types.Buffer("FLOAT", texels.size, texels.reshape(-1))
    return gpu.types.GPUTexture((WIDTH, rows), format=precision, data=buffer)


def upload(gaussians: Gaussians) -> None:
    """Puts what does not change with the view where the GPU sees it."""
    for name, rows in gaussians.rows.items():
        gaussians.textures[name] = table(rows)
    gaussians.rows.clear()


def take_over(sight: Sight) -> None:
    """Puts what the thread has made ready where the GPU sees it."""
    if sight.ready is None:
        return
    eye, order, colours = sight.ready
    sight.ready = None
    sight.textures["order"] = table(order, "R32F")
    if colours is not None:
        sight.textures["colours"] = table(colours, "RGBA16F")
    sight.eye = eye


@functools.cache
def splat_shader() -> gpu.types.GPUShader:
    """Returns the shader that draws a quad for each instance."""
    info = gpu.types.GPUShaderCreateInfo()
    info.typedef_source("struct View { mat4 model_view; mat4 projection; vec4 size; };")
    info.uniform_buf(0, "View", "view")
    for slot, name in enumerate(("order", "places", "turns", "sizes", "colours")):
        info.sampler(slot, "FLOAT_2D", name)
    for name, value in (("WIDTH", WIDTH), ("BLUR_PX2", BLUR_PX2), ("MIN_ALPHA", MIN_ALPHA), ("MAX_ALPHA", MAX_ALPHA)):
        info.define(name, str(value))
    info.vertex_in(0, "VEC2", "corner")
    passed = gpu.types.GPUStageInterfaceInfo("splat_passed")
    passed.smooth("VEC2", "inside")
    passed.flat("VEC4", "shade")
    info.vertex_out(passed)
    info.fragment_out(0, "VEC4", "colour")
    info.vertex_source(VERTEX)
    info.fragment_source(FRAGMENT)
    return gpu.shader.create_from_info(info)


def warm_up() -> None:
    """Has the shader compiled now, where the window waits anyway, and not when the first world is there."""
    if _handle is not None:
        splat_shader()


@functools.cache
def quad() -> gpu.types.GPUBatch:
    """Returns the square from -1 to 1 that every Gaussian is drawn with."""
    form = gpu.types.GPUVertFormat()
    form.attr_add(id="corner", comp_type="F32", len=2, fetch_mode="FLOAT")
    corners = gpu.types.GPUVertBuf(form, 4)
    corners.attr_fill("corner", np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)], np.float32))
    return gpu.types.GPUBatch(type="TRI_STRIP", buf=corners)


def paint(sight: Sight, model_view: Matrix, projection: Matrix, width: int, height: int, *, as_light: bool) -> None:
    """Draws a sight over what the framebuffer holds, behind what its depth says is nearer.

    Args:
        model_view: from the object into the view (x to the right, y up, z backward).
        projection: of the view, as OpenGL has it.
        width: and height: of the viewport, in pixels.
        as_light: write linear light, which a viewport turns into sRGB itself.
    """
    numbers = [*np.array(model_view).T.ravel(), *np.array(projection).T.ravel(), width, height, as_light, 0.0]
    shader = splat_shader()
    shader.bind()
    # Held until it was drawn: the shader does not.
    block = gpu.types.GPUUniformBuf(np.array(numbers, np.float32).tobytes())
    shader.uniform_block("view", block)
    for name, texture in (*sight.gaussians.textures.items(), *sight.textures.items()):
        shader.uniform_sampler(name, texture)
    gpu.state.blend_set("ALPHA")
    gpu.state.depth_test_set("LESS_EQUAL")
    gpu.state.depth_mask_set(False)
    quad().draw_instanced(shader, instance_count=len(sight.gaussians))
    gpu.state.blend_set("NONE")
    gpu.state.depth_test_set("NONE")


def eye_of(model_view: Matrix) -> Eye:
    """Returns where a view is seen from, in the space that `model_view` comes from."""
    back = np.array(model_view.inverted_safe())
    forward = -np.array(model_view)[2, :3]
    return Eye(back[:3, 3], forward / max(np.linalg.norm(forward), 1e-12))


# --- in Blender's viewports


def parts_of(thing: bpy.types.Object, sky: bpy.types.Object | None) -> Steps[list[Part]]:
    """Makes copies of the attributes of a splat object, and of the sky that is its child, one at a time."""
    parts = []
    for part in (thing,) if sky is None else (thing, sky):
        copies = {}
        for name in ("position", ROTATION.name, SCALE.name, BASE.name, *harmonics_in(part.data)):
            copies[name] = values_of(part.data.attributes[name])
            yield
        matrix = np.eye(4) if part is thing else thing.matrix_world.inverted_safe() @ part.matrix_world
        means, turns, sizes, base, *harmonics = copies.values()
        parts.append(Part(means, turns, sizes, base, harmonics, np.array(matrix, np.float32)))
    return parts


class Drawings:
    """All that is kept between two redraws."""

    def __init__(self) -> None:
        self.gaussians: dict[tuple[int, ...], Gaussians] = {}
        """By the data of an object and its sky."""
        self.sights: dict[tuple[int, ...], Sight] = {}
        """By the viewport's region and the same data, the one that was drawn last at the end."""
        self.coming: dict[tuple[int, ...], Coming] = {}
        """By the same data as the Gaussians."""
        self.sorter = Sorter()

    def sight(
        self, region: bpy.types.Region, thing: bpy.types.Object, sky: bpy.types.Object | None, eye: Eye
    ) -> Sight | None:
        """Returns what is known of an object in a viewport; None where it is still being worked out."""
        data = (thing.data.session_uid,) if sky is None else (thing.data.session_uid, sky.data.session_uid)
        gaussians = self.gaussians.get(data) or self._arrived(data, thing, sky)
        if gaussians is None:
            return None
        key = (region.as_pointer(), *data)
        sight = self.sights.pop(key, None)
        if sight is None or sight.gaussians is not gaussians:
            sight = Sight(gaussians, eye, eye)
            if len(gaussians) > AT_ONCE:
                self.sorter.want(sight, eye)
            else:
                bring_up_to_date(sight, eye)
        self.sights[key] = sight
        while len(self.sights) > VIEWPORTS:
            del self.sights[next(iter(self.sights))]
        return sight

    def _arrived(
        self, data: tuple[int, ...], thing: bpy.types.Object, sky: bpy.types.Object | None
    ) -> Gaussians | None:
        """Returns an object's Gaussians once the thread has them; those of a small object at once."""
        coming = self.coming.get(data)
        if coming is None:
            coming = self.coming[data] = Coming()
            coming.reading = coming.read(thing, sky)
            if len(thing.data.attributes["position"].data) <= AT_ONCE:
                run_through(coming.reading)
                coming.reading, coming.ready = None, gaussians_of(coming.parts)
        # Read once: the thread may leave them at any moment, and they are not to be drawn before they are uploaded.
        ready = coming.ready
        if ready is not None:
            del self.coming[data]
            self.gaussians[data] = ready
            upload(ready)
        return ready

    def go_on(self, until_s: float) -> None:
        """Goes on reading what is to come until the time is up; then it is the thread's turn."""
        for data, coming in list(self.coming.items()):
            if coming.reading is None:
                continue
            try:
                if run_until(coming.reading, until_s):
                    coming.reading = None
                    self.sorter.prepare(coming)
            except (ReferenceError, KeyError):
                # It was removed, or edited, meanwhile: what is drawn next begins anew.
                del self.coming[data]
            return

    def tell_news(self) -> bool:
        """Returns whether the thread has left something that is to be drawn; each thing is told of once."""
        news = [one for one in self._awaited if one.is_news]
        for one in news:
            one.told = one.ready
        return bool(news)

    @property
    def busy(self) -> bool:
        """Whether something is still to come, or to be told of."""
        return any(one.is_coming or one.is_news for one in self._awaited)

    @property
    def _awaited(self) -> list[Coming | Sight]:
        return [*self.coming.values(), *self.sights.values()]

    def forget(self, data: set[int]) -> None:
        """Lets go of all that was made from these data, by their session_uid."""
        self.gaussians = {key: value for key, value in self.gaussians.items() if data.isdisjoint(key)}
        self.coming = {key: value for key, value in self.coming.items() if data.isdisjoint(key)}
        self.sights = {key: value for key, value in self.sights.items() if data.isdisjoint(key[1:])}


_drawings: Drawings | None = None
_names: dict[tuple[int, str], tuple[str, ...]] = {}
"""Of the splat objects of a scene's view layer, until anything changes: with thousands of objects a look at each takes
longer than a redraw may."""
_handle: object | None = None


def add() -> None:
    """Draws splats in all viewports from now on; there are none in background mode."""
    global _handle
    if bpy.app.background or _handle is not None:
        return
    _handle = bpy.types.SpaceView3D.draw_handler_add(draw, (), "WINDOW", "POST_VIEW")
    bpy.app.handlers.depsgraph_update_post.append(follow_edits)
    bpy.app.handlers.load_pre.append(forget_all)


def remove() -> None:
    """Takes back what `add` did."""
    global _handle
    forget_all()
    if _handle is None:
        return
    bpy.types.SpaceView3D.draw_handler_remove(_handle, "WINDOW")
    _handle = None
    bpy.app.handlers.depsgraph_update_post.remove(follow_edits)
    bpy.app.handlers.load_pre.remove(forget_all)


def draw() -> None:
    """Draws every splat object that the viewport shows; called by Blender after the scene was drawn."""
    global _drawings
    region, view = bpy.context.region, bpy.context.region_data
    shown = splats_shown(bpy.context)
    if not shown:
        return
    _drawings = _drawings or Drawings()
    sights = []
    for thing, sky in shown:
        model_view = view.view_matrix @ thing.matrix_world
        eye = eye_of(model_view)
        sight = _drawings.sight(region, thing, sky, eye)
        if sight is None:
            continue
        take_over(sight)
        moved = has_moved(sight.gaussians, sight.wanted, eye)
        if moved or has_turned(sight.wanted, eye):
            # The place is that of the colours: many small steps are a large one.
            _drawings.sorter.want(sight, Eye(eye.place if moved else sight.wanted.place, eye.forward))
        if sight.textures:
            middle = model_view @ Vector(sight.gaussians.middle)
            sights.append((middle.z, sight, model_view))
    if _drawings.busy and not bpy.app.timers.is_registered(poll):
        bpy.app.timers.register(poll, first_interval=POLL_S)
    # Of several worlds the nearer is drawn over the farther.
    for _, sight, model_view in sorted(sights, key=lambda entry: entry[0]):
        paint(sight, model_view, view.window_matrix, region.width, region.height, as_light=True)


def splats_shown(context: bpy.types.Context) -> list[tuple[bpy.types.Object, bpy.types.Object | None]]:
    """Returns the splat objects that a viewport shows, each with its sky if that is shown too."""

    def visible(thing: bpy.types.Object) -> bool:
        return thing.visible_get() and thing.visible_in_viewport_get(context.space_data)

    found = [thing for thing in splats_in(context.view_layer) if not is_native(thing)]
    skies = {sky for thing in found for sky in sky_of(thing)}
    shown = []
    for thing in found:
        if thing not in skies and visible(thing):
            # The sky of a world that was appended as an asset came along, and is in no scene.
            skies_shown = (sky for sky in sky_of(thing) if not sky.users_scene or visible(sky))
            shown.append((thing, next(skies_shown, None)))
    return shown


def splats_in(view_layer: bpy.types.ViewLayer) -> list[bpy.types.Object]:
    """Returns the splat objects of a view layer; looks through all of its objects only where something has changed."""
    key = (view_layer.id_data.session_uid, view_layer.name)
    if key in _names:
        found = [view_layer.objects.get(name) for name in _names[key]]
        # A new name is no change that Blender tells of.
        if all(is_splat_object(thing) for thing in found):
            return found
    found = [thing for thing in view_layer.objects if is_splat_object(thing)]
    _names[key] = tuple(thing.name for thing in found)
    return found


def poll() -> float | None:
    """Asks for a redraw when the thread has something ready; ends when nothing is on the way."""
    if _drawings is None:
        return None
    _drawings.go_on(time.perf_counter() + BUDGET_S)
    if _drawings.tell_news():
        redraw()
    return POLL_S if _drawings.busy else None


def redraw() -> None:
    """Has all 3D viewports drawn again."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()


@bpy.app.handlers.persistent
def follow_edits(scene: bpy.types.Scene, depsgraph: bpy.types.Depsgraph) -> None:
    """Lets go of what was drawn of data that were edited or are gone."""
    _names.clear()
    if _drawings is None:
        return
    kept = {uid for key in (*_drawings.gaussians, *_drawings.coming) for uid in key}
    there = {data.session_uid for kind in (bpy.data.meshes, bpy.data.pointclouds) for data in kind}
    edited = {
        update.id.original.session_uid
        for update in depsgraph.updates
        if update.is_updated_geometry and isinstance(update.id, (bpy.types.Mesh, bpy.types.PointCloud))
    }
    if gone := (kept - there) | (kept & edited):
        _drawings.forget(gone)


@bpy.app.handlers.persistent
def forget_all(*_: object) -> None:
    """Ends the thread and lets go of everything, before another file comes."""
    global _drawings
    _names.clear()
    if bpy.app.timers.is_registered(poll):
        bpy.app.timers.unregister(poll)
    if _drawings is not None:
        _drawings.sorter.close()
        _drawings = None
