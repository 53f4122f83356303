"""The whole method, top to bottom: a camera path and a start frame go in, frames and a world come out.

Chunk by chunk (method section 1): history -> depth -> cache -> priors -> fill -> frames -> history. Only this module
knows all the stages. `generate` is a generator that yields after every step, so a consumer cancels by not asking for
the next one, and frames leave as soon as they exist. It yields its state wherever it could go on from it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..cameras.path import CameraPath, jump_warning
from ..checkpoint import Checkpoint
from ..errors import WorldWarpError
from ..frame_memory import frame_arrays
from ..geometry.blockout import Blockout, hidden_by, in_front_of, start_of
from ..geometry.complete import complete_depth
from ..geometry.monocular import DepthModel
from ..geometry.start import start_depth
from ..history import History, extend_history, from_bytes, in_levels
from ..pictures.framing import resize_map, resize_picture, working_size
from ..spec import BACKGROUND_DEPTH, CacheUpdate, Event, Finished, Frame, GenerateSpec, Notice, Progress, Stage
from ..splats.cache import CacheSettings, CacheStep, SplatCache, open_cache, update_cache
from ..splats.space import CacheSpace
from .chunks import ChunkPlan, split_chunks
from .fill import Fill, FillStep
from .host_copy import mark, send_to_host
from .priors import VALID, Priors, keep_to_blockout, render_priors
from .state import LoopState, restore, saved_unit
from .timeline import Timeline

PRIORS_BATCH = 8
"""Cameras rendered between two progress events."""
FRAMES_ON_THE_WAY = 8
"""Finished frames that may still be on their way from a GPU: as many as the autoencoder decodes together."""
NOTHING_IN_VIEW = 0.01
"""A frame of whose pixels less than this share is valid was made from next to nothing, and the user is told."""
MIN_KNOWN_START = 0.01
"""Share of the first frame that the path's depth must know to be the start frame's depth too."""
MAX_CONTRADICTION = 0.02
"""Share of the first frame in which two depths of it may contradict each other before the user is told."""
GUESS_S: dict[Stage, float] = {
    "cache": 0.1,
    "priors": 0.05,
    "fill": 0.03,
    "encode": 1.0,
    "denoise": 0.5,
    "decode": 0.03,
    "finish": 0.0,
}
"""Seconds a step before any was measured; only their ratios matter."""

T = TypeVar("T")


@dataclass(frozen=True)
class Models:
    """What is learned, and what stands in for it."""

    fill: Fill
    monocular: DepthModel | None = None


@dataclass(frozen=True)
class PipelineSettings:
    """What a device can afford; the shot's own settings are in its `GenerateSpec`.

    Attributes:
        max_pixels: of the size worked at; larger frames are made at this size and enlarged, and the user is told.
        points_per_pixel: Gaussians for each pixel of an uncovered view.
        cache: everything else about the cache; `points_per_view` follows from the two above.
    """

    device: str
    max_pixels: int
    points_per_pixel: float
    cache: CacheSettings


def generate(
    spec: GenerateSpec, models: Models, settings: PipelineSettings, resume: Checkpoint | None = None
) -> Iterator[Event]:
    """Yields the events of one shot, `Finished` last.

    Args:
        resume: of this very shot; its frames are not made again, and the rest is as it would have been: to the bit on a
            CPU, on a GPU up to the order in which it happens to add up numbers.

    Raises:
        WorldWarpError: `no_depth`, `bad_depth`, ... when the input cannot be used; frames yielded before stay good.
            `bad_checkpoint` when `resume` is of another shot or engine.
    """
    plans = split_chunks(len(spec.cameras), spec.chunk, spec.overlap)
    yield from models.fill.prepare(spec, plans)
    stage = _set_up(spec, models, settings, saved_unit(resume) if resume is not None else None)
    yield from stage.notices
    cache_settings = stage.cache_settings
    longest_context = max(len(plan.context) for plan in plans)
    generator = torch.Generator().manual_seed(spec.seed)
    made_by = _made_by(spec, models, settings, stage)
    state = restore(resume, made_by, stage.space, stage.w2c.device) if resume is not None else None
    timeline = _plan_timeline(plans, cache_settings, models.fill, spec, state)

    def estimate_depth(rgb: Tensor, known: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        geometry = complete_depth(known[None], seen[None], rgb[None], models.monocular)
        return geometry.depth[0], geometry.confidence[0]

    def open_world() -> Generator[Event, None, SplatCache]:
        opening = open_cache(stage.space, stage.history, stage.depth, cache_settings, generator)
        return (yield from _report_fit(opening, timeline, 0))

    if state is None:
        opened = yield from _with_room(open_world, models.fill, generator)
        yield CacheUpdate(0, _export(opened))
        state = LoopState(0, 0, opened, stage.history, generator.get_state())
        yield state.fitted(made_by)
    generator.set_state(state.random)
    cache, history, new = state.cache, state.history, state.new

    def look_at_start(cache: SplatCache = cache) -> Generator[Event, None, Priors]:
        yield from ()
        return render_priors(cache, stage.w2c[:1], stage.K[:1], stage.width, stage.height)

    if state.frames == 0:
        start = yield from _with_room(look_at_start, models.fill, generator)
        yield stage.deliver(0, 0, spec.start_frame, start.depth[0], torch.ones_like(start.validity[0]))()

    for plan in _left(plans, state):

        def look_ahead(plan: ChunkPlan = plan, cache: SplatCache = cache) -> Generator[Event, None, Priors]:
            return (yield from _render_priors(cache, stage, plan, timeline))

        if new is None:
            priors = yield from _with_room(look_ahead, models.fill, generator)
            yield from _out_of_sight(stage, plan, priors)
            context = history.last(len(plan.context))
            rgb = yield from _fill(models.fill, context, priors, plan, spec, stage, timeline)
            new = stage.look_back(plan, rgb, priors, models.fill.holes_agree)
            yield LoopState(plan.index, plan.new.stop, cache, history, generator.get_state(), new).made()

        # The last chunk is fitted too: the exported world must hold all that was seen.
        def learn(
            plan: ChunkPlan = plan, cache: SplatCache = cache, new: History = new
        ) -> Generator[Event, None, SplatCache]:
            updating = update_cache(cache, new, estimate_depth, cache_settings, generator, stage.blockout)
            return (yield from _report_fit(updating, timeline, plan.index))

        before = len(cache.gaussians)
        cache = yield from _with_room(learn, models.fill, generator)
        yield CacheUpdate(plan.index, _export(cache))
        if before < cache_settings.max_gaussians <= len(cache.gaussians):
            yield Notice(
                "world_full",
                f"The world holds {len(cache.gaussians):,} Gaussians, the most allowed: new places are no longer kept.",
            )
        history = extend_history(history, new, keep=longest_context)
        new = None
        if plan.new.stop < len(spec.cameras):
            yield LoopState(plan.index, plan.new.stop, cache, history, generator.get_state()).fitted(made_by)
    yield timeline.tick("finish", plans[-1].index, 1, 1)
    yield Finished(_summary(spec, models, settings, stage, cache, timeline, len(plans)))


@dataclass(frozen=True)
class _Stage:
    """A shot made ready to run: everything at the size and in the units that the models work in."""

    path: CameraPath
    width: int
    height: int
    space: CacheSpace
    w2c: Tensor  # (T, 4, 4) in cache units
    K: Tensor  # (T, 3, 3) at the working size
    history: History  # the start frame
    depth: Tensor  # (H, W) of the start frame, cache units, inf is sky
    depth_source: str
    blockout: Blockout | None  # in cache units
    cache_settings: CacheSettings
    notices: list[Notice]

    def deliver(
        self, chunk: int, index: int, rgb: Tensor | np.ndarray, depth: Tensor, validity: Tensor
    ) -> Callable[[], Frame]:
        """Sends a finished frame off the device; what is returned waits for it and gives it, at the size asked for."""
        width, height = self.path.width, self.path.height
        picture = torch.tensor(rgb) if isinstance(rgb, np.ndarray) else (rgb * 255).round().to(torch.uint8)
        scene_depth = torch.where(torch.isfinite(depth), depth * self.space.unit, BACKGROUND_DEPTH).float()
        valid = (validity >= VALID).to(torch.uint8) * 255
        sent = [send_to_host(t) for t in (picture, scene_depth, valid)]
        arrived = mark(depth.device)

        def receive() -> Frame:
            if arrived is not None:
                arrived.synchronize()
            picture, scene_depth, valid = (t.numpy() for t in sent)
            frame_rgb, frame_depth, frame_validity = frame_arrays(height, width)
            frame_rgb[...] = resize_picture(picture, width, height)
            return Frame(
                index=index,
                number=int(self.path.frames[index]),
                chunk=chunk,
                rgb=frame_rgb,
                depth=resize_map(scene_depth, width, height, out=frame_depth),
                validity=resize_map(valid, width, height, out=frame_validity),
            )

        return receive

    def look_back(self, plan: ChunkPlan, rgb: Tensor, priors: Priors, holes_agree: bool) -> History:
        """The chunk's new frames as history: a hole filled differently in every frame is not to be trusted."""
        rows = slice(plan.new.start, plan.new.stop)
        trusted = torch.ones_like(priors.validity) if holes_agree else (priors.validity >= VALID).to(rgb.dtype)
        return History([int(n) for n in self.path.frames[rows]], in_levels(rgb), trusted, self.w2c[rows], self.K[rows])


