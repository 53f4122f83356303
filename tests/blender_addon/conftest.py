"""A real Blender (`bpy`) in this process, emptied before every test."""

from __future__ import annotations

import os
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

SERVE = """
import sys
import threading
from pathlib import Path
from engine_bridge.server import Server, ServerConfig
def stop_with_the_tests(server):
    sys.stdin.read()
    server.stop()
if __name__ == "__main__":
    factory = "tests.engine_bridge.fake_engine:load"
    viewer = "tests.engine_bridge.fake_viewer:open_viewer"
    folder = Path(sys.argv[1])
    server = Server(
        ServerConfig(address="tcp://127.0.0.1:*", data_dir=folder, factory=factory, view_factory=viewer)
    )
    print(server.address, flush=True)
    threading.Thread(target=stop_with_the_tests, args=(server,), daemon=True).start()
    server.serve(handle_signals=True)
"""
"""A real server with its worker process; only the engine in it is a fake that does what the prompt says."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    script = folder / "serve.py"
    script.write_text(SERVE)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "jobs")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
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
