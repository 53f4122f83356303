"""The command line as a user runs it: processes, exit codes, and what is said in which words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from engine_bridge import cli
from engine_bridge.client import Sending
from engine_bridge.job_folder import JobFolder
from engine_bridge.messages import StateEvent
from worldwarp_core.cameras.files import read_cameras, write_cameras
from worldwarp_core.cameras.path import preset_path

from .conftest import FAKE_ENGINE, RunningServer
from .fake_engine import pixel_of
from .shots import JOB, path_of

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "engine_bridge.cli", *map(str, arguments)]


def worldwarp(*arguments: Any, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s)


def wait_until(is_so: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fails(done: subprocess.CompletedProcess[str], says: str, code: int = 1) -> None:
    """Checks for one sentence on stderr, no traceback, and the exit code."""
    assert done.returncode == code, done.stderr
    errors = re.findall(r"^Error: .*(?:\n       .*)*", done.stderr, re.MULTILINE)
    assert len(errors) == 1, done.stderr
    assert re.search(says, errors[0], re.DOTALL), errors[0]
    assert "Traceback" not in done.stderr


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with what `generate` takes: 7 cameras from frame -1, a start frame, its depth."""
    write_cameras(tmp_path / "cameras.json", path_of(7, 49, 33, first=-1))
    Image.fromarray(np.full((33, 49, 3), 90, np.uint8)).save(tmp_path / "start.png")
    np.save(tmp_path / "depth.npy", np.ones((33, 49), np.float32))
    return tmp_path


def generation(files: Path, *more: Any, out: str = "out", own_server: bool = True) -> list[Any]:
    arguments = ["generate", "--start-frame", files / "start.png", "--depth", files / "depth.npy"]
    arguments += ["--cameras", files / "cameras.json", "--out", files / out, "--chunk", 5, "--overlap", 1]
    return [*arguments, *(["--engine-factory", FAKE_ENGINE] if own_server else []), *more]


def job_of(files: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((files / out / "job.json").read_text("utf-8"))


def test_generate_leaves_everything_and_nothing_else(files: Path) -> None:
    (files / "blockout").mkdir()
    np.save(files / "blockout" / "z_0002.npy", np.full((3, 5), 4.0, np.float32))
    done = worldwarp(*generation(files, "--seed", 5, "--strength", 0.35, "--path-depth", files / "blockout"))
    assert done.returncode == 0, done.stderr
    assert "7 frames" in done.stdout
    out = files / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "depth",
        "frames",
        "job.json",
        "mask",
        "preview.mp4",
        "splats.ply",
    ]
    names = ["-001", "0000", "0001", "0002", "0003", "0004", "0005"]
    for kind, suffix in (("frames", "png"), ("depth", "exr"), ("mask", "png")):
        assert sorted(path.name for path in (out / kind).iterdir()) == [f"frame_{name}.{suffix}" for name in names]
    for index, name in enumerate(names):
        assert (np.asarray(Image.open(out / "frames" / f"frame_{name}.png")) == pixel_of(index)).all()
    job = job_of(files)
    assert (job["state"], job["settings"]["seed"], job["settings"]["strength"]) == ("done", 5, 0.35)
    assert job["seconds"] == {"fill": 1.0}
    assert job["inputs"]["cameras"] == str(files / "cameras.json")
    assert job["inputs"]["path_depth"] == str(files / "blockout")
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or [])]


