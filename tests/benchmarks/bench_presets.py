"""What the production presets do to pictures: the trained preview transformer asked by each of their schedules.

    python -m tests.benchmarks.bench_presets --lpips FILE --textures FILE

Of every held-out path the first chunk is made once by each preset: by the production sampler, from the same start frame
with its depth, the same priors and the same noise. Both at the method's strength, 0.8, which `wan` takes where a shot
names none and which is more than the preview was trained for, and at the preview's own, 0.2. `preview` is its own
preset, as a yardstick; `fast_without_fp8` is `fast` where a device has no float8. The preview knows no words, so no
preset is guided: what their guidance at some steps only does to pictures is not measured here. `--weights` is to hold a
transformer that was not distilled for few steps, as the one that ships was: that would answer another question.

lpips, psnr_valid, psnr     against the truth, of every fourth new frame; `valid` are the pixels that the prior knows.
from_reference_lpips, _psnr the same frames against those that `reference` made.
lpips_change_percent, psnr_valid_change_db
                            a path's own, against `reference`: above 0 is worse for LPIPS and better for PSNR.
lpips_mean_change_percent   of the mean LPIPS of all paths, in which those that are hard to fill count most.
within_bound                whether the median change of LPIPS is at most what lets a preset carry its name.
passes, seconds             of the transformer in a chunk; of the chunk without its cache, too many where other work ran
                            beside it (`busy`, of a path, is above 1).

Figures are medians over the paths, of a path's changes with the quartiles; each path's own are under `paths`. Writes
results/presets_<hardware>.json after each path, and .jpg: the last frames of two paths, side by side.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    to_tensor,
)
from worldwarp_core.engine import Engine, make_engine
from worldwarp_core.evaluation.judge import busy
from worldwarp_core.evaluation.lpips import Lpips
from worldwarp_core.evaluation.metrics import psnr
from worldwarp_core.evaluation.provenance import provenance
from worldwarp_core.evaluation.scenes import HeldOutWorlds, Scene, SceneSet
from worldwarp_core.evaluation.variants import Variant
from worldwarp_core.loop.priors import VALID
from worldwarp_core.preview.load import PRESETS as PREVIEW
from worldwarp_core.preview.load import PreviewFill, load_models
from worldwarp_core.st_diff.fill import FixedModels, StDiffFill, StDiffModels, Transformer
from worldwarp_core.st_diff.noise_map import SMALL_PICTURES
from worldwarp_core.st_diff.presets import BALANCED, FAST, REFERENCE, Preset
from worldwarp_core.transformer.float8 import multiplies_float8
from worldwarp_core.transformer.prepare import TransformerOptions

FAST_IN_FULL = replace(FAST, name="fast_without_fp8", fp8=False, changes="as fast, but for float8")
PRESETS: dict[str, Preset] = {
    preset.name: preset for preset in (REFERENCE, BALANCED, FAST, FAST_IN_FULL, PREVIEW["preview"])
}
BOUND_PERCENT = {"balanced": 5.0, "fast": 15.0, "fast_without_fp8": 15.0}
"""By how much LPIPS may worsen against `reference` for a preset to carry its name."""
STRENGTHS = (StDiffFill.strength, PreviewFill.strength)
SHOWN_PATHS = 2
SHOWN = ("reference", "balanced", "fast", "preview")


@dataclass(frozen=True)
class Measured:
    """One path: its figures, and its last frame as it is and as each preset made it at each strength."""

    figures: dict[str, Any]
    truth: np.ndarray
    made: dict[tuple[float, str], np.ndarray]


@dataclass(frozen=True)
class TwoPrecisions(FixedModels):
    """The same models with a transformer in float8 beside the other, for presets that ask for it."""

    in_float8: Transformer | None = None

    def models(self, preset: Preset) -> StDiffModels:
        if preset.fp8 and self.in_float8 is not None:
            return replace(self.loaded, transformer=self.in_float8)
        return self.loaded


def bench_presets(
    scenes: SceneSet, fill: StDiffFill, presets: Sequence[str], engine: Engine, lpips: Lpips, seed: int = 0
) -> Iterator[Measured]:
    """Measures scene by scene; see above.

    Args:
        fill: with the presets by name, the first of which the others are held against.
        engine: whose cache the priors are of.
    """
    for index in range(len(scenes)):
        scene = scenes.scene(index)
        scene = replace(scene, cameras=scene.cameras[:CHUNK])
        yield measure(scene, fill, presets, given_first(engine, Variant(seed=seed).shot(scene)), lpips)


def open_fill(device: str, weights: Path) -> StDiffFill:
    """The production fill with the preview's networks and the presets that are measured."""
    source = load_models(device, weights)
    if multiplies_float8(source.loaded.device):
        in_float8 = load_models(device, weights, TransformerOptions(fp8=True)).loaded.transformer
        source = TwoPrecisions(source.name, source.loaded, float8=True, in_float8=in_float8)
    return StDiffFill(source, PRESETS, noise=SMALL_PICTURES)


