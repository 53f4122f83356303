"""`worldwarp demo` once through its real parts, small; and the ways in which it does not start."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from engine_bridge import demo
from engine_bridge.png_writer import encode_png
from engine_bridge.private_server import OwnServer
from worldwarp_core.cameras.files import read_cameras
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.pictures.exr import write_depth_exr
from worldwarp_core.splat_files.ply import read_ply

HAS_BPY = importlib.util.find_spec("bpy") is not None
HAS_ENGINE = all(importlib.util.find_spec(name) is not None for name in ("torch", "numba", "cv2"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small demo's folder, and what was printed."""
    if not HAS_BPY or not HAS_ENGINE:
        pytest.skip("needs Blender as a Python module and the engine (the `blender` and `engine` extras)")
    out, said = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    settings = demo.DemoSettings(width=96, height=54, frames=7, cache_steps=10)
    demo.run(out, settings=settings, console=Console(file=said, width=200))
    return out, said.getvalue()


def test_the_demo_leaves_everything_whole(made):
    out, _ = made
    for i in range(1, 8):
        with Image.open(out / "frames" / f"frame_{i:04d}.png") as frame:
            assert (frame.size, frame.mode) == ((96, 54), "RGB")
        with Image.open(out / "mask" / f"frame_{i:04d}.png") as mask:
            assert (mask.size, mask.mode) == ((96, 54), "L")
        assert (out / "depth" / f"frame_{i:04d}.exr").stat().st_size > 0
    with av.open(str(out / "preview.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 7
    assert Image.open(out / "contact_sheet.png").size[0] > 96
    job = json.loads((out / "job.json").read_text("utf-8"))
    assert (job["state"], job["settings"]["cache_steps"]) == ("done", 10)


def test_the_world_stands_where_the_camera_looks(made):
    out, _ = made
    cloud, cameras = read_ply(out / "splats.ply"), read_cameras(out / "cameras.json")
    w2c = np.linalg.inv(cameras.c2w[0])
    near = cloud.means[~cloud.sky & (cloud.source_frames == 1)] @ w2c[:3, :3].T + w2c[:3, 3]
    pixels = near @ cameras.K[0].T
    u, v = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
    assert ((near[:, 2] > 0) & (u > -5) & (u < 101) & (v > -5) & (v < 59)).mean() > 0.95


def test_it_prints_what_it_made_and_where(made):
    out, said = made
    assert str(out) in said
    for name in ("frames", "splats.ply", "preview.mp4", "contact_sheet.png", "scene.blend", "job.json"):
        assert name in said
    assert "rendering the start frame" in said


def test_an_earlier_demo_is_replaced_and_nothing_else_is(made, tmp_path):
    out, _ = made
    kept = out / "notes.txt"
    kept.write_text("mine")
    demo.make_room(out)
    assert kept.read_text() == "mine"
    assert not list((out / "frames").glob("*.png"))
    assert not (out / "scene.blend").exists()


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WorldWarpError, match=r"not empty.*choose another --out") as refused:
        demo.make_room(tmp_path)
    assert refused.value.code == "folder_in_use"
    assert (tmp_path / "thesis.txt").exists()


def test_without_blender_the_message_is_the_command_that_gets_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorldWarpError) as refused:
        demo.run(tmp_path / "out")
    assert refused.value.code == "no_blender"
    assert 'pip install -c constraints.txt -e ".[engine,blender]"' in refused.value.message
    assert not (tmp_path / "out").exists()


def test_a_blender_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WorldWarpError, match=r"There is no Blender at .*nowhere"):
        demo.run(tmp_path / "out", blender=tmp_path / "nowhere")


def stand_in(folder: Path, before: str = "") -> Path:
    """A script that takes Blender's options and runs the expression in this Python, after `before`."""
    script = folder / "blender"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "assert sys.argv[1:3] == ['--background', '--factory-startup'], sys.argv\n"
        f"{before}\n"
        "exec(sys.argv[sys.argv.index('--python-expr') + 1])\n"
    )
    script.chmod(0o755)
    return script


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Blender's executable is a script")
def test_a_blender_of_another_python_is_refused_before_anything_is_made(tmp_path):
    blender = stand_in(tmp_path, "print('Blender 5.1.0'); sys.version_info = (3, 99, 0)")
    with pytest.raises(WorldWarpError, match=r"has Python 3\.99 .* Make an environment with Python 3\.99") as refused:
        demo.run(tmp_path / "out", blender=blender)
    assert refused.value.code == "wrong_python"
    assert str(blender) in refused.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Blender's executable is a script")
@pytest.mark.parametrize(("before", "says"), [("sys.exit('no display')", "no display"), ("sys.exit(3)", "exit code 3")])
def test_what_does_not_run_as_a_blender_is_named(tmp_path, before, says):
    with pytest.raises(WorldWarpError, match=f"does not run as a Blender.*{says}") as refused:
        demo.run(tmp_path / "out", blender=stand_in(tmp_path, before))
    assert refused.value.code == "no_blender"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Blender's executable is a script")
