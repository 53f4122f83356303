"""What runs inside Blender pulls in nothing that is not there, shown in interpreters of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numba", "cv2", "gsplat", "bpy", "PIL", "av", "rich", "typer", "worldwarp_core.loop.pipeline")
"""None of these, and no server either."""
SERVER_SIDE = ("engine_bridge.server", "engine_bridge.worker", "engine_bridge.store")


@pytest.mark.parametrize(
    "module", ["client", "codec", "deliver", "errors", "job_folder", "messages", "session", "uploads"]
)
def test_the_clients_side_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, engine_bridge.{module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"engine_bridge.{module}" in loaded
    assert not loaded & {*HEAVY, *SERVER_SIDE}


@pytest.mark.parametrize("module", ["messages", "codec", "session", "uploads"])
def test_the_protocol_itself_opens_no_socket(module: str) -> None:
    code = f"import sys, engine_bridge.{module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"zmq", "multiprocessing", "asyncio"}


def test_the_command_line_starts_without_the_engine() -> None:
    code = "import sys, engine_bridge.cli, engine_bridge.doctor; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "numba", "cv2", "gsplat", "bpy"}
