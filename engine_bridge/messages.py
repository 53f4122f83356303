"""Every message of the bridge: a frozen, typed class each, one union per direction (PROTOCOL.md is the authority).

Arrays are fields like any other here; on the wire they travel as raw trailing parts (see codec.py). Image sizes are
(height, width), images (h, w, 3) uint8 sRGB, depth (h, w) float32 planar z in scene units, cameras OpenCV in Blender's
world. `request_id` ties a reply to its request; the client chooses it and it is 0 in messages that answer nothing.

A message checks its own ranges when it is made, so none that breaks the protocol can be sent or received.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from attrs import cmp_using, field, frozen, validators

PROTOCOL_VERSION = 4
DEFAULT_ADDRESS = "tcp://127.0.0.1:5577"
"""Where a server listens and a client looks for one, unless they are told."""

MAX_SIDE_PX = 16_384
MAX_FRAMES = 100_000
MAX_SHORT_CHARS = 200
MAX_TEXT_CHARS = 10_000
MAX_PROMPT_KEYS = 1000
MAX_BLOCK_BYTES = 4 * 2**20
MAX_PIECE_BYTES = 2**20
MAX_VIEW_SIDE_PX = 4096
MAX_INT = 2**53

JobState = Literal["queued", "running", "done", "failed", "cancelled"]

Check = Callable[[Any, Any, Any], None]


def _between(low: float, high: float) -> Check:
    def check(_: Any, attribute: Any, value: Any) -> None:
        if not (low <= value <= high):
            raise ValueError(f"{attribute.name} must be between {low} and {high}; got {value}")

    return check


def _matches(pattern: str, what: str) -> Check:
    compiled = re.compile(pattern)

    def check(_: Any, attribute: Any, value: Any) -> None:
        if not compiled.fullmatch(value):
            raise ValueError(f"{attribute.name} must be {what}; got {value[:80]!r}")

    return check


def _array(dtype: str, *shape: int | str) -> Check:
    """A check for an array of this dtype, or of "A or B"; equal letters in `shape` are equal sides within the array."""
    dtypes = [np.dtype(name) for name in dtype.split(" or ")]

    def check(_: Any, attribute: Any, value: Any) -> None:
        sides: dict[str, int] = {}
        fits = isinstance(value, np.ndarray) and value.dtype in dtypes and value.ndim == len(shape)
        if fits:
            for side, wanted in zip(value.shape, shape, strict=True):
                fits = fits and side == (wanted if isinstance(wanted, int) else sides.setdefault(wanted, side))
        if not fits:
            got = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}"
            raise ValueError(f"{attribute.name} must be {dtype} ({', '.join(map(str, shape))}); got {got}")

    return check


def _plain(_: Any, attribute: Any, value: Any) -> None:
    """Checks a free-form map: JSON's types only, at most 8 deep and 10,000 values."""
    budget = [10_000]

    def walk(item: Any, depth: int) -> None:
        budget[0] -= 1
        if depth > 8 or budget[0] < 0:
            raise ValueError(f"{attribute.name} is nested too deeply or has too many values")
        if isinstance(item, dict):
            for key, inner in item.items():
                if type(key) is not str:
                    raise ValueError(f"{attribute.name} has a key that is not text")
                walk(inner, depth + 1)
        elif isinstance(item, list):
            for inner in item:
                walk(inner, depth + 1)
        elif not (item is None or type(item) in (bool, int, str) or (type(item) is float and math.isfinite(item))):
            raise ValueError(f"{attribute.name} has a value of type {type(item).__name__}")

    walk(value, 0)


_REQUEST = _between(0, MAX_INT)
_COUNT = _between(0, MAX_INT)
_SHORT: Check = validators.max_len(MAX_SHORT_CHARS)
_TEXT: Check = validators.max_len(MAX_TEXT_CHARS)
_JOB_ID = _matches(r"[0-9a-f]{32}", "32 lower-case hexadecimal digits")
_SHA256 = _matches(r"[0-9a-f]{64}", "64 hexadecimal digits")
_SIDE = _between(1, MAX_SIDE_PX)
_FRACTION = _between(0, 1)
_FRAME_NUMBER = _between(-MAX_INT, MAX_INT)
_BY_VALUE: Any = cmp_using(eq=np.array_equal)


