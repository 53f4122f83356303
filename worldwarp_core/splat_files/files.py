"""Splat files by their extension: .ply and .spz."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import WorldWarpError
from .axes import canonical_axes
from .cloud import SplatCloud
from .ply import read_ply, write_ply
from .spz import SPZ_AXES, read_spz, write_spz

EXTENSIONS = (".ply", ".spz")


def read_splats(path: str | os.PathLike[str], axes: str | None = None) -> SplatCloud:
    """The Gaussians of a file in Blender's axes.

    Args:
        axes: those of the file's coordinates; None takes what the file says or its format defines.

    Raises:
        WorldWarpError: `bad_splats`, `missing_package`.
    """
    return read_spz(path, axes=axes) if _extension(path) == ".spz" else read_ply(path, axes=axes)


def write_splats(path: str | os.PathLike[str], cloud: SplatCloud, axes: str | None = None) -> None:
    """Writes a cloud that is in Blender's axes.

    Args:
        axes: those of the file's coordinates; None takes Blender's for PLY. SPZ has one choice by definition.

    Raises:
        WorldWarpError: `bad_splats`, `cannot_write`, `missing_package`.
    """
    if _extension(path) == ".ply":
        write_ply(path, cloud, axes=axes or "blender")
        return
    if axes is not None and canonical_axes(axes) != SPZ_AXES:
        raise WorldWarpError(
            "bad_splats", f"SPZ files are in {SPZ_AXES} axes by definition; got {axes!r}. Write a PLY."
        )
    write_spz(path, cloud)


def _extension(path: str | os.PathLike[str]) -> str:
    extension = Path(path).suffix.lower()
    if extension not in EXTENSIONS:
        raise WorldWarpError("bad_splats", f"{path}: splat files end in {' or '.join(EXTENSIONS)}.")
    return extension
