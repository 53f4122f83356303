"""SPZ files against a plain decoder of the format's public description, and against a second library."""

from __future__ import annotations

import gzip
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.axes import to_axes
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import read_splats, write_splats
from worldwarp_core.splat_files.spz import read_spz, write_spz


def random_cloud(n: int, degree: int = 3, seed: int = 0) -> SplatCloud:
    rng = np.random.default_rng(seed)

    def draw(low: float, high: float, *shape: int) -> np.ndarray:
        return rng.uniform(low, high, shape).astype(np.float32)

    quats = rng.normal(size=(n, 4)).astype(np.float32)
    return SplatCloud(
        means=draw(-20, 20, n, 3),
        quats=quats / np.linalg.norm(quats, axis=1, keepdims=True),
        scales=draw(-8, 2, n, 3),
        opacities=draw(-5, 5, n),
        sh0=draw(-2, 2, n, 1, 3),
        shN=draw(-0.35, 0.35, n, (degree + 1) ** 2 - 1, 3),
    )


@dataclass
class Decoded:
    """An SPZ file in its own RUB axes and our encodings."""

    header: tuple[int, ...]
    means: np.ndarray
    alpha: np.ndarray
    sh0: np.ndarray
    scales: np.ndarray
    rotations: np.ndarray  # (N, 3, 3)
    shN: np.ndarray


def decode(path: Path) -> Decoded:
    """The public description of version 3, one Gaussian at a time."""
    data = gzip.decompress(path.read_bytes())
    header = struct.unpack_from("<IIIBBBB", data)
    n, degree, fraction = header[2], header[3], header[4]
    k = (degree + 1) ** 2 - 1
    sizes = [9 * n, n, 3 * n, 3 * n, 4 * n, 3 * k * n]
    ends = 16 + np.cumsum(sizes)
    assert len(data) == ends[-1]
    position, alpha, colour, scale, rotation, sh = (
        data[end - size : end] for end, size in zip(ends, sizes, strict=True)
    )
    fixed = [int.from_bytes(position[i : i + 3], "little", signed=True) for i in range(0, 9 * n, 3)]

    def byte(raw: bytes, *shape: int) -> np.ndarray:
        return np.frombuffer(raw, np.uint8).astype(np.float64).reshape(shape)

    quats = np.empty((n, 4))  # xyzw
    for i, (packed,) in enumerate(struct.iter_unpack("<I", rotation)):
        largest = packed >> 30
        for axis in (a for a in (3, 2, 1, 0) if a != largest):
            magnitude = (packed & 511) / 511 / np.sqrt(2)
            quats[i, axis] = -magnitude if packed & 512 else magnitude
            packed >>= 10
        quats[i, largest] = 0
        quats[i, largest] = np.sqrt(max(1 - (quats[i] ** 2).sum(), 0))
    return Decoded(
        header=header,
        means=np.array(fixed).reshape(n, 3) / 2.0**fraction,
        alpha=byte(alpha, n) / 255,
        sh0=(byte(colour, n, 3) / 255 - 0.5) / 0.15,
        scales=byte(scale, n, 3) / 16 - 10,
        rotations=rotation_matrices(np.roll(quats, 1, axis=1)),
        shN=(byte(sh, n, k, 3) - 128) / 128,
    )


def rotation_matrices(wxyz: np.ndarray) -> np.ndarray:
    w, x, y, z = wxyz.T.astype(np.float64)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_an_independent_decoder_finds_the_cloud_in_rub_axes(tmp_path: Path, degree: int) -> None:
    cloud = random_cloud(500, degree)
    write_spz(tmp_path / "a.spz", cloud)
    got, expected = decode(tmp_path / "a.spz"), to_axes(cloud, "blender", "rub")
    magic, version, count, sh_degree, fraction, flags, reserved = got.header
    assert (magic, version, count, sh_degree, flags, reserved) == (0x5053474E, 3, 500, degree, 0, 0)
    assert np.abs(got.means - expected.means).max() <= 0.5 / 2**fraction + 2e-6
    assert np.abs(got.alpha - 1 / (1 + np.exp(-expected.opacities))).max() <= 0.5 / 255 + 1e-6
    assert np.abs(got.sh0 - expected.sh0[:, 0]).max() <= 0.5 / 255 / 0.15 + 1e-5
    assert np.abs(got.scales - expected.scales).max() <= 0.5 / 16 + 1e-5
    assert np.abs(got.rotations - rotation_matrices(expected.quats)).max() < 0.01
    if degree:
        assert np.abs(got.shN - expected.shN).max() <= 0.5 / 128 + 1e-5


