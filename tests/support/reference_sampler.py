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


def confidence(validity: np.ndarray, rule: str, graded: bool) -> np.ndarray:
    """(T, H, W) in [0, 1] -> (T', H/16, W/16): how far each token is to be trusted, by the rule `ours` or `public`.

    Graded, a token is as sure as the least sure pixel of all that makes it valid, from the threshold (0) to 1 (1).
    """
    tokens = sparing_tokens(validity) if rule == "ours" else public_tokens(validity)
    trust = tokens.astype(np.float64)
    if not graded:
        return trust
    guarded = sparing_tokens(validity) & ~_spared(validity) if rule == "ours" else tokens
    for t, i, j in np.ndindex(trust.shape):
        if not tokens[t, i, j]:
            continue
        if rule == "ours":
            first_frame, reach = (0 if t == 0 else 4 * t - 3), (4 if guarded[t, i, j] else 0)
            top, left = max(16 * i - reach, 0), max(16 * j - reach, 0)
            seen = validity[first_frame : 4 * t + 1, top : 16 * i + 16 + reach, left : 16 * j + 16 + reach]
        else:
            seen = validity[4 * t, 16 * i - 7 : 16 * i + 16, 16 * j - 7 : 16 * j + 16]
        trust[t, i, j] = (float(seen.min()) - 0.5) / 0.5
    return trust


def _spared(validity: np.ndarray) -> np.ndarray:
    """Tokens that are valid by their own pixels alone."""
    valid = validity >= 0.5
    tokens = sparing_tokens(validity)
    for t, i, j in np.ndindex(tokens.shape):
        first_frame = 0 if t == 0 else 4 * t - 3
        top, left = max(16 * i - 4, 0), max(16 * j - 4, 0)
        if valid[first_frame : 4 * t + 1, top : 16 * i + 20, left : 16 * j + 20].all():
            tokens[t, i, j] = False
    return tokens


def start_levels(
    trust: np.ndarray,
    strength: float,
    context: int,
    variant: str,
    table: list[float],
    offset: np.ndarray | None = None,
) -> np.ndarray:
    """(T', H/16, W/16): the noise level at which each token starts; 0 is clean, for ever.

    Args:
        trust: what `confidence` says.
        context: latent frames of history.
        table: the 50 reference levels and the final 0.
        offset: (T, H, W), added to the strength where a token is valid, by its mean over the token.
    """

    def level(share: float) -> float:
        return table[min(int((1 - round(share, 6)) * 50), 49)]

    strengths = np.zeros(trust.shape)
    for t, i, j in np.ndindex(trust.shape):
        own = strength
        if offset is not None:
            first_frame = 0 if t == 0 else 4 * t - 3
            own += float(offset[first_frame : 4 * t + 1, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16].mean())
        own = min(max(own, 0.0), 1.0)
        sure = 1.0 if variant == "spatial" and t < context else trust[t, i, j]
        strengths[t, i, j] = 1 - sure * (1 - own)

    levels = np.zeros(trust.shape)
    for t, i, j in np.ndindex(trust.shape):
        if variant == "uniform":
            levels[t, i, j] = level(strength)
        elif variant == "spatial":
            levels[t, i, j] = level(strengths[t, i, j])
        elif t < context:
            levels[t, i, j] = 0.0
        elif variant == "full_noise":
            levels[t, i, j] = 1.0
        elif variant == "temporal":
            levels[t, i, j] = level(strengths[t].mean())
        else:
            levels[t, i, j] = level(strengths[t, i, j])
    return levels


def sample(
    transformer: torch.nn.Module,
    prior: torch.Tensor,
    history: torch.Tensor,
    noise: torch.Tensor,
    levels: np.ndarray,
    sigmas: list[float],
    prompt: torch.Tensor,
    negative_prompt: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Clean (1, C, T', H/8, W/8) latents, from what `start_levels` says and (1, C, n, H/8, W/8) `history`."""
    tokens = list(np.ndindex(levels.shape))
    latents = prior.clone()
    latents[:, :, : history.shape[2]] = history
    for token in tokens:
        patch = latents_of(token)
        latents[patch] = (1 - levels[token]) * latents[patch] + levels[token] * noise[patch]

    for i in range(len(sigmas) - 1):
        timestep = torch.zeros(1, len(tokens))
        for number, token in enumerate(tokens):
            timestep[0, number] = 1000 * min(sigmas[i], levels[token])
        with torch.no_grad():
            with_prompt = transformer(latents, timestep, prompt).sample
            without = transformer(latents, timestep, negative_prompt).sample
        velocity = without + guidance * (with_prompt - without)
        for token in tokens:
            if sigmas[i + 1] >= levels[token]:
                continue  # it holds: the schedule has not come down to it
            patch = latents_of(token)
            latents[patch] += (sigmas[i + 1] - min(sigmas[i], levels[token])) * velocity[patch]
    return latents


def latents_of(token: tuple[int, ...]) -> tuple[slice | int, ...]:
    t, i, j = token
    return slice(None), slice(None), t, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
