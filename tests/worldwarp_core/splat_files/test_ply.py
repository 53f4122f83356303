"""3DGS PLY files against plyfile, against what other programs do to them, and against damage."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files import ply
from worldwarp_core.splat_files.axes import TO_BLENDER
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.ply import ply_axes, read_ply, write_ply


def random_cloud(n: int, degree: int = 3, seed: int = 0) -> SplatCloud:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    quats = draw(n, 4)
    return SplatCloud(
        means=draw(n, 3),
        quats=quats / np.linalg.norm(quats, axis=1, keepdims=True),
        scales=draw(n, 3) - 3,
        opacities=draw(n),
        sh0=draw(n, 1, 3),
        shN=draw(n, (degree + 1) ** 2 - 1, 3),
    )


def with_provenance(cloud: SplatCloud, seed: int = 0) -> SplatCloud:
    rng = np.random.default_rng(seed)
    frames = rng.choice(np.array([-1, 1, 49, 93], np.int32), len(cloud))
    return replace(cloud, source_frames=frames, sky=rng.random(len(cloud)) < 0.2)


def sorted_as_written(cloud: SplatCloud) -> SplatCloud:
    order = np.lexsort((cloud.source_frames, cloud.sky))
    return SplatCloud(**{name: values[order] for name, values in vars(cloud).items()})


def assert_same(got: SplatCloud, expected: SplatCloud, tolerance: float = 0.0) -> None:
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(got, name), values, rtol=0, atol=tolerance, err_msg=name)


def code_and_message(path: Path, **options: object) -> str:
    with pytest.raises(WorldWarpError) as caught:
        read_ply(path, **options)  # type: ignore[arg-type]
    assert caught.value.code == "bad_splats"
    return caught.value.message


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_cloud_comes_back_with_its_source_frames_and_its_sky(tmp_path: Path, degree: int) -> None:
    cloud = with_provenance(random_cloud(1000, degree))
    write_ply(tmp_path / "a.ply", cloud)
    back = read_ply(tmp_path / "a.ply")
    assert back.sh_degree == degree
    assert_same(back, sorted_as_written(cloud), 1e-6)  # only the quaternions are normalised again
    np.testing.assert_array_equal(back.means, sorted_as_written(cloud).means)


@pytest.mark.parametrize("axes", ["blender", "colmap", "y-up", "opengl"])
def test_the_file_says_its_axes_and_is_read_back_into_blenders(tmp_path: Path, axes: str) -> None:
    cloud = random_cloud(50)
    write_ply(tmp_path / "a.ply", cloud, axes=axes)
    assert ply_axes(tmp_path / "a.ply") == ("y-up" if axes == "opengl" else axes)
    back = read_ply(tmp_path / "a.ply")
    sign = np.sign((back.quats * cloud.quats).sum(axis=1, keepdims=True))  # q and -q are one rotation
    assert_same(replace(back, quats=back.quats * sign), cloud, 3e-6)


def test_a_file_without_axes_is_read_as_the_caller_says_and_else_as_colmap(tmp_path: Path) -> None:
    cloud = random_cloud(5)
    write_ply(tmp_path / "a.ply", cloud)
    anonymous = b"\n".join(
        line
        for line in (tmp_path / "a.ply").read_bytes().split(b"\n")
        if not line.startswith(b"comment worldwarp axes")
    )
    (tmp_path / "b.ply").write_bytes(anonymous)
    assert ply_axes(tmp_path / "b.ply") is None
    np.testing.assert_array_equal(read_ply(tmp_path / "b.ply", axes="blender").means, cloud.means)
    np.testing.assert_allclose(read_ply(tmp_path / "b.ply").means, cloud.means @ TO_BLENDER["colmap"].T, atol=1e-6)


def test_plyfile_reads_the_layout_of_the_original_code(tmp_path: Path) -> None:
    cloud = random_cloud(300)
    write_ply(tmp_path / "a.ply", cloud)
    data = PlyData.read(tmp_path / "a.ply")
    assert not data.text
    assert data.byte_order == "<"
    (vertex,) = data.elements
    expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    expected += [f"f_rest_{i}" for i in range(45)]
    expected += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert [p.name for p in vertex.properties] == expected
    assert {p.val_dtype for p in vertex.properties} == {"f4"}
    np.testing.assert_array_equal(np.stack([vertex[c] for c in "xyz"], 1), cloud.means)
    np.testing.assert_array_equal(vertex["f_rest_16"], cloud.shN[:, 1, 1])  # channel-major: 15 of red come first
    np.testing.assert_array_equal(vertex["opacity"], cloud.opacities)
    np.testing.assert_array_equal(vertex["rot_3"], cloud.quats[:, 3])
    assert not vertex["nx"].any()
    assert any("axes blender" in comment for comment in data.comments)


def test_a_second_library_reads_the_same_gaussians(tmp_path: Path) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply comes with the test extra")
    cloud = random_cloud(300)
    write_ply(tmp_path / "a.ply", cloud)
    data = gsply.plyread(str(tmp_path / "a.ply"))
    np.testing.assert_array_equal(data.means, cloud.means)
    np.testing.assert_array_equal(data.shN, cloud.shN)
    np.testing.assert_array_equal(data.quats, cloud.quats)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_foreign_files_with_other_orders_types_and_extra_properties_are_read(tmp_path: Path, byte_order: str) -> None:
    cloud = random_cloud(40, degree=1)
    columns = {"red": np.full(40, 7, np.uint8), "opacity": cloud.opacities.astype(np.float64)}
    columns |= {f"rot_{i}": 3 * cloud.quats[:, i] for i in (3, 1, 0, 2)}
    columns |= {f"f_rest_{i}": cloud.shN.transpose(0, 2, 1).reshape(40, 9)[:, i] for i in reversed(range(9))}
    columns |= {f"scale_{i}": cloud.scales[:, i] for i in range(3)} | {
        f"f_dc_{i}": cloud.sh0[:, 0, i] for i in range(3)
    }
    columns |= {name: cloud.means[:, i] for i, name in enumerate("xyz")}
    rows = np.empty(40, [(name, values.dtype) for name, values in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    camera = np.zeros(2, [("focal", "f4")])
    elements = [
        PlyElement.describe(camera, "camera"),
        PlyElement.describe(rows, "vertex"),
        PlyElement.describe(camera, "z"),
    ]
    PlyData(elements, byte_order=byte_order).write(tmp_path / "a.ply")
    assert_same(read_ply(tmp_path / "a.ply", axes="blender"), cloud, 1e-6)


def test_provenance_is_dropped_when_another_program_took_gaussians_away(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", with_provenance(random_cloud(100)))
    data = PlyData.read(tmp_path / "a.ply")
    kept = PlyElement.describe(data["vertex"].data[:90], "vertex")
    PlyData([kept], comments=data.comments, byte_order="<").write(tmp_path / "b.ply")
    back = read_ply(tmp_path / "b.ply")
    assert (back.source_frames == -1).all()
    assert not back.sky.any()


def test_many_source_frames_stay_in_short_header_lines(tmp_path: Path) -> None:
    cloud = replace(random_cloud(5000, 0), source_frames=np.arange(5000, dtype=np.int32) % 700)
    write_ply(tmp_path / "a.ply", cloud)
    header = (tmp_path / "a.ply").read_bytes().partition(b"end_header")[0]
    assert max(len(line) for line in header.split(b"\n")) < 200
    np.testing.assert_array_equal(read_ply(tmp_path / "a.ply").source_frames, np.sort(cloud.source_frames))


def test_an_empty_cloud_round_trips(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(0))
    assert len(read_ply(tmp_path / "a.ply")) == 0


def test_a_cut_off_file_is_refused_naming_both_sizes(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(100))
    whole = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "b.ply").write_bytes(whole[:-1])
    message = code_and_message(tmp_path / "b.ply")
    assert str(len(whole)) in message
    assert str(len(whole) - 1) in message
    (tmp_path / "c.ply").write_bytes(whole[:300])
    assert "no end_header" in code_and_message(tmp_path / "c.ply")


def test_a_header_that_claims_a_huge_count_allocates_nothing(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(1))
    data = (tmp_path / "a.ply").read_bytes().replace(b"element vertex 1\n", b"element vertex 99999999999999\n")
    (tmp_path / "b.ply").write_bytes(data)
    assert "cut off" in code_and_message(tmp_path / "b.ply")


def test_a_header_without_end_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\n" + b"comment x\n" * 200_000)
    assert "no end_header in 1048576 bytes" in code_and_message(tmp_path / "a.ply")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a PLY"),
        (b"\x89PNG\r\n", "not a PLY"),
        (b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "ASCII"),
        (b"ply\nend_header\n", "names no format"),
        (b"ply\nformat binary_little_endian 1.0\nend_header\n", "no vertex"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex -4\nend_header\n", "not understood"),
        (b"ply\nformat binary_little_endian 1.0\nproperty float x\nend_header\n", "not understood"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
            b"property float z\nelement face 3\nproperty list uchar int vertex_indices\nend_header\n",
            "mesh",
        ),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
            b"property float z\nproperty uchar red\nend_header\n",
            "point cloud",
        ),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 0\nproperty uint packed_position\nend_header\n",
            "compressed",
        ),
    ],
)
def test_what_is_no_splat_ply_is_refused_by_name(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.ply").write_bytes(content)
    assert expected in code_and_message(tmp_path / "a.ply")


def test_a_wrong_number_of_sh_properties_is_refused(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(3, degree=1))
    data = (tmp_path / "a.ply").read_bytes().replace(b"f_rest_8", b"spare_ok")
    (tmp_path / "b.ply").write_bytes(data)
    assert "8 f_rest" in code_and_message(tmp_path / "b.ply")


def test_a_missing_file_is_a_plain_sentence(tmp_path: Path) -> None:
    assert "cannot be read" in code_and_message(tmp_path / "none.ply")


def test_bad_gaussians_are_counted_and_left_out_on_request(tmp_path: Path) -> None:
    cloud = with_provenance(random_cloud(100))
    cloud = sorted_as_written(cloud)
    cloud.means[3, 1] = np.nan
    cloud.shN[50, 4, 0] = np.inf
    cloud.quats[70] = 0
    write_ply(tmp_path / "a.ply", cloud)
    assert "3 of 100" in code_and_message(tmp_path / "a.ply")
    good = np.setdiff1d(np.arange(100), [3, 50, 70])
    back = read_ply(tmp_path / "a.ply", drop_bad=True)
    np.testing.assert_array_equal(back.means, cloud.means[good])
    np.testing.assert_array_equal(back.source_frames, cloud.source_frames[good])


def test_fully_opaque_and_flat_gaussians_of_converters_are_read(tmp_path: Path) -> None:
    cloud = random_cloud(3)
    cloud.opacities[:2] = np.inf, -np.inf
    cloud.scales[2, 2] = -np.inf
    write_ply(tmp_path / "a.ply", cloud)
    back = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(back.opacities[:2], [20, -20])
    assert back.scales[2, 2] == -30


def test_unknown_axes_name_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WorldWarpError, match="blender, colmap, y-up"):
        write_ply(tmp_path / "a.ply", random_cloud(1), axes="z-down")


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ply(tmp_path / "a.ply", random_cloud(10))
    before = (tmp_path / "a.ply").read_bytes()

    def full_disk(file: io.BufferedWriter, *_: object) -> None:
        file.write(b"ply\n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ply, "_write", full_disk)
    with pytest.raises(WorldWarpError, match="No space left") as caught:
        write_ply(tmp_path / "a.ply", random_cloud(20))
    assert caught.value.code == "cannot_write"
    assert (tmp_path / "a.ply").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_an_open_file_can_be_written(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    write_ply(buffer, random_cloud(4))
    write_ply(tmp_path / "a.ply", random_cloud(4))
    assert buffer.getvalue() == (tmp_path / "a.ply").read_bytes()


def test_a_hundred_thousand_gaussians_take_a_moment(tmp_path: Path) -> None:
    cloud = random_cloud(100_000)
    start = time.process_time()
    write_ply(tmp_path / "a.ply", cloud)
    read_ply(tmp_path / "a.ply")
    assert time.process_time() - start < 20  # about 0.2 s; a loop over Gaussians would take minutes


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_gives_a_cloud_or_a_sentence_and_nothing_else(tmp_path: Path, seed: int) -> None:
    write_ply(tmp_path / "a.ply", with_provenance(random_cloud(20, 1)))
    whole = (tmp_path / "a.ply").read_bytes()
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(0, 900, rng.integers(1, 6)):
            data[at] = rng.integers(0, 256)
        (tmp_path / "b.ply").write_bytes(data[: rng.integers(0, len(data) + 1)] if rng.random() < 0.3 else data)
        try:
            read_ply(tmp_path / "b.ply")
        except WorldWarpError as error:
            refused += error.code == "bad_splats"
    assert refused > 50
