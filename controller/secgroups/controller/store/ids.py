"""Ids that ascend: UUIDv7 (RFC 9562) whose order is that of creation, whatever the clock does."""

from __future__ import annotations

import uuid
from collections.abc import Callable

_RANDOM_BITS = 62
_COUNTER_BITS = 12


class Ids:
    """Makes ids above ``last``, which is then the last one made. ``random_bits`` gives that many random bits.

    Milliseconds and the 12 bits after them are one counter (RFC 9562, method 1): it follows the clock, and goes on by one where
    the clock stands still or goes back.
    """

    def __init__(self, last: str, random_bits: Callable[[int], int]) -> None:
        self.last = last
        self._random_bits = random_bits
        self._count = _count_of(uuid.UUID(last)) if last else 0

    def make(self, now_us: int) -> str:
        """Return a new id, above all that were made before."""
        self._count = max(self._count + 1, (now_us // 1000) << _COUNTER_BITS)
        milliseconds, low = divmod(self._count, 1 << _COUNTER_BITS)
        value = milliseconds << 80 | 0x7 << 76 | low << 64 | 0b10 << 62 | self._random_bits(_RANDOM_BITS)
        self.last = str(uuid.UUID(int=value))
        return self.last


def _count_of(made: uuid.UUID) -> int:
    return made.int >> 80 << _COUNTER_BITS | made.int >> 64 & (1 << _COUNTER_BITS) - 1
