"""One agent enforces in one network namespace: two would take each other's tables for damage and undo it for ever."""

from __future__ import annotations

import errno
import socket

from secgroups.agent.errors import EnforcementError

# An abstract address: it belongs to the network namespace and goes with the process that holds it, however that ends.
_ADDRESS = "\0secgroups-agent/kernel"


class Sole:
    """The right to change our tables; held from ``take`` to ``give_up``."""

    def __init__(self) -> None:
        self._held: socket.socket | None = None

    def take(self) -> None:
        """Take the right, if it is not held here already. EnforcementError if another process has it."""
        if self._held is not None:
            return
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            made.bind(_ADDRESS)
        except OSError as error:
            made.close()
            if error.errno == errno.EADDRINUSE:
                raise EnforcementError("another agent enforces in this network namespace: stop it first") from None
            raise EnforcementError(f"{_ADDRESS[1:]} can't be locked: {error.strerror}") from None
        self._held = made

    def give_up(self) -> None:
        """Let another process have it."""
        if self._held is not None:
            self._held.close()
            self._held = None
