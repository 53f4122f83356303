"""EXR files written without OpenEXR are the files that OpenEXR reads, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from worldwarp_core.pictures.exr_writer import encode_exr


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (15, 4), (16, 5), (17, 33), (144, 256)])
@pytest.mark.parametrize("kind", ["smooth", "noise", "background"])
def test_openexr_reads_what_was_written(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "smooth": np.linspace(1, 9, size[0] * size[1]).reshape(size),
        # Random bits do not shrink, so blocks are stored as they are; all kinds of numbers are among them.
        "noise": rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32),
        "background": np.where(rng.random(size) < 0.5, 1e10, np.inf),
    }[kind].astype(np.float32)
    path = tmp_path / "depth.exr"
    path.write_bytes(encode_exr({"Y": values}))
    with OpenEXR.File(str(path), separate_channels=True) as file:
        assert list(file.channels()) == ["Y"]
        read = file.channels()["Y"].pixels
    np.testing.assert_array_equal(read.view(np.uint32), values.view(np.uint32))


def test_smooth_depth_is_a_fraction_of_its_size() -> None:
    values = np.linspace(1, 9, 256 * 144, dtype=np.float32).reshape(144, 256)
    assert len(encode_exr({"Y": values})) < values.nbytes / 2


@pytest.mark.parametrize("size", [(1, 1), (17, 33)])
def test_openexr_reads_colours_of_half_floats_and_what_is_said_of_them(tmp_path: Path, size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random((*size, 3)).astype(np.float16)
    path = tmp_path / "picture.exr"
    path.write_bytes(encode_exr({"R": values[..., 0], "G": values[..., 1], "B": values[..., 2]}, "sRGB made linear"))
    with OpenEXR.File(str(path)) as file:
        read = file.channels()["RGB"].pixels
        assert file.header()["comments"] == "sRGB made linear"
    assert read.dtype == np.float16
    np.testing.assert_array_equal(read, values)
