"""The thread that commits: takes what waits, again and again, so that what came while the disk was busy shares the next commit."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

ItemT = TypeVar("ItemT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)

# Mutations that share one commit at most. More would make the first of them wait, and their news be older when they are told.
BATCH_MAX = 16


class Writer(Protocol[ItemT_contra]):
    """Has items worked off in the order of ``put``, one batch after the other, away from the event loop."""

    def put(self, item: ItemT_contra) -> None:
        """Have ``item`` worked off; it may share a batch with others."""

    async def close(self) -> None:
        """Return when all that was put is worked off and told. Nothing is put after this."""


# Works off a batch, away from the event loop, and returns what the loop is to run then.
Work = Callable[[list[ItemT]], Callable[[], None]]


class WriterThread(Generic[ItemT]):
    """A writer that is a thread. Made on the event loop that runs what ``work`` returns."""

    def __init__(self, work: Work[ItemT]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[ItemT | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, item: ItemT) -> None:
        """Have ``item`` worked off."""
        self._queue.put(item)

    async def close(self) -> None:
        """Return when all that was put is worked off and told."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        # The thread's last results are on the loop's list before this.
        await asyncio.sleep(0)

    def _run(self) -> None:
        stop = False
        while not stop:
            batch, stop = self._next_batch()
            done = self._work(batch)
            try:
                self._loop.call_soon_threadsafe(done)
            except RuntimeError:
                # The loop is closed, and with it everybody who could be told.
                return

    def _next_batch(self) -> tuple[list[ItemT], bool]:
        """Wait for an item and take those that wait behind it; whether that was the end."""
        batch: list[ItemT] = []
        while not batch or (len(batch) < BATCH_MAX and not self._queue.empty()):
            item = self._queue.get()
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False
