"""Two ways to look at a sequence of PNG frames at once: a video, and a sheet of pictures with their numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldwarp_core.atomic_write import atomic_write
from worldwarp_core.errors import WorldWarpError

from .errors import disk_errors

_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf", "mpeg4")
"""The first that this build of FFmpeg has; mpeg4 is in all of them."""

_MARGIN_PX, _GAP_PX, _CAPTION_PX = 16, 8, 18
_PAPER, _INK = (24, 24, 26), (200, 200, 205)


def sequence(frames_dir: Path) -> list[Path]:
    """The frames in `frames_dir` by their numbers, negative ones first."""
    return sorted(Path(frames_dir).glob("frame_*.png"), key=frame_number)


def frame_number(path: Path) -> int:
    """The number in `frame_0001.png`."""
    match = re.fullmatch(r"frame_(-?\d+)\.png", path.name)
    if match is None:
        raise WorldWarpError("bad_frame_name", f"{path.name} is not named frame_NUMBER.png.")
    return int(match[1])


def write_video(frames: Sequence[Path], out: Path, fps: float) -> None:
    """Writes an H.264 mp4 (MPEG-4 where there is no H.264 encoder) that plays everywhere: 4:2:0, BT.709, even sides.

    Frames with an odd side get their last row or column twice.

    Raises:
        WorldWarpError: `no_frames`, `cannot_write`, `disk_full`.
    """
    if not frames:
        raise WorldWarpError("no_frames", f"There are no frames to make {out} from.")
    out = Path(out)
    with disk_errors(out), atomic_write(out) as partial:
        try:
            _encode(frames, partial, Fraction(fps).limit_denominator(1001))
        except av.FFmpegError as error:
            raise OSError(error.errno or 0, f"the video encoder says: {error}") from error


def contact_sheet(frames_dir: Path, out: Path, *, pictures: int = 20, width_px: int = 1600) -> None:
    """Writes a PNG with evenly spread frames, first and last among them, each above its number.

    Raises:
        WorldWarpError: `no_frames`, `cannot_write`, `disk_full`.
    """
    frames = sequence(frames_dir)
    if not frames:
        raise WorldWarpError("no_frames", f"There are no frames in {frames_dir}.")
    chosen = [
        frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, min(pictures, len(frames))).round().astype(int))
    ]
    with Image.open(chosen[0]) as first:
        aspect = first.height / first.width
    # As many columns as make the sheet about 4:3.
    columns = max(1, min(len(chosen), round(math.sqrt(len(chosen) * aspect * 4 / 3))))
    rows = math.ceil(len(chosen) / columns)
    cell_w = (width_px - 2 * _MARGIN_PX - (columns - 1) * _GAP_PX) // columns
    cell_h = max(1, round(cell_w * aspect))
    pitch = cell_h + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (width_px, 2 * _MARGIN_PX + rows * pitch - _GAP_PX), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, path in enumerate(chosen):
        x = _MARGIN_PX + (i % columns) * (cell_w + _GAP_PX)
        y = _MARGIN_PX + (i // columns) * pitch
        with Image.open(path) as picture:
            sheet.paste(picture.convert("RGB").resize((cell_w, cell_h), Image.Resampling.LANCZOS), (x, y))
        draw.text((x, y + cell_h + 2), str(frame_number(path)), _INK, font)
    with disk_errors(Path(out)), atomic_write(out) as partial:
        sheet.save(partial, "PNG")


def _encode(frames: Sequence[Path], out: Path, fps: Fraction) -> None:
    codec = next(name for name in _ENCODERS if name in av.codec.codecs_available)
    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        first = _even(frames[0])
        stream = container.add_stream(codec, rate=fps, options={"crf": "16"} if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 0 if codec == "libx264" else 12_000_000
        context = stream.codec_context
        context.color_range, context.colorspace = 1, 1
        context.color_primaries, context.color_trc = 1, 13
        for path in frames:
            frame = av.VideoFrame.from_ndarray(_even(path), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _even(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    return np.pad(rgb, ((0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)), mode="edge")
