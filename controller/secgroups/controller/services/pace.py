"""Keeps changes for many agents from holding up everything else: streams are woken in turns, and what agents answer is read after.

A change that touches a thousand agents wakes a thousand streams. Woken all at once they would hold the event loop until the last
one has sent; in turns, calls that came meanwhile are served between them. Acknowledgements wait until all have been sent to: each
that is looked at before puts off the rest of the news.

While mutations wait for the disk, turns are short, for calls to be taken in. When more wait than the next commit takes, streams are
woken no faster than gives each its turn within a round: what changes meanwhile goes into one message, and the time goes to the
mutations.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from secgroups.controller.clocks import SYSTEM_CLOCKS, Clocks
from secgroups.controller.store_writer import BATCH_MAX

# While mutations wait: about a millisecond's worth of sending. gRPC takes in one call in two or three turns of the loop.
TURN_STREAMS = 2
# While none waits: as long as may be that one comes to wait for the loop.
TURN_STREAMS_ALONE = 8
# Under pressure, how long it takes until all who wait had a turn: what is in force is hardly ever older than this and a commit.
ROUND_S = 0.5
# Under pressure, what may be made up for in one turn; what could not be is let go.
CATCH_UP_STREAMS = 32
# Under pressure, how soon it is looked again whether there still is any: a few streams need not wait out their part of a round.
LOOK_AGAIN_S = 0.005
# What may be put off at most, however many others are to be sent to.
ANSWER_WAIT_MAX_S = 0.25


class Pace:
    """Wakes the sending sides of streams on the running event loop, and says when their answers are to be read."""

    def __init__(self, mutations_waiting: Callable[[], int] = lambda: 0, clocks: Clocks = SYSTEM_CLOCKS) -> None:
        """Wake as fast as it goes but while more than ``BATCH_MAX`` of ``mutations_waiting()`` do."""
        self._mutations_waiting = mutations_waiting
        self._clocks = clocks
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._answers: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._due = 0.0
        self._counted_until_s = clocks.monotonic_s()
        self._is_scheduled = False

    def wake(self, take_turn: Callable[[], None]) -> None:
        """Call ``take_turn`` when its turn comes: soon if nobody waits."""
        self._waiting.append(take_turn)
        self._schedule()

    @property
    def _is_pressed(self) -> bool:
        return self._mutations_waiting() > BATCH_MAX

    async def until_told(self) -> None:
        """Return when all that wait for a turn had it, or it is not worth waiting for."""
        if not self._waiting or self._is_pressed:
            return
        told: asyncio.Future[None] = self._loop.create_future()
        self._answers.append((self._clocks.monotonic_s(), told))
        self._schedule()
        await told

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._counted_until_s = self._clocks.monotonic_s()
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Wake some streams, and come back when those have sent."""
        turns = self._turns()
        self._read_answers()
        try:
            for _ in range(turns):
                self._waiting.popleft()()
        finally:
            self._go_on()

    def _turns(self) -> int:
        """Return how many streams are to be woken now."""
        now_s = self._clocks.monotonic_s()
        passed_s, self._counted_until_s = now_s - self._counted_until_s, now_s
        if not self._is_pressed:
            self._due = 0.0
            return min(TURN_STREAMS if self._mutations_waiting() else TURN_STREAMS_ALONE, len(self._waiting))
        self._due = min(CATCH_UP_STREAMS, self._due + len(self._waiting) * passed_s / ROUND_S)
        turns = min(int(self._due), len(self._waiting))
        self._due -= turns
        return turns

    def _read_answers(self) -> None:
        """Have some be read: all in turn when nobody waits to be sent to, before that those that waited long."""
        long_ago_s = self._counted_until_s - ANSWER_WAIT_MAX_S
        for _ in range(min(TURN_STREAMS_ALONE, len(self._answers))):
            if self._waiting and self._answers[0][0] > long_ago_s and not self._is_pressed:
                return
            told = self._answers.popleft()[1]
            if not told.done():
                told.set_result(None)

    def _go_on(self) -> None:
        if not self._waiting and not self._answers:
            self._is_scheduled = False
            return
        if self._waiting and self._is_pressed and self._due < 1:
            self._loop.call_later(min(LOOK_AGAIN_S, (1 - self._due) * ROUND_S / len(self._waiting)), self._turn)
        else:
            self._loop.call_soon(self._turn)
