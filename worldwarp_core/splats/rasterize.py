"""One rasteriser interface, two backends: gsplat on CUDA, numba on the CPU.

Both follow gsplat's conventions (pixel centres at +0.5, 0.3 px blur, antialiasing off, near plane, alpha cut-off 1/255,
transmittance stop 1e-4) and give RGB, alpha and expected depth for a batch of cameras, differentiable in the Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .gaussians import Gaussians


@dataclass(frozen=True)
class Render:
    """C views of H x W pixels."""

    rgb: Tensor  # (C, H, W, 3) premultiplied by alpha (black background), not clamped
    alpha: Tensor  # (C, H, W) in [0, 1]
    depth: Tensor  # (C, H, W) expected planar z of what is there (sum of w z / sum of w), 0 where alpha is 0


def rasterize(gaussians: Gaussians, w2c: Tensor, K: Tensor, width: int, height: int) -> Render:
    """Renders with the backend of the Gaussians' device (CUDA: gsplat, CPU: numba).

    Args:
        gaussians: in the frame of `w2c`, float32, scaled so that the scene lies between 0.01 and 1e10 from the cameras
            (nearer Gaussians are culled); gradients flow to all six tensors.
        w2c: (C, 4, 4) world-to-camera, OpenCV axes, no gradient.
        K: (C, 3, 3) in pixels, no gradient.

    Raises:
        WorldWarpError: `no_cuda_rasterizer` when the Gaussians are on CUDA and gsplat's kernels cannot be used.
    """
    assert w2c.shape == (len(w2c), 4, 4), w2c.shape
    assert K.shape == (len(w2c), 3, 3), (K.shape, w2c.shape)
    assert min(width, height) > 0, (width, height)
    # Each backend is imported when it is first used: numba takes a second, gsplat may compile its kernels.
    if gaussians.means.is_cuda:
        from .raster_gsplat import rasterize_gsplat

        return Render(*rasterize_gsplat(gaussians, w2c, K, width, height))
    from .raster_cpu import rasterize_cpu

    return Render(*rasterize_cpu(gaussians, w2c, K, width, height))
