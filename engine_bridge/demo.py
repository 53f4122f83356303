"""`worldwarp demo`: the whole product once, through its real parts, on a scene that it brings along.

A server is started on a free loopback port, and a headless Blender in a process of its own. Blender builds the
courtyard, renders its first frame and depth, sends the flight to the server, writes what comes back and brings it in.
What is left:

    OUT/frames, depth, mask, splats.ply, preview.mp4, job.json     as `worldwarp generate` leaves them
        contact_sheet.png                                          the flight on one page
        scene.blend                                                the courtyard with everything imported
        logs/blender.log, logs/server.log                          what the two processes said
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from worldwarp_core.api import default_engine
from worldwarp_core.errors import WorldWarpError

from .doctor import INSTALL_BLENDER
from .errors import disk_errors
from .job_folder import missing, read_job
from .png_writer import is_whole_png
from .preview import contact_sheet, sequence, write_video
from .private_server import OwnServer, own_server
from .stages import stage_in_words

POLL_S = 0.1
ASK_S = 60.0
"""How long a Blender may take to say which Python it has."""
AWAY_S = 10.0
"""How long processes may take to leave when they are told to."""
BEFORE_JOB, AFTER_JOB = 0.12, 0.92
"""Shares of the bar at which the server's work begins and ends."""
FINISH_S = 4.0
"""Import, .blend, video and sheet, for the time left."""
KINDS = {"frames": ".png", "depth": ".exr", "mask": ".png"}
INPUTS = ("cameras.json", "start_frame.png", "start_depth.exr")
FILES = ("splats.ply", "preview.mp4", "contact_sheet.png", "scene.blend", "job.json")


@dataclass(frozen=True)
class DemoSettings:
    """How large and how long the flight is; the defaults fit two CPU cores."""

    width: int = 256
    height: int = 144
    frames: int = 93
    cache_steps: int | None = None
    """Optimisation steps of the first cache fit; None takes the engine's default."""

    def __post_init__(self) -> None:
        if self.frames < 1 or min(self.width, self.height) < 16:
            raise WorldWarpError(
                "bad_settings",
                f"The demo needs at least one frame of 16x16; got {self.frames} of {self.width}x{self.height}.",
            )


def run(
    out: Path,
    *,
    blender: str | Path | None = None,
    settings: DemoSettings | None = None,
    console: Console | None = None,
) -> dict[str, Path]:
    """Makes the demo in `out` and returns what it made, name -> path, all of it whole.

    Args:
        out: a new or empty folder, or that of an earlier demo, which is replaced.
        blender: a Blender executable; None takes the `bpy` module, or `blender` on the PATH.

    Raises:
        WorldWarpError: `no_blender`, `folder_in_use`, `cannot_write`, `demo_failed`, or whatever stopped the shot; what
            was delivered stays, and the message says where the logs are.
    """
    started_s = time.monotonic()
    console, settings = console or Console(), settings or DemoSettings()
    command, environment = blender_command(blender)
    out = Path(out).absolute()
    logs = out / "logs"
    with disk_errors(out):
        make_room(out)
        logs.mkdir(parents=True, exist_ok=True)
    with (
        Bar(console) as bar,
        tempfile.TemporaryDirectory(prefix="worldwarp_demo_", ignore_cleanup_errors=True) as scratch,
    ):
        bar.show("starting the server", 0.01)
        with log_kept(Path(scratch), logs), own_server(Path(scratch), ["--engine", default_engine()]) as server:
            report = Path(scratch) / "report.jsonl"
            options = {"out": out, "address": server.address, "report": report, "width": settings.width}
            options |= {"height": settings.height, "frames": settings.frames, "cache-steps": settings.cache_steps}
            arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
            fly([*command, *arguments], environment, report, logs, bar, server)
        bar.show("writing the video and the contact sheet", 0.96, FINISH_S / 2)
        write_video(sequence(out / "frames"), out / "preview.mp4", fps=24)
        contact_sheet(out / "frames", out / "contact_sheet.png")
        made = check_whole(out, settings.frames)
        bar.show("done", 1.0)
    tell(console, out, made, settings, time.monotonic() - started_s)
    return made


# ---------------------------------------------------------------- the two processes