def measure(scene: Scene, fill: StDiffFill, presets: Sequence[str], given: Given, lpips: Lpips) -> Measured:
    """Makes the chunk at each strength by each preset, the first of which the others are held against."""
    pictures, _ = scene.truth(given.judged)
    rows = given.judged_rows
    truth, valid = to_tensor(pictures), (given.priors.validity[rows] >= VALID).cpu()
    strengths: dict[str, dict[str, Any]] = {}
    shown: dict[tuple[float, str], np.ndarray] = {}
    for strength in STRENGTHS:
        by_preset: dict[str, Any] = {}
        reference: Tensor | None = None
        for name in presets:
            spec = replace(given.spec, preset=name, strength=strength, guidance=1.0)
            began = time.perf_counter()
            frames = make(fill, given, spec)[rows]
            seconds = time.perf_counter() - began
            made = to_tensor(frames)
            reference = made if reference is None else reference
            figures = {
                "lpips": lpips(made, truth),
                "psnr_valid": psnr(made, truth, valid),
                "psnr": psnr(made, truth),
                "from_reference_lpips": lpips(made, reference),
                "from_reference_psnr": psnr(made, reference),
            }
            by_preset[name] = {figure: round(float(values.nanmean()), 5) for figure, values in figures.items()}
            passes = fill.count_steps(spec, given.plan)["denoise"]
            by_preset[name] |= {"passes": passes, "seconds": round(seconds, 2)}
            shown[strength, name] = frames[-1]
        strengths[f"{strength:g}"] = by_preset
    known = [round(float(share), 3) for share in (valid.float().mean(), valid[-1].float().mean())]
    facts = {"name": scene.name, "stratum": scene.stratum, "valid_share": known[0], "valid_share_at_end": known[1]}
    return Measured(facts | {"busy": busy(), "strengths": strengths}, pictures[-1], shown)


def summarise(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Strength -> preset -> figures over the paths."""
    paths = [one.figures["strengths"] for one in measured]
    return {
        strength: {name: _of_preset([path[strength] for path in paths], name) for name in presets}
        for strength, presets in paths[0].items()
    }


def contact_sheet(measured: Sequence[Measured], path: Path) -> None:
    """The last frames of the first paths, a row for each strength, with each one's LPIPS over the path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(one, strength) for one in measured[:SHOWN_PATHS] for strength in STRENGTHS]
    drawn, axes = pyplot.subplots(len(rows), 1 + len(SHOWN), figsize=(12.8, 1.62 * len(rows)), squeeze=False)
    for cells, (one, strength) in zip(axes, rows, strict=True):
        figures = one.figures["strengths"][f"{strength:g}"]
        pictures = {"truth": one.truth} | {name: one.made[strength, name] for name in SHOWN}
        for cell, (name, picture) in zip(cells, pictures.items(), strict=True):
            cell.imshow(picture, interpolation="none")
            cell.set(xticks=[], yticks=[])
            beside = f"{one.figures['name']}, strength {strength:g}"
            if name != "truth":
                beside = f"{figures[name]['passes']} passes, LPIPS {figures[name]['lpips']:.3f}"
            cell.set_title(f"{name}: {beside}", fontsize=7, pad=2)
            cell.set_frame_on(False)
    drawn.set_layout_engine("constrained")
    drawn.savefig(path, dpi=104, pil_kwargs={"quality": 80})  # a picture about as large as it was made
    pyplot.close(drawn)


def _of_preset(paths: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Figures of one preset over the paths, each given as preset -> its figures, `reference` first."""
    first = next(iter(paths[0]))
    own, reference = [path[name] for path in paths], [path[first] for path in paths]
    figures: dict[str, Any] = {figure: round(float(np.nanmedian([row[figure] for row in own])), 4) for figure in own[0]}
    figures["passes"] = own[0]["passes"]
    if name == first:
        return figures
    pairs = list(zip(own, reference, strict=True))
    change = [100 * (row["lpips"] / beside["lpips"] - 1) for row, beside in pairs]
    figures["lpips_change_percent"] = _spread(change)
    means = [float(np.mean([row["lpips"] for row in rows])) for rows in (own, reference)]
    figures["lpips_mean_change_percent"] = round(100 * (means[0] / means[1] - 1), 3)
    figures["psnr_valid_change_db"] = _spread([row["psnr_valid"] - beside["psnr_valid"] for row, beside in pairs])
    if (bound := BOUND_PERCENT.get(name)) is not None:
        figures |= {
            "bound_percent": bound,
            "within_bound": bool(np.median(change) <= bound),
            "paths_within_bound": sum(value <= bound for value in change),
        }
    return figures


def _spread(values: Sequence[float]) -> dict[str, Any]:
    low, middle, high = (round(float(value), 3) for value in np.nanpercentile(values, (25, 50, 75)))
    return {"median": middle, "quartiles": [low, high]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = shared_options(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    lpips = open_lpips(parser, options)
    fill, where = open_fill(options.device, options.weights), provenance()
    float8 = multiplies_float8(torch.device(options.device))
    missing = {"guidance": "the preview was trained without words, so no preset is asked with guidance"}
    if not float8:
        missing["fp8"] = "this device does not multiply float8: `fast` is done in full"
    document: dict[str, Any] = {
        **where,
        "settings": shared_settings(options, fill.describe()["models"])
        | {
            "seed": options.seed,
            "fp8": float8,
            "presets": {name: preset.describe() for name, preset in PRESETS.items()},
        },
        "not_measured": missing,
    }
    scenes = HeldOutWorlds(options.paths, 0, textures=options.textures, device=options.device)
    engine = make_engine("cache", options.device, None, {})
    file = result_file(options, "presets", where)
    measured: list[Measured] = []
    for one in bench_presets(scenes, fill, list(PRESETS), engine, lpips, options.seed):
        measured.append(one)
        document |= {"strengths": summarise(measured), "paths": [path.figures for path in measured]}
        file.write_text(json.dumps(document, indent=2) + "\n")
        if len(measured) <= SHOWN_PATHS:
            contact_sheet(measured, file.with_suffix(".jpg"))
        print(f"{len(measured)} of {len(scenes)}: {json.dumps(one.figures)}", flush=True)
    print(json.dumps(document["strengths"], indent=2))


if __name__ == "__main__":
    main()
