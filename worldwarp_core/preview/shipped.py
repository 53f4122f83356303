"""Which networks of the preview are in a folder, and whether they came with the package. Needs no torch."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")
NETWORKS = ("autoencoder", "transformer", "depth")
NAME = re.compile(r"^(?P<name>[a-z]+)(-(?P<part>\d{5})-of-(?P<parts>\d{5}))?\.safetensors$")


def is_shipped(folder: Path = WEIGHTS) -> bool:
    """Whether all three networks are there."""
    return all(network_files(folder, name) for name in NETWORKS)


def network_files(folder: Path, name: str) -> list[Path]:
    """The files of one network, in order; none where it is not there."""
    found = [(path, NAME.match(path.name)) for path in sorted(folder.glob("*.safetensors"))]
    return [path for path, match in found if match and match["name"] == name]
