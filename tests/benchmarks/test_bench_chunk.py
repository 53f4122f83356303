"""The benchmark of whole chunks in miniature: GPU time is too short to find out there that it does not run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import bench_cache_gpu, bench_chunk
from tests.benchmarks.bench_chunk import Bench, Part, parts, run
from tests.benchmarks.wan_shot import REAL, TINY
from worldwarp_core.splats import raster_triton, step_triton

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


def record_of(path):
    return json.loads(path.read_text())


def test_all_that_one_gpu_measures_fits_into_half_an_hour():
    every = parts(REAL, 1)
    assert [part.name for part in every][:8] == [f"budget {b}" for b in (12, 8, 16, 24, 40, 80)] + ["fast", "fit"]
    assert sum(part.guess_s for part in every) < 1700
    assert sum(part.guess_s for part in parts(REAL, 2)) < 1700
    assert all(part.lacks({}) for gpus in (1, 2, 4) for part in parts(REAL, gpus))


def test_it_measures_what_is_asked_for_and_then_goes_on_with_what_is_lacking(tmp_path, capsys):
    out, models = tmp_path / "chunk.json", tmp_path / "models"
    arguments = ["--tiny", "--out", str(out), "--models", str(models)]
    bench_chunk.main([*arguments, "--only", "budget 12", "fast", "fit", "shapes"])
    assert "FAILED" not in capsys.readouterr().out
    record = record_of(out)
    assert len(record["presets"]["fast"]["chunks"]) == TINY.repeats["fast"]
    assert record["fast_s"] == record["presets"]["fast"]["seconds"] > 0
    assert {"cache_first_s", "captures", "kernels_compiled"} < set(record["presets"]["fast"]["chunks"][0])
    assert record["budgets"]["12"]["fell_back"] == []
    assert record["fit"]["spread_s"] == [record["cache_500_steps_s"]]
    assert record["reference_s"] is None
    assert record["not_measured"]["reference_s"] == "parts: reference"

    bench_chunk.main([*arguments, "--plan"])
    planned = capsys.readouterr().out
    for name in ("budget 12", "fast", "fit", "shapes"):
        assert f"{name}: about" not in planned
    for name in ("budget 8", "balanced", "reference", "fallback"):
        assert f"{name}: about" in planned

    bench_chunk.main([*arguments, "--only", "reference", "fallback"])
    assert "FAILED" not in capsys.readouterr().out
    record = record_of(out)
    assert record["fast_s"] > 0, "what was measured before stays"
    assert set(record["deviation_db"]) == {"fast"}
    assert record["out_of_memory"]["chunks_made"] == 2
    assert "reference_s" not in record["not_measured"]


def test_two_processes_are_measured_against_one(tmp_path):
    out = tmp_path / "chunk.json"
    command = [sys.executable, "tests/benchmarks/bench_chunk.py", "--tiny", "--gpus", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FAILED" not in done.stdout, done.stderr[-2000:]
    record = record_of(out)
    assert set(record["gpus_2"]) == {"alone", "together"}
    expected = record["gpus_2"]["alone"]["seconds"] / record["gpus_2"]["together"]["seconds"]
    assert record["speedup_2_gpus"] == pytest.approx(expected, abs=1e-3)


def test_a_part_that_fails_costs_the_others_nothing_and_none_is_begun_without_time(tmp_path, capsys):
    begun = []

    def fail(bench):
        begun.append("fails")
        raise RuntimeError("the GPU is gone")

    bench = Bench(REAL, tmp_path, tmp_path / "out.json", time.monotonic() + 100)
    chosen = [
        Part("fails", 10, lambda record: True, fail),
        Part("too long", 1000, lambda record: True, lambda bench: begun.append("too long")),
        Part("short", 10, lambda record: True, lambda bench: begun.append("short")),
    ]
    run(bench, chosen)
    said = capsys.readouterr()
    assert begun == ["fails", "short"]
    assert "FAILED: fails" in said.out
    assert "the GPU is gone" in said.err
    assert "not begun" in said.out


def test_a_speed_up_is_only_told_of_one_kind_of_gpu(tmp_path, monkeypatch):
    bench = Bench(TINY, tmp_path, tmp_path / "out.json", time.monotonic() + 100)
    rows = {"seconds": 3.0, "measured": {"gpu": "H100", "commit": "a"}}
    bench.merge({"gpus_2": {"alone": rows}})
    monkeypatch.setattr(bench_chunk.Shot, "__init__", lambda self, *a, **k: None)
    monkeypatch.setattr(bench_chunk.Shot, "make", lambda self: self)
    monkeypatch.setattr(Bench, "engine", lambda self, *a: None)
    for gpu, speedup in (("H200", None), ("H100", 1.5)):
        row = {"seconds": 2.0, "measured": {"gpu": gpu, "commit": "a"}}
        monkeypatch.setattr(bench_chunk, "_summary", lambda bench, shot, row=row: row)
        bench_chunk.measure_shared(bench, gpus=2, on=2)
        assert record_of(bench.out)["speedup_2_gpus"] == speedup


def test_the_real_results_are_not_written_from_a_miniature(capsys):
    with pytest.raises(SystemExit):
        bench_chunk.main(["--tiny"])
    assert "--out FILE" in capsys.readouterr().err


def test_every_shape_names_constants_that_there_are_and_puts_them_back():
    for constants in bench_cache_gpu.SHAPES.values():
        before = [getattr(m, name, None) for m in (step_triton, raster_triton) for name in constants]
        with bench_cache_gpu._changed(constants):
            for name, value in constants.items():
                assert value in (getattr(step_triton, name, None), getattr(raster_triton, name, None))
        assert before == [getattr(m, name, None) for m in (step_triton, raster_triton) for name in constants]


def test_kernels_that_triton_compiles_are_counted():
    triton = pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")
    before = bench_chunk.counted()["kernels_compiled"]
    with bench_chunk.watching():
        triton.knobs.runtime.jit_post_compile_hook(key="k", repr="r", fn=None, compile=None, already_compiled=False)
    assert bench_chunk.counted()["kernels_compiled"] == before + 1
    assert triton.knobs.runtime.jit_post_compile_hook is None
