# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be told about a shot before anything is rendered or sent: findings that name frames, and a coloured path.

In: the scene. Out: a `Report`: what will fail, what will look worse than it could, how long it may take; and for every
frame which share of its view the start frame has seen. The scene's geometry stands in for the world's: a coarse grid of
rays on some of the frames, without what hides what.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import bpy
import numpy as np

from engine_bridge.job_folder import read_job
from worldwarp_core.cameras.path import CameraPath, jumps
from worldwarp_core.errors import WorldWarpError

from .camera_export import export_camera_path, frame_kept, render_size, scene_frames
from .layout import frames_to_measure, map_size
from .look import prompt_keys
from .scale import start_distance
from .scenes import camera_at
from .seen_depth import grid_pixels, seen_depth, view_rays
from .server_facts import ServerFacts, Speed
from .words import duration_in_words, frames_in_words

GRID_PX = 16
"""Sides that video models take are multiples of this."""
MODEL_PX = 832 * 480
"""About what video models of this kind work at; larger frames are enlarged from it."""
CAST_FRAMES = 24
"""On so many frames, evenly apart, rays are sent; between them the nearest one's depth holds."""
FAR = 1e6
"""Times the unit of a ray: where nothing is, only turning moves the picture."""
TOO_FAST = 0.7
"""Share of a frame's view that the frame before must have seen, for a model to carry it over."""
LOST = 0.02
"""Share below which nothing of the start view is left."""


@dataclass(frozen=True)
class Finding:
    """One thing that the artist should know.

    Attributes:
        severity: ERROR (it will be refused), WARNING (it will look worse), INFO.
        frame: where to look; None where it is about the whole shot.
    """

    severity: str
    message: str
    frame: int | None = None


@dataclass(frozen=True)
class Report:
    """All findings, the worst first, and the path with what of each frame's view the start frame has seen.

    Attributes:
        known: (T,) float64 in [0, 1], one for each frame of `path`.
        marked: frames to mark on the path.
    """

    scene: str
    findings: tuple[Finding, ...]
    path: CameraPath | None = None
    known: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "ERROR"]

    @property
    def marked(self) -> set[int]:
        return {finding.frame for finding in self.findings if finding.frame is not None and finding.severity != "INFO"}


def check_shot(context: bpy.types.Context, past_shots: Path | None = None, facts: ServerFacts | None = None) -> Report:
    """Returns what is to be said of the scene's shot; changes nothing.

    Args:
        past_shots: a folder of finished shots, to tell from them how long this one may take where the server does not.
        facts: what the connected server says of itself; None where it was not asked yet.
    """
    scene = context.scene
    findings = [*check_cuts(scene), *check_words(scene), *check_linked(scene)]
    try:
        path = export_camera_path(context)
    except WorldWarpError as error:
        if not findings or error.code != "camera_cut":
            findings.append(Finding("ERROR", error.message, first_refused(context)))
        return Report(scene.name, sorted_findings(findings))
    known, shared = shares(context, path)
    findings += check_motion(path, shared)
    findings += check_start_view(path, known)
    findings += check_size(scene)
    findings += check_layout(scene, path)
    findings += check_cost(scene.worldwarp.preset, path, facts, past_shots)
    return Report(scene.name, sorted_findings(findings), path, known)


def sorted_findings(findings: list[Finding]) -> tuple[Finding, ...]:
    """Returns the findings, the worst first, those of a kind in the order of their frames."""
    ranks = ("ERROR", "WARNING", "INFO")
    return tuple(sorted(findings, key=lambda finding: (ranks.index(finding.severity), finding.frame or 0)))


# ---------------------------------------------------------------- what can be told without evaluating the scene


def check_cuts(scene: bpy.types.Scene) -> list[Finding]:
    """Returns an error for every marker that switches the camera within the shot."""
    bound = sorted((marker for marker in scene.timeline_markers if marker.camera), key=lambda marker: marker.frame)
    cuts = [
        after
        for before, after in pairwise(bound)
        if scene.frame_start < after.frame <= scene.frame_end and after.camera != before.camera
    ]
    return [
        Finding(
            "ERROR",
            f'A marker cuts to "{marker.camera.name}" at frame {marker.frame}: a shot is one flight. End the frame '
            "range before it, or unbind the marker's camera.",
            marker.frame,
        )
        for marker in cuts
    ]


def check_words(scene: bpy.types.Scene) -> list[Finding]:
    """Returns what is wrong with the prompts, and that there are none."""
    try:
        keys = prompt_keys(scene)
    except WorldWarpError as error:
        return [Finding("ERROR", error.message)]
    if scene.worldwarp.prompt.strip() or keys or scene.worldwarp.auto_prompt:
        return []
    return [Finding("INFO", "There is no prompt: what the camera finds is left to the model.")]


