"""Camera paths: OpenCV axes, Blender's world, pure NumPy math.

A `CameraPath` is what the artist animated: one pinhole camera a frame. `K` is in pixels with the origin at the image
corner and pixel centres at +0.5; `c2w` maps OpenCV camera axes (x right, y down, z forward) to Blender's world (z up).
Pixels that are not square need nothing special: they are `fx != fy`.

Here are also the flip between Blender's and OpenCV's camera axes, path presets, and the search for jumps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import WorldWarpError

MAX_CAMERAS = 100_000
MAX_SIDE_PX = 16_384
MAX_FPS = 1_000.0

RIGID_TOLERANCE = 1e-3
"""Largest |R^T R - I| taken for rounding (float32 files, five digits of text); it is re-orthonormalised away."""

_EXACT_TOLERANCE = 1e-9
"""Below this a rotation is left bit for bit as it came, so that writing and reading a path changes nothing."""


@dataclass(frozen=True, eq=False)
class CameraPath:
    """T pinhole cameras.

    Attributes:
        frames: (T,) int64 frame numbers, strictly increasing.
        fps: frames a second.
        width, height: of the delivered image in pixels.
        K: (T, 3, 3) float64 in pixels.
        c2w: (T, 4, 4) float64 rigid camera-to-world.

    Raises:
        WorldWarpError: `bad_camera_path`, naming the frames at fault.
    """

    frames: np.ndarray
    fps: float
    width: int
    height: int
    K: np.ndarray
    c2w: np.ndarray

    def __post_init__(self) -> None:
        frames = _checked_frames(self.frames)
        count = len(frames)
        size = (_checked_side("width", self.width), _checked_side("height", self.height))
        K = _checked_array("K", self.K, (count, 3, 3))
        c2w = _checked_array("c2w", self.c2w, (count, 4, 4))
        _refuse(frames, ~np.isfinite(K).all((1, 2)), "K holds NaN or infinity")
        _refuse(frames, ~np.isfinite(c2w).all((1, 2)), "c2w holds NaN or infinity")
        for name, value in (
            ("frames", frames),
            ("fps", _checked_fps(self.fps)),
            ("width", size[0]),
            ("height", size[1]),
            ("K", _checked_pinholes(frames, K)),
            ("c2w", _checked_rigid(frames, c2w)),
        ):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: int | slice) -> CameraPath:
        """The cameras at those positions (not frame numbers) as a path; an integer gives a path of one camera."""
        if not isinstance(key, slice):
            position = range(len(self))[key]  # raises IndexError and counts from the end, as a list does
            key = slice(position, position + 1)
        return replace(self, frames=self.frames[key], K=self.K[key], c2w=self.c2w[key])

    @property
    def w2c(self) -> np.ndarray:
        """(T, 4, 4) float64 world-to-camera: the exact rigid inverse of `c2w`."""
        inverse = np.zeros_like(self.c2w)
        inverse[:, :3, :3] = self.c2w[:, :3, :3].transpose(0, 2, 1)
        inverse[:, :3, 3] = -np.einsum("tji,tj->ti", self.c2w[:, :3, :3], self.c2w[:, :3, 3])
        inverse[:, 3, 3] = 1.0
        return inverse

    def resized(self, width: int, height: int) -> CameraPath:
        """The same views at another size: K is scaled in x and in y on its own (its origin is the image corner)."""
        to_size = np.array([width / self.width, height / self.height, 1.0])
        return replace(self, width=width, height=height, K=self.K * to_size[:, None])

    def scaled(self, factor: float) -> CameraPath:
        """The path with every move relative to the first camera times `factor`: the "speed multiplier"."""
        if not (np.isfinite(factor) and factor >= 0):
            raise WorldWarpError("bad_camera_path", f"The speed multiplier must be 0 or more; got {factor}.")
        c2w = self.c2w.copy()
        c2w[1:, :3, 3] = c2w[0, :3, 3] + factor * (c2w[1:, :3, 3] - c2w[0, :3, 3])
        return replace(self, c2w=c2w)

    def at(self, numbers: np.ndarray, *, smooth: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """K (N, 3, 3) and c2w (N, 4, 4) at (N,) fractional frame numbers; beyond the ends the path holds still.

        Rotations turn along the shortest arc, K is linear; positions are linear, or with `smooth` follow a cubic
        through all cameras (it overshoots where the path jumps). At the path's own frame numbers the cameras come
        back exactly.
        """
        numbers = np.clip(np.asarray(numbers, np.float64), self.frames[0], self.frames[-1])
        if len(self) == 1:
            return self.K.repeat(len(numbers), 0), self.c2w.repeat(len(numbers), 0)
        before = np.clip(np.searchsorted(self.frames, numbers, side="right") - 1, 0, len(self) - 2)
        gap = (self.frames[before + 1] - self.frames[before]).astype(np.float64)
        weight = (numbers - self.frames[before]) / gap

        mix = weight[:, None, None]
        K = (1 - mix) * self.K[before] + mix * self.K[before + 1]
        c2w = np.zeros((len(numbers), 4, 4))
        c2w[:, 3, 3] = 1.0
        turn = self.c2w[before, :3, :3].transpose(0, 2, 1) @ self.c2w[before + 1, :3, :3]
        c2w[:, :3, :3] = self.c2w[before, :3, :3] @ rotation_from_vector(weight[:, None] * vector_from_rotation(turn))
        position = self.c2w[:, :3, 3]
        if smooth:
            velocity = np.gradient(position, self.frames.astype(np.float64), axis=0)
            c2w[:, :3, 3] = _hermite(
                position[before], velocity[before] * gap[:, None],
                position[before + 1], velocity[before + 1] * gap[:, None], weight[:, None],
            )  # fmt: skip
        else:
            c2w[:, :3, 3] = (1 - weight[:, None]) * position[before] + weight[:, None] * position[before + 1]
        # Exact cameras at the knots: what was animated there is not interpolated.
        for knot, source in ((weight == 0, before), (weight == 1, before + 1)):
            K[knot], c2w[knot] = self.K[source[knot]], self.c2w[source[knot]]
        return K, c2w

    def resampled(self, count: int | None = None, *, fps: float | None = None, smooth: bool = False) -> CameraPath:
        """The same flight in another number of frames, numbered on from the first frame number without gaps.

        Give one of: `count`, cameras spread evenly from the first to the last one, played at the same fps (so the
        flight becomes faster or slower); `fps`, a camera for every frame at that rate in the same time.
        """
        if (count is None) == (fps is None):
            raise WorldWarpError("bad_camera_path", "Resample a path either to a number of frames or to an fps.")
        first, last = self.frames[0], self.frames[-1]
        if fps is not None:
            ratio = _checked_fps(fps) / self.fps
            count = int(np.floor((last - first) * ratio + 1e-6)) + 1
            _check_count(count)
            numbers = first + np.arange(count) / ratio
        else:
            assert count is not None
            _check_count(count)
            numbers = np.linspace(first, last, count)
        K, c2w = self.at(numbers, smooth=smooth)
        return replace(self, frames=first + np.arange(count), fps=fps or self.fps, K=K, c2w=c2w)


def blender_to_opencv(c2w: np.ndarray) -> np.ndarray:
    """(..., 4, 4) camera-to-world from Blender's (OpenGL's) camera axes to OpenCV's; its own inverse."""
    return np.asarray(c2w) * np.array([1.0, -1.0, -1.0, 1.0])  # the columns y and z: y up, z back -> y down, z forward


