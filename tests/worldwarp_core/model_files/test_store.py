"""Names on a hub, manifests of what files must be, and what a folder is known by."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.support.fake_hub import FINE_TUNED, WAN
from tests.support.refusals import fails
from worldwarp_core.model_files.manifest import MANIFEST
from worldwarp_core.model_files.store import HubName, hub_name, identity, verify
from worldwarp_core.wan.weights import resolve_models


def test_names_on_the_hub():
    assert hub_name("wan-1.3b") == HubName(WAN)
    assert hub_name("worldwarp@0123abc") == HubName(FINE_TUNED, "0123abc")
    assert str(hub_name("a/b@refs/pr/1")) == "a/b@refs/pr/1"
    assert [hub_name(name) for name in ("a", "a/b/c", "../b", "./b", "/b", "", "a/b@../c", "a/b@-x")] == [None] * 8


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "C:\\x", ""])
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(tmp_path, name):
    entry = {"size": 1, "hash": "sha256:" + "0" * 64}
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 1, "source": {}, "files": {name: entry}}))
    with fails("bad_manifest", "not in its folder"):
        verify(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "source": {}, "files": {"a": 1}}'])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with fails("bad_manifest", "is not a manifest"):
        verify(tmp_path)


def test_a_folder_of_which_nothing_is_known_cannot_be_verified(whole):
    with fails("no_manifest", MANIFEST):
        verify(whole)


def test_the_identity_of_a_folder_changes_with_its_files_and_not_with_a_manifest(whole, tmp_path):
    wan = shutil.copytree(whole, tmp_path / "wan")
    before = identity(wan / "vae")
    assert resolve_models(str(wan)).text_identity == resolve_models(str(wan)).text_identity
    (wan / "vae" / MANIFEST).write_text("{}")
    assert identity(wan / "vae") == before
    (wan / "vae" / "config.json").write_bytes((wan / "vae" / "config.json").read_bytes() + b"\n")
    assert identity(wan / "vae") != before


def test_the_registry_needs_no_torch():
    code = "import sys, worldwarp_core.model_files.store; assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