def check_linked(scene: bpy.types.Scene) -> list[Finding]:
    """Returns what of a shot is not saved with this file, because it would belong to another one."""
    advice = "Make it local (Object > Relations > Make Local), or a library override."
    if not scene.is_editable:
        return [Finding("WARNING", f'The scene "{scene.name}" is linked from another file: its takes are not saved.')]
    camera = camera_at(scene, scene.frame_start)
    if camera is not None and camera.data is not None and not camera.data.is_editable:
        words = f'The camera "{camera.name}" is linked from another file: frames behind it are not saved. {advice}'
        return [Finding("WARNING", words)]
    return []


def check_size(scene: bpy.types.Scene) -> list[Finding]:
    """Returns what happens to frames, and to a start image, of another size or aspect than models take."""
    width, height = render_size(scene)
    findings = []
    if width * height > MODEL_PX:
        findings.append(
            Finding("INFO", f"Frames are made at about 832 x 480 pixels and enlarged to {width} x {height}.")
        )
    elif width % GRID_PX or height % GRID_PX:
        near = [max(round(side / GRID_PX), 1) * GRID_PX for side in (width, height)]
        findings.append(
            Finding(
                "INFO",
                f"Models take multiples of {GRID_PX}: frames are made at {near[0]} x {near[1]} and fitted to "
                f"{width} x {height}.",
            )
        )
    if scene.render.use_border and scene.render.use_crop_to_border:
        findings.append(
            Finding(
                "WARNING",
                "Only the render region is made: behind the camera its frames are stretched over the whole frame. "
                "Switch Crop to Render Region off, in the Output properties, to see them where they belong.",
            )
        )
    image = scene.worldwarp.start_image if scene.worldwarp.start_source != "RENDER" else None
    if image is not None and min(image.size) > 0:
        wanted, given = width / height, image.size[0] / image.size[1]
        lost = 1 - min(wanted, given) / max(wanted, given)
        if lost > 0.02:
            sides = "left and right" if given > wanted else "top and bottom"
            findings.append(
                Finding("WARNING", f"The start image has another aspect: {lost:.0%} of it, {sides}, is cropped.")
            )
        if image.size[0] < width / 2:
            findings.append(
                Finding("WARNING", f"The start image is only {image.size[0]} x {image.size[1]}: it will look soft.")
            )
    return findings


def check_layout(scene: bpy.types.Scene, path: CameraPath) -> list[Finding]:
    """Returns what keeping the layout along the path costs."""
    if scene.worldwarp.keep_layout != "PATH":
        return []
    size = map_size(path.width, path.height)
    frames = len(frames_to_measure(len(path), size))
    megabytes = 2 * frames * size[0] * size[1] / 1e6
    return [
        Finding(
            "INFO",
            f"To keep the layout, the depth of {frames} frames is rendered before the shot is sent, at {size[0]} x "
            f"{size[1]} ({megabytes:.0f} MB); cancel works meanwhile.",
        )
    ]


def check_cost(preset: str, path: CameraPath, facts: ServerFacts | None, past_shots: Path | None) -> list[Finding]:
    """Returns how long the shot may take on the connected server, and how much of its memory."""
    speed = facts.speed_of(preset, path.width, path.height) if facts is not None else None
    findings = []
    if facts is not None and speed is not None:
        made_with = ", ".join(filter(None, (facts.engine, speed.preset)))
        seconds = speed.seconds_per_frame * len(path)
        findings.append(
            f"About {duration_in_words(seconds)} on {facts.device or 'the server'} ({made_with}): there, "
            f"{speed.width} x {speed.height} took {speed.seconds_per_frame:.2g} s a frame."
        )
    elif (past := past_seconds(past_shots, path)) is not None:
        findings.append(f"About {duration_in_words(past)}, judging by earlier shots.")
    if facts is not None and facts.device_gib is not None:
        findings += memory_in_words(facts, speed)
    return [Finding("INFO", words) for words in findings]


def with_cost(report: Report, preset: str, facts: ServerFacts, past_shots: Path | None) -> Report:
    """Returns a report that was made before the server was asked, with what it says of the cost."""
    if report.path is None:
        return report
    before = check_cost(preset, report.path, None, past_shots)
    others = [finding for finding in report.findings if finding not in before]
    return replace(report, findings=sorted_findings(others + check_cost(preset, report.path, facts, past_shots)))


def memory_in_words(facts: ServerFacts, speed: Speed | None) -> list[str]:
    """Returns how much of its GPU's memory a server takes for a shot; nothing where that is not known."""
    if speed is not None and speed.memory_gib is not None:
        return [f"It takes about {speed.memory_gib:.1f} of the GPU's {facts.device_gib:.0f} GiB of memory."]
    if facts.plan_gib is not None:
        return [f"The server keeps within {facts.plan_gib:.0f} of the GPU's {facts.device_gib:.0f} GiB of memory."]
    return []


