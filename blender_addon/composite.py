# SPDX-License-Identifier: GPL-3.0-or-later
"""A shot in the compositor: its pictures as nodes, and the scene's objects in front of and behind its world.

In: a shot's frames, and its depth. Out: image nodes, and one group node for each shot that compares the render's depth
with the world's at every pixel: what the render has nearer is laid over the frame, with its own alpha; what it has
farther is hidden by the world. Both depths are planar z in scene units.

The group's tolerance lets through what lies on the world's own surfaces, such as the shadows on a proxy mesh. At the
silhouettes of objects, where a pixel is only partly theirs, the depth beside it counts: a depth pass has one sample a
pixel, which may have missed the object.

Until `use_composite` is called nothing of it is linked to what the scene renders. While it is in use the shot's splats
stay out of renders: they are the same world once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy

from worldwarp_core.errors import WorldWarpError

from .sequences import Sequence, sequence_image, time_sequence
from .splats import is_splat_object
from .stored_paths import mark_source, resolved_path, source_of

GROUP = "WorldWarp Composite"
VERSION = 1
MADE_BY = "worldwarp_composite"
"""Custom property of the group: the version of the add-on's own that made it."""

TOLERANCE = 0.02
"""Share of the distance by which the world's depth may be off before it hides an object."""

OPAQUE = 0.999
"""Alpha from which a pixel is all of the objects that the depth pass has there."""

EDGE_PX = 2
"""How far from an object's opaque pixels its silhouette may reach, and the softening of the cut beside it."""

SHOT_HEIGHT = 1100.0
"""Of a shot's nodes in the compositor."""

PART = "worldwarp_part"
"""Custom property of a node: which of its shot's nodes it is."""

FILM = "worldwarp_film_transparent"
"""Custom property of a scene that is composited: whether its own film was transparent before."""

SWITCHED_ON = "worldwarp_use_nodes"
"""Likewise, up to Blender 4.5: whether its compositor was switched on before."""


def add_nodes(scene: bpy.types.Scene, directory: Path, sequences: dict[str, Sequence]) -> bpy.types.Node | None:
    """Returns the shot's composite, with an image node for each of `sequences` ("Frames", "Depth", "Mask") beside it.

    Nodes of an earlier state of the shot are brought up to date and keep their links. Without depth there is no
    composite, and None is returned.
    """
    tree = compositor_tree(scene)
    # Not by their labels, which the artist may change.
    earlier = {node.get(PART): node for node in tree.nodes if source_of(node) == directory}
    # Each shot below the others.
    top = -SHOT_HEIGHT * sum(node.get(PART) == "Shot" for node in tree.nodes)

    def node(part: str, label: str, kind: str, place: tuple[float, float]) -> bpy.types.Node:
        if part not in earlier:
            earlier[part] = tree.nodes.new(kind)
            earlier[part].label, earlier[part][PART] = label, part
            earlier[part].location = place
            mark_source(earlier[part], directory)
        return earlier[part]

    frame = node("Shot", directory.name, "NodeFrame", (0.0, top))
    for row, (kind, frames) in enumerate(sequences.items()):
        shown = node(kind, kind, "CompositorNodeImage", (-700.0, top + 300.0 - 340.0 * row))
        shown.image, shown.parent = sequence_image(frames), frame
        time_sequence(shown, frames)
    if "Depth" not in sequences:
        return None
    composite = node("Composite", f"{directory.name} Composite", "CompositorNodeGroup", (-400.0, top + 300.0))
    composite.node_tree, composite.parent = composite_group(), frame
    for kind, socket in (("Frames", "World"), ("Depth", "World Depth")):
        tree.links.new(earlier[kind].outputs["Image"], composite.inputs[socket])
    return composite


def compositor_tree(scene: bpy.types.Scene) -> Any:
    """Returns the scene's compositor tree; a new one passes the render through."""
    if not hasattr(scene, "compositing_node_group"):
        if scene.node_tree is None:
            # Up to Blender 4.5 this makes a tree that passes the render through. One that the artist has switched off
            # stays off.
            scene.use_nodes = True
        return scene.node_tree
    if scene.compositing_node_group is None:
        tree = bpy.data.node_groups.new("Compositing", "CompositorNodeTree")
        tree.interface.new_socket(name="Image", in_out="OUTPUT", socket_type="NodeSocketColor")
        layers, output = tree.nodes.new("CompositorNodeRLayers"), tree.nodes.new("NodeGroupOutput")
        layers.location, output.location = (-200.0, 0.0), (200.0, 0.0)
        layers.scene = scene
        tree.links.new(layers.outputs["Image"], output.inputs["Image"])
        scene.compositing_node_group = tree
    return scene.compositing_node_group


