"""The preview's three networks in miniature, with random weights: to run its engine, never to show what it makes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from worldwarp_core.preview.autoencoder import AutoencoderConfig, PreviewAutoencoder
from worldwarp_core.preview.depth import DepthNetwork
from worldwarp_core.preview.transformer import CONFIG, make_transformer
from worldwarp_core.preview.weights import save_network

TINY = CONFIG | {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2}
TINY_AUTOENCODER = AutoencoderConfig(encoder=(8, 8, 8), decoder=(8, 8, 8), guide=(8, 8))


def save_tiny_preview(folder: Path, autoencoder_steps: int = 3) -> Path:
    """Returns `folder`, filled as the package's own folder of weights is."""
    torch.manual_seed(0)
    autoencoder = PreviewAutoencoder(TINY_AUTOENCODER)
    figures = {"autoencoder_photo_db": 12.5, "autoencoder_world_db": 11.5}
    progress = {"steps": autoencoder_steps, "figures": figures}
    save_network(folder, "autoencoder", autoencoder.state_dict(), asdict(TINY_AUTOENCODER), progress)
    save_network(folder, "transformer", make_transformer(TINY).state_dict(), TINY, {"steps": 5, "clips": 7})
    save_network(folder, "depth", DepthNetwork().state_dict(), {}, {"figures": {"depth_absrel": 0.5}})
    return folder
