"""Whether Triton compiles kernels for this machine's GPU.

The kernels here are written for it, and torch.compile makes its own through it. torch brings it on Linux alone, and
where it is installed it wants a C compiler and Python's headers. Without it all runs on torch's own kernels, slower.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch


@functools.cache
def why_no_triton() -> str | None:
    """Why nothing that Triton compiles runs here, and what to do; None where it does.

    It compiles a small kernel and runs it, once in a process: only that tells whether all is there.
    """
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton, on Windows triton-windows)"
    try:
        from .triton_probe import double

        answer = float(double(torch.ones(8, dtype=torch.bfloat16, device="cuda")).sum())
        assert answer == 16, answer
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler, a linker or a driver may raise
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        return (
            f"Triton compiles nothing here ({reason}); it needs a C compiler such as gcc and Python's headers "
            "(on Debian and Ubuntu: apt install gcc python3-dev)"
        )
    return None