@pytest.mark.parametrize("degree", [0, 3])
def test_a_cloud_comes_back_within_what_the_format_rounds(tmp_path: Path, degree: int) -> None:
    cloud = random_cloud(500, degree)
    write_spz(tmp_path / "a.spz", cloud)
    back = read_spz(tmp_path / "a.spz")
    assert back.sh_degree == degree
    assert np.abs(back.means - cloud.means).max() < 1e-5
    assert np.abs(back.scales - cloud.scales).max() < 0.0313
    assert np.abs(1 / (1 + np.exp(-back.opacities)) - 1 / (1 + np.exp(-cloud.opacities))).max() < 0.002
    assert np.abs(rotation_matrices(back.quats) - rotation_matrices(cloud.quats)).max() < 0.01
    if degree:
        assert np.abs(back.shN - cloud.shN).max() < 0.02  # rotated there and back, rounded once


def test_an_upward_vector_in_blender_is_y_in_the_file(tmp_path: Path) -> None:
    cloud = replace(random_cloud(1), means=np.array([[1, 2, 3]], np.float32))
    write_spz(tmp_path / "a.spz", cloud)
    np.testing.assert_allclose(decode(tmp_path / "a.spz").means, [[1, 3, -2]])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e5])
def test_the_precision_of_positions_follows_the_size_of_the_scene(tmp_path: Path, size: float) -> None:
    cloud = random_cloud(200, 0)
    cloud = replace(cloud, means=cloud.means * np.float32(size))
    write_spz(tmp_path / "a.spz", cloud)
    worst = np.abs(read_spz(tmp_path / "a.spz").means - cloud.means).max()
    assert worst < max(20 * size * 2**-22, 2**-25 * 1.01)


def test_what_the_format_cannot_hold_is_refused_with_a_count(tmp_path: Path) -> None:
    cloud = random_cloud(10, 0)
    cloud.scales[:3] = 7
    with pytest.raises(WorldWarpError, match=r"3 of 10 .*Write a PLY"):
        write_spz(tmp_path / "a.spz", cloud)
    cloud = random_cloud(10, 0)
    cloud.means[4, 0] = 1e7
    with pytest.raises(WorldWarpError, match="1 Gaussians are farther"):
        write_spz(tmp_path / "a.spz", cloud)
    with pytest.raises(WorldWarpError, match="no Gaussians"):
        write_spz(tmp_path / "a.spz", random_cloud(0))
    assert not list(tmp_path.iterdir())


def test_version_2_of_other_programs_is_read(tmp_path: Path) -> None:
    # One Gaussian by hand: at (1, 2, 3) in RUB, half a turn about x, everything else in the middle of its range.
    fixed = b"".join(int(v * 4096).to_bytes(3, "little", signed=True) for v in (1, 2, 3))
    data = struct.pack("<IIIBBBB", 0x5053474E, 2, 1, 0, 12, 0, 0) + fixed + bytes([128, 128, 128, 128, 160, 160, 160])
    data += bytes([255, 128, 127])
    (tmp_path / "a.spz").write_bytes(gzip.compress(data))
    cloud = read_spz(tmp_path / "a.spz")
    np.testing.assert_allclose(cloud.means, [[1, -3, 2]], atol=1e-6)
    np.testing.assert_allclose(cloud.scales, 0)
    np.testing.assert_allclose(np.exp(cloud.opacities), 1, atol=0.02)