@dataclass(frozen=True)
class Jump:
    """A step between two neighbouring cameras that is far larger than the steps around it."""

    before: int
    after: int
    """Frame numbers on both sides."""
    rotation_deg: float
    distance: float
    """In scene units."""


def jumps(path: CameraPath) -> list[Jump]:
    """Steps that look like a cut: more than 8 times the typical step near them, or views that share nothing.

    "Typical" is the upper quartile of the steps up to 8 frames away, so a camera that starts or stops moving is no
    jump. Steps are per frame number: a path exported every second frame has none because of that.
    """
    if len(path) < 2:
        return []
    gap = np.diff(path.frames).astype(np.float64)
    turn = path.c2w[:-1, :3, :3].transpose(0, 2, 1) @ path.c2w[1:, :3, :3]
    rotation_deg = np.degrees(np.linalg.norm(vector_from_rotation(turn), axis=-1))
    distance = np.linalg.norm(np.diff(path.c2w[:, :3, 3], axis=0), axis=-1)
    extent = np.linalg.norm(np.ptp(path.c2w[:, :3, 3], axis=0))

    far = distance / gap > np.maximum(8 * _typical_nearby(distance / gap), 0.01 * extent)
    far |= rotation_deg / gap > np.maximum(8 * _typical_nearby(rotation_deg / gap), 2.0)
    # Two views whose axes differ by more than the field of view have no pixel in common at a distance.
    view_turn_deg = np.degrees(np.arccos(np.clip(turn[:, 2, 2], -1, 1)))
    size = np.array([path.width, path.height])
    fov_deg = np.degrees(2 * np.arctan(size / (2 * path.K[:-1, [0, 1], [0, 1]]))).max(1)
    far |= view_turn_deg > fov_deg
    return [
        Jump(int(path.frames[i]), int(path.frames[i + 1]), float(rotation_deg[i]), float(distance[i]))
        for i in np.flatnonzero(far)
    ]