def _set_up(spec: GenerateSpec, models: Models, settings: PipelineSettings, unit: float | None) -> _Stage:
    """`unit` is the scene's, where it is known from before: an estimate of depth need not come out the same twice."""
    path = spec.cameras
    jump = jump_warning(path)
    notices = [Notice("camera_jump", jump)] if jump else []
    width, height = working_size(path.width, path.height, settings.max_pixels)
    if width * height < 0.9 * path.width * path.height:
        notices.append(
            Notice(
                "working_size",
                f"Frames are made at {width}x{height} and enlarged to {path.width}x{path.height}: detail is limited.",
            )
        )
    if spec.start_frame.shape[:2] != (path.height, path.width):
        h, w = spec.start_frame.shape[:2]
        notices.append(
            Notice("start_frame_resized", f"The start frame was resized from {w}x{h} to {path.width}x{path.height}.")
        )

    device = torch.device(settings.device)
    rgb = from_bytes(torch.tensor(resize_picture(spec.start_frame, width, height), device=device))
    working = path.resized(width, height)
    K = torch.from_numpy(working.K.astype(np.float32)).to(device)
    blockout = Blockout(spec.path_depth, working, device) if spec.path_depth is not None else None
    depth, depth_source, said = _start_geometry(spec, rgb, models.monocular, blockout)
    notices += said
    unit = unit or float(depth[torch.isfinite(depth)].median())
    space = CacheSpace(anchor=path.c2w[0, :3, 3].copy(), unit=unit)
    w2c = space.w2c(path.c2w).to(device)
    cache_settings = _cache_settings(spec, settings, width * height)
    return _Stage(
        path=path,
        width=width,
        height=height,
        space=space,
        w2c=w2c,
        K=K,
        history=History([int(path.frames[0])], rgb[None], torch.ones_like(depth)[None], w2c[:1], K[:1]),
        depth=depth / space.unit,
        depth_source=depth_source,
        blockout=replace(blockout, unit=space.unit) if blockout is not None else None,
        cache_settings=cache_settings,
        notices=notices,
    )


