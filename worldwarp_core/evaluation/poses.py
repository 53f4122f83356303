"""How far generated frames are from the cameras that they were made for: R_dist and T_dist (method section 9).

The poses are estimated again from the pictures alone, by COLMAP's structure from motion with the lens known. Both
paths are then seen from their first common frame, and translations are scaled by each path's largest distance, because
pictures do not tell their scale. What COLMAP cannot place counts as unregistered and is in no mean.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import WorldWarpError, install_command

LEAST_FRAMES = 3
LEAST_TRAVEL = 0.03
"""A path that goes less far than this, over the depth of what it sees, has no translation to be compared."""
FEATURE_SIDE_PX = 768
"""Pictures are enlarged to this for the search for features: small ones have too few otherwise."""
PAIRED_ALWAYS = 60
"""Up to so many frames every pair is matched; of more, neighbours and pairs 2, 4, 8, ... apart."""
NEIGHBOURS = 8


@dataclass(frozen=True)
class PoseErrors:
    """Errors of the frames that were placed, and how many were not.

    Attributes:
        frames: (N,) positions in the path that were asked about.
        placed: (N,) bool.
        rotation_rad: (N,) angle between the two rotations relative to the first placed frame; nan where not placed.
        translation: (N,) distance of the two relative translations, each over its path's largest; nan likewise, and
            everywhere on a path that stays on the spot.
    """

    frames: np.ndarray
    placed: np.ndarray
    rotation_rad: np.ndarray
    translation: np.ndarray

    @property
    def unregistered(self) -> float:
        """Share of the frames, in [0, 1]."""
        return float(1 - self.placed.mean())

    def until(self, frames: int) -> dict[str, float]:
        """`r_dist`, `t_dist` (means, nan where there is nothing) and `unregistered` over the path's first frames."""
        early = self.frames < frames
        there = early & self.placed
        return {
            "r_dist": _mean(self.rotation_rad[there]),
            "t_dist": _mean(self.translation[there]),
            "unregistered": float(1 - self.placed[early].mean()) if early.any() else math.nan,
        }


def pose_errors(
    pictures: np.ndarray, K: np.ndarray, c2w: np.ndarray, frames: Sequence[int], depth: float | None = None
) -> PoseErrors:
    """Places the pictures anew and compares.

    Args:
        pictures: (N, H, W, 3) uint8.
        K: (N, 3, 3) pixels; c2w: (N, 4, 4), of the cameras that the pictures were made for.
        frames: their positions in the path.
        depth: typical depth of what the path sees, in the units of `c2w`, to tell whether it moves at all.

    Raises:
        WorldWarpError: `not_installed` without pycolmap.
    """
    assert len(pictures) == len(K) == len(c2w) == len(frames), (pictures.shape, K.shape, c2w.shape)
    placed, found = place(pictures, K)
    return compare_paths(np.asarray(frames), placed, found, c2w, depth)


def compare_paths(
    frames: np.ndarray, placed: np.ndarray, found: np.ndarray, truth: np.ndarray, depth: float | None = None
) -> PoseErrors:
    """The errors of (N, 4, 4) `found` poses, where (N,) `placed`, against (N, 4, 4) `truth`; see `PoseErrors`."""
    rotation, translation = np.full(len(frames), np.nan), np.full(len(frames), np.nan)
    if placed.sum() >= 2:
        one, other = (_from_first(poses[placed]) for poses in (found, truth))
        turn = one[:, :3, :3].transpose(0, 2, 1) @ other[:, :3, :3]
        # from the sine too: the cosine alone cannot tell angles below a thousandth
        skew = np.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]])
        rotation[placed] = np.arctan2(np.linalg.norm(skew, axis=0), np.trace(turn, axis1=1, axis2=2) - 1)
        far = np.linalg.norm(other[:, :3, 3], axis=1).max()
        if far > LEAST_TRAVEL * (depth or 0.0) and far > 0:
            steps = [p[:, :3, 3] / max(np.linalg.norm(p[:, :3, 3], axis=1).max(), 1e-12) for p in (one, other)]
            translation[placed] = np.linalg.norm(steps[0] - steps[1], axis=1)
    return PoseErrors(frames, placed, rotation, translation)


