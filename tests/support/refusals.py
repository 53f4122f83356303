"""What a user is told when something is refused."""

import pytest

from worldwarp_core.errors import WorldWarpError


def fails(code, *says):
    """A block that raises a `WorldWarpError` of that code, whose message has these patterns in this order."""
    return pytest.raises(WorldWarpError, match="(?s)" + ".*".join(says), check=lambda error: error.code == code)
