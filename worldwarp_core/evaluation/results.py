"""What was measured, on disk: one folder a scene, whole or not there, so that hours of work go on after a kill.

    OUT/runs/<variant>/<scene>/result.json     the figures, written last: with it, the scene is done
                               features.npz    for figures over all scenes together
                               <frame>-made.jpg, -prior.jpg, -truth.jpg
    OUT/runs/settings.json                     what else the figures depend on; other settings need another OUT
    OUT/truth/<scene>.npz                      true frames that were worked out

A figure that cannot be told is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..atomic_write import atomic_write
from ..errors import WorldWarpError
from .inception import frechet_distance
from .judge import WINDOWS, Judged, window_numbers
from .metrics import kid

FRAME_FIGURES = (
    "psnr", "psnr_seen", "psnr_valid", "psnr_prior", "psnr_holes", "ssim", "lpips", "spectrum_distance",
    "spectrum_distance_all", "valid_share", "depth_absrel",
)  # fmt: skip
POSE_FIGURES = ("r_dist", "t_dist", "unregistered")
REVISIT_FIGURES = ("revisit_psnr", "revisit_lpips", "return_psnr")
JPEG_QUALITY = 90
BUSY = 1.3
"""From so many processes a core on, seconds tell of the others too."""


@dataclass(frozen=True)
class Measured:
    """One scene of one variant, as it was kept."""

    folder: Path
    figures: dict[str, Any]

    @property
    def scene(self) -> dict[str, Any]:
        return dict(self.figures["scene"])

    def features(self) -> dict[str, np.ndarray]:
        """Arrays by name, such as `alexnet-50-made`."""
        file = self.folder / "features.npz"
        if not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in kept.files}

    def picture(self, name: str) -> Path | None:
        """The file of a picture, such as `50-truth`."""
        file = self.folder / f"{name}.jpg"
        return file if file.is_file() else None

    def frame(self, number: int, figure: str) -> float:
        return _number(self.figures["frames"].get(str(number), {}).get(figure))

    def window(self, window: int, figure: str) -> float:
        """The mean over a window's frames; nan where the path is shorter."""
        return mean(self.frame(number, figure) for number in window_numbers(window))


class ResultFolder:
    """The folder of an evaluation.

    Args:
        out: the folder, made where it is missing.
        settings: what all figures in it depend on besides the variant.

    Raises:
        WorldWarpError: `other_settings` where the folder holds figures that were made with others.
    """

    def __init__(self, out: Path, settings: dict[str, Any] | None = None) -> None:
        self.out = out
        file = out / "runs" / "settings.json"
        if settings is None:
            return
        if file.is_file():
            kept = _read_json(file)
            if differing := sorted(name for name in settings if kept.get(name) != settings[name]):
                said = ", ".join(f"{name} was {kept.get(name)!r} and is {settings[name]!r}" for name in differing)
                raise WorldWarpError(
                    "other_settings", f"{out} holds results of other settings ({said}). Give another --out."
                )
        else:
            write_json(file, settings)

    @property
    def truth(self) -> Path:
        return self.out / "truth"

    def done(self, variant: str, scene: str) -> bool:
        return (self._folder(variant, scene) / "result.json").is_file()

    def save(self, variant: str, scene: str, judged: Judged) -> None:
        folder = self._folder(variant, scene)
        for name, picture in judged.pictures.items():
            with atomic_write(folder / f"{name}.jpg") as partial:
                Image.fromarray(picture).save(partial, quality=JPEG_QUALITY, subsampling=0)
        if judged.features:
            with atomic_write(folder / "features.npz") as partial, partial.open("wb") as file:
                np.savez(file, **judged.features)  # type: ignore[arg-type]
        write_json(folder / "result.json", judged.figures)

    def load(self, variant: str, scenes: Sequence[str] | None = None) -> list[Measured]:
        """The scenes that are done, in the order given or by name."""
        folder = self.out / "runs" / variant
        names = scenes if scenes is not None else sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        return [
            Measured(folder / name, _read_json(folder / name / "result.json"))
            for name in names
            if self.done(variant, name)
        ]

    def _folder(self, variant: str, scene: str) -> Path:
        return self.out / "runs" / variant / scene


