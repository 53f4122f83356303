"""Several processes of one evaluation: what each of them takes for itself."""

import multiprocessing

import pytest
import torch

from worldwarp_core.errors import WorldWarpError
from worldwarp_core.evaluation import run
from worldwarp_core.evaluation.run import EvalOptions


@pytest.mark.parametrize(("device", "taken"), [("auto", [0, 1, 0]), ("cuda", [0, 1, 0]), ("cpu", [])])
@pytest.mark.usefixtures("one_thread")
def test_each_process_takes_the_next_gpu(tmp_path, monkeypatch, device, taken):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("numba.set_num_threads", lambda count: None)  # it would stay so
    monkeypatch.setattr(run, "open_scenes", lambda options: None)
    monkeypatch.setattr(run, "_bench", None)
    options = EvalOptions(tmp_path, device=device, jobs=3, poses_every=0)
    started = multiprocessing.Value("i", 0)
    for _ in range(3):
        run._start_process(options, 1, started)
    assert chosen == taken
    assert run._bench is not None


def test_what_poses_need_is_missed_before_the_first_shot(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(WorldWarpError, match=r"pip install .*\[evaluation\]"):
        run.open_judges(EvalOptions(tmp_path))
    _, missing = run.open_judges(EvalOptions(tmp_path, poses_every=0))
    assert missing["r_dist"] == "left out, as asked"
