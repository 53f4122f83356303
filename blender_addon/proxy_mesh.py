# SPDX-License-Identifier: GPL-3.0-or-later
"""A mesh of the generated world's surfaces, for shadows to fall on and for things to collide with.

    read_surface    any thread, never bpy: a shot's depth maps and cameras -> triangles
    Fusing          the same in a thread of its own, watched and stopped from outside
    add_proxy       Blender's main thread: triangles -> an object

The object catches shadows in Cycles and is not seen otherwise; in EEVEE, which has no shadow catchers, it is not seen
at all. Making it again for the same shot replaces it, and leaves it where it was moved to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import bpy
import numpy as np

from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.geometry.fusion import DepthView, Surface, fuse_depth

from .render_layers import UnexpectedLayout, read_channel
from .scenes import select_alone
from .sequences import DATA, find_sequence
from .stored_paths import mark_source, source_of

MAX_VIEWS = 24
"""Depth maps that are fused, spread over the shot: neighbours show the same."""
LONGEST_SIDE_PX = 480
"""Larger depth maps are read at every n-th pixel: a cell of the mesh is larger than their pixels."""
DEPTH_CHANNELS = (".Y", ".Z", ".V", ".R")
MATERIAL = "WorldWarp Shadow Catcher"
PLACE = "proxy"
"""Below a shot's folder, where a file of this mesh would lie: what the object is marked with."""


def read_surface(
    folder: Path, *, cells: int = 192, reach: float | None = None, told: Callable[[float], None] = lambda _: None
) -> Surface:
    """Returns the surfaces that the shot in `folder` shows, fused from its depth; never touches Blender.

    Args:
        cells: of the grid along its longest side.
        reach: how far from a camera surfaces are taken, in scene units; None takes what most of the shot lies within.
        told: hears the share that is done; raises whatever should end the work.

    Raises:
        WorldWarpError: `missing_file` where the folder lacks depth or cameras, `bad_depth`, `no_surface`.
    """
    views = read_views(folder, lambda share: told(0.2 * share))
    return fuse_depth(views, cells=cells, reach=reach, told=lambda share: told(0.2 + 0.8 * share))


class Stopped(Exception):
    """The work was asked to end."""


