"""Wan in miniature: whole on the disk, and published on a hub.

What makes it is imported where it is made: most tests here need no model and do not wait for the libraries.
"""

import shutil

import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from tests.support.tiny_wan import save_tiny_wan

    return save_tiny_wan(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """An empty cache, and a hub that is not there."""
    from tests.support.fake_hub import use_hub

    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hf")


@pytest.fixture
def hub(whole, tmp_path, monkeypatch):
    """A hub with the base model and a fine-tuned checkpoint, and an empty cache."""
    import torch

    from tests.support.fake_hub import FINE_TUNED, WAN, fake_hub, use_hub
    from tests.support.tiny_wan import tiny_transformer

    (tmp_path / "published").mkdir()
    torch.save(tiny_transformer(7).to(torch.bfloat16).state_dict(), tmp_path / "published" / "worldwarp_latest.ckpt")
    base = shutil.copytree(whole, tmp_path / "base")
    (base / "README.md").write_text("# Wan")
    (base / "vae" / "old.bin").write_bytes(b"a pickle")
    with fake_hub({WAN: base, FINE_TUNED: tmp_path / "published"}) as served:
        use_hub(monkeypatch, served.url, tmp_path / "hf")
        yield served
