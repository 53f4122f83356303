"""Camera export against Blender's own projection, on random cameras.

    python tests/benchmarks/bench_cameras.py [CAMERAS]

Every camera projects the same points twice at 1920x1080: with the exported K and c2w, and with Blender's
`Object.calc_matrix_camera` and the evaluated camera. The figure is the largest distance between the two, in pixels.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import bpy
import numpy as np

from blender_addon.camera_export import export_camera_path

WIDTH, HEIGHT = 1920, 1080
POINTS = 64
CAMERAS_PER_SCENE = 4
"""Frames of one animated camera that are compared; each is another camera: lens, shift, sensor and pose all move."""


@dataclass(frozen=True)
class Case:
    """What one random scene turned on; tests ask whether every kind was met."""

    fit: str
    portrait: bool
    pixel_aspect: bool
    shift: bool
    parented: bool
    constrained: bool
    percentage: bool
    frame_step: bool
    offset: bool


def worst_camera_error_px(n: int = 512, seed: int = 0) -> float:
    """Returns the largest reprojection difference over at least `n` random cameras, in pixels of 1920x1080 renders."""
    return max(error for error, _ in camera_errors_px(n, seed))


def camera_errors_px(n: int, seed: int) -> list[tuple[float, Case]]:
    """Returns (worst error in pixels, case) for each random scene, until `n` cameras were compared."""
    rng = np.random.default_rng(seed)
    return [scene_error_px(rng) for _ in range(-(-n // CAMERAS_PER_SCENE))]


def scene_error_px(rng: np.random.Generator) -> tuple[float, Case]:
    """Returns the worst error of one random scene's exported path, in pixels scaled to 1920x1080, and its case."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    context = bpy.context
    case = random_scene(context.scene, rng)
    path = export_camera_path(context)
    assert len(path) == CAMERAS_PER_SCENE
    render = context.scene.render
    worst = 0.0
    for i, frame in enumerate(path.frames):
        context.scene.frame_set(int(frame))
        depsgraph = context.evaluated_depsgraph_get()
        camera = context.scene.camera.evaluated_get(depsgraph)
        pixels = rng.uniform((0.0, 0.0), (path.width, path.height), (POINTS, 2))
        z = rng.uniform(0.5, 50.0, (POINTS, 1))
        world = unproject(pixels, z, path.K[i], path.c2w[i])
        projection = camera.calc_matrix_camera(
            depsgraph, x=path.width, y=path.height, scale_x=render.pixel_aspect_x, scale_y=render.pixel_aspect_y
        )
        expected = blender_pixels(world, projection, camera.matrix_world, path.width, path.height)
        # The longer side is compared at 1920, so that the figure means the same at every resolution.
        worst = max(worst, float(np.abs(expected - pixels).max()) * WIDTH / max(path.width, path.height))
    return worst, case


def unproject(pixels: np.ndarray, z: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """Returns (N, 3) world points of (N, 2) pixels at planar depth `z` (N, 1), through the exported camera."""
    rays = np.hstack([pixels, np.ones_like(z)]) @ np.linalg.inv(K).T
    return (rays * z) @ c2w[:3, :3].T + c2w[:3, 3]


def blender_pixels(world: np.ndarray, projection: object, matrix_world: object, width: int, height: int) -> np.ndarray:
    """Returns (N, 2) pixels of (N, 3) `world` points through Blender's own matrices, y down."""
    matrix = np.array(matrix_world, np.float64)
    matrix[:3, :3] /= np.linalg.norm(matrix[:3, :3], axis=0)
    homogeneous = np.hstack([world, np.ones((len(world), 1))])
    clip = homogeneous @ (np.array(projection, np.float64) @ np.linalg.inv(matrix)).T
    ndc = clip[:, :2] / clip[:, 3:]
    return np.stack([(ndc[:, 0] + 1) / 2 * width, (1 - ndc[:, 1]) / 2 * height], axis=1)


def random_scene(scene: bpy.types.Scene, rng: np.random.Generator) -> Case:
    """Fills `scene` with an animated random camera and random render settings; returns what it turned on."""

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    step = int(rng.integers(1, 8)) if chance(0.4) else 1
    scene.frame_start = int(rng.integers(-20, 100))
    scene.frame_end = scene.frame_start + step * (CAMERAS_PER_SCENE - 1)
    scene.frame_step = step
    render = scene.render
    portrait, aspect, percentage = chance(0.3), chance(0.4), chance(0.4)
    render.resolution_x, render.resolution_y = (HEIGHT, WIDTH) if portrait else (WIDTH, HEIGHT)
    if percentage:
        render.resolution_percentage = int(rng.integers(7, 200))
    if aspect:
        aspects = rng.permutation([1.0, rng.uniform(1.0, 2.5)])
        render.pixel_aspect_x, render.pixel_aspect_y = float(aspects[0]), float(aspects[1])

    data = bpy.data.cameras.new("Camera")
    camera = bpy.data.objects.new("Camera", data)
    scene.collection.objects.link(camera)
    scene.camera = camera
    fit = str(rng.choice(["AUTO", "HORIZONTAL", "VERTICAL"]))
    shift = chance(0.5)
    data.sensor_fit = fit
    parented, constrained = chance(0.5), chance(0.4)
    parent = camera
    if parented:
        # Uneven scale above a rotated camera shears it; scale along the chain stays even there.
        for scale in (rng.uniform(0.01, 30.0), rng.uniform(0.1, 5.0)):
            above = bpy.data.objects.new("Parent", None)
            scene.collection.objects.link(above)
            above.scale = (float(scale),) * 3
            parent.parent = above
            parent = above
        camera.scale = tuple(float(s) for s in rng.uniform(0.1, 4.0, 3))
    if constrained:
        target = bpy.data.objects.new("Target", None)
        scene.collection.objects.link(target)
        target.location = rng.uniform(-9, 9, 3)
        track = camera.constraints.new("TRACK_TO")
        track.target, track.track_axis, track.up_axis = target, "TRACK_NEGATIVE_Z", "UP_Y"
    offset = chance(0.2)
    origin = rng.uniform(-300, 300, 3) if offset else np.zeros(3)
    for frame in scene_frames(scene):
        for animated in {camera, parent}:
            animated.location = origin / (2 if parented else 1) + rng.uniform(-5, 5, 3)
            animated.rotation_euler = rng.uniform(-np.pi, np.pi, 3)
            animated.keyframe_insert("location", frame=frame)
            animated.keyframe_insert("rotation_euler", frame=frame)
        data.lens = float(np.exp(rng.uniform(np.log(8), np.log(300))))
        data.sensor_width, data.sensor_height = (float(s) for s in rng.uniform(8, 60, 2))
        if shift:
            data.shift_x, data.shift_y = (float(s) for s in rng.uniform(-0.7, 0.7, 2))
        for name in ("lens", "sensor_width", "sensor_height", "shift_x", "shift_y"):
            data.keyframe_insert(name, frame=frame)
    return Case(fit, portrait, aspect, shift, parented, constrained, percentage, step > 1, offset)


def scene_frames(scene: bpy.types.Scene) -> range:
    """Returns the frames that this benchmark keys, which are those that a render would visit."""
    return range(scene.frame_start, scene.frame_end + 1, scene.frame_step)


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    began = time.perf_counter()
    print(f"worst of {count} cameras: {worst_camera_error_px(count):.2e} px ({time.perf_counter() - began:.1f} s)")
