"""Footage that users have: the folder layouts of RealEstate10K and DL3DV.

RealEstate10K (Zhou et al. 2018): a text file a clip, its first line the video's address, then a line a frame with
`timestamp fx fy cx cy 0 0` and the 3x4 world-to-camera matrix by rows, the lens in shares of width and height. The
frames are `<timestamp>.png` (or .jpg) in a folder named as the text file, anywhere below the same folder.

DL3DV-10K (Ling et al. 2024): a folder a scene, with `transforms.json` (Nerfstudio's; OpenGL axes, lens in pixels of the
full size, distortion of OpenCV's model) or COLMAP's `sparse/0`, and the frames in `images`, `images_2`, `images_4` or
`images_8`, of which the smallest that is large enough is read.

Frames are undistorted, cropped in their middle to the shape asked for, and made smaller. Neither knows depth: the scale
of the scene is found by triangulating what a few frames share, with the cameras given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..cameras.path import CameraPath, blender_to_opencv
from ..errors import WorldWarpError, install_command
from .held_out import FRAMES
from .scenes import FPS, Scene, Truth

LEAST_FRAMES = 50
"""A shorter clip has no frame to be judged at."""
PICTURES = (".png", ".jpg", ".jpeg")
MAX_TEXT_BYTES = 64 << 20
MAX_SIDE_PX = 8192
SCALE_FRAMES = (5, 10, 20, 40)
"""Frames whose matches with the first tell the scale."""
SCALE_POINTS = 20
"""Fewer triangulated points tell nothing."""
SCALE_PARALLAX_RAD = math.radians(0.5)
SCALE_ERROR_PX = 1.5
MATCH_RATIO = 0.75
LENS = ("fl_x", "fl_y", "cx", "cy")
BENT = ("k1", "k2", "p1", "p2")


@dataclass(frozen=True)
class Clip:
    """One clip as it lies on disk.

    Attributes:
        pictures: the file of each frame, all of one size.
        lens: (T, 4) fx, fy, cx, cy as shares of width and height.
        distortion: k1, k2, p1, p2 of OpenCV's model, or none of them.
        c2w: (T, 4, 4) OpenCV.
    """

    name: str
    pictures: list[Path]
    lens: np.ndarray
    distortion: tuple[float, ...]
    c2w: np.ndarray


class RealEstate10k:
    """Clips of a folder in RealEstate10K's layout: those of which at least `LEAST_FRAMES` frames are there.

    Args:
        folder: with the text files and the frames, however deep.
        size: (height, width) to judge at.
        count: how many clips, by name; None takes all.

    Raises:
        WorldWarpError: `bad_footage`.
    """

    name = "RealEstate10K"

    def __init__(self, folder: Path, size: tuple[int, int] = (144, 256), count: int | None = None) -> None:
        files = sorted(_found(folder, "*.txt"))
        frames: dict[str, list[Path]] = {}
        for place in (path for path in folder.rglob("*") if path.is_dir()):
            frames.setdefault(place.name, []).append(place)
        self._size = size
        self._clips = _whole(folder, [partial(_read_re10k, file, frames.get(file.stem, [])) for file in files], count)

    def __len__(self) -> int:
        return len(self._clips)

    def scene(self, index: int) -> Scene:
        return _scene(self._clips[index], self._size)


class Dl3dv:
    """Scenes of a folder in DL3DV's layout; arguments and errors as of `RealEstate10k`."""

    name = "DL3DV"

    def __init__(self, folder: Path, size: tuple[int, int] = (144, 256), count: int | None = None) -> None:
        described = sorted(_found(folder, "transforms.json"))
        covered = {_scene_folder(file.parent) for file in described}
        sparse = [f for f in sorted(_found(folder, "cameras.bin")) if _scene_folder(f.parent) not in covered]
        self._size = size
        readers = [partial(_read_transforms, file, size[1]) for file in described]
        readers += [partial(_read_colmap, file.parent, size[1]) for file in sparse]
        self._clips = _whole(folder, readers, count)

    def __len__(self) -> int:
        return len(self._clips)

    def scene(self, index: int) -> Scene:
        return _scene(self._clips[index], self._size)


