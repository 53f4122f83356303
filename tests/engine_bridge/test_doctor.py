"""What the doctor says of machines that we describe to it."""

from __future__ import annotations

import io
import subprocess
from typing import Any

import pytest
from rich.console import Console

from engine_bridge import doctor
from engine_bridge.doctor import Check, examine, report

GOOD_TORCH = {"version": "2.13.0", "cuda": "13.0", "gpu": "NVIDIA H100", "threads": 8}
GOOD_NUMBA = {"version": "0.61", "threads": 8, "layer": "omp"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Describes a machine: its system, distributions, probes, programs."""

    def describe(
        system: str = "Linux",
        absent: tuple[str, ...] = (),
        torch: dict[str, Any] = GOOD_TORCH,
        numba: dict[str, Any] = GOOD_NUMBA,
        programs: tuple[str, ...] = ("nvidia-smi", "nvcc", "c++", "cl"),
    ) -> dict[str, Check]:
        monkeypatch.setattr(doctor.platform, "system", lambda: system)
        monkeypatch.setattr(doctor, "version_of", lambda package: None if package in absent else "1.0")
        monkeypatch.setattr(doctor, "_probe", lambda code: torch if code == doctor._TORCH else numba)
        monkeypatch.setattr(doctor, "_first_line", lambda *command: "found" if command[0] in programs else None)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/bin/{name}" if name in programs else None)
        for name in ("CUDA_HOME", "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        return {check.name: check for check in examine()}

    return describe


def test_a_good_gpu_machine_lacks_nothing(machine: Any) -> None:
    checks = machine()
    assert {check.state for check in checks.values()} == {"ok"}
    assert "NVIDIA" not in checks["torch"].remedy


def test_a_client_without_torch_is_told_the_command_for_its_platform(machine: Any) -> None:
    gone = {"absent": ("torch", "gsplat"), "torch": {"error": "no module"}, "numba": {"error": "no module"}}
    linux = machine("Linux", **gone)["torch"]
    assert (linux.state, linux.remedy) == ("missing", "pip install -c constraints.txt -e '.[engine]'")
    windows = machine("Windows", **gone)["torch"]
    assert "--index-url https://download.pytorch.org/whl/cu" in windows.remedy


def test_the_cpu_build_that_windows_gets_is_named(machine: Any) -> None:
    checks = machine("Windows", torch=GOOD_TORCH | {"cuda": None, "gpu": None})
    assert checks["torch"].state == "ok"
    assert "CPU build" in checks["torch"].found
    assert checks["torch on the GPU"].state == "optional"
    assert "--index-url" in checks["torch on the GPU"].remedy


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
    assert checks["torch"].remedy in text
    assert "still be a client" in text


def test_a_probe_that_crashes_is_an_answer() -> None:
    assert doctor._probe("print('{\"a\": 1}')") == {"a": 1}
    assert doctor._probe("raise ValueError('what')") == {"error": "ValueError: what"}
    assert "exit code" in doctor._probe("import os; os._exit(7)")["error"]

    def slow(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("python", 1)

    assert "no answer" in doctor._probe("", run=slow)["error"]
