"""One rasteriser interface, two backends: gsplat on CUDA, numba on the CPU.

Both follow gsplat's conventions (pixel centres at +0.5, 0.3 px blur, antialiasing off, near plane, alpha cut-off 1/255,
transmittance stop 1e-4) and give RGB, alpha and expected depth for a batch of cameras, differentiable in the Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
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


def prepare_rasterizer(device: torch.device | str = "cpu") -> None:
    """Compiles the kernels for `device`, or loads them where that was done before, by drawing one Gaussian.

    On CUDA it fits two as well. The first time on a machine this takes about 15 s on the CPU and minutes on CUDA;
    later, a second or two. A worker that calls it while it has nothing else to do spares its first job the wait.

    Raises:
        WorldWarpError: `no_cuda_rasterizer`, as `rasterize`.
    """
    means = torch.tensor([[0.0, 0.0, 1.0]], device=device)
    gaussian = Gaussians(
        means=means.requires_grad_(),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device),
        scales=torch.zeros(1, 3, device=device),
        opacities=torch.zeros(1, device=device),
        sh0=torch.zeros(1, 1, 3, device=device),
        shN=torch.zeros(1, 3, 3, device=device),
    )
    eye = torch.eye(4)[None]
    rasterize(gaussian, eye, eye[:, :3, :3], 1, 1).rgb.sum().backward()
    if means.is_cuda:
        from .fit import prepare_fit

        prepare_fit(device)


def rasterizer_info(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """The backend for `device` with its versions and threads, for records; compiles nothing."""
    if torch.device(device).type == "cuda":
        from importlib.metadata import version

        from .fit import why_not_captured

        slow = why_not_captured()
        return {
            "backend": "gsplat",
            "gsplat": version("gsplat"),
            "gpu": torch.cuda.get_device_name(device),
            "fit": "one CUDA graph a step" if slow is None else f"step by step: {slow}",
        }
    import numba

    from .numba_threads import thread_layer

    return {
        "backend": "numba",
        "numba": numba.__version__,
        "thread_layer": thread_layer(),
        "threads": numba.get_num_threads(),
    }
