"""How much of what was sent on one stream has not arrived: gRPC itself takes megabytes before it says that nobody reads."""

from __future__ import annotations

MESSAGES_MAX = 16
BYTES_MAX = 4 << 20


class Window:
    """Messages sent and not yet received, in order of their nonces. 0 for a bound leaves it to the controller."""

    def __init__(self, messages_max: int = 0, bytes_max: int = 0) -> None:
        self.messages_max = min(messages_max or MESSAGES_MAX, MESSAGES_MAX)
        self.bytes_max = min(bytes_max or BYTES_MAX, BYTES_MAX)
        # Short, and a list: an empty deque takes 760 bytes, and there is one for every agent.
        self._under_way: list[tuple[int, int]] = []
        self._size_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether another message may be sent. The last one may go beyond the bound of bytes: a single object is not cut."""
        return len(self._under_way) < self.messages_max and self._size_bytes < self.bytes_max

    @property
    def is_empty(self) -> bool:
        return not self._under_way

    def sent(self, nonce: int, size_bytes: int) -> None:
        """Note a message."""
        self._under_way.append((nonce, size_bytes))
        self._size_bytes += size_bytes

    def received(self, nonce: int) -> bool:
        """Note that all up to and with a nonce has arrived; whether some of it had not been known to."""
        before = len(self._under_way)
        while self._under_way and self._under_way[0][0] <= nonce:
            self._size_bytes -= self._under_way.pop(0)[1]
        return len(self._under_way) < before
