"""Writes the cache after changes without holding up verdicts: in a thread, and seldom.

What is in force can stay the same while the controller's revision goes on. That is saved too, now and then: a start with a revision
that the change log does not reach back to would be sent everything.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import structlog

from secgroups.agent.cache import Cache, CachedState
from secgroups.agent.replica import Replica

log = structlog.get_logger(__name__)

# A changed state is on disk after this long at the latest, the time of writing aside.
INTERVAL_S = 1.0
# And a revision at which nothing of it has changed. Change logs go back for days.
REVISION_INTERVAL_S = 3600.0


class CacheWriter:
    """Saves what ``replica`` has in force: at once after a quiet time, else once per ``interval_s``.

    A revision alone is saved after ``revision_interval_s`` without another reason to write, and at the end. What ``replica`` has in
    force when this is made is taken as saved.
    """

    def __init__(
        self,
        cache: Cache,
        replica: Replica,
        *,
        interval_s: float = INTERVAL_S,
        revision_interval_s: float = REVISION_INTERVAL_S,
    ) -> None:
        self._cache = cache
        self._replica = replica
        self._interval_s = interval_s
        self._revision_interval_s = revision_interval_s
        self._changed = asyncio.Event()
        self._unsaved = False
        self._failed = False
        self._saved = self._standing()
        self.failures = 0

    def note(self) -> None:
        """Say that what is in force has changed."""
        self._unsaved = True
        self._changed.set()

    async def run(self) -> None:
        """Save until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._revision_interval_s):
                    await self._changed.wait()
            if self._unsaved or self._saved != self._standing():
                self._changed.clear()
                await self._save()
                await asyncio.sleep(self._interval_s)

    async def finish(self) -> None:
        """Save what has not been saved yet; ``run`` must have ended. EngineBrokenError if that is not known any more."""
        if self._unsaved or self._saved != self._standing():
            await self._save()

    def _standing(self) -> tuple[str, str, int]:
        """Return the point in the store's history at which what is in force is."""
        return self._replica.store_epoch, self._replica.timeline_id, self._replica.revision

    async def _save(self) -> None:
        self._unsaved = False
        standing = self._standing()
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
            if saving.exception() is None:
                self._saved = standing
            else:
                self._unsaved = True
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
            self._saved = standing
