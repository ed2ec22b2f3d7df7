"""Keeps a change for many agents from holding up everything else: streams are woken in turns, and rest as long as a round takes.

A change that touches a thousand agents wakes a thousand streams. Woken all at once they would hold the event loop until the last
one has sent; in turns, calls and acknowledgements that came meanwhile are served between them. How long a stream waits for its turn
tells the load: under a storm of changes each stream then rests as long as that before its next update, and what comes meanwhile
goes into one message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from secgroups.controller.clocks import SYSTEM_CLOCKS, Clocks

# About a millisecond's worth of sending.
TURN_STREAMS = 16
# Longer news than this must not become by resting.
REST_MAX_S = 0.1
# The share of the newest wait in the smoothed one.
_NEWEST = 0.25


class Pace:
    """Wakes the sending sides of streams on the running event loop."""

    def __init__(self, clocks: Clocks = SYSTEM_CLOCKS) -> None:
        self._clocks = clocks
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[[], None], float]] = deque()
        self._round_s = 0.0

    def wake(self, take_turn: Callable[[], None]) -> None:
        """Call ``take_turn`` when its turn comes: soon if nobody waits."""
        self._waiting.append((take_turn, self._clocks.monotonic_s()))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._turn)

    def rest_s(self, least_s: float) -> float:
        """Return how long a stream should wait after an update: ``least_s``, more under load, ``REST_MAX_S`` at most."""
        return max(least_s, min(self._round_s, REST_MAX_S))

    def _turn(self) -> None:
        waited_s = self._clocks.monotonic_s() - self._waiting[0][1]
        self._round_s += _NEWEST * (waited_s - self._round_s)
        for _ in range(min(TURN_STREAMS, len(self._waiting))):
            take_turn, _ = self._waiting.popleft()
            take_turn()
        if self._waiting:
            self._loop.call_soon(self._turn)
