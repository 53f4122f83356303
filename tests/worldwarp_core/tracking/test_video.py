"""Cameras from a video that we film ourselves, so that the truth is known: a textured room, ray-cast in NumPy."""

import builtins
import socket
import threading

import av
import numpy as np
import pytest

from worldwarp_core.cameras.path import CameraPath, preset_path, vector_from_rotation
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.tracking import video as from_video
from worldwarp_core.tracking.video import cameras_from_video

# Imported before any test runs: where a test draws with Mesa first, pycolmap would take some of the C++ library's
# functions from there and some from its own copy, and abort.
pytest.importorskip("pycolmap", reason="needs pycolmap (the `video` extra)")

ROOM = np.array([[-3.0, -3.0, -1.5], [3.0, 5.0, 1.5]])


def textures(seed: int = 0) -> np.ndarray:
    """(6, 512, 512) in [0, 1]: a sum of noise at several sizes for each wall, as features need."""
    rng = np.random.default_rng(seed)
    octaves = [np.kron(rng.random((6, 512 // size, 512 // size)), np.ones((1, size, size))) for size in (4, 8, 16, 32)]
    return np.mean(octaves, axis=0)


def filmed(path: CameraPath) -> np.ndarray:
    """(T, H, W, 3) uint8 of the room's six textured walls, seen from inside."""
    walls = textures()
    pixels = np.stack(np.meshgrid(np.arange(path.width) + 0.5, np.arange(path.height) + 0.5), -1)
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], -1)
    frames = []
    for K, c2w in zip(path.K, path.c2w, strict=True):
        ray = homogeneous @ np.linalg.inv(K).T @ c2w[:3, :3].T
        with np.errstate(divide="ignore"):
            reach = (ROOM[(ray > 0).astype(int), [0, 1, 2]] - c2w[:3, 3]) / ray
        axis = reach.argmin(-1)
        hit = c2w[:3, 3] + ray * reach.min(-1, keepdims=True)
        side = np.take_along_axis(ray > 0, axis[..., None], -1)[..., 0]
        # The two coordinates along the wall, 64 texels a unit.
        along = np.stack(
            [np.where(axis == 0, hit[..., 1], hit[..., 0]), np.where(axis == 2, hit[..., 1], hit[..., 2])], -1
        )
        texel = ((along + 4) * 64).astype(int) % 512
        grey = walls[axis + 3 * side, texel[..., 0], texel[..., 1]]
        frames.append(np.uint8(255 * grey)[..., None].repeat(3, -1))
    return np.stack(frames)


def write_video(path, frames: np.ndarray, rate: int = 12) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.bit_rate = 8_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


TRUTH = preset_path(
    ["TRUCK_RIGHT", "PAN_LEFT", "PEDESTAL_UP", "DOLLY_IN"],
    frames=20,
    fps=12,
    width=320,
    height=240,
    fov_deg=65.0,
    distance=4.0,
)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    file = tmp_path_factory.mktemp("video") / "flight.mp4"
    write_video(file, filmed(TRUTH))
    return file


@pytest.fixture(scope="module")
def found(video):
    pytest.importorskip("pycolmap", reason="pycolmap is the extra `video`")
    heard = []
    result = cameras_from_video(video, frames=7, progress=lambda what, share: heard.append((what, share)))
    return result, heard


def relative(path: CameraPath) -> np.ndarray:
    return path.w2c[0] @ path.c2w


def test_every_frame_gets_a_camera_turned_as_it_was_filmed(found):
    cameras = found[0].cameras
    assert (cameras.width, cameras.height, cameras.fps) == (320, 240, 12.0)
    assert cameras.frames.tolist() == list(range(1, 21))
    error = relative(cameras)[:, :3, :3].transpose(0, 2, 1) @ relative(TRUTH)[:, :3, :3]
    worst_deg = np.degrees(np.linalg.norm(vector_from_rotation(error), axis=1)).max()
    assert worst_deg < 1.0


def test_the_camera_moves_as_it_was_filmed_up_to_one_scale(found):
    ours, truth = relative(found[0].cameras)[:, :3, 3], relative(TRUTH)[:, :3, 3]
    scale = (ours * truth).sum() / (ours * ours).sum()
    assert np.linalg.norm(scale * ours - truth, axis=1).max() < 0.03 * np.linalg.norm(truth[-1])


def test_the_focal_length_is_found(found):
    np.testing.assert_allclose(found[0].cameras.K[:, [0, 1], [0, 1]], TRUTH.K[0, 0, 0], rtol=0.03)


def test_the_first_camera_stands_level_at_the_origin_and_the_scale_is_as_said(found):
    result, _ = found
    np.testing.assert_allclose(result.cameras.c2w[0], TRUTH.c2w[0], atol=1e-9)
    (notice,) = [notice for notice in result.notices if notice.code == "video_scale"]
    assert "5 units" in notice.message
    # The median of the matched points of frame 1, which are not spread like its pixels, and mostly on the far wall.
    ours, truth = relative(result.cameras)[-1, :3, 3], relative(TRUTH)[-1, :3, 3]
    true_median_depth = 5.0 * np.linalg.norm(truth) / np.linalg.norm(ours)
    assert 2.0 < true_median_depth < 1.03 * 5.0, "the room is 5 deep, its near walls are 3 away, and we are 3% off"


def test_progress_only_goes_forward_and_ends_whole(found):
    shares = [share for _, share in found[1]]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {"reading the video", "looking for features", "matching", "placing cameras"} <= {
        what for what, _ in found[1]
    }


def test_it_says_how_many_frames_were_placed(found):
    assert found[0].sampled == 7
    assert found[0].registered == 7
    assert [notice.code for notice in found[0].notices] == ["video_scale", "video_lens"]


def test_a_dolly_does_not_tell_its_lens_and_says_so(tmp_path):
    pytest.importorskip("pycolmap", reason="pycolmap is the extra `video`")
    truth = preset_path("DOLLY_IN", frames=5, fps=12, width=320, height=240, fov_deg=65.0, distance=4.0)
    write_video(tmp_path / "dolly.mp4", filmed(truth))
    result = cameras_from_video(tmp_path / "dolly.mp4")
    assert [notice.code for notice in result.notices] == ["video_scale", "video_lens_guessed"]
    ours = relative(result.cameras)
    assert np.degrees(np.linalg.norm(vector_from_rotation(ours[:, :3, :3]), axis=1)).max() < 1.5
    assert ours[-1, 2, 3] / np.linalg.norm(ours[-1, :3, 3]) > 0.99, "it went straight on"


def test_a_known_lens_is_kept_and_neighbours_alone_are_matched_in_long_films(video, monkeypatch):
    pytest.importorskip("pycolmap", reason="pycolmap is the extra `video`")
    monkeypatch.setattr(from_video, "EXHAUSTIVE_UP_TO", 0)
    result = cameras_from_video(video, frames=5, fov_deg=65.0, scene_scale=80.0)
    np.testing.assert_allclose(result.cameras.K, TRUTH.K)
    error = relative(result.cameras)[:, :3, :3].transpose(0, 2, 1) @ relative(TRUTH)[:, :3, :3]
    assert np.degrees(np.linalg.norm(vector_from_rotation(error), axis=1)).max() < 1.0
    assert [notice.code for notice in result.notices] == ["video_scale"]
    assert "80 units" in result.notices[0].message


def test_frames_that_were_not_placed_are_named_and_interpolated():
    film = from_video._Film(9, 12.0, 64, 48, np.array([0, 2, 4, 6, 8]), 64, 48)
    path = preset_path("TRUCK_RIGHT", frames=9, distance=5.0)
    solved = from_video._Solved(np.array([0, 4, 6]), path.c2w[[0, 4, 6]], 50.0, 5.0, True)
    (_, lost) = from_video._notices(film, solved, 5.0, 65.0)
    assert lost.code == "frames_not_placed"
    assert "2 of 5" in lost.message
    assert lost.message.endswith("3, 9.")
    cameras = from_video._blender_path(film, solved, 5.0)
    np.testing.assert_allclose(cameras.c2w[:7], path.c2w[:7], atol=1e-12)
    np.testing.assert_allclose(cameras.c2w[7:], path.c2w[[6, 6]], atol=1e-12)


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_a_film_held_upright_is_read_upright(tmp_path, monkeypatch, rotation, turns):
    from PIL import Image

    frames = filmed(TRUTH[:3])
    write_video(tmp_path / "flight.mp4", frames)
    decoded = from_video._decoded

    class Turned:
        """A decoded frame with the display matrix of a phone; FFmpeg's muxers offer no way to write one here."""

        def __init__(self, frame):
            self.width, self.height, self.to_ndarray, self.rotation = (
                frame.width,
                frame.height,
                frame.to_ndarray,
                rotation,
            )

    def turned(*arguments, **options):
        for index, frame, rate, aspect in decoded(*arguments, **options):
            yield index, frame if options else Turned(frame), rate, aspect

    monkeypatch.setattr(from_video, "_decoded", turned)
    film = from_video._sample_frames(tmp_path / "flight.mp4", tmp_path / "images", 3, lambda *_: None)
    assert (film.width, film.height) == ((240, 320) if turns % 2 else (320, 240))
    image = np.asarray(Image.open(tmp_path / "images" / "000000.png")).astype(int)
    assert np.abs(image - np.rot90(frames[0], turns)).mean() < 8


def refused(code, match, *arguments, **options):
    with pytest.raises(WorldWarpError, match=match) as caught:
        cameras_from_video(*arguments, **options)
    assert caught.value.code == code


def test_a_camera_that_stays_or_only_turns_is_refused_with_what_to_do(tmp_path):
    pytest.importorskip("pycolmap", reason="pycolmap is the extra `video`")
    write_video(tmp_path / "still.mp4", filmed(TRUTH[:1]).repeat(3, 0))
    refused("no_cameras", "The camera must move", tmp_path / "still.mp4")
    pan = preset_path("PAN_LEFT", frames=4, width=320, height=240, fov_deg=65.0)
    write_video(tmp_path / "pan.mp4", filmed(pan))
    refused("no_cameras", "turning on the spot", tmp_path / "pan.mp4")


def test_bad_videos_are_refused(tmp_path, video):
    pytest.importorskip("pycolmap", reason="pycolmap is the extra `video`")
    refused("bad_video", "There is no video", tmp_path / "gone.mp4")
    (tmp_path / "letter.mp4").write_text("a letter")
    refused("bad_video", "cannot be decoded", tmp_path / "letter.mp4")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:5000])
    refused("bad_video", "cannot be decoded", tmp_path / "cut.mp4")
    write_video(tmp_path / "short.mp4", filmed(TRUTH[:2]))
    refused("bad_video", "it has 2 frames", tmp_path / "short.mp4")