# ---------------------------------------------------------------- in use or not


def use_composite(scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer, composite: bpy.types.Node) -> None:
    """Lays the render of `view_layer` into a shot: `composite` takes the render's place wherever it was linked to.

    What the artist does to the render after that (glare, colour) is done to the composite.
    """
    use_render(scene)
    scene[FILM] = scene.render.film_transparent
    scene.render.film_transparent = True
    scene.render.use_compositing = True
    if not hasattr(scene, "compositing_node_group"):
        scene[SWITCHED_ON], scene.use_nodes = scene.use_nodes, True
    # Before the node is looked at: it has an output for depth only then.
    view_layer.use_pass_z = True
    view_layer.update()
    tree = compositor_tree(scene)
    layers = _render_of(tree, scene, view_layer)
    after = [link.to_socket for link in layers.outputs["Image"].links] or [_output_of(tree)]
    for socket in after:
        tree.links.new(composite.outputs["Image"], socket)
    tree.links.new(layers.outputs["Image"], composite.inputs["Render"])
    tree.links.new(layers.outputs["Depth"], composite.inputs["Render Depth"])
    for splats in _splats_of(scene, composite):
        splats.hide_render = True


def use_render(scene: bpy.types.Scene) -> None:
    """Undoes `use_composite`, if the scene is composited."""
    composite = composite_in_use(scene)
    if composite is None:
        return
    tree = compositor_tree(scene)
    render = composite.inputs["Render"].links[0].from_socket
    for link in list(composite.outputs["Image"].links):
        tree.links.new(render, link.to_socket)
    for socket in (composite.inputs["Render"], composite.inputs["Render Depth"]):
        for link in list(socket.links):
            tree.links.remove(link)
    for splats in _splats_of(scene, composite):
        splats.hide_render = splats.hide_viewport
    if FILM in scene:
        scene.render.film_transparent = bool(scene[FILM])
        del scene[FILM]
    if SWITCHED_ON in scene:
        if not hasattr(scene, "compositing_node_group"):
            scene.use_nodes = bool(scene[SWITCHED_ON])
        del scene[SWITCHED_ON]


def composite_in_use(scene: bpy.types.Scene) -> bpy.types.Node | None:
    """Returns the composite that the scene is rendered into, or None."""
    return next((node for node in composites(scene) if node.inputs["Render"].is_linked), None)


def composites(scene: bpy.types.Scene) -> list[bpy.types.Node]:
    """Returns the composites of all shots in the scene's compositor; makes nothing."""
    tree = scene.compositing_node_group if hasattr(scene, "compositing_node_group") else scene.node_tree
    nodes = tree.nodes if tree is not None else ()
    return [node for node in nodes if source_of(node) is not None and getattr(node, "node_tree", None) is not None]


def nodes_of(scene: bpy.types.Scene, directory: Path) -> list[bpy.types.Node]:
    """Returns what a shot has in the scene's compositor; makes nothing."""
    tree = scene.compositing_node_group if hasattr(scene, "compositing_node_group") else scene.node_tree
    return [node for node in tree.nodes if source_of(node) == directory] if tree is not None else []


def composite_to_use(scene: bpy.types.Scene) -> bpy.types.Node:
    """Returns the composite of the take that is shown, or the only one, or the active node of the compositor.

    Raises:
        WorldWarpError: `missing_file` if the take that is shown has no depth, `bad_settings` where it is open which one
            is meant.
    """
    found = composites(scene)
    if scene.worldwarp.shown_take:
        folder = resolved_path(scene.worldwarp.shown_take)
        shown = next((node for node in found if source_of(node) == folder), None)
        if shown is None:
            raise WorldWarpError(
                "missing_file",
                f"The take that is shown has no depth in {folder / 'depth'}, without which nothing can tell what is in "
                "front: show another take, or generate this one again.",
            )
        return shown
    if len(found) == 1:
        return found[0]
    active = compositor_tree(scene).nodes.active
    if active in found:
        return active
    names = ", ".join(f'"{node.label}"' for node in found[:5])
    raise WorldWarpError(
        "bad_settings",
        f"The compositor has {len(found)} shots ({names}): show one of the takes, or make one the active node there.",
    )


