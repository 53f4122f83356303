"""A start frame from words: Wan's own text-to-video pipeline asked for a film of one frame.

In: a prompt and a size. Out: (H, W, 3) uint8 sRGB. The weights are the base model's; the fine-tuned transformer has
learnt to repair warped clips and is not asked. The text goes through the same cache as every other prompt, and the
frame through the same decoder as every other frame.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from ..errors import WorldWarpError
from ..spec import FirstFrameSettings, OnDrawStep
from .autoencoder import WanAutoencoder
from .text import TEXT_ENCODER_GIB, TextEmbedder
from .weights import ModelFiles, load_transformer, load_vae


def make_first_frame(
    files: ModelFiles,
    settings: FirstFrameSettings,
    cache_dir: str | os.PathLike[str],
    device: str = "auto",
    on_step: OnDrawStep = lambda part, step, steps: None,
    text_device: str | None = None,
) -> np.ndarray:
    """Returns the frame, (height, width, 3) uint8 sRGB.

    Args:
        files: where the models are; their own transformer is used.
        settings: what to draw.
        cache_dir: of the prompt embeddings, see `TextEmbedder`.
        device: `auto` (CUDA where there is one), `cpu` or `cuda`; bfloat16 on CUDA, float32 on the CPU.
        on_step: progress; to cancel, raise from it.
        text_device: where the text encoder runs; None takes the CPU where the device has no room for it.

    Raises:
        WorldWarpError: `no_cuda`, `out_of_memory`; what the loading of the models raises.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise WorldWarpError("bad_settings", f"device must be auto, cpu or cuda; got {device!r}.")
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise WorldWarpError("no_cuda", "torch sees no CUDA device (see `worldwarp doctor`). Use --device cpu.")
    try:
        return _draw(files, settings, cache_dir, "cuda" if cuda and device != "cpu" else "cpu", on_step, text_device)
    except torch.OutOfMemoryError as error:
        raise WorldWarpError(
            "out_of_memory",
            f"The device's memory does not hold a frame of {settings.width}x{settings.height}. Choose a smaller one, "
            "close what else uses the GPU, or use --device cpu.",
        ) from error


def _draw(
    files: ModelFiles,
    settings: FirstFrameSettings,
    cache_dir: str | os.PathLike[str],
    device: str,
    on_step: OnDrawStep,
    text_device: str | None,
) -> np.ndarray:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    on_step("text", 0, 1)
    texts = [settings.prompt, settings.negative_prompt]
    if text_device is None:
        roomy = device == "cpu" or torch.cuda.mem_get_info()[0] >= TEXT_ENCODER_GIB * 2**30
        text_device = device if roomy else "cpu"
    wanted, unwanted = TextEmbedder(files, cache_dir, text_device, dtype).embed(texts).to(device).split(1)
    on_step("load", 0, 1)
    transformer: Any = load_transformer(files, dtype)
    transformer.to(device)
    vae: Any = load_vae(files, dtype)
    scheduler: Any = UniPCMultistepScheduler.from_pretrained(files.scheduler, local_files_only=True)
    pipeline: Any = WanPipeline(None, None, vae, scheduler, transformer)  # type: ignore[arg-type]
    pipeline.set_progress_bar_config(disable=True)

    def after_step(pipeline: Any, step: int, timestep: int, tensors: dict[str, object]) -> dict[str, object]:
        on_step("steps", step + 1, settings.steps)
        return {}

    on_step("steps", 0, settings.steps)
    latents = pipeline(
        prompt_embeds=wanted,
        negative_prompt_embeds=unwanted if settings.guidance > 1 else None,
        height=settings.height,
        width=settings.width,
        num_frames=1,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=torch.Generator().manual_seed(settings.seed),
        output_type="latent",
        callback_on_step_end=after_step,
    ).frames
    on_step("decode", 0, 1)
    frame = next(WanAutoencoder(vae, device=device).decode(latents))
    return (frame * 255).round().to(torch.uint8).cpu().numpy()
