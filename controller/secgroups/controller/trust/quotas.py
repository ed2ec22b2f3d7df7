"""How much one caller may ask for: calls within a second, by a bucket that fills again. Plain Python; the clock is an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from secgroups.controller.errors import OverloadError

# Buckets that are looked through before the next time; tokens come and go.
SWEEP_MIN = 1_024


@dataclass(slots=True)
class _Bucket:
    """``left`` calls as of ``at_ns``."""

    left: float
    at_ns: int


class CallRates:
    """A bucket for each caller, of one second's calls: as many may come at once, and as many each second from then on.

    ``clock`` is monotonic nanoseconds. Bounded by who has called within the last second: a full bucket need not be kept.
    """

    def __init__(self, calls_per_s: int, clock: Callable[[], int]) -> None:
        self._calls_per_s = calls_per_s
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._sweep_at = SWEEP_MIN

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str) -> None:
        """Count a call. OverloadError, with the time when there is room again, if it is one too many; that one costs nothing."""
        now_ns = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._sweep_at:
                self._sweep(now_ns)
            bucket = self._buckets[key] = _Bucket(self._calls_per_s, now_ns)
        bucket.left, bucket.at_ns = self._left(bucket, now_ns), now_ns
        if bucket.left < 1:
            message = f"more than {self._calls_per_s} calls came within a second, the most allowed for one caller; try again later"
            wait_s = (1 - bucket.left) / self._calls_per_s
            raise OverloadError("calls", message, limit="calls_per_s", most=self._calls_per_s, retry_after_s=wait_s)
        bucket.left -= 1

    def _left(self, bucket: _Bucket, now_ns: int) -> float:
        return min(self._calls_per_s, bucket.left + (now_ns - bucket.at_ns) * self._calls_per_s / 1e9)

    def _sweep(self, now_ns: int) -> None:
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if self._left(bucket, now_ns) < self._calls_per_s}
        self._sweep_at = max(SWEEP_MIN, 2 * len(self._buckets))
