"""Writes the cache after changes without holding up verdicts: in a thread, and seldom."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from secgroups.agent.cache import Cache, CachedState
from secgroups.agent.replica import Replica

log = structlog.get_logger(__name__)

# A changed state is on disk after this long at the latest, the time of writing aside.
INTERVAL_S = 1.0


class CacheWriter:
    """Saves what ``replica`` has in force: at once after a quiet time, else once per ``interval_s``."""

    def __init__(self, cache: Cache, replica: Replica, *, interval_s: float = INTERVAL_S) -> None:
        self._cache = cache
        self._replica = replica
        self._interval_s = interval_s
        self._changed = asyncio.Event()
        self._unsaved = False
        self._failed = False
        self.failures = 0

    def note(self) -> None:
        """Say that what is in force has changed."""
        self._unsaved = True
        self._changed.set()

    async def run(self) -> None:
        """Save until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._save()
            await asyncio.sleep(self._interval_s)

    async def finish(self) -> None:
        """Save what has not been saved yet; ``run`` must have ended."""
        if self._unsaved:
            await self._save()

    async def _save(self) -> None:
        self._unsaved = False
        replica = self._replica
        state = CachedState(
            store_epoch=replica.store_epoch,
            timeline_id=replica.timeline_id,
            ruleset=replace(replica.ruleset, revision=replica.revision),
        )
        saving = asyncio.create_task(asyncio.to_thread(self._cache.save, state))
        try:
            # A thread can't be cancelled, and two must not write at once.
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            await asyncio.wait([saving])
            self._unsaved = self._unsaved or saving.exception() is not None
            raise
        except OSError as error:
            # What is in force stays in force, and the old file is still whole. It is tried again each interval, and said once.
            self.note()
            self.failures += 1
            if not self._failed:
                log.error("cache_not_written", folder=str(self._cache.folder), reason=error.strerror)  # noqa: TRY400
            self._failed = True
        else:
            if self._failed:
                log.info("cache_written_again", folder=str(self._cache.folder), revision=state.ruleset.revision)
            self._failed = False
