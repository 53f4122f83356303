"""Camera poses from TTT3R, a learned estimator that the user has installed: https://github.com/Inception3D/TTT3R.

In: the folder of the user's own checkout, and a folder of images. Out: a pose for each image (camera-to-world, OpenCV
axes, TTT3R's own world and scale), the focal length, and the median depth of what the first camera sees.

TTT3R's licence forbids commercial use, so nothing of it is part of this program and it is never imported: its `demo.py`
runs as a program of its own, in the Python that it was installed in. That leaves one file of poses and one of depth an
image, then opens a viewer that never returns; so the files are waited for, and the program is ended when they are
whole. This was written from the public program's command line and files, and has been tried with a stand-in only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import WorldWarpError

SITE = "https://github.com/Inception3D/TTT3R"
LICENCE = "TTT3R's licence (CC BY-NC-SA 4.0, that of CUT3R, on which it builds) forbids commercial use"
CHECKPOINT = "src/cut3r_512_dpt_4_64.pth"
IMAGE_SIDE_PX = 512
"""TTT3R scales images to this longer side, then crops each side to a multiple of 16 about the middle: never the longer
one, as 512 is one."""

QUIET_LIMIT_S = 30 * 60.0
"""Time without a new file or a new line in the log after which TTT3R is taken to hang."""
POLL_S = 0.5
LOG_LINES = 12
"""Lines from the end of the log, shown when TTT3R fails."""
LOG_TAIL_BYTES = 4000
MAX_FILE_BYTES = 1 << 24
ROTATION_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Checkout:
    """TTT3R as the user has installed it."""

    folder: Path
    python: Path
    """The Python that TTT3R's requirements are installed in."""


@dataclass(frozen=True)
class Estimate:
    """What TTT3R says of N images."""

    c2w: np.ndarray  # (N, 4, 4), OpenCV axes
    focal_ratio: float  # focal length over the image's longer side, one for all images
    median_depth: float  # along the view of the first camera, in the units of c2w


def find_checkout(folder: str | os.PathLike[str] | None, python: str | os.PathLike[str] | None = None) -> Checkout:
    """The checkout at `folder`, with `python` (a path or a command; by default the Python that runs this).

    Raises:
        WorldWarpError: `not_installed`, with where to get what is missing.
    """
    if folder is None:
        raise _not_installed("TTT3R is not part of this program.")
    root = Path(folder).resolve()
    if not (root / "demo.py").is_file():
        raise _not_installed(f"There is no TTT3R in {root}: it has no demo.py.")
    if not (root / CHECKPOINT).is_file():
        raise _not_installed(f"TTT3R's weights are not at {root / CHECKPOINT}.")
    program = shutil.which(python or sys.executable)
    if program is None:
        raise WorldWarpError("not_installed", f"There is no Python at {python}. Give the one that TTT3R runs in.")
    # Made absolute, as the program runs in another folder; links are kept, by which Python knows its environment.
    return Checkout(root, Path(os.path.abspath(program)))


def estimate(
    checkout: Checkout, images: Path, count: int, work: Path, progress: Callable[[float], None] = lambda _share: None
) -> Estimate:
    """Runs TTT3R on the `count` images of a folder, in the order of their names; keeps its files in `work`.

    The program is gone when this returns or raises.

    Args:
        progress: called about twice a second with the share of the files that is there; what it raises, ends the work.

    Raises:
        WorldWarpError: `no_cameras` where TTT3R ends early, hangs, or leaves files that are not what is expected.
    """
    output, log = work / "ttt3r", work / "ttt3r.log"
    with _running(checkout, images, output, log) as process:
        sizes: dict[Path, int] = {}
        changed_at, logged = time.monotonic(), 0
        while True:
            ended = process.poll() is not None  # asked before looking, so that nothing it left last is missed
            before, sizes = sizes, _sizes(output, count)
            before_logged, logged = logged, log.stat().st_size
            if len(sizes) == 2 * count and (ended or sizes == before):
                found = _read(output, count)
                if found is not None:
                    return found
            if ended:
                raise _failed(f"TTT3R ended (exit code {process.returncode}) before it had placed all frames.", log)
            if (sizes, logged) != (before, before_logged):
                changed_at = time.monotonic()
            elif time.monotonic() - changed_at > QUIET_LIMIT_S:
                raise _failed(f"TTT3R did nothing for {QUIET_LIMIT_S / 60:g} minutes and was ended.", log)
            progress(len(sizes) / (2 * count))
            time.sleep(POLL_S)


