"""How far the preview's decoder may trust the prior: its valid pixels and its pictures by `AutoencoderConfig.trust`.

    python -m tests.benchmarks.bench_trust --lpips FILE --textures FILE

Worlds of the validation split, so that nothing is settled by what is judged. Of each path the first chunk is made by
the engine `preview` once and decoded with each trust, from the same latents beside the same prior: once with the start
frame's true depth and once with one that is bent by a tenth, as estimated depth is. Against the truth, of every fourth
new frame: psnr_valid on the pixels that the prior knows, beside `prior_valid`, the prior's own there; and lpips.

Medians over the paths; each path's own are under `paths`; `best` is the least trust that is within `ENOUGH` of the
lowest LPIPS and within `ENOUGH_DB` of the highest PSNR, over both depths: the rest is room to correct. Writes
results/trust_<hardware>.json; with `--settle` the best into the autoencoder's file too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from torch import Tensor

from tests.benchmarks.first_chunk import (
    CHUNK,
    Given,
    given_first,
    make,
    open_lpips,
    result_file,
    shared_options,
    shared_settings,
    to_bytes,
    to_tensor,
)
from worldwarp_core.engine import Engine, make_engine
from worldwarp_core.evaluation.lpips import Lpips
from worldwarp_core.evaluation.metrics import psnr
from worldwarp_core.evaluation.provenance import provenance
from worldwarp_core.evaluation.scenes import HeldOutWorlds, Scene
from worldwarp_core.evaluation.variants import DepthFault, Variant
from worldwarp_core.loop.priors import VALID, Priors
from worldwarp_core.preview.load import PRESETS, PreviewFill, load_models
from worldwarp_core.preview.weights import read_network, save_network
from worldwarp_core.st_diff.fill import FixedModels
from worldwarp_core.st_diff.noise_map import SMALL_PICTURES

TRUSTS = (0.0, 1.0, 2.0, 3.0, 4.0)
ENOUGH, ENOUGH_DB = 0.01, 0.05
"""A share of LPIPS and decibels of PSNR where the prior is valid: what is nearer than these is no better. The
decibels are few, as the prior's own are the bar, and a decoder misses it by some tenths."""
DEPTHS: dict[str, tuple[DepthFault, float]] = {"exact": ("none", 0.0), "bent": ("warp", 0.1)}


def measure(scene: Scene, source: FixedModels, engine: Engine, lpips: Lpips) -> dict[str, Any]:
    """One path: depth -> trust -> figures."""
    scene = replace(scene, cameras=scene.cameras[:CHUNK])
    truth = None
    figures: dict[str, Any] = {}
    for depth, (fault, amount) in DEPTHS.items():
        given = given_first(engine, Variant(depth_fault=fault, depth_amount=amount).shot(scene))
        rows = given.judged_rows
        truth = to_tensor(scene.truth(given.judged)[0]) if truth is None else truth
        valid, prior = (given.priors.validity[rows] >= VALID).cpu(), given.priors.rgb[rows].permute(0, 3, 1, 2).cpu()
        figures[depth] = {"prior_valid": _mean(psnr(prior, truth, valid))}
        for trust, frames in by_trust(source, given).items():
            made = to_tensor(frames[rows])
            figures[depth][f"{trust:g}"] = {
                "psnr_valid": _mean(psnr(made, truth, valid)),
                "lpips": _mean(lpips(made, truth)),
            }
    return figures


def by_trust(source: FixedModels, given: Given) -> dict[float, np.ndarray]:
    """(F, H, W, 3) uint8 new frames by trust, of one run of the sampler."""
    decoded = _EveryTrust(source.loaded.autoencoder)
    loaded = replace(source.loaded, autoencoder=decoded)
    make(PreviewFill(replace(source, loaded=loaded), PRESETS, "preview", SMALL_PICTURES), given, given.spec)
    return {trust: frames[len(given.plan.context) :] for trust, frames in decoded.made.items()}


class _EveryTrust:
    """The autoencoder; whatever its decoder is asked for, it decodes with each trust and keeps."""

    def __init__(self, autoencoder: Any) -> None:
        self._own = autoencoder
        self.made: dict[float, np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def decode(self, latents: Tensor, priors: Priors | None = None) -> Iterator[Tensor]:
        settled, decoder = self._own.decoder.trust, self._own.decoder
        frames: list[Tensor] = []
        for trust in TRUSTS:
            decoder.trust = trust
            frames = list(self._own.decode(latents, priors))
            self.made[trust] = to_bytes(frames)
        decoder.trust = settled
        return iter(frames)


def summarise(paths: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Depth -> trust -> medians over the paths."""
    summary: dict[str, Any] = {}
    for depth in DEPTHS:
        some = [path[depth] for path in paths]
        summary[depth] = {"prior_valid": round(median(path["prior_valid"] for path in some), 3)} | {
            f"{trust:g}": {
                figure: round(median(path[f"{trust:g}"][figure] for path in some), 5)
                for figure in ("psnr_valid", "lpips")
            }
            for trust in TRUSTS
        }
    return summary


def best(summary: dict[str, Any]) -> float:
    def over_both(figure: str) -> dict[float, float]:
        return {trust: mean(rows[f"{trust:g}"][figure] for rows in summary.values()) for trust in TRUSTS}

    distance, known = over_both("lpips"), over_both("psnr_valid")
    near, high = (1 + ENOUGH) * min(distance.values()), max(known.values()) - ENOUGH_DB
    fine = [trust for trust in TRUSTS if distance[trust] <= near and known[trust] >= high]
    return fine[0] if fine else min(TRUSTS, key=lambda trust: distance[trust])


def settle(weights: Path, trust: float) -> None:
    """Writes the trust into the file of the autoencoder; its weights stay what they are."""
    found = read_network(weights, "autoencoder")
    save_network(weights, "autoencoder", found.state, found.config | {"trust": trust}, found.progress)


def _mean(values: Tensor) -> float:
    return float(values.nanmean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = shared_options(__doc__)
    parser.add_argument("--settle", action="store_true", help="write the best into these networks")
    options = parser.parse_args(arguments)
    lpips = open_lpips(parser, options)
    source, where = load_models(options.device, options.weights), provenance()
    scenes = HeldOutWorlds(options.paths, 0, textures=options.textures, device=options.device, split="val")
    engine = make_engine("cache", options.device, None, {})
    file = result_file(options, "trust", where)
    shipped = source.loaded.autoencoder.config.trust
    paths: list[dict[str, Any]] = []
    for number in range(len(scenes)):
        paths.append({"name": scenes.scene(number).name} | measure(scenes.scene(number), source, engine, lpips))
        document = {
            **where,
            "settings": shared_settings(options, source.name) | {"shipped_trust": shipped},
            "best": best(summarise(paths)),
            "depth": summarise(paths),
            "paths": paths,
        }
        file.write_text(json.dumps(document, indent=2) + "\n")
        print(f"{len(paths)} of {len(scenes)}: {json.dumps(paths[-1])}", flush=True)
    print(json.dumps(summarise(paths), indent=2))
    print(f"best: {best(summarise(paths)):g}; these networks have {shipped:g}")
    if options.settle:
        settle(options.weights, best(summarise(paths)))


if __name__ == "__main__":
    main()
