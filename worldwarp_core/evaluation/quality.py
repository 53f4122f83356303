"""The figures of the fills side by side, as `preview_quality.json` has them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import WorldWarpError
from ..preview.shipped import WEIGHTS, network_files
from ..preview.weights import read_network
from .judge import WINDOWS
from .provenance import provenance
from .results import Measured, busy_note, by_group, median, onward, summarise

PAPER = {
    "data": "RealEstate10K, which is another data set than what was measured here",
    "200": {"psnr": 17.13, "ssim": 0.281, "lpips": 0.352, "r_dist": 0.697, "t_dist": 0.203},
}
TRAINED = {"autoencoder_photo_db": "autoencoder", "autoencoder_world_db": "autoencoder", "depth_absrel": "depth"}
"""Figures that training measures, and the network whose file has them."""
CHUNK_S = ("chunk_s_2_cores", "chunk_s_h100")
"""What `timed` lays into the document."""
COMPARED = {"psnr": 1, "psnr_seen": 1, "psnr_valid": 1, "lpips": -1}
"""Figures that fills are compared in path by path; 1 where more is better, -1 where less is."""
NOTES = {
    "windows": "50 is the mean of frames 45 to 55, 200 of 190 to 200; then the median over paths.",
    "unregistered": "the mean over paths; r_dist and t_dist are of what was registered.",
    "spectrum_distance": "in the holes of the prior; spectrum_distance_all over whole frames.",
    "psnr_seen": "on the pixels whose place the start frame shows, by the true depth: the same ones for every fill.",
    "psnr_valid": "on the pixels valid in the fill's own prior: from the second chunk on, what it invented before too.",
    "psnr_prior": "of that prior on the same pixels: what the fill `cache` would have left there.",
    "path_by_path": "beside the cache, on the paths that do not come back; psnr_prior: beside the fill's own prior.",
    "kid": "on AlexNet's features of 64x64 crops, with a 95% interval.",
    "chunk_s": "a fill's is the median over paths of the mean over a path's chunks, first kernels and all; "
    "chunk_s_2_cores and chunk_s_h100 are a whole shot of one chunk by a running server (bench_preview.py).",
}


def quality(
    measured: Mapping[str, Sequence[Measured]],
    missing: Mapping[str, str],
    settings: Mapping[str, Any],
    weights: Path | None = None,
    before: Path | None = None,
) -> dict[str, Any]:
    """What `preview_quality.json` holds.

    Args:
        measured: by fill.
        missing: why a fill or a figure is not there.
        settings: of the evaluation.
        weights: folder of the preview's networks; None takes the package's.
        before: an earlier file, whose `chunk_s_2_cores` and `chunk_s_h100` are kept.
    """
    where = provenance()
    busy = busy_note([m for some in measured.values() for m in some])
    notes = NOTES | ({"seconds": busy} if busy else {})
    document: dict[str, Any] = {**where, "settings": dict(settings), "notes": notes, "paper": PAPER}
    why = dict(missing)
    for fill in ("cache", "preview", *(name for name in measured if name not in ("cache", "preview"))):
        some = measured.get(fill)
        document[fill] = _of_fill(some) if some else None
        if not some:
            why.setdefault(fill, "not measured")
    document["path_by_path"] = {
        fill: path_by_path(some, measured["cache"])
        for fill, some in measured.items()
        if fill != "cache" and some and measured.get("cache")
    }
    for figure, network in TRAINED.items():
        document[figure] = _trained(weights or WEIGHTS, network, figure)
        if document[figure] is None:
            why[figure] = f"the {network} network has not been trained, or its training did not measure this"
    document |= dict.fromkeys(CHUNK_S, None) | _chunk_seconds(before)
    for figure in CHUNK_S:
        if document[figure] is None:
            why[figure] = "bench_preview.py has not been run on this hardware"
    document["missing"] = why
    return document


def path_by_path(fill: Sequence[Measured], cache: Sequence[Measured]) -> dict[str, Any]:
    """How a fill stands beside the cache on each path that does not come back: a median hides on which it is better.

    Returns, by window and figure, on how many paths the fill is `better` or `level` `of` all that tell, and its
    `median_gain` and `least_gain` over the cache (of LPIPS: by how much it is lower). In `psnr_prior` the fill's own
    prior stands in the cache's place, on the pixels valid in it: what the cache would have left of that prior.
    """
    others = {m.scene["name"]: m for m in cache}
    pairs = [(m, others[m.scene["name"]]) for m in onward(fill) if m.scene["name"] in others]
    told: dict[str, Any] = {}
    for window in WINDOWS:
        gains = {
            name: [sign * (own.window(window, name) - other.window(window, name)) for own, other in pairs]
            for name, sign in COMPARED.items()
        }
        gains["psnr_prior"] = [own.window(window, "psnr_valid") - own.window(window, "psnr_prior") for own, _ in pairs]
        told[str(window)] = {name: _gained(some) for name, some in gains.items()}
    return told


def _gained(gains: Sequence[float]) -> dict[str, Any]:
    known = [gain for gain in gains if math.isfinite(gain)]
    return {
        "better": sum(gain > 0 for gain in known),
        "level": sum(gain == 0 for gain in known),
        "of": len(known),
        "median_gain": median(known),
        "least_gain": min(known, default=math.nan),
    }


def timed(document: dict[str, Any], where: Mapping[str, Any], chunk_s: float) -> dict[str, Any]:
    """The document with the seconds of a chunk on the hardware of `where` (a `provenance`), if it has a figure for it.

    Of one chunk made alone by a running server: an evaluation's own seconds hold first kernels, and other jobs.
    """
    gpu = str(where["gpu"] or "")
    figure = "chunk_s_h100" if "H100" in gpu else "chunk_s_2_cores" if not gpu and where["cores"] == 2 else None
    if figure is None:
        return document
    missing = {name: why for name, why in document.get("missing", {}).items() if name != figure}
    return document | {figure: chunk_s, "missing": missing}


def _of_fill(measured: Sequence[Measured]) -> dict[str, Any]:
    seeds = sorted({m.figures["variant"]["seed"] for m in measured})
    kept = {"variant": measured[0].folder.parent.name, "scenes": [m.scene["name"] for m in measured], "seeds": seeds}
    strata = {name: summarise(some, pooled=False) for name, some in by_group(measured, "stratum").items()}
    return summarise(measured) | kept | {"strata": strata}


def _trained(folder: Path, network: str, figure: str) -> float | None:
    if not network_files(folder, network):
        return None
    try:
        found = read_network(folder, network).progress.get("figures", {}).get(figure)
    except WorldWarpError:
        return None
    return float(found) if isinstance(found, int | float) else None


def _chunk_seconds(before: Path | None) -> dict[str, float]:
    """Seconds of a chunk that an earlier file has."""
    if before is None or not before.is_file():
        return {}
    try:
        found = json.loads(before.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: found[name] for name in CHUNK_S if isinstance(found, dict) and isinstance(found.get(name), float)}
