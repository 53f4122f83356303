"""The persistent world: every Gaussian fitted so far, and a bounded set of views that remember what was seen.

The public implementation throws its Gaussians away with every chunk and rebuilds them from the last few frames. Here a
chunk only adds what was not covered, refines the neighbourhood, and nothing that was seen is dropped; so coming back to
a place shows the same place. Memory grows with the world that was seen, not with the length of the path.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.blockout import Blockout, hidden_by
from ..history import History, to_bytes
from .fit import fit
from .fit_settings import FitSettings
from .gaussians import Gaussians, concatenate
from .look import look
from .loss import FitViews
from .seed import SeedView, seed_gaussians, seed_points
from .space import CacheSpace

SKY_DISTANCE = 20.0
"""The sky's Gaussians stand at this many times the farthest surface of the start frame."""
SEEN_ALPHA = 0.5
"""A pixel whose cache alpha reaches this was seen; below, Gaussians are missing."""
DEPTH_TOLERANCE = 0.1
"""Depths of one point from two views agree within this share."""
NEAR = 0.01
"""Cache units before a camera from which on it sees a point."""
STEP_BACK = 1.04
"""By how much a guess that contradicts what was seen is moved back at a time."""
SOURCE_VIEWS = 8
"""Key views that are asked about a camera, nearest first."""
MIN_NEW_PIXELS = 0.0005
"""Share of a view that must be missing before it is worth seeding."""


Representation = Literal["gaussians", "points", "none"]


@dataclass(frozen=True)
class CacheSettings:
    """How much to spend on the world, and the ablations of it.

    Attributes:
        first_steps: optimisation steps of the first fit.
        update_steps: of every later one, which is warm-started.
        points_per_view: Gaussians that a whole uncovered view gets; a partly covered one gets its share.
        max_gaussians: of the whole world; beyond it nothing is added.
        sh_degree: of the colour.
        key_views: views of a chunk that seed and fit.
        anchor_views: earlier views that a later fit also looks at, so that it cannot spoil them.
        max_key_views: views remembered over the whole path.
        representation: `gaussians`, the method's. `points`: an ablation, coloured points that are seeded alike and
            never optimised. `none`: an ablation, nothing is kept and every prior is empty.
        persistent: a chunk adds to the world and refines it. If not, an ablation that does as the public
            implementation: every chunk throws the world away and builds it anew from its own frames.
    """

    first_steps: int = 500
    update_steps: int = 200
    points_per_view: int = 50_000
    max_gaussians: int = 1_000_000
    sh_degree: int = 3
    key_views: int = 5
    anchor_views: int = 2
    max_key_views: int = 64
    fit: FitSettings = field(default_factory=FitSettings)
    representation: Representation = "gaussians"
    persistent: bool = True

    def planned_steps(self) -> tuple[int, int]:
        """Optimisation steps before the first chunk, and after each."""
        if self.representation != "gaussians":
            return 0, 0
        return self.first_steps, self.update_steps if self.persistent else self.first_steps + self.update_steps


@dataclass(frozen=True)
class KeyViews:
    """Views that were fitted: the memory of what was seen from where. Pictures are kept in 8 bits."""

    numbers: list[int]
    rgb: Tensor  # (V, H, W, 3) uint8
    depth: Tensor  # (V, H, W) float32, cache units, sky at the sky's depth
    trusted: Tensor  # (V, H, W) uint8, 255 where fully
    w2c: Tensor  # (V, 4, 4)
    K: Tensor  # (V, 3, 3)

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class SplatCache:
    """The world so far."""

    space: CacheSpace
    sky_depth: float
    gaussians: Gaussians
    source_frames: Tensor  # (N,) int32
    sky: Tensor  # (N,) bool
    views: KeyViews


@dataclass(frozen=True)
class CacheStep:
    """One optimisation step of `steps`."""

    step: int
    steps: int
    loss: float


