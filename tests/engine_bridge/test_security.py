"""Strangers: who gets in, who does not, what an eavesdropper sees, and whose eyes the key files are for."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine_bridge import codec, keys
from engine_bridge import messages as m
from engine_bridge.client import Client
from engine_bridge.errors import BridgeError
from engine_bridge.keys import ClientKey
from engine_bridge.security import lock_for
from engine_bridge.server import MAX_CONNECTIONS

from .conftest import RunningServer
from .shots import shot
from .talk import Raw, frames, run, until

needs_modes = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
SECRET_PROMPT = "a secret prompt that nobody in between may read"


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    """A folder with a server's key and one allowed client's, anna.key."""
    folder = tmp_path / "keys"
    server = keys.make_server_key(folder)
    anna, _ = keys.make_client_key(folder, "anna", server.public)
    keys.allow_client(folder, "anna", anna.public)
    return folder


@pytest.fixture
def anna(ring: Path) -> ClientKey:
    return keys.read_client_key(ring / "anna.key")


@pytest.fixture
def locked(start_server: Callable[..., RunningServer], ring: Path) -> RunningServer:
    return start_server(keys_dir=ring)


def refusal(address: str, key: ClientKey | None, timeout_s: float = 60.0) -> BridgeError:
    with Client(address, key=key, connect_timeout_s=timeout_s) as client:
        with pytest.raises(BridgeError) as caught:
            client.connect()
        return caught.value


# ---------------------------------------------------------------- who gets in


def test_a_client_on_the_list_gets_in_and_its_jobs_bear_its_name(locked: RunningServer, anna: ClientKey) -> None:
    with Client(locked.address, key=anna) as client:
        assert len(frames(run(client, client.submit(shot())))) == 7
        assert [job.client for job in client.list_jobs()] == ["anna"]


def test_a_client_without_a_key_is_told_to_make_one(locked: RunningServer) -> None:
    error = refusal(locked.address, None)
    assert error.code == "key_refused"
    assert "worldwarp keys client" in error.message


def test_a_client_that_is_not_on_the_list_is_told_what_to_ask_for(locked: RunningServer, ring: Path) -> None:
    server = keys.read_server_key(ring)
    ben, _ = keys.make_client_key(ring / "ben", "ben", server.public)
    error = refusal(locked.address, ben)
    assert error.code == "key_refused"
    assert f"worldwarp keys allow ben '{ben.public}'" in error.message
    keys.allow_client(ring, "ben", ben.public)
    with Client(locked.address, key=ben) as client:
        assert client.connect().engine == "cache"
    keys.forbid_client(ring, "ben")
    assert refusal(locked.address, ben).code == "key_refused"


def test_a_client_that_trusts_another_server_does_not_talk_to_this_one(
    locked: RunningServer, ring: Path, anna: ClientKey
) -> None:
    other = keys.make_server_key(ring / "other")
    fooled = ClientKey("anna", anna.public, anna.secret, other.public)
    assert refusal(locked.address, fooled, timeout_s=1.0).code in ("key_refused", "server_not_running")


def test_a_server_without_keys_is_no_server_for_a_client_with_one(server: RunningServer, anna: ClientKey) -> None:
    assert refusal(server.address, anna, timeout_s=1.0).code in ("key_refused", "server_not_running")


def test_no_byte_of_a_stranger_reaches_the_server(locked: RunningServer) -> None:
    with Raw(locked.address) as raw:
        for _ in range(20):
            raw.say(*codec.encode(m.ListJobs(request_id=1)))
        assert not raw.socket.poll(500)
    with socket.create_connection(("127.0.0.1", int(locked.address.rpartition(":")[2]))) as bare:
        bare.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(500))
        bare.settimeout(2)
        with pytest.raises((ConnectionError, TimeoutError)):  # noqa: PT012
            while bare.recv(1000):
                pass
            raise ConnectionError
    assert locked.server._sessions == {}
    assert locked.is_alive()


def test_a_list_that_is_spoiled_lets_nobody_in(locked: RunningServer, ring: Path, anna: ClientKey) -> None:
    (ring / keys.ALLOWED_FILE).write_text("nonsense\n")
    assert refusal(locked.address, anna).code == "key_refused"
    assert locked.is_alive()


# ---------------------------------------------------------------- who listens in


@contextmanager
def eavesdropper(port: int) -> Iterator[tuple[int, bytearray]]:
    """A proxy on loopback that keeps all that passes: its port, and what it heard."""
    heard = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))
    pipes: list[socket.socket] = []

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                heard.extend(data)
                target.sendall(data)
        except OSError:
            pass

    def accept() -> None:
        try:
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                pipes.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()
        except OSError:
            pass

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], heard
    finally:
        for pipe in (listener, *pipes):
            pipe.close()


@pytest.mark.parametrize("keyed", [True, False])
def test_an_eavesdropper_reads_nothing_of_what_is_said_with_keys(
    start_server: Callable[..., RunningServer], ring: Path, anna: ClientKey, keyed: bool
) -> None:
    server = start_server(keys_dir=ring if keyed else None)
    with eavesdropper(int(server.address.rpartition(":")[2])) as (port, heard):
        with Client(f"tcp://127.0.0.1:{port}", key=anna if keyed else None) as client:
            run(client, client.submit(shot(prompt=SECRET_PROMPT)))
        assert len(heard) > 20_000
        plain = [SECRET_PROMPT.encode(), b"submit", b"frame_event", b"hello", bytes([10] * 64), b"fake engine"]
        # Without keys the same ear hears it all, so the test can fail.
        assert [text in heard for text in plain] == [not keyed] * len(plain)


# ---------------------------------------------------------------- where a server may listen


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5577", "tcp://localhost:1", "tcp://[::1]:80", "tcp://127.8.8.8:*"]
)
def test_loopback_needs_no_key(address: str, ring: Path) -> None:
    assert lock_for(address, None) is None
    assert lock_for(address, ring) is not None


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:5577", "tcp://*:5577", "tcp://192.168.1.4:5577", "tcp://example.org:5577"]
)
def test_any_other_address_needs_keys_and_says_so_with_the_tunnel(address: str, ring: Path) -> None:
    with pytest.raises(BridgeError, match=r"ssh -N -L 5577:127\.0\.0\.1:5577") as caught:
        lock_for(address, None)
    assert caught.value.code == "not_loopback"
    assert "--keys" in caught.value.message
    assert lock_for(address, ring) is not None


@pytest.mark.parametrize("address", ["127.0.0.1:5577", "ipc:///tmp/x", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", ""])
def test_what_is_no_address_is_refused(address: str, ring: Path) -> None:
    for keys_dir in (None, ring):
        with pytest.raises(BridgeError) as caught:
            lock_for(address, keys_dir)
        assert caught.value.code == "bad_address"


def test_a_server_of_all_addresses_is_reached_with_a_key(
    start_server: Callable[..., RunningServer], ring: Path, anna: ClientKey
) -> None:
    server = start_server(address="tcp://0.0.0.0:*", keys_dir=ring)
    port = server.address.rpartition(":")[2]
    with Client(f"tcp://127.0.0.1:{port}", key=anna) as client:
        assert client.connect().engine == "cache"


def test_a_client_without_a_key_does_not_talk_to_another_machine() -> None:
    error = refusal("tcp://192.0.2.1:5577", None)
    assert error.code == "not_loopback"
    assert "ssh -N -L 5577:127.0.0.1:5577 USER@192.0.2.1" in error.message


def test_keys_that_lack_a_part_do_not_open_a_server(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="worldwarp keys server") as caught:
        lock_for("tcp://0.0.0.0:1", tmp_path)
    assert caught.value.code == "bad_keys"
    keys.make_server_key(tmp_path)
    with pytest.raises(BridgeError, match="worldwarp keys allow"):
        lock_for("tcp://0.0.0.0:1", tmp_path)
    (tmp_path / keys.ALLOWED_FILE).touch(mode=0o600)
    with pytest.raises(BridgeError, match="worldwarp keys allow"):
        lock_for("tcp://0.0.0.0:1", tmp_path)


# ---------------------------------------------------------------- files


@needs_modes
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o660])
def test_a_key_that_others_can_read_is_refused(ring: Path, mode: int) -> None:
    for name, read in (
        ("server.key", lambda: keys.read_server_key(ring)),
        ("anna.key", lambda: keys.read_client_key(ring / "anna.key")),
    ):
        (ring / name).chmod(mode)
        with pytest.raises(BridgeError, match=f"mode {mode:o}.*chmod 600") as caught:
            read()
        assert caught.value.code == "bad_keys"


@needs_modes
def test_a_list_that_others_can_change_is_refused(ring: Path) -> None:
    (ring / keys.ALLOWED_FILE).chmod(0o644)
    assert list(keys.read_allowed(ring).values()) == ["anna"]
    (ring / keys.ALLOWED_FILE).chmod(0o664)
    with pytest.raises(BridgeError, match="can change"):
        keys.read_allowed(ring)
    (ring / keys.ALLOWED_FILE).chmod(0o600)
    ring.chmod(0o777)
    with pytest.raises(BridgeError, match="can replace files"):
        keys.read_allowed(ring)


@needs_modes
def test_key_files_are_made_for_their_owners_eyes(ring: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in ring.iterdir()} == {0o600}
    assert ring.stat().st_mode & 0o777 == 0o700


def test_a_key_is_never_written_over(ring: Path) -> None:
    before = (ring / "server.key").read_bytes()
    with pytest.raises(BridgeError) as caught:
        keys.make_server_key(ring)
    assert caught.value.code == "keys_exist"
    assert (ring / "server.key").read_bytes() == before


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a b", ".hidden", "-x", "x" * 65, "a\nb", "a\\b", "é"])
def test_a_name_that_is_no_name_is_refused(ring: Path, name: str) -> None:
    public = keys.read_server_key(ring).public
    before = set(ring.parent.rglob("*"))
    for make in (lambda: keys.make_client_key(ring, name, public), lambda: keys.allow_client(ring, name, public)):
        with pytest.raises(BridgeError) as caught:
            make()
        assert caught.value.code == "bad_keys"
    assert set(ring.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"worldwarp": "server key"}', '{"worldwarp": "client key", "name": 7}', "\0" * 40]
)
def test_a_damaged_key_file_is_refused(ring: Path, content: str) -> None:
    (ring / "anna.key").write_text(content)
    with pytest.raises(BridgeError) as caught:
        keys.read_client_key(ring / "anna.key")
    assert caught.value.code == "bad_keys"


def test_the_list_takes_comments_and_refuses_nonsense(ring: Path, anna: ClientKey) -> None:
    path = ring / keys.ALLOWED_FILE
    path.write_text(f"# all of them\n\n{anna.public} anna # since monday\n")
    path.chmod(0o600)
    assert keys.read_allowed(ring) == {anna.public: "anna"}
    for line in ("short anna", anna.public, f"{anna.public} two names"):
        path.write_text(line)
        with pytest.raises(BridgeError, match=r"[lL]ine 1 "):
            keys.read_allowed(ring)


def test_a_secret_is_not_in_what_is_printed(anna: ClientKey) -> None:
    assert anna.secret not in repr(anna)
    assert anna.secret not in str([anna])


# ---------------------------------------------------------------- limits


def test_one_client_cannot_fill_the_queue(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(max_queued_by_client=2)
    with Client(server.address) as greedy, Client(server.address) as other:
        running = greedy.submit(shot(prompt="wait"))
        until(greedy, m.Progress)
        waiting = [greedy.submit(shot(prompt="wait")) for _ in range(2)]
        until(greedy, m.Accepted, 2)
        with pytest.raises(BridgeError) as caught:
            run(greedy, greedy.submit(shot()))
        assert caught.value.code == "over_limit"
        # The other's job goes first: it has had no turn yet.
        job_id = other.submit(shot())
        until(other, m.Accepted)
        greedy.cancel(running)
        assert run(other, job_id)[-1].state == "done"
        states = {job.job_id: job.state for job in other.list_jobs()}
        assert states[waiting[0]] in ("queued", "running")
        assert states[waiting[1]] == "queued"


def test_connections_have_a_limit_and_who_is_in_stays(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CONNECTIONS >= 1000
    monkeypatch.setattr("engine_bridge.server.MAX_CONNECTIONS", 2)
    with Raw(server.address) as one, Raw(server.address) as two, Raw(server.address) as three:
        assert isinstance(one.hello(), m.Welcome)
        assert isinstance(two.hello(), m.Welcome)
        assert three.hello().code == "over_limit"
        assert isinstance(one.ask(m.ListJobs(request_id=1)), m.Jobs)


def test_subscriptions_have_a_limit(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_bridge.session.MAX_SUBSCRIPTIONS", 1)
    with Client(server.address) as client, Raw(server.address) as raw:
        ids = [client.submit(shot(prompt="wait")), client.submit(shot())]
        until(client, m.Progress)
        raw.hello()
        answers: list[Any] = []
        for job_id in ids:
            raw.say(*codec.encode(m.Subscribe(request_id=7, job_id=job_id, after_seq=0, credit_bytes=0)))
            answers.append(raw.hear())
        assert isinstance(answers[0], m.Subscribed)
        assert (answers[1].code, answers[1].job_id) == ("over_limit", ids[1])
