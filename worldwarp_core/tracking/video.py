"""A camera path estimated from a reference video: structure from motion over sampled frames, by COLMAP or TTT3R.

In: a video file. Out: one camera for every frame of it, in a world that suits Blender: the first camera stands at the
origin, level, and looks along +Y with z up. A video does not know its scale, so the scene is scaled to a median depth
that the caller sets. Frames between the sampled ones are interpolated.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cameras.path import BLENDER_FRONT, MAX_CAMERAS, MAX_SIDE_PX, CameraPath, jump_warning
from ..errors import WorldWarpError, install_command
from ..spec import Notice
from . import ttt3r as ttt3r_program

ESTIMATORS = ("pycolmap", "ttt3r")

DEFAULT_SAMPLES = 120
MIN_SAMPLES = 3
MAX_FEATURE_SIDE_PX = 960
"""Longest side of the images that features are looked for in: more costs time and gains little."""
TURN_THAT_TELLS_THE_LENS_DEG = 5.0
MIN_TRAVEL = 0.03
"""How far a camera must go, over the median depth of its view, for depth to be known at all: turning
on the spot looks like 0.02, from noise alone."""
FOCAL_RATIOS = (0.25, 5.0)
"""Focal lengths looked for, over the image's longer side: fields of view from 11 to 127 degrees."""
OVERLAP_FRAMES = 10
"""Each sampled frame is matched with that many before it, and with frames 2, 4, 8, ... apart."""
EXHAUSTIVE_UP_TO = 40
"""Sampled frames up to which every pair is matched, so that a camera that comes back closes the loop."""

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share of the whole that is done, in [0, 1]; what it raises, ends the work."""


@dataclass(frozen=True)
class VideoCameras:
    """What a video told about its camera."""

    cameras: CameraPath
    """A camera for every frame of the video, numbered from 1; square pixels."""
    notices: list[Notice]
    """What the user should know: the scale, frames that could not be placed, jumps."""
    registered: int
    sampled: int
    """Frames placed by the estimator, of the frames it was shown."""


def cameras_from_video(
    video: str | os.PathLike[str],
    *,
    frames: int | None = None,
    estimator: str = "pycolmap",
    fov_deg: float | None = None,
    scene_scale: float = 5.0,
    ttt3r: str | os.PathLike[str] | None = None,
    ttt3r_python: str | os.PathLike[str] | None = None,
    progress: OnProgress | None = None,
) -> VideoCameras:
    """The camera path of the video.

    All frames share one pinhole camera without lens distortion and with its centre in the middle of the image.

    Args:
        frames: how many frames to show to the estimator, spread evenly; `DEFAULT_SAMPLES` or all there are.
        estimator: one of `ESTIMATORS`.
        fov_deg: horizontal field of view where it is known; estimated otherwise.
        scene_scale: median depth of what the first camera sees, in scene units.
        ttt3r: for the estimator ttt3r, the folder of the user's own checkout of it.
        ttt3r_python: the Python that runs it; by default this one.
        progress: see `OnProgress`.

    Raises:
        WorldWarpError: `bad_video` (missing, damaged, too few frames), `no_cameras` (nothing could be estimated),
            `bad_settings`, or `not_installed`.
    """
    if estimator not in ESTIMATORS:
        raise WorldWarpError("bad_settings", f"Unknown camera estimator {estimator!r}. Known: {', '.join(ESTIMATORS)}.")
    if frames is not None and not MIN_SAMPLES <= frames <= MAX_CAMERAS:
        raise WorldWarpError("bad_settings", f"Cameras are estimated from {MIN_SAMPLES} frames or more; got {frames}.")
    if fov_deg is not None and not 0 < fov_deg < 180:
        raise WorldWarpError("bad_settings", f"The field of view must be between 0 and 180 degrees; got {fov_deg}.")
    if not (np.isfinite(scene_scale) and scene_scale > 0):
        raise WorldWarpError("bad_settings", f"The scene scale must be a distance above 0; got {scene_scale}.")
    if estimator != "ttt3r" and (ttt3r is not None or ttt3r_python is not None):
        raise WorldWarpError("bad_settings", f"A TTT3R to run was given, but the estimator is {estimator}, not ttt3r.")
    if estimator == "ttt3r":
        checkout = ttt3r_program.find_checkout(ttt3r, ttt3r_python)
    else:
        pycolmap = _load_pycolmap()
    report = progress or (lambda _what, _share: None)

    with tempfile.TemporaryDirectory(prefix="worldwarp-video-") as folder:
        work = Path(folder)
        film = _sample_frames(Path(video), work / "images", frames or DEFAULT_SAMPLES, report)
        if estimator == "ttt3r":
            solved = _solve_by_ttt3r(checkout, work, film, fov_deg, report)
        else:
            solved = _solve(pycolmap, work, film, fov_deg, report)
    notices = _notices(film, solved, scene_scale, fov_deg)
    if estimator == "ttt3r":
        notices.append(Notice("ttt3r_licence", f"{ttt3r_program.LICENCE}, of these cameras too."))
        if fov_deg is not None:
            message = "TTT3R cannot be told the field of view: the cameras have it, but were placed without it."
            notices.append(Notice("ttt3r_lens", message))
    cameras = _blender_path(film, solved, scene_scale)
    jump = jump_warning(cameras)
    if jump:
        notices.append(Notice("camera_jump", jump))
    report("done", 1.0)
    return VideoCameras(cameras, notices, len(solved.positions), len(film.sampled))


@dataclass(frozen=True)
class _Film:
    """The video as the estimator sees it."""

    total: int
    """Frames in the video."""
    fps: float
    width: int
    height: int
    """Of the video as it is shown: upright, with square pixels."""
    sampled: np.ndarray  # (N,) indices of the frames whose images were written, increasing
    image_width: int
    image_height: int


@dataclass(frozen=True)
class _Solved:
    """Cameras in the estimator's own world and scale."""

    positions: np.ndarray  # (M,) indices into the video, increasing
    c2w: np.ndarray  # (M, 4, 4)
    focal_px: float  # at the film's own width
    median_depth: float  # of the points that the first of these cameras sees
    focal_estimated: bool  # else given or assumed


