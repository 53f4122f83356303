"""The other GPUs of an engine that shares its transformer: one process each, started here, gone when the engine is.

The engine's own process leads (transformer/parallel.py); each follower loads the same transformer onto its GPU and
answers the leader's calls. They are started with the variables that torchrun would set, so that the engine may live
inside a server's worker, which torchrun could not start.

A follower (follow.py) ends when its standard input closes, however the leader came to its end. Where a follower is
lost, the leader ends too: it would wait for its answer for ever, and nothing can call it back from there.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from ..errors import WorldWarpError
from ..transformer.parallel import SharedTransformer, join_ranks, share_transformer
from ..transformer.prepare import WorldWarpTransformer

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
LOST = 70
"""The exit code of a leader that has lost a follower."""


class Followers:
    """Processes 1 to `count` - 1 of the `count` that share a transformer; this one is number 0.

    Args:
        count: 2 or 4.
        device: "cuda" or "cpu".
        options: the engine's `WanOptions`.

    Raises:
        WorldWarpError: `bad_settings` where there are fewer GPUs, or nothing for them to talk through.
    """

    def __init__(self, count: int, device: str, options: Any) -> None:
        found = torch.cuda.device_count() if device == "cuda" else count
        if found < count or count not in (2, 4):
            raise WorldWarpError(
                "bad_settings", f"The transformer runs on 1, 2 or 4 GPUs, and {found} are here; got {count}."
            )
        if device == "cuda" and not dist.is_nccl_available():
            raise WorldWarpError(
                "bad_settings",
                "GPUs that share a transformer talk through NCCL, which torch has on Linux alone and not here: use one "
                "GPU.",
            )
        shared = {"MASTER_ADDR": HOST, "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        what = json.dumps({"device": device, "options": asdict(options)})
        command = [sys.executable, "-m", "worldwarp_core.wan.follow", what]
        self._processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, env={**os.environ, **shared, "RANK": str(n), "LOCAL_RANK": str(n)}
            )
            for n in range(1, count)
        ]
        self._closing = False
        for number, process in enumerate(self._processes, 1):
            threading.Thread(target=self._end_without, args=(number, process), daemon=True).start()
        # torch.distributed reads where the others are from the environment.
        os.environ.update(shared, RANK="0", LOCAL_RANK="0")
        self.ranks = join_ranks(device)

    def share(self, model: WorldWarpTransformer) -> SharedTransformer:
        """What is called in place of the model from now on."""
        return share_transformer(model, self.ranks)

    def close(self) -> None:
        """Ends the followers."""
        self._closing = True
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def _end_without(self, number: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if self._closing:
            return
        # Handlers have written it when this returns; an error raised here would reach nobody who waits on the GPUs.
        log.critical("The process of GPU %d is gone (exit code %d); without it this engine cannot go on.", number, code)
        os._exit(LOST)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