def _start_geometry(
    spec: GenerateSpec, rgb: Tensor, monocular: DepthModel | None, blockout: Blockout | None
) -> tuple[Tensor, str, list[Notice]]:
    """(H, W) planar z of the start frame in scene units (inf is sky), where it comes from, and what is said of it."""
    first = int(spec.cameras.frames[0])
    scene = None if blockout is None or blockout.given.frames[0] != first else blockout.depth(first)
    known = 0.0 if scene is None else float(torch.isfinite(scene).float().mean())
    if scene is not None and spec.depth is None and known >= MIN_KNOWN_START:
        depth, source = start_of(scene, rgb, monocular)
    else:
        depth, source = start_depth(spec.depth, rgb, monocular, spec.scene_scale)

    notices = []
    exact = spec.depth is not None or known >= MIN_KNOWN_START
    if exact and spec.scene_scale is not None:
        notices.append(
            Notice("no_effect", "The start frame's exact depth sets the scale: scene scale changes nothing.")
        )
    if not exact and spec.scene_scale is None:
        assumed = "Give --scene-scale (the median depth in scene units) if the world comes out too large or too small."
        notices.append(Notice("scene_scale_assumed", f"Depth of the start frame: {source}. {assumed}"))
    if scene is None:
        return depth, source, notices
    hidden, in_front = hidden_by(scene, depth), in_front_of(scene, depth)
    behind_share, front_share = (float(x.float().mean()) for x in (hidden, in_front))
    if max(behind_share, front_share) > MAX_CONTRADICTION:
        notices.append(
            Notice(
                "depth_contradicted",
                "The start frame's depth and the path's depth contradict each other by more than 10%: in "
                f"{behind_share:.0%} of the first frame it lies behind the path's surfaces, and theirs is taken; in "
                f"{front_share:.0%} it stands in front of them, and stays. Where both should show the same, render "
                "them from the same scene.",
            )
        )
    return torch.where(hidden, scene, depth), source, notices


