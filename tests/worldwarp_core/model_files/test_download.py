"""Models from a hub: what comes is checked, kept and converted, and what goes wrong is said with what to do."""

import shutil

import pytest
import torch
from huggingface_hub import constants

from tests.support.fake_hub import COMMIT, FINE_TUNED, WAN
from tests.support.refusals import fails
from tests.support.tiny_wan import assert_same, tiny_transformer
from worldwarp_core.model_files.download import download
from worldwarp_core.model_files.manifest import MANIFEST, read_manifest
from worldwarp_core.model_files.store import HubName, hub_name, locate, manifest_beside_cache, verify
from worldwarp_core.wan.weights import load_text_encoder, load_transformer, load_vae, resolve_models

SINGLE = "diffusion_pytorch_model.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_downloaded_models_are_checked_converted_and_found_without_a_network(hub):
    told = []
    folder = download(hub_name("wan-1.3b"), lambda what, share: told.append((what.split()[0], share)))
    assert not (folder / "README.md").exists()
    assert not (folder / "vae" / "old.bin").exists()
    assert ("fetching", 1.0) in told
    assert ("verifying", 1.0) in told
    assert all(0 <= share <= 1 for _, share in told)
    converted = download(hub_name("worldwarp"))
    assert read_manifest(converted / MANIFEST).source["source"] == "worldwarp_latest.ckpt"
    hub.requests.clear()
    files = resolve_models("wan-1.3b", "worldwarp")
    assert hub.requests == []
    assert (files.base, files.transformer) == (folder, converted)
    assert_same(load_transformer(files, torch.float32), tiny_transformer(7).to(torch.bfloat16).float())
    load_vae(files)
    load_text_encoder(files)
    assert verify(folder).faults == verify(converted).faults == ()


def test_a_second_download_fetches_nothing(hub):
    for name in ("wan-1.3b", "worldwarp"):
        first = download(hub_name(name))
        fetched = len(hub.fetched())
        assert download(hub_name(name)) == first
        assert len(hub.fetched()) == fetched > 0


def test_a_file_that_comes_changed_is_fetched_again(hub):
    hub.spoiled[f"vae/{SINGLE}"] = 1
    folder = download(hub_name("wan-1.3b"))
    assert hub.fetched().count(f"vae/{SINGLE}") == 2
    assert verify(folder).faults == ()


def test_a_file_that_always_comes_changed_is_refused(hub):
    hub.spoiled["transformer/config.json"] = 9
    with fails("bad_weights", "transformer/config.json", "hash that the Hub states"):
        download(hub_name("wan-1.3b"))


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_byte_that_changes_on_the_disk_is_found_and_a_download_repairs_it(hub, with_manifest):
    folder = download(hub_name("wan-1.3b"))
    if not with_manifest:  # what another program has fetched: the cache names files by their hashes
        manifest_beside_cache(HubName(WAN), COMMIT).unlink()
    assert verify(folder).checked == 16
    broken = (folder / "vae" / SINGLE).resolve()
    data = bytearray(broken.read_bytes())
    data[-9] ^= 4
    broken.write_bytes(data)
    (found,) = verify(folder).faults
    assert found.startswith(f"vae/{SINGLE} hashes to sha256:")
    download(hub_name("wan-1.3b"))
    assert verify(folder).faults == ()


def test_a_converted_folder_that_has_been_damaged_is_converted_again(hub):
    folder = download(hub_name("worldwarp"))
    (folder / SINGLE).write_bytes(b"")
    assert [fault.split()[0] for fault in verify(folder).faults] == [SINGLE]
    assert download(hub_name("worldwarp")) == folder
    assert verify(folder).faults == ()


def test_a_snapshot_with_a_file_missing_is_not_taken_for_whole(hub):
    folder = download(hub_name("wan-1.3b"))
    (folder / "text_encoder" / "model-00002-of-00003.safetensors").unlink()
    with fails("no_weights", "worldwarp models download wan-1.3b"):
        resolve_models("wan-1.3b")


class Planted:
    """A pickle of this writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_published_checkpoint_with_code_in_it_is_refused_and_not_run(hub, tmp_path):
    torch.save({"a": Planted(tmp_path / "was run")}, hub.repos[FINE_TUNED] / "worldwarp_latest.ckpt")
    with fails("unsafe_checkpoint", "nothing of it was run"):
        download(hub_name("worldwarp"))
    assert not (tmp_path / "was run").exists()
    with fails("no_weights", "worldwarp models download worldwarp"):
        locate("worldwarp", what="the transformer")


def test_without_a_connection_a_download_says_what_to_do(no_hub):
    with fails("download_failed", "ConnectError", "worldwarp models download wan-1.3b", "copy the model's folder"):
        download(hub_name("wan-1.3b"))


def test_offline_mode_is_named(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with fails("download_failed", "HF_HUB_OFFLINE is set"):
        download(hub_name("wan-1.3b"))


def test_a_name_that_the_hub_does_not_know_is_said_so(hub):
    with fails("download_failed", "The Hub knows no someone/else"):
        download(hub_name("someone/else"))


def test_a_model_that_does_not_fit_the_disk_is_not_begun(hub, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with fails("disk_full", "HF_HOME"):
        download(hub_name("wan-1.3b"))
    assert hub.fetched() == []
