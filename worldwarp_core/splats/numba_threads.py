"""How numba's kernels run here: the thread layer chosen on purpose, the options they share, and the lock around them.

Left alone, numba takes whichever layer happens to load, and another one when Blender's libraries are in the process.
Its last resort, workqueue, aborts the process when two Python threads are inside parallel kernels at once; so every
call goes through `NUMBA_LOCK`, whatever the layer.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import Any

import numba

# A kernel is a short parallel function that calls a serial one once for each worker: numba compiles that faster than
# a long parallel body. Compiled once for the machine, and kept until the kernel's own file changes: not when another
# does, so kernels call only kernels of their own file, and a new value in `constants` needs the caches deleted.
SERIAL: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
PARALLEL: dict[str, Any] = {**SERIAL, "parallel": True}
NUMBA_LOCK = threading.Lock()
_CONFIG: Any = numba.config  # whose attributes are made at import, out of a type checker's sight


def _choose_thread_layer() -> str:
    """The first of omp, tbb and workqueue that loads, unless the user named one with NUMBA_THREADING_LAYER."""
    if _CONFIG.THREADING_LAYER != "default":
        return str(_CONFIG.THREADING_LAYER)
    # GNU OpenMP reads this when it is loaded. Its threads else spin while they wait for each other, which on a machine
    # with other work to do makes a step three times slower. (torch brings an OpenMP of its own, loaded before: whoever
    # starts the process sets this for both.)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for name in ("omp", "tbb"):
        try:
            importlib.import_module(f"numba.np.ufunc.{name}pool")
        except ImportError:
            continue
        return name
    return "workqueue"


# Before the first parallel kernel runs: numba keeps the layer it starts with.
_CONFIG.THREADING_LAYER = _choose_thread_layer()


def thread_layer() -> str:
    """The layer in use, or, before the first kernel has run, the one chosen."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return str(_CONFIG.THREADING_LAYER)
