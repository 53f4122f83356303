# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server says of itself: who it is, what it runs on, which presets it knows.

A thread asks; the main thread's timer takes the answer, so no window waits for a machine that is not there. In
background mode, where timers do not fire, `ask` is called and waited for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bpy

from engine_bridge.client import CONNECT_TIMEOUT_S, Client
from engine_bridge.keys import ClientKey
from engine_bridge.messages import Welcome
from worldwarp_core import __version__
from worldwarp_core.errors import WorldWarpError

from .advice import fault, in_words

PROGRAM = "worldwarp-blender"
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Speed:
    """How long shots of one preset and size took on a server, and how much memory; None where it does not say."""

    preset: str
    width: int
    height: int
    seconds_per_frame: float
    memory_gib: float | None = None


@dataclass(frozen=True)
class ServerFacts:
    """One server, as it introduced itself.

    Attributes:
        device: the GPU's or the processor's name; "" while the engine is being loaded.
        models: what fills in what was not seen, in words.
        presets: the names that a shot's preset may have; none where the engine has only one way.
        draws: whether the engine draws start frames from words; None where it does not say.
        preset: the one that a shot which names none is made with.
        strength: what a shot that chooses none is made with; None where the engine has no use for it.
        device_gib: the GPU's memory; None without a GPU.
        plan_gib: of it, what the engine keeps within; None where it sets itself no bound.
        speeds: of the shots that it has made, the newest kind last.
    """

    address: str
    server: str
    version: str
    protocol: int
    engine: str
    device: str = ""
    models: str = ""
    presets: tuple[str, ...] = ()
    draws: bool | None = None
    preset: str = ""
    strength: float | None = None
    device_gib: float | None = None
    plan_gib: float | None = None
    speeds: tuple[Speed, ...] = ()

    def speed_of(self, preset: str, width: int, height: int) -> Speed | None:
        """Returns what is known of the shots that were most like one of this preset and size."""
        alike = [speed for speed in self.speeds if speed.preset == (preset or self.preset)]
        pixels = width * height
        return min(alike, key=lambda speed: abs(math.log(speed.width * speed.height / pixels)), default=None)

    def in_words(self) -> list[str]:
        """Returns lines for the preferences."""
        return [
            f"Connected to {self.server}, version {self.version}, at {self.address}",
            f"Protocol version {self.protocol}, this add-on {__version__}",
            f"Engine: {self.engine}" + (f", {self.models}" if self.models else ""),
            f"Runs on: {self.device}" if self.device else "The engine is still being loaded: test again in a moment",
        ] + ([f"Presets: {', '.join(self.presets)}"] if self.presets else [])


def facts_of(address: str, welcome: Welcome) -> ServerFacts:
    """Returns what `welcome` says; an engine's account is free-form, so what is not as expected is left out."""
    info = welcome.engine_info
    fill = map_in(info, "fill")
    presets = fill.get("presets")
    return ServerFacts(
        address=address,
        server=welcome.server,
        version=welcome.version,
        protocol=welcome.protocol_version,
        engine=welcome.engine,
        device=text_in(info, "device"),
        models=", ".join(filter(None, (text_in(fill, "models"), text_in(fill, "description")))),
        presets=tuple(name for name in presets if isinstance(name, str)) if isinstance(presets, list) else (),
        draws=info["draws"] if isinstance(info.get("draws"), bool) else None,
        preset=text_in(map_in(fill, "preset"), "name"),
        strength=number_in(fill, "strength"),
        device_gib=number_in(info, "device_gib"),
        plan_gib=number_in(map_in(fill, "memory_plan"), "gib"),
        speeds=speeds_in(info),
    )