def follow(scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer, directory: Path) -> None:
    """Lays the render of a scene that is composited into another shot instead, or into none if that has no depth."""
    if composite_in_use(scene) is None:
        return
    later = next((node for node in composites(scene) if source_of(node) == directory), None)
    if later is None:
        use_render(scene)
    else:
        use_composite(scene, view_layer, later)


def leave(scene: bpy.types.Scene, directory: Path) -> None:
    """Renders the scene alone again if it is laid into the shot in `directory`."""
    composite = composite_in_use(scene)
    if composite is not None and source_of(composite) == directory:
        use_render(scene)


def _splats_of(scene: bpy.types.Scene, composite: bpy.types.Node) -> list[bpy.types.Object]:
    """Returns the splat objects of the composite's shot."""
    directory = source_of(composite)
    marked = [(thing, source_of(thing)) for thing in scene.objects if is_splat_object(thing)]
    return [thing for thing, file in marked if file is not None and file.parent == directory]


def _render_of(tree: Any, scene: bpy.types.Scene, view_layer: bpy.types.ViewLayer) -> bpy.types.Node:
    """Returns the node that gives the render of `view_layer`, a new one where there is none."""
    for node in tree.nodes:
        if node.bl_idname == "CompositorNodeRLayers" and (node.scene, node.layer) == (scene, view_layer.name):
            return node
    node = tree.nodes.new("CompositorNodeRLayers")
    node.scene, node.layer, node.location = scene, view_layer.name, (-1000.0, 0.0)
    return node


def _output_of(tree: Any) -> bpy.types.NodeSocket:
    """Returns the input that is the compositor's result; another node from Blender 5.0 on."""
    kind = "CompositorNodeComposite" if hasattr(bpy.types, "CompositorNodeComposite") else "NodeGroupOutput"
    output = next((node for node in tree.nodes if node.bl_idname == kind), None)
    return (output or tree.nodes.new(kind)).inputs[0]


# ---------------------------------------------------------------- the group


def composite_group() -> bpy.types.NodeTree:
    """Returns the node group, the same for all shots of a file."""
    for group in bpy.data.node_groups:
        if group.get(MADE_BY) == VERSION and group.bl_idname == "CompositorNodeTree":
            return group
    tree = bpy.data.node_groups.new(GROUP, "CompositorNodeTree")
    tree[MADE_BY] = VERSION
    for name, way, kind in (
        ("World", "INPUT", "NodeSocketColor"),
        ("World Depth", "INPUT", "NodeSocketFloat"),
        ("Render", "INPUT", "NodeSocketColor"),
        ("Render Depth", "INPUT", "NodeSocketFloat"),
        ("Tolerance", "INPUT", "NodeSocketFloat"),
        ("Image", "OUTPUT", "NodeSocketColor"),
        ("In Front", "OUTPUT", "NodeSocketFloat"),
    ):
        socket = tree.interface.new_socket(name=name, in_out=way, socket_type=kind)
        if name == "Tolerance":
            socket.default_value, socket.min_value, socket.max_value = TOLERANCE, 0.0, 1.0
            socket.description = "Share of the distance by which the world's depth may be off before it hides an object"
    _Builder(tree).build()
    return tree


