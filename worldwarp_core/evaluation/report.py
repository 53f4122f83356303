"""An evaluation as one HTML page that needs nothing beside it: tables, plots, and pictures side by side."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .judge import CURVE_EVERY, SHOWN, WINDOWS
from .plots import LESS_IS_BETTER, figure_name, inline_svg, plot_arms, plot_curves
from .results import REVISIT_FIGURES, Measured, ResultFolder, by_group, mean, onward, summarise

FIGURES = (
    "psnr", "psnr_seen", "psnr_valid", "psnr_prior", "psnr_holes", "ssim", "lpips", "kid", "fid", "spectrum_distance",
    "r_dist", "t_dist", "unregistered",
)  # fmt: skip
STRATUM_FIGURES = ("psnr", "psnr_seen", "psnr_valid", "psnr_prior", "lpips", "valid_share", "r_dist", "unregistered")
CURVES = ("psnr", "psnr_seen", "psnr_valid", "lpips", "valid_share")
SHOWN_OF_EACH_STRATUM = 2


@dataclass(frozen=True)
class Cell:
    """One figure as it is shown."""

    text: str
    best: bool = False
    title: str = ""


def write_report(results: ResultFolder, quality: Mapping[str, Any], experiments: Sequence[Path], page: Path) -> None:
    """Writes the page.

    Args:
        quality: what `preview_quality.json` holds.
        experiments: their JSON files.

    Raises:
        WorldWarpError: `no_results`, `not_installed` without matplotlib.
    """
    fills = {name: _scenes_of(results, quality, name) for name in _measured(quality)}
    if not fills and not experiments:
        raise WorldWarpError("no_results", f"{results.out} holds no results: run `worldwarp eval --out {results.out}`.")
    environment = Environment(
        loader=PackageLoader("worldwarp_core.evaluation", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.html").render(
        quality=quality,
        facts=_facts(quality),
        table=_table(fills, quality),
        strata=_strata(fills),
        curves=_curves(fills),
        strips=_strips(fills),
        scenes=_scenes(fills),
        experiments=[_experiment(path) for path in experiments],
        windows=list(WINDOWS),
    )
    with atomic_write(page) as partial:
        partial.write_text(text, "utf-8")


def _measured(quality: Mapping[str, Any]) -> list[str]:
    """The fills that the figures are of."""
    return [name for name, value in quality.items() if isinstance(value, dict) and "variant" in value]


def _scenes_of(results: ResultFolder, quality: Mapping[str, Any], fill: str) -> list[Measured]:
    return results.load(quality[fill]["variant"], quality[fill]["scenes"])


def _facts(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings = quality["settings"]
    data = {"worlds": "held-out procedural worlds", "re10k": "RealEstate10K", "dl3dv": "DL3DV"}
    fills = {name: quality[name] for name in _measured(quality)}
    every = settings["window_every"]
    return [
        ("Data", data[settings["data"]]),
        ("Paths", "; ".join(f"{n}: {f['paths'] - f['revisits']}, {f['revisits']} revisits" for n, f in fills.items())),
        ("Size", "{}x{}".format(*settings["size"])),
        ("Depth", f"of the start frame {settings['depth']}, of later frames never"),
        ("Judged", f"frames 45-55 and 190-200{f', one in {every}' if every > 1 else ''}"),
        ("Poses", f"from one frame in {settings['poses_every']}" if settings["poses_every"] else "not estimated"),
        ("Machine", quality["gpu"] or f"{quality['cpu']}, {quality['cores']} cores"),
        ("Date, commit", f"{quality['date']}, {quality['commit'] or 'not a checkout'}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in quality["versions"].items())),
    ]


def _table(fills: Mapping[str, Sequence[Measured]], quality: Mapping[str, Any]) -> dict[str, Any]:
    """At each window, fills by figures; the best of each column of a window is marked."""
    rows, intervals = [], {}
    kept = [n for n in FIGURES if any(_is_known(quality[f][str(w)].get(n)) for f in fills for w in WINDOWS)]
    for window in WINDOWS:
        found = {fill: quality[fill][str(window)] for fill in fills}
        for fill, figures in found.items():
            columns = {name: [f.get(name) for f in found.values()] for name in kept}
            cells = [_cell(figures.get(n), _is_best(figures.get(n), columns[n], n), n) for n in kept]
            rows.append((window, fill, cells))
            if _is_known(figures.get("kid")):
                intervals[f"{fill} at {window}"] = (
                    f"{figures['kid']:.3f} ({figures['kid_low']:.3f} to {figures['kid_high']:.3f}), "
                    f"{figures['kid_crops']} crops"
                )
    visits = {fill: quality[fill] for fill in fills if quality[fill]["revisits"]}
    revisits = [
        (fill, one["revisits"], [_cell(one[name], False, name) for name in REVISIT_FIGURES])
        for fill, one in visits.items()
    ]
    return {
        "heads": [figure_name(name) for name in kept],
        "rows": rows,
        "intervals": intervals,
        "revisit_heads": [figure_name(name) for name in REVISIT_FIGURES],
        "revisits": revisits,
    }


def _strata(fills: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """A table a window: strata by fills."""
    tables = []
    for window in WINDOWS:
        found = [
            (stratum, fill, len(some), summarise(some, pooled=False)[str(window)])
            for fill, measured in fills.items()
            for stratum, some in by_group(measured, "stratum").items()
        ]
        kept = [name for name in STRATUM_FIGURES if any(_is_known(summary[name]) for *_, summary in found)]
        rows = [(*of, [_cell(summary[name], False, name) for name in kept]) for *of, summary in found]
        order = list(dict.fromkeys(row[0] for row in rows))
        tables.append(
            {
                "window": window,
                "heads": [figure_name(name) for name in kept],
                "rows": sorted(rows, key=lambda row: order.index(row[0])),
            }
        )
    return tables


def _curves(fills: Mapping[str, Sequence[Measured]]) -> str | None:
    if not fills:
        return None
    longest = max(m.scene["frames"] for some in fills.values() for m in some)
    numbers = range(CURVE_EVERY, longest + 1, CURVE_EVERY)
    rows = {
        figure: {
            fill: {str(n): mean(m.frame(n, figure) for m in onward(some)) for n in numbers}
            for fill, some in fills.items()
        }
        for figure in CURVES
    }
    return inline_svg(plot_curves(rows))


def _strips(fills: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    """Truth, prior and every fill side by side, for the first scenes of each stratum."""
    if not fills:
        return []
    first = next(iter(fills.values()))
    strips = []
    for stratum, some in by_group(first, "stratum").items():
        for one in some[:SHOWN_OF_EACH_STRATUM]:
            same = {
                fill: match for fill, all_ in fills.items()
                if (match := next((m for m in all_ if m.scene["name"] == one.scene["name"]), None))
            }  # fmt: skip
            rows = []
            for number in SHOWN:
                pictures = [("truth", one.picture(f"{number}-truth")), ("prior", one.picture(f"{number}-prior"))]
                pictures += [(fill, m.picture(f"{number}-made")) for fill, m in same.items()]
                if all(file is not None for _, file in pictures):
                    figures = {fill: f"{m.frame(number, 'psnr'):.1f} dB" for fill, m in same.items()}
                    rows.append(
                        (number, [(name, _inline(file), figures.get(name, "")) for name, file in pictures if file])
                    )
            strips.append({"scene": one.scene, "stratum": stratum, "rows": rows})
    return strips


def _scenes(fills: Mapping[str, Sequence[Measured]]) -> list[tuple[Any, ...]]:
    rows = []
    for fill, measured in fills.items():
        for m in measured:
            figures = [m.window(window, name) for window in WINDOWS for name in ("psnr", "lpips", "valid_share")]
            cells = [_cell(value, False) for value in figures]
            rows.append((m.scene["name"], m.scene["stratum"], fill, cells, f"{m.figures['seconds']:.0f}"))
    return rows


def _experiment(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text("utf-8"))
        figures = [name for name in table["rows"][0] if name not in ("arm", "at")]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise WorldWarpError("bad_results", f"{path} is no experiment's file ({error}). Run it again.") from error
    kept = [f for f in figures if any(_is_known(row[f]) for row in table["rows"])]
    groups = [("", table["rows"]), *table.get("kinds", {}).items()]
    curves = {name: rows for name, rows in table["curves"].items() if any(map(_any_known, rows.values()))}
    return {
        "name": table["experiment"],
        "question": table["question"],
        "paths": table["paths"],
        "notes": table.get("notes", []),
        "best": table.get("best"),
        "heads": [figure_name(f) for f in kept],
        "groups": [(kind, _arm_rows(rows, kept)) for kind, rows in groups],
        "plot": inline_svg(plot_arms(table, table["plotted"])),
        "curves": inline_svg(plot_curves(curves)) if curves else None,
    }


def _arm_rows(rows: Sequence[Mapping[str, Any]], figures: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    columns = {f: [row[f] for row in rows] for f in figures}
    return [(row["arm"], [_cell(row[f], _is_best(row[f], columns[f], f), f) for f in figures]) for row in rows]


def _any_known(row: Mapping[str, Any]) -> bool:
    return any(_is_known(value) for value in row.values())


def _cell(value: Any, best: bool, figure: str = "") -> Cell:
    if not _is_known(value):
        return Cell("–", title="cannot be told")
    name = figure.partition("@")[0]
    digits = 1 if "psnr" in name or name.endswith("_s") else 3
    return Cell(f"{value:.{digits}f}", best)


def _is_best(value: Any, values: Sequence[Any], figure: str) -> bool:
    known = [v for v in values if _is_known(v)]
    if len(known) < 2 or not _is_known(value):
        return False
    return bool(value == (min(known) if figure.partition("@")[0] in LESS_IS_BETTER else max(known)))


def _is_known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _inline(file: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()
