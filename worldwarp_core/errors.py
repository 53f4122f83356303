"""What a user, a file or a peer did wrong, said once with a stable code and a sentence that says what to do."""

from typing import Any


class WorldWarpError(Exception):
    """A fault of the input or of the machine, not of our code.

    `code` is stable and short (`bad_camera_path`, `no_depth`, ...): programs match on it, people read the message.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles whole: an exception is rebuilt from its message alone, and a pool of processes breaks over that."""
        return type(self), (self.code, self.message), self.__dict__


def install_command(*extras: str) -> str:
    """The command, run in a checkout, that brings what an installation lacks."""
    # Double quotes: Windows' cmd.exe hands single ones on as part of the name.
    return f'pip install -c constraints.txt -e ".[{",".join(extras)}]"'