def speeds_in(info: dict[str, Any]) -> tuple[Speed, ...]:
    """Returns what the server says of the shots that it has made; what is not as expected is left out."""
    told = info.get("speeds")
    found = []
    for entry in told if isinstance(told, list) else ():
        facts = entry if isinstance(entry, dict) else {}
        width, height, seconds = (number_in(facts, name) for name in ("width", "height", "seconds_per_frame"))
        if width and height and seconds:
            memory_gib = number_in(facts, "memory_gib")
            found.append(Speed(text_in(facts, "preset"), round(width), round(height), seconds, memory_gib))
    return tuple(found)


def map_in(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the map that `facts` has under `name`, or an empty one."""
    value = facts.get(name)
    return value if isinstance(value, dict) else {}


def number_in(facts: dict[str, Any], name: str) -> float | None:
    """Returns the positive number that `facts` has under `name`, or None."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value > 0 else None


def text_in(facts: dict[str, Any], name: str) -> str:
    """Returns the text that `facts` has under `name`, or nothing."""
    value = facts.get(name)
    return value if isinstance(value, str) else ""


def ask(address: str, key: ClientKey | None = None, timeout_s: float = CONNECT_TIMEOUT_S) -> ServerFacts:
    """Returns what the server at `address` says of itself; waits for it, on any thread, at most so long.

    Raises:
        WorldWarpError: `server_not_running`, `wrong_protocol_version`, `key_refused`, ...
    """
    with Client(address, program=PROGRAM, version=__version__, key=key, connect_timeout_s=timeout_s) as client:
        return facts_of(address, client.connect())


@dataclass
class Known:
    """What is known by now. Only the main thread reads and writes it."""

    facts: ServerFacts | None = None
    asking: bool = False
    error: str = ""


_known = Known()
_answer: list[ServerFacts | WorldWarpError] = []
"""Filled by the thread, once."""
_thread: threading.Thread | None = None
_then: Callable[[], None] | None = None


def known() -> Known:
    """Returns what is known of the server that was asked last."""
    return _known


def note(facts: ServerFacts) -> None:
    """Remembers what a server said of itself while a shot was made."""
    _known.facts, _known.error = facts, ""


def presets_at(address: str) -> tuple[str, ...]:
    """Returns the presets of the server at `address`; none where it was not asked yet."""
    facts = facts_at(address)
    return facts.presets if facts is not None else ()


def facts_at(address: str) -> ServerFacts | None:
    """Returns what the server at `address` said of itself; None where it was not asked yet."""
    return _known.facts if _known.facts is not None and _known.facts.address == address else None


def begin(address: str, key: ClientKey | None, then: Callable[[], None]) -> None:
    """Asks in a thread of its own; `then` is called on the main thread when `known` has the answer."""
    global _thread, _then
    if _known.asking:
        return
    _known.asking, _known.error, _then = True, "", then
    _answer.clear()

    def work() -> None:
        # Nothing in here may touch bpy.
        try:
            _answer.append(ask(address, key))
        except WorldWarpError as error:
            _answer.append(error)
        except Exception as error:
            _answer.append(fault(error))

    _thread = threading.Thread(target=work, name="worldwarp-ask", daemon=True)
    _thread.start()
    bpy.app.timers.register(look, first_interval=LOOK_EVERY_S, persistent=True)


def look() -> float | None:
    """Takes the thread's answer; returns the seconds to the next look, None after the last."""
    if _known.asking and not _answer:
        return LOOK_EVERY_S
    if _known.asking:
        take(_answer[0])
    if _then is not None:
        _then()
    return None


def take(answer: ServerFacts | WorldWarpError) -> None:
    """Brings `known` up to date."""
    _known.asking = False
    if isinstance(answer, WorldWarpError):
        _known.facts, _known.error = None, in_words(answer)
    else:
        note(answer)


def close() -> None:
    """Waits for the thread and forgets the question; for unregistering and Blender's exit."""
    global _thread
    if bpy.app.timers.is_registered(look):
        bpy.app.timers.unregister(look)
    if _thread is not None:
        _thread.join(10.0)
        _thread = None
    _known.asking = False
