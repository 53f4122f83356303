"""The noise map and the sampler once more, slowly: plain loops over frames, pixels and tokens, one rule at a time.

Written from the method's description alone, to be compared with. Nothing is shared with the fast code.
"""

from __future__ import annotations

import numpy as np
import torch


def public_tokens(validity: np.ndarray) -> np.ndarray:
    """(T, H, W) in [0, 1] -> (T', H/16, W/16) bool: every 4th frame, 15x15 erosion, nearest by 8, whole tokens."""
    valid = validity >= 0.5
    frames, height, width = valid.shape
    tokens = np.zeros(((frames - 1) // 4 + 1, height // 16, width // 16), bool)
    for t, i, j in np.ndindex(tokens.shape):
        tokens[t, i, j] = all(
            survives_erosion(valid[4 * t], 16 * i + down, 16 * j + right) for down in (0, 8) for right in (0, 8)
        )
    return tokens


def survives_erosion(valid: np.ndarray, row: int, col: int) -> bool:
    for y in range(row - 7, row + 8):
        for x in range(col - 7, col + 8):
            if not (0 <= y < valid.shape[0] and 0 <= x < valid.shape[1] and valid[y, x]):
                return False
    return True


def sparing_tokens(validity: np.ndarray) -> np.ndarray:
    """(T, H, W) in [0, 1] -> (T', H/16, W/16) bool: all frames of a latent, a guard of 4 pixels, thin things spared."""
    valid = validity >= 0.5
    frames, height, width = valid.shape
    shape = ((frames - 1) // 4 + 1, height // 16, width // 16)
    own, guarded = np.zeros(shape, bool), np.zeros(shape, bool)
    for t, i, j in np.ndindex(shape):
        first_frame = 0 if t == 0 else 4 * t - 3
        clip = valid[first_frame : 4 * t + 1]
        own[t, i, j] = clip[:, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].all()
        top, left = max(16 * i - 4, 0), max(16 * j - 4, 0)
        guarded[t, i, j] = clip[:, top : 16 * i + 20, left : 16 * j + 20].all()
    tokens = guarded.copy()
    for t, i, j in np.ndindex(shape):
        neighbours = guarded[t, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        if own[t, i, j] and not neighbours.any():
            tokens[t, i, j] = True
    return tokens


def sample(
    transformer: torch.nn.Module,
    prior: torch.Tensor,
    history: torch.Tensor,
    noise: torch.Tensor,
    valid: np.ndarray,
    sigmas: list[float],
    sigma_start: float,
    prompt: torch.Tensor,
    negative_prompt: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Clean (1, C, T', H/8, W/8) latents, from (T', H/16, W/16) bool `valid` and (1, C, n, H/8, W/8) `history`.

    `sigma_start` must be one of `sigmas`.
    """
    assert sigma_start in sigmas
    tokens = list(np.ndindex(valid.shape))
    context = history.shape[2]
    latents = prior.clone()
    latents[:, :, :context] = history
    for token in tokens:
        if token[0] >= context:
            level = sigma_start if valid[token] else 1.0
            patch = latents_of(token)
            latents[patch] = (1 - level) * latents[patch] + level * noise[patch]

    for i in range(len(sigmas) - 1):
        timestep = torch.zeros(1, len(tokens))
        for number, token in enumerate(tokens):
            if token[0] < context:
                timestep[0, number] = 0.0
            elif valid[token] and sigmas[i] > sigma_start:
                timestep[0, number] = 1000 * sigma_start
            else:
                timestep[0, number] = 1000 * sigmas[i]
        with torch.no_grad():
            with_prompt = transformer(latents, timestep, prompt).sample
            without = transformer(latents, timestep, negative_prompt).sample
        velocity = without + guidance * (with_prompt - without)
        for token in tokens:
            holds = token[0] < context or (valid[token] and sigmas[i] > sigma_start)
            if not holds:
                patch = latents_of(token)
                latents[patch] += (sigmas[i + 1] - sigmas[i]) * velocity[patch]
    return latents


def latents_of(token: tuple[int, ...]) -> tuple[slice | int, ...]:
    t, i, j = token
    return slice(None), slice(None), t, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
