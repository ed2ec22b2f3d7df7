"""Where the controller's streams read the time: one place, so that they can be run at another time than this machine's.

Waiting is the event loop's own affair: its time is that of ``monotonic_ns``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The time of day, nanoseconds since the Unix epoch, for what is shown; and one that nobody sets, for what is waited for."""

    time_of_day_ns: Callable[[], int] = time.time_ns
    monotonic_ns: Callable[[], int] = time.monotonic_ns

    def now_us(self) -> int:
        """Return the time of day in microseconds."""
        return self.time_of_day_ns() // 1000

    def monotonic_us(self) -> int:
        """Return the time that nobody sets in microseconds."""
        return self.monotonic_ns() // 1000

    def monotonic_s(self) -> float:
        """Return the time that nobody sets in seconds."""
        return self.monotonic_ns() / 1e9


SYSTEM_CLOCKS = Clocks()
