"""Cameras by TTT3R, against a stand-in checkout: a demo.py that writes its files from known poses and never returns."""

import itertools
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest

from worldwarp_core.cameras.path import BLENDER_FRONT, preset_path
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.tracking import ttt3r
from worldwarp_core.tracking.video import cameras_from_video

FRAMES = 9
SAMPLED = [0, 2, 4, 6, 8]
MEDIAN_DEPTH = 0.8
SCENE_SCALE = 4.0
FOCAL_PX = 400.0  # of images 512 pixels long
TRUTH = preset_path(
    ["TRUCK_RIGHT", "PAN_LEFT"], frames=FRAMES, fps=12, width=320, height=180, fov_deg=65.0, distance=SCENE_SCALE
)

DEMO = """
import argparse, io, os, subprocess, sys, time
import numpy as np

parser = argparse.ArgumentParser()
for name in ("model_path", "seq_path", "output_dir", "model_update_type", "device"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--size", type=int, required=True)
asked = parser.parse_args()
assert os.path.isfile(asked.model_path) and asked.model_update_type == "ttt3r" and asked.size == 512
images = sorted(os.listdir(asked.seq_path))
assert images == [f"{index:06d}.png" for index in np.load("sampled.npy")], images
poses = np.load("poses.npy")
viewer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open("pids.txt", "w") as file:
    file.write(f"{os.getpid()} {viewer.pid}")
for folder in ("camera", "depth"):
    os.makedirs(os.path.join(asked.output_dir, folder))
K = np.array([[400, 0, 256], [0, 400, 144], [0, 0, 1]], np.float32)
rng = np.random.default_rng(0)
for index, pose in enumerate(poses):
    depth = rng.permutation(np.linspace(0.3, 1.3, 288 * 512)).reshape(288, 512).astype(np.float32)
    depth[:9] = np.nan
    np.save(os.path.join(asked.output_dir, "depth", f"{index:06d}.npy"), depth * (1 if index == 0 else 3))
    whole = io.BytesIO()
    np.savez(whole, pose=pose, intrinsics=K)
    with open(os.path.join(asked.output_dir, "camera", f"{index:06d}.npz"), "wb") as file:
        file.write(whole.getvalue()[:300])
        file.flush()
        if index == len(poses) - 1:
            time.sleep(0.5)  # half of the last file for many polls
        file.write(whole.getvalue()[300:])
print("Launching point cloud viewer...")
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(ttt3r, "POLL_S", 0.05)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("video") / "flight.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for shade in range(FRAMES):
            pixels = np.full((180, 320, 3), 20 * shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A stand-in whose world is turned, shifted and smaller than the truth's, in single precision."""
    folder = tmp_path / "TTT3R"
    (folder / "src").mkdir(parents=True)
    (folder / ttt3r.CHECKPOINT).write_bytes(b"weights")
    (folder / "demo.py").write_text(DEMO, "utf-8")
    poses = np.linalg.inv(BLENDER_FRONT) @ TRUTH.c2w[SAMPLED]
    poses[:, :3, 3] = poses[:, :3, 3] * MEDIAN_DEPTH / SCENE_SCALE + [3.0, -2.0, 1.0]
    np.save(folder / "poses.npy", poses.astype(np.float32))
    np.save(folder / "sampled.npy", SAMPLED)
    return folder


def demo_of(checkout: Path, text: str) -> None:
    (checkout / "demo.py").write_text(text, "utf-8")


def changed(checkout: Path, old: str, new: str) -> None:
    assert DEMO.count(old) == 1
    demo_of(checkout, DEMO.replace(old, new))


def solved(video: Path, checkout: Path, **options):
    return cameras_from_video(
        video,
        frames=5,
        estimator="ttt3r",
        scene_scale=SCENE_SCALE,
        ttt3r=checkout,
        ttt3r_python=sys.executable,
        **options,
    )


def refused(code: str, match: str, video: Path, checkout: Path, **options) -> None:
    with pytest.raises(WorldWarpError, match=match) as caught:
        solved(video, checkout, **options)
    assert caught.value.code == code


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_all_gone(checkout: Path) -> None:
    """The program and the viewer that it started; what a killed parent leaves is a moment in going."""
    pids = [int(word) for word in (checkout / "pids.txt").read_text().split()]
    assert len(pids) == 2
    until = time.monotonic() + 120
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def test_the_path_comes_back_and_the_program_is_gone(video, checkout):
    heard = []
    found = solved(video, checkout, progress=lambda what, share: heard.append((what, share)))
    assert_all_gone(checkout)
    cameras = found.cameras
    assert (cameras.width, cameras.height, cameras.fps) == (320, 180, 12.0)
    assert cameras.frames.tolist() == list(range(1, FRAMES + 1))
    assert (found.registered, found.sampled) == (5, 5)
    # Single precision, and half a percent of the median for the rows of depth that are not known.
    np.testing.assert_allclose(cameras.c2w[SAMPLED], TRUTH.c2w[SAMPLED], atol=5e-3)
    np.testing.assert_allclose(cameras.c2w, TRUTH.c2w, atol=2e-2)
    np.testing.assert_allclose(cameras.K[:, [0, 1], [0, 1]], FOCAL_PX * 320 / 512)
    np.testing.assert_allclose(cameras.K[:, :2, 2], [[160, 90]] * FRAMES)
    assert [notice.code for notice in found.notices] == ["video_scale", "video_lens", "ttt3r_licence"]
    assert "forbids commercial use" in found.notices[-1].message
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert "running TTT3R" in {what for what, _ in heard}


