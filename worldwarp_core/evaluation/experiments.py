"""The paper's experiments, and ours beyond them: which variants each compares, on which paths, and what is read off.

Each is a question, a list of variants and the figures that answer it. The experiments about noise need a learned fill;
those about the cache can be run with the fill `cache` too, on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .judge import CURVE_EVERY
from .results import Measured, by_group, mean, median, summarise
from .variants import Variant

Paths = Literal["paths", "revisits"]


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        label: in tables and plots.
        change: the fields of `Variant` that differ from the default.
        at: where it stands on the experiment's axis; None where the arms are names.
        needs_fill: only a learned fill can show it.
    """

    label: str
    change: dict[str, Any]
    at: float | None = None
    needs_fill: bool = False


@dataclass(frozen=True)
class Experiment:
    """One question.

    Attributes:
        name: on the command line.
        question: in a sentence.
        axis: what the arms differ in.
        arms: the method's own setting is one of them.
        paths: the held-out paths, or those that come back.
        figures: that answer it, those of a window as `<figure>@<window>`.
        plotted: those of them that are shown as a plot.
        needs_fill: without a learned fill there is nothing to see.
        by_kind: tell the figures for each kind of place too.
    """

    name: str
    question: str
    axis: str
    arms: tuple[Arm, ...]
    paths: Paths
    figures: tuple[str, ...]
    plotted: tuple[str, ...]
    needs_fill: bool = False
    by_kind: bool = False


WINDOWED = ("psnr@50", "psnr@200", "lpips@50", "lpips@200")
POSED = ("r_dist@200", "t_dist@200", "unregistered@200")

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "strength",
            "How much of the schedule should warped regions go through, by kind of place?",
            "strength",
            tuple(Arm(f"{s:g}", {"strength": s}, s) for s in (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)),
            "paths",
            (*WINDOWED, "psnr_valid@200", "kid@200"),
            ("lpips@50", "lpips@200", "psnr@200", "kid@200"),
            needs_fill=True,
            by_kind=True,
        ),
        Experiment(
            "cache",
            "What is an online 3DGS cache worth against a point cloud, and against none?",
            "cache",
            (
                Arm("online 3DGS", {}),
                Arm("point cloud", {"representation": "points"}),
                Arm("none", {"representation": "none"}, needs_fill=True),
            ),
            "paths",
            (*WINDOWED, "psnr_valid@50", "psnr_valid@200", "valid_share@200", *POSED),
            WINDOWED,
        ),
        Experiment(
            "noise",
            "Does noise have to vary in space and in time?",
            "noise",
            (
                Arm("both", {}),
                Arm("spatial only", {"noise": "spatial"}),
                Arm("temporal only", {"noise": "temporal"}),
                Arm("full noise", {"noise": "full_noise"}),
            ),
            "paths",
            (*WINDOWED, "kid@200", *POSED),
            WINDOWED,
            needs_fill=True,
        ),
        Experiment(
            "cache-steps",
            "How long should the cache be optimised?",
            "optimisation steps of the first fit",
            tuple(Arm(f"{n}", {"cache_steps": n}, n) for n in (50, 200, 500, 1000)),
            "paths",
            ("cache_s", *WINDOWED, "psnr_valid@50", "psnr_valid@200", *POSED),
            ("cache_s", "psnr@50", "psnr@200", "r_dist@200", "t_dist@200"),
        ),
        Experiment(
            "depth-errors",
            "How does an error of the start frame's depth go on along the path?",
            "error of the start depth",
            (
                Arm("exact", {}),
                *(Arm(f"scale {a:+.0%}", {"depth_fault": "scale", "depth_amount": a}) for a in (-0.1, 0.1)),
                Arm("shift +10%", {"depth_fault": "shift", "depth_amount": 0.1}),
                Arm("noise 5%", {"depth_fault": "noise", "depth_amount": 0.05}),
                Arm("warp 5%", {"depth_fault": "warp", "depth_amount": 0.05}),
                Arm("warp 15%", {"depth_fault": "warp", "depth_amount": 0.15}),
            ),
            "paths",
            (*WINDOWED, "psnr_valid@50", "psnr_valid@200", "depth_absrel@50", "depth_absrel@200", *POSED),
            ("psnr@50", "psnr@200", "depth_absrel@50", "depth_absrel@200"),
        ),
        Experiment(
            "persistence",
            "What is a persistent cache worth against one that is rebuilt each chunk?",
            "cache",
            (Arm("persistent", {}), Arm("rebuilt each chunk", {"persistent": False})),
            "revisits",
            ("revisit_psnr", "revisit_lpips", "return_psnr", "psnr@50", "psnr@200", "valid_share@200"),
            ("revisit_psnr", "revisit_lpips", "return_psnr"),
        ),
    )
}


