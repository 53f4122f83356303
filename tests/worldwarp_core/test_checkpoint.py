"""Saved states: every bit comes back, and what is damaged or foreign is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worldwarp_core.checkpoint import DTYPES, Checkpoint, join, read_checkpoint, write_checkpoint
from worldwarp_core.errors import WorldWarpError

RNG = np.random.default_rng(0)


def example() -> Checkpoint:
    arrays = {name: RNG.integers(0, 2, (3, 4)).astype(name) for name in DTYPES}
    arrays |= {"nothing": np.zeros((0, 4), np.float32), "one": np.float64(np.pi).reshape(())}
    facts = {"rng": {"state": 2**127 + 1}, "names": ["a", "ж"], "third": 1 / 3}
    return Checkpoint(7, "made", 49, arrays, facts)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    sent = example()
    write_checkpoint(tmp_path / "a.npz", sent)
    got = read_checkpoint(tmp_path / "a.npz")
    assert (got.chunk, got.stage, got.frames, got.facts) == (7, "made", 49, sent.facts)
    assert set(got.arrays) == set(sent.arrays)
    for name, array in sent.arrays.items():
        assert got.arrays[name].dtype == array.dtype
        assert got.arrays[name].shape == array.shape
        assert got.arrays[name].tobytes() == array.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_that_is_not_whole_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.npz", example())
    content = (tmp_path / "a.npz").read_bytes()
    for end in range(0, len(content), 97):
        (tmp_path / "a.npz").write_bytes(content[:end])
        with pytest.raises(WorldWarpError, match="cannot be read") as caught:
            read_checkpoint(tmp_path / "a.npz")
        assert caught.value.code == "bad_checkpoint"


def test_a_changed_byte_of_an_array_is_noticed(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.int64)
    write_checkpoint(tmp_path / "a.npz", Checkpoint(0, "fitted", 0, {"array": array}))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(array.tobytes()) + 4000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(WorldWarpError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.npz")


@pytest.mark.parametrize("array", [np.array([{"a": 1}], dtype=object), np.array(["text"])])
def test_what_is_no_number_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", array=array, __facts__=np.frombuffer(b'{"format": 1}', np.uint8))
    with pytest.raises(WorldWarpError) as caught:
        read_checkpoint(tmp_path / "a.npz")
    assert caught.value.code == "bad_checkpoint"


def test_another_version_is_refused_in_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", __facts__=np.frombuffer(b'{"format": 99}', np.uint8))
    with pytest.raises(WorldWarpError, match="of version 99"):
        read_checkpoint(tmp_path / "a.npz")


def test_what_is_laid_over_replaces_what_it_names_and_no_more() -> None:
    fitted = Checkpoint(1, "fitted", 10, {"a": np.zeros(1), "b": np.zeros(2)}, {"x": 1, "y": 2})
    made = Checkpoint(2, "made", 20, {"b": np.ones(3)}, {"y": 3})
    both = join([fitted, made])
    assert (both.chunk, both.stage, both.frames, both.facts) == (2, "made", 20, {"x": 1, "y": 3})
    assert both.arrays["a"] is fitted.arrays["a"]
    assert both.arrays["b"] is made.arrays["b"]
    with pytest.raises(AssertionError):
        join([made])