class _Builder:
    """Fills the group's tree, column by column; each method returns the socket that it makes."""

    def __init__(self, tree: bpy.types.NodeTree) -> None:
        self.tree = tree

    def build(self) -> None:
        given, result = self.node("NodeGroupInput", 0, 0), self.node("NodeGroupOutput", 10, 0)
        inputs = given.outputs
        world = self.fitted(inputs["World"], "Bicubic", 1, 1)
        world_depth = self.fitted(inputs["World Depth"], "Nearest", 1, 0)
        margin = self.math("ADD", 2, 1, inputs["Tolerance"], 1.0)
        reach = self.math("MULTIPLY", 3, 1, world_depth, margin)
        nearer = self.math("LESS_THAN", 8, 0, self.depth_of_objects(inputs["Render"], inputs["Render Depth"]), reach)
        smooth = self.node("CompositorNodeAntiAliasing", 9, 0)
        self.tree.links.new(nearer, smooth.inputs[0])
        self.tree.links.new(self.over(9, 1, smooth.outputs[0], world, inputs["Render"]), result.inputs["Image"])
        self.tree.links.new(smooth.outputs[0], result.inputs["In Front"])

    def depth_of_objects(self, render: bpy.types.NodeSocket, depth: bpy.types.NodeSocket) -> bpy.types.NodeSocket:
        """The depth where the render is opaque; beside it that of the farthest opaque pixel, elsewhere the nearest.

        Not the nearest beside it: where an object goes behind a shadow catcher, which is transparent, that would be
        the catcher's.
        """
        colours = self.node("CompositorNodeSeparateColor", 1, -2)
        self.tree.links.new(render, colours.inputs[0])
        opaque = self.math("GREATER_THAN", 2, -2, colours.outputs["Alpha"], OPAQUE)
        inside = self.math("MULTIPLY", 3, -2, depth, opaque)
        beside = self.grown(inside, EDGE_PX, 4, -2)
        nearest = self.grown(depth, -EDGE_PX, 4, -3)
        alone = self.math("LESS_THAN", 5, -2, beside, 1e-12)
        fallback = self.math("MULTIPLY", 5, -3, nearest, alone)
        outside = self.math("MULTIPLY", 6, -3, self.math("ADD", 6, -2, beside, fallback), self.inverted(opaque, 3, -3))
        return self.math("ADD", 7, -2, inside, outside)

    def inverted(self, share: bpy.types.NodeSocket, column: int, row: int) -> bpy.types.NodeSocket:
        return self.math("SUBTRACT", column, row, 1.0, share)

    def grown(self, values: bpy.types.NodeSocket, pixels: int, column: int, row: int) -> bpy.types.NodeSocket:
        """The largest value so many pixels around; for a negative number the smallest."""
        node = self.node("CompositorNodeDilateErode", column, row)
        if "Size" in node.inputs:
            node.inputs["Size"].default_value = pixels
        else:
            node.distance = pixels
        self.tree.links.new(values, node.inputs[0])
        return node.outputs[0]

    def fitted(self, image: bpy.types.NodeSocket, interpolation: str, column: int, row: int) -> bpy.types.NodeSocket:
        """The image at the render's size; depths are not mixed, which would put edges into the air."""
        node = self.node("CompositorNodeScale", column, row)
        if "Type" in node.inputs:
            node.inputs["Type"].default_value, node.inputs["Frame Type"].default_value = "Render Size", "Stretch"
            node.inputs["Interpolation"].default_value = interpolation
        else:
            node.space, node.frame_method = "RENDER_SIZE", "STRETCH"
            # Blender 4.2 has no choice.
            if hasattr(node, "interpolation"):
                node.interpolation = interpolation.upper()
        self.tree.links.new(image, node.inputs["Image"])
        return node.outputs[0]

    def over(self, column: int, row: int, share: Any, back: Any, front: Any) -> bpy.types.NodeSocket:
        node = self.node("CompositorNodeAlphaOver", column, row)
        named = "Background" in node.inputs
        places = [node.inputs[name] for name in ("Factor", "Background", "Foreground")] if named else node.inputs[:3]
        for place, value in zip(places, (share, back, front), strict=True):
            self.tree.links.new(value, place)
        return node.outputs[0]

    def math(self, operation: str, column: int, row: int, *values: Any) -> bpy.types.NodeSocket:
        # Up to Blender 4.5 compositors have a Math node of their own, since then that of all trees.
        own = hasattr(bpy.types, "CompositorNodeMath")
        node = self.node("CompositorNodeMath" if own else "ShaderNodeMath", column, row)
        node.operation = operation
        for place, value in zip(node.inputs, values, strict=False):
            if isinstance(value, bpy.types.NodeSocket):
                self.tree.links.new(value, place)
            else:
                place.default_value = value
        return node.outputs[0]

    def node(self, kind: str, column: int, row: int) -> bpy.types.Node:
        node = self.tree.nodes.new(kind)
        node.location = (200.0 * column, 180.0 * row)
        return node
