"""What an agent is told lives for hours: Python's collector would look through all of it again and again while everybody waits."""

from __future__ import annotations

import gc

# To look through so many takes a few milliseconds.
FRESH_MAX = 2_000
# What was in use when it was left out, and in a cycle later, is found by looking through everything, once in so many times.
FREEZES_PER_THAW = 500


class LongLived:
    """Leaves what is in force out of collections, each time that ``FRESH_MAX`` more objects and rules have come.

    Nothing of it is in a cycle, so what goes is freed as ever. What is garbage already would stay for ever, so it is freed before:
    this costs in proportion to what has come since the last time.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._freezes = 0

    def note(self, taken: int) -> None:
        """Say how many have come until now, those that are gone again too; see ``Replica.taken``."""
        if taken - self._seen < FRESH_MAX:
            return
        self._seen = taken
        self._freezes += 1
        if not self._freezes % FREEZES_PER_THAW:
            gc.unfreeze()
        gc.collect()
        gc.freeze()
