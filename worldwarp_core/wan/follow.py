"""One of the other GPUs of an engine that shares its transformer: the process that followers.py starts for each.

    python -m worldwarp_core.wan.follow '{"device": "cuda", "options": {...}}'

loads the transformer that the leader has, and answers its calls until the leader is gone. It ends when its standard
input closes, however the leader came to its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

from ..transformer.parallel import Ranks, join_ranks, share_transformer
from .source import WanSource, read_options


def follow(what: str) -> None:
    """A follower's life: load, share, answer until the leader is gone."""

    def end_with_leader() -> None:
        sys.stdin.buffer.read()
        os._exit(0)  # whatever it waits for, there is nobody left to answer

    threading.Thread(target=end_with_leader, daemon=True).start()
    # What a terminal or a service says to all its processes is the leader's to answer: it may finish its chunk first.
    for told_to_all in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told_to_all, lambda *_: None)
    told = json.loads(what)
    ranks: Ranks = join_ranks(told["device"])
    source = WanSource(read_options(told["options"] | {"gpus": 1}), str(ranks.device))
    source.keep_resident()
    share_transformer(source.load_transformer(float8=False), ranks).follow()


if __name__ == "__main__":
    follow(sys.argv[1])