# ---------------------------------------------------------------- client to server


@frozen(kw_only=True)
class Hello:
    """The first message of every connection. `protocol_version` is in Hello in every version of the protocol."""

    request_id: int = field(validator=_REQUEST)
    protocol_version: int = field(validator=_between(0, 2**31))
    client: str = field(validator=_SHORT)
    """What connects: `worldwarp-cli`, `worldwarp-blender`, ..."""
    client_id: str = field(validator=_matches(r"[0-9a-f]{32}", "32 lower-case hexadecimal digits"))
    """The same in every connection of one client: jobs are shared out by it."""
    version: str = field(validator=_SHORT)
    """The version of that program."""


@frozen(kw_only=True)
class PromptKey:
    """From this frame number on, this prompt."""

    frame: int = field(validator=_FRAME_NUMBER)
    prompt: str = field(validator=_TEXT)


@frozen(kw_only=True)
class Submit:
    """A shot to make. The client makes `job_id` (a uuid4 in 32 hex digits): a repeat is the same job, not another."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    engine: str = field(validator=_SHORT)
    """The engine asked for; "" takes whatever the server runs."""
    prompt: str = field(validator=_TEXT)
    negative_prompt: str = field(validator=_TEXT)
    strength: float | None = field(validator=validators.optional(_FRACTION))
    """None takes the engine's own."""
    chunk: int = field(validator=_between(1, 10_000))
    overlap: int = field(validator=_between(1, 10_000))
    steps: int | None = field(validator=validators.optional(_between(1, 1000)))
    cache_steps: int | None = field(validator=validators.optional(_between(1, 100_000)))
    seed: int = field(validator=_between(-MAX_INT, MAX_INT))
    priority: int = field(validator=_between(-10, 10))
    """Among one client's own jobs, the highest is first; below 0 it yields to all others too."""
    scene_scale: float | None = field(validator=validators.optional(_between(0, 1e12)))
    prompt_keys: tuple[PromptKey, ...] = field(validator=validators.max_len(MAX_PROMPT_KEYS))
    """Other prompts from given frame numbers on, in the order of their frames."""
    auto_prompt: bool = field()
    preset: str = field(validator=_SHORT)
    """How fast against how exact, by the engine's own names; "" takes its default."""
    guidance: float | None = field(validator=validators.optional(_between(0, 1e6)))
    graded_validity: bool = field()
    fps: float = field(validator=_between(1e-3, 1e5))
    width: int = field(validator=_SIDE)
    height: int = field(validator=_SIDE)
    """Of the delivered frames, in pixels."""
    frames: np.ndarray = field(validator=_array("int64", "T"), eq=_BY_VALUE)
    """The path's own frame numbers."""
    K: np.ndarray = field(validator=_array("float64", "T", 4), eq=_BY_VALUE)
    """fx, fy, cx, cy in pixels of each camera."""
    c2w: np.ndarray = field(validator=_array("float64", "T", 4, 4), eq=_BY_VALUE)
    start_frame: np.ndarray = field(validator=_array("uint8", "H", "W", 3), eq=_BY_VALUE)
    depth: np.ndarray | None = field(default=None, eq=_BY_VALUE)
    """(h, w) float32 of the start frame, or None."""
    style_image: np.ndarray | None = field(
        default=None, validator=validators.optional(_array("uint8", "H", "W", 3)), eq=_BY_VALUE
    )
    """sRGB, of any size."""
    strength_mask: np.ndarray | None = field(
        default=None, validator=validators.optional(_array("float32", "N", "H", "W")), eq=_BY_VALUE
    )
    """Added to the strength by region; N is 1 or the path's length, of any size."""
    path_depth_frames: np.ndarray | None = field(
        default=None, validator=validators.optional(_array("int64", "F")), eq=_BY_VALUE
    )
    """The numbers of those of the path's frames that `path_depth` is of, in rising order."""
    path_depth: np.ndarray | None = field(
        default=None,
        validator=validators.optional(_array("float16 or float32", "F", "H", "W")),
        eq=_BY_VALUE,
    )
    """Planar z of the scene's own surfaces along the path, in scene units; inf where nothing is known."""

    def __attrs_post_init__(self) -> None:
        t = len(self.frames)
        if not (1 <= t <= MAX_FRAMES and len(self.K) == t and len(self.c2w) == t):
            raise ValueError(
                f"a path has 1 to {MAX_FRAMES} frames with one K and one c2w each; "
                f"got {t} frames, {len(self.K)} K, {len(self.c2w)} c2w"
            )
        depth = self.depth
        if depth is not None and (depth.dtype != np.float32 or depth.shape != self.start_frame.shape[:2]):
            raise ValueError(
                f"depth must be float32 of the start frame's size {self.start_frame.shape[:2]}; "
                f"got {depth.dtype} {depth.shape}"
            )
        numbers, maps = self.path_depth_frames, self.path_depth
        if len(() if numbers is None else numbers) != len(() if maps is None else maps):
            raise ValueError("path_depth must have one map for each of path_depth_frames")
        if maps is not None and not (1 <= len(maps) <= t and max(maps.shape[1:]) <= MAX_SIDE_PX):
            raise ValueError(
                f"path_depth must be 1 to {t} maps, as many as the path has frames, of at most {MAX_SIDE_PX} pixels a "
                f"side; got {maps.shape}"
            )