@contextlib.contextmanager
def _running(checkout: Checkout, images: Path, output: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """TTT3R at work in a process group of its own, which is gone afterwards."""
    arguments = {
        "--model_path": CHECKPOINT,
        "--seq_path": str(images),
        "--output_dir": str(output),
        "--model_update_type": "ttt3r",
        "--size": str(IMAGE_SIDE_PX),
        "--device": "cuda",  # it takes the CPU by itself where its own torch finds no GPU
    }
    command = [str(checkout.python), "demo.py", *(word for pair in arguments.items() for word in pair)]
    # Our own Python's settings are not for another one; and lines reach the log as they are printed.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PYTHONUNBUFFERED"] = "1"
    own_group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with log.open("wb") as lines:
        try:
            process = subprocess.Popen(
                command,
                cwd=checkout.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=subprocess.STDOUT,
                **own_group,
            )
        except OSError as error:
            raise WorldWarpError("not_installed", f"Cannot start {checkout.python}: {error}.") from error
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program and all that it started. At once: its files are in a folder that goes away with it."""
    if sys.platform == "win32":
        kill_tree = ["taskkill", "/PID", str(process.pid), "/T", "/F"]
        subprocess.run(kill_tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    else:
        # Nothing is left of the group; macOS calls that a lack of permission.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _camera_file(output: Path, index: int) -> Path:
    return output / "camera" / f"{index:06d}.npz"


def _depth_file(output: Path, index: int) -> Path:
    return output / "depth" / f"{index:06d}.npy"


def _sizes(output: Path, count: int) -> dict[Path, int]:
    """Bytes of each file that is there, of the two for each image."""
    sizes = {}
    for index in range(count):
        for file in (_camera_file(output, index), _depth_file(output, index)):
            with contextlib.suppress(FileNotFoundError):
                sizes[file] = file.stat().st_size
    if sizes and max(sizes.values()) > MAX_FILE_BYTES:
        raise _unexpected(f"files of over {MAX_FILE_BYTES >> 20} MiB")
    return sizes


def _read(output: Path, count: int) -> Estimate | None:
    """What the files say, or None while one of them is still being written."""
    poses, focals = np.empty((count, 4, 4)), np.empty(count)
    shapes: set[tuple[int, ...]] = set()
    try:
        for index in range(count):
            with np.load(_camera_file(output, index), allow_pickle=False) as camera:
                pose, K = camera["pose"], camera["intrinsics"]
            # Mapped, which fails on a file shorter than its header says, and reads no pixels.
            shapes.add(np.load(_depth_file(output, index), mmap_mode="r", allow_pickle=False).shape)
            if pose.shape != (4, 4) or K.shape != (3, 3):
                raise _unexpected(f"a pose of shape {pose.shape} and intrinsics of shape {K.shape}")
            poses[index], focals[index] = pose, K[0, 0]
        depth = np.load(_depth_file(output, 0), allow_pickle=False)
    except KeyError as error:
        raise _unexpected("a camera without its pose or intrinsics") from error
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None
    if len(shapes) != 1 or depth.ndim != 2 or max(depth.shape) != IMAGE_SIDE_PX:
        raise _unexpected(f"depth maps of shapes {sorted(shapes)}")
    known = depth[np.isfinite(depth) & (depth > 0)]
    if not len(known):
        raise _unexpected("no depth for the first frame")
    if not (np.isfinite(focals).all() and (focals > 0).all()):
        raise _unexpected("focal lengths that are not above 0")
    return Estimate(_rigid(poses), float(np.median(focals)) / IMAGE_SIDE_PX, float(np.median(known)))


def _rigid(poses: np.ndarray) -> np.ndarray:
    """(N, 4, 4) with exact rotations for those of single precision."""
    if not np.isfinite(poses).all() or np.abs(poses[:, 3] - [0, 0, 0, 1]).max() > ROTATION_TOLERANCE:
        raise _unexpected("poses that are not finite 4x4 transforms")
    left, _, right = np.linalg.svd(poses[:, :3, :3])
    rotations = left @ right
    off = np.abs(rotations - poses[:, :3, :3]).max()
    if off > ROTATION_TOLERANCE or (np.linalg.det(rotations) < 0).any():
        raise _unexpected("poses that do not rotate")
    rigid = np.tile(np.eye(4), (len(poses), 1, 1))
    rigid[:, :3, :3], rigid[:, :3, 3] = rotations, poses[:, :3, 3]
    return rigid


def _not_installed(what: str) -> WorldWarpError:
    return WorldWarpError(
        "not_installed",
        f"{what} Get it and its weights as {SITE} says, and give its folder (--ttt3r). {LICENCE}; the estimator "
        "pycolmap, which is the default, has no such limit.",
    )


def _unexpected(got: str) -> WorldWarpError:
    return WorldWarpError(
        "no_cameras",
        f"TTT3R left {got}, which is not what its public version writes (a 4x4 pose, 3x3 intrinsics, and a depth map "
        f"{IMAGE_SIDE_PX} pixels long, for each frame). Use the public version, or the estimator pycolmap.",
    )


def _failed(what: str, log: Path) -> WorldWarpError:
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        said = lines.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    end = "\n".join(said).strip() or "(nothing)"
    return WorldWarpError(
        "no_cameras",
        f"{what} Check that it runs by itself, in the Python given (--ttt3r-python). The last it said:\n{end}",
    )
