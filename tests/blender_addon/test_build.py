"""The zip is what Blender takes: it builds, passes Blender's validator, installs, and works from there alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from blender_addon import build

INSTALLED = """
import os, sys
bare, archive, cameras, splats = sys.argv[1:]
sys.path.append(bare)
import bpy
bpy.ops.extensions.package_install_files(filepath=archive, repo="user_default", enable_on_install=True)
name = "bl_ext.user_default.worldwarp"
assert name in bpy.context.preferences.addons, list(bpy.context.preferences.addons.keys())
assert bpy.context.preferences.addons[name].preferences.address.startswith("tcp://")
assert bpy.ops.worldwarp.export_camera(filepath=cameras) == {"FINISHED"}
bpy.ops.mesh.primitive_cube_add()
try:
    bpy.ops.worldwarp.export_splats(filepath=splats)
except RuntimeError as error:
    assert "no splat object" in str(error), error
import worldwarp_core.cameras.path, engine_bridge.client, zmq, msgpack, cattrs
home = os.path.realpath(os.environ["BLENDER_USER_RESOURCES"])
for module in (worldwarp_core.cameras.path, engine_bridge.client, zmq, msgpack, cattrs):
    assert os.path.realpath(module.__file__).startswith(home), module.__file__
assert not {"torch", "OpenEXR"} & set(sys.modules)
bpy.ops.preferences.addon_disable(module=name)
bpy.ops.preferences.addon_enable(module=name)
print("INSTALLED AND WORKING", flush=True)
# Blender as a module cannot always be left cleanly.
os._exit(0)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build.build(tmp_path_factory.mktemp("dist"), build.this_platform())
    except build.BuildError as error:
        if "pip has no wheels" in str(error):
            pytest.skip(f"the wheels cannot be downloaded here: {str(error)[:200]}")
        raise


def test_the_zip_passes_blenders_own_validator(archive: Path) -> None:
    assert build.validate(archive) == "validated by Blender"


def test_the_zip_holds_the_client_side_and_no_engine(archive: Path) -> None:
    with zipfile.ZipFile(archive) as outer:
        names = outer.namelist()
        assert {"__init__.py", "LICENSE", "blender_manifest.toml"} <= set(names)
        assert not {"build.py", "demo_scene.py"} & set(names)
        (client,) = [name for name in names if "worldwarp_client" in name]
        with zipfile.ZipFile(outer.open(client)) as inner:
            modules = inner.namelist()
    carried = {"engine_bridge/client.py", "worldwarp_core/cameras/path.py", "worldwarp_core/splat_files/ply.py"}
    assert carried <= set(modules)
    assert not [name for name in modules if "server" in name or "worker" in name or "/splats/" in name]


def test_the_zip_has_a_wheel_of_every_library_for_both_pythons(archive: Path) -> None:
    with zipfile.ZipFile(archive) as outer:
        wheels = [name.removeprefix("wheels/") for name in outer.namelist() if name.endswith(".whl")]
    for tag in ("cp311", "cp313"):
        assert any(name.startswith("msgpack-") and f"-{tag}-{tag}-" in name for name in wheels), (tag, wheels)
    assert len([name for name in wheels if name.startswith("pyzmq-")]) == 2
    # Blender's own OpenEXR is in the same process; a second one crashes it on Linux.
    assert not [name for name in wheels if "openexr" in name.lower()]


def test_the_zip_installs_and_exports_a_camera_without_the_checkout(archive: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["BLENDER_USER_RESOURCES"] = str(tmp_path / "user")
    arguments = [
        str(bare_packages(tmp_path / "bare")),
        str(archive),
        str(tmp_path / "cameras.json"),
        str(tmp_path / "splats.ply"),
    ]
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", INSTALLED, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "INSTALLED AND WORKING" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "cameras.json").stat().st_size > 1000


def bare_packages(folder: Path) -> Path:
    """Returns a folder with Blender and NumPy alone: what a Blender has before the extension is installed."""
    folder.mkdir()
    site_packages = Path(np.__file__).parents[1]
    for name in ("bpy", "numpy", "numpy.libs", "requests", "urllib3", "idna", "certifi", "charset_normalizer"):
        if (site_packages / name).exists():
            (folder / name).symlink_to(site_packages / name)
    return folder


def test_an_import_that_is_not_bundled_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "ADDON", tmp_path / "blender_addon")
    (tmp_path / "blender_addon").mkdir()
    source = tmp_path / "blender_addon" / "panel.py"
    source.write_text("def draw():\n    import torch\n")
    with pytest.raises(build.BuildError, match="imports torch"):
        build.client_modules([source])
    source.write_text("from worldwarp_core.nowhere import thing\n")
    with pytest.raises(build.BuildError, match=r"worldwarp_core"):
        build.client_modules([source])