def test_generate_uses_a_running_server_and_leaves_it_running(files: Path, server: RunningServer) -> None:
    done = worldwarp(*generation(files, "--server", server.address, own_server=False))
    assert done.returncode == 0, done.stderr
    assert server.is_alive()
    listed = worldwarp("jobs", "--server", server.address)
    assert listed.returncode == 0
    assert job_of(files)["job_id"] in listed.stdout
    assert "7/7" in listed.stdout


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--server", "tcp://127.0.0.1:9"], r"No WorldWarp server answers at tcp://127.0.0.1:9\..*serve --port 9"),
        (["--cameras", "nowhere.json"], "nowhere.json"),
        (["--start-frame", "nowhere.png"], "nowhere.png"),
        (["--depth", "nowhere.exr"], "nowhere.exr"),
        (["--chunk", "6"], "chunk must be 4k"),
        (["--strength", "1.5"], "strength"),
        (["--prompt-key", "dusk"], r"FRAME=PROMPT.*'dusk'"),
        (["--guidance", "0.5"], "guidance"),
        (["--style-image", "nowhere.png"], "style image nowhere.png"),
        (["--strength-mask", "nowhere.npy"], "strength mask nowhere.npy"),
        (["--path-depth", "nowhere"], "no folder nowhere"),
        (["--engine", "better"], "better"),
        (["--server", "tcp://127.0.0.1:9", "--depth-model", "x"], "worldwarp serve"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_before_anything_is_made(files: Path, more: list[str], says: str) -> None:
    own_server = "--engine" not in more
    done = worldwarp(*generation(files, own_server=own_server), *more)
    fails(done, says)
    assert not (files / "out").exists()


def test_a_server_that_is_not_there_costs_nothing_and_may_be_tried_again(files: Path) -> None:
    assert worldwarp(*generation(files)).returncode == 0
    before = {path: path.read_bytes() for path in (files / "out").rglob("*") if path.is_file()}
    dead = ("--server", "tcp://127.0.0.1:9")
    fails(worldwarp(*generation(files, *dead, "--overwrite", own_server=False)), "No WorldWarp server answers")
    assert {path: path.read_bytes() for path in (files / "out").rglob("*") if path.is_file()} == before
    fails(worldwarp(*generation(files, *dead, out="new", own_server=False)), "No WorldWarp server answers")
    assert worldwarp(*generation(files, out="new")).returncode == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL to die of")
def test_a_private_server_that_dies_is_an_error_at_once(files: Path) -> None:
    process = subprocess.Popen(
        command(*generation(files, "--prompt", "wait")), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (files / "out" / "job.json").exists() and job_of(files)["state"] == "running")
    (server,) = [p for p in psutil.Process(process.pid).children() if "serve" in p.cmdline()]
    server.kill()
    # At once: for a server that may come back it would wait two minutes.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"Error: The server that was started for this ended unexpectedly \(killed by signal 9\)", errors)
    assert (job_of(files)["state"], job_of(files)["code"]) == ("failed", "server_gone")
    assert not (files / "out" / ".server").exists()


def test_a_corrupt_start_frame_is_one_sentence(files: Path) -> None:
    (files / "start.png").write_bytes((files / "start.png").read_bytes()[:60])
    fails(worldwarp(*generation(files)), r"start\.png")


def test_an_output_that_cannot_be_written_is_one_sentence(files: Path) -> None:
    (files / "out").write_text("a file")
    fails(worldwarp(*generation(files)), "Cannot write into .*out: it is a file")


def test_another_jobs_folder_is_not_mixed_with_this_one(files: Path) -> None:
    JobFolder(files / "out", job_id=JOB, frames=[1], settings={})
    fails(worldwarp(*generation(files)), "--overwrite")
    assert job_of(files)["job_id"] == JOB
    assert worldwarp(*generation(files, "--overwrite")).returncode == 0
    assert job_of(files)["job_id"] != JOB


def test_an_engine_that_fails_keeps_its_frames_and_the_log_that_its_id_is_in(files: Path) -> None:
    done = worldwarp(*generation(files, "--prompt", "fail=5"))
    fails(done, r"Its log is \S+server\.log\.\s+6 of 7 frames are in")
    job = job_of(files)
    assert (job["state"], job["code"]) == ("failed", "engine_failed")
    assert len(list((files / "out" / "frames").iterdir())) == 6
    log = (files / "out" / "server.log").read_text("utf-8")
    assert f"[{job['log_id']}]" in log
    assert "Traceback" in log
    assert (files / "out" / "splats.ply").is_file()
    assert worldwarp(*generation(files, "--overwrite")).returncode == 0
    assert not (files / "out" / "server.log").exists()


def test_a_worker_that_dies_keeps_its_frames(files: Path) -> None:
    fails(worldwarp(*generation(files, "--prompt", "crash=2")), "ended unexpectedly.*3 of 7 frames")
    assert job_of(files)["code"] == "worker_died"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a process alone")
def test_ctrl_c_cancels_the_job_and_keeps_its_frames(files: Path) -> None:
    arguments = command(*generation(files, "--prompt", "slow=0.1 hold=4"))
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list((files / "out" / "frames").glob("frame_*.png"))) >= 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert re.search(r"Error: Cancelled\. \d of 7 frames are in", errors)
    job = job_of(files)
    assert job["state"] == "cancelled"
    assert 2 <= job["frames"]["written"] < 7
    assert job["frames"]["written"] == len(list((files / "out" / "mask").iterdir()))
    assert not (files / "out" / ".server").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a process alone")
