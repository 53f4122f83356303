"""`worldwarp models` and `worldwarp convert` against a hub on loopback, with a cache of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from engine_bridge.cli import main
from tests.support.fake_hub import COMMIT, FakeHub, fake_hub, use_hub
from tests.support.tiny_wan import save_tiny_wan, tiny_transformer

ROOT = Path(__file__).resolve().parents[2]
WAN, FINE_TUNED = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "imsuperkong/worldwarp"

Run = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the hub has: the base model and a fine-tuned checkpoint."""
    folder = tmp_path_factory.mktemp("published")
    save_tiny_wan(folder / "wan")
    (folder / "worldwarp").mkdir()
    torch.save(tiny_transformer(7).to(torch.bfloat16).state_dict(), folder / "worldwarp" / "worldwarp_latest.ckpt")
    return {WAN: folder / "wan", FINE_TUNED: folder / "worldwarp"}


@pytest.fixture
def hub(published: dict[str, Path]) -> Iterator[FakeHub]:
    with fake_hub(published) as served:
        yield served


@pytest.fixture
def worldwarp(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process, with an empty cache."""
    use_hub(monkeypatch, hub.url, tmp_path / "hf")

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["worldwarp", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=left.value.code, stdout=said.out, stderr=said.err)

    return run


def fails(done: SimpleNamespace, *says: str) -> None:
    """Checks for one error that says all of these, no traceback, and exit code 1."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("Error: ") == 1, done.stderr
    assert re.search("(?s)Error: .*" + ".*".join(says), done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_says_which_hub_and_where_models_are_kept(hub: FakeHub, tmp_path: Path) -> None:
    settings = {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "engine_bridge.cli", "models", "download", "wan-1.3b"]
    for endpoint, code, says in (("http://127.0.0.1:9", 1, "ConnectError"), (hub.url, 0, str(tmp_path / "hf"))):
        environment = {**os.environ, **settings, "HF_ENDPOINT": endpoint}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        assert says in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert "it/s" not in done.stderr  # the hub's own bars stay silent: there is one progress bar


def test_from_nothing_to_verified_weights_and_a_damaged_file(
    worldwarp: Run, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of a user's way: list, download both, list again, verify, find damage, repair it."""
    listed = worldwarp("models")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count(" no ") == 6
    assert "not stated by its authors" in re.sub(r"[│\s]+", " ", listed.stdout)
    assert hub.requests == []

    fails(worldwarp("models", "verify", "wan-1.3b"), "Run: worldwarp models download wan-1.3b")
    fetched = worldwarp("models", "download", "wan-1.3b")
    assert fetched.returncode == 0, fetched.stderr
    assert "Licence of Wan-AI/Wan2.1-T2V-1.3B-Diffusers: Apache-2.0" in fetched.stderr
    assert COMMIT in fetched.stdout
    assert worldwarp("models", "download", "worldwarp").returncode == 0

    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    listed = worldwarp("models")
    assert listed.stdout.count(" yes ") == 2
    assert f"converted-{COMMIT}" in listed.stdout
    verified = worldwarp("models", "verify")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.count("as they should be") == 3
    assert hub.requests == []

    (broken,) = (tmp_path / "hf" / "hub").rglob("vae/diffusion_pytorch_model.safetensors")
    data = bytearray(broken.read_bytes())
    data[-1] ^= 1
    broken.resolve().write_bytes(data)
    found = worldwarp("models", "verify", "wan-1.3b")
    fails(found, "Not every file", "Run: worldwarp models download wan-1.3b")
    assert "vae/diffusion_pytorch_model.safetensors hashes to" in found.stdout
    fails(worldwarp("models", "download", "wan-1.3b"), "HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert worldwarp("models", "download", "wan-1.3b").returncode == 0
    assert worldwarp("models", "verify", "wan-1.3b").returncode == 0


def test_a_checkpoint_is_converted_and_what_came_out_verified(
    worldwarp: Run, published: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, out = published[FINE_TUNED] / "worldwarp_latest.ckpt", tmp_path / "out"
    fails(worldwarp("convert", checkpoint, out), "Run: worldwarp models download wan-1.3b")
    done = worldwarp("convert", checkpoint, out, "--base", published[WAN])
    assert done.returncode == 0, done.stderr
    assert f"are in {out}." in done.stdout
    assert worldwarp("models", "verify", out).returncode == 0
    fails(worldwarp("convert", checkpoint, out, "--base", published[WAN]), "is there already")
    (out / "config.json").write_text("{}")
    fails(worldwarp("models", "verify", out), "Copy or convert the folder again")


class Planted:
    """A pickle of this makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_checkpoint_with_code_in_it_is_refused(worldwarp: Run, published: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"state_dict": Planted(tmp_path / "was run")}, tmp_path / "x.ckpt")
    done = worldwarp("convert", tmp_path / "x.ckpt", tmp_path / "out", "--base", published[WAN])
    fails(done, "holds more than tensors", "nothing of it was run")
    assert not (tmp_path / "was run").exists()
    assert not (tmp_path / "out").exists()


def test_mistakes_are_sentences(worldwarp: Run, tmp_path: Path) -> None:
    fails(worldwarp("models", "download", "nope"), "no model called 'nope'", "wan-1.3b")
    fails(worldwarp("models", "download", "someone/else"), "The Hub knows no someone/else")
    fails(worldwarp("models", "verify", tmp_path), "Nothing says what the files in")
    fails(worldwarp("convert", tmp_path / "no.ckpt", tmp_path / "out", "--base", tmp_path / "config.json"), "config")
    nothing = worldwarp("models", "verify")
    assert nothing.returncode == 0
    assert "No model is here" in nothing.stdout


def test_listing_models_needs_no_torch() -> None:
    code = "import sys, engine_bridge.cli_models; assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