def _out_of_sight(stage: _Stage, plan: ChunkPlan, priors: Priors) -> Iterator[Notice]:
    """Says which frames see next to nothing of the world so far."""
    share = (priors.validity >= VALID).float().mean((1, 2))
    lost = [int(stage.path.frames[i]) for i, s in zip(plan.new, share.tolist(), strict=True) if s < NOTHING_IN_VIEW]
    if lost:
        frames = f"frame {lost[0]}" if len(lost) == 1 else f"{len(lost)} frames between {lost[0]} and {lost[-1]}"
        yield Notice(
            "nothing_in_view",
            f"The camera looks away from everything known in {frames}: there is next to nothing to fill them from. "
            "Turn or move it less, or begin the shot where it should go.",
        )


def _cache_settings(spec: GenerateSpec, settings: PipelineSettings, pixels: int) -> CacheSettings:
    cache = settings.cache
    first = spec.cache_steps or cache.first_steps
    update = math.ceil(first * cache.update_steps / cache.first_steps)  # the share of a warm start stays
    values = asdict(cache) | {"fit": cache.fit}
    return CacheSettings(
        **(
            values
            | {
                "first_steps": first,
                "update_steps": update,
                "points_per_view": max(int(pixels * settings.points_per_pixel), 16),
            }
        )
    )


def _made_by(spec: GenerateSpec, models: Models, settings: PipelineSettings, stage: _Stage) -> dict[str, object]:
    """What a saved state must be of to go on: another engine, device or size would go on as something else."""
    return {
        "fill": models.fill.name,
        "device": settings.device,
        "size": [stage.width, stage.height],
        "frames": len(spec.cameras),
        "chunk": [spec.chunk, spec.overlap],
        "seed": spec.seed,
    }


def _left(plans: list[ChunkPlan], state: LoopState | None) -> list[ChunkPlan]:
    """The chunks that are still to be made, or made but not yet part of the world."""
    if state is None:
        return [p for p in plans if p.new]
    return [
        p for p in plans if p.new and (p.new.stop > state.frames or (state.new is not None and p.index == state.chunk))
    ]


def _plan_timeline(
    plans: list[ChunkPlan], cache: CacheSettings, fill: Fill, spec: GenerateSpec, state: LoopState | None
) -> Timeline:
    left = _left(plans, state)
    chunks = left[1:] if state is not None and state.new is not None else left
    frames = sum(len(p.new) for p in chunks)
    first_steps, later_steps = cache.planned_steps()
    planned: dict[Stage, int] = {
        "cache": (first_steps if state is None else 0) + len(left) * later_steps,
        "priors": frames,
        fill.frame_stage: frames,
        "finish": 1,
    }
    for plan in chunks:
        for stage, steps in fill.count_steps(spec, plan).items():
            planned[stage] = planned.get(stage, 0) + steps
    return Timeline(planned, GUESS_S, len(plans))


def _with_room(
    attempt: Callable[[], Generator[Event, None, T]], fill: Fill, generator: torch.Generator
) -> Generator[Event, None, T]:
    """What `attempt` comes to; where the device's memory is full, the fill makes room and it is begun anew.

    Raises:
        WorldWarpError: `out_of_memory` when there is no more room to make.
    """
    state = generator.get_state()
    while True:
        try:
            return (yield from attempt())
        except torch.OutOfMemoryError as error:
            reason = str(error)
        # Only now: the error held on to what it was raised among.
        notice = fill.make_room()
        if notice is None:
            raise WorldWarpError("out_of_memory", f"The device's memory is full, with nothing left to free: {reason}")
        yield notice
        generator.set_state(state)


