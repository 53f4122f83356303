# SPDX-License-Identifier: GPL-3.0-or-later
"""One shot from the scene to the folder and back into the scene.

    prepare_shot    Blender's main thread: the camera of every frame, the start frame and its depth
    run_shot        any thread, never bpy: submit, write what arrives, fetch the splats
    resume_shot     likewise, of a shot that was begun before: fetch what is missing, have the rest made
    generate_shot   the first two, and the results brought in, in one call: for background mode and for scripts

Whatever was delivered is on disk when a shot is cancelled, fails or loses its server.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from engine_bridge.client import Client, Connected, ConnectionLost, Sending
from engine_bridge.deliver import deliver
from engine_bridge.errors import BridgeError, disk_errors
from engine_bridge.job_folder import JobFolder, read_job
from engine_bridge.keys import ClientKey
from engine_bridge.messages import CacheEvent, FrameEvent, NoticeEvent, Progress
from engine_bridge.png_writer import encode_png
from engine_bridge.stages import sending_in_words
from worldwarp_core import __version__
from worldwarp_core.cameras.files import read_cameras, write_cameras
from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures.exr import write_depth_exr
from worldwarp_core.spec import BACKGROUND_DEPTH, GenerateSpec, PathDepth, PromptKey

from .camera_export import export_camera_path
from .earlier_frames import copy_frames_before
from .layout import LayoutMeasurement
from .look import prompt_keys, strength_mask, style_picture
from .pictures import cropped_to_aspect, picture_of
from .results import bring_in
from .scale import scaled_depth, start_distance
from .scenes import camera_at
from .server_facts import PROGRAM, ask
from .start_frame import DEFAULT_SAMPLES, StartFrame, render_start_frame


@dataclass(frozen=True)
class ShotSettings:
    """What a shot is made with; `GenerateSpec` says what each means, None takes the engine's default."""

    prompt: str = ""
    negative_prompt: str = ""
    strength: float | None = None
    chunk: int = 49
    overlap: int = 5
    steps: int | None = None
    cache_steps: int | None = None
    seed: int = 0
    engine: str = ""
    """The engine the server must run; "" takes whatever it runs."""
    samples: int = DEFAULT_SAMPLES
    """Of the start frame's render."""
    show_results: bool = True
    linear_copies: bool = False
    """Whether each frame is written as scene-linear EXR too."""
    preset: str = ""
    guidance: float | None = None
    auto_prompt: bool = False
    graded_validity: bool = False
    prompt_keys: tuple[PromptKey, ...] = ()
    style_image: np.ndarray | None = field(default=None, compare=False)
    strength_mask: np.ndarray | None = field(default=None, compare=False)
    start_picture: np.ndarray | None = field(default=None, compare=False)
    """(h, w, 3) uint8 sRGB to begin with, of any aspect; None renders the first frame."""
    start_depth: np.ndarray | None = field(default=None, compare=False)
    """(h2, w2) float32 planar z in scene units of `start_picture` as it is cropped; None has the server estimate it."""
    scene_scale: float | None = None
    """Median depth of `start_picture`, in scene units."""
    keep_layout: str = "START"
    """What of the scene's own shapes the world keeps: OFF, START (the first frame's) or PATH (the whole path's)."""
    leave_out: str = ""
    """Name of a collection that is no part of the layout."""

    @classmethod
    def of(cls, context: bpy.types.Context, first_frame: bool = True) -> ShotSettings:
        """Returns what the artist set on the scene in front.

        Args:
            first_frame: whether the shot begins as Start Frame says, not with an earlier take's frame.

        Raises:
            WorldWarpError: `bad_image` or `bad_settings`, for a picture or a prompt that cannot be taken.
        """
        scene = context.scene
        group = scene.worldwarp
        picture = depth = None
        if first_frame and group.start_source != "RENDER":
            if group.start_image is None:
                raise WorldWarpError(
                    "bad_image",
                    "The shot should begin with a picture, and there is none. Pick or draw one under Start Frame.",
                )
            picture = picture_of(group.start_image)
            if group.keep_layout == "OFF":
                depth = scaled_depth(context, export_camera_path(context, [scene.frame_start]))
        return cls(
            prompt=group.prompt,
            negative_prompt=group.negative_prompt,
            # Blender stores float32, which would read 0.800000011920929.
            strength=round(group.strength, 6) if group.own_strength else None,
            chunk=group.chunk,
            overlap=group.overlap,
            steps=group.steps or None,
            cache_steps=group.cache_steps or None,
            seed=group.seed,
            samples=group.samples,
            show_results=group.show_results,
            linear_copies=group.frame_format == "EXR",
            preset=group.preset,
            guidance=max(round(group.guidance, 6), 1.0) if group.guidance else None,
            auto_prompt=group.auto_prompt,
            graded_validity=group.graded_validity,
            prompt_keys=prompt_keys(scene),
            style_image=style_picture(group.style_image),
            strength_mask=strength_mask(group.strength_mask, round(group.strength_mask_amount, 6)),
            start_picture=picture,
            start_depth=depth,
            scene_scale=start_distance(context) if group.keep_layout == "OFF" and depth is None else None,
            keep_layout=group.keep_layout,
            leave_out=group.leave_out.name if group.leave_out is not None else "",
        )


