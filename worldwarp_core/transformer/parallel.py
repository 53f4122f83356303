"""One transformer on several GPUs: the two halves of guidance on two, the tokens of each half on two more.

N processes, which torchrun starts or whatever sets its variables, have the whole model each on its own GPU. Rank 0
leads: it runs the loop, and calls what `share_transformer` returns as it would call the model. The others follow: they
get each call's tensors, compute their part of it, and every rank receives the whole answer, bit for bit the same.

    ranks = join_ranks(device)
    shared = share_transformer(prepare_transformer(model, options), ranks)
    if ranks.rank > 0:
        shared.follow()  # until the leader calls shared.close()

Two GPUs split the batch, which guidance fills with two clips: there is nothing to exchange but the answer. Four split
the tokens of each half over two more, through diffusers' context parallelism. Nothing but tensors is exchanged.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from diffusers.models._modeling_parallel import ContextParallelConfig
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ..errors import WorldWarpError
from .prepare import WorldWarpTransformer

IDLE = timedelta(days=20)
"""How long followers wait for a call; what counts milliseconds in 32 bits takes no 25 days."""
FINISH = 0
"""The batch size of the call that is the last."""


@dataclass(frozen=True)
class Ranks:
    """Who this process is among those that share the transformer.

    Attributes:
        rank: 0 leads.
        branches: into how many parts a batch is split.
        parts: into how many parts each of those splits its tokens.
        device: where this rank computes.
        calls: the leader's announcements, on the CPU, so that waiting for one keeps no GPU busy.
    """

    rank: int
    branches: int
    parts: int
    device: torch.device
    calls: dist.ProcessGroup

    @property
    def branch(self) -> int:
        return self.rank // self.parts


def join_ranks(device: str, *, split_guidance: bool = True) -> Ranks:
    """Joins the processes that share a transformer; every one of them must call it.

    Args:
        device: "cuda" (each rank takes its own) or "cpu".
        split_guidance: two halves of the batch on two halves of the ranks; otherwise all ranks split the tokens.

    Raises:
        WorldWarpError: `bad_settings` where this process has not been told its rank, or the number of ranks is odd.
    """
    if "RANK" not in os.environ:
        raise WorldWarpError(
            "bad_settings", "Several GPUs need one process each: start with `torchrun --nproc-per-node N` before it."
        )
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group(backend)
    size = dist.get_world_size()
    if size % 2:
        raise WorldWarpError("bad_settings", f"The transformer runs on an even number of GPUs, 2 or 4; got {size}.")
    branches = 2 if split_guidance else 1
    where = torch.device(device, local) if device == "cuda" else torch.device(device)
    return Ranks(dist.get_rank(), branches, size // branches, where, dist.new_group(backend="gloo", timeout=IDLE))


def share_transformer(model: WorldWarpTransformer, ranks: Ranks) -> SharedTransformer:
    """Returns what the leader calls in place of the model, and what the others follow with. All ranks must call it."""
    # Like part to like part: rank = branch * parts + part. Every rank takes part in making every group.
    groups = [dist.new_group(list(range(part, dist.get_world_size(), ranks.parts))) for part in range(ranks.parts)]
    context = None
    if ranks.parts > 1:
        mesh = init_device_mesh(
            ranks.device.type, (ranks.branches, 1, ranks.parts), mesh_dim_names=("branch", "ring", "ulysses")
        )
        context = ContextParallelConfig(ulysses_degree=ranks.parts, mesh=mesh)
        model.enable_parallelism(config=context)
    return SharedTransformer(model, ranks, groups[ranks.rank % ranks.parts], context)


class SharedTransformer:
    """Calls the model on all ranks at once (`denoise.Transformer`)."""

    def __init__(
        self,
        model: WorldWarpTransformer,
        ranks: Ranks,
        branches: dist.ProcessGroup,
        context: ContextParallelConfig | None,
    ) -> None:
        self.model, self.ranks, self.branches, self.context = model, ranks, branches, context

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def __call__(self, hidden_states: Tensor, levels: Tensor, index: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """What the model itself returns for these; for the leader."""
        assert self.ranks.rank == 0, self.ranks
        tensors = hidden_states, levels, index, encoder_hidden_states
        shape = [*hidden_states.shape, *levels.shape, index.shape[1], *encoder_hidden_states.shape[1:]]
        dist.broadcast(torch.tensor(shape), 0, self.ranks.calls)
        return self._answer(*(t.contiguous() for t in tensors))

    @torch.no_grad()
    def follow(self) -> None:
        """Takes part in the leader's calls until it closes."""
        assert self.ranks.rank > 0, self.ranks
        while True:
            call = torch.zeros(9, dtype=torch.int64)
            dist.broadcast(call, 0, self.ranks.calls)
            batch, *clip, levels, tokens, words, width = call.tolist()
            if batch == FINISH:
                return
            shapes = (batch, *clip), (levels,), (batch, tokens), (batch, words, width)
            dtypes = self.dtype, torch.float32, torch.int64, self.dtype
            self._answer(
                *(torch.empty(s, dtype=d, device=self.ranks.device) for s, d in zip(shapes, dtypes, strict=True))
            )

    def close(self) -> None:
        """Lets the followers go; for the leader."""
        dist.broadcast(torch.full((9,), FINISH), 0, self.ranks.calls)

    def _answer(self, hidden_states: Tensor, levels: Tensor, index: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """The whole answer, on every rank, from the leader's tensors; a follower's are written over."""
        for tensor in (hidden_states, levels, index, encoder_hidden_states):
            dist.broadcast(tensor, 0)
        if self.context is not None:
            # diffusers' way for numbers of tokens that do not divide; it costs an exchange of sizes a layer.
            self.context.ulysses_anything = index.shape[1] % self.ranks.parts != 0
        batch = len(hidden_states)
        if batch % self.ranks.branches:  # a single clip, where there is no guidance: each branch computes it
            return self.model(hidden_states, levels, index, encoder_hidden_states)
        own = slice(*(batch // self.ranks.branches * i for i in (self.ranks.branch, self.ranks.branch + 1)))
        answer = self.model(hidden_states[own], levels, index[own], encoder_hidden_states[own]).contiguous()
        answers = [torch.empty_like(answer) for _ in range(self.ranks.branches)]
        dist.all_gather(answers, answer, self.branches)
        return torch.cat(answers)
