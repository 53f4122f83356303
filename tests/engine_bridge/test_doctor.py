"""What the doctor says of machines that we describe to it."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from engine_bridge import doctor
from engine_bridge.doctor import Check, examine, report

GOOD_TORCH = {"version": "2.13.0", "cuda": "13.0", "gpu": "NVIDIA H100", "threads": 8}
GOOD_BPY = {"version": "4.5.15 LTS"}
GOOD_NUMBA = {"version": "0.61", "threads": 8, "layer": "omp"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Describes a machine: its system, distributions, probes, programs."""

    def describe(
        system: str = "Linux",
        absent: tuple[str, ...] = (),
        torch: dict[str, Any] = GOOD_TORCH,
        numba: dict[str, Any] = GOOD_NUMBA,
        bpy: dict[str, Any] = GOOD_BPY,
        programs: tuple[str, ...] = ("nvidia-smi", "nvcc", "c++", "cl"),
        cuda_home: Path | None = None,
        free_gib: float = 100.0,
    ) -> dict[str, Check]:
        monkeypatch.setattr(doctor.platform, "system", lambda: system)
        monkeypatch.setattr(doctor, "version_of", lambda package: None if package in absent else "1.0")
        said = {doctor._TORCH: torch, doctor._NUMBA: numba, doctor._BPY: bpy}
        monkeypatch.setattr(doctor, "_probe", lambda code: said[code])
        known = {*programs, *(f"/bin/{name}" for name in programs)}
        monkeypatch.setattr(
            doctor,
            "_first_line",
            lambda *command: "found" if {command[0]} & known or Path(command[0]).exists() else None,
        )
        monkeypatch.setattr(doctor, "DEFAULT_CUDA_HOME", "/nowhere/cuda")
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}" if name in programs else None)
        usage = shutil.disk_usage("/")._replace(free=int(free_gib * 2**30))
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
        for name in ("CUDA_HOME", "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        if cuda_home is not None:
            monkeypatch.setenv("CUDA_HOME", str(cuda_home))
        return {check.name: check for check in examine()}

    return describe


def test_a_good_gpu_machine_lacks_nothing(machine: Any) -> None:
    checks = machine()
    assert {check.state for check in checks.values()} == {"ok"}
    assert "NVIDIA" not in checks["torch"].remedy


def test_a_client_without_torch_is_told_the_command_for_its_platform(machine: Any) -> None:
    gone = {"absent": ("torch", "gsplat"), "torch": {"error": "no module"}, "numba": {"error": "no module"}}
    linux = machine("Linux", **gone)["torch"]
    assert (linux.state, linux.remedy) == ("missing", 'pip install -c constraints.txt -e ".[engine]"')
    windows = machine("Windows", **gone)["torch"]
    assert "--index-url https://download.pytorch.org/whl/cu" in windows.remedy
    no_gpu = machine("Windows", programs=(), **gone)["torch"]
    assert no_gpu.remedy == linux.remedy


@pytest.mark.parametrize("system", ["Windows", "Linux"])
def test_a_cpu_build_beside_a_gpu_is_named_and_really_replaced(machine: Any, system: str) -> None:
    checks = machine(system, torch=GOOD_TORCH | {"cuda": None, "gpu": None})
    assert checks["torch"].state == "ok"
    assert "CPU build" in checks["torch"].found
    assert checks["torch on the GPU"].state == "optional"
    first, second = checks["torch on the GPU"].remedy.splitlines()
    assert {"--force-reinstall", "--no-deps", "--index-url"} <= set(first.split())
    # The CUDA libraries that torch's own build needs and the CPU build did not.
    assert second == doctor.INSTALL_ENGINE


def test_a_cuda_build_that_sees_no_gpu_needs_a_driver_not_another_build(machine: Any) -> None:
    check = machine(torch=GOOD_TORCH | {"gpu": None})["torch on the GPU"]
    assert "driver" in check.remedy
    assert "13.0" in check.remedy


def test_a_cuda_home_without_nvcc_is_no_toolkit(machine: Any, tmp_path: Path) -> None:
    check = machine(cuda_home=tmp_path)["CUDA toolkit"]
    assert check.state == "optional"
    assert str(tmp_path) in check.found
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("")
    assert machine(cuda_home=tmp_path)["CUDA toolkit"].state == "ok"


def test_a_disk_too_small_for_long_shots_is_said_with_the_way_out(machine: Any) -> None:
    check = machine(free_gib=3.0)["disk for jobs"]
    assert check.state == "optional"
    assert check.found.startswith("3 GiB free for ")
    assert "--data-dir" in check.remedy


def test_a_blender_module_that_does_not_start_names_the_libraries(machine: Any) -> None:
    gone = {"error": "ImportError: libXi.so.6: cannot open shared object file: No such file or directory"}
    check = machine(bpy=gone)["Blender"]
    assert check.state == "optional"
    assert "libXi.so.6" in check.found
    assert check.remedy.startswith("sudo apt-get install ")
    assert "libxi6" in check.remedy
    assert machine("Windows", bpy={"error": "DLL load failed"})["Blender"].remedy == doctor.INSTALL_BLENDER
    assert "4.5.15 LTS" in machine()["Blender"].found


@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
@pytest.mark.parametrize("programs", [(), ("nvidia-smi",)])
def test_commands_can_be_pasted_into_any_shell(machine: Any, system: str, programs: tuple[str, ...]) -> None:
    bare = {"absent": ("torch", "gsplat", "bpy", "pycolmap", "numpy"), "torch": {"error": "no module"}}
    for torch in (bare, {"torch": GOOD_TORCH | {"cuda": None, "gpu": None}}):
        for check in machine(system, programs=programs, **torch).values():
            for line in check.remedy.splitlines():
                if line.startswith(("pip ", "conda ", "sudo ", "winget ")):
                    assert not {"'", "(", "&"} & set(line), line
                    assert "-c constraints.txt" in line or "-e " not in line, line


@pytest.mark.parametrize(
    ("system", "programs", "lacks", "says"),
    [
        ("Linux", ("nvidia-smi", "c++"), "CUDA toolkit", "cuda-toolkit"),
        ("Linux", ("nvidia-smi", "nvcc"), "C++ compiler", "build-essential"),
        ("Windows", ("nvidia-smi", "nvcc"), "C++ compiler", "BuildTools"),
        ("Linux", (), "GPU", "driver"),
        ("Darwin", (), "GPU", "server"),
    ],
)
def test_what_gsplat_lacks_is_optional_and_the_cpu_rasteriser_is_named(
    machine: Any, system: str, programs: tuple[str, ...], lacks: str, says: str
) -> None:
    check = machine(system, programs=programs)[lacks]
    assert check.state == "optional"
    assert "CPU rasteriser is used" in check.found
    assert says in check.remedy


def test_a_torch_that_does_not_start_is_missing_with_its_error(machine: Any) -> None:
    check = machine(torch={"error": "libcudart.so.13: cannot open shared object file"})["torch"]
    assert check.state == "missing"
    assert "libcudart" in check.found


def test_commands_are_printed_whole_on_lines_of_their_own(machine: Any) -> None:
    checks = machine("Windows", absent=("torch",), torch={"error": "x"}, programs=())
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(report(list(checks.values())), soft_wrap=True)
    text = console.export_text()
    assert f"\n    {checks['torch'].remedy}\n" in text
    assert "still be a client" in text


def test_a_probe_that_crashes_is_an_answer() -> None:
    assert doctor._probe("print('{\"a\": 1}')") == {"a": 1}
    assert doctor._probe("raise ValueError('what')") == {"error": "ValueError: what"}
    assert "exit code" in doctor._probe("import os; os._exit(7)")["error"]

    def slow(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("python", 1)

    assert "no answer" in doctor._probe("", run=slow)["error"]


def test_without_ray_the_doctor_says_how_to_have_engines_on_a_cluster(machine: Any) -> None:
    check = machine(absent=("ray",))["engines on a Ray cluster"]
    assert check.state == "optional"
    assert "[engine,ray]" in check.remedy
