"""A real Blender (`bpy`) in this process, emptied before every test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_bridge.client import Client

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
    process.wait(120)


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits long for a server that is there, however busy the machine is."""
    if "server" in request.fixturenames:
        from blender_addon import server_facts

        monkeypatch.setitem(Client.__init__.__kwdefaults__, "connect_timeout_s", 60.0)
        monkeypatch.setattr(server_facts.ask, "__defaults__", (None, 60.0))


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


class Held:
    """Keeps the fake engine waiting in the middle of a shot or a picture, so that no test has to be faster than it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def after(self, done: int) -> str:
        """Returns the prompt of a shot of which `done` frames are made, or of a picture with as many steps."""
        return f"hold={done} go={self._file}"

    def let_go(self) -> None:
        """Has the engine go on to the end."""
        self._file.touch()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    """Lets the engine go with the test's end: the server is everyone's."""
    made = Held(tmp_path / "go_on")
    yield made
    made.let_go()