def test_a_known_lens_is_kept_and_it_is_said_that_ttt3r_did_not_know_it(video, checkout):
    found = solved(video, checkout, fov_deg=65.0)
    np.testing.assert_allclose(found.cameras.K, TRUTH.K)
    assert [notice.code for notice in found.notices] == ["video_scale", "ttt3r_licence", "ttt3r_lens"]


def test_files_that_are_whole_count_though_the_viewer_fails(video, checkout):
    changed(checkout, 'print("Launching point cloud viewer...")', 'raise SystemExit("no port")')
    assert solved(video, checkout).registered == 5
    assert_all_gone(checkout)


def test_an_early_end_shows_the_end_of_the_log(video, checkout):
    demo_of(checkout, "for line in range(50): print('line', line)\nraise RuntimeError('CUDA out of memory')")
    refused("no_cameras", r"exit code 1(.|\n)*line 49\n(.|\n)*CUDA out of memory$", video, checkout)
    with pytest.raises(WorldWarpError) as caught:
        solved(video, checkout)
    assert "line 9\n" not in caught.value.message, "the end alone"


def test_one_that_hangs_is_ended(video, checkout, monkeypatch):
    asleep, hours = checkout / "asleep", itertools.count(1)

    def clock():
        """Stands still until the program has fallen asleep, however long it takes to start; then it runs away."""
        return 3600.0 * next(hours) if asleep.exists() else 0.0

    monkeypatch.setattr(ttt3r, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    falls_asleep = 'print("asleep")\nopen("asleep", "w").close()\ntime.sleep(600)\nfor folder in ():'
    changed(checkout, 'for folder in ("camera", "depth"):', falls_asleep)
    refused("no_cameras", r"did nothing for .* minutes(.|\n)*asleep$", video, checkout)
    assert_all_gone(checkout)


def test_what_the_progress_callback_raises_ends_the_program(video, checkout):
    def cancel(what: str, _share: float) -> None:
        if what == "running TTT3R" and (checkout / "pids.txt").exists() and (checkout / "pids.txt").stat().st_size:
            raise InterruptedError("cancelled")

    with pytest.raises(InterruptedError):
        solved(video, checkout, progress=cancel)
    assert_all_gone(checkout)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("np.savez(whole, pose=pose,", "np.savez(whole, pose=pose[:3],", r"a pose of shape \(3, 4\)"),
        ("np.savez(whole, pose=pose,", "np.savez(whole, pose=2 * pose,", "poses that"),
        ("np.savez(whole, pose=pose,", "np.savez(whole, pose=pose * [1, 1, -1, 1],", "poses that do not rotate"),
        ("np.savez(whole, pose=pose,", "np.savez(whole, pose=pose * np.nan,", "poses that are not finite"),
        ("np.savez(whole, pose=pose,", "np.savez(whole, c2w=pose,", "a camera without its pose"),
        ("K = np.array([[400,", "K = np.array([[-400,", "focal lengths"),
        ("depth[:9] = np.nan", "depth[:] = np.nan", "no depth"),
        ("depth[:9] = np.nan", "depth = depth[:, :300]", r"depth maps of shapes \[\(288, 300\)\]"),
    ],
)
def test_files_that_are_not_what_the_public_version_writes_are_refused(video, checkout, old, new, says):
    changed(checkout, old, new)
    refused("no_cameras", says, video, checkout)
    assert_all_gone(checkout)


def test_a_pickle_is_not_opened(video, checkout):
    """It counts as a file that is not whole, so the program's end tells."""
    changed(checkout, "np.savez(whole, pose=pose,", "np.savez(whole, pose=np.array([pose, None], object),")
    demo_of(checkout, (checkout / "demo.py").read_text().replace("time.sleep(600)\n", "viewer.kill()\n"))
    refused("no_cameras", "before it had placed all frames", video, checkout)


def test_what_is_missing_is_named_with_where_to_get_it(video, checkout, tmp_path):
    way_out = r".*github\.com/Inception3D/TTT3R.*forbids commercial use.*pycolmap"
    refused("not_installed", "it has no demo.py" + way_out, video, tmp_path)
    (checkout / ttt3r.CHECKPOINT).unlink()
    refused("not_installed", "weights are not at .*cut3r_512_dpt_4_64.pth" + way_out, video, checkout)


def test_a_python_that_is_not_there_is_named(checkout):
    with pytest.raises(WorldWarpError, match="no Python at nowhere/python") as caught:
        ttt3r.find_checkout(checkout, "nowhere/python")
    assert caught.value.code == "not_installed"
