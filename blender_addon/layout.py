# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout that the generated world keeps: how far the scene's own surfaces are along the path, frame after frame.

In: a scene and the cameras exported from it. Out: a `PathDepth`, planar z in scene units at the pixel centres. Each
step renders one frame and puts everything back, so that with a window the artist goes on between two of them.

With a window Workbench renders it: it is the fastest, loads no textures, and its depth is exact to a few millionths.
Cycles, one ray a pixel, does where Workbench's depth buffer is too coarse for how far the camera sees, and in
background: without a graphics card to draw with, Workbench would take Blender down with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import bpy
import numpy as np

from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import BACKGROUND_DEPTH, PATH_DEPTH_PIXELS, PathDepth

from .camera_export import camera_to_world, crop_box, filming_camera, frame_kept, full_size, intrinsics
from .scenes import scene_with
from .splats import is_splat_object
from .start_frame import (
    centre_rays,
    kept,
    read_depth,
    render,
    save_render_result,
    select_cycles,
    sharp_render,
    temporary_folder,
)

EVERY = 4
"""Every so many frames are measured, and the last; between them the nearest is followed, which is as good."""
MAX_BYTES = 256 * 2**20
"""Of all maps in half precision: longer paths are measured more sparsely, to fit into a message beside all else."""
FINE_DEPTHS = 8_000
"""Times the camera's clip start: so far Workbench's depth buffer is fine to a tenth of a percent."""
SKETCHES = ("GPENCIL", "GREASEPENCIL")
"""Drawings are no surfaces; Cycles does not render them either."""


class LayoutMeasurement:
    """The depth of some of a path's frames, measured one at a time.

    Args:
        context: its scene and view layer are measured.
        cameras: as they were exported from the scene.
        without: the name of a collection whose objects are left out; "" leaves out WorldWarp's own alone.
        every: which frames.
        size: (width, height) of the maps; None takes about `PATH_DEPTH_PIXELS` of the cameras' aspect.
    """

    def __init__(
        self,
        context: bpy.types.Context,
        cameras: CameraPath,
        without: str = "",
        every: int = EVERY,
        size: tuple[int, int] | None = None,
    ) -> None:
        # No references, because an undo between two steps leaves none valid.
        self._scene, self._view_layer, self._without = context.scene.session_uid, context.view_layer.name, without
        self._cameras = cameras
        self._size = size or map_size(cameras.width, cameras.height)
        self._indices = frames_to_measure(len(cameras), self._size, every)
        self.maps: list[np.ndarray] = []
        """(h, w) float32 of the frames measured so far, `BACKGROUND_DEPTH` where nothing is."""
        self.engine = "CYCLES" if bpy.app.background else "BLENDER_WORKBENCH"
        self.notice = ""
        """What the artist should know of how it was measured."""

    @property
    def total(self) -> int:
        return len(self._indices)

    @property
    def done(self) -> int:
        return len(self.maps)

    def step(self) -> None:
        """Measures the next frame; on Blender's main thread.

        Raises:
            WorldWarpError: `camera_changed` when the scene no longer is as the cameras were exported, or
                `render_failed`.
        """
        scene = scene_with(self._scene)
        view_layer = scene.view_layers.get(self._view_layer) if scene is not None else None
        if scene is None or view_layer is None:
            raise WorldWarpError(
                "camera_changed",
                "The scene, or its view layer, was removed while its layout was measured. Generate again.",
            )
        if self._without and self._without not in bpy.data.collections:
            raise WorldWarpError(
                "camera_changed",
                f'The collection "{self._without}", which is left out, was renamed or removed while the layout was '
                "measured. Generate again.",
            )
        index = self._indices[len(self.maps)]
        self.maps.append(self._measured(scene, view_layer, index))

    def result(self) -> PathDepth:
        """Returns the maps, once all frames are measured."""
        assert self.done == self.total, (self.done, self.total)
        return PathDepth.of([int(self._cameras.frames[index]) for index in self._indices], self.maps)

    def _measured(self, scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer, index: int) -> np.ndarray:
        """Returns (h, w) float32 of one frame, `BACKGROUND_DEPTH` where nothing is."""
        with ExitStack() as stack:
            stack.enter_context(frame_kept(scene))
            stack.enter_context(left_out(scene, bpy.data.collections.get(self._without)))
            folder = stack.enter_context(temporary_folder())
            seen = stack.enter_context(reduced_frame(scene, self._cameras, self._size))
            scene.frame_set(int(self._cameras.frames[index]))
            with bpy.context.temp_override(scene=scene, view_layer=view_layer):
                depsgraph = bpy.context.evaluated_depsgraph_get()
                camera = filming_camera(scene, depsgraph, int(self._cameras.frames[index]))
                check_same(camera, scene, self._cameras, index, seen)
                clip_start = camera.data.clip_start
                stack.enter_context(sharp_render(scene, view_layer, camera.original))
                depth = self._rendered(scene, folder / "depth.exr", clip_start)
        return seen.cropped(depth)

    def _rendered(self, scene: bpy.types.Scene, path: Path, clip_start: float) -> np.ndarray:
        if self.engine == "BLENDER_WORKBENCH":
            with solid_render(scene):
                render(scene)
                depth = read_depth(save_render_result(scene, path, "OPEN_EXR_MULTILAYER"))
            surfaces = depth[depth < 0.99 * BACKGROUND_DEPTH]
            if surfaces.size == 0 or float(surfaces.max()) <= FINE_DEPTHS * clip_start:
                return depth
            self.engine = "CYCLES"
            self.notice = (
                "The layout was measured with Cycles, which takes longer: the camera sees farther than "
                f"{FINE_DEPTHS:,} times its clip start. A larger clip start is faster."
            )
        with ExitStack() as stack:
            select_cycles(scene, stack)
            stack.enter_context(kept(scene.cycles, device="CPU"))
            stack.enter_context(centre_rays(scene))
            render(scene)
            return read_depth(save_render_result(scene, path, "OPEN_EXR_MULTILAYER"))


