"""What the loop carries from chunk to chunk, saved as a checkpoint and put back from one.

In and out: the cache, the history, the frames that the cache does not hold yet, and the random state, as tensors; a
`Checkpoint` holds the same as plain arrays. Everything comes back to the bit, so that a loop that goes on makes what it
would have made. The random numbers of a fill follow from the shot's seed and the chunk, so none of them is saved.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from ..errors import WorldWarpError
from ..history import History, from_bytes, to_bytes
from ..splats.cache import KeyViews, SplatCache
from ..splats.gaussians import Gaussians
from ..splats.space import CacheSpace
from .host_copy import mark, send_to_host


@dataclass(frozen=True)
class LoopState:
    """Where the loop stands.

    Attributes:
        chunk: the chunk that was made last, 0 before the first.
        frames: of the path, from its first, that exist.
        new: the frames of `chunk`, where the cache does not hold them yet.
    """

    chunk: int
    frames: int
    cache: SplatCache
    history: History
    random: Tensor
    new: History | None = None

    def fitted(self, made_by: dict[str, Any]) -> Checkpoint:
        """Everything, where the cache holds all frames. `made_by` says what shot and engine it is of."""
        assert self.new is None
        cache = self.cache
        arrays = {
            **_arrays("gaussians", cache.gaussians.tensors()),
            **_arrays("cache", {"source_frames": cache.source_frames, "sky": cache.sky}),
            **_arrays("views", _tensors(cache.views)),
            **_arrays("history", _packed(self.history)),
            "random": self.random.numpy(),
        }
        facts = {
            "made_by": made_by,
            "unit": cache.space.unit,
            "sky_depth": cache.sky_depth,
            "views": cache.views.numbers,
            "history": self.history.numbers,
        }
        return Checkpoint(self.chunk, "fitted", self.frames, arrays, facts)

    def made(self) -> Checkpoint:
        """What came since the cache was fitted: the chunk's frames."""
        assert self.new is not None
        arrays = {**_arrays("new", _packed(self.new)), "random": self.random.numpy()}
        return Checkpoint(self.chunk, "made", self.frames, arrays, {"new": self.new.numbers})


def saved_unit(checkpoint: Checkpoint) -> float:
    """The scene units in one cache unit that the checkpoint is in.

    Raises:
        WorldWarpError: `bad_checkpoint`.
    """
    unit = checkpoint.facts.get("unit")
    if not isinstance(unit, float) or not 0 < unit < float("inf"):
        raise WorldWarpError("bad_checkpoint", f"The saved state does not say its unit; got {unit!r}.")
    return unit


def restore(checkpoint: Checkpoint, made_by: dict[str, Any], space: CacheSpace, device: torch.device) -> LoopState:
    """Puts a joined checkpoint back.

    Raises:
        WorldWarpError: `bad_checkpoint`, where it is of another shot or engine, or not whole.
    """
    arrays, facts = checkpoint.arrays, checkpoint.facts

    def tensors(group: str) -> dict[str, Tensor]:
        """Their own copies: a file's arrays may lie in memory as no tensor that was computed would."""
        prefix = f"{group}."
        found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return {name: torch.from_numpy(np.array(array)).to(device) for name, array in found.items()}

    try:
        if facts["made_by"] != made_by:
            raise ValueError(f"it was saved by {facts['made_by']} and is to go on in {made_by}")
        return LoopState(
            chunk=checkpoint.chunk,
            frames=checkpoint.frames,
            cache=SplatCache(
                space=space,
                sky_depth=facts["sky_depth"],
                gaussians=Gaussians(**tensors("gaussians")),
                views=KeyViews(numbers=facts["views"], **tensors("views")),
                **tensors("cache"),
            ),
            history=History(numbers=facts["history"], **_unpacked(tensors("history"))),
            random=torch.from_numpy(np.array(arrays["random"])),
            new=History(numbers=facts["new"], **_unpacked(tensors("new"))) if checkpoint.stage == "made" else None,
        )
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise WorldWarpError("bad_checkpoint", f"The saved state does not fit this shot: {error}.") from error


def _packed(history: History) -> dict[str, Tensor]:
    """Pictures in bytes, which is what they are (`History`): a chunk's state is a quarter as long to write."""
    return _tensors(history) | {"rgb": to_bytes(history.rgb), "trusted": to_bytes(history.trusted)}


def _unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {name: from_bytes(tensors[name]) for name in ("rgb", "trusted")}


def _tensors(group: History | KeyViews) -> dict[str, Tensor]:
    return {f.name: getattr(group, f.name) for f in fields(group) if f.name != "numbers"}


def _arrays(group: str, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    sent = {name: send_to_host(tensor.detach()) for name, tensor in tensors.items()}
    for arrived in [mark(tensor.device) for tensor in tensors.values()][-1:]:
        if arrived is not None:
            arrived.synchronize()
    return {f"{group}.{name}": tensor.numpy() for name, tensor in sent.items()}
