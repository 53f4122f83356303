import multiprocessing

import pytest
import torch
from torch.distributed import TCPStore

from tests.support.ranks import calls, run_rank, tiny_wan
from worldwarp_core.errors import WorldWarpError
from worldwarp_core.transformer.parallel import join_ranks
from worldwarp_core.transformer.prepare import prepare_transformer


@pytest.mark.parametrize(
    ("size", "split_guidance"), [(2, True), (2, False), (4, True)], ids=["guidance", "tokens", "both"]
)
def test_several_ranks_answer_as_one(tmp_path, size, split_guidance):
    out = tmp_path / "answers.pt"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (size, store.port, split_guidance, out)
    # Forked from a process that has imported everything once, and started no thread.
    multiprocessing.set_forkserver_preload(["tests.support.ranks"])
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=size, start_method="forkserver")
    model = prepare_transformer(tiny_wan())
    for call, answer in zip(calls(), torch.load(out, weights_only=True), strict=True):
        torch.testing.assert_close(answer, model(**call), rtol=1e-5, atol=1e-5)


def test_without_torchrun_it_says_what_to_do(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(WorldWarpError, match="torchrun"):
        join_ranks("cpu")
