"""How long to wait before connecting again, so that agents that lost their controller together do not come back together."""

from __future__ import annotations

from collections.abc import Callable

# With full jitter each bound is then about half of the time since the first failure: an outage of a second is over within seconds
# on every agent, and one of a minute does not have them ask all the time.
_GROWTH = 1.25
# So many times grown, any first wait is beyond every cap.
_ATTEMPTS_COUNTED_MAX = 80


class Backoff:
    """Full jitter: a random time up to a bound that grows by a quarter with each failure, from ``first_s`` to ``most_s``.

    ``draw(low, high)`` gives a random number between its arguments.
    """

    def __init__(self, first_s: float, most_s: float, draw: Callable[[float, float], float]) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._draw = draw
        self._failures = 0

    def next_wait_s(self) -> float:
        """Return how long to wait after one more failure."""
        bound_s = min(self._most_s, self._first_s * _GROWTH**self._failures)
        self._failures = min(self._failures + 1, _ATTEMPTS_COUNTED_MAX)
        return self._draw(0, bound_s)

    def longest_wait_s(self) -> float:
        """Return how long to wait where asking soon would not help: between half of the longest and the longest."""
        self._failures = _ATTEMPTS_COUNTED_MAX
        return self._draw(self._most_s / 2, self._most_s)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._failures = 0
