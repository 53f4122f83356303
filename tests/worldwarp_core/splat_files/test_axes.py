"""Changes of axes and similarities: the same picture from the same place, whatever the frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldwarp_core.cameras.path import CameraPath
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.splat_files.axes import (
    AXES_NAMES,
    TO_BLENDER,
    canonical_axes,
    sh_basis,
    sh_rotation,
    to_axes,
    transform,
)
from worldwarp_core.splat_files.cloud import SplatCloud
from worldwarp_core.splat_files.files import read_splats, write_splats


def random_rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def unit_directions(n: int = 200, seed: int = 5) -> np.ndarray:
    d = np.random.default_rng(seed).normal(size=(n, 3))
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def visible_cloud(n: int = 120, seed: int = 0) -> SplatCloud:
    """Gaussians of SH degree 3 in front of `camera`."""
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(n, 4))
    means = np.stack([rng.uniform(-1.6, 1.6, n), rng.uniform(3, 6, n), rng.uniform(-1, 1, n)], axis=1)
    return SplatCloud(
        means=means.astype(np.float32),
        quats=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        scales=rng.uniform(-2.5, -0.7, (n, 3)).astype(np.float32),
        opacities=rng.uniform(-1, 3, n).astype(np.float32),
        sh0=rng.uniform(-1, 1.5, (n, 1, 3)).astype(np.float32),
        shN=(0.25 * rng.normal(size=(n, 15, 3))).clip(-0.6, 0.6).astype(np.float32),
    )


def camera(matrix: np.ndarray | None = None) -> CameraPath:
    """Two cameras that look along Blender's +y, moved by a (4, 4) rotation and translation."""
    c2w = np.tile(np.eye(4), (2, 1, 1))
    c2w[:, :3, :3] = TO_BLENDER["colmap"]
    c2w[1, :3, 3] = 0.3, -0.4, 0.2
    K = np.array([[60.0, 0, 48], [0, 60, 32], [0, 0, 1]])
    moved = c2w if matrix is None else matrix @ c2w
    return CameraPath(np.array([1, 2]), 24.0, 96, 64, np.stack([K, K]), moved)


def render(cloud: SplatCloud, cameras: CameraPath) -> np.ndarray:
    pytest.importorskip("torch", reason="rendering needs the engine extra")
    from worldwarp_core.api import render_splats

    rgb, alpha, _ = render_splats(cloud, cameras)
    assert alpha.mean() > 0.3, "the scene should fill the picture"
    return rgb