@frozen(kw_only=True)
class Upload:
    """A piece of a Submit that is too large to go in one message: bytes `offset` ... of its record (codec.join)."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    engine: str = field(validator=_SHORT)
    """As in the Submit, to be refused before all of it has come."""
    size_bytes: int = field(validator=_between(1, MAX_INT))
    """Of the whole record."""
    offset: int = field(validator=_COUNT)
    sha256: str = field(validator=_SHA256)
    """Of the whole record."""
    data: np.ndarray = field(validator=_array("uint8", "N"), eq=_BY_VALUE)
    """At most MAX_PIECE_BYTES; none, to ask how much the server has."""

    def __attrs_post_init__(self) -> None:
        if len(self.data) > min(MAX_PIECE_BYTES, self.size_bytes - self.offset):
            raise ValueError(
                f"{len(self.data)} bytes are more than a piece, or than the record has after {self.offset}"
            )


@frozen(kw_only=True)
class Draw:
    """A picture to make from words, for a shot to begin with: a job of one frame, without depth."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    prompt: str = field(validator=_TEXT)
    negative_prompt: str = field(validator=_TEXT)
    width: int = field(validator=_SIDE)
    height: int = field(validator=_SIDE)
    seed: int = field(validator=_between(0, MAX_INT))
    steps: int = field(validator=_between(1, 1000))
    guidance: float = field(validator=_between(0, 1e6))


@frozen(kw_only=True)
class Subscribe:
    """Send me the job's events after `after_seq` (0: from the start), at most `credit_bytes` ahead of my Credit."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    after_seq: int = field(validator=_COUNT)
    credit_bytes: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Credit:
    """`credit_bytes` more may be sent: the client has consumed that much. Not answered."""

    job_id: str = field(validator=_JOB_ID)
    credit_bytes: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Compress:
    """Compress the frames that you send me on this connection from now on. Not answered."""


@frozen(kw_only=True)
class Cancel:
    """Stop this job at the engine's next step; what it delivered is kept."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)


@frozen(kw_only=True)
class Resume:
    """Let this failed or cancelled job go on after its last committed chunk."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)


@frozen(kw_only=True)
class ListJobs:
    """Which jobs does the server know?"""

    request_id: int = field(validator=_REQUEST)


@frozen(kw_only=True)
class FetchSplats:
    """One block of the job's splat file. `revision` 0 is the newest; the answer says which that is, for the rest."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    revision: int = field(validator=_COUNT)
    offset: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Ping:
    """Are you there?"""

    request_id: int = field(validator=_REQUEST)


