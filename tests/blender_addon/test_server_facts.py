"""What a server says of itself, in words, and without ever waiting for one on the main thread."""

from __future__ import annotations

import threading
import time

import bpy
import pytest

from blender_addon import preferences, server_facts
from blender_addon.server_facts import facts_of
from engine_bridge.messages import PROTOCOL_VERSION, Welcome
from worldwarp_core.errors import WorldWarpError

pytestmark = pytest.mark.usefixtures("addon")
ADDRESS = "tcp://127.0.0.1:9"


def welcome(**info: object) -> Welcome:
    return Welcome(
        request_id=0,
        protocol_version=PROTOCOL_VERSION,
        server="render-1",
        version="0.1.0",
        engine="wan",
        engine_info=info,
        max_message_bytes=1,
        max_credit_bytes=1,
        view_port=0,
        silence_limit_s=60.0,
    )


def test_device_model_and_presets_are_told() -> None:
    fill = {"models": "Wan2.1-T2V-1.3B", "presets": ["reference", "fast"], "strength": 0.8}
    facts = facts_of(ADDRESS, welcome(device="NVIDIA H100", fill=fill))
    assert facts.strength == 0.8
    assert facts.presets == ("reference", "fast")
    words = "\n".join(facts.in_words())
    for word in ("render-1", "NVIDIA H100", "Wan2.1-T2V-1.3B", f"Protocol version {PROTOCOL_VERSION}", "fast"):
        assert word in words


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"fill": None, "device": 3},
        {
            "fill": {"presets": "all", "models": []},
            "speeds": [3, {"width": "wide"}],
            "draws": "often",
            "device_gib": True,
        },
    ],
)
def test_an_engine_that_says_less_or_other_things_is_no_fault(info: dict[str, object]) -> None:
    facts = facts_of(ADDRESS, welcome(**info))
    assert (facts.presets, facts.device, facts.models) == ((), "", "")
    assert (facts.draws, facts.preset, facts.device_gib, facts.plan_gib, facts.speeds) == (None, "", None, None, ())


def test_nobody_there_is_a_sentence_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    # At the usual address there may be somebody.
    monkeypatch.setattr(preferences, "connection", lambda _: (ADDRESS, None))
    with pytest.raises(RuntimeError, match="worldwarp serve"):
        bpy.ops.worldwarp.test_connection()
    assert "worldwarp serve" in server_facts.known().error


def test_asking_beside_a_window_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()

    def slow(*_: object) -> None:
        assert answers.wait(60), "the main thread has waited"
        raise WorldWarpError("server_not_running", "Nobody there.")

    monkeypatch.setattr(server_facts, "ask", slow)
    done: list[bool] = []
    server_facts.begin(ADDRESS, None, lambda: done.append(True))
    assert not bpy.ops.worldwarp.test_connection.poll()
    answers.set()
    # What Blender's timer does with a window.
    while server_facts.look() is not None:
        time.sleep(0.01)
    assert done == [True]
    assert server_facts.known().error.startswith("Nobody there.")
    server_facts.close()
