"""PROTOCOL.md is the authority: it names every message, field, code and limit that the code has, and no others."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import attrs

from engine_bridge import codec, messages, server, session, uploads, viewer
from engine_bridge.errors import CODES

DOCUMENT = (Path(messages.__file__).parent / "PROTOCOL.md").read_text("utf-8")
PACKAGE = Path(messages.__file__).parent


def rows() -> dict[str, str]:
    """The rows of the tables of messages, by tag."""
    return {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", DOCUMENT, re.MULTILINE)}


def test_it_is_of_the_codes_version() -> None:
    assert f"protocol, version {messages.PROTOCOL_VERSION}\n" in DOCUMENT


def test_it_names_every_message_and_all_of_its_fields() -> None:
    for direction in (messages.ClientMessage, messages.ServerMessage):
        for kind in typing.get_args(direction):
            tag = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
            row = rows()[tag]
            for attribute in attrs.fields(kind):
                assert f"`{attribute.name}`" in row, f"{tag}: {attribute.name}"


def test_it_lists_the_codes() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCUMENT.split("## Codes")[1], re.MULTILINE))
    assert listed == CODES


def test_every_code_the_bridge_gives_is_listed() -> None:
    # What the command line says of itself never goes over a wire.
    sources = "\n".join(path.read_text("utf-8") for path in PACKAGE.glob("*.py") if not path.name.startswith("cli"))
    given = set(re.findall(r"(?:BridgeError|ProtocolError)\(\s*\"(\w+)\"", sources))
    assert len(given) > 15
    assert given - {"bad_settings"} <= set(CODES)


def test_it_states_the_limits_as_they_are() -> None:
    for text in (
        f"{codec.LIMITS.message_bytes // 2**20} MiB",
        f"{codec.LIMITS.string_chars:,} characters",
        f"names, codes and versions {messages.MAX_SHORT_CHARS}",
        f"{messages.MAX_BLOCK_BYTES // 2**20} MiB",
        f"| a piece of an upload | {messages.MAX_PIECE_BYTES // 2**20} MiB |",
        f"| unfinished uploads | {uploads.MAX_UPLOADS}, and {uploads.MAX_UPLOADS_OF_ONE} of one client |",
        f"of more than {uploads.LARGE_BYTES // 2**10} KiB goes better",
        f"kept for {uploads.KEPT_S / 60:g} minutes after",
        f"{session.MAX_CREDIT_BYTES // 2**20} MiB",
        f"| connections | {server.MAX_CONNECTIONS:,} |",
        f"| subscriptions of one connection | {session.MAX_SUBSCRIPTIONS} |",
        f"| connections to the live view, jobs that one looks at | {viewer.MAX_CONNECTIONS}, {viewer.MAX_LOOKED_AT} |",
        f"| a picture of the live view | {messages.MAX_VIEW_SIDE_PX:,} a side |",
        "| jobs that wait | 1,000, and 250 of one client |",
        f"`ping` every {session.PING_EVERY_S:g} s",
        f"says nothing for {session.SILENCE_LIMIT_S:g} s",
        f"heard nothing for {session.UNANSWERED_LIMIT_S:g} s",
        f"a limit ({server.KEEP_BYTES // 2**30} GiB unless",
        f"by default `{messages.DEFAULT_ADDRESS}`",
    ):
        assert text in DOCUMENT, text


def test_it_draws_the_states_of_a_job_as_the_table_has_them() -> None:
    drawn = " ".join(DOCUMENT.split("## A job")[1].split("`done`")[0].split())
    assert drawn.startswith(
        "queued -> running -> done | failed | cancelled queued -> failed | cancelled running -> queued"
    )
    assert drawn.endswith("failed | cancelled -> queued (`resume`)")
    assert session.JOB_STATES == {
        "queued": ("running", "failed", "cancelled"),
        "running": ("done", "failed", "cancelled", "queued"),
        "done": (),
        "failed": ("queued",),
        "cancelled": ("queued",),
    }
