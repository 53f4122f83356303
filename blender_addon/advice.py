# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong, and what an artist can do about it in Blender.

Servers and files say what is wrong in words that fit a command line too; here is where the way out is another one.
"""

from __future__ import annotations

import traceback

from worldwarp_core.errors import WorldWarpError

KEY_FILE = "In Blender the key file is chosen in the add-on's preferences."
KEPT = "The frames that had arrived are kept; Resume goes on from there."

HERE = {
    # code: what is said after the message
    "server_not_running": "Or start one from the add-on's preferences, and check the address there.",
    "server_gone": "Then press Resume.",
    "key_refused": KEY_FILE,
    "not_loopback": KEY_FILE,
    "bad_keys": KEY_FILE,
    "disk_full": "Then press Resume: nothing is made twice.",
    "cannot_write": "Choose another Output under Generate, or mend its permissions.",
    "worker_died": KEPT,
    "engine_failed": KEPT,
    "out_of_memory": "Or make the shot with a smaller Chunk, under Advanced.",
    "no_weights": "That is done where the server runs.",
    "engine_unavailable": "That is done where the server runs.",
    "queue_full": KEPT,
    "timed_out": "Try again; Test Connection in the add-on's preferences tells whether it is there.",
    "incomplete": "Press Resume to fetch what is missing.",
}
INSTEAD = {
    # code: what is said in place of the message
    "no_depth": "The start picture has no depth, and the server has no model that estimates it. Give a depth map under "
    "Start Frame, begin with a render, or start the server with --depth-model.",
}


def in_words(error: WorldWarpError) -> str:
    """Returns what went wrong and what to do about it here."""
    told = INSTEAD.get(error.code, error.message)
    if error.code not in HERE:
        return told
    # A command at the end of a message has no full stop.
    return f"{told}{'' if told.endswith('.') else '.'} {HERE[error.code]}"


def fault(error: Exception) -> WorldWarpError:
    """Returns a fault of ours as an error with words; what only its finder can use goes to Blender's console."""
    traceback.print_exception(error)
    words = f"WorldWarp failed: {type(error).__name__}: {error}. Blender's system console says where."
    return WorldWarpError("internal", words)