def test_a_job_that_was_stopped_goes_on_after_its_last_chunk(files: Path) -> None:
    arguments = generation(files, "--prompt", "hold=6")
    process = subprocess.Popen(command(*arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list((files / "out" / "mask").glob("frame_*.png"))) == 6)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume goes on with it" in errors
    first = files / "out" / "frames" / "frame_-001.png"
    before_ns = first.stat().st_mtime_ns
    done = worldwarp(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert job_of(files)["frames_final"] == 7
    assert first.stat().st_mtime_ns == before_ns, "what was final is not made again"
    assert not (files / "out" / ".server").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL to die of")
def test_a_killed_command_takes_its_server_along(files: Path) -> None:
    process = subprocess.Popen(
        command(*generation(files, "--prompt", "wait")), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    wait_until((files / "out" / ".server" / "address").exists)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL to die of")
@pytest.mark.parametrize("own_server", [True, False])
def test_a_killed_command_goes_on_with_its_job(files: Path, server: RunningServer, go: Path, own_server: bool) -> None:
    more = ["--prompt", f"hold=6 go={go}"] + ([] if own_server else ["--server", server.address])
    process = subprocess.Popen(
        command(*generation(files, *more, own_server=own_server)), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: len(list((files / "out" / "mask").glob("frame_*.png"))) == 6)
    process.kill()
    process.wait()
    go.touch()
    before = {path: path.stat().st_mtime_ns for path in (files / "out" / "frames").iterdir()}
    fails(worldwarp(*generation(files, *more, own_server=own_server)), "another job's files")
    done = worldwarp(*generation(files, *more, "--resume", own_server=own_server))
    assert done.returncode == 0, done.stderr
    assert "7 frames" in done.stdout
    job = job_of(files)
    assert (job["state"], job["frames_final"], job["frames"]["written"]) == ("done", 7, 7)
    first = files / "out" / "frames" / "frame_-001.png"
    assert first.stat().st_mtime_ns == before[first], "what was final is not made again"
    fails(worldwarp(*generation(files, *more, "--resume", own_server=own_server)), "is done")


def test_there_is_nothing_to_go_on_with_in_an_empty_folder(files: Path) -> None:
    fails(worldwarp(*generation(files, "--resume")), "no WorldWarp job")


def test_a_job_whose_server_forgot_it_is_made_anew(files: Path, server: RunningServer) -> None:
    fails(worldwarp(*generation(files, "--prompt", "fail=5")), "unexpected error")
    job = job_of(files)
    assert job["last_seq"] > 8
    more = ["--prompt", "", "--resume", "--server", server.address]
    done = worldwarp(*generation(files, *more, own_server=False))
    assert done.returncode == 0, done.stderr
    assert job_of(files)["job_id"] == job["job_id"]


def test_logs_are_found_by_the_id_that_an_error_shows(files: Path, server: RunningServer) -> None:
    fails(
        worldwarp(*generation(files, "--prompt", "fail=1", "--server", server.address, own_server=False)), "unexpected"
    )
    log_id = job_of(files)["log_id"]
    found = worldwarp("logs", "--id", log_id, "--data-dir", server.data_dir)
    assert "a secret of the inside" in found.stdout
    assert "Traceback" in found.stdout
    of_job = worldwarp("logs", "--job", job_of(files)["job_id"][:8], "--data-dir", server.data_dir)
    assert "a secret of the inside" in of_job.stdout
    fails(worldwarp("logs", "--id", "nowhere", "--data-dir", server.data_dir), "Nothing of the kind")


def test_keys_are_made_listed_and_used_from_the_command_line(files: Path) -> None:
    ring = files / "keys"
    made = worldwarp("keys", "server", "--folder", ring)
    assert made.returncode == 0, made.stderr
    public = re.search(r"--server-public '(.{40})'", made.stdout)
    assert public
    client = worldwarp("keys", "client", "anna", "--server-public", public[1], "--folder", ring)
    allowed = re.search(r"worldwarp keys allow anna '(.{40})'", client.stdout)
    assert allowed, client.stderr
    assert worldwarp("keys", "allow", "anna", allowed[1], "--folder", ring).returncode == 0
    assert worldwarp("keys", "list", "--folder", ring).stdout.strip() == f"{allowed[1]} anna"
    fails(worldwarp("keys", "server", "--folder", ring), "exists")
    serving = command("serve", "--port", 0, "--host", "0.0.0.0", "--keys-dir", ring, "--engine-factory", FAKE_ENGINE)
    with subprocess.Popen(
        [*serving, "--data-dir", files / "jobs", "--ready-file", files / "address", "--until-stdin-closes"],
        env=ENVIRONMENT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_until((files / "address").exists)
        address = (files / "address").read_text().replace("0.0.0.0", "127.0.0.1")
        fails(worldwarp("jobs", "--server", address), "asks for a key")
        listed = worldwarp("jobs", "--server", address, "--key", ring / "anna.key")
        assert "No jobs" in listed.stdout, listed.stderr
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "ssh -N -L"),
        (["--host", "192.168.0.7", "--port", "80"], "tcp://127.0.0.1:80"),
        (["--data-dir", __file__], "Cannot write"),
    ],
)
def test_serve_says_why_it_does_not(arguments: list[str], says: str, tmp_path: Path) -> None:
    if "--data-dir" not in arguments:
        arguments = [*arguments, "--data-dir", str(tmp_path)]
    fails(worldwarp("serve", *arguments), says)


