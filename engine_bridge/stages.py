"""The stages of a job, in the words that people read; on the wire they are short names."""

from __future__ import annotations

SHOT = {
    "load": "starting the engine",
    "geometry": "measuring depth",
    "cache": "fitting the world",
    "priors": "looking ahead",
    "fill": "filling in",
    "encode": "filling in",
    "denoise": "filling in",
    "decode": "filling in",
    "finish": "finishing",
    "gpu": "waiting for the GPU",
}

PICTURE = {
    "load": "loading the video model",
    "encode": "reading the prompt",
    "denoise": "drawing",
    "decode": "developing",
    "gpu": "waiting for the GPU",
}


def sending_in_words(received_bytes: int, size_bytes: int) -> str:
    """Returns how much of a job the server has while it is being sent."""
    return f"sending, {received_bytes / 1e6:.1f} of {size_bytes / 1e6:.1f} MB"


def stage_in_words(stage: str, of_picture: bool = False) -> str:
    """Returns what is being done; the name itself for a stage of a newer server.

    Args:
        of_picture: of a first frame that is drawn from text, not of a shot.
    """
    return (PICTURE if of_picture else SHOT).get(stage, stage)