class Fusing:
    """`read_surface` in a thread.

    Attributes:
        share: of the work that is done.
        surface: what it ended with, if it ended well.
        error: what it ended with otherwise; None too where it was stopped.
    """

    def __init__(self, folder: Path, cells: int, reach: float | None) -> None:
        self.share = 0.0
        self.surface: Surface | None = None
        self.error: WorldWarpError | None = None
        self._stop = threading.Event()
        arguments = (folder, cells, reach)
        self._thread = threading.Thread(target=self._run, args=arguments, name="worldwarp-proxy", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Asks the thread to end; it does within a fraction of a second."""
        self._stop.set()

    def _run(self, folder: Path, cells: int, reach: float | None) -> None:
        try:
            self.surface = read_surface(folder, cells=cells, reach=reach, told=self._told)
        except Stopped:
            pass
        except WorldWarpError as error:
            self.error = error
        except Exception as error:
            # The last line of defence: a fault of ours is told in words, and the thread never ends in silence.
            self.error = WorldWarpError("internal", f"The mesh could not be made: {type(error).__name__}: {error}")

    def _told(self, share: float) -> None:
        self.share = share
        if self._stop.is_set():
            raise Stopped


def read_views(folder: Path, told: Callable[[float], None] = lambda _: None) -> list[DepthView]:
    """Returns depth maps of the shot in `folder` with their cameras, spread over its length."""
    depth = find_sequence(folder / "depth", ".exr", DATA)
    if depth is None:
        raise WorldWarpError("missing_file", f"{folder} has no depth maps (depth/frame_0001.exr ...) for a mesh.")
    if not (folder / "cameras.json").is_file():
        raise WorldWarpError("missing_file", f"{folder} has no cameras.json, which says where its depth was seen from.")
    path = read_cameras(folder / "cameras.json")
    # A take that goes on from another has frames before its own cameras.
    rows = [row for row, number in enumerate(path.frames.tolist()) if number in depth.files]
    if not rows:
        raise WorldWarpError("missing_file", f"None of the depth maps in {folder} is of a frame in its cameras.json.")
    chosen = sorted({rows[round(place)] for place in np.linspace(0, len(rows) - 1, min(MAX_VIEWS, len(rows)))})
    views = []
    for done, row in enumerate(chosen):
        told(done / len(chosen))
        file = depth.files[int(path.frames[row])]
        try:
            values = read_channel(file, DEPTH_CHANNELS)
        except UnexpectedLayout as error:
            raise WorldWarpError("bad_depth", f"Cannot take the depth of {file}: {error}.") from error
        step = -(-max(values.shape) // LONGEST_SIDE_PX)
        size = np.array([values.shape[1] / path.width, values.shape[0] / path.height])
        values = values[step // 2 :: step, step // 2 :: step]
        K = path.K[row].copy()
        # Pixel i of the smaller map is the middle of pixel i * step + step // 2 of the file.
        K[:2] = K[:2] * size[:, None] / step
        K[:2, 2] += 0.5 - (step // 2 + 0.5) / step
        views.append(DepthView(values, K, path.c2w[row]))
    return views


def add_proxy(context: bpy.types.Context, folder: Path, surface: Surface, collide: bool) -> bpy.types.Object:
    """Returns the proxy of the shot in `folder` as an object, selected and active.

    Args:
        collide: make it a surface for physics too: a passive rigid body, and a collider of cloth and particles.
    """
    mesh = mesh_of(surface, f"{folder.name} Proxy")
    made = next((thing for thing in context.scene.objects if source_of(thing) == folder / PLACE), None)
    if made is None:
        made = bpy.data.objects.new(mesh.name, mesh)
        context.scene.collection.objects.link(made)
        mark_source(made, folder / PLACE)
    else:
        earlier, made.data = made.data, mesh
        if earlier.users == 0:
            bpy.data.meshes.remove(earlier)
    mesh.materials.append(catcher_material())
    made.is_shadow_catcher = True
    made.display_type = "WIRE"
    context.view_layer.update()
    select_alone(context, made)
    if collide:
        make_collider(context, made)
    return made


def mesh_of(surface: Surface, name: str) -> bpy.types.Mesh:
    """Returns the triangles as mesh data, copied in whole arrays."""
    mesh = bpy.data.meshes.new(name)
    count = len(surface.triangles)
    mesh.vertices.add(len(surface.vertices))
    mesh.vertices.foreach_set("co", np.ascontiguousarray(surface.vertices, np.float32).reshape(-1))
    mesh.loops.add(3 * count)
    mesh.loops.foreach_set("vertex_index", np.ascontiguousarray(surface.triangles, np.int32).reshape(-1))
    mesh.polygons.add(count)
    mesh.polygons.foreach_set("loop_start", np.arange(0, 3 * count, 3, dtype=np.int32))
    mesh.update(calc_edges=True)
    return mesh


def catcher_material() -> bpy.types.Material:
    """Returns the proxy's material: grey to what it bounces light at in Cycles, nothing at all in EEVEE."""
    material = bpy.data.materials.get(MATERIAL)
    if material is not None:
        return material
    material = bpy.data.materials.new(MATERIAL)
    if not material.use_nodes:
        material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    for target, kind, row in (("CYCLES", "ShaderNodeBsdfDiffuse", 0), ("EEVEE", "ShaderNodeBsdfTransparent", 1)):
        output, shader = tree.nodes.new("ShaderNodeOutputMaterial"), tree.nodes.new(kind)
        output.target = target
        output.location, shader.location = (200.0, -200.0 * row), (0.0, -200.0 * row)
        tree.links.new(shader.outputs[0], output.inputs["Surface"])
    return material


def make_collider(context: bpy.types.Context, thing: bpy.types.Object) -> None:
    """Makes the mesh a surface that rigid bodies, cloth and particles cannot pass."""
    if not any(modifier.type == "COLLISION" for modifier in thing.modifiers):
        thing.modifiers.new("Collision", "COLLISION")
    if thing.rigid_body is None:
        with context.temp_override(object=thing, active_object=thing, selected_objects=[thing]):
            bpy.ops.rigidbody.object_add(type="PASSIVE")
    thing.rigid_body.collision_shape = "MESH"
    thing.rigid_body.mesh_source = "BASE"
