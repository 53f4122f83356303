"""A real Blender (`bpy`) in this process, emptied before every test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

bpy = pytest.importorskip("bpy", reason="needs Blender as a Python module (the `blender` extra)")


@pytest.fixture(autouse=True)
def empty_scene() -> None:
    """Gives each test Blender's factory settings without objects."""
    bpy.ops.wm.read_factory_settings(use_empty=True)


@pytest.fixture
def addon() -> Iterator[None]:
    """Registers the add-on for one test; a timer left registered would hang Blender at exit."""
    import blender_addon

    blender_addon.register()
    yield
    blender_addon.unregister()


@pytest.fixture
def camera() -> bpy.types.Object:
    """Returns a camera at the origin that films the scene."""
    made = bpy.data.objects.new("Hero Camera", bpy.data.cameras.new("Hero Camera"))
    bpy.context.scene.collection.objects.link(made)
    bpy.context.scene.camera = made
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 1, 3
    return made


ROOT = Path(__file__).resolve().parents[2]


def start_server(data_dir: Path, address: str = "tcp://127.0.0.1:*") -> subprocess.Popen[str]:
    """Starts a server with the fake engine; the first line that it prints is its address."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.serve_fake", str(data_dir), address],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process = start_server(tmp_path_factory.mktemp("server") / "jobs")
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.wait(20)


@pytest.fixture
def scene(addon: None, camera: bpy.types.Object) -> bpy.types.Scene:
    """Returns a scene of eight small frames that look down on a plane."""
    scene = bpy.context.scene
    scene.render.resolution_x, scene.render.resolution_y = 48, 32
    scene.frame_start, scene.frame_end = 11, 18
    camera.location.z = 6.0
    bpy.ops.mesh.primitive_plane_add(size=100)
    scene.worldwarp.samples = 1
    return scene
