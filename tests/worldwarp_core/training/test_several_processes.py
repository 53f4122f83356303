"""Training on several devices: each process on its own clips, one set of weights."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from tests.support.toy_clips import ToySource
from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from worldwarp_core.training.autoencoder import AutoencoderTask, AutoencoderTraining
from worldwarp_core.training.critic import Judgement
from worldwarp_core.training.pool import PoolSettings
from worldwarp_core.training.trainer import TrainSettings, average_gradients, train

TINY = AutoencoderConfig(latents=8, encoder=(8, 8, 8), decoder=(8, 8, 8), guide=(8, 8))


def work(rank, world, folder):
    torch.set_num_threads(1)
    # Not at a port, which somebody else may take before the processes have started.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.full((3,), float(rank + 1))
    average_gradients([parameter], world)
    assert (parameter.grad == 1.5).all()

    judgement = Judgement(torch.device("cpu"), (4,))
    truth = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    unknown = torch.full((2, 3, 32, 32), rank == 0)  # one of them has nothing to judge, and is waited for all the same
    for _ in range(2):
        judgement.pull(truth.flip(0), truth, unknown)
    critic = {name: p.detach().contiguous() for name, p in judgement.critic.named_parameters()}
    save_file(critic, folder / f"critic{rank}.safetensors")

    torch.manual_seed(rank)  # they begin apart, and rank 0's weights are everyone's
    source = ToySource()
    pool = PoolSettings(capacity=4, first=2, batch=2, share=0.0)
    settings = AutoencoderTraining(clips=2, frames=5)
    task = AutoencoderTask(
        PreviewAutoencoder(TINY), source, None, source.batch(1, 99), None, None, pool, settings, 2 * rank, 4
    )
    progress = train(task, folder / f"{rank}", TrainSettings(steps=3, log_every=1), torch.device("cpu"))
    if rank == 0:
        assert progress.clips == 4, "what the other made counts: a run that goes on must not make it again"
    learned = {name: p.detach().contiguous() for name, p in task.network.named_parameters()}
    save_file(learned, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_learn_one_set_of_weights(tmp_path):
    mp.spawn(work, (2, tmp_path), nprocs=2)
    one, other = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-7, rtol=1e-5)
    critics = [load_file(tmp_path / f"critic{rank}.safetensors") for rank in range(2)]
    for name, values in critics[0].items():
        torch.testing.assert_close(values, critics[1][name], atol=1e-7, rtol=1e-5)
    assert (tmp_path / "0" / "autoencoder.safetensors").exists()
    assert not (tmp_path / "1").exists()