def place(pictures: np.ndarray, K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, which pictures COLMAP could place, and (N, 4, 4) c2w in a world of its own, identity elsewhere.

    Raises:
        WorldWarpError: `not_installed`.
    """
    pycolmap = load_pycolmap()
    loudness, pycolmap.logging.minloglevel = pycolmap.logging.minloglevel, pycolmap.logging.FATAL.value
    pycolmap.set_random_seed(0)
    try:
        with tempfile.TemporaryDirectory(prefix="worldwarp-poses-") as folder:
            model = _mapped(pycolmap, Path(folder), pictures, K)
    finally:
        pycolmap.logging.minloglevel = loudness
    placed, c2w = np.zeros(len(pictures), bool), np.tile(np.eye(4), (len(pictures), 1, 1))
    for image in model.images.values() if model is not None else ():
        if image.has_pose:
            row, w2c = int(Path(image.name).stem), np.eye(4)
            w2c[:3] = image.cam_from_world().matrix()
            placed[row], c2w[row] = True, np.linalg.inv(w2c)
    return placed, c2w


def _mapped(pycolmap: Any, work: Path, pictures: np.ndarray, K: np.ndarray) -> Any:
    """The largest model that COLMAP makes of the pictures, or None."""
    height, width = pictures.shape[1:3]
    grow = max(FEATURE_SIDE_PX / max(width, height), 1.0)
    size = round(width * grow), round(height * grow)
    database, images = work / "database.db", work / "images"
    threads = torch.get_num_threads()  # this process's share: several may be at it
    for lens, rows in _by_lens(K).items():
        names = [f"{row:06d}.png" for row in rows]
        for row, name in zip(rows, names, strict=True):
            images.mkdir(exist_ok=True)
            picture = Image.fromarray(pictures[row]).resize(size, Image.Resampling.BICUBIC)
            picture.save(images / name, compress_level=1)
        reader = pycolmap.ImageReaderOptions(camera_model="PINHOLE")
        scaled = np.array(lens) * np.array([size[0] / width, size[1] / height] * 2)
        reader.camera_params = ",".join(str(value) for value in scaled)
        pycolmap.extract_features(
            database,
            images,
            image_names=names,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            extraction_options=pycolmap.FeatureExtractionOptions(num_threads=threads),
        )
    matching = pycolmap.FeatureMatchingOptions(num_threads=threads)
    if len(pictures) <= PAIRED_ALWAYS:
        pycolmap.match_exhaustive(database, matching)
    else:
        pairing = pycolmap.SequentialPairingOptions(overlap=NEIGHBOURS, quadratic_overlap=True)
        pycolmap.match_sequential(database, matching, pairing_options=pairing)
    options = pycolmap.IncrementalPipelineOptions(
        multiple_models=False,
        min_model_size=LEAST_FRAMES,
        ba_refine_focal_length=False,
        ba_refine_principal_point=False,
        ba_refine_extra_params=False,
        random_seed=0,
        num_threads=threads,
    )
    options.mapper.abs_pose_refine_focal_length = False
    # Neighbouring frames of a film: small angles, and in a dolly shot one camera straight behind the other.
    options.mapper.init_min_tri_angle = 4.0
    options.mapper.init_max_forward_motion = 1.0
    options.init_num_trials = 20
    models = pycolmap.incremental_mapping(database, images, work, options=options)
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def _by_lens(K: np.ndarray) -> dict[tuple[float, ...], list[int]]:
    """(fx, fy, cx, cy) -> the rows with it: one camera for COLMAP, whose lens it need not find."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for row, lens in enumerate(K[:, [0, 1, 0, 1], [0, 1, 2, 2]].round(3).tolist()):
        groups.setdefault(tuple(lens), []).append(row)
    return groups


def _from_first(c2w: np.ndarray) -> np.ndarray:
    return np.linalg.inv(c2w[0]) @ c2w


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def load_pycolmap() -> Any:
    """The package that places pictures.

    Raises:
        WorldWarpError: `not_installed`.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise WorldWarpError(
            "not_installed",
            "R_dist and T_dist need pycolmap, which is not installed. Leave them out with --poses-every 0, or run: "
            f"{install_command('evaluation')}",
        ) from error
    return pycolmap
