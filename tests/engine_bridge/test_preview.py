"""The video and the contact sheet, read back by the libraries that others read them with."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine_bridge.preview import contact_sheet, frame_number, sequence, write_video
from worldwarp_core.errors import WorldWarpError


def write_frames(folder: Path, numbers: range, size: tuple[int, int] = (45, 81)) -> list[Path]:
    """A picture that gets brighter with its number, red on the left and green on the right."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, number in enumerate(numbers):
        picture = np.zeros((*size, 3), np.uint8)
        picture[:, : size[1] // 2, 0] = picture[:, size[1] // 2 :, 1] = min(60 + 10 * i, 250)
        Image.fromarray(picture).save(folder / f"frame_{number:04d}.png")
    return sequence(folder)


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames = write_frames(tmp_path, range(-3, 3))
    assert [frame_number(path) for path in frames] == [-3, -2, -1, 0, 1, 2]


@pytest.mark.parametrize("size", [(45, 81), (36, 64)])
def test_the_video_has_every_frame_in_its_colours_and_even_sides(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = write_frames(tmp_path / "frames", range(12), size)
    write_video(frames, tmp_path / "preview.mp4", 24.0)
    with av.open(str(tmp_path / "preview.mp4")) as video:
        stream = video.streams.video[0]
        assert float(stream.average_rate or 0) == 24.0
        assert stream.codec_context.pix_fmt == "yuv420p"
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(pictures) == 12
    height, width = size[0] + size[0] % 2, size[1] + size[1] % 2
    assert pictures[0].shape == (height, width, 3)
    for i, picture in enumerate(pictures):
        assert np.abs(picture[5:30, 5:25].astype(int).mean((0, 1)) - (60 + 10 * i, 0, 0)).max() < 6
        assert np.abs(picture[5:30, 50:60].astype(int).mean((0, 1)) - (0, 60 + 10 * i, 0)).max() < 6


@pytest.mark.parametrize("count", [1, 2, 5, 93])
def test_the_contact_sheet_shows_first_and_last_frame(tmp_path: Path, count: int) -> None:
    write_frames(tmp_path / "frames", range(1, count + 1), (36, 64))
    contact_sheet(tmp_path / "frames", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1600
    assert pixels.shape[0] < 2400
    # The first picture's red half in the top left corner; the paper's colour around it.
    assert (pixels[2, 2] == (24, 24, 26)).all()
    assert np.abs(pixels[24, 24] - (60, 0, 0)).max() <= 2


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorldWarpError) as caught:
        write_video([], tmp_path / "preview.mp4", 24.0)
    assert caught.value.code == "no_frames"
    with pytest.raises(WorldWarpError) as caught:
        contact_sheet(tmp_path, tmp_path / "sheet.png")
    assert caught.value.code == "no_frames"


def test_a_video_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "frames", range(2))
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldWarpError, match=r"preview\.mp4") as caught:
        write_video(frames, tmp_path / "file" / "preview.mp4", 24.0)
    assert caught.value.code == "cannot_write"
