"""What `bench_addon.py` has done inside Blender, in a process of its own.

    python -m tests.benchmarks.in_blender NAME REPORT [ARGUMENTS]

REPORT is a JSON file with what was found. Blender as a module cannot always be left cleanly, so this ends abruptly.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpy

# isort: split
# The bpy module brings these; there is no importing them before it.
import numpy as np
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Matrix, Vector
from mathutils.bvhtree import BVHTree

import blender_addon
from blender_addon.demo_scene import build_demo_scene
from blender_addon.proxy_mesh import read_surface
from blender_addon.shot import ShotSettings, generate_shot
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import write_splats

MARKER_PX = 6.0
"""Half the side of a marker in the start frame."""
APART_PX = 26.0
GRID = 7
"""Points of a marker along each side: all are looked at, so that nothing thin hides a part of it unnoticed."""
MIDDLE = GRID * GRID // 2
MARKER_OFF_M = 0.004
"""How far in front of its surface a marker lies."""
FLAT_M = 0.01
MIN_COSINE = 0.25


def import_splats(folder: str, count: str, coefficients: str, repeats: str) -> dict[str, Any]:
    """Seconds that the import command takes for a PLY of `count` splats, by the clock and of the processor."""
    rng = np.random.default_rng(0)
    n = int(count)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    quats = draw(n, 4)
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    path = Path(folder) / f"splats_{coefficients}.ply"
    cloud = SplatCloud(draw(n, 3), quats, draw(n, 3) - 4, draw(n), draw(n, 1, 3), draw(n, int(coefficients), 3))
    write_splats(path, cloud)
    walls, processors = [], []
    for _ in range(int(repeats)):
        bpy.ops.wm.read_factory_settings(use_empty=True)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        bpy.ops.worldwarp.import_splats(filepath=str(path))
        walls.append(time.perf_counter() - began_s)
        processors.append(time.process_time() - began_cpu_s)
        made = bpy.context.view_layer.objects.active
        assert len(made.data.attributes["position"].data) == n
    path.unlink()
    return {"s": statistics.median(walls), "best_s": min(walls), "cpu_s": statistics.median(processors)}


def marked_shot(out: str, address: str, width: str, height: str, frames: str) -> dict[str, Any]:
    """Makes a shot of the demo's courtyard with markers in it; where each marker is seen, by Blender's own camera.

    Returns:
        {"markers": [{frame: [x, y] in pixels from the top left corner}, ...]}, the frames in which nothing hides it.
    """
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    camera = build_demo_scene(scene, int(width), int(height), int(frames))
    scene.frame_set(scene.frame_start)
    bpy.context.view_layer.update()
    places = marker_places(scene, camera)
    for number, points in enumerate(places):
        add_marker(scene, f"Marker {number}", points)
    seen: list[dict[int, list[float]]] = [{} for _ in places]
    for frame in range(scene.frame_start, scene.frame_end + 1):
        scene.frame_set(frame)
        for rows, points in zip(seen, places, strict=True):
            pixels = [pixel_of(scene, camera, point) for point in points]
            if all(pixel is not None for pixel in pixels):
                rows[frame] = pixels[MIDDLE]
    settings = ShotSettings(samples=scene.cycles.samples, show_results=False)
    generate_shot(bpy.context, Path(out), address, settings, lambda _: None)
    return {"markers": seen}


def marker_places(scene: bpy.types.Scene, camera: bpy.types.Object) -> list[list[Vector]]:
    """`GRID` x `GRID` points of each marker, on flat places that the current frame shows, all over the picture."""
    width, height = scene.render.resolution_x, scene.render.resolution_y
    taken: list[tuple[float, float]] = []
    found = []
    for v in np.arange(2 * MARKER_PX, height - 2 * MARKER_PX, MARKER_PX):
        for u in np.arange(2 * MARKER_PX, width - 2 * MARKER_PX, MARKER_PX):
            if any(abs(u - x) < APART_PX and abs(v - y) < APART_PX for x, y in taken):
                continue
            if (points := flat_place(scene, camera, float(u), float(v))) is not None:
                taken.append((u, v))
                found.append(points)
    return found


def flat_place(scene: bpy.types.Scene, camera: bpy.types.Object, u: float, v: float) -> list[Vector] | None:
    """`GRID` rows of points that are an even grid in the start frame and a plane in the scene, or None."""
    steps = np.linspace(-MARKER_PX, MARKER_PX, GRID).tolist()
    grid = [(u + dx, v + dy) for dy in steps for dx in steps]
    rays = [ray_through(scene, camera, *pixel) for pixel in grid]
    origin = camera.matrix_world.translation
    depsgraph = bpy.context.evaluated_depsgraph_get()
    hits = [scene.ray_cast(depsgraph, origin, ray) for ray in rays]
    if not all(hit for hit, *_ in hits):
        return None
    _, place, normal, *_ = hits[MIDDLE]
    off = max(abs((hit[1] - place).dot(normal)) for hit in hits)
    if off > FLAT_M or abs(normal.dot(rays[MIDDLE])) < MIN_COSINE:
        return None
    front = place + normal * (MARKER_OFF_M if normal.dot(rays[MIDDLE]) < 0 else -MARKER_OFF_M)
    return [origin + ray * ((front - origin).dot(normal) / ray.dot(normal)) for ray in rays]


def ray_through(scene: bpy.types.Scene, camera: bpy.types.Object, u: float, v: float) -> Vector:
    """The direction in the world that a pixel looks into, from the camera's own frame."""
    right_top, right_bottom, _, left_top = (
        camera.matrix_world.to_3x3() @ c for c in camera.data.view_frame(scene=scene)
    )
    across, down = u / scene.render.resolution_x, v / scene.render.resolution_y
    return (left_top + (right_top - left_top) * across + (right_bottom - right_top) * down).normalized()


