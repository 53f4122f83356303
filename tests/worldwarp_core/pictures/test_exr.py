"""Depth as OpenEXR: what other programs see in ours, what we find in theirs, and what is refused."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures import exr
from worldwarp_core.pictures.exr import read_depth_exr, write_depth_exr

RNG = np.random.default_rng(7)
DEPTH = RNG.uniform(0.5, 500, (9, 14)).astype(np.float32)
DEPTH[0, :5] = 1e10
GREY = RNG.uniform(0, 1, (9, 14)).astype(np.float16)
OTHER = DEPTH[::-1].copy()


def saved(path, channels, **header):
    OpenEXR.File({"type": OpenEXR.scanlineimage, **header}, channels).write(str(path))
    return path


def saved_parts(path, *parts):
    kind = {"type": OpenEXR.scanlineimage}
    OpenEXR.File([OpenEXR.Part(dict(kind), channels, name) for name, channels in parts]).write(str(path))
    return path


def refused(path, match):
    with pytest.raises(WorldWarpError, match=match) as caught:
        read_depth_exr(path)
    assert caught.value.code == "bad_depth"
    assert str(path) in caught.value.message


def test_what_is_written_is_read_back_to_the_bit(tmp_path):
    write_depth_exr(tmp_path / "new" / "depth.exr", DEPTH)
    np.testing.assert_array_equal(read_depth_exr(tmp_path / "new" / "depth.exr"), DEPTH)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["depth.exr"]


def test_the_written_file_is_one_float_channel_with_zip(tmp_path):
    write_depth_exr(tmp_path / "depth.exr", DEPTH.astype(np.float64))
    with OpenEXR.File(str(tmp_path / "depth.exr"), separate_channels=True) as file:
        assert list(file.channels()) == ["Y"]
        assert file.channels()["Y"].pixels.dtype == np.float32
        assert file.header()["compression"] == OpenEXR.ZIP_COMPRESSION


def in_another_process(code, *arguments):
    """The JSON that `code` prints: these libraries read their settings once, or do not share a process well."""
    environment = {**os.environ, "OPENCV_IO_ENABLE_OPENEXR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_opencv_reads_the_same_values(tmp_path):
    pytest.importorskip("cv2", reason="OpenCV is part of the engine, not of the client")
    write_depth_exr(tmp_path / "depth.exr", DEPTH)
    seen = in_another_process(
        "import cv2, json, sys; print(json.dumps(cv2.imread(sys.argv[1], cv2.IMREAD_UNCHANGED).tolist()))",
        tmp_path / "depth.exr",
    )
    np.testing.assert_array_equal(np.float32(seen), DEPTH)


def test_blender_reads_the_same_values(tmp_path):
    pytest.importorskip("bpy", reason="Blender as a module is an extra")
    write_depth_exr(tmp_path / "depth.exr", DEPTH)
    code = (
        "import bpy, json, sys\n"
        "image = bpy.data.images.load(sys.argv[1]); image.colorspace_settings.name = 'Non-Color'\n"
        "print(json.dumps([list(image.size), image.pixels[:]]))"
    )
    size, pixels = in_another_process(code, tmp_path / "depth.exr")
    assert size == [14, 9]
    rgba = np.float32(pixels).reshape(9, 14, 4)[::-1]
    np.testing.assert_array_equal(rgba[..., 0], DEPTH)


COMBINED = {f"ViewLayer.Combined.{c}": GREY for c in "RGBA"}


@pytest.mark.parametrize(
    "channels",
    [
        {"Z": DEPTH},
        {"Y": DEPTH},
        {"V": DEPTH},
        {"R": DEPTH},
        {"R": DEPTH, "G": DEPTH, "B": DEPTH},
        {"R": DEPTH, "G": DEPTH, "B": DEPTH, "A": np.ones_like(DEPTH)},
        {"Z": DEPTH, "R": GREY, "G": GREY, "B": GREY, "A": GREY},
        {"depth.Z": DEPTH, "R": GREY, "G": GREY, "B": GREY},
        {"Depth.V": DEPTH, "Image.R": GREY, "Image.G": GREY, "Image.B": GREY},
        {"ViewLayer.Depth.Z": DEPTH, **COMBINED},
        {"View Layer.001.Depth.Z": DEPTH, "View Layer.001.Mist.Z": OTHER, **COMBINED},
        {"ViewLayer.Depth.Z": DEPTH, "ViewLayer.Denoising Depth.Z": OTHER, "ViewLayer.Normal.Z": OTHER, **COMBINED},
        {"ViewLayer.Denoising Depth.Z": DEPTH, "ViewLayer.Normal.Z": OTHER, **COMBINED},
    ],
    ids=lambda channels: " ".join(channels),
)
def test_the_depth_channel_is_found_under_every_usual_name(tmp_path, channels):
    np.testing.assert_array_equal(read_depth_exr(saved(tmp_path / "d.exr", channels)), DEPTH)


@pytest.mark.parametrize(
    "parts",
    [
        (("ViewLayer.Combined", {"R": GREY, "G": GREY, "B": GREY}), ("ViewLayer.Depth", {"Z": DEPTH})),
        (("ViewLayer.Combined", {"ViewLayer.Combined.R": GREY}), ("ViewLayer.Depth", {"ViewLayer.Depth.Z": DEPTH})),
        (("Normal", {"X": OTHER, "Y": OTHER, "Z": OTHER}), ("Depth", {"V": DEPTH})),
    ],
    ids=["short names", "full names", "file output"],
)
def test_the_depth_channel_is_found_in_the_parts_of_a_file(tmp_path, parts):
    np.testing.assert_array_equal(read_depth_exr(saved_parts(tmp_path / "d.exr", *parts)), DEPTH)


def test_half_floats_and_infinities_are_read_as_they_are(tmp_path):
    depth = np.array([[1.5, np.inf], [0.25, 1000]], np.float16)
    np.testing.assert_array_equal(read_depth_exr(saved(tmp_path / "d.exr", {"Z": depth})), depth.astype(np.float32))


def test_a_cropped_render_is_background_around_its_data_window(tmp_path):
    windows = {
        "dataWindow": (np.array([3, 2], np.int32), np.array([16, 10], np.int32)),
        "displayWindow": (np.array([0, 0], np.int32), np.array([19, 9], np.int32)),
    }
    image = read_depth_exr(saved(tmp_path / "d.exr", {"Z": DEPTH}, **windows))
    assert image.shape == (10, 20)
    np.testing.assert_array_equal(image[2:10, 3:17], DEPTH[:8])
    image[2:10, 3:17] = 1e10
    assert (image == np.float32(1e10)).all()


@pytest.mark.parametrize(
    ("channels", "match"),
    [
        ({"R": GREY, "G": DEPTH, "B": DEPTH}, "colour image"),
        (
            {"Normal.X": DEPTH, "Normal.Y": DEPTH, "Normal.Z": DEPTH},
            "no depth channel: of Normal.X, Normal.Y, Normal.Z",
        ),
        ({"A": DEPTH}, "no depth channel"),
        ({"Day.Depth.Z": DEPTH, "Night.Depth.Z": OTHER}, "more than one depth pass .*Day.Depth.Z, Night.Depth.Z"),
    ],
)
def test_what_is_no_depth_pass_is_refused(tmp_path, channels, match):
    refused(saved(tmp_path / "d.exr", channels), match)


def test_a_file_that_is_not_whole_is_refused_wherever_it_ends(tmp_path):
    whole = tmp_path / "whole.exr"
    write_depth_exr(whole, RNG.uniform(1, 2, (64, 32)))
    content = whole.read_bytes()
    cut = tmp_path / "cut.exr"
    for end in range(0, len(content) - 1, len(content) // 23):
        cut.write_bytes(content[:end])
        refused(cut, "cannot be read as OpenEXR|damaged")


def test_sizes_are_limited_before_pixels_are_read(tmp_path, monkeypatch):
    file = saved(tmp_path / "d.exr", {"Z": DEPTH, "R": GREY})
    monkeypatch.setattr(exr, "MAX_SAMPLES", 9 * 14)
    refused(file, "at most")
    monkeypatch.setattr(exr, "MAX_SIDE_PX", 13)
    refused(file, "14x9 pixels; up to 13")


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorldWarpError, match="Cannot write") as caught:
        write_depth_exr(tmp_path / "file" / "depth.exr", DEPTH)
    assert caught.value.code == "cannot_write"


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "depth.exr"
    write_depth_exr(file, DEPTH)

    def full(_path, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WorldWarpError, match="No space left"):
        write_depth_exr(file, OTHER)
    np.testing.assert_array_equal(read_depth_exr(file), DEPTH)
    assert list(tmp_path.iterdir()) == [file]


def test_the_module_loads_without_the_openexr_package():
    code = "import worldwarp_core.pictures.exr, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"OpenEXR", "torch", "PIL", "cv2", "numba", "bpy"} & set(loaded)