@pytest.mark.parametrize("degree", [0, 3])
def test_a_second_library_reads_the_same_gaussians(tmp_path: Path, degree: int) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply comes with the test extra")
    write_spz(tmp_path / "a.spz", random_cloud(300, degree))
    ours, theirs = to_axes(read_spz(tmp_path / "a.spz"), "blender", "rub"), gsply.read_spz(tmp_path / "a.spz")
    np.testing.assert_allclose(ours.means, theirs.means, atol=1e-5)
    np.testing.assert_allclose(ours.scales, theirs.scales, atol=1e-5)
    np.testing.assert_allclose(ours.sh0[:, 0], theirs.sh0, atol=1e-5)
    inner = np.abs(ours.opacities) < 5
    np.testing.assert_allclose(ours.opacities[inner], theirs.opacities.reshape(-1)[inner], atol=1e-4)
    np.testing.assert_allclose(rotation_matrices(ours.quats), rotation_matrices(theirs.quats), atol=1e-5)
    if degree:
        np.testing.assert_allclose(ours.shN, theirs.shN.reshape(300, -1, 3), atol=1e-4)  # turned there and back


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("degree", [0, 3])
def test_files_of_a_second_library_are_read(tmp_path: Path, version: int, degree: int) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply comes with the test extra")
    cloud = random_cloud(300, degree)
    write_spz(tmp_path / "ours.spz", cloud)
    data = gsply.read_spz(tmp_path / "ours.spz")
    gsply.write_spz(tmp_path / "theirs.spz", data, version=version, fractional_bits=18)
    packed = (tmp_path / "theirs.spz").read_bytes()
    assert packed.startswith(struct.pack("<II", 0x5053474E, 4) if version == 4 else b"\x1f\x8b")
    ours, theirs = read_spz(tmp_path / "ours.spz"), read_spz(tmp_path / "theirs.spz")
    for name in ("means", "scales", "opacities", "sh0", "shN"):
        np.testing.assert_allclose(getattr(theirs, name), getattr(ours, name), atol=1e-4, err_msg=name)
    # What was rounded once may be rounded once more.
    np.testing.assert_allclose(rotation_matrices(theirs.quats), rotation_matrices(ours.quats), atol=5e-3)


def test_a_file_of_no_gaussians_is_an_empty_cloud(tmp_path: Path) -> None:
    (tmp_path / "a.spz").write_bytes(gzip.compress(header(count=0, degree=2)))
    assert len(read_spz(tmp_path / "a.spz")) == 0


def test_equal_clouds_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.spz", "b.spz"):
        write_spz(tmp_path / name, random_cloud(20))
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()


def test_a_file_that_ignores_the_formats_axes_can_be_read(tmp_path: Path) -> None:
    cloud = random_cloud(5)
    write_spz(tmp_path / "a.spz", to_axes(cloud, "rub", "blender"))
    np.testing.assert_allclose(read_spz(tmp_path / "a.spz", axes="blender").means, cloud.means, atol=1e-4)


def message(path: Path) -> str:
    with pytest.raises(WorldWarpError) as caught:
        read_spz(path)
    assert caught.value.code == "bad_splats"
    assert str(path) in caught.value.message
    return caught.value.message