def blender_command(blender: str | Path | None) -> tuple[list[str], dict[str, str]]:
    """How a headless Blender runs the add-on's half of the demo: a command, and its environment.

    Raises:
        WorldWarpError: `no_blender`, with what to install; `wrong_python`.
    """
    # This very interpreter's packages, also in a Blender that brings its own Python.
    # Not sys.path: once `bpy` is imported, Blender's own scripts stand in there, and hide it from the next process.
    installed = sysconfig.get_paths()
    packages = dict.fromkeys([str(Path(__file__).parents[1]), installed["purelib"], installed["platlib"]])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(packages)}
    if blender is None and importlib.util.find_spec("bpy") is not None:
        return [sys.executable, "-m", "blender_addon.demo_shot"], environment
    executable = shutil.which(str(blender or "blender"))
    if executable is None:
        raise WorldWarpError(
            "no_blender",
            (f"There is no Blender at {blender}." if blender else "No Blender was found.")
            + f" Install it as a Python module: {INSTALL_BLENDER}\n"
            "or name an installed one: worldwarp demo --blender PATH_TO_BLENDER",
        )
    check_python(executable)
    run_module = "import runpy; runpy.run_module('blender_addon.demo_shot', run_name='__main__')"
    options = ["--background", "--factory-startup", "--python-use-system-env", "--python-exit-code", "1"]
    return [executable, *options, "--python-expr", run_module, "--"], environment


def check_python(executable: str) -> None:
    """Raises unless the Blender `executable` can import this environment's compiled packages.

    Raises:
        WorldWarpError: `wrong_python` where its Python is another than ours; `no_blender` where it does not say.
    """
    ask = "import sys; print('worldwarp asks:', *sys.version_info[:2], flush=True)"
    command = [executable, "--background", "--factory-startup", "--python-exit-code", "1", "--python-expr", ask]
    try:
        said = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorldWarpError("no_blender", f"{executable} cannot be run as a Blender: {error}.") from error
    found = re.search(r"^worldwarp asks: (\d+) (\d+)\s*$", said.stdout, re.MULTILINE)
    if found is None:
        last = ((said.stderr + said.stdout).strip().splitlines() or ["it said nothing"])[-1]
        raise WorldWarpError(
            "no_blender", f"{executable} does not run as a Blender (exit code {said.returncode}): {last}"
        )
    theirs, ours = f"{found[1]}.{found[2]}", f"{sys.version_info[0]}.{sys.version_info[1]}"
    if theirs != ours:
        raise WorldWarpError(
            "wrong_python",
            f"The Blender at {executable} has Python {theirs} and this environment Python {ours}, so it cannot import "
            f"what is compiled here. Make an environment with Python {theirs} and install WorldWarp in it, name a "
            f"Blender that has Python {ours}, or install Blender as a module here: {INSTALL_BLENDER}",
        )


def fly(command: list[str], environment: dict[str, str], report: Path, logs: Path, bar: Bar, server: OwnServer) -> None:
    """Runs Blender to its end, showing on the bar what it reports.

    Raises:
        WorldWarpError: what Blender reports as an `error`, `demo_failed` where it ends without a word, or
            `server_gone` as soon as the server's process has ended: Blender would wait for it to come back.
    """
    log = logs / "blender.log"
    lines, said, ended = Report(report), "", False
    bar.show("starting Blender", 0.03)
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            while not ended:
                # Asked before reading, so that what was written last is still read.
                ended = process.poll() is not None
                for line in lines.new():
                    bar.take(line)
                    said = line["kind"]
                    if said == "error":
                        raise WorldWarpError(line["code"], f"{line['message']}\nLogs: {logs}")
                if not ended:
                    server.check()
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(AWAY_S)
                except subprocess.TimeoutExpired:
                    process.kill()
    if said != "done" or process.returncode != 0:
        tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-12:])
        raise WorldWarpError(
            "demo_failed",
            f"Blender ended with exit code {process.returncode} before the demo was whole:\n{tail}\nLogs: {logs}",
        )


@contextmanager
def log_kept(server_folder: Path, logs: Path) -> Iterator[None]:
    """Takes the server's log along when the server is gone, however it ended."""
    try:
        yield
    finally:
        log = server_folder / "server.log"
        if log.is_file():
            shutil.copyfile(log, logs / log.name)


