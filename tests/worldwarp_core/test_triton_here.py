import pytest
import torch

from worldwarp_core import engine, triton_here
from worldwarp_core.triton_here import why_no_triton


@pytest.fixture(autouse=True)
def not_tried_yet():
    why_no_triton.cache_clear()
    yield
    why_no_triton.cache_clear()


def test_kernels_are_tried_on_the_machine_itself():
    missing = why_no_triton()
    assert (missing is None) == torch.cuda.is_available(), missing


def test_a_machine_without_triton_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(triton_here, "find_spec", lambda name: None)
    assert "pip install triton" in why_no_triton()


def test_a_compiler_that_fails_is_quoted_with_what_it_lacks(monkeypatch):
    kernels = pytest.importorskip("worldwarp_core.triton_probe", reason="Triton comes with CUDA builds of torch")

    def fail(*_):
        raise RuntimeError("gcc: Python.h: No such file or directory\ncompilation terminated")

    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device, **options: ones(*shape, **options))
    monkeypatch.setattr(kernels, "double", fail)
    missing = why_no_triton()
    assert "Python.h: No such file or directory)" in missing
    assert "python3-dev" in missing


def test_a_full_memory_is_no_missing_compiler(monkeypatch):
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(torch.OutOfMemoryError):
        why_no_triton()


def test_every_job_on_a_gpu_without_its_kernels_says_so(monkeypatch):
    monkeypatch.setattr(engine, "_why_no_cuda", lambda: None)

    def said(fit, kernels):
        monkeypatch.setattr(engine, "why_not_captured", lambda: fit)
        monkeypatch.setattr(engine, "why_no_triton", lambda: kernels)
        return [notice.message for notice in engine.make_engine("cache", "cuda", None, {}).notices]

    assert said(None, None) == []
    [old_gpu] = said("The GPU is older than Ampere", None)
    assert "four times" in old_gpu
    assert "video model" not in old_gpu
    [no_triton] = said("Triton is not installed", "Triton is not installed")
    assert "video model" in no_triton