def _load_pycolmap() -> Any:
    try:
        import pycolmap
    except ImportError as error:
        raise WorldWarpError(
            "not_installed",
            f"Cameras from a video need pycolmap, which is not installed. Run: {install_command('video')}",
        ) from error
    return pycolmap


def _sample_frames(video: Path, folder: Path, count: int, report: OnProgress) -> _Film:
    """Writes up to `count` frames of the video, evenly spread, as PNG files named by their index."""
    import av

    if not video.is_file():
        raise WorldWarpError("bad_video", f"There is no video {video}.")
    folder.mkdir()
    try:
        total = sum(1 for _ in _decoded(av, video, skip_pixels=True))
        if total < MIN_SAMPLES:
            raise _bad_video(video, f"it has {total} frames; at least {MIN_SAMPLES} are needed")
        sampled = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
        wanted = set(sampled.tolist())
        written: list[int] = []
        fps = 0.0
        size = shown = (0, 0)
        for index, frame, rate, aspect in _decoded(av, video):
            total, fps = index + 1, rate  # packets that hold no picture of their own were counted above
            if index not in wanted:
                continue
            turns = round(frame.rotation / 90) % 4  # anticlockwise, as phones mark a film that they held upright
            stored = (max(1, round(frame.width * aspect)), frame.height)
            shrink = min(1.0, MAX_FEATURE_SIDE_PX / max(stored))
            small = [max(1, round(side * shrink)) for side in stored]
            pixels = frame.to_ndarray(format="rgb24", width=small[0], height=small[1], interpolation="AREA")
            image = np.rot90(pixels, turns)
            if written and (image.shape[1], image.shape[0]) != size:
                raise _bad_video(video, "its frames change their size. Cut it into shots")
            size, shown = (image.shape[1], image.shape[0]), stored[::-1] if turns % 2 else stored
            _write_png(folder / f"{index:06d}.png", image)
            written.append(index)
            report("reading the video", 0.1 * index / total)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _bad_video(video, f"it cannot be decoded ({error})") from error
    if len(written) < MIN_SAMPLES:
        raise _bad_video(video, f"only {total} of its frames can be decoded; at least {MIN_SAMPLES} are needed")
    return _Film(total, fps, *shown, np.array(written), *size)


def _decoded(av: Any, video: Path, *, skip_pixels: bool = False) -> Iterator[tuple[int, Any, float, float]]:
    """(index, frame, frames a second, pixel aspect) of the first video stream; without pixels only the count is right.

    Only files are opened: a playlist in a video's clothing reaches no network.
    """
    with av.open(str(video), options={"protocol_whitelist": "file"}) as container:
        if not container.streams.video:
            raise _bad_video(video, "there is no picture in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 24)
        if max(stream.width, stream.height) > MAX_SIDE_PX or not 0 < rate <= 1000:
            raise _bad_video(video, f"it is {stream.width}x{stream.height} pixels at {rate:g} frames a second")
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        items = (p for p in container.demux(stream) if p.size) if skip_pixels else container.decode(stream)
        for index, item in enumerate(items):
            if index >= MAX_CAMERAS:
                raise _bad_video(video, f"it has more than {MAX_CAMERAS:,} frames. Cut out the part that matters")
            yield index, item, rate, aspect


def _write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(image)).save(path, compress_level=1)