def _fill(
    fill: Fill,
    context: History,
    priors: Priors,
    plan: ChunkPlan,
    spec: GenerateSpec,
    stage: _Stage,
    timeline: Timeline,
) -> Generator[Event, None, Tensor]:
    """Delivers a chunk's new frames; returns them, (T, H, W, 3) in [0, 1].

    A GPU decodes the next frames while these are on their way and the consumer has them; a CPU has no such time, and
    each frame is handed on at once.
    """
    frames: list[Tensor] = []
    sent: deque[Callable[[], Frame]] = deque()
    delivered = 0
    for made in chain(fill.fill(context, priors, plan, spec), [None]):
        if isinstance(made, FillStep):
            yield timeline.tick(made.stage, plan.index, made.step, made.steps)
        elif isinstance(made, Notice):
            yield made
        elif made is not None:
            offset = len(frames)
            frames.append(made)
            depth, validity = priors.depth[offset], priors.validity[offset]
            sent.append(stage.deliver(plan.index, plan.new[offset], made, depth, validity))
        on_the_way = FRAMES_ON_THE_WAY if made is not None and stage.K.device.type == "cuda" else 0
        while len(sent) > on_the_way:
            yield sent.popleft()()
            delivered += 1
            yield timeline.tick(fill.frame_stage, plan.index, delivered, len(plan.new))
    assert len(frames) == len(plan.new), (len(frames), plan)
    return torch.stack(frames)


def _report_fit(
    fitting: Generator[CacheStep, None, SplatCache], timeline: Timeline, chunk: int
) -> Generator[Progress, None, SplatCache]:
    while True:
        try:
            step = next(fitting)
        except StopIteration as end:
            return end.value
        yield timeline.tick("cache", chunk, step.step, step.steps)


def _render_priors(
    cache: SplatCache, stage: _Stage, plan: ChunkPlan, timeline: Timeline
) -> Generator[Progress, None, Priors]:
    """The priors of a chunk's new frames: history itself stands in for those of its context."""
    parts = []
    for first in range(plan.new.start, plan.new.stop, PRIORS_BATCH):
        rows = slice(first, min(first + PRIORS_BATCH, plan.new.stop))
        priors = render_priors(cache, stage.w2c[rows], stage.K[rows], stage.width, stage.height)
        if stage.blockout is not None:
            priors = keep_to_blockout(priors, stage.blockout.depths(stage.path.frames[rows].tolist()))
        parts.append(priors)
        count = rows.stop - rows.start
        yield timeline.tick("priors", plan.index, rows.stop - plan.new.start, len(plan.new), count)
    return Priors(*(torch.cat([getattr(p, name) for p in parts]) for name in ("rgb", "alpha", "depth", "validity")))


def _export(cache: SplatCache):  # type: ignore[no-untyped-def]
    return cache.space.to_world(cache.gaussians, cache.source_frames, cache.sky)


def _summary(
    spec: GenerateSpec,
    models: Models,
    settings: PipelineSettings,
    stage: _Stage,
    cache: SplatCache,
    timeline: Timeline,
    chunks: int,
) -> dict[str, object]:
    return {
        "fill": models.fill.describe(spec),
        "depth": stage.depth_source,
        "frames": len(spec.cameras),
        "chunks": chunks,
        "gaussians": len(cache.gaussians),
        "working_size": [stage.width, stage.height],
        "delivered_size": [stage.path.width, stage.path.height],
        "scene_unit": stage.space.unit,
        "focal_px": [float(stage.path.K[0, 0, 0]), float(stage.path.K[0, 1, 1])],
        "cache_settings": asdict(stage.cache_settings),
        "seconds": {name: round(seconds, 3) for name, seconds in timeline.seconds.items()},
        "settings": {
            "chunk": spec.chunk,
            "overlap": spec.overlap,
            "strength": spec.strength,
            "seed": spec.seed,
            "prompt": spec.prompt,
            "prompt_keys": [asdict(key) for key in spec.prompt_keys],
            "negative_prompt": spec.negative_prompt,
            "auto_prompt": spec.auto_prompt,
            "style_image": spec.style_image is not None,
            "strength_mask": spec.strength_mask is not None,
            "path_depth": None if spec.path_depth is None else len(spec.path_depth.frames),
            "graded_validity": spec.graded_validity,
            "preset": spec.preset,
            "guidance": spec.guidance,
            "scene_scale": spec.scene_scale,
            "steps": spec.steps,
        },
    }
