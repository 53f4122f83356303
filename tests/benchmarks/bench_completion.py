"""How far off the depth of a frame is where the cache has not seen the place, by how the depth network is tied to it.

    python -m tests.benchmarks.bench_completion --textures FILE

Worlds of the validation split, `VIEWS` views of each, far apart: what the first one saw stands for the cache, exact,
and `complete_depth` adds the rest of the others. Compared with the true depth on surfaces that the first view did not
see: the mean relative error (what is taken for sky, and any error above 1, counts as 1), pooled over all pixels and as
mean and median of the pictures. Sources:

    inpainted       no network: the border goes on
    scale_alone     the network as the engine has it, up to one scale a picture
    scale_and_shift the same, as if its offset were unknown too, as that of most models is

Writes results/completion_<hardware>.json and .jpg: picture, what is known, the truth, and the sources, near is bright.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.benchmarks.first_chunk import RESULTS, result_file
from worldwarp_core.evaluation.provenance import provenance
from worldwarp_core.evaluation.visibility import seen_from
from worldwarp_core.geometry.complete import complete_depth
from worldwarp_core.geometry.monocular import DepthModel
from worldwarp_core.preview.load import load_depth
from worldwarp_core.preview.shipped import WEIGHTS
from worldwarp_core.training.judge import contact_sheet
from worldwarp_core.training.views import ViewSource

SIZE, VIEWS = (144, 256), 5
LEAST_KNOWN, LEAST_UNKNOWN = 0.03, 0.01
"""Shares of a picture: with less there is nothing to tie a model to, or nothing to judge."""
SHOWN = 10


def completed(depth: Tensor, known: Tensor, rgb: Tensor, model: DepthModel | None) -> Tensor:
    """(V, H, W) depth; the arguments as `complete_depth` has them."""
    return complete_depth(torch.where(known, depth, 0), known, rgb, model).depth


def errors(made: Tensor, depth: Tensor, known: Tensor) -> list[Tensor]:
    """Of each picture, the relative errors of the pixels that count."""
    counts = ~known & depth.isfinite()
    error = torch.where(made.isfinite(), (made / depth - 1).abs(), 1.0).clamp(max=1.0)
    return [e[c] for e, c in zip(error, counts, strict=True)]


def summarise(found: Sequence[Tensor]) -> dict[str, float]:
    each = [float(errors.mean()) for errors in found]
    pooled = float(torch.cat(list(found)).mean())
    return {"absrel": round(pooled, 4), "mean": round(mean(each), 4), "median": round(median(each), 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--textures", type=Path, help="pictures for the worlds; without, procedural patterns alone")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the preview's networks")
    parser.add_argument("--worlds", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args(arguments)

    network = load_depth(options.device, options.weights)
    sources: dict[str, DepthModel | None] = {
        "inpainted": None,
        "scale_alone": network,
        "scale_and_shift": replace(network, kind="disparity"),
    }
    views = ViewSource("val", 0, SIZE, VIEWS, options.device, options.textures)
    found: dict[str, list[Tensor]] = {name: [] for name in sources}
    shares, rows = [], []
    for number in range(options.worlds):
        batch = views.batch(1, number)
        depth, rgb = batch.depth[0, 1:], batch.rgb[0, 1:].float().permute(0, 2, 3, 1)
        known = _known(*(x[0].double().cpu().numpy() for x in (batch.depth, batch.K, batch.c2w))).to(depth.device)
        share, unknown = known.float().mean((1, 2)), (~known & depth.isfinite()).float().mean((1, 2))
        kept = (share >= LEAST_KNOWN) & (unknown >= LEAST_UNKNOWN)
        if not kept.any():
            continue
        depth, rgb, known = depth[kept], rgb[kept], known[kept]
        shares += share[kept].tolist()
        made = {name: completed(depth, known, rgb, model) for name, model in sources.items()}
        for name in sources:
            found[name] += errors(made[name], depth, known)
        maps = [torch.where(known, depth, torch.inf), depth, *made.values()]
        rows.append([rgb[:1].permute(0, 3, 1, 2), *(_shown(m[:1], depth[:1]) for m in maps)])
        so_far = ", ".join(f"{name} {summarise(e)['absrel']}" for name, e in found.items())
        print(f"{number + 1} of {options.worlds}: {so_far}", flush=True)
    if not shares:
        parser.error("No view of these worlds shows what another does; take more --worlds.")

    where = provenance()
    file = result_file(options, "completion", where)
    document: dict[str, Any] = {
        **where,
        "settings": {
            "worlds": options.worlds,
            "textures": None if options.textures is None else options.textures.name,
            "device": options.device,
        },
        "pictures": len(shares),
        "known": round(mean(shares), 3),
        "sources": {name: summarise(e) for name, e in found.items()},
    }
    file.write_text(json.dumps(document, indent=2) + "\n")
    shown = rows[:: max(len(rows) // SHOWN, 1)][:SHOWN]
    sheet = contact_sheet([torch.cat(column) for column in zip(*shown, strict=True)])
    Image.fromarray(sheet).save(file.with_suffix(".jpg"), quality=85)
    print(json.dumps(document["sources"], indent=2))


def _known(depth: np.ndarray, K: np.ndarray, c2w: np.ndarray) -> Tensor:
    """(V - 1, H, W) bool: what the first of V views saw of the others."""
    saw = [seen_from(depth[0], K[0], c2w[0], *view) for view in zip(depth[1:], K[1:], c2w[1:], strict=True)]
    return torch.from_numpy(np.stack(saw))


def _shown(depth: Tensor, truth: Tensor) -> Tensor:
    """(1, 3, H, W) grey."""
    nearest = torch.quantile((1 / truth).flatten(), 0.98).clamp_min(1e-9)
    return (1 / depth / nearest).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)


if __name__ == "__main__":
    main()