@dataclass(frozen=True)
class PreparedShot:
    """All that a server needs, and what the records should say beside it."""

    spec: GenerateSpec
    engine: str
    records: dict[str, Any] = field(default_factory=dict)
    """For job.json: the Blender that made it, the scene, the camera, and how colours were baked."""
    linear_copies: bool = False
    goes_on_from: Path | None = None
    """The shot whose frames before this one's first belong to it too."""


@dataclass(frozen=True)
class Step:
    """Something that is done on this side, before or after the server's work."""

    what: str


@dataclass(frozen=True)
class SplatsOnDisk:
    """The world is on disk."""

    path: Path


@dataclass(frozen=True)
class Outcome:
    """What a whole shot left behind."""

    out: Path
    frames: int
    brought_in: list[str]


class Left(Exception):
    """The shot was left to go on at the server; what arrived is on disk."""


class Stop:
    """How a running shot is asked to end: `cancelled` there, or `left` to go on while nobody takes its frames."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.left = threading.Event()
        self.lost = False
        """Whether the server does not answer now."""

    def hear(self, event: object) -> None:
        """Notes whether the server is there."""
        if isinstance(event, Connected | ConnectionLost):
            self.lost = isinstance(event, ConnectionLost)

    def asked(self) -> bool:
        """Returns whether the shot should be cancelled; asked a few times a second by who takes its frames.

        Raises:
            Left: when nobody is to take them any more.
            WorldWarpError: `server_gone` where a cancel cannot reach the server: nobody waits for it to come back.
        """
        if self.left.is_set():
            raise Left
        if self.cancelled.is_set() and self.lost:
            raise BridgeError(
                "server_gone",
                "The server is gone, so the cancel did not reach it. The frames that had arrived are kept; if the "
                "server goes on with the shot, Resume fetches the rest.",
            )
        return self.cancelled.is_set()


OnEvent = Callable[[object], None]
"""Takes a `Step`, a `SplatsOnDisk` or an event of engine_bridge.messages as it happens; called on the worker's "
"thread."""