def past_seconds(folder: Path | None, path: CameraPath) -> float | None:
    """Returns how long the path may take, by the newest finished shot of the same size in `folder`."""
    jobs = sorted(folder.glob("*/job.json"), key=lambda file: file.stat().st_mtime) if folder is not None else []
    for file in reversed(jobs[-50:]):
        try:
            job = read_job(file.parent)
            seconds = sum(float(part) for part in job["seconds"].values())
            if job["state"] == "done" and job["delivered_size"] == [path.width, path.height]:
                return seconds / job["frames"]["asked"] * len(path)
        except (WorldWarpError, KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            # Another engine may say less of itself, another version other things.
            continue
    return None


# ---------------------------------------------------------------- what the cameras see


def first_refused(context: bpy.types.Context) -> int | None:
    """Returns the first frame whose camera cannot be exported, or None where each can on its own."""
    for frame in scene_frames(context.scene):
        try:
            export_camera_path(context, [frame])
        except WorldWarpError:
            return frame
    return None


def shares(context: bpy.types.Context, path: CameraPath) -> tuple[np.ndarray, np.ndarray]:
    """Returns which share of each frame's view the start frame has seen (T,), and the frame before it (T,).

    Both are 1 for the first frame.
    """
    scene = context.scene
    pixels = grid_pixels(path.width, path.height)
    # A picture is no geometry of the scene: its things are about as far as the artist says.
    nothing = start_distance(context) if scene.worldwarp.start_source != "RENDER" else FAR
    cast = np.unique(np.linspace(0, len(path) - 1, CAST_FRAMES).round().astype(int))
    depths = {}
    with frame_kept(scene):
        for index in cast.tolist():
            scene.frame_set(int(path.frames[index]))
            depth = seen_depth(scene, context.evaluated_depsgraph_get(), pixels, path.K[index], path.c2w[index])
            depths[index] = np.where(np.isfinite(depth), depth, nothing)
    known, shared = np.ones(len(path)), np.ones(len(path))
    for index in range(1, len(path)):
        depth = depths[int(cast[np.abs(cast - index).argmin()])]
        points = path.c2w[index, :3, 3] + depth[:, None] * view_rays(pixels, path.K[index], path.c2w[index])
        known[index] = share_in_view(points, path, 0)
        shared[index] = share_in_view(points, path, index - 1)
    return known, shared


def share_in_view(points: np.ndarray, path: CameraPath, index: int) -> float:
    """Returns the share of (N, 3) world points that the camera at `index` has in its picture."""
    seen = (points - path.c2w[index, :3, 3]) @ path.c2w[index, :3, :3] @ path.K[index].T
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2]
    inside = (seen[:, 2] > 0) & (x >= 0) & (x <= path.width) & (y >= 0) & (y <= path.height)
    return float(inside.mean())


def check_motion(path: CameraPath, shared: np.ndarray) -> list[Finding]:
    """Returns a warning for every jump, and one for each stretch of frames that are too fast."""
    findings = [
        Finding(
            "WARNING",
            f"The camera jumps between frames {jump.before} and {jump.after} ({jump.distance:.3g} units, "
            f"{jump.rotation_deg:.3g} degrees). For a cut, make each side its own shot.",
            jump.after,
        )
        for jump in jumps(path)
    ]
    jumped = {finding.frame for finding in findings}
    fast = [int(path.frames[index]) for index in np.flatnonzero(shared < TOO_FAST)]
    fast = [frame for frame in fast if frame not in jumped]
    for stretch in stretches(fast, int(np.diff(path.frames).max()) if len(path) > 1 else 1):
        least = min(shared[np.isin(path.frames, stretch)])
        findings.append(
            Finding(
                "WARNING",
                f"Too fast at {frames_in_words(stretch)}: a frame shares only {least:.0%} with the one before, which "
                "is too little to carry it over. Slow the camera down there, or give the move more frames.",
                stretch[0],
            )
        )
    return findings


def stretches(frames: list[int], step: int) -> list[list[int]]:
    """Returns the rising `frames` in runs whose neighbours are at most `step` apart."""
    runs: list[list[int]] = []
    for frame in frames:
        if runs and frame - runs[-1][-1] <= step:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


def check_start_view(path: CameraPath, known: np.ndarray) -> list[Finding]:
    """Returns from which frame on nothing of the start view is left."""
    lost = np.flatnonzero(known < LOST)
    if len(lost) == 0:
        return []
    frame = int(path.frames[lost[0]])
    return [
        Finding(
            "WARNING",
            f"Nothing of the start view is left after {lost[0]} frames, at frame {frame}: from there on the world is "
            "made up from the prompt and the frames before.",
            frame,
        )
    ]