def arms_of(experiment: Experiment, learned: bool) -> tuple[tuple[Arm, ...], list[str]]:
    """The arms that an engine can show, and in sentences why the others are left out."""
    shown = tuple(arm for arm in experiment.arms if learned or not arm.needs_fill)
    left = [
        f"{arm.label} is left out: without a cache the fill `cache` has nothing to show; it needs a learned fill."
        for arm in experiment.arms
        if arm not in shown
    ]
    return shown, left


def variant_of(arm: Arm, base: Variant) -> Variant:
    return replace(base, **arm.change)


def tabulate(
    experiment: Experiment, arms: Sequence[Arm], measured: Sequence[Sequence[Measured]], learned: bool
) -> dict[str, Any]:
    """Rows of figures, medians over the paths that every arm has, and their way along the path.

    Where strength is asked about, the one with the best LPIPS at the path's end is named.
    """
    common = set.intersection(*({m.scene["name"] for m in some} for some in measured)) if measured else set()
    kept = [[m for m in some if m.scene["name"] in common] for some in measured]
    rows = [_row(experiment, arm, some) for arm, some in zip(arms, kept, strict=True)]
    table: dict[str, Any] = {
        "experiment": experiment.name,
        "question": experiment.question,
        "axis": experiment.axis,
        "paths": sorted(common),
        "learned_fill": learned,
        "plotted": list(experiment.plotted),
        "rows": rows,
        "curves": {
            figure: {arm.label: _curve(some, figure) for arm, some in zip(arms, kept, strict=True)}
            for figure in ("psnr", "psnr_valid", "depth_absrel")
        },
    }
    if experiment.by_kind:
        kinds = [by_group(some, "kind") for some in kept]
        table["kinds"] = {
            kind: [
                _row(experiment, arm, group[kind]) | {"paths": len(group[kind])}
                for arm, group in zip(arms, kinds, strict=True)
            ]
            for kind in (kinds[0] if kinds else {})
        }
        table["best"] = {"all": _best(rows)} | {kind: _best(some) for kind, some in table["kinds"].items()}
    return table


def _row(experiment: Experiment, arm: Arm, measured: Sequence[Measured]) -> dict[str, Any]:
    summary = summarise(measured, pooled=any(figure.startswith(("kid", "fid")) for figure in experiment.figures))
    seconds = [m.figures["summary"].get("seconds", {}).get("cache", math.nan) for m in measured]
    row: dict[str, Any] = {"arm": arm.label, "at": arm.at}
    for figure in experiment.figures:
        name, _, window = figure.partition("@")
        if figure == "cache_s":
            row[figure] = median(seconds)
        else:
            row[figure] = summary[window][name] if window else summary[name]
    return row


def _curve(measured: Sequence[Measured], figure: str) -> dict[str, float]:
    """Means over the paths at every so many frames."""
    longest = max((m.scene["frames"] for m in measured), default=0)
    return {
        str(number): mean(m.frame(number, figure) for m in measured)
        for number in range(CURVE_EVERY, longest + 1, CURVE_EVERY)
    }


def _best(rows: Sequence[dict[str, Any]]) -> float | None:
    """The strength with the best LPIPS at the end, or PSNR where LPIPS was not measured."""
    for figure, sign in (("lpips@200", 1), ("psnr@200", -1)):
        known = [row for row in rows if math.isfinite(row[figure])]
        if known:
            return float(min(known, key=lambda row: sign * row[figure])["at"])
    return None