def scale_of(pictures: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> float | None:
    """Median depth of the first of (N, H, W, 3) uint8 pictures, in the cameras' units; None where it does not show.

    Points are matched between the first picture and each other and triangulated with the (N, 3, 3) and (N, 4, 4)
    cameras given.
    """
    import cv2

    finder = cv2.SIFT_create()  # type: ignore[attr-defined]
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    points, words = finder.detectAndCompute(grey[0], None)
    depths: list[np.ndarray] = []
    for other in range(1, len(pictures)):
        more, others = finder.detectAndCompute(grey[other], None)
        if words is None or others is None or len(others) < 2:
            continue
        pairs = [p for p in cv2.BFMatcher().knnMatch(words, others, k=2) if len(p) == 2]
        good = [a for a, b in pairs if a.distance < MATCH_RATIO * b.distance]
        if not good:
            continue
        here = np.array([points[m.queryIdx].pt for m in good]) + 0.5
        there = np.array([more[m.trainIdx].pt for m in good]) + 0.5
        depths.append(_triangulated(here, there, K[[0, other]], c2w[[0, other]]))
    found = np.concatenate(depths) if depths else np.empty(0)
    return float(np.median(found)) if len(found) >= SCALE_POINTS else None


def _triangulated(here: np.ndarray, there: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """(M,) depths in the first of two cameras of the matches that hold."""
    import cv2

    w2c = np.linalg.inv(c2w)
    views = [k @ w[:3] for k, w in zip(K, w2c, strict=True)]
    homogeneous = cv2.triangulatePoints(views[0], views[1], here.T, there.T)
    world = (homogeneous[:3] / np.where(np.abs(homogeneous[3]) < 1e-12, 1e-12, homogeneous[3])).T
    good = np.ones(len(world), bool)
    for view, seen in zip(views, (here, there), strict=True):
        projected = np.c_[world, np.ones(len(world))] @ view.T
        off = projected[:, :2] / np.where(np.abs(projected[:, 2:]) < 1e-12, 1e-12, projected[:, 2:]) - seen
        good &= (projected[:, 2] > 0) & (np.linalg.norm(off, axis=1) < SCALE_ERROR_PX)
    rays = [world - pose[:3, 3] for pose in c2w]
    one, other = (r / np.linalg.norm(r, axis=1, keepdims=True).clip(1e-12) for r in rays)
    good &= np.arccos((one * other).sum(1).clip(-1, 1)) > SCALE_PARALLAX_RAD
    return (world @ w2c[0, 2, :3] + w2c[0, 2, 3])[good]


def _scene(clip: Clip, size: tuple[int, int]) -> Scene:
    height, width = size
    source = _picture(clip.pictures[0]).size
    box = _middle(source, width / height)
    lens = clip.lens * np.array([*source, *source])
    K = np.zeros((len(lens), 3, 3))
    K[:, [0, 1], [0, 1]], K[:, 2, 2] = lens[:, :2], 1.0
    K[:, :2, 2] = lens[:, 2:]
    cropped = K - np.pad(np.array([[box[0]], [box[1]]], np.float64), ((0, 1), (2, 0)))
    path = CameraPath(
        np.arange(1, len(K) + 1), FPS, box[2] - box[0], box[3] - box[1], cropped, clip.c2w
    ).resized(width, height)  # fmt: skip

    def picture(row: int) -> np.ndarray:
        seen = _picture(clip.pictures[row])
        if seen.size != source:
            raise _bad(clip.pictures[row], f"it is {seen.size[0]}x{seen.size[1]}, the first is {source[0]}x{source[1]}")
        straight = Image.fromarray(_undistorted(np.asarray(seen), K[row], clip.distortion))
        return np.asarray(straight.crop(box).resize((width, height), Image.Resampling.LANCZOS))

    def truth(frames: Sequence[int]) -> Truth:
        return np.stack([picture(row) for row in frames]), None

    rows = [0, *(row for row in SCALE_FRAMES if row < len(K))]
    return Scene(
        name=clip.name,
        kind="footage",
        stratum="all",
        in_sight=None,
        cameras=path,
        truth=truth,
        scale=scale_of(truth(rows)[0], path.K[rows], path.c2w[rows]),
    )


def _read_re10k(file: Path, places: list[Path]) -> Clip:
    lines = [line.split() for line in _text(file).splitlines() if line.strip()]
    rows = [line for line in lines if len(line) == 19]
    if not rows:
        raise _bad(file, "no line of it has the 19 numbers of a frame")
    try:
        numbers = np.array([[float(word) for word in row[1:]] for row in rows])
    except ValueError as error:
        raise _bad(file, f"a frame's line holds something else than numbers: {error}") from error
    if not np.isfinite(numbers).all():
        raise _bad(file, "a frame's line holds NaN or infinity")
    pictures = [_by_stem(places, row[0]) for row in rows]
    there = [row for row, picture in enumerate(pictures) if picture is not None]
    w2c = np.tile(np.eye(4), (len(rows), 1, 1))
    w2c[:, :3] = numbers[:, 6:].reshape(-1, 3, 4)
    return Clip(
        file.stem,
        [picture for picture in pictures if picture is not None][:FRAMES],
        numbers[there, :4][:FRAMES],
        (),
        _rigid(file, np.linalg.inv(w2c[there][:FRAMES])),
    )


def _read_transforms(file: Path, width: int) -> Clip:
    try:
        document = json.loads(_text(file))
        rows = sorted(document["frames"], key=lambda row: str(row["file_path"]))
        full = float(document["w"]), float(document["h"])
        lens = [
            [float({**document, **row}[key]) / side for key, side in zip(LENS, (*full, *full), strict=True)]
            for row in rows
        ]
        bent = tuple(float(document.get(name, 0.0)) for name in BENT)
        poses = np.array([row["transform_matrix"] for row in rows], np.float64)
        names = [Path(str(row["file_path"])).name for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(file, f"it is no transforms.json of Nerfstudio's kind ({error!r})") from error
    if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise _bad(file, "its transform_matrix must be 4x4 finite numbers")
    folders = _image_folders(file.parent, width)
    return _clip(file, [_by_name(folders, name) for name in names], np.array(lens), bent, blender_to_opencv(poses))


def _read_colmap(sparse: Path, width: int) -> Clip:
    try:
        import pycolmap
    except ImportError as error:
        raise WorldWarpError(
            "not_installed", f"COLMAP's files need pycolmap. Run: {install_command('evaluation')}"
        ) from error
    try:
        model = pycolmap.Reconstruction(sparse)
    except (RuntimeError, ValueError, OSError) as error:
        raise _bad(sparse, f"COLMAP's model in it cannot be read ({error})") from error
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    folders = _image_folders(sparse, width)
    bent: tuple[float, ...] = ()
    lens, poses = [], []
    for image in images:
        camera = model.cameras[image.camera_id]
        full = camera.width, camera.height
        K = camera.calibration_matrix()
        lens.append(np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]]) / np.array([*full, *full]))
        named = dict(zip(camera.params_info.replace(" ", "").split(","), camera.params.tolist(), strict=True))
        named.setdefault("k1", named.get("k", 0.0))  # as the models with one coefficient call it
        bent = tuple(float(named.get(name, 0.0)) for name in BENT)
        w2c = np.eye(4)
        w2c[:3] = image.cam_from_world().matrix()
        poses.append(np.linalg.inv(w2c))
    pictures = [_by_name(folders, Path(image.name).name) for image in images]
    return _clip(sparse, pictures, np.array(lens), bent, np.array(poses))


