"""Errors that users read, on their way through other processes."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from engine_bridge.errors import BridgeError, ProtocolError
from worldwarp_core.errors import WorldWarpError


def fail() -> None:
    raise WorldWarpError("not_installed", "Install it.")


def test_an_error_comes_out_of_a_process_as_it_is() -> None:
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(WorldWarpError, match=r"^Install it\.$") as e,
    ):
        pool.submit(fail).result()
    assert e.value.code == "not_installed"


@pytest.mark.parametrize("error", [BridgeError("too_slow", "Slow."), ProtocolError("too_slow", "Slow.", 7)])
def test_every_kind_of_it_keeps_all_that_it_says(error: WorldWarpError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == "Slow."
