"""Keeps changes for many agents from holding up everything else: streams are woken in turns, on a budget of time.

A change that touches a thousand agents wakes a thousand streams. Woken all at once they would hold the event loop until the last
one has sent; in turns, calls and acknowledgements that came meanwhile are served between them. One such change has all the time it
takes. Under a storm of them the budget runs out, and turns come only as it fills up again: a stream then waits longer, and what
changes meanwhile goes into one message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from secgroups.controller.clocks import SYSTEM_CLOCKS, Clocks

# About a millisecond's worth of sending. gRPC takes in one call per turn of the event loop, whatever number waits.
TURN_STREAMS = 4
# The share of the time that sending may take on and on; the rest is for acknowledgements, calls and the disk.
SHARE = 0.5
# What may be taken at once: several thousand streams' worth, so that a single change never waits for its budget.
BURST_S = 1.0
# What may be owed. A turn in which the process stood still, whatever the reason, must not keep all agents waiting for long.
DEBT_MAX_S = 0.1


class Pace:
    """Wakes the sending sides of streams on the running event loop."""

    def __init__(self, clocks: Clocks = SYSTEM_CLOCKS) -> None:
        self._clocks = clocks
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._budget_s = BURST_S
        self._counted_until_s = clocks.monotonic_s()
        self._turn_since_s: float | None = None
        self._is_scheduled = False

    def wake(self, take_turn: Callable[[], None]) -> None:
        """Call ``take_turn`` when its turn comes: soon if nobody waits and there is time for it."""
        self._waiting.append(take_turn)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Wake some streams. What they send until this is called again is what their turn takes."""
        self._count()
        if not self._waiting:
            self._is_scheduled = False
            return
        if self._budget_s < 0:
            self._loop.call_later(-self._budget_s / SHARE, self._turn)
            return
        try:
            for _ in range(min(TURN_STREAMS, len(self._waiting))):
                self._waiting.popleft()()
        finally:
            self._turn_since_s = self._counted_until_s
            self._loop.call_soon(self._turn)

    def _count(self) -> None:
        """Fill the budget up by what has passed, and take from it what the last turn took."""
        now_s = self._clocks.monotonic_s()
        if self._turn_since_s is not None:
            self._budget_s = max(-DEBT_MAX_S, self._budget_s - (now_s - self._turn_since_s))
            self._turn_since_s = None
        self._budget_s = min(BURST_S, self._budget_s + SHARE * (now_s - self._counted_until_s))
        self._counted_until_s = now_s
