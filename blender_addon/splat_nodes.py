# SPDX-License-Identifier: GPL-3.0-or-later
"""Splats in final renders of Cycles and EEVEE, below Blender 5.3: a Geometry Nodes modifier and a material.

In: a splat object (`splats.py`) and the scene's camera. Out, at render time alone: for each Gaussian one quad that
faces the camera, as large and as turned as the Gaussian is in the picture (EWA splatting, by the rules of the core's
rasteriser: the covariance is projected with the Jacobian at the centre and blurred by the pixel), with its colour from
the direction of view. The material fades each quad as a Gaussian and emits its colour, so no light changes it. All
quads stand parallel to the picture: along every ray they come in the order of the depth of their centres, which is how
splats are composited. EEVEE draws blended surfaces in the order of their faces, so these are sorted, farthest first.

Renderers blend light, the core's rasteriser the values of the picture; where many half-transparent splats of unlike
colours overlap, the two differ. Against the core's picture blended in light it is the same to 45 dB and more.

Everything is nodes and drivers that need no Python: a saved file renders without the add-on, as on a render farm. In
the viewport, where `splat_viewport.py` draws the splats, the modifier leaves a box around them, which can be clicked.
"""

from __future__ import annotations

import math
from typing import Any

import bpy

from .small_steps import Steps, run_through

MODIFIER = "WorldWarp Splats"
MATERIAL = "WorldWarp Splats"
HIDDEN = "WorldWarp Sky"
VERSION = 1
"""Of the node group and the material: those that an older add-on left in a file are made anew."""
MADE_BY = "worldwarp_splats"
"""Custom property that holds the version."""

BLUR_PX2 = 0.2
"""Added to the covariance in the picture. The core's rasteriser adds 0.3, of pixel centres; a third of that is what the
renderers' own pixel filter does."""
MIN_ALPHA, MAX_ALPHA = 1 / 255, 0.999
"""The rasteriser skips less and holds back more."""
HELD = 1.3
"""The Jacobian of a Gaussian beside the picture is taken within this many times the field of view."""
NEAR_CLIP_END = 0.9
"""What is farther than this share of the camera's clip end is drawn nearer, in its order and of its size in the
picture: skies are farther than cameras are set to see."""
TRANSPARENT_BOUNCES = 1024
"""Cycles counts every splat on a ray as one; its default of 8 leaves black where more are passed."""
SURE_BOUNCES = 32
"""So many are followed before Cycles casts lots about the rest, which is noise."""

COLOUR, CORNER = "splat_colour", "splat_corner"
"""Attributes that the modifier hands to the material: linear light with the opacity, and (-1..1, -1..1, 0)."""

C0, C1 = 0.28209479177387814, 0.4886025119029199
C2_XY, C2_ZZ, C2_XX = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
C3_XXX, C3_XYZ, C3_XZZ = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
C3_ZZZ, C3_ZXX = 0.3731763325901154, 1.445305721320277


def make_renderable(scene: bpy.types.Scene, thing: bpy.types.Object, sky: bpy.types.Object | None, degree: int) -> None:
    """Gives a splat object what Cycles and EEVEE need to render it, its far background with it.

    Args:
        scene: the one that it is rendered in; Cycles is allowed as many layers as it has.
        sky: the object's child with the far background, which is rendered by the parent: in one list, so that the
            order is right.
        degree: of the spherical harmonics, 0 to 3.
    """
    # The group first: a modifier that has one is evaluated with each of its changes.
    group = run_through(splat_group(degree, points=thing.type == "POINTCLOUD"))
    modifier = thing.modifiers.get(MODIFIER) or thing.modifiers.new(MODIFIER, "NODES")
    modifier.node_group = group
    _set_input(modifier, "Sky", sky)
    for name, expression in DRIVERS.items():
        _drive(thing, _input_path(modifier, name), expression)
    # A sun would have to cross all the layers; the proxy mesh takes and casts shadows.
    thing.visible_shadow = False
    if hasattr(thing, "cycles"):
        # The quads follow the camera from frame to frame, in another order: that is no motion of theirs.
        thing.cycles.use_deform_motion = False
    if sky is not None:
        sky.hide_render = True
        (sky.modifiers.get(MODIFIER) or sky.modifiers.new(MODIFIER, "NODES")).node_group = hidden_group()
    if hasattr(scene, "cycles"):
        scene.cycles.transparent_max_bounces = max(scene.cycles.transparent_max_bounces, TRANSPARENT_BOUNCES)
        scene.cycles.min_transparent_bounces = max(scene.cycles.min_transparent_bounces, SURE_BOUNCES)