def generate_shot(
    context: bpy.types.Context,
    out: Path,
    address: str,
    settings: ShotSettings,
    on_event: OnEvent,
    stop: Stop | None = None,
    key: ClientKey | None = None,
) -> Outcome:
    """Makes the shot of the scene, start to end, and brings it in; returns when all of it is done.

    Args:
        out: a new folder, or an empty one.
        stop: to cancel from another thread or from `on_event`.
        key: for a server that asks for one.

    Raises:
        WorldWarpError: what was wrong, with what was delivered kept in `out` and brought in; `cancelled` after `stop`.
    """
    # A server that is not there is told before anything is rendered.
    ask(address, key)
    shot = prepare_shot(context, settings, on_event)
    if (layout := layout_of(context, shot, settings)) is not None:
        shot = with_layout(shot, measured(layout, on_event))
    frames = 0

    def counted(event: object) -> None:
        nonlocal frames
        frames += isinstance(event, FrameEvent)
        on_event(event)

    try:
        run_shot(shot, out, address, counted, stop or Stop(), key)
    finally:
        brought_in = bring_in(context, out) if settings.show_results and frames else []
    return Outcome(out, frames, brought_in)


def prepare_shot(context: bpy.types.Context, settings: ShotSettings, on_event: OnEvent) -> PreparedShot:
    """Returns the cameras, the start frame and its depth; on Blender's main thread.

    Raises:
        WorldWarpError: what cannot be exported or rendered, by name.
    """
    # The cameras first: what is refused there is refused before anything is rendered.
    on_event(Step("exporting the camera"))
    cameras = export_camera_path(context)
    frame = int(cameras.frames[0])
    if settings.start_picture is None:
        on_event(Step("rendering the start frame"))
        start = render_start_frame(context, frame, settings.samples)
        if settings.keep_layout == "OFF":
            settings = replace(settings, scene_scale=middle_depth(start.depth))
            start = replace(start, depth=None)
    else:
        start = begin_with(settings.start_picture, settings.start_depth, frame, cameras)
        if settings.keep_layout == "START":
            height, width = start.rgb.shape[:2]
            on_event(Step("measuring the first frame's layout"))
            first = LayoutMeasurement(context, cameras[:1], settings.leave_out, size=(width, height))
            first.step()
            start = replace(start, depth=first.maps[0])
    return shot_of(context, cameras, start, settings)


def middle_depth(depth: np.ndarray | None) -> float | None:
    """Returns the median planar z of the surfaces in a rendered depth; None where there is none."""
    seen = depth[depth < 0.99 * BACKGROUND_DEPTH] if depth is not None else np.empty(0)
    return float(np.median(seen)) if len(seen) else None


def layout_of(context: bpy.types.Context, shot: PreparedShot, settings: ShotSettings) -> LayoutMeasurement | None:
    """Returns what is to be measured before the shot can be sent; None where only its first frame's layout is kept."""
    if settings.keep_layout != "PATH":
        return None
    return LayoutMeasurement(context, shot.spec.cameras, settings.leave_out)


def measured(layout: LayoutMeasurement, on_event: OnEvent) -> PathDepth:
    """Returns the layout, measured in one go: for background mode and for a single frame.

    Raises:
        WorldWarpError: what `LayoutMeasurement.step` raises.
    """
    while layout.done < layout.total:
        on_event(Step(f"measuring the layout, {layout.done + 1} of {layout.total}"))
        layout.step()
    if layout.notice:
        on_event(Step(layout.notice))
    return layout.result()


def with_layout(shot: PreparedShot, path_depth: PathDepth) -> PreparedShot:
    """Returns the shot with the layout that it keeps.

    Raises:
        WorldWarpError: `bad_path_depth` when no camera sees anything of it.
    """
    return replace(shot, spec=replace(shot.spec, path_depth=path_depth))


def begin_with(picture: np.ndarray, depth: np.ndarray | None, frame: int, cameras: CameraPath) -> StartFrame:
    """Returns the start frame that an image gives: cropped to the shot's aspect, with the depth that it came with."""
    cropped = cropped_to_aspect(picture, cameras.width, cameras.height)
    look = {"image_size": [picture.shape[1], picture.shape[0]], "cropped_to": [cropped.shape[1], cropped.shape[0]]}
    return StartFrame(frame, cropped, depth, look)


