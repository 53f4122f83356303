"""Examples kept while a network trains: the newest stay, shapes take turns, and making them has its share of time."""

import pytest
import torch

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.training.pool import ExamplePool, PoolSettings, turns


def pool(shapes=1, capacity=8, first=4, share=0.0):
    """Examples that hold their seed, batches of two, in so many shapes by turns."""
    made = []

    def make(seed):
        made.append(seed)
        side = 1 + turns(shapes)[(len(made) - 1) % len(turns(shapes))]
        return {"seed": torch.full((2, side), seed), "twice": torch.full((2, side, side), 2.0 * seed)}

    return ExamplePool(make, PoolSettings(capacity, first, 2, share, shapes), 10, 4), made


def drawn(examples, number=1, count=50):
    generator = torch.Generator().manual_seed(0)
    return [examples.draw(count, generator) for _ in range(number)]


def test_the_first_draw_makes_the_first_examples_and_each_row_is_one_example():
    examples, made = pool()
    (found,) = drawn(examples)
    assert made == [10, 14]
    assert set(found["seed"].flatten().tolist()) == {10, 14}
    assert torch.equal(2.0 * found["seed"], found["twice"][:, 0])
    assert examples.next_seed == 18


def test_the_newest_stay():
    examples, _ = pool(capacity=4, share=0.9)
    drawn(examples)
    examples.spent_s = 0.0
    while examples.made < 12:
        examples.top_up(1e-9)
        examples.spent_s = 0.0
    (found,) = drawn(examples)
    assert set(found["seed"].flatten().tolist()) == {26, 30}
    assert len(examples) == 4


def test_shapes_take_turns_and_share_the_room():
    examples, _ = pool(shapes=2, capacity=8, first=2)
    sides = [found["seed"].shape[1] for found in drawn(examples, 4)]
    assert sides == [1, 2, 1, 2], "both are there at once, though the first two examples were of one shape"
    three, _ = pool(shapes=3, capacity=16, first=2)
    assert [found["seed"].shape[1] for found in drawn(three, 5)] == [1, 2, 1, 3, 1], "every second time the first"
    for _ in range(16):
        three.spent_s = -1.0
        three.top_up(0.0)
    assert [len(ring) for ring in three._rings.values()] == [8, 4, 4]
    for _ in range(6):
        examples.spent_s = -1.0
        examples.top_up(0.0)
        examples.spent_s = 0.0
    assert len(examples) == 8


def test_of_more_examples_than_there_is_room_for_the_last_stay_whole():
    examples = ExamplePool(
        lambda seed: {name: torch.arange(6) for name in ("one", "other")}, PoolSettings(4, 2, 2, 0.0), 0, 1
    )
    (found,) = drawn(examples)
    assert set(found["one"].tolist()) == {2, 3, 4, 5}
    assert torch.equal(found["one"], found["other"])


def test_nothing_is_made_when_its_share_of_the_time_is_spent():
    examples, made = pool(share=0.5)
    drawn(examples)
    examples.spent_s = 5.0
    examples.top_up(9.0)
    assert len(made) == 2
    examples.top_up(10.001)
    assert len(made) > 2


@pytest.mark.parametrize(
    ("capacity", "first", "shapes", "said"),
    [
        (1, 4, 1, "batch <= first"),
        (8, 1, 1, "batch <= first"),
        (4, 4, 3, "at least 4 batches of 2; got 4"),
    ],
)
def test_too_little_room_is_refused(capacity, first, shapes, said):
    with pytest.raises(WorldWarpError, match=said):
        pool(shapes, capacity, first)
