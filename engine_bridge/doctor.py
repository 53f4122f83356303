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
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from worldwarp_core.errors import install_command

State = Literal["ok", "missing", "optional"]

CLIENT_PACKAGES = (
    "numpy",
    "attrs",
    "cattrs",
    "msgpack",
    "pyzmq",
    "OpenEXR",
    "pillow",
    "av",
    "rich",
    "typer",
    "zstandard",
)
ENGINE_PACKAGES = ("filelock", "opencv-python-headless")
PYTHON_MIN = (3, 11)
PROBE_TIMEOUT_S = 120.0
JOBS_GIB = 20.0
DEFAULT_CUDA_HOME = "/usr/local/cuda"
"""Where torch looks for nvcc last."""

INSTALL_CLIENT = "pip install -c constraints.txt -e ."
INSTALL_ENGINE = install_command("engine")
INSTALL_BLENDER = install_command("engine", "blender")
INSTALL_VIDEO = install_command("video")
INSTALL_RAY = install_command("engine", "ray")
INSTALL_EVALUATION = install_command("evaluation")
# Forced: pip takes an installed CPU build of the same version for the one that is asked for. Alone: what torch needs is
# not all on that index. The second command brings what the CUDA build needs and the CPU build did not.
TORCH_CUDA = (
    "pip install --force-reinstall --no-deps torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130\n"
    f"{INSTALL_ENGINE}"
)
BLENDER_LIBRARIES = (
    "sudo apt-get install libx11-6 libxi6 libxfixes3 libxrender1 libxext6 libsm6 libice6 libgl1 libxkbcommon0"
)
"""What Blender as a module links and a server's or container's Linux often lacks."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do: commands to paste, one a line, where commands do it; "" where nothing needs doing."""


def examine() -> list[Check]:
    """Everything that was looked at, what the engine needs first."""
    system = platform.system()
    torch = _probe(_TORCH)
    driver = _first_line("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return [
        _python(),
        _packages("client packages", CLIENT_PACKAGES, INSTALL_CLIENT),
        _torch(torch, system, driver),
        _packages("engine packages", ENGINE_PACKAGES, INSTALL_ENGINE),
        _numba(_probe(_NUMBA)),
        *_gpu(torch, system, driver),
        _blender(system),
        _optional_package("camera paths from video", "pycolmap", INSTALL_VIDEO),
        _optional_package("plots of evaluations", "matplotlib", INSTALL_EVALUATION),
        _optional_package("depth of photographs", "transformers", INSTALL_ENGINE),
        _optional_package("metrics of a server", "prometheus_client", INSTALL_ENGINE),
        _optional_package("engines on a Ray cluster", "ray", INSTALL_RAY),
        _curve(),
        _jobs_disk(),
    ]


def report(checks: list[Check]) -> Group:
    """The checks as a table, and below it what to do: commands are not broken over the cells of a table."""
    table = Table(
        "",
        "",
        "found",
        title=f"WorldWarp {version_of('worldwarp') or ''} on {platform.platform()}",
        title_justify="left",
    )
    colour = {"ok": "green", "missing": "red", "optional": "yellow"}
    for check in checks:
        table.add_row(Text(check.state, colour[check.state]), check.name, Text(check.found))
    remedies = []
    for title, state in (("To do:", "missing"), ("If you want it:", "optional")):
        wanted = [check for check in checks if check.state == state and check.remedy]
        remedies += [Text(title, "bold")] if wanted else []
        for check in wanted:
            lines = "\n".join(f"    {line}" for line in check.remedy.splitlines())
            remedies.append(Text(f"{check.name}:\n{lines}", overflow="ignore", no_wrap=True))
    if any(check.state == "missing" for check in checks):
        verdict = "No engine can run here yet; this machine can still be a client."
    else:
        verdict = (
            "The engine cache can run here. The engine wan needs models too: `worldwarp models` says which are here."
        )
    return Group(table, *remedies, Text(verdict, "bold"))


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


def _curve() -> Check:
    import zmq

    if zmq.has("curve"):
        return Check("keys (CURVE)", "ok", f"libzmq {zmq.zmq_version()}")
    lacks = f"libzmq {zmq.zmq_version()} was built without it: a server can listen on this machine only"
    return Check("keys (CURVE)", "optional", lacks, "pip install --force-reinstall pyzmq")


