"""A loop that was cut off anywhere goes on to the same frames and the same world, bit for bit (on the CPU)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import room
from worldwarp_core.api import load_engine
from worldwarp_core.checkpoint import Checkpoint, join, read_checkpoint, write_checkpoint
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.spec import CacheUpdate, Finished, Frame, GenerateSpec, Progress

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def engine():
    # The order of sums, and with it the last bit, depends on the number of threads.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_engine("cache", device="cpu")
    torch.set_num_threads(threads)


def spec(**settings: Any) -> GenerateSpec:
    cameras = room.truck(20, width=WIDTH, height=HEIGHT)
    rgb, depth = room.render(cameras, 0)
    return GenerateSpec(cameras, rgb, depth, **{"chunk": 9, "overlap": 5, "cache_steps": 6, "seed": 3, **settings})


@pytest.fixture(scope="module")
def events(engine):
    return list(engine.generate(spec()))


def of(kind: type, events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def rows(events: list[Any]) -> list[list[Checkpoint]]:
    """What would have been saved at each checkpoint."""
    found: list[list[Checkpoint]] = []
    for checkpoint in of(Checkpoint, events):
        found.append([checkpoint] if checkpoint.stage == "fitted" else [*found[-1], checkpoint])
    return found


def same_cloud(a: Any, b: Any) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_the_state_is_given_after_each_fit_and_after_each_chunks_frames(events):
    given = [(c.chunk, c.stage, c.frames) for c in of(Checkpoint, events)]
    assert given == [
        (0, "fitted", 0), (0, "made", 9), (0, "fitted", 9), (1, "made", 13), (1, "fitted", 13),
        (2, "made", 17), (2, "fitted", 17), (3, "made", 20),
    ]  # fmt: skip
    assert "fitted" not in [type(event) for event in events[events.index(of(Finished, events)[0]) :]]


@pytest.mark.parametrize("at", range(8))
def test_it_goes_on_bit_for_bit_from_any_state(engine, events, at, tmp_path: Path):
    row = rows(events)[at]
    for number, checkpoint in enumerate(row):
        write_checkpoint(tmp_path / f"{number}.npz", checkpoint)
    saved = join([read_checkpoint(tmp_path / f"{number}.npz") for number in range(len(row))])
    again = list(engine.generate(spec(), saved))
    expected = [frame for frame in of(Frame, events) if frame.index >= saved.frames]
    made = of(Frame, again)
    assert [frame.index for frame in made] == [frame.index for frame in expected]
    for new, old in zip(made, expected, strict=True):
        assert (new.number, new.chunk) == (old.number, old.chunk)
        for name in ("rgb", "depth", "validity"):
            assert np.array_equal(getattr(new, name), getattr(old, name)), (new.index, name)
    assert same_cloud(of(CacheUpdate, again)[-1].splats, of(CacheUpdate, events)[-1].splats)
    assert of(Progress, again)[-1].fraction == 1.0
    left = [(c.chunk, c.stage) for c in of(Checkpoint, again)]
    assert left == [(c.chunk, c.stage) for c in of(Checkpoint, events)][at + 1 :]


def test_giving_its_state_changes_nothing_that_is_made(engine, events):
    assert len(of(Frame, events)) == 20
    other = list(engine.generate(spec(seed=4)))
    assert not same_cloud(of(CacheUpdate, other)[-1].splats, of(CacheUpdate, events)[-1].splats)


@pytest.mark.parametrize("change", [{"seed": 4}, {"chunk": 13}])
def test_a_state_of_another_shot_is_refused(engine, events, change):
    with pytest.raises(WorldWarpError, match="does not fit this shot") as caught:
        list(engine.generate(spec(**change), join(rows(events)[2])))
    assert caught.value.code == "bad_checkpoint"


@pytest.mark.parametrize("missing", ["random", "gaussians.means", "views.rgb", "unit", "sky_depth"])
def test_a_state_that_lacks_a_part_is_refused(engine, events, missing):
    whole = join(rows(events)[2])
    arrays = {name: array for name, array in whole.arrays.items() if name != missing}
    facts = {name: value for name, value in whole.facts.items() if name != missing}
    with pytest.raises(WorldWarpError) as caught:
        list(engine.generate(spec(), Checkpoint(whole.chunk, whole.stage, whole.frames, arrays, facts)))
    assert caught.value.code == "bad_checkpoint"