def _solve(pycolmap: Any, work: Path, film: _Film, fov_deg: float | None, report: OnProgress) -> _Solved:
    """Features, matches and incremental mapping; the largest model that came of it."""
    database, images = work / "database.db", work / "images"
    loudness = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value  # it tells its progress line by line
    pycolmap.set_random_seed(0)
    try:
        report("looking for features", 0.1)
        reader = pycolmap.ImageReaderOptions(camera_model="SIMPLE_PINHOLE")
        if fov_deg is not None:
            focal = film.image_width / (2 * np.tan(np.radians(fov_deg) / 2))
            reader.camera_params = f"{focal},{film.image_width / 2},{film.image_height / 2}"
        pycolmap.extract_features(database, images, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader)
        report("matching", 0.4)
        if len(film.sampled) <= EXHAUSTIVE_UP_TO:
            pycolmap.match_exhaustive(database)
        else:
            pairing = pycolmap.SequentialPairingOptions(overlap=OVERLAP_FRAMES, quadratic_overlap=True)
            pycolmap.match_sequential(database, pairing_options=pairing)
        model, estimated = _mapped(pycolmap, work, film, fov_deg is not None, report)
    finally:
        pycolmap.logging.minloglevel = loudness
    return _from_model(model, film, estimated)


def _mapped(pycolmap: Any, work: Path, film: _Film, fov_known: bool, report: OnProgress) -> tuple[Any, bool]:
    """COLMAP's model of the scene, and whether its focal length was estimated (or else given or assumed).

    A camera that hardly turns does not tell its focal length, and looking for it while the model grows then wrecks the
    model. So the model is grown with the focal length that COLMAP assumes, and that is adjusted at the end where the
    camera turned; only where too few cameras found a place with it, it is looked for from the start.
    """
    placed = 0

    def another() -> None:
        nonlocal placed
        placed += 1
        report("placing cameras", 0.7 + 0.3 * min(1.0, placed / len(film.sampled)))

    best: Any = None
    estimated = False
    for refine_focal in (False,) if fov_known else (False, True):
        options = pycolmap.IncrementalPipelineOptions(
            multiple_models=False, min_model_size=MIN_SAMPLES, ba_refine_focal_length=refine_focal, random_seed=0
        )
        options.min_focal_length_ratio, options.max_focal_length_ratio = FOCAL_RATIOS
        options.mapper.abs_pose_refine_focal_length = refine_focal
        # Neighbouring frames of a film: small angles, and in a dolly shot one camera straight behind the other.
        options.mapper.init_min_tri_angle = 4.0
        options.mapper.init_max_forward_motion = 1.0
        options.init_num_trials = 20
        output = work / f"model_{refine_focal}"
        output.mkdir()
        models = pycolmap.incremental_mapping(
            work / "database.db", work / "images", output, options=options, next_image_callback=another
        )
        for model in models.values():
            if best is None or model.compute_num_observations() > best.compute_num_observations():
                best, estimated = model, refine_focal
        if best is not None and best.num_reg_images() >= 0.9 * len(film.sampled):
            break
    found = 0 if best is None else best.num_reg_images()
    if found < max(MIN_SAMPLES, len(film.sampled) / 2) or best.num_points3D() == 0:
        raise _not_enough_motion(f"Only {found} of {len(film.sampled)} frames of the video could be placed.")
    if not fov_known and not estimated and _turn_deg(_poses(best)[1]) >= TURN_THAT_TELLS_THE_LENS_DEG:
        adjustment = pycolmap.BundleAdjustmentOptions(refine_focal_length=True, print_summary=False)
        pycolmap.bundle_adjustment(best, adjustment)
        estimated = True
    return best, estimated


def _poses(model: Any) -> tuple[list[Any], np.ndarray]:
    """The images that see any point, in the film's order, and their (M, 4, 4) c2w."""
    images = [image for image in model.images.values() if image.has_pose and image.num_points3D > 0]
    images.sort(key=lambda image: image.name)
    w2c = np.tile(np.eye(4), (len(images), 1, 1))
    w2c[:, :3] = [image.cam_from_world().matrix() for image in images]
    return images, np.linalg.inv(w2c)


