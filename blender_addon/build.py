# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the extension's zip: `python -m blender_addon.build --out dist/`.

One zip for each platform serves every supported Blender: it holds the add-on, the pure-Python wheel `worldwarp_client`
(the modules of engine_bridge and worldwarp_core that the add-on imports, and what those import) and the wheels of the
libraries they need, for both Pythons that Blender has had since 4.2. Blender's own validator has the last word where
`bpy` is installed.

Blender takes a zip for a Python only if a wheel names that very version, or none names a minor version at all: an
abi3 wheel does not count once another names cp311. So at least one library must come as cp311 AND as cp313.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ADDON = Path(__file__).resolve().parent
ROOT = ADDON.parent
OURS = ("engine_bridge", "worldwarp_core")
LEFT_OUT = ("build.py", "demo_scene.py", "demo_shot.py")
"""Modules of this package that are no part of the extension."""

IN_BLENDER = {
    "_cycles",
    "addon_utils",
    "blf",
    "bpy",
    "bpy_extras",
    "gpu",
    "gpu_extras",
    "mathutils",
    "numpy",
    "zstandard",
}
BUNDLED = {
    # import name: distributions, in the versions of the project's constraints
    "attr": ("attrs",),
    "attrs": ("attrs",),
    "cattrs": ("cattrs", "attrs", "typing_extensions"),
    "msgpack": ("msgpack",),
    "typing_extensions": ("typing_extensions",),
    "zmq": ("pyzmq",),
}
"""What the client's modules may import, and the wheels that this takes."""

LEFT_OUT_LIBRARIES = {"OpenEXR"}
"""Imported where it is used, and not bundled: reading depth files, which the add-on does not do; it would be bound to
Blender's own OpenEXR and crash it on Linux."""

PYTHONS = ("3.11", "3.13")
"""Blender 4.2 to 5.0, and from 5.1 on."""

PLATFORMS = {
    # Blender's name: pip's tags, newest first; Blender 4.2 asks for glibc 2.28 and macOS 11.2
    "linux-x64": ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "windows-x64": ("win_amd64",),
    "macos-arm64": ("macosx_11_0_arm64",),
    "macos-x64": ("macosx_10_15_x86_64",),
}

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in our zips: the same sources give the same bytes."""


class BuildError(Exception):
    """The extension cannot be built; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """Builds, validates, prints what was made; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m blender_addon.build", description="Build the Blender extension.")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder for the zips (default: dist)")
    parser.add_argument(
        "--platform", action="append", choices=[*PLATFORMS, "all"], help="may be repeated (default: this machine's)"
    )
    chosen = parser.parse_args(arguments)
    platforms = chosen.platform or [this_platform()]
    try:
        for platform in PLATFORMS if "all" in platforms else platforms:
            made = build(chosen.out, platform)
            print(f"{made} ({made.stat().st_size / 2**20:.1f} MiB)")
            print(validate(made))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def build(out: Path, platform: str) -> Path:
    """Returns the zip for one platform, made in the folder `out`.

    Raises:
        BuildError: when a module imports what is not bundled, or a wheel cannot be had.
    """
    version = re.findall(r'^version = "(.+)"$', (ADDON / "blender_manifest.toml").read_text(), re.MULTILINE)[0]
    sources = [file for file in sorted(ADDON.glob("*.py")) if file.name not in LEFT_OUT]
    modules, libraries = client_modules(sources)
    out.mkdir(parents=True, exist_ok=True)
    made = out / f"worldwarp-{version}-{platform.replace('-', '_')}.zip"
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        wheels = stage / "wheels"
        wheels.mkdir()
        write_client_wheel(wheels, version, modules)
        download_wheels(wheels, libraries, platform)
        for file in (*sources, ADDON / "LICENSE"):
            shutil.copy(file, stage)
        manifest = manifest_with_wheels(platform, [file.name for file in sorted(wheels.iterdir())])
        (stage / "blender_manifest.toml").write_text(manifest)
        write_zip(made, [(file.relative_to(stage).as_posix(), file.read_bytes()) for file in files_below(stage)])
    return made


def this_platform() -> str:
    """Returns Blender's name of the platform that this Python runs on."""
    tag = sysconfig.get_platform().replace("-", "_")
    systems = {"linux": "linux", "win": "windows", "macosx": "macos"}
    system = next((ours for theirs, ours in systems.items() if tag.startswith(theirs)), tag)
    return f"{system}-{'arm64' if tag.endswith(('arm64', 'aarch64')) else 'x64'}"


def client_modules(sources: Iterable[Path]) -> tuple[dict[str, Path], set[str]]:
    """Returns the modules of ours that `sources` need, by dotted name, and the distributions that those need.

    Raises:
        BuildError: when one of them imports a library that is not bundled.
    """
    modules: dict[str, Path] = {}
    libraries: set[str] = set()
    waiting = list(sources)
    while waiting:
        source = waiting.pop()
        for name in imported_names(source):
            top = name.partition(".")[0]
            if top in OURS:
                for found, file in packages_and_module(name):
                    if found not in modules:
                        modules[found] = file
                        waiting.append(file)
            elif top in BUNDLED:
                libraries.update(BUNDLED[top])
            elif top not in sys.stdlib_module_names | IN_BLENDER | LEFT_OUT_LIBRARIES:
                raise BuildError(
                    f"{source.relative_to(ROOT)} imports {top}, which the extension does not bundle. Keep it out "
                    "of the "
                    "modules that the add-on imports, or add it to BUNDLED."
                )
    return dict(sorted(modules.items())), libraries


