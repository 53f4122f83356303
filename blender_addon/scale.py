# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a world is that begins with a picture: pictures say what is near and far, never how near.

In: what the artist measured, or the scene's own geometry. Out: a distance in scene units, a depth map scaled by one,
and the picture as points in the scene.

A depth map is known up to a factor: a picked point and its distance, or an object that it shows, give the factor.
Without a map the server estimates depth, and the distance is that of its median.
"""

from __future__ import annotations

from dataclasses import dataclass

import bpy
import numpy as np

from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import BACKGROUND_DEPTH

from .camera_export import export_camera_path, frame_kept
from .pictures import cropped_to_aspect, picture_of, values_of
from .seen_depth import grid_pixels, seen_depth, view_rays

FALLBACK_DISTANCE = 5.0
"""Scene units, where nothing says how far anything is."""
FARTHEST = 100.0
"""Times the nearest: what a nearness of 0 means."""
POINT_PX = 5
"""Side of the square that a picked point's depth is the median of."""
CLOUD_POINTS = 150_000


@dataclass(frozen=True)
class PictureCloud:
    """The start picture as points in the scene, but for its scale: a point is origin + scale * offset.

    Attributes:
        origin: (3,) where the start camera stands.
        offsets: (N, 3) float32.
        colours: (N, 4) float32 sRGB and opacity.
        unit: the scale is a distance divided by this.
        assumed: the distance where the artist sets none, scene units.
        assumed_unit: what that one is divided by.
        reason: where it comes from.
    """

    scene: str
    origin: np.ndarray
    offsets: np.ndarray
    colours: np.ndarray
    unit: float
    assumed: float
    assumed_unit: float
    reason: str

    def scale(self, distance: float) -> float:
        """Returns the scale for the artist's distance; 0 takes the assumed one."""
        return distance / self.unit if distance > 0 else self.assumed / self.assumed_unit


def start_distance(context: bpy.types.Context) -> float:
    """Returns how far from the start camera the picture's median depth lies, in scene units."""
    chosen = float(context.scene.worldwarp.scene_scale)
    return chosen if chosen > 0 else default_distance(context)[0]


def default_distance(context: bpy.types.Context) -> tuple[float, str]:
    """Returns a distance for who set none, and where it comes from.

    Raises:
        WorldWarpError: `no_camera` or `unsupported_camera`.
    """
    scene = context.scene
    path = export_camera_path(context, [scene.frame_start])
    with frame_kept(scene):
        scene.frame_set(scene.frame_start)
        focused = scene.camera.data.dof.focus_object if scene.camera is not None else None
        if focused is not None:
            distance = planar_distance(path.c2w[0], np.array(focused.matrix_world.translation))
            if distance > 0:
                return distance, f'the focus object "{focused.name}"'
        depsgraph = context.evaluated_depsgraph_get()
        pixels = grid_pixels(path.width, path.height)
        nearest = float(seen_depth(scene, depsgraph, pixels, path.K[0], path.c2w[0]).min())
    if np.isfinite(nearest):
        return nearest, "the nearest object in view"
    return FALLBACK_DISTANCE, "an assumption: the camera has no focus object and sees nothing"


def planar_distance(c2w: np.ndarray, point: np.ndarray) -> float:
    """Returns how far (3,) `point` lies in front of the camera, along its axis; below 0 behind it."""
    return float((point - c2w[:3, 3]) @ c2w[:3, 2])


# ---------------------------------------------------------------- depth maps


def scaled_depth(context: bpy.types.Context, path: CameraPath) -> np.ndarray | None:
    """Returns (h, w) planar z of the start picture, cropped as it is, in scene units; None without a depth map.

    Raises:
        WorldWarpError: `bad_image` for a map without pixels, or one that is black all over.
    """
    group = context.scene.worldwarp
    if group.start_depth is None:
        return None
    depth = map_of_picture(group, path)
    distance = float(group.scene_scale)
    scale = distance / depth_at(depth, group.scale_point) if distance > 0 else 0.0
    if not scale:
        scale = default_distance(context)[0] / median_of(depth)
    return np.where(is_somewhere(depth), depth * np.float32(scale), np.float32(BACKGROUND_DEPTH))


def map_of_picture(group: bpy.types.PropertyGroup, path: CameraPath) -> np.ndarray:
    """Returns the depth map at the size of the start picture as it is cropped, up to a factor.

    Raises:
        WorldWarpError: `bad_image`.
    """
    picture, values = picture_of(group.start_image), values_of(group.start_depth)
    depth = resampled(depth_of_values(values, group.depth_kind), (picture.shape[0], picture.shape[1]))
    if not is_somewhere(depth).any():
        raise WorldWarpError(
            "bad_image", f'The depth map "{group.start_depth.name}" is black all over: pick another, or none.'
        )
    return cropped_to_aspect(depth, path.width, path.height)


