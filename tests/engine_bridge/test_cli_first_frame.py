"""`worldwarp first-frame` with Wan in miniature; once as a process, because torch alone takes seconds to import."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from engine_bridge.cli import app
from tests.support.tiny_wan import save_tiny_wan
from worldwarp_core.errors import WorldWarpError

from .test_cli import ENVIRONMENT, command

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command in a folder and with caches of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["first-frame", *map(str, arguments)])


def test_a_picture_of_that_size_that_says_what_it_was_made_of(wan: Path, tmp_path: Path, draw: Any) -> None:
    settings = ("--prompt", "Ein Hof, still", "--size", "64x48", "--steps", 2, "--seed", 7, "--base", wan)
    done = draw(*settings, "--device", "cpu", "--out", "new folder/frame.png")
    assert done.exit_code == 0, done.output
    assert "64x48 in" in done.output
    with Image.open(tmp_path / "new folder" / "frame.png") as picture:
        assert picture.size == (64, 48)
        assert picture.mode == "RGB"
        assert picture.info["worldwarp prompt"] == "Ein Hof, still"
        assert picture.info["worldwarp seed"] == "7"
    assert len(list((tmp_path / "cache/worldwarp/prompts").iterdir())) == 2, "both prompts are kept for the next time"


def refused(done: Any) -> WorldWarpError:
    """What the program would say in one sentence."""
    assert isinstance(done.exception, WorldWarpError), (done.exception, done.output)
    return done.exception


def test_without_weights_the_command_that_brings_them_is_said(tmp_path: Path, draw: Any) -> None:
    error = refused(draw("--prompt", "stone"))
    assert error.code == "no_weights"
    assert "worldwarp models download wan-1.3b" in error.message
    assert not (tmp_path / "first_frame.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--size", "832"), "WIDTHxHEIGHT"),
        (("--size", "100x100"), "96x96 would do"),
        (("--out", "frame.jpg"), "must end with .png"),
    ],
    ids=["size", "multiple", "suffix"],
)
def test_impossible_wishes_are_refused_with_a_way_out(arguments: tuple[str, str], says: str, draw: Any) -> None:
    error = refused(draw("--prompt", "stone", *arguments))
    assert error.code == "bad_settings"
    assert says in error.message


def test_ctrl_c_stops_within_a_step_and_leaves_no_file(wan: Path, tmp_path: Path) -> None:
    # More steps than there is time for, however late the signal comes.
    settings = ("--prompt", "stone", "--size", "512x512", "--steps", 1000, "--base", wan, "--device", "cpu")
    running = subprocess.Popen(
        command("first-frame", *settings, "--out", tmp_path / "frame.png"),
        env={**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    prompts = tmp_path / "worldwarp" / "prompts"
    deadline = time.monotonic() + 240
    while len(list(prompts.glob("*.safetensors"))) < 2:  # from here on it loads the model and draws
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Error: Stopped; " in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("*.png"))