def imported_names(source: Path) -> Iterator[str]:
    """Yields the absolute dotted name of everything that a module imports, wherever in it the import stands.

    Imports for type checkers alone are left out, and so are those within the add-on's own package.
    """
    package = list(source.relative_to(ROOT).with_suffix("").parts[:-1])
    tree = ast.parse(source.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if not name.startswith(ADDON.name):
                yield name
                # `from package import module` names a module too.
                yield from (f"{name}.{alias.name}" for alias in node.names if module_file(f"{name}.{alias.name}"))


def packages_and_module(name: str) -> Iterator[tuple[str, Path]]:
    """Yields (dotted name, file) of a module of ours and of every package above it.

    Raises:
        BuildError: when there is no such module.
    """
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        dotted = ".".join(parts[:depth])
        file = module_file(dotted)
        if file is None:
            raise BuildError(f"The add-on needs {dotted}, which is not in {ROOT}.")
        yield dotted, file


def module_file(name: str) -> Path | None:
    """Returns the file of one of our modules or packages, or None where there is none."""
    place = ROOT.joinpath(*name.split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


def write_client_wheel(folder: Path, version: str, modules: dict[str, Path]) -> Path:
    """Returns the wheel `worldwarp_client` with `modules` at their own dotted names, made in `folder`.

    Its version ends in a digest of its content: Blender unpacks no wheel whose version it has unpacked before.
    """
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in modules.values())).hexdigest()
    version = f"{version}+{digest[:8]}"
    info = f"worldwarp_client-{version}.dist-info"
    summary = "The client side of WorldWarp, as its Blender extension carries it"
    metadata = (
        f"Metadata-Version: 2.1\nName: worldwarp-client\nVersion: {version}\nSummary: {summary}\nLicense: Apache-2.0\n"
    )
    files = [(file.relative_to(ROOT).as_posix(), file.read_bytes()) for file in modules.values()]
    files.append((f"{info}/METADATA", metadata.encode()))
    files.append(
        (f"{info}/WHEEL", b"Wheel-Version: 1.0\nGenerator: worldwarp\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    )
    if (ROOT / "LICENSE").is_file():
        files.append((f"{info}/LICENSE", (ROOT / "LICENSE").read_bytes()))
    rows = [f"{name},sha256={wheel_hash(content)},{len(content)}" for name, content in files]
    files.append((f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()))
    made = folder / f"worldwarp_client-{version}-py3-none-any.whl"
    write_zip(made, files)
    return made


def wheel_hash(content: bytes) -> str:
    """Returns the SHA-256 as a wheel's RECORD writes it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def download_wheels(folder: Path, libraries: Iterable[str], platform: str) -> None:
    """Downloads the wheels of `libraries` for `platform` and every Python of Blender's into `folder`.

    Raises:
        BuildError: when the constraints leave a version open, or with pip's last words.
    """
    wanted = pinned(libraries, (ROOT / "constraints.txt").read_text("utf-8"))
    for python in PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
        command += [f"--platform={tag}" for tag in PLATFORMS[platform]]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"pip has no wheels for {platform}, Python {python}:\n{done.stderr.strip()[-2000:]}")


def pinned(libraries: Iterable[str], constraints: str) -> list[str]:
    """Returns `name==version` of each library, at the versions of `constraints` (the text of a pip constraints file).

    Raises:
        BuildError: when it names no version of one: what users get must be what was tested.
    """
    versions = {
        plain_name(match[1]): match[2] for match in re.finditer(r"^([\w.-]+)==([^\s;#]+)", constraints, re.MULTILINE)
    }
    wanted = sorted(libraries)
    if open_ones := [name for name in wanted if plain_name(name) not in versions]:
        raise BuildError(
            f"constraints.txt names no version of {', '.join(open_ones)}, which the extension bundles. Add a line "
            "name==version for each."
        )
    return [f"{name}=={versions[plain_name(name)]}" for name in wanted]


def plain_name(name: str) -> str:
    """Returns a distribution's name as package indexes compare it: `Typing_Extensions` is `typing-extensions`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def manifest_with_wheels(platform: str, wheels: list[str]) -> str:
    """Returns the extension's manifest with its platform and its wheels named."""
    head, tables = (ADDON / "blender_manifest.toml").read_text().split("\n[", 1)
    named = "".join(f'    "./wheels/{name}",\n' for name in wheels)
    return f'{head}\nplatforms = ["{platform}"]\nwheels = [\n{named}]\n\n[{tables}'


def validate(archive: Path) -> str:
    """Returns what Blender's own validator says of `archive`, or that there is none.

    Raises:
        BuildError: when it finds fault.
    """
    # In a process of its own: Blender as a module prints at will and cannot be left cleanly.
    where = 'import bpy, os; print(bpy.utils.system_resource("SCRIPTS"), flush=True); os._exit(0)'
    found = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True)
    if found.returncode != 0:
        return "not validated: Blender's validator comes with bpy, which is not installed"
    tool = Path(found.stdout.strip().splitlines()[-1]) / "addons_core/bl_pkg/cli/blender_ext.py"
    checked = subprocess.run([sys.executable, str(tool), "validate", str(archive)], capture_output=True, text=True)
    if checked.returncode != 0:
        raise BuildError(f"Blender refuses {archive}:\n{checked.stdout}{checked.stderr}")
    return "validated by Blender"


def files_below(folder: Path) -> list[Path]:
    """Returns every file under `folder`, sorted."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def write_zip(target: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes (name, content) pairs as a zip whose bytes depend on nothing else."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)


if __name__ == "__main__":
    sys.exit(main())
