"""A model hub on loopback: a real HTTP server that answers what huggingface_hub asks, from folders of files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from huggingface_hub import constants

WAN, FINE_TUNED = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "imsuperkong/worldwarp"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".ckpt")
"""What a hub keeps as large files, which it states the SHA-256 of; of the others it states git's hash."""


class FakeHub:
    """Serves folders as models.

    Attributes:
        repos: folder by `owner/name`.
        spoiled: by path in a repository, how often from now on it is served with one byte changed.
        requests: method and path of everything that was asked.
    """

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos, self.spoiled, self.requests = repos, {}, []
        self.url = ""

    def fetched(self) -> list[str]:
        """Paths of the files that were sent, in the order asked for."""
        return [path.partition(f"/resolve/{COMMIT}/")[2] for method, path in self.requests if method == "GET"
                and "/resolve/" in path]  # fmt: skip


@contextmanager
def fake_hub(repos: dict[str, Path]) -> Iterator[FakeHub]:
    """Yields a hub that runs until the block ends; its address is `url`."""
    hub = FakeHub(repos)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            hub.requests.append((self.command, path))
            for repo, folder in hub.repos.items():
                if path == f"/api/models/{repo}/revision/main":
                    return self.send({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [], "tags": []}, body)
                if path == f"/api/models/{repo}/tree/{COMMIT}":
                    return self.send([_entry(file, folder) for file in _files(folder)], body)
                if path.startswith(f"/{repo}/resolve/"):
                    name = path.removeprefix(f"/{repo}/resolve/").partition("/")[2]
                    if (folder / name).is_file():
                        return self.send_file(folder, name, body)
            return self.send({"error": "Repository not found"}, body, 404, {"X-Error-Code": "RepoNotFound"})

        def send_file(self, folder: Path, name: str, body: bool) -> None:
            content = (folder / name).read_bytes()
            entry = _entry(folder / name, folder)
            if body and hub.spoiled.get(name, 0) > 0:
                hub.spoiled[name] -= 1
                content = content[:-1] + bytes([content[-1] ^ 1])
            etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self.send(content, body, 200, headers)

        def send(self, content: object, body: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing: the tests look at `requests`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(monkeypatch: Any, url: str, home: Path) -> None:
    """Has huggingface_hub, in this process, ask the hub at `url` and keep everything under `home`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def git_sha1(content: bytes) -> str:
    """What git names a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(file: Path, folder: Path) -> dict:
    content = file.read_bytes()
    entry = {
        "type": "file",
        "path": file.relative_to(folder).as_posix(),
        "size": len(content),
        "oid": git_sha1(content),
    }
    if file.suffix in LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