def test_a_second_server_on_a_port_says_so(server: RunningServer, tmp_path: Path) -> None:
    port = server.address.rpartition(":")[2]
    fails(worldwarp("serve", "--port", port, "--data-dir", tmp_path / "other"), "Is a server running there already")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send to a process alone")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_leaves_cleanly_when_it_is_told_to(tmp_path: Path, number: int) -> None:
    arguments = command("serve", "--port", 0, "--data-dir", tmp_path / "jobs", "--engine-factory", FAKE_ENGINE)
    process = subprocess.Popen(
        [*arguments, "--ready-file", tmp_path / "address"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_until((tmp_path / "address").exists)
    process.send_signal(number)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "WorldWarp server stopped" in log
    assert "Traceback" not in log


def test_nobody_to_list_jobs_of_is_one_sentence() -> None:
    fails(worldwarp("jobs", "--server", "tcp://127.0.0.1:9"), "worldwarp serve --port 9")


def test_what_is_made_is_the_servers_engines_unless_one_is_asked_for(
    files: Path, start_server: Callable[..., RunningServer]
) -> None:
    server = start_server(engine="wan")
    done = worldwarp(*generation(files, "--server", server.address, own_server=False))
    assert done.returncode == 0, done.stderr
    assert job_of(files)["settings"]["engine"] == "wan"
    asked = generation(files, "--server", server.address, "--engine", "cache", out="other", own_server=False)
    fails(worldwarp(*asked), "runs the engine 'wan', not 'cache'")


def test_an_old_code_page_costs_no_shot_its_success(files: Path) -> None:
    arguments = command(*generation(files, out="снег"))
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, encoding="cp1252", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "7 frames" in done.stdout


def test_a_message_of_several_lines_is_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    cli._say_error("It is not here. Run:\nworldwarp serve\x1b[31m\n\nand look.")
    assert capsys.readouterr().err == (
        "Error: It is not here. Run:\n       worldwarp serve\N{REPLACEMENT CHARACTER}[31m\n       and look.\n"
    )


def test_the_bar_says_how_much_of_a_job_has_been_sent() -> None:
    with cli._Bar(7) as bar:
        bar.show(Sending(JOB, 2_500_000, 10_000_000))
        (task,) = bar._progress.tasks
        assert (task.description, task.completed) == ("sending, 2.5 of 10.0 MB", 0.25)
        bar.show(StateEvent(job_id=JOB, seq=1, state="queued"))
        assert (task.description, task.completed) == ("waiting for the engine", 0.0)


@pytest.mark.parametrize("group", [[], ["keys"], ["models"], ["train"], ["eval"]])
def test_what_each_command_is_for_fits_its_line(group: list[str]) -> None:
    done = subprocess.run(
        command(*group, "--help"), env=ENVIRONMENT | {"COLUMNS": "80"}, capture_output=True, text=True
    )
    commands = done.stdout.partition("Commands:\n")[2]
    assert commands
    assert "..." not in commands


def test_wrong_usage_is_explained_with_its_own_code(files: Path) -> None:
    done = worldwarp("generate", "--out", files / "out")
    assert done.returncode == 2
    assert "--start-frame" in done.stderr
    assert "Traceback" not in done.stderr
    assert worldwarp("--help").returncode == 0


def test_the_options_have_the_names_that_others_rely_on() -> None:
    text = worldwarp("generate", "--help").stdout
    for name in (
        "--start-frame", "--depth", "--cameras", "--out", "--engine", "--prompt", "--strength", "--chunk", "--overlap",
        "--steps", "--cache-steps", "--seed", "--scene-scale", "--depth-scale", "--depth-model", "--server",
    ):  # fmt: skip
        assert re.search(rf"{name}\b", text), name


def test_cameras_of_a_missing_video_is_one_sentence(tmp_path: Path) -> None:
    fails(worldwarp("cameras", tmp_path / "nowhere.mp4", "--out", tmp_path / "cameras.json"), "nowhere.mp4")


SIZED = ("--frames", "9", "--width", "64", "--height", "36")


def test_presets_make_the_path_that_they_are_named_for(tmp_path: Path) -> None:
    out = tmp_path / "cameras.json"
    arguments = ["--preset", "DOLLY_IN", "--preset", "pan_left", *SIZED, "--fps", "12", "--fov", "40"]
    done = worldwarp("cameras", *arguments, "--distance", "10", "--amount", "0.5", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "9 cameras of 64x36" in done.stdout
    made = read_cameras(out)
    wanted = preset_path(
        ["DOLLY_IN", "PAN_LEFT"], frames=9, fps=12, width=64, height=36, fov_deg=40, distance=10, amount=0.5
    )
    assert (made.fps, made.width, made.height) == (12, 64, 36)
    assert np.allclose(made.c2w, wanted.c2w)
    assert np.allclose(made.K, wanted.K)
    # Half of the usual 40 % of the distance to the pivot, straight ahead.
    assert np.allclose(made.c2w[-1, :3, 3], [0, 2, 0])


def test_a_preset_alone_is_a_path(tmp_path: Path) -> None:
    done = worldwarp("cameras", "--preset", "DOLLY_IN", "--out", tmp_path / "cameras.json")
    assert "49 cameras of 832x480" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a video, or camera moves with --preset; got neither"),
        (["clip.mp4", "--preset", "DOLLY_IN", *SIZED], "got both"),
        (["--preset", "DOLLY_IN", "--width", "64"], "both --width and --height"),
        (["--preset", "FLY", *SIZED], "Unknown camera preset: FLY. Known: DOLLY_IN"),
        (["--preset", "DOLLY_IN", *SIZED, "--distance", "0"], "distance above 0"),
        (["--preset", "DOLLY_IN", *SIZED, "--scene-scale", "3"], "--scene-scale cannot be used with --preset"),
        (["clip.mp4", "--width", "64"], "--width cannot be used with a video"),
        (["--preset", "DOLLY_IN", *SIZED, "--ttt3r", "TTT3R"], "--ttt3r cannot be used with --preset"),
        (["clip.mp4", "--ttt3r", "TTT3R"], "the estimator is pycolmap, not ttt3r"),
        (["clip.mp4", "--estimator", "ttt3r", "--ttt3r", "nowhere"], "no TTT3R in .*nowhere.*forbids commercial use"),
    ],
)
def test_cameras_says_what_it_cannot_use(tmp_path: Path, arguments: list[str], says: str) -> None:
    fails(worldwarp("cameras", *arguments, "--out", tmp_path / "cameras.json"), says)
    assert not (tmp_path / "cameras.json").exists()


def test_serve_says_how_much_it_keeps() -> None:
    assert re.search(r"--keep-gib .*20\.0", worldwarp("serve", "--help").stdout.replace("\n", " "))
    assert worldwarp("serve", "--keep-gib", "-1").returncode == 2
    assert worldwarp("serve", "--metrics-port", "99999").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--executor", "cloud"], "--executor is process or ray; got 'cloud'"),
        (["--ray-workers", "2"], "need --executor ray"),
        (["--executor", "ray", "--gpus", "0"], "Ray chooses the GPUs: --ray-workers"),
    ],
)
def test_serve_says_where_engines_can_run(tmp_path: Path, arguments: list[str], says: str) -> None:
    fails(worldwarp("serve", "--port", "0", "--data-dir", tmp_path / "jobs", *arguments), says)
    assert not (tmp_path / "jobs").exists()
