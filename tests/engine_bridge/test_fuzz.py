"""The short versions of `bench_bridge.py --only fuzz`, and everything that once went wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import psutil
import pytest

from engine_bridge.client import Client

from .conftest import RunningServer
from .fuzzing import CORPUS, corpus, examples, fuzz_codec, fuzz_coverage, fuzz_socket, noise, try_message
from .shots import shot
from .talk import run


def test_noise_is_messages_or_typed_refusals() -> None:
    assert fuzz_codec(3000, seed=11) == []


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.msg")), ids=lambda path: path.stem)
def test_what_once_went_wrong_stays_right(path: Path) -> None:
    assert try_message(corpus()[sorted(CORPUS.glob("*.msg")).index(path)]) == ""


def test_the_noise_is_worth_its_name() -> None:
    """Neither all refused at the door, nor all let through."""
    source = noise(5)
    seen = [next(source) for _ in range(500)]
    assert len({tuple(parts) for parts in seen}) > 450
    assert sum(len(parts) > 1 for parts in seen) > 50
    assert all(try_message(parts) == "" for parts in examples())


def test_a_failure_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("a fault of ours")

    monkeypatch.setattr("engine_bridge.codec._open_header", broken)
    assert try_message(examples()[0]) == "IndexError: a fault of ours"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="no coverage-guided fuzzer here")
def test_the_coverage_guided_fuzzer_finds_nothing_in_a_moment() -> None:
    tried, failures = fuzz_coverage(300, count=10_000)
    assert tried >= 10_000
    assert failures == 0


def test_a_server_outlives_noise_at_its_socket(server: RunningServer) -> None:
    before = psutil.Process().memory_info().rss
    assert fuzz_socket(server.address, 1500, seed=3) == 1500
    assert psutil.Process().memory_info().rss - before < 100e6
    with Client(server.address) as client:
        assert run(client, client.submit(shot()))[-1].state == "done"
