"""Plots of figures along the path and of the arms of an experiment, as matplotlib figures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_write import atomic_write
from ..errors import WorldWarpError, install_command

NAMES = {
    "psnr": "PSNR (dB)",
    "psnr_seen": "PSNR of what the start shows (dB)",
    "psnr_valid": "PSNR where valid (dB)",
    "psnr_prior": "PSNR of the prior where valid (dB)",
    "psnr_holes": "PSNR in holes (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "kid": "KID",
    "fid": "FID",
    "spectrum_distance": "Spectrum distance in holes",
    "spectrum_distance_all": "Spectrum distance",
    "valid_share": "Share of the prior that is valid",
    "depth_absrel": "Relative error of depth",
    "r_dist": "R_dist (rad)",
    "t_dist": "T_dist",
    "unregistered": "Unregistered share",
    "revisit_psnr": "Revisit PSNR (dB)",
    "revisit_lpips": "Revisit LPIPS",
    "return_psnr": "Last frame against the start (dB)",
    "cache_s": "Fitting the cache (s)",
    "chunk_s": "A chunk (s)",
}
LEAST_SPAN = {
    "psnr": 1.0, "psnr_seen": 1.0, "psnr_valid": 1.0, "psnr_prior": 1.0, "psnr_holes": 1.0, "revisit_psnr": 1.0,
    "return_psnr": 1.0, "ssim": 0.05, "lpips": 0.05, "revisit_lpips": 0.05, "kid": 0.1, "r_dist": 0.05, "t_dist": 0.05,
    "unregistered": 0.1,
}  # fmt: skip
"""What an axis spans at least: differences below it are none to be seen."""
LESS_IS_BETTER = (
    "lpips", "kid", "fid", "spectrum_distance", "spectrum_distance_all", "depth_absrel", "r_dist", "t_dist",
    "unregistered", "revisit_lpips", "cache_s", "chunk_s",
)  # fmt: skip


def figure_name(figure: str) -> str:
    """What a figure such as `psnr@50` is called."""
    name, _, window = figure.partition("@")
    return f"{NAMES.get(name, name)} at {window}" if window else NAMES.get(name, name)


def plot_curves(curves: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Figures along the path, side by side: figure -> label -> frame number -> value."""
    shown = {figure: rows for figure, rows in curves.items() if any(_known(row) for row in rows.values())}
    pyplot = _pyplot()
    drawn, axes = pyplot.subplots(1, max(len(shown), 1), figsize=(4.2 * max(len(shown), 1), 3.1), squeeze=False)
    for axis, (figure, rows) in zip(axes[0], shown.items(), strict=False):
        for label, row in rows.items():
            points = _known(row)
            axis.plot([int(n) for n in points], list(points.values()), marker="o", markersize=3, label=label)
        axis.set(xlabel="frame", ylabel=figure_name(figure))
        _finish(axis)
    if shown:
        axes[0][0].legend(fontsize=7, frameon=False)
    return drawn


def plot_arms(table: Mapping[str, Any], figures: Sequence[str]) -> Any:
    """The arms of an experiment by some of its figures: along an axis where they have places on one, else as bars."""
    rows = table["rows"]
    shown = [f for f in figures if any(_is_known(row.get(f)) for row in rows)]
    pyplot = _pyplot()
    drawn, axes = pyplot.subplots(1, max(len(shown), 1), figsize=(3.6 * max(len(shown), 1), 3.1), squeeze=False)
    along = all(row["at"] is not None for row in rows)
    for axis, figure in zip(axes[0], shown, strict=False):
        known = [row for row in rows if _is_known(row.get(figure))]
        if along:
            axis.plot([row["at"] for row in known], [row[figure] for row in known], marker="o")
            axis.set_xlabel(table["axis"])
            _widen(axis, LEAST_SPAN.get(figure.partition("@")[0], 0.0), min(row[figure] for row in known))
        else:
            bars = axis.barh([row["arm"] for row in known], [row[figure] for row in known], color="C0")
            axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
            axis.invert_yaxis()
            axis.margins(x=0.15)
        better = "less" if figure.partition("@")[0] in LESS_IS_BETTER else "more"
        axis.set_title(f"{figure_name(figure)}\n({better} is better)", fontsize=8)
        _finish(axis)
    return drawn


def save_png(drawn: Any, path: Path) -> None:
    """Writes the plot, whole or not at all."""
    with atomic_write(path) as partial:
        drawn.savefig(partial, dpi=110)
    _pyplot().close(drawn)


def inline_svg(drawn: Any) -> str:
    """The plot as a data address, for an image in a page."""
    kept = io.BytesIO()
    drawn.savefig(kept, format="svg")
    _pyplot().close(drawn)
    return "data:image/svg+xml;base64," + base64.b64encode(kept.getvalue()).decode()


def _known(row: Mapping[str, float]) -> dict[str, float]:
    return {number: value for number, value in row.items() if _is_known(value)}


def _is_known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _widen(axis: Any, span: float, least: float) -> None:
    """The axis spans so much at least, and nothing below 0 where all values, of which one is the least, are above."""
    low, high = axis.get_ylim()
    if high - low < span:
        middle = (low + high) / 2
        low, high = middle - span / 2, middle + span / 2
    if least >= 0 > low:
        low, high = 0.0, high - low
    axis.set_ylim(low, high)


def _finish(axis: Any) -> None:
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.figure.set_layout_engine("constrained")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise WorldWarpError(
            "not_installed", f"Plots need matplotlib, which is not installed. Run: {install_command('evaluation')}"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