def summarise(measured: Sequence[Measured], pooled: bool = True) -> dict[str, Any]:
    """Medians over scenes, of each window: what the report shows and what `preview_quality.json` holds.

    Paths that come back end where everything is known: they have their own figures, and count in others only alone.

    Args:
        pooled: work out KID and FID too, which compare all scenes' crops together.
    """
    summary: dict[str, Any] = {"paths": len(measured)}
    paths = onward(measured)
    for window in WINDOWS:
        row: dict[str, Any] = {name: median(m.window(window, name) for m in paths) for name in FRAME_FIGURES}
        poses = [m.figures.get("poses", {}).get(str(window), {}) for m in paths]
        row |= {name: median(_number(p.get(name)) for p in poses) for name in ("r_dist", "t_dist")}
        # a median would hide the paths of which nothing was registered
        row["unregistered"] = mean(_number(p.get("unregistered")) for p in poses)
        if pooled:
            row |= _pooled(paths, window)
        summary[str(window)] = row
    visits = [m.figures["revisit"] for m in measured if "revisit" in m.figures]
    summary |= {name: median(_number(v.get(name)) for v in visits) for name in REVISIT_FIGURES}
    summary["revisits"] = len(visits)
    summary["chunk_s"] = median(_number(m.figures.get("chunk_s")) for m in measured)
    return summary


def busy_note(measured: Sequence[Measured]) -> str | None:
    """What is to be said of seconds that were measured beside other work; None where the machine was free."""
    known = [load for m in measured if math.isfinite(load := _number(m.figures.get("busy")))]
    busiest = max(known, default=0.0)
    at_once = max((int(m.figures.get("jobs", 1)) for m in measured), default=1)
    told = []
    if at_once > 1:
        told.append(f"Up to {at_once} shots were made at once")
    if busiest > BUSY:
        told.append(f"the machine had other work beside this (up to {busiest:.1f} processes a core)")
    said = ", ".join(told)
    return f"{said[0].upper()}{said[1:]}: seconds are too long." if told else None


def onward(measured: Sequence[Measured]) -> list[Measured]:
    """The paths that do not come back; all where all do."""
    return [m for m in measured if m.scene["stratum"] != "revisit"] or list(measured)


def by_group(measured: Sequence[Measured], key: str) -> dict[str, list[Measured]]:
    """The scenes of each `stratum` or `kind`, in the order in which they first come."""
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        groups.setdefault(str(one.scene[key]), []).append(one)
    return groups


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all; nan and infinity, which JSON does not know, become null."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(plain(values), indent=2, allow_nan=False) + "\n", "utf-8")


def plain(values: Any) -> Any:
    """As JSON has it."""
    if isinstance(values, dict):
        return {str(name): plain(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    if isinstance(values, float):
        return round(values, 6) if math.isfinite(values) else None
    return values if isinstance(values, str | int | bool | None) else str(values)


def median(values: Iterable[float]) -> float:
    """Of what can be told; nan of nothing."""
    return _of_known(values, np.median)


def mean(values: Iterable[float]) -> float:
    """Of what can be told; nan of nothing."""
    return _of_known(values, np.mean)


def _of_known(values: Iterable[float], how: Callable[[np.ndarray], Any]) -> float:
    known = np.array([value for value in values if math.isfinite(value)])
    return float(how(known)) if len(known) else math.nan


def _pooled(measured: Sequence[Measured], window: int) -> dict[str, Any]:
    """KID with its interval, and FID where Inception's features are there, with how many crops they saw."""
    kept = [m.features() for m in measured]
    figures: dict[str, Any] = {"kid": math.nan}
    for network, name in (("alexnet", "kid"), ("inception", "fid")):
        keys = [f"{network}-{window}-{which}" for which in ("made", "truth")]
        if not kept or any(key not in features for features in kept for key in keys):
            continue
        made, truth = (torch.from_numpy(np.concatenate([f[key] for f in kept])).float() for key in keys)
        if name == "fid":
            figures["fid"] = frechet_distance(made, truth)
        else:
            found = kid(made, truth, torch.Generator().manual_seed(0))
            figures |= {"kid": found.value, "kid_low": found.low, "kid_high": found.high}
        figures[f"{name}_crops"] = len(made)
    return figures


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WorldWarpError(
            "bad_results", f"{path} cannot be read ({error}). Delete its folder; the scene is then made again."
        ) from error