def jump_warning(path: CameraPath) -> str | None:
    """One sentence that names the frames where the path jumps, or None where it does not."""
    found = jumps(path)
    if not found:
        return None
    named = ", ".join(
        f"{jump.before} to {jump.after} ({jump.distance:.3g} units, {jump.rotation_deg:.3g} degrees)"
        for jump in found[:5]
    )
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return (
        f"The camera jumps between frames {named}{more}. A flight is continuous: for a cut, generate each side as its "
        "own shot; otherwise check the keyframes there."
    )


DOLLY_SHARE, TRUCK_SHARE, PEDESTAL_SHARE = 0.4, 0.3, 0.2
"""How far the presets move at amount 1, as a share of the distance to the pivot."""
PAN_DEG, TILT_DEG, ORBIT_DEG, ROLL_DEG = 30.0, 20.0, 45.0, 30.0
"""How far the presets turn at amount 1."""

# name -> (what it moves, sign). Axes of the first camera: x right, y down, z forward.
_PRESETS: dict[str, tuple[str, float]] = {
    "DOLLY_IN": ("dolly", +1), "DOLLY_OUT": ("dolly", -1),
    "TRUCK_LEFT": ("truck", -1), "TRUCK_RIGHT": ("truck", +1),
    "PEDESTAL_UP": ("pedestal", -1), "PEDESTAL_DOWN": ("pedestal", +1),
    "PAN_LEFT": ("pan", +1), "PAN_RIGHT": ("pan", -1),
    "TILT_UP": ("tilt", +1), "TILT_DOWN": ("tilt", -1),
    "ORBIT_LEFT": ("orbit", -1), "ORBIT_RIGHT": ("orbit", +1),
    "ROLL_CW": ("roll", +1), "ROLL_CCW": ("roll", -1),
}  # fmt: skip
PRESETS = tuple(_PRESETS)
"""Names that `preset_path` knows."""

BLENDER_FRONT = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""c2w of an upright camera at the origin that looks along +Y, Blender's front view."""


def preset_path(
    presets: str | Sequence[str],
    *,
    frames: int = 49,
    fps: float = 24.0,
    width: int = 832,
    height: int = 480,
    fov_deg: float = 50.0,
    K: np.ndarray | None = None,
    start: np.ndarray | None = None,
    distance: float = 5.0,
    amount: float = 1.0,
    ease: bool = False,
    first_frame: int = 1,
) -> CameraPath:
    """A path made of the named moves, all at once and over its whole length.

    DOLLY moves along the first camera's axis, TRUCK along its x, PEDESTAL along its y. PAN turns about the vertical
    and TILT about the camera's x, on the spot. ORBIT circles about the vertical through the pivot, `distance` in
    front of the first camera, and keeps looking at it: ORBIT_LEFT takes the camera to the left. ROLL turns about the
    viewing axis, clockwise as seen from behind the camera. "The vertical" is the world's z, so the horizon stays
    level; for a first camera whose up is over 60 degrees away from it, the camera's own up.

    Args:
        presets: names of `PRESETS`; a name given twice moves twice as far.
        fov_deg: horizontal field of view; not used when `K` (3, 3) is given.
        start: (4, 4) c2w of the first camera; `BLENDER_FRONT` by default.
        distance: to the pivot in scene units: the scale of the scene, which all moves are proportional to.
        amount: times the moves' usual length (`DOLLY_SHARE` and its neighbours).
        ease: start and stop softly.

    Raises:
        WorldWarpError: `bad_camera_path` for an unknown name or a value out of range.
    """
    names = [presets] if isinstance(presets, str) else list(presets)
    unknown = [name for name in names if name.upper() not in _PRESETS]
    if unknown or not names:
        got = "No camera preset given" if not names else f"Unknown camera preset: {', '.join(unknown)}"
        raise WorldWarpError("bad_camera_path", f"{got}. Known: {', '.join(PRESETS)}.")
    _check_count(frames)
    if not (np.isfinite(distance) and distance > 0 and np.isfinite(amount)):
        raise WorldWarpError(
            "bad_camera_path", f"A preset needs a distance above 0 and a finite amount; got {distance} and {amount}."
        )
    if K is None:
        if not 0 < fov_deg < 180:
            raise WorldWarpError(
                "bad_camera_path", f"The field of view must be between 0 and 180 degrees; got {fov_deg}."
            )
        focal = width / (2 * np.tan(np.radians(fov_deg) / 2))
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    start = BLENDER_FRONT if start is None else start
    first = CameraPath(np.array([first_frame]), fps, width, height, np.asarray(K)[None], np.asarray(start)[None])

    move = dict.fromkeys(("dolly", "truck", "pedestal", "pan", "tilt", "orbit", "roll"), 0.0)
    for name in names:
        kind, sign = _PRESETS[name.upper()]
        move[kind] += sign * amount
    along = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    if ease:
        along = along * along * (3 - 2 * along)

    rotation, position = first.c2w[0, :3, :3], first.c2w[0, :3, 3]
    up = _vertical(rotation)
    right, forward = np.eye(3)[0], np.eye(3)[2]

    def turned(axis: np.ndarray, degrees: float) -> np.ndarray:
        return rotation_from_vector(np.radians(degrees) * along[:, None] * axis)

    shares = np.array([TRUCK_SHARE * move["truck"], PEDESTAL_SHARE * move["pedestal"], DOLLY_SHARE * move["dolly"]])
    pivot = position + distance * rotation[:, 2]
    orbit = turned(up, ORBIT_DEG * move["orbit"])
    c2w = np.zeros((frames, 4, 4))
    c2w[:, 3, 3] = 1.0
    c2w[:, :3, :3] = (
        orbit @ turned(up, PAN_DEG * move["pan"]) @ rotation
        @ turned(right, TILT_DEG * move["tilt"]) @ turned(forward, ROLL_DEG * move["roll"])
    )  # fmt: skip
    on_rails = position + along[:, None] * (rotation @ (distance * shares))
    c2w[:, :3, 3] = pivot + np.einsum("tij,tj->ti", orbit, on_rails - pivot)
    c2w[0] = first.c2w[0]
    return replace(first, frames=first_frame + np.arange(frames), K=first.K.repeat(frames, 0), c2w=c2w)