def shot_of(context: bpy.types.Context, cameras: CameraPath, start: StartFrame, settings: ShotSettings) -> PreparedShot:
    """Returns the shot that flies `cameras` from `start` on, with the records of where it comes from.

    Raises:
        WorldWarpError: `bad_settings`, `bad_start_frame` or `bad_depth`.
    """
    spec = GenerateSpec(
        cameras=cameras,
        start_frame=start.rgb,
        depth=start.depth,
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        strength=settings.strength,
        chunk=settings.chunk,
        overlap=settings.overlap,
        steps=settings.steps,
        cache_steps=settings.cache_steps,
        seed=settings.seed,
        scene_scale=settings.scene_scale,
        prompt_keys=settings.prompt_keys,
        auto_prompt=settings.auto_prompt,
        style_image=settings.style_image,
        preset=settings.preset,
        guidance=settings.guidance,
        strength_mask=settings.strength_mask,
        graded_validity=settings.graded_validity,
    )
    camera = camera_at(context.scene, start.frame)
    records = {
        "blender": bpy.app.version_string,
        "blend": bpy.data.filepath,
        "scene": context.scene.name,
        "camera": camera.name if camera is not None else None,
        "start_frame": {"frame": start.frame, "samples": settings.samples, **start.look},
    }
    return PreparedShot(spec, settings.engine, records, settings.linear_copies)


def run_shot(
    shot: PreparedShot,
    out: Path,
    address: str,
    on_event: OnEvent,
    stop: Stop,
    key: ClientKey | None = None,
) -> None:
    """Has the server at `address` make `shot`, writing all that arrives into `out`; never touches Blender.

    Raises:
        WorldWarpError: what went wrong there or here; `cancelled` when that was asked. What arrived before is on disk.
        Left: when that was asked.
    """
    job_id = uuid.uuid4().hex
    numbers = shot.spec.cameras.frames.tolist()
    with Client(address, program=PROGRAM, version=__version__, key=key) as client:
        on_event(Connected(client.connect()))
        records = {**shot.records, "address": address}
        asked = settings_of(shot)
        folder = JobFolder(
            out, job_id=job_id, frames=numbers, settings=asked, records=records, linear_copies=shot.linear_copies
        )
        with told_in(folder):
            write_inputs(folder.out, shot.spec)
            client.submit(shot.spec, engine=shot.engine, job_id=job_id)
            if shot.goes_on_from is not None:
                copy_frames_before(shot.goes_on_from, folder.out, numbers[0])
        take_delivery(client, folder, on_event, stop)


def resume_shot(out: Path, address: str, on_event: OnEvent, stop: Stop, key: ClientKey | None = None) -> None:
    """Takes up the shot in `out` again: fetches what was made meanwhile, has the rest made; never touches Blender.

    Raises:
        WorldWarpError: `no_job` without a shot in `out`, `unknown_job` when the server no longer has it, or what went
            wrong; `cancelled` when that was asked.
        Left: when that was asked.
    """
    job = read_job(out)
    numbers = read_cameras(out / "cameras.json").frames.tolist()
    with Client(address, program=PROGRAM, version=__version__, key=key) as client:
        on_event(Connected(client.connect()))
        job_id = str(job["job_id"])
        known = next((info for info in client.list_jobs() if info.job_id == job_id), None)
        if known is None:
            raise BridgeError(
                "unknown_job",
                f"The server at {address} does not have this take. It was made at {job.get('address', 'another one')}; "
                "servers delete their oldest takes when disk space runs out. Regenerate from its last frame instead.",
            )
        folder = JobFolder(out, job_id=job_id, frames=numbers, settings={})
        if known.state in ("failed", "cancelled"):
            client.resume(job_id, folder.last_seq)
        else:
            # After a job's end nothing comes: where that was had, it is asked for again.
            client.subscribe(job_id, folder.last_seq - (job["state"] == known.state == "done"))
        take_delivery(client, folder, on_event, stop)


