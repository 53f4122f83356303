"""What Blender itself sees of the demo scene: colour, exact depth and cameras, rendered in a process of its own.

    python tests/benchmarks/ground_truth.py --out DIR --frames 1 21 --depth-frames 2 3 --width 256 --height 144

leaves `rgb_%04d.png` (sRGB, denoised Cycles), `depth_%04d.exr` (Blender's passes; its planar z in metres, background
1e10, is read with `read_depth`; `--depth-frames` have nothing else) and `cameras.json` (every frame of the flight).
`ground_truth()` does the same into a folder of the temporary directory that is kept for as long as neither the scene
nor this file changes.

Depth is rendered on its own, one sample with a box filter of a hundredth of a pixel: Cycles writes z at the first
sample's place inside the pixel, and with the usual 1.5 pixel filter that place is up to a pixel off its centre.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from worldwarp_core.cameras.files import write_cameras
from worldwarp_core.pictures.exr import read_depth_exr

ROOT = Path(__file__).resolve().parents[2]
SCENE = ROOT / "blender_addon" / "demo_scene.py"
WHOLE = "whole"
"""Name of the file that is written last, so that a folder cut short is never taken for a whole one."""


def ground_truth(
    frames: Sequence[int],
    width: int = 256,
    height: int = 144,
    path_frames: int = 93,
    depth_frames: Sequence[int] = (),
) -> Path:
    """The folder with colour and depth of `frames` (numbered from 1) and all cameras of the demo's flight.

    Of `depth_frames` there is the depth alone, which takes a fraction of the time.

    Raises:
        RuntimeError: Blender could not render; the message holds the end of what it printed.
    """
    recipe = hashlib.sha256(SCENE.read_bytes() + Path(__file__).read_bytes())
    recipe.update(repr((sorted(set(frames)), width, height, path_frames, sorted(set(depth_frames)))).encode())
    folder = Path(tempfile.gettempdir()) / "worldwarp_ground_truth" / recipe.hexdigest()[:16]
    if not (folder / WHOLE).exists():
        command = [sys.executable, __file__, "--out", str(folder), "--width", str(width), "--height", str(height)]
        command += ["--path-frames", str(path_frames), "--frames", *map(str, sorted(set(frames)))]
        command += ["--depth-frames", *map(str, sorted(set(depth_frames)))]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode != 0 or not (folder / WHOLE).exists():
            raise RuntimeError(f"Blender could not render the ground truth:\n{done.stdout[-3000:]}")
    return folder


def read_rgb(folder: Path, frame: int) -> np.ndarray:
    """(H, W, 3) uint8 sRGB."""
    return np.asarray(Image.open(folder / f"rgb_{frame:04d}.png").convert("RGB"))


def read_depth(folder: Path, frame: int) -> np.ndarray:
    """(H, W) float32 planar z in metres, 1e10 where there is only sky."""
    return read_depth_exr(folder / f"depth_{frame:04d}.exr")


def render(
    folder: Path, frames: Sequence[int], depth_frames: Sequence[int], width: int, height: int, path_frames: int
) -> None:
    """Renders into `folder`; runs where `bpy` is."""
    import bpy

    from blender_addon.camera_export import export_camera_path
    from blender_addon.demo_scene import build_demo_scene

    folder.mkdir(parents=True, exist_ok=True)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    build_demo_scene(scene, width, height, path_frames)
    write_cameras(folder / "cameras.json", export_camera_path(bpy.context))
    for frame in frames:
        scene.frame_set(frame)
        render_still(scene, folder / f"rgb_{frame:04d}.png", "PNG")
    scene.view_layers[0].use_pass_z = True
    scene.cycles.samples, scene.cycles.use_denoising, scene.cycles.max_bounces = 1, False, 0
    scene.cycles.pixel_filter_type, scene.cycles.filter_width = "BOX", 0.01
    for frame in sorted({*frames, *depth_frames}):
        scene.frame_set(frame)
        render_still(scene, folder / f"depth_{frame:04d}.exr", "OPEN_EXR_MULTILAYER")
    (folder / WHOLE).touch()


def render_still(scene, path: Path, file_format: str) -> None:  # type: ignore[no-untyped-def]
    import bpy

    settings = scene.render.image_settings
    if hasattr(settings, "media_type"):  # Blender 5 asks for the kind of medium first
        settings.media_type = "MULTI_LAYER_IMAGE" if file_format == "OPEN_EXR_MULTILAYER" else "IMAGE"
    settings.file_format = file_format
    settings.color_depth = "8" if file_format == "PNG" else "32"
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Renders colour, depth and cameras of the demo scene.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, nargs="+", required=True)
    parser.add_argument("--depth-frames", type=int, nargs="*", default=[])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--path-frames", type=int, default=93)
    o = parser.parse_args()
    render(o.out, o.frames, o.depth_frames, o.width, o.height, o.path_frames)


if __name__ == "__main__":
    main()