def _clip(
    source: Path,
    pictures: list[Path | None],
    lens: np.ndarray,
    distortion: tuple[float, ...],
    c2w: np.ndarray,
) -> Clip:
    """Of the frames whose picture is there, the first `FRAMES`."""
    there = [row for row, picture in enumerate(pictures) if picture is not None][:FRAMES]
    return Clip(
        _scene_folder(source if source.is_dir() else source.parent).name,
        [picture for picture in pictures if picture is not None][:FRAMES],
        lens[there],
        distortion,
        _rigid(source, c2w[there]),
    )


def _whole(folder: Path, readers: Iterable[Callable[[], Clip]], count: int | None) -> list[Clip]:
    """The clips of which enough frames are there, at most `count`."""
    clips: list[Clip] = []
    short = 0
    for read in readers:
        if count is not None and len(clips) == count:
            break
        clip = read()
        if len(clip.pictures) >= LEAST_FRAMES:
            clips.append(clip)
        else:
            short += 1
    if not clips:
        found = f"{short} clips have fewer than {LEAST_FRAMES} frames there" if short else "no cameras were found"
        raise _bad(folder, f"{found}. Frames and cameras must be in the layout that the data set comes in")
    return clips


def _found(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise _bad(folder, "there is no such folder")
    return list(folder.rglob(pattern))


def _scene_folder(place: Path) -> Path:
    """The folder of a whole scene, from one within it."""
    while place.name in ("nerfstudio", "gaussian_splat", "colmap", "sparse", "0"):
        place = place.parent
    return place


def _image_folders(place: Path, width: int) -> list[Path]:
    """Folders with a scene's pictures: the smallest that are as wide as wanted first, then the largest."""
    scene = _scene_folder(place)
    found = []
    for parent in {place, place.parent, scene, *(path for path in scene.iterdir() if path.is_dir())}:
        for folder in (path for path in parent.glob("images*") if path.is_dir()):
            first = next((p for p in sorted(folder.iterdir()) if p.suffix.lower() in PICTURES), None)
            if first is not None:
                wide = _picture(first).size[0]
                found.append((wide < width, abs(wide - width), str(folder), folder))
    return [folder for *_, folder in sorted(found)]


def _by_name(folders: list[Path], name: str) -> Path | None:
    """The first of the folders that has the file: a plain name, so that nothing outside them is read."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _by_stem(folders: list[Path], stem: str) -> Path | None:
    if not stem.isdigit():
        return None
    return next((f for folder in folders for s in PICTURES if (f := folder / f"{stem}{s}").is_file()), None)


def _picture(file: Path) -> Image.Image:
    try:
        # By these decoders alone, whatever the name says: some of Pillow's run other programs.
        picture = Image.open(file, formats=("PNG", "JPEG"))
        if max(picture.size) > MAX_SIDE_PX:
            raise _bad(file, f"it is {picture.size[0]}x{picture.size[1]}; at most {MAX_SIDE_PX} a side are read")
        return picture.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise _bad(file, f"it cannot be read ({error})") from error


def _undistorted(picture: np.ndarray, K: np.ndarray, distortion: tuple[float, ...]) -> np.ndarray:
    if not any(distortion):
        return picture
    import cv2

    centres = K.copy()
    centres[:2, 2] -= 0.5  # OpenCV's pixel centres are whole numbers
    return np.asarray(cv2.undistort(picture, centres, np.array(distortion)))


def _middle(size: tuple[int, int], aspect: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the largest part of that aspect in the middle of a picture."""
    width, height = min(size[0], round(size[1] * aspect)), min(size[1], round(size[0] / aspect))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _rigid(source: Path, c2w: np.ndarray) -> np.ndarray:
    """Poses with rotations that are ones to the last digit: files round."""
    if not len(c2w):
        return c2w
    u, s, vt = np.linalg.svd(c2w[:, :3, :3])
    if np.abs(s - 1).max() > 0.01 or np.linalg.det(u @ vt).min() < 0:
        raise _bad(source, "its cameras' rotations are none")
    rigid = c2w.copy()
    rigid[:, :3, :3] = u @ vt
    return rigid


def _text(file: Path) -> str:
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise _bad(file, f"it is larger than {MAX_TEXT_BYTES >> 20} MiB")
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(file, f"it cannot be read ({error})") from error


def _bad(where: Path, what: str) -> WorldWarpError:
    return WorldWarpError("bad_footage", f"Cannot take footage from {where}: {what}.")