def _jobs_disk() -> Check:
    """Room for what a server keeps: a minute of 1280x720 is about 10 GiB before it is delivered."""
    from .store import default_data_dir

    folder = default_data_dir()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free_gib = shutil.disk_usage(there).free / 2**30
    state: State = "ok" if free_gib >= JOBS_GIB else "optional"
    remedy = "" if state == "ok" else "worldwarp serve --data-dir FOLDER_ON_A_LARGER_DISK"
    return Check("disk for jobs", state, f"{free_gib:.0f} GiB free for {folder}", remedy)


def _optional_package(name: str, package: str, remedy: str) -> Check:
    version = version_of(package)
    return Check(name, "ok", f"{package} {version}") if version else Check(name, "optional", f"no {package}", remedy)


def _torch(torch: dict[str, Any], system: str, driver: str | None) -> Check:
    if "error" in torch:
        installed = version_of("torch")
        if installed is None:
            # On Windows the package index has the CPU build alone.
            remedy = TORCH_CUDA if system == "Windows" and driver else INSTALL_ENGINE
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


def _gpu(torch: dict[str, Any], system: str, driver: str | None) -> list[Check]:
    """Whether gsplat's CUDA kernels can run; without them the CPU rasteriser does the work, which is said."""
    if driver is None:
        why = "no NVIDIA driver (nvidia-smi)"
        remedy = (
            "connect to a server on a machine with a GPU"
            if system == "Darwin"
            else "where there is an NVIDIA GPU: install its driver; else connect to a server that has one"
        )
        return [Check("GPU", "optional", f"{why}: the CPU rasteriser is used", remedy)]
    checks = [Check("GPU", "ok", driver)]
    if "error" not in torch and not torch.get("gpu"):
        found = "torch sees no GPU: the CPU rasteriser is used"
        remedy = f"update NVIDIA's driver: torch is built for CUDA {torch['cuda']}" if torch.get("cuda") else TORCH_CUDA
        checks.append(Check("torch on the GPU", "optional", found, remedy))
    gsplat = version_of("gsplat")
    checks.append(
        Check("gsplat", "ok", gsplat) if gsplat else Check("gsplat", "optional", "not installed", INSTALL_ENGINE)
    )
    nvcc, tried = _nvcc()
    cuda_version = torch.get("cuda") or "13.0"
    checks.append(
        Check("CUDA toolkit", "ok", nvcc)
        if nvcc
        else Check(
            "CUDA toolkit",
            "optional",
            f"no nvcc in {tried}: gsplat cannot compile its kernels, the CPU rasteriser is used",
            {
                "Windows": "winget install Nvidia.CUDA",
                "Linux": f"conda install -c nvidia cuda-toolkit={cuda_version}",
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


def _nvcc() -> tuple[str | None, str]:
    """The nvcc with which torch would compile gsplat's kernels, if it runs, and where was looked, in torch's order."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc, tried = str(Path(home) / "bin" / "nvcc"), f"{Path(home) / 'bin'} (CUDA_HOME)"
    else:
        nvcc, tried = (
            shutil.which("nvcc") or str(Path(DEFAULT_CUDA_HOME) / "bin" / "nvcc"),
            f"PATH or {DEFAULT_CUDA_HOME}",
        )
    return (nvcc if _first_line(nvcc, "--version") else None), tried


def _blender(system: str) -> Check:
    if version := version_of("bpy"):
        # Installed is not enough: it links libraries of the system.
        bpy = _probe(_BPY)
        if "error" not in bpy:
            return Check("Blender", "ok", f"bpy {version} (Blender {bpy['version']})")
        remedy = BLENDER_LIBRARIES if system == "Linux" and ".so" in bpy["error"] else INSTALL_BLENDER
        return Check("Blender", "optional", f"bpy {version} does not start: {bpy['error']}", remedy)
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
_BPY = """
import bpy, json, os
print()
print(json.dumps({"version": bpy.app.version_string}), flush=True)
os._exit(0)  # Blender as a module cannot always be left cleanly.
"""
_NUMBA = """
import json, numba
from worldwarp_core.splats.prepare import rasterizer_info
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