PictureFormat = Literal["jpeg", "raw"]


@frozen(kw_only=True)
class Look:
    """What does this camera see in the job's newest world? To the live view's port; only the newest is answered."""

    job_id: str = field(validator=_JOB_ID)
    look_id: int = field(validator=_between(1, MAX_INT))
    seen_id: int = field(validator=_COUNT)
    """The newest `look_id` of which a picture has arrived; 0 for none."""
    width: int = field(validator=_between(1, MAX_VIEW_SIDE_PX))
    height: int = field(validator=_between(1, MAX_VIEW_SIDE_PX))
    format: PictureFormat
    quality: int = field(validator=_between(1, 100))
    """Of a JPEG."""
    K: np.ndarray = field(validator=_array("float64", 4), eq=_BY_VALUE)
    """fx, fy, cx, cy in pixels."""
    c2w: np.ndarray = field(validator=_array("float64", 4, 4), eq=_BY_VALUE)

    def __attrs_post_init__(self) -> None:
        if not (np.isfinite(self.K).all() and np.isfinite(self.c2w).all() and (self.K[:2] > 0).all()):
            raise ValueError("a camera's numbers must be finite and its focal lengths positive")


ClientMessage = (
    Hello | Submit | Upload | Draw | Subscribe | Credit | Compress | Cancel | Resume | ListJobs | FetchSplats | Ping
    | Look
)  # fmt: skip


# ---------------------------------------------------------------- server to client


@frozen(kw_only=True)
class Welcome:
    """The connection is open."""

    request_id: int = field(validator=_REQUEST)
    protocol_version: int = field(validator=_between(0, 2**31))
    server: str = field(validator=_SHORT)
    version: str = field(validator=_SHORT)
    engine: str = field(validator=_SHORT)
    engine_info: dict[str, Any] = field(validator=_plain)
    """What the engine says of itself; empty while it is being loaded."""
    max_message_bytes: int = field(validator=_COUNT)
    max_credit_bytes: int = field(validator=_COUNT)
    view_port: int = field(validator=_between(0, 65535))
    """Of the live view, on the same host; 0 where there is none."""
    silence_limit_s: float = field(validator=_between(0.1, 1e6))
    """A connection that says nothing for this long is forgotten."""


@frozen(kw_only=True)
class Error:
    """A request was refused, or a message could not be read. `job_id` is "" where it is about no job."""

    request_id: int = field(validator=_REQUEST)
    code: str = field(validator=_SHORT)
    message: str = field(validator=_TEXT)
    job_id: str = field(default="", validator=_SHORT)


@frozen(kw_only=True)
class Accepted:
    """The job is on the server's disk. `position` 0 is the one that runs or runs next."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    position: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Uploaded:
    """So much of an upload's record has come; the next piece begins there."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    received_bytes: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Subscribed:
    """Events of the job follow; its log now ends at `last_seq`."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    state: JobState
    after_seq: int = field(validator=_COUNT)
    """As asked, or 0 where the log does not reach that far: then all of it comes."""
    last_seq: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Cancelling:
    """The request to cancel was taken; `state` is the job's state before it. Its end comes as a StateEvent."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    state: JobState


@frozen(kw_only=True)
class JobInfo:
    """One line of the list of jobs."""

    job_id: str = field(validator=_JOB_ID)
    state: JobState
    created_s: float = field(validator=_between(0, 1e12))
    """Seconds since 1970, by the server's clock."""
    client: str = field(validator=_SHORT)
    """Whose it is: the name of a key, or a `client_id`."""
    priority: int = field(validator=_between(-10, 10))
    frames: int = field(validator=_COUNT)
    frames_done: int = field(validator=_COUNT)
    last_seq: int = field(validator=_COUNT)
    code: str = field(validator=_SHORT)
    message: str = field(validator=_TEXT)


@frozen(kw_only=True)
class Jobs:
    """The jobs that the server knows, oldest first (at most the newest 1,000)."""

    request_id: int = field(validator=_REQUEST)
    jobs: tuple[JobInfo, ...] = field(validator=validators.max_len(1000))