# --- what the nodes must know of the camera

_VARIABLES = {
    "l": "camera.data.lens",
    "u": "camera.data.sensor_width",
    "v": "camera.data.sensor_height",
    "f": "camera.data.sensor_fit",
    "w": "render.resolution_x",
    "h": "render.resolution_y",
    "p": "render.resolution_percentage",
    "a": "render.pixel_aspect_x",
    "b": "render.pixel_aspect_y",
    "n": "camera.data.clip_start",
    "e": "camera.data.clip_end",
    "x": "camera.data.shift_x",
    "y": "camera.data.shift_y",
}
"""Name in a driver -> property of the scene that is rendered."""

_SENSOR = "(v if f == 2 else u)"
_ACROSS = "(max(w * a, h * b) if f == 0 else (w * a if f == 1 else h * b))"
DRIVERS = {
    # Tangents: of one pixel, and of the half of the picture that the Jacobian stays within.
    "Pixel": f"{_SENSOR} * a / (l * {_ACROSS} * p / 100)",
    "Frame": f"{_SENSOR} / l * ({HELD / 2} * max(w * a, h * b) / {_ACROSS} + max(abs(x), abs(y)))",
    "Clip Start": "n",
    "Clip End": "e",
}
"""Input of the group -> driver. All are of the simple kind, which Blender evaluates without Python."""


def _drive(thing: bpy.types.Object, path: str, expression: str) -> None:
    thing.driver_remove(path)
    driver = thing.driver_add(path).driver
    driver.type = "SCRIPTED"
    for name, source in _VARIABLES.items():
        if name in _names_in(expression):
            variable = driver.variables.new()
            variable.name, variable.type = name, "CONTEXT_PROP"
            variable.targets[0].context_property = "ACTIVE_SCENE"
            variable.targets[0].data_path = source
            # A scene that has no camera yet would make the driver invalid for good.
            variable.targets[0].use_fallback_value, variable.targets[0].fallback_value = True, 1.0
    driver.expression = expression


def _names_in(expression: str) -> set[str]:
    return set("".join(letter if letter.isalpha() else " " for letter in expression).split())


def _set_input(modifier: bpy.types.NodesModifier, name: str, value: Any) -> None:
    """Sets the input `name` of the modifier's group."""
    identifier = _identifier(modifier.node_group, name)
    if hasattr(modifier, "properties"):
        getattr(modifier.properties.inputs, identifier).value = value
    else:
        modifier[identifier] = value


def _input_path(modifier: bpy.types.NodesModifier, name: str) -> str:
    """Returns what a driver calls the input `name` of the modifier's group; another path from Blender 5.2 on."""
    identifier = _identifier(modifier.node_group, name)
    own = f".properties.inputs.{identifier}.value" if hasattr(modifier, "properties") else f'["{identifier}"]'
    return f'modifiers["{modifier.name}"]{own}'


def _identifier(group: bpy.types.NodeTree, name: str) -> str:
    sockets = (item for item in group.interface.items_tree if item.item_type == "SOCKET" and item.in_out == "INPUT")
    return next(socket.identifier for socket in sockets if socket.name == name)


# --- formulas as nodes


