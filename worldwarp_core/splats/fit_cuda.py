"""The fit on CUDA: a whole step captured as a graph, which the device replays without the host.

What is computed is what `fit.optimise` computes, to the order of float additions. gsplat projects; `raster_triton`,
`loss_triton` and `step_triton` do the rest. Launched one by one from Python, these kernels would take several times as
long to launch as to run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .constants import BLUR_PX2, FAR, NEAR
from .device_steps import SPARE_ROOM, DeviceSteps, run
from .fit_settings import FitSettings
from .gaussians import SH_C0, Gaussians
from .intersect import TileLists
from .loss import FitViews
from .moving import Moving
from .raster_gsplat import load_gsplat

WARM_UP = 1
"""Steps before a capture, in which everything is compiled and every buffer allocated: one does, and each takes as long
as three captured ones."""


def optimise_on_cuda(
    moving: Moving, still: Gaussians, views: FitViews, order: list[int], settings: FitSettings
) -> Generator[float, None, None]:
    """Turns the parameters of `moving`, one view of `order` a step, and yields the losses, a few at a time.

    Args:
        moving: what `lay_out` made of it.
        still: the Gaussians that take part in the picture and stay as they are.
    """
    from .step_triton import adam_update

    load_gsplat()
    scene = CudaScene(moving, still, views, settings)
    yield from run(DeviceSteps(moving, scene, order, settings, adam_update), capture)


def lay_out(moving: Moving) -> Moving:
    """The same parameters as the kernels read them: contiguous, harmonics `step_triton.in_planes`."""
    from .step_triton import in_planes

    def laid(name: str, t: Tensor) -> Tensor:
        return in_planes(t) if name == "shN" else t.contiguous()

    start = Gaussians(**{name: laid(name, t) for name, t in moving.start.tensors().items()})
    learned = {name: laid(name, t.detach()).requires_grad_(True) for name, t in moving.learned.items()}
    return Moving(start, moving.radius.contiguous(), learned)


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """What replays the step, after `WARM_UP` steps that count."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # What other threads launch meanwhile is none of the capture's business. One that waited for the whole device would
    # break it all the same: nothing in an engine's process does, but the thread that makes the shot.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


Activated = tuple[Tensor, Tensor, Tensor, Tensor]
"""(N, 3) means, (N, 3) standard deviations, (N,) opacities in [0, 1] and (N, 3) colours from one camera."""

Camera = tuple[Tensor, Tensor, Tensor]
"""(1, 3) centre, (1, 4, 4) w2c and (1, 3, 3) K."""


@dataclass(frozen=True)
class Splats:
    """Gaussians as one camera sees them."""

    means2d: Tensor  # (N, 2) pixels
    conics: Tensor  # (N, 3) inverse covariances
    colours: Tensor  # (N, 3)
    depths: Tensor  # (N,) planar z
    opacities: Tensor  # (N,) in [0, 1]
    radii: Tensor  # (N, 2) int32 pixels, 0 where unseen

    def tensors(self) -> tuple[Tensor, ...]:
        return self.means2d, self.conics, self.colours, self.depths, self.opacities, self.radii


