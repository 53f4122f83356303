"""What the server tells its worker at the start: which engine to make, with what options, and where it is to be.

All of it is the server's own configuration; nothing of it ever comes from a client.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PROGRESS_EVERY_S = 0.1
"""Progress within a stage is passed on at most this often."""


@dataclass(frozen=True)
class RayPlace:
    """Where on a Ray cluster a worker's engine is (ray_engine.py)."""

    address: str = "auto"
    gpus: int = 0
    """That it has for itself."""


@dataclass(frozen=True)
class WorkerConfig:
    """What the server tells its worker at the start."""

    store_root: str
    factory: str = "worldwarp_core.api:load_engine"
    """`module:function` that makes the engine."""
    engine: str = "cache"
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory."""
    device: str = ""
    """The GPUs that are this worker's alone, as CUDA_VISIBLE_DEVICES names them; "" where the server was not told."""
    log_path: str = ""
    """Where the structured log goes; "" for none."""
    ray: RayPlace | None = None
    """None has the engine in the worker's own process."""


def make_engine(factory: str, name: str, options: dict[str, Any]) -> Any:
    """The engine that `factory`, a `module:function`, makes."""
    module, _, function = factory.partition(":")
    make: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return make(name=name, **options)