def homogeneous(rotation: np.ndarray, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift
    return matrix


@pytest.mark.parametrize("name", list(TO_BLENDER))
def test_frames_are_right_handed_rotations(name: str) -> None:
    rotation = TO_BLENDER[name]
    np.testing.assert_array_equal(rotation @ rotation.T, np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_up_is_up_in_every_frame() -> None:
    up = np.array([0, 0, 1])
    np.testing.assert_array_equal(TO_BLENDER["colmap"].T @ up, [0, -1, 0])
    np.testing.assert_array_equal(TO_BLENDER["y-up"].T @ up, [0, 1, 0])
    forward = np.array([0, 1, 0])
    np.testing.assert_array_equal(TO_BLENDER["colmap"].T @ forward, [0, 0, 1])
    np.testing.assert_array_equal(TO_BLENDER["y-up"].T @ forward, [0, 0, -1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("band", [1, 2, 3])
def test_rotated_harmonics_at_rotated_directions_are_the_harmonics(band: int, seed: int) -> None:
    rotation = random_rotation(seed)
    coefficients = np.random.default_rng(seed + 10).normal(size=2 * band + 1)
    directions = unit_directions()
    columns = slice(band**2, (band + 1) ** 2)
    before = sh_basis(directions)[:, columns] @ coefficients
    after = sh_basis(directions @ rotation.T)[:, columns] @ (sh_rotation(rotation, band) @ coefficients)
    np.testing.assert_allclose(after, before, atol=1e-13)


@pytest.mark.parametrize("band", [1, 2, 3])
def test_sh_rotations_are_orthogonal_and_compose(band: int) -> None:
    a, b = random_rotation(1), random_rotation(2)
    d = sh_rotation(a, band)
    np.testing.assert_allclose(d @ d.T, np.eye(2 * band + 1), atol=1e-12)
    np.testing.assert_allclose(sh_rotation(a @ b, band), d @ sh_rotation(b, band), atol=1e-12)


def test_the_basis_is_the_rasterisers() -> None:
    torch = pytest.importorskip("torch", reason="the rasteriser comes with the engine extra")
    reference = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat comes with the engine extra")
    directions = unit_directions(50)
    coefficients = torch.eye(16, dtype=torch.float64)[None, :, :, None].expand(50, 16, 16, 3)
    for k in range(16):
        value = reference._spherical_harmonics(3, torch.from_numpy(directions), coefficients[:, k])[:, 0]
        np.testing.assert_allclose(sh_basis(directions)[:, k], value.numpy(), atol=1e-12)


def test_the_basis_is_orthonormal_on_the_sphere() -> None:
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angle = np.arange(16) * 2 * np.pi / 16
    z, phi = (g.ravel() for g in np.meshgrid(nodes, angle, indexing="ij"))
    r = np.sqrt(1 - z * z)
    basis = sh_basis(np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=1))
    gram = basis.T @ (basis * np.repeat(weights * 2 * np.pi / 16, 16)[:, None])
    np.testing.assert_allclose(gram, np.eye(16), atol=1e-12)


@pytest.mark.parametrize("target", AXES_NAMES)
def test_a_picture_stays_the_same_in_other_axes_and_back(target: str) -> None:
    cloud = visible_cloud()
    expected = render(cloud, camera())
    there = to_axes(cloud, "blender", target)
    moved = homogeneous(TO_BLENDER[canonical_axes(target)].T)
    np.testing.assert_allclose(render(there, camera(moved)), expected, atol=2e-4)
    np.testing.assert_allclose(render(to_axes(there, target, "blender"), camera()), expected, atol=2e-4)


def test_without_turning_the_harmonics_the_picture_would_change() -> None:
    cloud = visible_cloud()
    there = replace(to_axes(cloud, "blender", "colmap"), shN=cloud.shN)
    moved = camera(homogeneous(TO_BLENDER["colmap"].T))
    assert np.abs(render(there, moved) - render(cloud, camera())).max() > 0.05


@pytest.mark.parametrize("axes", ["blender", "colmap", "y-up"])
def test_a_render_before_equals_a_render_after_a_ply(tmp_path: Path, axes: str) -> None:
    cloud = visible_cloud()
    write_splats(tmp_path / "a.ply", cloud, axes)
    np.testing.assert_allclose(render(read_splats(tmp_path / "a.ply"), camera()), render(cloud, camera()), atol=2e-4)


def test_a_render_after_an_spz_differs_by_its_rounding_alone(tmp_path: Path) -> None:
    cloud = visible_cloud()
    write_splats(tmp_path / "a.spz", cloud)
    difference = render(read_splats(tmp_path / "a.spz"), camera()) - render(cloud, camera())
    assert np.sqrt((difference**2).mean()) < 0.01
    assert np.abs(difference).max() < 0.1


@pytest.mark.parametrize("scale", [1.0, 0.01, 250.0])
def test_a_moved_turned_and_scaled_world_looks_the_same_from_a_camera_moved_with_it(scale: float) -> None:
    cloud = visible_cloud()
    rotation, shift = random_rotation(3), np.array([4.0, -2, 7]) * scale
    got = transform(cloud, homogeneous(scale * rotation, tuple(shift)))
    cameras = camera()
    c2w = cameras.c2w.copy()
    c2w[:, :3, 3] = scale * c2w[:, :3, 3] @ rotation.T + shift
    c2w[:, :3, :3] = rotation @ c2w[:, :3, :3]
    moved = CameraPath(cameras.frames, cameras.fps, cameras.width, cameras.height, cameras.K, c2w)
    np.testing.assert_allclose(render(got, moved), render(cloud, cameras), atol=2e-3)


def test_provenance_moves_along() -> None:
    cloud = replace(visible_cloud(10), source_frames=np.arange(10, dtype=np.int32), sky=np.arange(10) % 2 == 0)
    got = to_axes(cloud, "blender", "rub")
    np.testing.assert_array_equal(got.source_frames, cloud.source_frames)
    np.testing.assert_array_equal(got.sky, cloud.sky)


@pytest.mark.parametrize(
    "linear",
    [np.diag([1, 1, 2.0]), np.diag([-1, 1, 1.0]), np.array([[1, 0.3, 0], [0, 1, 0], [0, 0, 1]]), np.zeros((3, 3))],
)
def test_shear_mirroring_and_uneven_scale_are_refused(linear: np.ndarray) -> None:
    with pytest.raises(WorldWarpError, match="one positive scale") as caught:
        transform(visible_cloud(2), homogeneous(linear))
    assert caught.value.code == "bad_splats"


def test_every_half_turn_has_its_quaternion() -> None:
    # Where a quaternion's w is 0, formulas that divide by it break.
    cloud = replace(visible_cloud(1), quats=np.array([[1, 0, 0, 0]], np.float32))
    for axis in range(3):
        turn = -np.eye(3)
        turn[axis, axis] = 1
        got = np.abs(transform(cloud, homogeneous(turn)).quats[0])
        np.testing.assert_allclose(got, np.eye(4)[axis + 1], atol=1e-6)