def depth_of_values(values: np.ndarray, kind: str) -> np.ndarray:
    """Returns (H, W) float32 depth up to a factor from a grey picture's (H, W) values; background where it has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "NEARNESS":
            largest = np.nanmax(values, initial=0.0)
            depth = 1.0 / np.maximum(values / largest, 1.0 / FARTHEST) if largest > 0 else np.zeros_like(values)
        else:
            depth = values
    return np.where(np.isfinite(depth) & (depth > 0), depth, BACKGROUND_DEPTH).astype(np.float32)


def is_somewhere(depth: np.ndarray) -> np.ndarray:
    """Returns where a depth is one, not background."""
    return depth < 0.99 * BACKGROUND_DEPTH


def resampled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns (h, w) `values` at another (height, width), nearest: depths are never mixed across an edge."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows][:, columns]


def depth_at(depth: np.ndarray, point: tuple[float, float]) -> float:
    """Returns the depth around `point`, (0, 0) to (1, 1) from the top left corner.

    Raises:
        WorldWarpError: `bad_point` where the map has nothing.
    """
    height, width = depth.shape
    x, y = (min(int(part * side), side - 1) for part, side in zip(point, (width, height), strict=True))
    reach = POINT_PX // 2
    around = depth[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    around = around[is_somewhere(around)]
    if len(around) == 0:
        raise WorldWarpError(
            "bad_point", "The depth map has nothing at the picked point: pick a point on a surface, not on the sky."
        )
    return float(np.median(around))


def median_of(depth: np.ndarray) -> float:
    """Returns the median depth of what is somewhere."""
    return float(np.median(depth[is_somewhere(depth)]))


# ---------------------------------------------------------------- the picture in the scene


def picture_cloud(context: bpy.types.Context) -> PictureCloud:
    """Returns the start picture as points before the start camera; without a depth map they are a flat card.

    Raises:
        WorldWarpError: `bad_image`, `no_camera`, `unsupported_camera`.
    """
    scene = context.scene
    group = scene.worldwarp
    path = export_camera_path(context, [scene.frame_start])
    picture = cropped_to_aspect(picture_of(group.start_image), path.width, path.height)
    depth = np.ones(picture.shape[:2], np.float32) if group.start_depth is None else map_of_picture(group, path)
    step = max(int(np.ceil(np.sqrt(depth.size / CLOUD_POINTS))), 1)
    y, x = (part.ravel() for part in np.mgrid[step // 2 : depth.shape[0] : step, step // 2 : depth.shape[1] : step])
    held = is_somewhere(depth[y, x])
    y, x = y[held], x[held]
    to_path = np.array([path.width / depth.shape[1], path.height / depth.shape[0]])
    rays = view_rays((np.stack([x, y], axis=1) + 0.5) * to_path, path.K[0], path.c2w[0])
    colours = np.ones((len(x), 4), np.float32)
    colours[:, :3] = picture[y, x] / np.float32(255)
    assumed, reason = default_distance(context)
    return PictureCloud(
        scene=scene.name,
        origin=path.c2w[0, :3, 3],
        offsets=(rays * depth[y, x, None]).astype(np.float32),
        colours=colours,
        unit=depth_at(depth, group.scale_point),
        assumed=assumed,
        assumed_unit=median_of(depth),
        reason=reason,
    )


def place_of(context: bpy.types.Context, thing: bpy.types.Object) -> tuple[tuple[float, float], float]:
    """Returns where in the start picture an object's origin is, (0, 0) to (1, 1) from the top left, and how far.

    Raises:
        WorldWarpError: `bad_point` when the start camera does not see that place.
    """
    scene = context.scene
    path = export_camera_path(context, [scene.frame_start])
    with frame_kept(scene):
        scene.frame_set(scene.frame_start)
        where = np.array(thing.evaluated_get(context.evaluated_depsgraph_get()).matrix_world.translation)
    seen = path.K[0] @ (path.c2w[0, :3, :3].T @ (where - path.c2w[0, :3, 3]))
    if seen[2] > 0:
        u, v = seen[0] / seen[2] / path.width, seen[1] / seen[2] / path.height
        if 0 <= u <= 1 and 0 <= v <= 1:
            return (float(u), float(v)), float(seen[2])
    raise WorldWarpError(
        "bad_point",
        f'The start camera does not see the origin of "{thing.name}": pick an object that is in the picture.',
    )
