"""The options of the learned engines on the command line, and how they reach the engine.

`serve` takes them and hands them to its worker as plain values; `generate` without `--server` hands them to the server
that it starts for itself. They name files and models of this machine, so they never come from a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from .errors import BridgeError

Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Engine wan: folder or name of the Wan 2.1 models (wan-1.3b). Engine preview: folder of trained networks.",
    ),
]
Transformer = Annotated[
    str | None,
    typer.Option(
        "--transformer",
        help="Engine wan: folder, .safetensors or name of the fine-tuned transformer (worldwarp); "
        "`base` takes that of --weights.",
    ),
]
Loras = Annotated[
    list[str] | None, typer.Option("--lora", help="Engine wan: a LoRA file, or file=scale; may be repeated.")
]
Distilled = Annotated[
    bool, typer.Option("--distilled", help="Engine wan: the transformer or a LoRA was trained for few steps.")
]
Vram = Annotated[
    str | None, typer.Option("--vram", help="Engine wan: GPU memory to keep within in GiB, or auto: what is free.")
]
CaptionerName = Annotated[
    str | None,
    typer.Option("--captioner", help="Engine wan: folder or name of a Qwen2.5-VL for --auto-prompt, --style-image."),
]
NoCompile = Annotated[
    bool, typer.Option("--no-compile", help="Engine wan: start faster, run slower: leave the models as they are.")
]
GpusPerJob = Annotated[
    int | None, typer.Option("--gpus-per-job", help="Engine wan: GPUs that share each chunk's work: 1, 2 or 4.")
]
MaskRule = Annotated[
    str | None,
    typer.Option("--mask-rule", help="Engine wan: how the mask reaches the model: ours, or public as its authors do."),
]
Noise = Annotated[
    str | None,
    typer.Option(
        "--noise", help="Engine wan: both (the method), or spatial, temporal, uniform, full_noise to compare."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="How fast against how exact. Engine wan: reference, balanced or fast.",
    ),
]


@dataclass(frozen=True)
class EngineArguments:
    """What was given for the engine; what was not is left to the engine's own defaults."""

    weights: str | None = None
    transformer: str | None = None
    loras: tuple[str, ...] = ()
    distilled: bool = False
    vram: str | None = None
    captioner: str | None = None
    no_compile: bool = False
    gpus: int | None = None
    preset: str | None = None
    mask_rule: str | None = None
    noise: str | None = None

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `worldwarp_core.api.load_engine`."""
        named = {
            "weights": self.weights,
            "transformer": self.transformer,
            "vram": self.vram,
            "captioner": self.captioner,
            "gpus": self.gpus,
            "preset": self.preset,
            "mask_rule": self.mask_rule,
            "noise": self.noise,
        }
        options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if self.loras:
            options["loras"] = list(self.loras)
        if self.distilled:
            options["distilled"] = True
        if self.no_compile:
            options["compile"] = False
        return options

    def arguments(self) -> list[str]:
        """The same for `worldwarp serve`."""
        named = {
            "--weights": self.weights,
            "--transformer": self.transformer,
            "--vram": self.vram,
            "--captioner": self.captioner,
            "--gpus-per-job": self.gpus,
            "--preset": self.preset,
            "--mask-rule": self.mask_rule,
            "--noise": self.noise,
        }
        pairs = [(name, str(value)) for name, value in named.items() if value is not None]
        pairs += [("--lora", lora) for lora in self.loras]
        flags = ["--distilled"] * self.distilled + ["--no-compile"] * self.no_compile
        return [word for pair in pairs for word in pair] + flags


def share_gpus(gpus: str | None, gpus_per_job: int | None) -> tuple[tuple[str, ...], int | None]:
    """Returns the GPUs of each worker, as CUDA_VISIBLE_DEVICES has them, and how many share a job where that is said.

    Args:
        gpus: such as `0,1` (two workers) or `0+1,2+3` (two workers of two GPUs each); None leaves them to one worker.
        gpus_per_job: how many share a job; None is as many as a worker has.

    Raises:
        BridgeError: `bad_settings` where the workers are unlike each other, or have another number than is asked for.
    """
    if not gpus:
        return ("",), gpus_per_job
    groups = [group.strip().split("+") for group in gpus.split(",")]
    sizes = sorted({len(group) for group in groups})
    if len(sizes) > 1 or not all(name.strip() for group in groups for name in group):
        raise BridgeError(
            "bad_settings",
            f"--gpus gives every worker the same number of GPUs, as in 0,1 or 0+1,2+3; got {gpus!r}.",
        )
    if gpus_per_job not in (None, sizes[0]):
        raise BridgeError(
            "bad_settings",
            f"--gpus {gpus} gives each worker {sizes[0]} of them, and --gpus-per-job asks for {gpus_per_job}: join "
            "those that share a job with +, as in 0+1.",
        )
    return tuple(",".join(name.strip() for name in group) for group in groups), sizes[0]