def test_a_playlist_in_a_videos_clothing_reaches_no_network(tmp_path):
    pytest.importorskip("pycolmap", reason="pycolmap is the extra `video`")
    callers = []

    def hang_up_on_everyone():
        while not callers or callers[-1] != ourselves:
            caller, address = server.accept()
            callers.append(address)
            caller.close()

    # Who calls is heard in turn: after us, who call last, nobody is left unheard.
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as last:
        last.bind(("127.0.0.1", 0))
        ourselves = last.getsockname()
        listener = threading.Thread(target=hang_up_on_everyone, daemon=True)
        listener.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/flight.ts"
        (tmp_path / "flight.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(WorldWarpError):
            cameras_from_video(tmp_path / "flight.m3u8")
        last.connect(server.getsockname())
        listener.join()
    assert callers == [ourselves]


def test_bad_settings_are_refused(video):
    refused("bad_settings", "Unknown camera estimator 'guess'. Known: pycolmap, ttt3r", video, estimator="guess")
    refused("bad_settings", "3 frames or more", video, frames=2)
    refused("bad_settings", "field of view", video, fov_deg=0.0)
    refused("bad_settings", "scene scale", video, scene_scale=float("nan"))


def test_ttt3r_without_its_folder_is_refused_with_its_licence_and_a_way_out(video):
    refused("not_installed", r"github\.com.*forbids commercial use.*pycolmap", video, estimator="ttt3r")
    refused("bad_settings", "the estimator is pycolmap, not ttt3r", video, ttt3r="TTT3R")


def test_without_pycolmap_the_command_that_installs_it_is_named(video, monkeypatch):
    real_import = builtins.__import__

    def without(name, *arguments, **options):
        if name == "pycolmap":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    refused("not_installed", r"pip install .*\[video\]", video)