def take_delivery(client: Client, folder: JobFolder, on_event: OnEvent, stop: Stop) -> None:
    """Writes what a followed job brings into its folder, to its end."""

    def heard(event: object) -> None:
        stop.hear(event)
        on_event(event)

    try:
        end = deliver(client, folder.job_id, folder, on_event=heard, stop=stop.asked)
    except Left:
        folder.save()
        raise
    if folder.splats_path.is_file():
        on_event(SplatsOnDisk(folder.splats_path))
    if end.state == "cancelled":
        raise BridgeError("cancelled", "The shot was cancelled; the frames that had arrived are kept.")
    if end.state != "done":
        raise BridgeError(end.code, end.message)
    with told_in(folder):
        if faults := folder.missing():
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise BridgeError("incomplete", f"The shot ended but is not whole: {', '.join(faults[:3])}{more}.")


@contextmanager
def told_in(folder: JobFolder) -> Iterator[None]:
    """Records a fault in the folder's job.json on its way to the user."""
    try:
        yield
    except WorldWarpError as error:
        # A full disk may have no room for the record either; the first fault is the one to tell.
        with suppress(WorldWarpError):
            folder.fail(error.code, error.message)
        raise


def settings_of(shot: PreparedShot) -> dict[str, Any]:
    """Returns what was asked for, for job.json."""
    spec = shot.spec
    sampling = ("strength", "chunk", "overlap", "steps", "cache_steps", "seed", "guidance", "preset", "graded_validity")
    names = ("prompt", "negative_prompt", "auto_prompt", "scene_scale", *sampling)
    asked = {name: getattr(spec, name) for name in names} | {"engine": shot.engine or None}
    asked["prompt_keys"] = [{"frame": key.frame, "prompt": key.prompt} for key in spec.prompt_keys]
    # The pictures themselves lie beside job.json.
    given = {name: getattr(spec, name) is not None for name in ("style_image", "strength_mask", "path_depth")}
    return asked | given


def write_inputs(out: Path, spec: GenerateSpec) -> None:
    """Writes what was sent beside what comes back: `worldwarp generate` makes the same shot from these files.

    Raises:
        WorldWarpError: `disk_full` or `cannot_write`.
    """
    write_cameras(out / "cameras.json", spec.cameras)
    with disk_errors(out):
        (out / "start_frame.png").write_bytes(encode_png(spec.start_frame))
        if spec.depth is not None:
            write_depth_exr(out / "start_depth.exr", spec.depth)
        if spec.style_image is not None:
            (out / "style_image.png").write_bytes(encode_png(spec.style_image))
        if spec.strength_mask is not None:
            write_depth_exr(out / "strength_mask.exr", spec.strength_mask[0])
        if spec.path_depth is not None:
            (out / "path_depth").mkdir(exist_ok=True)
            for number, depth in zip(spec.path_depth.frames.tolist(), spec.path_depth.depth, strict=True):
                values = np.minimum(depth.astype(np.float32), np.float32(BACKGROUND_DEPTH))
                write_depth_exr(out / "path_depth" / f"frame_{number:04d}.exr", values)


def printed(event: object) -> None:
    """Prints an event as a line of text, for background mode."""
    match event:
        case Step():
            print(f"WorldWarp: {event.what}", flush=True)
        case Progress():
            left = "" if event.eta_s is None else f", {event.eta_s:.0f} s left"
            print(f"WorldWarp: {event.fraction:4.0%} {event.stage} {event.step}/{event.steps}{left}", flush=True)
        case FrameEvent():
            print(f"WorldWarp: frame {event.number}", flush=True)
        case CacheEvent():
            print(f"WorldWarp: the world has {event.splats} splats", flush=True)
        case NoticeEvent():
            print(f"WorldWarp: {event.message}", flush=True)
        case Sending():
            print(f"WorldWarp: {sending_in_words(event.received_bytes, event.size_bytes)}", flush=True)
        case ConnectionLost():
            print(f"WorldWarp: {event.message}", flush=True)
        case SplatsOnDisk():
            print(f"WorldWarp: splats in {event.path}", flush=True)
