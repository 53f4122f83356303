"""What is compared: an engine with one or another of its parts changed, and start depths that are wrong on purpose."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np

from ..engine import Engine
from ..errors import WorldWarpError
from ..spec import GenerateSpec
from ..splats.cache import Representation
from ..st_diff.fill import StDiffFill
from ..st_diff.noise_map import Variant as Noise
from .scenes import Scene

DepthSource = Literal["given", "estimated"]
DepthFault = Literal["none", "scale", "shift", "noise", "warp"]

WARP_CELLS = (4, 6)
"""Rows and columns of the lattice that a smooth warp is drawn on."""


@dataclass(frozen=True)
class Variant:
    """How shots are made; what is left at its default is the engine's own.

    Attributes:
        engine: `cache`, `preview` or `wan`.
        depth: of the start frame: `given` as the scene knows it, or `estimated` by the engine's depth model, whose
            scale is set to the true median depth, as an artist sets it by a point whose distance is known.
        representation, persistent: of the cache; see `CacheSettings`.
        cache_steps: optimisation steps of the first fit; later ones keep their share.
        strength: tau.
        noise: which dimensions of the noise vary; see `NoiseSettings`.
        preset: of the engine.
        depth_fault, depth_amount: what is wrong with the start depth. `scale`: every depth times 1 + amount. `shift`:
            amount times the median depth is added. `noise`: independent of pixel to pixel, of that relative deviation.
            `warp`: bent smoothly across the picture, of that relative deviation.
        seed: of the shot, and of the fault.
    """

    engine: str = "cache"
    depth: DepthSource = "given"
    representation: Representation = "gaussians"
    persistent: bool = True
    cache_steps: int | None = None
    strength: float | None = None
    noise: Noise = "both"
    preset: str = ""
    depth_fault: DepthFault = "none"
    depth_amount: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        choices: dict[str, Any] = {
            "depth": DepthSource, "representation": Representation, "noise": Noise, "depth_fault": DepthFault
        }  # fmt: skip
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise WorldWarpError(
                    "bad_settings", f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}."
                )

    @property
    def name(self) -> str:
        """The engine and what differs from its defaults; good for a folder's name, and the same for the same shots."""
        default, words = Variant(), [self.engine]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("engine", "depth_amount") and value != getattr(default, field.name):
                amount = f"{self.depth_amount:+g}" if field.name == "depth_fault" else ""
                words.append(f"{field.name}={value}{amount}".replace("True", "yes").replace("False", "no"))
        return ",".join(words)

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def check(self, engine: Engine) -> None:
        """Raises `bad_settings` where the engine has nothing that the variant changes."""
        if not isinstance(engine.models.fill, StDiffFill):
            needs = [n for n in ("noise", "strength") if getattr(self, n) != getattr(Variant(), n)]
            if needs:
                raise WorldWarpError(
                    "bad_settings",
                    f"The engine {engine.name!r} has no learned fill, so {' and '.join(needs)} change nothing in it. "
                    "Choose --engine preview or --engine wan, with their weights.",
                )
            if self.representation == "none":
                raise WorldWarpError(
                    "bad_settings",
                    f"The engine {engine.name!r} shows its cache and nothing else: without one there is nothing to "
                    "show. Choose --engine preview or --engine wan, with their weights.",
                )
        if self.depth == "estimated" and engine.models.monocular is None:
            raise WorldWarpError(
                "no_depth",
                f"The engine {engine.name!r} has no depth model to estimate the start frame's depth with: give "
                "--depth-model NAME, or take --depth given.",
            )

    def adapt(self, engine: Engine) -> Engine:
        """The engine with this variant's parts."""
        cache = replace(engine.settings.cache, representation=self.representation, persistent=self.persistent)
        fill = engine.models.fill
        if isinstance(fill, StDiffFill) and self.noise != "both":
            fill = fill.with_noise(self.noise)
        return replace(engine, models=replace(engine.models, fill=fill), settings=replace(engine.settings, cache=cache))

    def shot(self, scene: Scene) -> GenerateSpec:
        """What the engine is asked to make.

        Raises:
            WorldWarpError: `no_depth` where depth is to be given and the scene has none.
        """
        rgb, depth = scene.truth([0])
        given, scale = None, scene.scale
        if depth is not None:
            scale = float(np.median(depth[0][np.isfinite(depth[0])]))
        if self.depth == "given":
            if depth is None:
                raise WorldWarpError(
                    "no_depth",
                    f"{scene.name} comes without depth maps: take --depth estimated, with an engine that has a depth "
                    "model or with --depth-model NAME.",
                )
            given = spoil_depth(depth[0], self.depth_fault, self.depth_amount, self.seed)
        return GenerateSpec(
            scene.cameras,
            rgb[0],
            given,
            seed=self.seed,
            cache_steps=self.cache_steps,
            preset=self.preset,
            scene_scale=None if self.depth == "given" else scale,
            strength=self.strength,
        )


def spoil_depth(depth: np.ndarray, fault: DepthFault, amount: float, seed: int = 0) -> np.ndarray:
    """(H, W) planar z with a known error; the sky (inf) stays where it is. See `Variant` for the faults."""
    random = np.random.default_rng([seed, 7])
    there = np.isfinite(depth)
    middle = float(np.median(depth[there]))
    if fault == "scale":
        spoiled = depth * (1 + amount)
    elif fault == "shift":
        spoiled = depth + amount * middle
    elif fault == "noise":
        spoiled = depth * np.exp(amount * random.standard_normal(depth.shape))
    elif fault == "warp":
        spoiled = depth * np.exp(amount * _smooth(random, depth.shape))
    else:
        return depth
    return np.where(there, np.maximum(spoiled, 1e-3 * middle), np.inf).astype(np.float32)


def _smooth(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) of deviation 1, bent slowly."""
    import cv2

    lattice = random.standard_normal(WARP_CELLS).astype(np.float32)
    field = cv2.resize(lattice, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()