def map_size(width: int, height: int) -> tuple[int, int]:
    """Returns the (width, height) of a path's maps for frames of that size."""
    shrink = min(1.0, (PATH_DEPTH_PIXELS / (width * height)) ** 0.5)
    return max(round(width * shrink), 4), max(round(height * shrink), 4)


def frames_to_measure(count: int, size: tuple[int, int], every: int = EVERY) -> list[int]:
    """Returns which of a path's `count` frames are measured: every so many, the first and the last among them."""
    most = max(MAX_BYTES // (2 * size[0] * size[1]), 2)
    step = max(every, -(-(count - 1) // (most - 1)) if count > 1 else 1)
    return sorted({*range(0, count, step), count - 1})


# ---------------------------------------------------------------- the scene while it is measured


@contextmanager
def left_out(scene: bpy.types.Scene, collection: bpy.types.Collection | None) -> Iterator[None]:
    """Hides from renders what is no part of the layout: what WorldWarp brought in, drawings, and a collection."""
    without = set(collection.all_objects) if collection is not None else set()
    without |= {thing for thing in scene.objects if is_generated(thing) or thing.type in SKETCHES}
    with ExitStack() as stack:
        if collection is not None:
            stack.enter_context(kept(collection, hide_render=True))
        for thing in without:
            if not thing.hide_render:
                stack.enter_context(kept(thing, hide_render=True))
        yield


def is_generated(thing: bpy.types.Object) -> bool:
    """Returns whether WorldWarp brought the object in: splats, and whatever carries a mark of ours."""
    return is_splat_object(thing) or any(key.startswith("worldwarp") for key in thing.keys())  # noqa: SIM118


@contextmanager
def solid_render(scene: bpy.types.Scene) -> Iterator[None]:
    """Makes Workbench render every surface as opaque, seen through the centre of every pixel."""
    with (
        kept(scene.render, engine="BLENDER_WORKBENCH"),
        kept(scene.display, render_aa="OFF"),
        kept(
            scene.display.shading,
            type="SOLID",
            # A material's or an object's colour may be transparent, and leave no depth.
            color_type="SINGLE",
            show_xray=False,
            show_backface_culling=False,
            show_shadows=False,
            show_cavity=False,
            show_object_outline=False,
            use_dof=False,
        ),
    ):
        yield


class ReducedFrame:
    """How a map lies in the frame that is rendered for it: all of it, or the part that the render's border keeps."""

    def __init__(self, scene: bpy.types.Scene, cameras: CameraPath, size: tuple[int, int]) -> None:
        self.size = size
        left, top, _, _ = crop_box(scene.render)
        self.full = full_size(scene.render)
        self.offset = np.array([left, top], np.float64)
        self.per_pixel = np.array([cameras.width / size[0], cameras.height / size[1]])
        """Pixels of the scene's frame in one of the map's, in x and in y."""
        self.rendered = tuple(max(round(side / step), 4) for side, step in zip(self.full, self.per_pixel, strict=True))

    def camera(self, K: np.ndarray) -> np.ndarray:
        """Returns (3, 3) K of the whole rendered frame, from that of the exported one."""
        whole = K.copy()
        whole[:2, 2] += self.offset
        scale = np.array(self.rendered) / np.array(self.full)
        whole[:2] *= scale[:, None]
        return whole

    def cropped(self, depth: np.ndarray) -> np.ndarray:
        """Returns the map within a rendered depth; each pixel the one nearest to its centre."""
        if depth.shape == self.size[::-1]:
            return depth
        picks = []
        for axis in (1, 0):
            at = self.offset[axis] + (np.arange(self.size[axis]) + 0.5) * self.per_pixel[axis]
            place = at * self.rendered[axis] / self.full[axis]
            picks.append(np.clip(place.astype(int), 0, self.rendered[axis] - 1))
        return np.ascontiguousarray(depth[picks[0]][:, picks[1]])


@contextmanager
def reduced_frame(scene: bpy.types.Scene, cameras: CameraPath, size: tuple[int, int]) -> Iterator[ReducedFrame]:
    """Sets the render to a smaller frame with the very same view; yields how the maps lie in it."""
    settings = scene.render
    seen = ReducedFrame(scene, cameras, size)
    width, height = seen.rendered
    # Rounded sides have another aspect: pixels that are not square make up for it.
    aspect = (seen.full[0] * settings.pixel_aspect_x * height) / (seen.full[1] * settings.pixel_aspect_y * width)
    with kept(
        settings,
        resolution_x=width,
        resolution_y=height,
        resolution_percentage=100,
        pixel_aspect_x=max(aspect, 1.0),
        pixel_aspect_y=max(1 / aspect, 1.0),
        use_border=False,
        use_crop_to_border=False,
    ):
        yield seen


def check_same(
    camera: bpy.types.Object, scene: bpy.types.Scene, cameras: CameraPath, index: int, seen: ReducedFrame
) -> None:
    """Raises `camera_changed` unless the evaluated camera films now as the exported one at `index` does."""
    frame = int(cameras.frames[index])
    moved = np.abs(camera_to_world(camera, frame) - cameras.c2w[index])
    moved[:3, 3] /= 1.0 + np.abs(cameras.c2w[index, :3, 3])
    other = np.abs(intrinsics(camera.data, scene.render) - seen.camera(cameras.K[index])) / max(seen.rendered)
    if moved.max() > 1e-5 or other.max() > 1e-4:
        raise WorldWarpError(
            "camera_changed",
            f'Camera "{camera.name}" was changed at frame {frame} while the layout was measured. Generate again.',
        )