def add_marker(scene: bpy.types.Scene, name: str, points: list[Vector]) -> None:
    """A square of four fields, black and white crosswise: its middle is found in a picture to a part of a pixel."""
    mesh = bpy.data.meshes.new(name)
    corners = [points[row * GRID + column] for row in (0, GRID // 2, GRID - 1) for column in (0, GRID // 2, GRID - 1)]
    mesh.from_pydata(corners, [], [(0, 1, 4, 3), (1, 2, 5, 4), (3, 4, 7, 6), (4, 5, 8, 7)])
    for colour, strength in (("Black", 0.02), ("White", 0.85)):
        mesh.materials.append(glowing(colour, strength))
    mesh.polygons.foreach_set("material_index", [0, 1, 1, 0])
    scene.collection.objects.link(bpy.data.objects.new(name, mesh))


def glowing(name: str, strength: float) -> bpy.types.Material:
    material = bpy.data.materials.get(name)
    if material is None:
        material = bpy.data.materials.new(name)
        material.use_nodes = True
        tree = material.node_tree
        tree.nodes.clear()
        glow, output = tree.nodes.new("ShaderNodeEmission"), tree.nodes.new("ShaderNodeOutputMaterial")
        glow.inputs["Color"].default_value = (strength, strength, strength, 1)
        tree.links.new(glow.outputs[0], output.inputs["Surface"])
    return material


def pixel_of(scene: bpy.types.Scene, camera: bpy.types.Object, place: Vector) -> list[float] | None:
    """Where the camera sees a place, in pixels from the top left corner; None where it is hidden or not in view."""
    x, y, z = world_to_camera_view(scene, camera, place)
    if z <= 0 or not (0 <= x <= 1 and 0 <= y <= 1):
        return None
    origin = camera.matrix_world.translation
    way = place - origin
    hit, found, *_ = scene.ray_cast(bpy.context.evaluated_depsgraph_get(), origin, way.normalized())
    if hit and (found - origin).length < way.length - 0.02:
        return None
    return [x * scene.render.resolution_x, (1 - y) * scene.render.resolution_y]


def proxy_mesh(shot: str) -> dict[str, Any]:
    """How far the proxy mesh of a demo's shot is from the courtyard that its start frame shows, and what it covers."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    camera = build_demo_scene(scene)
    scene.frame_set(scene.frame_start)
    began_s = time.process_time()
    surface = read_surface(Path(shot))
    took_s = time.process_time() - began_s
    truth = tree_of(scene)
    fused = BVHTree.FromPolygons(surface.vertices.tolist(), surface.triangles.tolist())
    # Only what the start frame sees has a truth: behind it the world was made up.
    origin = camera.matrix_world.translation
    offs, misses = [], []
    for v in np.arange(2.5, scene.render.resolution_y, 4):
        for u in np.arange(2.5, scene.render.resolution_x, 4):
            place, _, _, far = truth.ray_cast(origin, ray_through(scene, camera, float(u), float(v)))
            if place is not None and far < 20:
                misses.append(fused.find_nearest(place)[3])
            hit, *_ = fused.ray_cast(origin, ray_through(scene, camera, float(u), float(v)))
            if hit is not None:
                offs.append(truth.find_nearest(hit)[3])
    return {
        "triangles": len(surface.triangles),
        "cell_m": round(surface.cell, 4),
        "cpu_s": round(took_s, 2),
        "off_median_m": round(float(np.median(offs)), 4),
        "off_p90_m": round(float(np.percentile(offs, 90)), 4),
        "covered_within_two_cells": round(float((np.array(misses) < 2 * surface.cell).mean()), 3),
    }


def tree_of(scene: bpy.types.Scene) -> BVHTree:
    """All triangles of the scene's meshes, as they are rendered."""
    depsgraph = bpy.context.evaluated_depsgraph_get()
    vertices: list[Vector] = []
    triangles: list[list[int]] = []
    for thing in scene.objects:
        if thing.type != "MESH":
            continue
        mesh = thing.evaluated_get(depsgraph).to_mesh()
        mesh.calc_loop_triangles()
        first, world = len(vertices), Matrix(thing.matrix_world)
        vertices += [world @ vertex.co for vertex in mesh.vertices]
        triangles += [[first + i for i in triangle.vertices] for triangle in mesh.loop_triangles]
    return BVHTree.FromPolygons(vertices, triangles)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "import_splats": import_splats,
    "marked_shot": marked_shot,
    "proxy_mesh": proxy_mesh,
}


if __name__ == "__main__":
    name, report, *arguments = sys.argv[1:]
    blender_addon.register()
    Path(report).write_text(json.dumps(TASKS[name](*arguments)))
    blender_addon.unregister()
    sys.stdout.flush()
    os._exit(0)
