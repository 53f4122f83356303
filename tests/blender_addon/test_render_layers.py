"""EXR channels are read without OpenEXR, to the bit, whoever wrote the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from blender_addon.render_layers import UnexpectedLayout, read_channel
from worldwarp_core.pictures.exr import write_depth_exr

COMPRESSIONS = {"none": OpenEXR.NO_COMPRESSION, "zips": OpenEXR.ZIPS_COMPRESSION, "zip": OpenEXR.ZIP_COMPRESSION}


def values_of(kind: str, height: int = 37, width: int = 23) -> np.ndarray:
    rng = np.random.default_rng(0)
    # Noise does not shrink, so that some blocks are stored as they are.
    return rng.random((height, width), np.float32) if kind == "noise" else np.full((height, width), 4.5, np.float32)


def save(path: Path, parts: list[tuple[str, dict[str, np.ndarray]]], compression: int) -> Path:
    header = {"compression": compression, "type": OpenEXR.scanlineimage}
    if len(parts) == 1:
        OpenEXR.File(header, parts[0][1]).write(str(path))
    else:
        made = [OpenEXR.Part({**header, "name": name}, channels, name=name) for name, channels in parts]
        OpenEXR.File(made).write(str(path))
    return path


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_a_channel_is_found_among_others_of_other_sizes(tmp_path: Path, kind: str, compression: str) -> None:
    depth, other = values_of(kind), values_of("noise").astype(np.float16)
    channels = {"Combined.R": other, "Combined.Z": other, "Depth.Z": depth, "Z": other}
    path = save(tmp_path / "a.exr", [("", channels)], COMPRESSIONS[compression])
    np.testing.assert_array_equal(read_channel(path, ".Depth.Z"), depth)
    np.testing.assert_array_equal(read_channel(path, "Combined.Z"), other.astype(np.float32))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_channel_is_found_in_its_part(tmp_path: Path, compression: str) -> None:
    depth = values_of("noise")
    parts = [("Layer.Combined", {"R": values_of("flat")}), ("Layer.Depth", {"Z": depth})]
    path = save(tmp_path / "a.exr", parts, COMPRESSIONS[compression])
    np.testing.assert_array_equal(read_channel(path, ".Depth.Z"), depth)


@pytest.mark.parametrize("kind", ["noise", "flat"])
def test_a_shots_own_depth_is_read(tmp_path: Path, kind: str) -> None:
    write_depth_exr(tmp_path / "a.exr", values_of(kind))
    np.testing.assert_array_equal(read_channel(tmp_path / "a.exr", (".Z", ".Y")), values_of(kind))


def test_other_compressions_are_refused_by_a_sentence(tmp_path: Path) -> None:
    path = save(tmp_path / "a.exr", [("", {"Z": values_of("noise")})], OpenEXR.PIZ_COMPRESSION)
    with pytest.raises(UnexpectedLayout, match="save it with ZIP"):
        read_channel(path, ".Z")


def test_damage_anywhere_is_a_sentence_or_other_numbers_but_no_crash(tmp_path: Path) -> None:
    path = save(tmp_path / "a.exr", [("", {"Z": values_of("noise")})], OpenEXR.ZIP_COMPRESSION)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for at in rng.integers(0, 600, 4):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(200, len(damaged))])
        try:
            assert read_channel(path, ".Z").dtype == np.float32
        except UnexpectedLayout:
            refused += 1
    assert refused > 100
