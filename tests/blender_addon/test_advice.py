"""What an artist reads when something goes wrong: what it is, and what to do about it in Blender."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable
from pathlib import Path

import bpy
import pytest

from blender_addon import session
from blender_addon.advice import HERE, INSTEAD, in_words
from blender_addon.server_facts import ask
from engine_bridge import codec, keys
from engine_bridge import messages as m
from engine_bridge.errors import CODES, BridgeError, disk_errors
from engine_bridge.keys import read_client_key
from worldwarp_core.errors import WorldWarpError

pytestmark = pytest.mark.usefixtures("addon")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def generate(address: str, out: Path, prompt: str = "") -> str:
    """Presses Generate; returns what the panel then says."""
    bpy.context.scene.worldwarp.prompt = prompt
    with pytest.raises(RuntimeError):
        bpy.ops.worldwarp.generate(address=address, directory=str(out))
    return session.status().error


def test_a_server_that_does_not_run() -> None:
    said = in_words(raised(lambda: ask(f"tcp://127.0.0.1:{free_port()}", timeout_s=0.3)))
    assert "No WorldWarp server answers" in said
    assert "start one from the add-on's preferences" in said


def test_a_start_picture_without_depth(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    said = generate(server, tmp_path / "shot", "refuse")
    assert "Give a depth map under Start Frame" in said
    assert "--depth FILE" not in said


def test_an_engine_that_fails(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    said = generate(server, tmp_path / "shot", "fail=2")
    assert "The server's log has the details under" in said
    assert "Resume goes on from there" in said


def test_a_server_whose_disk_is_full(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    said = generate(server, tmp_path / "shot", "full=2")
    assert "No space is left on the disk" in said
    assert "press Resume" in said


def test_a_folder_that_holds_another_shot(scene: bpy.types.Scene, server: str, tmp_path: Path) -> None:
    bpy.ops.worldwarp.generate(address=server, directory=str(tmp_path / "shot"))
    said = generate(server, tmp_path / "shot")
    assert "holds another job's files" in said
    assert "Choose another folder" in said


def test_a_server_on_another_machine_without_leave_to_go_online(scene: bpy.types.Scene, tmp_path: Path) -> None:
    if bpy.app.online_access:
        pytest.skip("this Blender is allowed to go online")
    assert "Allow Online Access" in generate("tcp://render.example.com:5577", tmp_path / "shot")


def raised(work: Callable[[], object]) -> WorldWarpError:
    with pytest.raises(WorldWarpError) as caught:
        work()
    return caught.value


def another_version() -> None:
    hello = codec.encode(
        m.Hello(request_id=0, protocol_version=m.PROTOCOL_VERSION, client="c", client_id="0" * 32, version="1")
    )
    older = [bytes(hello[0]).replace(bytes([m.PROTOCOL_VERSION]), bytes([m.PROTOCOL_VERSION - 1]))]
    codec.decode(older, m.ClientMessage)


def full_disk() -> None:
    with disk_errors(Path("film")):
        raise OSError(errno.ENOSPC, "No space left on device")


def open_key(folder: Path) -> None:
    _, file = keys.make_client_key(folder, "anna", keys.make_server_key(folder).public)
    file.chmod(0o644)
    read_client_key(file)


@pytest.mark.parametrize(
    ("work", "what", "to_do"),
    [
        (another_version, "The client speaks protocol", "update the client (in Blender: the WorldWarp extension)"),
        (full_disk, "No space is left on the disk", "press Resume"),
        (lambda: read_client_key(Path("nowhere")), "There is no key file", "chosen in the add-on's preferences"),
    ],
    ids=["protocol", "disk", "key"],
)
def test_other_failures_say_what_and_what_to_do(work: Callable[[], object], what: str, to_do: str) -> None:
    said = in_words(raised(work))
    assert what in said
    assert to_do in said


def test_a_key_file_that_others_can_read(tmp_path: Path) -> None:
    said = in_words(raised(lambda: open_key(tmp_path / "keys")))
    assert "chmod" in said or "permissions" in said or "others" in said
    assert "add-on's preferences" in said


def test_advice_is_of_codes_that_there_are_and_in_whole_sentences() -> None:
    of_the_core = {"no_depth", "no_weights", "out_of_memory"}
    assert {*HERE, *INSTEAD} <= {*CODES, *of_the_core}
    for words in (*HERE.values(), *INSTEAD.values()):
        assert re.fullmatch(r"[A-Z].*\.", words), words
    assert in_words(BridgeError("queue_full", "Too many.")).startswith("Too many. ")
    assert in_words(WorldWarpError("bad_settings", "Steps must be at least 1.")) == "Steps must be at least 1."