def header(version: int = 3, count: int = 1, degree: int = 0) -> bytes:
    return struct.pack("<IIIBBBB", 0x5053474E, version, count, degree, 12, 0, 0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "too short"),
        (b"ply\nformat binary_little_endian 1.0\n", "no SPZ"),
        (gzip.compress(b"x" * 40), "no SPZ"),
        (gzip.compress(b"x"), "cut off"),
        (gzip.compress(header(version=1)), "version 1"),
        (gzip.compress(header(version=9)), "version 9"),
        (header(version=3), "version 3"),
        (gzip.compress(header(degree=4)), "degree 4"),
        (gzip.compress(header(count=4_000_000_000)), "4000000000"),
        (gzip.compress(header(count=100) + bytes(50)), "cut off: 2016 bytes are announced and 66"),
        (gzip.compress(header() + bytes(30_000_000)), "more than the 36 bytes"),
        (gzip.compress(header() + bytes(20))[:-12], "cut off"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 50, "damaged"),
        (header(version=4) + bytes(16), "damaged"),
        (gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 1, 0, 90, 0, 0) + bytes(20)), "90 fractional bits"),
    ],
)
def test_damaged_and_hostile_files_are_refused_by_a_sentence(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.spz").write_bytes(content)
    assert expected in message(tmp_path / "a.spz")


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    assert "cannot be read" in message(tmp_path / "none.spz")


def stream_file(streams: list[tuple[bytes, int]], count: int = 1) -> bytes:
    """A version 4 file of degree 0 from (packed bytes, announced size) of its sections."""
    start = struct.pack("<IIIBBBBI", 0x5053474E, 4, count, 0, 12, 0, len(streams), 32) + bytes(12)
    table = b"".join(struct.pack("<QQ", len(packed), size) for packed, size in streams)
    return start + table + b"".join(packed for packed, _ in streams)


@pytest.mark.parametrize("fault", ["none", "bomb", "short", "size", "count", "noise"])
def test_damaged_streams_of_version_4_are_refused_by_a_sentence(tmp_path: Path, fault: str) -> None:
    zstandard = pytest.importorskip("zstandard", reason="zstandard comes with the client")
    streams = [(zstandard.compress(bytes(size)), size) for size in (9, 1, 3, 3, 4)]
    if fault == "bomb":
        streams[0] = (zstandard.compress(bytes(2**20)), 9)
    elif fault == "short":
        streams[0] = (zstandard.compress(bytes(3)), 9)
    elif fault == "size":
        streams[0] = (streams[0][0], 2**40)
    elif fault == "count":
        streams.pop()
    elif fault == "noise":
        streams[0] = (b"\xff" * 20, 9)
    (tmp_path / "a.spz").write_bytes(stream_file(streams))
    if fault == "none":
        assert len(read_spz(tmp_path / "a.spz")) == 1
    else:
        expected = {"bomb": "more than the 9 bytes", "short": "cut off: 9 bytes"}
        assert expected.get(fault, "damaged") in message(tmp_path / "a.spz")


def test_without_zstandard_version_4_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.spz").write_bytes(stream_file([(b"", 0)] * 5))
    with pytest.raises(WorldWarpError, match="pip install zstandard") as caught:
        read_spz(tmp_path / "a.spz")
    assert caught.value.code == "missing_package"
    write_spz(tmp_path / "b.spz", random_cloud(1))


@pytest.mark.parametrize("name", ["a.ply", "B.SPZ"])
def test_the_extension_chooses_the_format(tmp_path: Path, name: str) -> None:
    cloud = random_cloud(20, 1)
    write_splats(tmp_path / name, cloud)
    np.testing.assert_allclose(read_splats(tmp_path / name).means, cloud.means, atol=1e-5)


def test_other_extensions_and_other_axes_of_spz_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorldWarpError, match=r"\.ply or \.spz"):
        write_splats(tmp_path / "a.splat", random_cloud(1))
    with pytest.raises(WorldWarpError, match="by definition"):
        write_splats(tmp_path / "a.spz", random_cloud(1), "colmap")
    write_splats(tmp_path / "a.spz", random_cloud(1), "rub")


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_gives_a_cloud_or_a_sentence_and_nothing_else(tmp_path: Path, seed: int) -> None:
    write_spz(tmp_path / "a.spz", random_cloud(20, 1))
    packed = (tmp_path / "a.spz").read_bytes()
    plain = gzip.decompress(packed)
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(100):
        inside = rng.random() < 0.5  # damage before packing, or after it
        data = bytearray(plain if inside else packed)
        for at in rng.integers(0, 40, rng.integers(1, 6)):
            data[at] = rng.integers(0, 256)
        (tmp_path / "b.spz").write_bytes(gzip.compress(bytes(data)) if inside else bytes(data))
        try:
            read_spz(tmp_path / "b.spz")
        except WorldWarpError as error:
            refused += error.code == "bad_splats"
    assert refused > 30
