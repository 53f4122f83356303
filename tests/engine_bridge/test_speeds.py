"""How long a server takes: by its own jobs, the newest of each kind, also those of an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine_bridge.client import Client
from engine_bridge.speeds import KEPT, MOST_KINDS, Speeds

from .conftest import RunningServer
from .shots import shot
from .talk import run


def summary(seconds: float, frames: int = 10, size: tuple[int, int] = (832, 480), **more: Any) -> dict[str, Any]:
    return {
        "seconds": {"fill": seconds / 2, "cache": seconds / 2},
        "frames": frames,
        "delivered_size": list(size),
        **more,
    }


def test_a_kind_s_time_is_the_median_of_its_newest_jobs_and_its_memory_the_most() -> None:
    speeds = Speeds()
    for seconds in (500.0, 10.0, 30.0, 20.0, 40.0, 50.0):
        speeds.note(summary(seconds, memory_gib=seconds / 10))
    assert KEPT == 5
    (kind,) = speeds.as_plain()
    assert (kind["seconds_per_frame"], kind["memory_gib"], kind["jobs"]) == (3.0, 5.0, 5)
    assert (kind["preset"], kind["width"], kind["height"]) == ("", 832, 480)


def test_a_job_of_few_frames_says_little_of_a_long_one() -> None:
    speeds = Speeds()
    speeds.note(summary(93.0, frames=93))
    for _ in range(3):
        speeds.note(summary(20.0, frames=5))
    assert speeds.as_plain()[0]["seconds_per_frame"] == 1.0


def test_presets_and_sizes_are_kinds_of_their_own() -> None:
    speeds = Speeds()
    speeds.note(summary(10, fill={"preset": {"name": "fast"}}))
    speeds.note(summary(90, fill={"preset": {"name": "reference"}}))
    speeds.note(summary(5, size=(64, 32)))
    kinds = {(kind["preset"], kind["width"]): kind["seconds_per_frame"] for kind in speeds.as_plain()}
    assert kinds == {("fast", 832): 1.0, ("reference", 832): 9.0, ("", 64): 0.5}
    for side in range(1, 100):
        speeds.note(summary(5, size=(side, 32)))
    assert len(speeds.as_plain()) == MOST_KINDS


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"seconds": 3},
        summary(0),
        summary(3, frames=0),
        summary(float("nan")),
        {**summary(3), "delivered_size": None},
    ],
)
def test_an_engine_that_says_less_is_passed_over(said: dict[str, Any]) -> None:
    speeds = Speeds()
    speeds.note(said)
    assert speeds.as_plain() == []


def test_a_server_tells_how_long_its_jobs_took_also_after_it_was_started_again(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server = start_server(data_dir=tmp_path / "jobs")
    with Client(server.address) as client:
        run(client, client.submit(shot(5)))
    wanted = {"preset": "", "width": 48, "height": 32, "seconds_per_frame": 0.2, "memory_gib": 1.5, "jobs": 1}
    with Client(server.address) as client:
        assert client.connect().engine_info["speeds"] == [wanted]
    server.stop()
    again = start_server(data_dir=tmp_path / "jobs")
    with Client(again.address) as client:
        run(client, client.submit(shot(5)))
        # Asked for when the engine was not yet loaded, it says nothing of itself.
    with Client(again.address) as client:
        assert client.connect().engine_info["speeds"] == [wanted | {"jobs": 2}]


def test_a_job_that_was_gone_on_with_says_nothing_of_time(start_server: Callable[..., RunningServer]) -> None:
    server = start_server()
    with Client(server.address) as client:
        job_id = client.submit(shot(8, prompt="full=6"))
        assert run(client, job_id)[-1].code == "disk_full"
        client.resume(job_id)
        assert run(client, job_id)[-1].state == "done"
    with Client(server.address) as client:
        assert client.connect().engine_info["speeds"] == []