@frozen(kw_only=True)
class SplatsBlock:
    """Bytes `offset` ... of a splat file (3DGS PLY, Blender axes) of `size_bytes` with this SHA-256."""

    request_id: int = field(validator=_REQUEST)
    job_id: str = field(validator=_JOB_ID)
    revision: int = field(validator=_between(1, MAX_INT))
    offset: int = field(validator=_COUNT)
    size_bytes: int = field(validator=_COUNT)
    sha256: str = field(validator=_SHA256)
    data: np.ndarray = field(validator=_array("uint8", "N"), eq=_BY_VALUE)


@frozen(kw_only=True)
class Picture:
    """What the camera of the look `look_id` sees in the world `revision`."""

    job_id: str = field(validator=_JOB_ID)
    look_id: int = field(validator=_between(1, MAX_INT))
    revision: int = field(validator=_between(1, MAX_INT))
    width: int = field(validator=_between(1, MAX_VIEW_SIDE_PX))
    height: int = field(validator=_between(1, MAX_VIEW_SIDE_PX))
    format: PictureFormat
    render_ms: float = field(validator=_between(0, 1e9))
    data: np.ndarray = field(validator=_array("uint8", "N"), eq=_BY_VALUE)
    """A JPEG file, or the pixels, RGB, top row first."""

    def __attrs_post_init__(self) -> None:
        if self.format == "raw" and len(self.data) != self.width * self.height * 3:
            raise ValueError(f"{self.width}x{self.height} pixels are not {len(self.data)} bytes")


@frozen(kw_only=True)
class Pong:
    """Yes."""

    request_id: int = field(validator=_REQUEST)


@frozen(kw_only=True)
class Progress:
    """How far a running job is. Not logged: only the newest is sent, and only while there is credit."""

    job_id: str = field(validator=_JOB_ID)
    stage: str = field(validator=_SHORT)
    step: int = field(validator=_COUNT)
    steps: int = field(validator=_COUNT)
    chunk: int = field(validator=_COUNT)
    chunks: int = field(validator=_COUNT)
    fraction: float = field(validator=_FRACTION)
    eta_s: float | None = field(validator=validators.optional(_between(0, 1e12)))


@frozen(kw_only=True)
class FrameEvent:
    """A frame at the size asked for; provisional until its chunk is committed."""

    job_id: str = field(validator=_JOB_ID)
    seq: int = field(validator=_between(1, MAX_INT))
    index: int = field(validator=_COUNT)
    """Position in the path, from 0."""
    number: int = field(validator=_FRAME_NUMBER)
    """The path's own frame number."""
    chunk: int = field(validator=_COUNT)
    attempt: int = field(validator=_between(1, MAX_INT))
    """Replaces the same frame of every lower attempt."""
    rgb: np.ndarray = field(validator=_array("uint8", "H", "W", 3), eq=_BY_VALUE)
    depth: np.ndarray = field(validator=_array("float32", "H", "W"), eq=_BY_VALUE)
    validity: np.ndarray = field(validator=_array("uint8", "H", "W"), eq=_BY_VALUE)

    def __attrs_post_init__(self) -> None:
        size = self.rgb.shape[:2]
        if self.depth.shape != size or self.validity.shape != size:
            got = f"{size}, {self.depth.shape}, {self.validity.shape}"
            raise ValueError(f"rgb, depth and validity differ in size: {got}")


@frozen(kw_only=True)
class ChunkCommitted:
    """The frames of this chunk's attempt are final; no other attempt at it comes."""

    job_id: str = field(validator=_JOB_ID)
    seq: int = field(validator=_between(1, MAX_INT))
    chunk: int = field(validator=_COUNT)
    attempt: int = field(validator=_between(1, MAX_INT))
    frames: int = field(validator=_COUNT)
    """So many of the path's frames, from the first, are final now."""


