"""Delays, counted in buckets: the same few numbers however many there are."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

# Inclusive upper bounds. The goals are among them: 5 and 25 ms for one agent, 150 ms for a thousand, 1 s in a storm.
BOUNDS_US = (
    *(500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 25_000, 50_000, 75_000, 100_000, 150_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000),
)
# What a report has room for. Commit times that are far off, for whatever reason, must not end the reports.
SUM_US_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayCounts:
    """How many delays fell into each bucket, and last how many were above all ``bounds_us``.

    ``sum_us`` is that of all delays, ``SUM_US_MAX`` at most.
    """

    bounds_us: tuple[int, ...]
    counts: tuple[int, ...]
    sum_us: int


class Delays:
    """Counts delays since it was made."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_US) + 1)
        self._sum_us = 0

    def add(self, delay_us: int) -> None:
        """Count a delay. One below zero, which a clock that was set back makes of any, counts as none."""
        delay_us = max(0, delay_us)
        self._counts[bisect_left(BOUNDS_US, delay_us)] += 1
        self._sum_us = min(self._sum_us + delay_us, SUM_US_MAX)

    def counted(self) -> DelayCounts:
        """Return what was counted up to now."""
        return DelayCounts(bounds_us=BOUNDS_US, counts=tuple(self._counts), sum_us=self._sum_us)