def rotation_from_vector(vector: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotation about (..., 3) `vector` by its length in radians (Rodrigues)."""
    angle = np.linalg.norm(vector, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(np.asarray(vector, np.float64), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    half = np.sinc(angle / (2 * np.pi))  # sin(a / 2) / (a / 2), which is smooth at 0
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * half**2 * (cross @ cross)


def vector_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """(..., 3) axis times angle in [0, pi] of (..., 3, 3) rotations: the inverse of `rotation_from_vector`."""
    skew = rotation - rotation.swapaxes(-1, -2)
    trace = np.trace(rotation, axis1=-2, axis2=-1)
    # Four times the quaternion's outer product with itself: its largest row is the quaternion without cancellation.
    outer = np.empty((*trace.shape, 4, 4))
    outer[..., 0, 0] = 1 + trace
    outer[..., 0, 1:] = outer[..., 1:, 0] = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)
    outer[..., 1:, 1:] = rotation + rotation.swapaxes(-1, -2) + (1 - trace)[..., None, None] * np.eye(3)
    largest = np.argmax(np.diagonal(outer, axis1=-2, axis2=-1), -1)
    wxyz = np.take_along_axis(outer, largest[..., None, None], -2)[..., 0, :]
    wxyz = wxyz / np.linalg.norm(wxyz, axis=-1, keepdims=True)
    wxyz = np.where(wxyz[..., :1] < 0, -wxyz, wxyz)
    sine = np.linalg.norm(wxyz[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, wxyz[..., :1])
    return np.where(sine > 0, wxyz[..., 1:] * angle / np.where(sine > 0, sine, 1.0), 0.0)


def _vertical(rotation: np.ndarray) -> np.ndarray:
    """The world's up or down, whichever the (3, 3) camera's own up is within 60 degrees of, else the camera's up."""
    camera_up = -rotation[:, 1]
    return np.array([0, 0, np.sign(camera_up[2])]) if abs(camera_up[2]) > 0.5 else camera_up


def _hermite(p0: np.ndarray, v0: np.ndarray, p1: np.ndarray, v1: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The cubic from `p0` to `p1` with velocities `v0` and `v1`, at t in [0, 1]."""
    return p0 + t * v0 + t * t * (3 * (p1 - p0) - 2 * v0 - v1) + t * t * t * (2 * (p0 - p1) + v0 + v1)


def _typical_nearby(steps: np.ndarray, reach: int = 8) -> np.ndarray:
    """(N,) upper quartile of the steps up to `reach` away, each without itself; infinity where there is no other."""
    padded = np.pad(steps, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).copy()
    windows[:, reach] = np.nan
    alone = np.isnan(windows).all(1)
    windows[alone] = np.inf
    return np.nanpercentile(windows, 75, axis=1, method="lower")


def _checked_frames(frames: Any) -> np.ndarray:
    given = _as_numbers("frame numbers", frames)
    if given.ndim != 1:
        raise WorldWarpError("bad_camera_path", f"Frame numbers must be a list; got an array of shape {given.shape}.")
    _check_count(len(given))
    if not np.isfinite(given).all() or (np.abs(given) > 2**31).any() or (given != np.round(given)).any():
        raise WorldWarpError("bad_camera_path", "Frame numbers must be whole numbers.")
    numbers = given.astype(np.int64)
    backwards = np.flatnonzero(np.diff(numbers) <= 0)
    if len(backwards):
        before, after = numbers[backwards[0]], numbers[backwards[0] + 1]
        raise WorldWarpError(
            "bad_camera_path", f"Frame numbers must increase; frame {after} comes right after frame {before}."
        )
    return numbers


def _check_count(count: int) -> None:
    if count < 1:
        raise WorldWarpError("bad_camera_path", "The camera path is empty: it needs at least one frame.")
    if count > MAX_CAMERAS:
        raise WorldWarpError(
            "bad_camera_path",
            f"The camera path has {count:,} frames; at most {MAX_CAMERAS:,} are taken. Split the shot.",
        )


def _checked_side(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= MAX_SIDE_PX:
        raise WorldWarpError(
            "bad_camera_path", f"The {name} must be a whole number of pixels from 1 to {MAX_SIDE_PX}; got {value!r}."
        )
    return int(value)


def _checked_fps(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value <= MAX_FPS:
        raise WorldWarpError(
            "bad_camera_path", f"The frame rate must be above 0 and at most {MAX_FPS:g} a second; got {value!r}."
        )
    return float(value)


def _as_numbers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of unequal length
        raise WorldWarpError("bad_camera_path", f"The {name} are not a regular array: {error}.") from error
    if array.size and array.dtype.kind not in "fiu":
        raise WorldWarpError("bad_camera_path", f"The {name} must be numbers; got an array of {array.dtype}.")
    return array.astype(np.float64)  # always a copy: a frozen path does not follow what its maker does to the array


def _checked_array(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = _as_numbers(name, values)
    if array.shape != shape:
        raise WorldWarpError(
            "bad_camera_path", f"{name} must have shape {shape} for {shape[0]} frames; got {array.shape}."
        )
    return array


def _checked_pinholes(frames: np.ndarray, K: np.ndarray) -> np.ndarray:
    _refuse(frames, (K[:, 0, 0] <= 0) | (K[:, 1, 1] <= 0), "the focal length in K must be above 0")
    skewed = np.abs(K[:, [0, 1], [1, 0]]).max(1) > 1e-6 * K[:, 0, 0]
    _refuse(frames, skewed, "K has skew, which Blender's cameras and this program do not")
    _refuse(frames, np.abs(K[:, 2] - [0, 0, 1]).max(1) > 1e-6, "the last row of K must be 0 0 1")
    K[:, [0, 1], [1, 0]] = 0.0
    K[:, 2] = [0, 0, 1]
    return K


def _checked_rigid(frames: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    not_affine = np.abs(c2w[:, 3] - [0, 0, 0, 1]).max(1) > 1e-6
    _refuse(frames, not_affine, "the last row of c2w must be 0 0 0 1 (is the matrix transposed?)")
    c2w[:, 3] = [0, 0, 0, 1]
    rotation = c2w[:, :3, :3]
    drift = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max((1, 2))
    _refuse(
        frames,
        drift > RIGID_TOLERANCE,
        "c2w is not rigid: its rotation is scaled or sheared. Remove scale from the camera and its parents",
    )
    mirrored = np.linalg.det(rotation) < 0
    _refuse(frames, mirrored, "c2w mirrors: its rotation has a negative determinant. Remove negative scale")
    drifted = drift > _EXACT_TOLERANCE
    if drifted.any():
        u, _, vt = np.linalg.svd(rotation[drifted])
        c2w[drifted, :3, :3] = u @ vt
    return c2w


def _refuse(frames: np.ndarray, bad: np.ndarray, what: str) -> None:
    """Raises `bad_camera_path` naming the first of the `bad` frames."""
    if not bad.any():
        return
    numbers = frames[bad]
    named = ", ".join(str(n) for n in numbers[:5]) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    raise WorldWarpError("bad_camera_path", f"Bad camera at frame{'s' if len(numbers) > 1 else ''} {named}: {what}.")