def _turn_deg(c2w: np.ndarray) -> float:
    """The largest angle between the first and any other viewing axis."""
    return float(np.degrees(np.arccos(np.clip((c2w[:, :3, 2] @ c2w[0, :3, 2]).min(), -1, 1))))


def _from_model(model: Any, film: _Film, estimated: bool) -> _Solved:
    images, c2w = _poses(model)
    positions = np.array([int(image.name.removesuffix(".png")) for image in images])
    points = np.array([model.points3D[p.point3D_id].xyz for p in images[0].points2D if p.has_point3D()])
    depth = float(np.median((points - c2w[0, :3, 3]) @ c2w[0, :3, 2]))
    travel = np.linalg.norm(c2w[:, :3, 3] - c2w[0, :3, 3], axis=1).max()
    if not depth > 0 or travel < MIN_TRAVEL * depth:
        raise _not_enough_motion("The camera of the video stays on the spot.")
    focal = float(images[0].camera.params[0] * film.width / film.image_width)
    return _Solved(positions, c2w, focal, depth, estimated)


def _solve_by_ttt3r(
    checkout: ttt3r_program.Checkout, work: Path, film: _Film, fov_deg: float | None, report: OnProgress
) -> _Solved:
    """TTT3R places every frame, by a lens of its own finding; a known lens replaces that in the cameras only."""
    found = ttt3r_program.estimate(
        checkout, work / "images", len(film.sampled), work, lambda share: report("running TTT3R", 0.1 + 0.85 * share)
    )
    focal = found.focal_ratio * max(film.width, film.height)
    if fov_deg is not None:
        focal = film.width / (2 * np.tan(np.radians(fov_deg) / 2))
    return _Solved(film.sampled, found.c2w, focal, found.median_depth, fov_deg is None)


def _blender_path(film: _Film, solved: _Solved, scene_scale: float) -> CameraPath:
    """The path of all frames; first camera at the origin in Blender's front view, median depth as asked for."""
    c2w = BLENDER_FRONT @ np.linalg.inv(solved.c2w[0]) @ solved.c2w
    c2w[:, :3, 3] *= scene_scale / solved.median_depth
    K = np.array([[solved.focal_px, 0, film.width / 2], [0, solved.focal_px, film.height / 2], [0, 0, 1]])
    placed = CameraPath(
        solved.positions + 1, film.fps, film.width, film.height, np.tile(K, (len(c2w), 1, 1)), c2w
    )  # fmt: skip
    numbers = np.arange(1, film.total + 1)
    all_K, all_c2w = placed.at(numbers, smooth=True)
    return replace(placed, frames=numbers, K=all_K, c2w=all_c2w)


def _notices(film: _Film, solved: _Solved, scene_scale: float, fov_deg: float | None) -> list[Notice]:
    notices = [
        Notice(
            "video_scale",
            f"A video does not tell its scale: the median depth of frame {solved.positions[0] + 1} was set to "
            f"{scene_scale:g} units.",
        )
    ]
    if fov_deg is None:
        found_deg = np.degrees(2 * np.arctan(film.width / (2 * solved.focal_px)))
        if not solved.focal_estimated:
            message = (
                f"The camera hardly turns, so the video does not tell its field of view: {found_deg:.1f} degrees is a "
                "guess, and depths along the view are off in proportion. Give the field of view if you know it."
            )
            notices.append(Notice("video_lens_guessed", message))
        else:
            notices.append(Notice("video_lens", f"The field of view was estimated as {found_deg:.1f} degrees."))
    lost = np.setdiff1d(film.sampled, solved.positions) + 1
    if len(lost):
        named = ", ".join(str(n) for n in lost[:10]) + (f" and {len(lost) - 10} more" if len(lost) > 10 else "")
        notices.append(
            Notice(
                "frames_not_placed",
                f"{len(lost)} of {len(film.sampled)} sampled frames could not be placed and were interpolated "
                f"(held still at the ends): {named}.",
            )
        )
    return notices


def _bad_video(video: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_video", f"Cannot take cameras from {video}: {what}.")


def _not_enough_motion(what: str) -> WorldWarpError:
    return WorldWarpError(
        "no_cameras",
        f"{what} The camera must move (turning on the spot shows no depth) past a still scene with texture, sharp and "
        "without cuts. Try another part of the video, or more frames.",
    )
