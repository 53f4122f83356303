"""The README's reference client is whole, short, and works against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import engine_bridge.messages as m

from .conftest import RunningServer

README = (Path(m.__file__).parent / "README.md").read_text("utf-8")


def test_the_reference_client_gets_its_frames(server: RunningServer, tmp_path: Path) -> None:
    code = re.search(r"<!-- reference client -->\n```python\n(.*?)```", README, re.DOTALL)
    assert code
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 60
    assert f"VERSION = {m.PROTOCOL_VERSION}\n" in code[1]
    (tmp_path / "reference_client.py").write_text(code[1])
    done = subprocess.run(
        [sys.executable, "reference_client.py", server.address],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == [*(f"frame {number}: 64x48" for number in range(1, 10)), "done "]


def test_every_module_is_named() -> None:
    listed = set(re.findall(r"`([\w*]+)`", README.split("## A client")[0]))
    for path in Path(m.__file__).parent.glob("*.py"):
        name = path.stem
        known = name in listed or (name.startswith("cli") and "cli*" in listed)
        assert known or name in ("__init__", "demo", "errors", "png_writer", "preview", "private_server", "version"), (
            name
        )
