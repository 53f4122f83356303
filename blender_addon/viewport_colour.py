# SPDX-License-Identifier: GPL-3.0-or-later
"""What numbers a viewport wants to be drawn in: light, which it turns into sRGB itself, or sRGB as it is.

Blender 4.3 takes the one and 5.2 the other, and neither says so: a pixel is drawn and read back, once.
"""

from __future__ import annotations

import functools

import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader
from mathutils import Matrix

PROBE = 0.2
"""Of light; as sRGB it is 0.48."""


@functools.cache
def takes_light() -> bool:
    """Returns whether viewports turn what is drawn into sRGB; only within a handler that draws in one.

    The pixel at the lower left corner is drawn over.
    """
    texels = np.array([PROBE, PROBE, PROBE, 1.0], np.float32)
    texture = gpu.types.GPUTexture((1, 1), format="RGBA16F", data=gpu.types.Buffer("FLOAT", texels.size, texels))
    shader = gpu.shader.from_builtin("IMAGE")
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    batch = batch_for_shader(shader, "TRI_FAN", {"pos": corners, "texCoord": ((0, 0), (1, 0), (1, 1), (0, 1))})
    left, bottom, *_ = gpu.state.viewport_get()
    scissor = gpu.state.scissor_get()
    with gpu.matrix.push_pop(), gpu.matrix.push_pop_projection():
        gpu.matrix.load_matrix(Matrix.Identity(4))
        gpu.matrix.load_projection_matrix(Matrix.Identity(4))
        gpu.state.scissor_test_set(True)
        gpu.state.scissor_set(left, bottom, 1, 1)
        gpu.state.depth_test_set("NONE")
        gpu.state.blend_set("NONE")
        shader.bind()
        shader.uniform_sampler("image", texture)
        batch.draw(shader)
        gpu.state.scissor_set(*scissor)
    drawn = gpu.state.active_framebuffer_get().read_color(left, bottom, 1, 1, 4, 0, "FLOAT").to_list()[0][0]
    return float(drawn[0]) > 0.34