class Field:
    """An output socket that can be reckoned with: `a * b + 1` adds the nodes that do it."""

    def __init__(self, socket: bpy.types.NodeSocket) -> None:
        self.socket = socket

    @property
    def tree(self) -> bpy.types.NodeTree:
        return self.socket.id_data

    def __add__(self, other: Any) -> Field:
        return _reckon(self.tree, "ADD", self, other)

    def __sub__(self, other: Any) -> Field:
        return _reckon(self.tree, "SUBTRACT", self, other)

    def __mul__(self, other: Any) -> Field:
        return _reckon(self.tree, "MULTIPLY", self, other)

    def __truediv__(self, other: Any) -> Field:
        return _reckon(self.tree, "DIVIDE", self, other)

    def __neg__(self) -> Field:
        return _reckon(self.tree, "MULTIPLY", self, -1.0)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: float) -> Field:
        return _reckon(self.tree, "SUBTRACT", other, self)

    def __rtruediv__(self, other: float) -> Field:
        return _reckon(self.tree, "DIVIDE", other, self)

    def do(self, operation: str, *others: Any) -> Field:
        """Returns Blender's Math operation of this and `others`."""
        return _reckon(self.tree, operation, self, *others)

    def scaled(self, factor: Field) -> Field:
        """Returns this vector times a number."""
        node = _node(self.tree, "ShaderNodeVectorMath", operation="SCALE")
        _plug(node.inputs["Vector"], self)
        _plug(node.inputs["Scale"], factor)
        return Field(node.outputs["Vector"])

    def xyz(self) -> tuple[Field, Field, Field]:
        node = _node(self.tree, "ShaderNodeSeparateXYZ")
        _plug(node.inputs[0], self)
        x, y, z = (Field(output) for output in node.outputs)
        return x, y, z


def _reckon(tree: bpy.types.NodeTree, operation: str, *operands: Field | float) -> Field:
    """Returns a Math node's result, or a Vector Math node's where the first field is a vector."""
    vector = any(isinstance(operand, Field) and operand.socket.type == "VECTOR" for operand in operands)
    node = _node(tree, "ShaderNodeVectorMath" if vector else "ShaderNodeMath", operation=operation)
    for place, operand in zip(node.inputs, operands, strict=False):
        _plug(place, (operand,) * 3 if vector and isinstance(operand, (int, float)) else operand)
    return Field(next(output for output in node.outputs if output.enabled))


def _node(tree: bpy.types.NodeTree, kind: str, **settings: Any) -> bpy.types.Node:
    node = tree.nodes.new(kind)
    for name, value in settings.items():
        setattr(node, name, value)
    return node


def _plug(place: bpy.types.NodeSocket, value: Any) -> None:
    """Links a field into an input, or sets the input to a constant."""
    if isinstance(value, Field):
        value = value.socket
    if isinstance(value, bpy.types.NodeSocket):
        place.id_data.links.new(value, place)
    else:
        place.default_value = value


def _call(tree: bpy.types.NodeTree, kind: str, *values: Any, **settings: Any) -> Field:
    """Returns the first live output of a new node whose live inputs are `values`, in order (None leaves one alone)."""
    node = _node(tree, kind, **settings)
    # From Blender 5.0 on some choices are inputs too, each before what it is about.
    places = [place for place in node.inputs if place.enabled and place.type != "MENU"]
    for place, value in zip(places, values, strict=False):
        if value is not None:
            _plug(place, value)
    return Field(next(output for output in node.outputs if output.enabled))


def _attribute(tree: bpy.types.NodeTree, name: str, data_type: str) -> Field:
    return _call(tree, "GeometryNodeInputNamedAttribute", name, data_type=data_type)


def _vector(tree: bpy.types.NodeTree, x: Any, y: Any, z: Any) -> Field:
    return _call(tree, "ShaderNodeCombineXYZ", x, y, z)


# --- the group


