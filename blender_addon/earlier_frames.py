# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames that a take shares with the one it goes on from, so that its folder holds the whole shot.

Never touches Blender: the worker thread does this while the server begins.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine_bridge.errors import disk_errors

KINDS = (("frames", ".png"), ("frames_exr", ".exr"), ("depth", ".exr"), ("mask", ".png"))


def copy_frames_before(earlier: Path, out: Path, number: int) -> int:
    """Copies the frames, depths and masks before frame `number` from one shot's folder to another's; returns how many.

    Of each kind that the other has a folder for.

    Where the file system can, both folders share the files: whoever writes a frame replaces it whole.

    Raises:
        WorldWarpError: `disk_full` or `cannot_write`.
    """
    copied = 0
    with disk_errors(out):
        for kind, suffix in KINDS:
            for file in sorted((earlier / kind).glob(f"frame_*{suffix}")) if (out / kind).is_dir() else ():
                if int(file.stem.removeprefix("frame_")) < number:
                    share_file(file, out / kind / file.name)
                    copied += kind == "frames"
    return copied


def share_file(source: Path, target: Path) -> None:
    """Makes `target` another name of the file `source`, or a copy of it on file systems without."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
