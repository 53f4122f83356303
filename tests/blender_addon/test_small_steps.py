"""Work in small steps: all of it is done, a little at a time, and its result comes out."""

from __future__ import annotations

import time

from blender_addon.small_steps import Steps, run_through, run_until


def counting(done: list[int], pause_s: float = 0.0) -> Steps[str]:
    for number in range(5):
        done.append(number)
        time.sleep(pause_s)
        yield
    return "made"


def test_in_one_go_the_result_comes_out() -> None:
    done: list[int] = []
    assert run_through(counting(done)) == "made"
    assert done == [0, 1, 2, 3, 4]


def test_within_a_time_at_least_one_step_is_taken_and_never_all() -> None:
    done: list[int] = []
    steps = counting(done, pause_s=0.01)
    assert not run_until(steps, 0.0)
    assert done == [0]
    assert not run_until(steps, time.perf_counter() + 0.015)
    assert 1 < len(done) < 5
    assert run_until(steps, float("inf"))
    assert done == [0, 1, 2, 3, 4]
