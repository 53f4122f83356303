"""The benchmark of the decoder's trust in miniature: one run of the sampler, decoded with each trust."""

import json

import pytest

from tests.benchmarks import bench_trust
from tests.support.random_lpips import save_random_lpips
from tests.support.tiny_preview import save_tiny_preview
from tests.support.toy_scenes import ToyScenes
from worldwarp_core.preview.weights import read_network

pytestmark = pytest.mark.usefixtures("one_thread")


def test_more_trust_brings_what_is_known_nearer_to_the_prior(tmp_path, monkeypatch):
    lpips = save_random_lpips(tmp_path)
    monkeypatch.setattr(bench_trust, "HeldOutWorlds", lambda *args, **more: ToyScenes(frames=9))
    weights = save_tiny_preview(tmp_path / "weights")
    bench_trust.main(["--lpips", str(lpips), "--weights", str(weights), "--out", str(tmp_path), "--settle"])
    (file,) = tmp_path.glob("trust_*.json")
    found = json.loads(file.read_text())
    assert [path["name"] for path in found["paths"]] == ["room-0", "room-1"]
    assert read_network(weights, "autoencoder").config["trust"] == found["best"]
    for rows in found["depth"].values():
        known = [rows[f"{trust:g}"]["psnr_valid"] for trust in bench_trust.TRUSTS]
        assert known == sorted(known), "untrained latents are worse than any prior"
        assert known[-1] <= rows["prior_valid"] + 0.1
        assert len({rows[f"{trust:g}"]["lpips"] for trust in bench_trust.TRUSTS}) == len(bench_trust.TRUSTS)


def test_the_least_trust_that_does_is_taken():
    def depth(lpips, known=(30.0,) * 5):
        rows = zip(bench_trust.TRUSTS, lpips, known, strict=True)
        return {"prior_valid": 30.0} | {f"{trust:g}": {"lpips": x, "psnr_valid": db} for trust, x, db in rows}

    exact, bent = depth((0.05, 0.042, 0.0402, 0.04, 0.041)), depth((0.1, 0.1, 0.1, 0.08, 0.1))
    assert bench_trust.best({"exact": exact}) == 2
    assert bench_trust.best({"exact": exact, "bent": bent}) == 3
    keeps = depth((0.05, 0.042, 0.0402, 0.04, 0.041), (29.0, 29.5, 29.8, 29.95, 30.0))
    assert bench_trust.best({"exact": keeps}) == 3, "what is known is kept, too"
    torn = depth((0.04, 0.05, 0.05, 0.05, 0.05), (29.0, 30.0, 30.0, 30.0, 30.0))
    assert bench_trust.best({"exact": torn}) == 0, "where none has both, pictures decide"