EstimateDepth = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(rgb (H, W, 3), cache depth (H, W), seen (H, W) bool) -> complete planar z (inf is sky) and confidence (H, W)."""


def open_cache(
    space: CacheSpace, start: History, depth: Tensor, settings: CacheSettings, generator: torch.Generator
) -> Generator[CacheStep, None, SplatCache]:
    """Builds the world from the start frame and its depth ((H, W) planar z in cache units; inf is sky)."""
    assert len(start) == 1, len(start)
    finite = torch.isfinite(depth)
    sky_depth = SKY_DISTANCE * float(depth[finite].max())
    wanted = torch.ones_like(finite)
    seeds, sky = _seed(
        SeedView(start.rgb[0], depth, wanted, start.w2c[0], start.K[0]), settings.points_per_view, sky_depth, settings
    )
    flat = torch.where(finite, depth, torch.full_like(depth, sky_depth))
    views = FitViews(start.rgb, 1 / flat[None], start.trusted, torch.ones_like(flat)[None], start.w2c, start.K)
    trainable = torch.ones(len(seeds), dtype=torch.bool, device=sky.device)
    gaussians = yield from _run(seeds, trainable, views, settings.first_steps, settings, generator)
    return SplatCache(
        space=space,
        sky_depth=sky_depth,
        gaussians=gaussians,
        source_frames=torch.full((len(seeds),), start.numbers[0], dtype=torch.int32, device=sky.device),
        sky=sky,
        views=KeyViews(start.numbers, to_bytes(start.rgb), flat[None], to_bytes(start.trusted), start.w2c, start.K),
    )


def update_cache(
    cache: SplatCache,
    history: History,
    estimate_depth: EstimateDepth,
    settings: CacheSettings,
    generator: torch.Generator,
    blockout: Blockout | None = None,
) -> Generator[CacheStep, None, SplatCache]:
    """Adds what `history` shows and the world lacks, then refines the new Gaussians and their neighbourhood.

    The newest frame seeds first, because the next chunk continues from it; earlier ones fill what it did not see.
    Where the `blockout` (in cache units) knows a surface, what is added lies on it, also before what it hides.
    """
    if settings.representation == "none":
        return cache
    if not settings.persistent:
        cache = yield from _begin_anew(cache, history, estimate_depth, settings, generator)
    history = history[_spread(len(history), settings.key_views)]
    height, width = history.rgb.shape[1:3]
    gaussians, source_frames, sky = cache.gaussians, cache.source_frames, cache.sky
    before = len(gaussians)
    touched = torch.zeros(before, dtype=torch.bool, device=sky.device)
    depths, confidences, seeded = [], [], []
    for v in reversed(range(len(history))):
        so_far = look(gaussians, sky, history.w2c[v, None], history.K[v, None], width, height)
        seen = known = so_far.alpha[0] >= SEEN_ALPHA
        known_depth = so_far.depth[0]
        if blockout is not None:
            scene = blockout.depth(history.numbers[v])
            seen = seen & ~hidden_by(scene, known_depth)
            known = seen | torch.isfinite(scene)
            known_depth = torch.where(seen, known_depth, scene)
        wanted = ~seen
        depth, confidence = estimate_depth(history.rgb[v], known_depth, known)
        sight = _Sight.around(cache.views, history.w2c[v])
        depth = _move_out_of_sight(depth, ~known, history.w2c[v], history.K[v], sight, cache.sky_depth)
        room = settings.max_gaussians - len(gaussians)
        share = float(wanted.float().mean())
        if share >= MIN_NEW_PIXELS and room > 0:
            budget = min(max(int(settings.points_per_view * share), 16), room)
            seeds, is_sky = _seed(
                SeedView(history.rgb[v], depth, wanted, history.w2c[v], history.K[v]), budget, cache.sky_depth, settings
            )
            rows = torch.nonzero(~sight.before(seeds.means, 1 - DEPTH_TOLERANCE)).squeeze(1)[:room]
            seeds, is_sky = seeds[rows], is_sky[rows]
            touched |= _near(cache.gaussians, wanted, history.w2c[v], history.K[v])
            gaussians = concatenate([gaussians, seeds])
            sky = torch.cat([sky, is_sky])
            source_frames = torch.cat(
                [source_frames, torch.full_like(source_frames[:1], history.numbers[v]).expand(len(seeds))]
            )
        depths.append(torch.where(torch.isfinite(depth), depth, torch.full_like(depth, cache.sky_depth)))
        confidences.append(confidence)
        seeded.append(wanted)
    depth, confidence, wanted = (torch.stack(x[::-1]) for x in (depths, confidences, seeded))

    anchors = _choose_anchors(cache.views, history, settings.anchor_views)
    trusted = torch.maximum(history.trusted, wanted.to(history.trusted.dtype))
    views = _with_anchors(
        cache.views, anchors, FitViews(history.rgb, 1 / depth, trusted, confidence, history.w2c, history.K)
    )
    trainable = torch.cat([touched, torch.ones(len(gaussians) - before, dtype=torch.bool, device=sky.device)])
    # With nothing new there is still what the frames revised: everything in view may move.
    if not trainable.any():
        trainable = _in_view(gaussians, history, width, height)
    gaussians = yield from _run(gaussians, trainable, views, settings.update_steps, settings, generator)

    fitted = look(gaussians, sky, history.w2c, history.K, width, height)
    surface = torch.where(torch.isfinite(fitted.depth), fitted.depth, torch.full_like(depth, cache.sky_depth))
    remembered = torch.where(fitted.alpha >= SEEN_ALPHA, surface, depth)
    views_now = KeyViews(
        cache.views.numbers + history.numbers,
        torch.cat([cache.views.rgb, to_bytes(history.rgb)]),
        torch.cat([cache.views.depth, remembered]),
        torch.cat([cache.views.trusted, to_bytes(trusted)]),
        torch.cat([cache.views.w2c, history.w2c]),
        torch.cat([cache.views.K, history.K]),
    )
    return replace(
        cache,
        gaussians=gaussians,
        source_frames=source_frames,
        sky=sky,
        views=_prune(views_now, settings.max_key_views),
    )


def _begin_anew(
    cache: SplatCache,
    history: History,
    estimate_depth: EstimateDepth,
    settings: CacheSettings,
    generator: torch.Generator,
) -> Generator[CacheStep, None, SplatCache]:
    """A world of the newest frame alone. The old one still tells the depth of that frame: the scale must not drift."""
    newest = history.last(1)
    height, width = newest.rgb.shape[1:3]
    so_far = look(cache.gaussians, cache.sky, newest.w2c, newest.K, width, height)
    depth, _ = estimate_depth(newest.rgb[0], so_far.depth[0], so_far.alpha[0] >= SEEN_ALPHA)
    return (yield from open_cache(cache.space, newest, depth, settings, generator))


def nearest_views(views: KeyViews, w2c: Tensor, count: int) -> Tensor:
    """(min(count, V),) indices of the key views whose cameras are nearest to one (4, 4) camera, nearest first.

    Distance counts a turn of one radian as much as one cache unit of travel: both change about as much of the picture.
    """
    return camera_distance(views.w2c, w2c[None])[:, 0].argsort()[:count]


def camera_distance(a: Tensor, b: Tensor) -> Tensor:
    """(A, 4, 4) and (B, 4, 4) world-to-camera -> (A, B) travel in cache units plus turn in radians."""
    centre_a, centre_b = (-(w[:, :3, :3].mT @ w[:, :3, 3:])[..., 0] for w in (a, b))
    cosine = (torch.einsum("aij,bij->ab", a[:, :3, :3], b[:, :3, :3]) - 1) / 2
    return torch.cdist(centre_a, centre_b) + cosine.clamp(-1, 1).acos()


def _seed(view: SeedView, budget: int, sky_depth: float, settings: CacheSettings) -> tuple[Gaussians, Tensor]:
    """New Gaussians as the representation has them, and (N,) bool that tells the sky's."""
    match settings.representation:
        case "gaussians":
            return seed_gaussians(view, budget, sky_depth, settings.sh_degree)
        case "points":
            return seed_points(view, budget, sky_depth, settings.sh_degree)
        case "none":
            return seed_points(replace(view, wanted=torch.zeros_like(view.wanted)), 0, sky_depth, settings.sh_degree)
        case _:
            assert_never(settings.representation)