def splat_group(degree: int, points: bool) -> Steps[bpy.types.NodeTree]:
    """Makes the node group that turns Gaussians into quads; one for each degree and kind of object is in a file.

    Args:
        degree: of the spherical harmonics that are evaluated, 0 to 3.
        points: of a point cloud (Blender 5.1 and later), else of a mesh of loose points.
    """
    name = f"WorldWarp Splats SH{degree}{' Points' if points else ''}"
    for group in bpy.data.node_groups:
        if group.get(MADE_BY) == VERSION and group.name.startswith(name) and group.bl_idname == "GeometryNodeTree":
            return group
    group = bpy.data.node_groups.new(name, "GeometryNodeTree")
    new_socket = group.interface.new_socket
    new_socket(name="Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    new_socket(name="Sky", in_out="INPUT", socket_type="NodeSocketObject")
    for name in DRIVERS:
        new_socket(name=name, in_out="INPUT", socket_type="NodeSocketFloat")
    new_socket(name="Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    yield
    yield from _fill(group, degree, points)
    yield
    _lay_out(group)
    # Not before: a group that was left half made is none.
    group[MADE_BY] = VERSION
    return group


def _fill(tree: bpy.types.NodeTree, degree: int, points: bool) -> Steps[None]:
    inputs = _node(tree, "NodeGroupInput")
    given = {name: Field(inputs.outputs[name]) for name in DRIVERS}
    gaussians = _gaussians(tree, inputs, points)

    camera = _node(tree, "GeometryNodeObjectInfo", transform_space="RELATIVE")
    _plug(camera.inputs["Object"], _call(tree, "GeometryNodeInputActiveCamera"))
    turned = Field(camera.outputs["Rotation"])
    away = _call(tree, "GeometryNodeInputPosition") - Field(camera.outputs["Location"])
    # An object that was scaled has the camera's distances in its own units.
    unit = Field(camera.outputs["Scale"]).xyz()[0]

    back = _call(tree, "FunctionNodeInvertRotation", turned)
    x, y, z = _call(tree, "FunctionNodeRotateVector", away, back).xyz()
    depth = -z
    base = _node(tree, "FunctionNodeSeparateColor")
    _plug(base.inputs[0], _attribute(tree, "radiance:base", "FLOAT_COLOR"))
    opacity = Field(base.outputs["Alpha"])
    log_reach = (opacity / MIN_ALPHA).do("MAXIMUM", 1.0).do("LOGARITHM", math.e)

    yield
    xx, xy, yy = yield from _covariance(tree, x / depth, y / depth, depth, back, given)
    middle, half = (xx + yy) * 0.5, (xx - yy) * 0.5
    spread = (half * half + xy * xy).do("SQRT")
    reach = (log_reach * 2.0).do("SQRT")
    long = (middle + spread).do("SQRT") * reach
    short = (middle - spread).do("MAXIMUM", 0.0).do("SQRT") * reach
    angle = xy.do("ARCTAN2", half) * 0.5
    yield

    # What lies beyond the camera's clip end comes nearer along its ray, and shrinks with that.
    end = given["Clip End"] * unit * NEAR_CLIP_END
    beyond = end * (1.0 + (1 / NEAR_CLIP_END - 1) * (1.0 - end / depth.do("MAXIMUM", end)))
    nearer = depth.do("MINIMUM", beyond) / depth

    radiance = yield from _radiance(tree, base, away, degree)
    light = []
    for channel in radiance.xyz():
        light.append(_linear(channel))
        yield
    colour = _call(tree, "FunctionNodeCombineColor", *light, opacity)
    yield
    axis = _call(tree, "FunctionNodeAxisAngleToRotation", (0.0, 0.0, 1.0), angle)
    rotation = _call(tree, "FunctionNodeRotateRotation", turned, axis, rotation_space="LOCAL")
    position = away.scaled(nearer) + Field(camera.outputs["Location"])
    seen = (depth.do("GREATER_THAN", given["Clip Start"] * unit)) * opacity.do("GREATER_THAN", MIN_ALPHA)
    yield

    # New points carry what is named here and none of the Gaussians' attributes, which would be copied to every corner.
    component = "POINTCLOUD"
    size = _node(tree, "GeometryNodeAttributeDomainSize", component=component)
    _plug(size.inputs[0], gaussians)
    cloud = _node(tree, "GeometryNodePoints")
    _plug(cloud.inputs["Count"], Field(size.outputs["Point Count"]))
    order = _call(tree, "GeometryNodeInputIndex")

    def of(value: Field, data_type: str) -> Field:
        return _call(tree, "GeometryNodeSampleIndex", gaussians, value, order, data_type=data_type, domain="POINT")

    _plug(cloud.inputs["Position"], of(position, "FLOAT_VECTOR"))
    made = Field(cloud.outputs[0])
    yield
    stretched = _vector(tree, long * nearer, short * nearer, 1.0)
    hidden_before_all = depth * seen - 1.0 * (1.0 - seen)
    for name, data_type, value in (
        (COLOUR, "FLOAT_COLOR", colour),
        ("rotation", "QUATERNION", rotation),
        ("size", "FLOAT_VECTOR", stretched),
        ("depth", "FLOAT", hidden_before_all),
    ):
        yield
        made = _stored(tree, made, name, data_type, of(value, data_type))
    yield
    far_first = -_attribute(tree, "depth", "FLOAT")
    made = _call(tree, "GeometryNodeSortElements", made, None, None, far_first, domain="POINT")
    yield

    instanced = _node(tree, "GeometryNodeInstanceOnPoints")
    _plug(instanced.inputs["Points"], made)
    _plug(instanced.inputs["Selection"], _attribute(tree, "depth", "FLOAT").do("GREATER_THAN", 0.0))
    _plug(instanced.inputs["Instance"], _quad(tree))
    _plug(instanced.inputs["Rotation"], _attribute(tree, "rotation", "QUATERNION"))
    _plug(instanced.inputs["Scale"], _attribute(tree, "size", "FLOAT_VECTOR"))
    made = Field(instanced.outputs[0])
    yield
    for name in ("rotation", "size", "depth"):
        made = _call(tree, "GeometryNodeRemoveAttribute", made, name)
    made = _call(tree, "GeometryNodeRealizeInstances", made)
    yield
    made = _call(tree, "GeometryNodeSetMaterial", made, None, splat_material())
    yield
    _plug(_node(tree, "NodeGroupOutput").inputs[0], _in_viewport(tree, _box(tree, inputs), made))


def hidden_group() -> bpy.types.NodeTree:
    """Returns the node group of a sky: nothing in the viewport, where its points and their box would be in the way."""
    for group in bpy.data.node_groups:
        if group.get(MADE_BY) == VERSION and group.name.startswith(HIDDEN):
            return group
    group = bpy.data.node_groups.new(HIDDEN, "GeometryNodeTree")
    group[MADE_BY] = VERSION
    for way in ("INPUT", "OUTPUT"):
        group.interface.new_socket(name="Geometry", in_out=way, socket_type="NodeSocketGeometry")
    inputs = _node(group, "NodeGroupInput")
    _plug(_node(group, "NodeGroupOutput").inputs[0], _in_viewport(group, None, Field(inputs.outputs[0])))
    _lay_out(group)
    return group


def _in_viewport(tree: bpy.types.NodeTree, there: Field | None, rendered: Field) -> Field:
    """Returns one geometry for viewports and another for renders; only the one that is asked for is worked out."""
    chosen = _node(tree, "GeometryNodeSwitch", input_type="GEOMETRY")
    values = (rendered, _call(tree, "GeometryNodeIsViewport"), there)
    for place, value in zip(("False", "Switch", "True"), values, strict=True):
        if value is not None:
            _plug(next(socket for socket in chosen.inputs if socket.enabled and socket.name == place), value)
    return Field(next(output for output in chosen.outputs if output.enabled))


def _box(tree: bpy.types.NodeTree, inputs: bpy.types.Node) -> Field:
    """Returns the edges of the box around the object's own points."""
    around = _node(tree, "GeometryNodeBoundBox")
    _plug(around.inputs[0], Field(inputs.outputs["Geometry"]))
    return _call(tree, "GeometryNodeDeleteGeometry", Field(around.outputs[0]), domain="FACE", mode="ONLY_FACE")


def _gaussians(tree: bpy.types.NodeTree, inputs: bpy.types.Node, points: bool) -> Field:
    """Returns the points of the object and of its sky, together."""
    sky = _node(tree, "GeometryNodeObjectInfo", transform_space="RELATIVE")
    _plug(sky.inputs["Object"], Field(inputs.outputs["Sky"]))
    parts = [Field(inputs.outputs["Geometry"]), Field(sky.outputs["Geometry"])]
    if not points:
        parts = [_call(tree, "GeometryNodeMeshToPoints", part) for part in parts]
    joined = _node(tree, "GeometryNodeJoinGeometry")
    # Links of such an input are taken last to first.
    for part in reversed(parts):
        _plug(joined.inputs[0], part)
    return Field(joined.outputs[0])


def _covariance(
    tree: bpy.types.NodeTree, x: Field, y: Field, depth: Field, back: Field, given: dict[str, Field]
) -> Steps[tuple[Field, Field, Field]]:
    """Makes xx, xy, yy of each Gaussian in the plane of its centre that is parallel to the picture, scene units².

    Args:
        x: and y: tangents of the direction to the centre.
        back: rotation from the object into the camera.
    """
    x, y = (tangent.do("MINIMUM", given["Frame"]).do("MAXIMUM", -given["Frame"]) for tangent in (x, y))
    turn = _attribute(tree, "rotation", "QUATERNION")
    sizes = _attribute(tree, "scale", "FLOAT_VECTOR").xyz()
    pixel = given["Pixel"] * depth
    xx = yy = pixel * pixel * BLUR_PX2
    xy: Field | None = None
    for unit, size in zip(((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), sizes, strict=True):
        in_object = _call(tree, "FunctionNodeRotateVector", unit, turn)
        along_x, along_y, along_z = _call(tree, "FunctionNodeRotateVector", in_object, back).scaled(size).xyz()
        # A step towards the camera (its z) moves the point outwards in the picture.
        in_x, in_y = along_x + x * along_z, along_y + y * along_z
        xx, yy = xx + in_x * in_x, yy + in_y * in_y
        xy = in_x * in_y if xy is None else xy + in_x * in_y
        yield
    assert xy is not None
    return xx, xy, yy


def _radiance(tree: bpy.types.NodeTree, base: bpy.types.Node, away: Field, degree: int) -> Steps[Field]:
    """Makes the colour that the camera sees, in the picture's own (sRGB) values, as a vector."""
    direction = _call(tree, "ShaderNodeVectorMath", away, operation="NORMALIZE")
    x, y, z = direction.xyz()
    colour = _vector(tree, *(base.outputs[name] for name in ("Red", "Green", "Blue"))) * C0 + 0.5
    bands: list[Field] = []
    if degree >= 1:
        bands += [y * -C1, z * C1, x * -C1]
    yield
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        bands += [x * y * C2_XY, y * z * -C2_XY, (2.0 * zz - xx - yy) * C2_ZZ, x * z * -C2_XY, (xx - yy) * C2_XX]
    yield
    if degree >= 3:
        bands += [y * (3.0 * xx - yy) * -C3_XXX, x * y * z * C3_XYZ, y * (4.0 * zz - xx - yy) * -C3_XZZ]
        yield
        bands += [z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * C3_ZZZ, x * (4.0 * zz - xx - yy) * -C3_XZZ]
        yield
        bands += [z * (xx - yy) * C3_ZXX, x * (xx - 3.0 * yy) * -C3_XXX]
    for i, band in enumerate(bands):
        colour = colour + _attribute(tree, f"radiance:sh_{i}", "FLOAT_VECTOR").scaled(band)
        yield
    return colour


def _linear(value: Field) -> Field:
    """Returns the linear light of an sRGB value; splats hold what pictures hold."""
    value = value.do("MAXIMUM", 0.0)
    bright = value.do("GREATER_THAN", 0.04045)
    curved = ((value + 0.055) / 1.055).do("POWER", 2.4)
    return bright * curved + (1.0 - bright) * (value / 12.92)


def _stored(tree: bpy.types.NodeTree, geometry: Field, name: str, data_type: str, value: Field) -> Field:
    return _call(
        tree,
        "GeometryNodeStoreNamedAttribute",
        geometry,
        None,
        name,
        value,
        data_type=data_type,
        domain="POINT",
    )


def _quad(tree: bpy.types.NodeTree) -> Field:
    """Returns a square from -1 to 1 that knows its corners."""
    quad = Field(_node(tree, "GeometryNodeMeshGrid").outputs["Mesh"])
    for name, value in (("Size X", 2.0), ("Size Y", 2.0), ("Vertices X", 2), ("Vertices Y", 2)):
        quad.socket.node.inputs[name].default_value = value
    return _stored(tree, quad, CORNER, "FLOAT_VECTOR", _call(tree, "GeometryNodeInputPosition"))


def _lay_out(tree: bpy.types.NodeTree) -> None:
    """Puts the nodes in columns, each to the right of what it takes."""
    sources: dict[str, list[str]] = {node.name: [] for node in tree.nodes}
    for link in tree.links:
        sources[link.to_node.name].append(link.from_node.name)
    column: dict[str, int] = {}
    # Each node as soon as all that it takes has its place.
    waiting = list(sources)
    while waiting:
        placed = [name for name in waiting if all(source in column for source in sources[name])]
        assert placed, "nodes that take each other"
        column |= {name: 1 + max((column[source] for source in sources[name]), default=-1) for name in placed}
        waiting = [name for name in waiting if name not in column]
    filled: dict[int, int] = {}
    places = []
    for node in tree.nodes:
        place = column[node.name]
        places += [place * 200.0, -160.0 * filled.get(place, 0)]
        filled[place] = filled.get(place, 0) + 1
    # All at once: the tree is gone through with every single one.
    tree.nodes.foreach_set("location", places)


# --- the material


def splat_material() -> bpy.types.Material:
    """Returns the material of all splats: their own light, fading as a Gaussian."""
    for material in bpy.data.materials:
        if material.get(MADE_BY) == VERSION:
            return material
    material = bpy.data.materials.new(MATERIAL)
    material[MADE_BY] = VERSION
    # In the order of the faces, over one another.
    material.surface_render_method = "BLENDED"
    material.use_transparency_overlap = True
    material.use_backface_culling = False
    if hasattr(material, "cycles"):
        # A million lamps would make every other sample noise; what looks at them sees their light all the same.
        material.cycles.emission_sampling = "NONE"
    if not material.use_nodes:
        material.use_nodes = True
    tree = material.node_tree
    tree.nodes.clear()
    splat = _node(tree, "ShaderNodeAttribute", attribute_name=COLOUR)
    corner = Field(_node(tree, "ShaderNodeAttribute", attribute_name=CORNER).outputs["Vector"])
    opacity = Field(splat.outputs["Alpha"])
    square = _call(tree, "ShaderNodeVectorMath", corner, corner, operation="DOT_PRODUCT")
    # At the quad's edge alpha is MIN_ALPHA: a Gaussian of sigma units, written in units of the quad.
    faded = opacity * (opacity / MIN_ALPHA).do("POWER", -square)
    alpha = faded.do("MINIMUM", MAX_ALPHA) * square.do("LESS_THAN", 1.0)
    light = _node(tree, "ShaderNodeEmission")
    _plug(light.inputs["Color"], Field(splat.outputs["Color"]))
    mixed = _node(tree, "ShaderNodeMixShader")
    _plug(mixed.inputs[0], alpha)
    _plug(mixed.inputs[1], Field(_node(tree, "ShaderNodeBsdfTransparent").outputs[0]))
    _plug(mixed.inputs[2], Field(light.outputs[0]))
    _plug(_node(tree, "ShaderNodeOutputMaterial").inputs["Surface"], Field(mixed.outputs[0]))
    _lay_out(tree)
    return material
