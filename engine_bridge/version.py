"""Which WorldWarp this is, for handshakes and records."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def package_version() -> str:
    """The installed version of WorldWarp, or of its client's side inside Blender; "unknown" in a bare checkout.

    Read once: to find it takes milliseconds, and a server says it often.
    """
    for distribution in ("worldwarp", "worldwarp-client"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
