# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers as an artist reads them."""

from __future__ import annotations

from collections.abc import Sequence


def duration_in_words(seconds: float) -> str:
    """Returns 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def frames_in_words(stretch: Sequence[int]) -> str:
    """Returns "frame 7" or "frames 7 to 12" for a run of frame numbers."""
    return f"frame {stretch[0]}" if stretch[0] == stretch[-1] else f"frames {stretch[0]} to {stretch[-1]}"


def shortened(text: str, most: int = 40) -> str:
    """Returns `text` with its end left out where it is longer than a line of the sidebar."""
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
