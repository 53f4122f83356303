"""Kernels made ready before they are needed, and what they are, for records."""

from __future__ import annotations

import torch

from .fit import prepare_fit, why_not_captured
from .gaussians import Gaussians
from .rasterize import rasterize


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
        prepare_fit(device)


def rasterizer_info(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """The backend for `device` with its versions and threads, for records; compiles nothing."""
    if torch.device(device).type == "cuda":
        from importlib.metadata import version

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