@frozen(kw_only=True)
class CacheEvent:
    """The world was fitted again; its splat file can be fetched as `revision`."""

    job_id: str = field(validator=_JOB_ID)
    seq: int = field(validator=_between(1, MAX_INT))
    chunk: int = field(validator=_COUNT)
    revision: int = field(validator=_between(1, MAX_INT))
    splats: int = field(validator=_COUNT)
    size_bytes: int = field(validator=_COUNT)


@frozen(kw_only=True)
class NoticeEvent:
    """Something the user should know."""

    job_id: str = field(validator=_JOB_ID)
    seq: int = field(validator=_between(1, MAX_INT))
    code: str = field(validator=_SHORT)
    message: str = field(validator=_TEXT)


@frozen(kw_only=True)
class StateEvent:
    """The job came into this state. `done`, `failed` and `cancelled` end its log, unless it is resumed."""

    job_id: str = field(validator=_JOB_ID)
    seq: int = field(validator=_between(1, MAX_INT))
    state: JobState
    code: str = field(default="", validator=_SHORT)
    message: str = field(default="", validator=_TEXT)
    log_id: str = field(default="", validator=_SHORT)
    """Where the server's log says more."""
    summary: dict[str, Any] = field(factory=dict, validator=_plain)
    """With `done`: the settings, versions and seconds by stage, for job.json."""


ServerMessage = (
    Welcome | Error | Accepted | Uploaded | Subscribed | Cancelling | Jobs | SplatsBlock | Picture | Pong
    | Progress | FrameEvent | ChunkCommitted | CacheEvent | NoticeEvent | StateEvent
)  # fmt: skip
LoggedEvent = FrameEvent | ChunkCommitted | CacheEvent | NoticeEvent | StateEvent


# ---------------------------------------------------------------- server and worker process (a pipe, never a socket)


@frozen(kw_only=True)
class RunJob:
    """Run the job whose Submit and log are in the job store under this id, after its last committed chunk."""

    job_id: str = field(validator=_JOB_ID)
    attempt: int = field(validator=_between(1, MAX_INT))


@frozen(kw_only=True)
class StopJob:
    """Stop the job at the engine's next event."""

    job_id: str = field(validator=_JOB_ID)


@frozen(kw_only=True)
class Drain:
    """Leave the running job, to go on with it another time, once its chunk is committed."""


@frozen(kw_only=True)
class Quit:
    """Leave, after the running job's next event."""


WorkerCommand = RunJob | StopJob | Drain | Quit


@frozen(kw_only=True)
class Ready:
    """The engine is loaded."""

    engine_info: dict[str, Any] = field(validator=_plain)


@frozen(kw_only=True)
class LoadFailed:
    """The engine cannot be loaded; the worker ends."""

    code: str = field(validator=_SHORT)
    message: str = field(validator=_TEXT)
    log_id: str = field(validator=_SHORT)


@frozen(kw_only=True)
class Lost:
    """The process that holds the engine is gone; the worker ends."""

    how: str = field(validator=_SHORT)


@frozen(kw_only=True)
class Shown:
    """Event `seq` is in a slot of the shared memory `name` (hot.py), and will be in the log in a moment."""

    job_id: str = field(validator=_JOB_ID)
    seq: int = field(validator=_between(1, MAX_INT))
    name: str = field(validator=_SHORT)
    slot: int = field(validator=_COUNT)
    offset: int = field(validator=_COUNT)
    size_bytes: int = field(validator=_COUNT)
    frames_done: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Logged:
    """The job's log now ends at `last_seq`, with `frames_done` frames in it."""

    job_id: str = field(validator=_JOB_ID)
    last_seq: int = field(validator=_COUNT)
    frames_done: int = field(validator=_COUNT)


@frozen(kw_only=True)
class Ended:
    """The engine has let go of the job."""

    job_id: str = field(validator=_JOB_ID)
    state: JobState
    code: str = field(default="", validator=_SHORT)
    message: str = field(default="", validator=_TEXT)
    log_id: str = field(default="", validator=_SHORT)
    summary: dict[str, Any] = field(factory=dict, validator=_plain)


WorkerReport = Ready | LoadFailed | Lost | Shown | Logged | Progress | Ended
