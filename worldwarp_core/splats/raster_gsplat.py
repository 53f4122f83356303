"""The CUDA rasteriser: gsplat's kernels, with the settings that both backends share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WorldWarpError
from .constants import BLUR_PX2, FAR, NEAR
from .gaussians import Gaussians


def rasterize_gsplat(
    gaussians: Gaussians, w2c: Tensor, K: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """RGB (C, H, W, 3), alpha (C, H, W) and expected depth (C, H, W), float32, on the Gaussians' device.

    Raises:
        WorldWarpError: `no_cuda_rasterizer` when gsplat's kernels can be neither loaded nor built.
    """
    rasterization = load_gsplat()
    device = gaussians.means.device
    if len(gaussians) == 0:
        # The kernels cannot be launched over nothing. The sum is 0 and keeps the images differentiable.
        empty = torch.zeros(len(w2c), height, width, 5, device=device) + gaussians.means.sum()
        return empty[..., :3], empty[..., 3], empty[..., 4]
    image, alpha, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales.exp(),
        gaussians.opacities.sigmoid(),
        torch.cat([gaussians.sh0, gaussians.shN], dim=1),
        w2c.to(device, torch.float32),
        K.to(device, torch.float32),
        width,
        height,
        near_plane=NEAR,
        far_plane=FAR,
        eps2d=BLUR_PX2,
        sh_degree=gaussians.sh_degree,
        packed=False,  # faster than packed, and no larger, from 1 view of 20,000 Gaussians to 49 of 500,000
        render_mode="RGB+ED",
        rasterize_mode="classic",
    )
    return image[..., :3], alpha[..., 0], image[..., 3]


@functools.cache
def load_gsplat() -> Callable[..., Any]:
    """`gsplat.rasterization`, once its CUDA kernels are there: at first use gsplat compiles them, which takes minutes.

    Raises:
        WorldWarpError: `no_cuda_rasterizer`, with the reason and the remedy.
    """
    reason = "no CUDA toolkit was found to compile them with"
    try:
        with _alone():
            from gsplat import rasterization
            from gsplat.cuda._backend import _C

        if _C is not None:
            return rasterization  # type: ignore[no-any-return]
    except Exception as error:  # Whatever the compiler, the linker or the import of its product may raise.
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    raise WorldWarpError(
        "no_cuda_rasterizer",
        f"gsplat's CUDA kernels cannot be used ({reason}). Install the CUDA toolkit {torch.version.cuda or ''} with "
        "nvcc, a C++ compiler and `pip install ninja`, or a prebuilt wheel from https://docs.gsplat.studio/whl, "
        "then try again; or choose the CPU.",
    )


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps other processes from importing gsplat: while one builds the kernels, another's import deletes them."""
    from filelock import FileLock
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    lock = FileLock(root / "gsplat_worldwarp.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:  # nothing can be built where nothing can be written, and a prebuilt gsplat needs no lock
        yield
        return
    try:
        yield
    finally:
        lock.release()
