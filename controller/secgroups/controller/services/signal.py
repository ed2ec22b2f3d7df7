"""What one coroutine waits for: ``asyncio.Event`` for a single one that waits, in a tenth of the memory."""

from __future__ import annotations

import asyncio


class Signal:
    """Set or not. For one event loop, and one that waits at a time: a second one is a RuntimeError."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether nobody has to wait."""
        return self._is_set

    def set(self) -> None:
        """Wake whoever waits; it runs in its turn."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Have whoever comes next wait."""
        self._is_set = False

    async def wait(self) -> None:
        """Return when it was set since it was cleared."""
        if self._is_set:
            return
        if self._waiter is not None:
            raise RuntimeError("somebody waits for this signal already")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