class CudaScene:
    """The views and Gaussians of a fit; a `device_steps.Scene`, whose room is for (tile, Gaussian) pairs.

    `moving` is what `lay_out` made of it.
    """

    def __init__(self, moving: Moving, still: Gaussians, views: FitViews, settings: FitSettings) -> None:
        from .loss_triton import ViewLoss

        self.moving = moving
        self._view_loss = ViewLoss(views, settings)
        self.height, self.width = views.weight.shape[1:]
        centres = torch.linalg.inv(views.w2c)[:, :3, 3]
        self._cameras = torch.cat([centres, views.w2c.flatten(1), views.K.flatten(1)], 1)
        each = [torch.tensor([v], device=views.w2c.device) for v in range(len(views))]
        with torch.no_grad():
            self.still: Splats | None = None
            if len(still):
                # What stays as it is looks the same at every step.
                cameras = [self._camera(v) for v in each]
                seen = [self._project(_activate(still, camera[0]), still.quats, camera) for camera in cameras]
                self.still = Splats(*(torch.stack(x) for x in zip(*(s.tensors() for s in seen), strict=True)))
            self.room = 2**16
            needed = torch.stack([self._lists(self._splats(v)).needed for v in each])
        self.make_room(int(needed.max()))

    def make_room(self, needed: int) -> None:
        # Rounded, so that fits of about the same size share what was compiled.
        self.room = -(-int(needed * SPARE_ROOM) // 2**16) * 2**16

    def loss(self, view: Tensor) -> tuple[Tensor, Tensor]:
        from .raster_triton import draw

        splats = self._splats(view)
        lists = self._lists(splats)
        drawn = splats.means2d, splats.conics, splats.colours, splats.depths, splats.opacities
        image = draw(*drawn, lists.ids, lists.offsets, self.width, self.height)
        return self._view_loss(*image, view), lists.needed

    def _splats(self, view: Tensor) -> Splats:
        from .step_triton import activate

        start, learned, camera = self.moving.start, self.moving.learned, self._camera(view)
        activated = activate(
            start.means, self.moving.radius, start.scales, learned["offset"], learned["scales"], learned["opacities"],
            learned["sh0"], learned.get("shN", start.shN), camera[0],
        )  # fmt: skip
        moved = self._project(activated, learned["quats"], camera)
        if self.still is None:
            return moved
        return Splats(*(torch.cat([s[view][0], m]) for s, m in zip(self.still.tensors(), moved.tensors(), strict=True)))

    def _camera(self, view: Tensor) -> Camera:
        row = self._cameras.index_select(0, view)
        return row[:, :3], row[:, 3:19].view(1, 4, 4), row[:, 19:].view(1, 3, 3)

    def _project(self, activated: Activated, quats: Tensor, camera: Camera) -> Splats:
        from gsplat import fully_fused_projection

        means, scales, opacities, colours = activated
        _, w2c, K = camera
        radii, means2d, depths, conics, _ = fully_fused_projection(
            means, None, quats, scales, w2c, K, self.width, self.height,
            eps2d=BLUR_PX2, near_plane=NEAR, far_plane=FAR, opacities=opacities,
        )  # fmt: skip
        return Splats(means2d[0], conics[0], colours, depths[0], opacities, radii[0])

    @torch.no_grad()
    def _lists(self, splats: Splats) -> TileLists:
        from .raster_triton import TILE
        from .step_triton import tile_lists

        means2d, conics, _, depths, opacities, radii = (t.detach() for t in splats.tensors())
        return tile_lists(means2d, conics, radii, depths, opacities, self.width, self.height, TILE, self.room)


def _activate(gaussians: Gaussians, centre: Tensor) -> Activated:
    colour = colours(gaussians.means, gaussians.sh0, gaussians.shN, centre)
    return gaussians.means, gaussians.scales.exp(), gaussians.opacities.sigmoid(), colour


def colours(means: Tensor, sh0: Tensor, shN: Tensor, centre: Tensor) -> Tensor:
    """(N, 3) colours that a camera at (1, 3) `centre` sees; the conventions are those of `sh`."""
    colour = SH_C0 * sh0[:, 0]
    x, y, z = F.normalize(means - centre, dim=-1).unbind(-1)
    for k, basis in zip(range(shN.shape[1]), _harmonics(x, y, z), strict=False):
        colour = colour + basis[:, None] * shN[:, k]
    return (colour + 0.5).clamp_min(0)


def _harmonics(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """The fifteen real harmonics of degrees 1 to 3."""
    xx, yy, zz = x * x, y * y, z * z
    c1, c3, c3x = 0.4886025119029199, 0.5900435899266435, 0.4570457994644658
    return (
        -c1 * y,
        c1 * z,
        -c1 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * zz - xx - yy),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (xx - yy),
        -c3 * y * (3 * xx - yy),
        2.890611442640554 * x * y * z,
        -c3x * y * (4 * zz - xx - yy),
        0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
        -c3x * x * (4 * zz - xx - yy),
        1.445305721320277 * z * (xx - yy),
        -c3 * x * (xx - 3 * yy),
    )