# ---------------------------------------------------------------- what is seen of it


class Report:
    """The lines that Blender's process adds to a file, read while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[dict[str, Any]]:
        """The lines that were added since the last call; one that is half written waits for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")
        if not whole:
            return []
        self._read += len(whole) + 1
        return [json.loads(line) for line in whole.split(b"\n")]


class Bar:
    """The progress bar: one line with the stage, how far all of it is, the time taken and the time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=1.0, left="")
        self._stage = ""

    def __enter__(self) -> Bar:
        self._progress.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._progress.__exit__(*failure)

    def show(self, what: str, fraction: float, left_s: float | None = None) -> None:
        """Shows a stage; without a terminal, where no bar can move, each new one is a line of its own."""
        left = "" if left_s is None else f"about {max(0, round(left_s))} s left"
        self._progress.update(self._task, description=what, completed=fraction, left=left)
        if what != self._stage and not self._progress.console.is_terminal:
            self._progress.console.print(f"{fraction:4.0%} {what}")
        self._stage = what

    def take(self, line: dict[str, Any]) -> None:
        """Shows what a line of Blender's report says."""
        done = self._progress.tasks[0].completed
        match line["kind"]:
            case "step":
                self.show(line["what"], min(done + 0.02, BEFORE_JOB) if done < AFTER_JOB else done)
            case "progress":
                left_s = line["eta_s"] and line["eta_s"] + FINISH_S
                share = BEFORE_JOB + (AFTER_JOB - BEFORE_JOB) * line["fraction"]
                self.show(stage_in_words(line["stage"]), share, left_s)
            case "notice":
                self._progress.console.print(line["message"])


def tell(console: Console, out: Path, made: dict[str, Path], settings: DemoSettings, seconds: float) -> None:
    """Prints what was made and where."""
    about = {
        "frames": f"{settings.frames} frames of {settings.width}x{settings.height} that follow the camera",
        "depth": "planar z of the world at each frame",
        "mask": "white where the world was already known",
        "splats.ply": "the world as Gaussian splats, in Blender's axes",
        "preview.mp4": "the flight as a video",
        "contact_sheet.png": "the flight on one page",
        "scene.blend": "the courtyard with frames and splats imported: open it in Blender",
        "job.json": "settings, versions, seconds by stage",
    }
    console.print(f"\nThe demo took {seconds:.0f} s and is in {out}", highlight=False, soft_wrap=True)
    for name in made:
        console.print(f"  {name:<18} {about[name]}", highlight=False, soft_wrap=True)


# ---------------------------------------------------------------- the folder


def make_room(out: Path) -> None:
    """Removes what an earlier demo left in `out`, and nothing else.

    Raises:
        WorldWarpError: `folder_in_use` where something else is in there.
    """
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        earlier = Path(read_job(out).get("blend", "")).name == "scene.blend"
    except WorldWarpError:
        earlier = (out / "logs" / "server.log").exists()
    if not earlier:
        raise WorldWarpError(
            "folder_in_use", f"{out} is not empty, and no demo made what is in there: choose another --out."
        )
    for kind, suffix in KINDS.items():
        for path in (out / kind).glob(f"frame_*{suffix}"):
            path.unlink()
    for name in (*FILES, *INPUTS, "logs/server.log", "logs/blender.log"):
        (out / name).unlink(missing_ok=True)


def check_whole(out: Path, frames: int) -> dict[str, Path]:
    """All that the demo should leave, name -> path.

    Raises:
        WorldWarpError: `incomplete`, naming what is missing or damaged; `no_job`.
    """
    job = read_job(out)
    faults = missing(out, range(1, frames + 1), (job.get("splats") or {}).get("size_bytes"))
    for path in (out / name for name in FILES):
        if not path.is_file() or not path.stat().st_size:
            faults += [f"{path.name} is missing or empty"] if path.name != "splats.ply" else []
        elif path.suffix == ".png" and not is_whole_png(path.read_bytes()):
            faults.append(f"{path.name} is damaged")
    if job.get("state") != "done":
        faults.append(f"job.json says {job.get('state')!r}, not 'done'")
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise WorldWarpError("incomplete", f"The demo in {out} is not whole: {', '.join(faults[:5])}{more}.")
    return {name: out / name for name in (*KINDS, *FILES)}
