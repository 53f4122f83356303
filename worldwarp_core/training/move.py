"""Moves a student as its teacher has moved: where distilling goes on from, once the teacher has learned more.

A student is its teacher and what it learned of taking few steps. What the teacher learns since is a step of the same
weights, and added to the student it is as good a step there (task arithmetic, Ilharco et al. 2022, arXiv 2212.04089):
what was distilled is kept, and the distilling that follows mends the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import WorldWarpError
from ..preview.shipped import network_files
from ..preview.weights import NetworkFile, read_network, save_network

NAME = "transformer"
COUNTED = ("steps", "clips", "seconds")


def move_student(student: Path, before: Path, teacher: Path, run: Path) -> None:
    """Writes a run to go on distilling in: student + (teacher - before).

    Args:
        student: folder with a transformer that was distilled from `before`.
        before: folder with its teacher then.
        teacher: folder with what `before` has become.
        run: a folder without a transformer's run.

    Raises:
        WorldWarpError: `no_weights`, `bad_weights` where they are not there or not of one shape; `bad_settings` where
            `run` holds a transformer.
    """
    if network_files(run, NAME) or (run / "resume.safetensors").exists():
        raise WorldWarpError("bad_settings", f"{run} holds a transformer's run already: give another folder.")
    old, then, now = (read_network(folder, NAME) for folder in (student, before, teacher))
    for folder, found in ((student, old), (teacher, now)):
        if _shapes(found) != _shapes(then):
            raise WorldWarpError("bad_weights", f"The transformers in {folder} and {before} are of different shapes.")
    state: dict[str, Tensor] = {
        name: values + (now.state[name] - then.state[name]) for name, values in old.state.items()
    }
    progress: dict[str, Any] = old.progress | {
        count: old.progress.get(count, 0) + now.progress.get(count, 0) - then.progress.get(count, 0)
        for count in COUNTED
    }
    progress.pop("figures", None)  # of a network that is no more
    run.mkdir(parents=True, exist_ok=True)
    save_network(run, NAME, state, old.config, progress)


def _shapes(found: NetworkFile) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in found.state.items()}
