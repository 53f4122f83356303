"""Which WorldWarp this is, for handshakes and records."""

from __future__ import annotations

from importlib import metadata


def package_version() -> str:
    """The installed version of WorldWarp, or of its client's side inside Blender; "unknown" in a bare checkout."""
    for distribution in ("worldwarp", "worldwarp-client"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
