"""Trains a LoRA of Wan's transformer for ST-Diff: a look or a kind of place, at a hundredth of the weights.

States, targets and judging are those of ST-Diff (`stdiff.py`); the transformer itself stays as it is, and only
the small factors that peft puts beside its linear layers learn. A run leaves `pytorch_lora_weights.safetensors`, which
`--lora` and other programs take as any other LoRA.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from ..evaluation.lpips import Lpips
from ..preview.weights import read_network
from ..transformer.prepare import TransformerOptions, WorldWarpTransformer, prepare_transformer
from ..wan.autoencoder import WanAutoencoder
from ..wan.loras import ADAPTER_FILES
from .objective import ObjectiveSettings
from .pool import Clips, PoolSettings, Source
from .stdiff import StDiffTask, StDiffTraining

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
LORA_FILE = ADAPTER_FILES[1]
WITHOUT_WORDS = 0.1
"""The share of clips that are learned without the prompt: guidance asks for both."""


class Adapters(nn.Module):
    """A transformer's LoRA alone, its tensors under the names that LoRA files have."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        for name, parameter in transformer.named_parameters():
            if ".lora_" in name:
                *path, last = f"transformer.{name}".replace(".default.", ".").split(".")
                module: nn.Module = self
                for part in path:
                    if part not in module._modules:
                        module.add_module(part, nn.Module())
                    module = module.get_submodule(part)
                module.register_parameter(last, parameter)


class WanLatents:
    """Wan's autoencoder, asked for several clips as the preview's is."""

    def __init__(self, autoencoder: WanAutoencoder) -> None:
        self._autoencoder = autoencoder
        self.decode = autoencoder.decode

    def encode_clips(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> (B, C, T', H/8, W/8)."""
        return torch.cat([self._autoencoder.encode(clip.permute(0, 2, 3, 1)) for clip in clips])


class LoraTask(StDiffTask):
    """A `Task` of the trainer.

    Args:
        model: with an adapter, prepared to be asked by levels; see `with_adapter`.
        rank: of the adapter.
        words: (2, N, D) embeddings, of the prompt and of none.
    """

    name = "lora"

    def __init__(
        self,
        model: WorldWarpTransformer,
        rank: int,
        autoencoder: WanLatents,
        words: Tensor,
        source: Source[Clips],
        judged: Clips,
        lpips: Lpips | None,
        pool: PoolSettings,
        settings: StDiffTraining,
        first_seed: int = 0,
        stride: int | None = None,
    ) -> None:
        self._rank, self._words = rank, words
        super().__init__(model, autoencoder, source, judged, lpips, pool, settings, first_seed, stride)
        self.network: nn.Module = Adapters(model)

    def config(self) -> dict[str, Any]:
        return {"rank": self._rank}

    def _text(self, clips: int, generator: Generator | None = None) -> Tensor:
        without = torch.zeros(clips, dtype=torch.int64, device=self._words.device)
        if generator is not None:
            drawn = torch.rand(clips, generator=generator, device=generator.device)
            without = (drawn < WITHOUT_WORDS).long().to(self._words.device)
        return self._words[without]


def with_adapter(model: Any, rank: int, device: torch.device) -> WorldWarpTransformer:
    """The transformer on the device, frozen, with a new LoRA that changes nothing yet, and asked by levels."""
    if rank < 1:
        raise WorldWarpError("bad_settings", f"The rank of a LoRA is at least 1; got {rank}.")
    model.requires_grad_(False).to(device)
    # Scale 1: as many programs leave alpha out as read it.
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float().to(device)
    prepared = prepare_transformer(model, TransformerOptions(fused=False))  # fused kernels have no gradients
    for block in prepared.blocks:
        # A block's inner values are worked out again on the way back: the memory is one block's, not thirty's.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return prepared


def export_lora(run: Path) -> Path:
    """Writes a run's averaged weights as one LoRA file, and returns it.

    Raises:
        WorldWarpError: `no_weights`, `cannot_write`.
    """
    state = read_network(run, LoraTask.name).state
    with atomic_write(run / LORA_FILE) as partial_file:
        save_file({name: values.half() for name, values in state.items()}, partial_file, {"format": "pt"})
    return run / LORA_FILE


def lora_training(clips: int, objective: ObjectiveSettings) -> StDiffTraining:
    """As ST-Diff's, judged by more steps: the big transformer is not trained for few."""
    return StDiffTraining(clips=clips, objective=objective, steps=25)