def _run(
    gaussians: Gaussians,
    trainable: Tensor,
    views: FitViews,
    steps: int,
    settings: CacheSettings,
    generator: torch.Generator,
) -> Generator[CacheStep, None, Gaussians]:
    if settings.representation != "gaussians":
        return gaussians
    fitting = fit(gaussians, trainable, views, steps, settings.fit, generator)
    step = 0
    while True:
        try:
            loss = next(fitting)
        except StopIteration as end:
            return end.value
        step += 1
        yield CacheStep(step, steps, loss)


def _spread(total: int, count: int) -> list[int]:
    """At most `count` positions, evenly spread, the last always among them."""
    return sorted({round(x) for x in np.linspace(total - 1, 0 if count > 1 else total - 1, min(count, total))})


def _near(gaussians: Gaussians, wanted: Tensor, w2c: Tensor, K: Tensor) -> Tensor:
    """(N,) bool: Gaussians whose centres project into or beside the wanted pixels."""
    height, width = wanted.shape
    reach = max(round(width / 64), 1)
    region = F.max_pool2d(wanted.float()[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0] > 0
    col, row, inside = _project(gaussians.means, w2c, K, width, height)
    return inside & region[row, col]


def _move_out_of_sight(
    depth: Tensor, guessed: Tensor, w2c: Tensor, K: Tensor, sight: _Sight, sky_depth: float
) -> Tensor:
    """(H, W) planar z; a guess ((H, W) bool) that stands where views looked through goes back along its ray, out of
    their sight: behind what they saw, or into the sky.

    The depth of a filled hole is a guess; where it contradicts what was seen, what was seen stays.
    """
    rows, cols = torch.nonzero(guessed & torch.isfinite(depth), as_tuple=True)
    c2w = torch.linalg.inv(w2c)
    pixels = torch.stack([cols + 0.5, rows + 0.5, torch.ones_like(rows)], -1).to(depth.dtype)
    rays, origin = pixels @ torch.linalg.inv(K).T @ c2w[:3, :3].T, c2w[:3, 3]
    z = depth[rows, cols]
    moving = torch.nonzero(sight.before(origin + rays * z[:, None], 1 - DEPTH_TOLERANCE))[:, 0]
    while len(moving):
        z[moving] *= STEP_BACK
        moving = moving[z[moving] < sky_depth]
        moving = moving[sight.before(origin + rays[moving] * z[moving, None], 1 + DEPTH_TOLERANCE)]
    moved = depth.clone()
    moved[rows, cols] = torch.where(z < sky_depth, z, torch.inf)
    return moved


@dataclass(frozen=True)
class _Sight:
    """What the V key views around a camera looked at.

    Attributes:
        nearest: (V, H, W) planar z in each view of the nearest thing at a pixel or right beside it.
        w2c: (V, 4, 4).
        K: (V, 3, 3).
    """

    nearest: Tensor
    w2c: Tensor
    K: Tensor

    @classmethod
    def around(cls, views: KeyViews, w2c: Tensor) -> _Sight:
        chosen = nearest_views(views, w2c, SOURCE_VIEWS)
        nearest = -F.max_pool2d(-views.depth[chosen, None], 3, stride=1, padding=1)[:, 0]
        return cls(nearest, views.w2c[chosen], views.K[chosen])

    def before(self, points: Tensor, share: float) -> Tensor:
        """(N,) bool: points (N, 3) nearer than this share of the way to what a view saw there."""
        camera = points @ self.w2c[:, :3, :3].mT + self.w2c[:, None, :3, 3]  # (V, N, 3)
        z = camera[..., 2]
        u, v = (camera @ self.K.mT)[..., :2].div(z.clamp_min(1e-6)[..., None]).unbind(-1)
        height, width = self.nearest.shape[1:]
        inside = (z > NEAR) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        view = torch.arange(len(z), device=z.device)[:, None]
        seen = self.nearest[view, v.clamp(0, height - 1).long(), u.clamp(0, width - 1).long()]
        return (inside & (z < share * seen)).any(0)


def _in_view(gaussians: Gaussians, history: History, width: int, height: int) -> Tensor:
    seen = torch.zeros(len(gaussians), dtype=torch.bool, device=gaussians.means.device)
    for v in range(len(history)):
        seen |= _project(gaussians.means, history.w2c[v], history.K[v], width, height)[2]
    return seen


def _project(points: Tensor, w2c: Tensor, K: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3) points -> pixel column, row (clamped to the image) and whether they fall into it."""
    camera = points @ w2c[:3, :3].T + w2c[:3, 3]
    z = camera[:, 2]
    uv = (camera @ K.T)[:, :2] / z.clamp_min(1e-6)[:, None]
    inside = (z > NEAR) & (uv[:, 0] >= 0) & (uv[:, 0] < width) & (uv[:, 1] >= 0) & (uv[:, 1] < height)
    return uv[:, 0].clamp(0, width - 1).long(), uv[:, 1].clamp(0, height - 1).long(), inside


def _choose_anchors(views: KeyViews, history: History, count: int) -> list[int]:
    """Earlier views that look at the same part of the world as the new frames, the start frame among them."""
    if count == 0 or len(views) == 0:
        return []
    order = camera_distance(views.w2c, history.w2c).amin(1).argsort().tolist()
    return sorted({0, *order[: max(count - 1, 1)]})[:count] if count > 1 else order[:1]


def _with_anchors(old: KeyViews, anchors: list[int], new: FitViews) -> FitViews:
    if not anchors:
        return new
    trusted = old.trusted[anchors].to(new.weight.dtype) / 255
    return FitViews(
        rgb=torch.cat([old.rgb[anchors].to(new.rgb.dtype) / 255, new.rgb]),
        disparity=torch.cat([1 / old.depth[anchors], new.disparity]),
        weight=torch.cat([trusted, new.weight]),
        depth_weight=torch.cat([trusted, new.depth_weight]),
        w2c=torch.cat([old.w2c[anchors], new.w2c]),
        K=torch.cat([old.K[anchors], new.K]),
    )


def _prune(views: KeyViews, most: int) -> KeyViews:
    """Drops the views that another one stands closest to, until at most `most` are left; the start frame stays."""
    keep = list(range(len(views)))
    distance = camera_distance(views.w2c, views.w2c)
    while len(keep) > most:
        sub = distance[keep][:, keep] + torch.eye(len(keep), device=distance.device) * 1e9
        closest = sub.amin(1)
        closest[0] = torch.inf
        keep.pop(int(closest.argmin()))
    if len(keep) == len(views):
        return views
    return KeyViews(
        [views.numbers[k] for k in keep],
        views.rgb[keep],
        views.depth[keep],
        views.trusted[keep],
        views.w2c[keep],
        views.K[keep],
    )
