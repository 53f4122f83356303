"""What this machine can do, and the exact command for each thing it lacks. Works on the client's install, no torch.

Three states: `ok`; `missing`, without which the `cache` engine cannot run here; `optional`, without which something is
slower or one feature is not there. Whatever is imported to look at it is imported in a process of its own: a library
that crashes, or takes its threads' settings at import, must not take the doctor with it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

State = Literal["ok", "missing", "optional"]

CLIENT_PACKAGES = ("numpy", "attrs", "cattrs", "msgpack", "pyzmq", "OpenEXR", "pillow", "av", "rich", "typer")
ENGINE_PACKAGES = ("opencv-python-headless",)
PYTHON_MIN = (3, 11)
PROBE_TIMEOUT_S = 120.0

INSTALL_CLIENT = "pip install -c constraints.txt -e ."
INSTALL_ENGINE = "pip install -c constraints.txt -e '.[engine]'"
INSTALL_BLENDER = "pip install -c constraints.txt -e '.[blender]'"
INSTALL_VIDEO = "pip install -c constraints.txt -e '.[video]'"
TORCH_CUDA_WINDOWS = "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do, a command where one does it; "" where nothing needs doing."""


def examine() -> list[Check]:
    """Everything that was looked at, what the engine needs first."""
    system = platform.system()
    torch = _probe(_TORCH)
    return [
        _python(),
        _packages("client packages", CLIENT_PACKAGES, INSTALL_CLIENT),
        _torch(torch, system),
        _packages("engine packages", ENGINE_PACKAGES, INSTALL_ENGINE),
        _numba(_probe(_NUMBA)),
        *_gpu(torch, system),
        _blender(),
        _optional_package("camera paths from video", "pycolmap", INSTALL_VIDEO),
        _optional_package("depth of photographs", "transformers", INSTALL_ENGINE),
        _optional_package("SPZ splat files", "gsply", INSTALL_ENGINE),
    ]


def report(checks: list[Check]) -> Group:
    """The checks as a table, and below it what to do: commands are not broken over the cells of a table."""
    table = Table("", "", "found", title=f"WorldWarp on {platform.platform()}", title_justify="left")
    colour = {"ok": "green", "missing": "red", "optional": "yellow"}
    for check in checks:
        table.add_row(Text(check.state, colour[check.state]), check.name, Text(check.found))
    remedies = [
        Text(f"{check.name}: {check.remedy}", overflow="ignore", no_wrap=True) for check in checks if check.remedy
    ]
    if any(check.state == "missing" for check in checks):
        verdict = "The engine cannot run here yet; this machine can still be a client."
    else:
        verdict = "The cache engine can run here."
    return Group(table, *([Text("To do:", "bold"), *remedies] if remedies else []), Text(verdict, "bold"))


# ---------------------------------------------------------------- the checks


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] < PYTHON_MIN:
        return Check("Python", "missing", version, "install Python 3.11 and make a new environment with it")
    return Check("Python", "ok", version)


def _packages(name: str, packages: tuple[str, ...], remedy: str) -> Check:
    found = {package: version_of(package) for package in packages}
    missing = [package for package, version in found.items() if version is None]
    if missing:
        return Check(name, "missing", "not installed: " + ", ".join(missing), remedy)
    return Check(name, "ok", ", ".join(f"{package} {version}" for package, version in found.items()))


def _optional_package(name: str, package: str, remedy: str) -> Check:
    version = version_of(package)
    return Check(name, "ok", f"{package} {version}") if version else Check(name, "optional", f"no {package}", remedy)


def _torch(torch: dict[str, Any], system: str) -> Check:
    if "error" in torch:
        installed = version_of("torch")
        if installed is None:
            remedy = (
                f"{TORCH_CUDA_WINDOWS}  (with an NVIDIA GPU), then {INSTALL_ENGINE}"
                if system == "Windows"
                else INSTALL_ENGINE
            )
            return Check("torch", "missing", "not installed: this machine is a client only", remedy)
        return Check("torch", "missing", f"{installed} does not start: {torch['error']}", INSTALL_ENGINE)
    build = f"CUDA {torch['cuda']} build" if torch["cuda"] else "CPU build"
    return Check("torch", "ok", f"{torch['version']} ({build}, {torch['threads']} threads)")


