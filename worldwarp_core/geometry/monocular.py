"""Any depth model of transformers, by name or local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import WorldWarpError
from ..model_files.store import hub_name

Kind = Literal["disparity", "inverse_depth", "depth"]
"""What a model's output means: inverse depth up to scale and shift; inverse depth up to scale alone, 0 for the sky;
depth in metres."""

METRIC_TYPES = ("depth_pro", "glpn", "zoedepth")
MAX_DEPTH = 1e4
"""A metric model's depth beyond this is sky, metres."""


class DepthModel(Protocol):
    """Depth of single pictures."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    def estimate(self, rgb: Tensor) -> Tensor:
        """(V, H, W) float32 of the model's `kind`, on the device of `rgb`: (V, H, W, 3) in [0, 1]."""
        ...

    def disparity(self, rgb: Tensor) -> Tensor:
        """`estimate` as disparity whatever the kind."""
        ...


@dataclass(frozen=True)
class MonocularDepth:
    """A loaded depth model.

    Attributes:
        name: as the user gave it.
        kind: what its output means.
        model, processor: of transformers.
    """

    name: str
    kind: Kind
    model: Any
    processor: Any

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> MonocularDepth:
        """Loads a model by short name, by its name on the Hub or from a folder; safetensors only, no code from the Hub.

        Raises:
            WorldWarpError: `no_weights` where it is not there and cannot be fetched (with the command that fetches
                it), `bad_depth_model` where it is no depth model that we know the output of.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        on_hub = None if Path(name).is_dir() else hub_name(name)
        place = on_hub.repo if on_hub else name
        settings: Any = {"trust_remote_code": False, "revision": (on_hub.revision if on_hub else None) or "main"}
        try:
            config = AutoConfig.from_pretrained(place, **settings)
            kind = output_kind(config, name)
            processor = AutoImageProcessor.from_pretrained(place, **settings)
            model = AutoModelForDepthEstimation.from_pretrained(
                place, use_safetensors=True, dtype=torch.float32, **settings
            )
        except OSError as error:  # what transformers raises for anything missing, offline or malformed
            raise WorldWarpError("no_weights", f"{_what_to_do(name)} ({_first_line(error)})") from error
        except ValueError as error:
            raise WorldWarpError(
                "bad_depth_model", f"{name!r} is not a depth model that transformers can load: {_first_line(error)}"
            ) from error
        return cls(name, kind, model.to(device).eval(), processor)

    @torch.no_grad()
    def estimate(self, rgb: Tensor) -> Tensor:
        """(V, H, W) float32 of the model's `kind`, on the device of `rgb`: (V, H, W, 3) in [0, 1]. One at a time."""
        height, width = rgb.shape[1:3]
        maps = []
        for picture in rgb:
            pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
            inputs = self.processor(images=pixels, return_tensors="pt").to(self.model.device)
            maps.append(self._at_size(self.model(**inputs), height, width))
        return torch.stack(maps).float().to(rgb.device)

    def disparity(self, rgb: Tensor) -> Tensor:
        """`estimate` as disparity whatever the kind: inverse metres for metric models, 0 for the sky."""
        values = self.estimate(rgb)
        if self.kind == "disparity":
            return values
        return torch.where((values > 0) & (values < MAX_DEPTH), 1 / values, 0)

    def _at_size(self, outputs: Any, height: int, width: int) -> Tensor:
        """(height, width) map; the processor undoes its own padding or field of view where it has a way to."""
        undo = getattr(self.processor, "post_process_depth_estimation", None)
        if undo is None:
            values = outputs.predicted_depth
        else:
            sizes = {"source_sizes": [(height, width)]} if self.model.config.model_type == "zoedepth" else {}
            values = undo(outputs, target_sizes=[(height, width)], **sizes)[0]["predicted_depth"][None]
        return interpolate(values[:, None], (height, width), mode="bilinear", align_corners=False)[0, 0]


def output_kind(config: Any, name: str) -> Kind:
    """Whether a model of this configuration gives disparity or metres.

    Raises:
        WorldWarpError: `bad_depth_model` for a type whose output we do not know.
    """
    if config.model_type == "depth_anything":
        return "depth" if config.depth_estimation_type == "metric" else "disparity"
    if config.model_type == "dpt":  # MiDaS's are relative; those on DINOv2 were trained on metres
        backbone = getattr(config.backbone_config, "model_type", None)
        return "depth" if backbone == "dinov2" else "disparity"
    if config.model_type in METRIC_TYPES:
        return "depth"
    raise WorldWarpError(
        "bad_depth_model",
        f"{name!r} is a model of type {config.model_type!r}, whose output we do not know; use one of "
        f"depth_anything, dpt, {', '.join(METRIC_TYPES)}.",
    )


def _what_to_do(name: str) -> str:
    if Path(name).is_dir():
        return (
            f"The folder {name} holds no complete depth model: config.json, preprocessor_config.json and "
            "model.safetensors are needed."
        )
    on_hub = hub_name(name)
    if on_hub is None:
        return f"There is no depth model at {name}: give its folder, or its name on the Hub (owner/name)."
    return (
        f"The depth model {name} is not on this machine and could not be fetched. "
        f"With a connection, run: {on_hub.command}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