@pytest.mark.skipif(not HAS_BPY, reason="needs Blender as a Python module (the `blender` extra)")
def test_an_installed_blender_runs_the_add_ons_half(tmp_path):
    command, environment = demo.blender_command(stand_in(tmp_path))
    said = subprocess.run([*command, "--help"], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "--report" in said.stdout


@pytest.mark.parametrize("settings", [{"frames": 0}, {"width": 8}])
def test_a_size_that_cannot_be_is_refused(settings):
    with pytest.raises(WorldWarpError, match="at least one frame of 16x16"):
        demo.DemoSettings(**settings)


def blender_that(code: str) -> list[str]:
    """A stand-in for Blender: a Python that runs `code` with the report's path in `report`."""
    return [sys.executable, "-c", f"import sys, json; report = sys.argv[1]; {code}"]


@pytest.fixture
def a_server(tmp_path):
    """A stand-in for the server: a process that lives until the test ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (tmp_path / "server.log").write_text("listening\nout of memory\n")
        yield OwnServer("tcp://127.0.0.1:9", process, tmp_path / "server.log")
        process.kill()


@pytest.fixture
def flown(tmp_path, a_server):
    """Runs `fly` with a stand-in; returns what the bar printed."""

    def fly(code: str) -> str:
        said, report = io.StringIO(), tmp_path / "report.jsonl"
        with demo.Bar(Console(file=said, width=200)) as bar:
            demo.fly([*blender_that(code), str(report)], {}, report, tmp_path, bar, a_server)
        return said.getvalue()

    return fly


def test_a_server_that_dies_ends_the_demo_at_once(flown, a_server):
    a_server.process.kill()
    a_server.process.wait()
    started_s = time.monotonic()
    with pytest.raises(WorldWarpError, match=r"ended unexpectedly .* out of memory") as failed:
        flown("import time; time.sleep(300)")
    assert failed.value.code == "server_gone"
    assert time.monotonic() - started_s < 60


def test_what_blender_reports_is_shown(flown):
    lines = [
        {"kind": "step", "what": "painting"},
        {"kind": "progress", "stage": "gpu", "fraction": 0.0, "eta_s": None},
        {"kind": "notice", "message": "it rains"},
        {"kind": "done"},
    ]
    said = flown(f"open(report, 'w').write({chr(10).join(map(json.dumps, lines)) + chr(10)!r})")
    assert "painting" in said
    assert "waiting for the GPU" in said
    assert "it rains" in said


def test_a_blender_that_fails_says_why(flown, tmp_path):
    line = json.dumps({"kind": "error", "code": "no_camera", "message": "The scene has no camera."}) + "\n"
    with pytest.raises(WorldWarpError, match="no camera") as failed:
        flown(f"open(report, 'w').write({line!r}); sys.exit(1)")
    assert failed.value.code == "no_camera"
    assert str(tmp_path) in failed.value.message


def test_a_blender_that_dies_without_a_word_leaves_its_last_lines(flown):
    with pytest.raises(WorldWarpError, match=r"exit code 7[^$]*Segmentation fault") as failed:
        flown("print('Segmentation fault', flush=True); sys.exit(7)")
    assert failed.value.code == "demo_failed"


def test_a_line_that_is_half_written_waits_for_its_end(tmp_path):
    file = tmp_path / "report.jsonl"
    report = demo.Report(file)
    assert report.new() == []
    file.write_bytes(b'{"kind": "a"}\n{"kin')
    assert report.new() == [{"kind": "a"}]
    assert report.new() == []
    with file.open("ab") as more:
        more.write(b'd": "b"}\n')
    assert report.new() == [{"kind": "b"}]


@pytest.mark.parametrize(
    "lost", ["frames/frame_0003.png", "depth/frame_0002.exr", "splats.ply", "scene.blend", "contact_sheet.png"]
)
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "not what it is called"])
def test_a_demo_that_lacks_something_is_not_whole(tmp_path, lost, how):
    png = encode_png(np.zeros((4, 4, 3), np.uint8))
    for kind, suffix in demo.KINDS.items():
        (tmp_path / kind).mkdir()
        for i in range(1, 4):
            path = tmp_path / kind / f"frame_{i:04d}{suffix}"
            if suffix == ".png":
                path.write_bytes(png)
            else:
                write_depth_exr(path, np.ones((4, 4), np.float32))
    for name in ("splats.ply", "preview.mp4", "scene.blend"):
        (tmp_path / name).write_text("x" * 10)
    (tmp_path / "contact_sheet.png").write_bytes(png)
    (tmp_path / "job.json").write_text('{"job_id": "1", "state": "done", "splats": {"size_bytes": 10}}')
    assert "scene.blend" in demo.check_whole(tmp_path, 3)
    path = tmp_path / lost
    if how == "gone":
        path.unlink()
    else:
        # Of a .blend no more is known than that it is not empty, of an EXR no more than how it starts.
        cut = 0 if how == "empty" or path.suffix == ".blend" else 3
        path.write_bytes(path.read_bytes()[:cut] if how != "not what it is called" or not cut else b"<html></html>")
    with pytest.raises(WorldWarpError, match=re.escape(str(Path(lost)))):
        demo.check_whole(tmp_path, 3)


def test_the_servers_log_is_kept_however_the_demo_ends(tmp_path):
    scratch, logs = tmp_path / "scratch", tmp_path / "logs"
    scratch.mkdir()
    logs.mkdir()
    (scratch / "server.log").write_text("out of memory")
    with pytest.raises(KeyboardInterrupt), demo.log_kept(scratch, logs):
        raise KeyboardInterrupt
    assert (logs / "server.log").read_text() == "out of memory"