def _numba(numba: dict[str, Any]) -> Check:
    if "error" in numba:
        return Check("CPU rasteriser", "missing", f"numba: {numba['error']}", INSTALL_ENGINE)
    return Check(
        "CPU rasteriser", "ok", f"numba {numba['version']}, {numba['threads']} threads, thread layer {numba['layer']}"
    )


def _gpu(torch: dict[str, Any], system: str) -> list[Check]:
    """Whether gsplat's CUDA kernels can run; without them the CPU rasteriser does the work, which is said."""
    driver = _first_line("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if driver is None:
        why = "no NVIDIA driver (nvidia-smi)"
        remedy = (
            "connect to a server on a machine with a GPU"
            if system == "Darwin"
            else "install NVIDIA's driver, where there is a GPU"
        )
        return [Check("GPU", "optional", f"{why}: the CPU rasteriser is used", remedy)]
    checks = [Check("GPU", "ok", driver)]
    if not torch.get("gpu"):
        remedy = TORCH_CUDA_WINDOWS if system == "Windows" else "pip install --force-reinstall torch==2.13.0"
        checks.append(Check("torch on the GPU", "optional", "torch sees no GPU: the CPU rasteriser is used", remedy))
    gsplat = version_of("gsplat")
    checks.append(
        Check("gsplat", "ok", gsplat) if gsplat else Check("gsplat", "optional", "not installed", INSTALL_ENGINE)
    )
    nvcc = _first_line("nvcc", "--version") and shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    cuda_version = (torch.get("cuda") or "13.0").rsplit(".", 1)[0]
    checks.append(
        Check("CUDA toolkit", "ok", str(nvcc or home))
        if nvcc or home
        else Check(
            "CUDA toolkit",
            "optional",
            "no nvcc: gsplat cannot compile its kernels, the CPU rasteriser is used",
            {
                "Windows": "winget install Nvidia.CUDA",
                "Linux": f"conda install -c nvidia cuda-toolkit={cuda_version}  (or your distribution's CUDA toolkit)",
            }.get(system, "connect to a server on a machine with a GPU"),
        )
    )
    compiler = shutil.which("cl" if system == "Windows" else "c++") or shutil.which("g++")
    checks.append(
        Check("C++ compiler", "ok", compiler)
        if compiler
        else Check(
            "C++ compiler",
            "optional",
            "none: gsplat cannot compile its kernels, the CPU rasteriser is used",
            {
                "Windows": "winget install Microsoft.VisualStudio.2022.BuildTools "
                '--override "--add Microsoft.VisualStudio.Workload.VCTools"',
                "Linux": "sudo apt install build-essential",
            }.get(system, "xcode-select --install"),
        )
    )
    return checks


def _blender() -> Check:
    if version := version_of("bpy"):
        return Check("Blender", "ok", f"bpy {version}")
    if executable := shutil.which("blender"):
        return Check("Blender", "ok", executable)
    return Check("Blender", "optional", "neither bpy nor blender on PATH: `worldwarp demo` needs one", INSTALL_BLENDER)


# ---------------------------------------------------------------- how they look


def version_of(package: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_TORCH = """
import torch, json
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
facts = {"version": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu, "threads": torch.get_num_threads()}
print(json.dumps(facts))
"""
_NUMBA = """
import json, numba
from worldwarp_core.splats.rasterize import rasterizer_info
info = rasterizer_info("cpu")
print(json.dumps({"version": numba.__version__, "threads": info["threads"], "layer": info["thread_layer"]}))
"""


def _probe(code: str, run: Callable[..., Any] = subprocess.run) -> dict[str, Any]:
    """What `code` prints as JSON in a Python of its own; {"error": ...} where it ends badly."""
    try:
        done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {PROBE_TIMEOUT_S:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _first_line(*command: str) -> str | None:
    """The first line that a program prints; None where it is not there or ends badly."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [""])[0] if done.returncode == 0 else None
